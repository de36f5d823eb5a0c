//! What an entry of the ledger holds of an action, and what was decided about it: as much as is needed
//! to compute it again, and whether that is all of it.

use aegis_audit::{Entry, Outcome};
use aegis_core::{
    AgentId, Digest,
    action::Action,
    decision::{Reason, Verdict},
};
use serde::{Serialize, de::DeserializeOwned};

/// What became, or would become, of an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Fate {
    Allowed,
    /// A human was asked.
    Asked,
    Denied,
}

impl Fate {
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Allowed => "allowed",
            Self::Asked => "asked",
            Self::Denied => "denied",
        }
    }

    pub(crate) const fn of(verdict: Verdict) -> Self {
        match verdict {
            Verdict::Allow => Self::Allowed,
            Verdict::RequireApproval => Self::Asked,
            Verdict::Deny => Self::Denied,
        }
    }

    /// Of a recorded decision. Who was approved had been asked.
    pub(crate) fn recorded(entry: &Entry, reason: Reason) -> Self {
        let asked = [
            Reason::Approved,
            Reason::Granted,
            Reason::ApprovalDenied,
            Reason::ApprovalExpired,
            Reason::ApprovalPending,
        ];
        match entry.result {
            _ if asked.contains(&reason) => Self::Asked,
            Outcome::Allow => Self::Allowed,
            Outcome::RequireApproval => Self::Asked,
            _ => Self::Denied,
        }
    }
}

/// The action as far as it is recorded.
pub(crate) fn action(entry: &Entry) -> Option<Action> {
    fn word<T: DeserializeOwned>(entry: &Entry, name: &str) -> Option<T> {
        serde_json::from_value(entry.action.get(name)?.clone()).ok()
    }
    Some(Action {
        kind: word(entry, "kind")?,
        protocol: word(entry, "protocol")?,
        method: entry.action_text("method")?.to_owned(),
        server: entry.action_text("server")?.to_owned(),
        tool: entry.action_text("tool").map(str::to_owned),
        tool_pin: entry.action_text("tool_pin").and_then(|pin| pin.parse().ok()),
        resource: entry.resource.clone(),
        arguments: entry.arguments.clone().unwrap_or_default(),
    })
}

/// The digest of the action that was decided on, if the record holds all of it: then it comes out again.
pub(crate) fn whole(entry: &Entry, action: &Action, agent: &AgentId) -> Option<Digest> {
    let digest = action.digest(agent, entry.action_text("endpoint")).ok()?;
    (Some(digest.to_string().as_str()) == entry.action_text("digest")).then_some(digest)
}
