//! Intents: what somebody has declared they are about to do, signed and for a time.
//!
//! An intent permits nothing by itself. Policies may ask for one (`input.context.intent`,
//! `input.provenance`).

use serde::{Deserialize, Serialize};

use crate::{AgentId, Timestamp, action::Action, canonical, capability::Capability};

/// The longest validity: one day.
pub const MAX_VALIDITY_SECS: u64 = 86_400;

/// A declared purpose.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Intent {
    /// Unique.
    pub id: String,
    /// Who declares and signs it.
    pub declarer: AgentId,
    /// The agents that may act under it; empty means the declarer alone.
    #[serde(default)]
    pub agents: Vec<AgentId>,
    /// What for, in the declarer's words.
    pub purpose: String,
    /// What it covers, in the form of capabilities.
    pub covers: Vec<Capability>,
    /// From when.
    pub not_before: Timestamp,
    /// Until when.
    pub not_after: Timestamp,
    /// The declarer's signature over [`Intent::signed_bytes`], base64.
    pub signature: String,
}

/// Why an intent does not apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIntent {
    /// Outside its time, or valid for more than a day.
    #[error("the intent is not valid now, or for longer than a day")]
    Time,
    /// Somebody else's.
    #[error("the intent does not name this agent")]
    Agent,
    /// About something else.
    #[error("the intent does not cover this action")]
    Scope,
    /// The signature does not verify.
    #[error("the intent's signature does not verify")]
    Signature,
}

impl Intent {
    /// The bytes that are signed: RFC 8785 form without the signature, after a line that keeps it
    /// apart from every other signature in Aegis.
    #[must_use]
    pub fn signed_bytes(&self) -> Vec<u8> {
        let mut value = serde_json::to_value(self).unwrap_or_default();
        if let Some(members) = value.as_object_mut() {
            members.remove("signature");
        }
        let mut bytes = b"aegis.intent.v1\n".to_vec();
        // Only texts: there is no number to refuse.
        bytes.extend(canonical::to_vec(&value).unwrap_or_default());
        bytes
    }

    /// Checks that the intent covers `action` by `agent` at `now`.
    ///
    /// # Errors
    /// The first rule it breaks.
    pub fn check(
        &self,
        agent: &AgentId,
        action: &Action,
        now: Timestamp,
        verify: impl Fn(&AgentId, &[u8], &str) -> bool,
    ) -> Result<(), InvalidIntent> {
        let validity = self.not_after.since(self.not_before).as_secs();
        if now < self.not_before || now >= self.not_after || validity > MAX_VALIDITY_SECS {
            return Err(InvalidIntent::Time);
        }
        let named = if self.agents.is_empty() {
            &self.declarer == agent
        } else {
            self.agents.contains(agent)
        };
        if !named {
            return Err(InvalidIntent::Agent);
        }
        let (verb, segments) = (action.kind.capability_verb(), action.capability_segments());
        if !self.covers.iter().any(|capability| capability.covers(verb, &segments)) {
            return Err(InvalidIntent::Scope);
        }
        if !verify(&self.declarer, &self.signed_bytes(), &self.signature) {
            return Err(InvalidIntent::Signature);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::action::{ActionKind, Protocol};

    fn agent(name: &str) -> AgentId {
        format!("spiffe://acme.example/ns/a/sa/b/agent/{name}").parse().unwrap()
    }

    fn write(path: &str) -> Action {
        Action {
            kind: ActionKind::FileWrite,
            protocol: Protocol::Ide,
            method: "save".into(),
            server: "workspace".into(),
            tool: None,
            tool_pin: None,
            resource: Some(path.into()),
            arguments: Value::Null,
        }
    }

    fn intent() -> Intent {
        Intent {
            id: "i1".into(),
            declarer: agent("a"),
            agents: vec![],
            purpose: "rename the parser".into(),
            covers: vec!["write:workspace/src/**".parse().unwrap()],
            not_before: Timestamp::from_secs(100),
            not_after: Timestamp::from_secs(200),
            signature: "good".into(),
        }
    }

    #[test]
    fn each_rule_refuses() {
        let at = Timestamp::from_secs;
        let check = |intent: &Intent, who: &str, path: &str, now| {
            intent.check(&agent(who), &write(path), now, |_, _, signature| signature == "good")
        };
        let sound = intent();
        assert_eq!(check(&sound, "a", "src/parser.rs", at(150)), Ok(()));
        assert_eq!(check(&sound, "a", "src/parser.rs", at(200)), Err(InvalidIntent::Time));
        assert_eq!(check(&sound, "a", "src/parser.rs", at(99)), Err(InvalidIntent::Time));
        assert_eq!(check(&sound, "b", "src/parser.rs", at(150)), Err(InvalidIntent::Agent));
        assert_eq!(check(&sound, "a", "srcs/parser.rs", at(150)), Err(InvalidIntent::Scope));
        let forged = Intent { signature: "bad".into(), ..intent() };
        assert_eq!(check(&forged, "a", "src/parser.rs", at(150)), Err(InvalidIntent::Signature));
        let endless = Intent { not_after: at(100 + MAX_VALIDITY_SECS + 1), ..intent() };
        assert_eq!(check(&endless, "a", "src/parser.rs", at(150)), Err(InvalidIntent::Time));
    }

    #[test]
    fn the_signature_covers_every_field() {
        let base = intent().signed_bytes();
        let changes: [fn(&mut Intent); 7] = [
            |i| i.id = "i2".into(),
            |i| i.declarer = agent("b"),
            |i| i.agents = vec![agent("c")],
            |i| i.purpose = "else".into(),
            |i| i.covers = vec!["write:**".parse().unwrap()],
            |i| i.not_before = Timestamp::from_secs(0),
            |i| i.not_after = Timestamp::from_secs(300),
        ];
        for change in changes {
            let mut other = intent();
            change(&mut other);
            assert_ne!(other.signed_bytes(), base);
        }
    }
}
