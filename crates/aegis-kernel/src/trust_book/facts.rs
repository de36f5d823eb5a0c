//! What the fold reads of an entry, and what that says about an agent's conduct.

use aegis_audit::entry::{Draft, Entry, Kind, Outcome};
use aegis_core::{
    Timestamp,
    action::{ActionKind, Protocol},
    decision::Reason,
    risk::PerMille,
    tier::Tier,
    trust::Observation,
};
use serde_json::{Map, Value};

/// The members of an entry that the fold reads.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    pub(super) source: &'a str,
    pub(super) kind: Kind,
    pub(super) result: Outcome,
    pub(super) agent_id: Option<&'a str>,
    reason: Option<&'a str>,
    risk: Option<u64>,
    tier: Option<&'a str>,
    pub(super) timestamp: Timestamp,
    action: &'a Map<String, Value>,
    pub(super) detail: &'a Map<String, Value>,
}

impl<'a> Facts<'a> {
    pub(super) fn of_draft(source: &'a str, draft: &'a Draft) -> Self {
        Self {
            source,
            kind: draft.kind,
            result: draft.result,
            agent_id: draft.agent_id.as_deref(),
            reason: draft.reason.as_deref(),
            risk: draft.risk,
            tier: draft.tier.as_deref(),
            timestamp: draft.timestamp,
            action: &draft.action,
            detail: &draft.detail,
        }
    }

    /// Whether an agent's own journal tells of a call to a server of that very agent.
    fn is_within(&self) -> bool {
        let server = self.action.get("server").and_then(Value::as_str);
        self.agent_id == Some(self.owner()) && server == self.owner().rsplit('/').next()
    }

    /// Whose journal it is of: the source without the name of the one journal.
    pub(super) fn owner(&self) -> &'a str {
        self.source.split_once('#').map_or(self.source, |(owner, _)| owner)
    }
}

impl<'a> From<&'a Entry> for Facts<'a> {
    fn from(entry: &'a Entry) -> Self {
        Self {
            source: &entry.source,
            kind: entry.kind,
            result: entry.result,
            agent_id: entry.agent_id.as_deref(),
            reason: entry.reason.as_deref(),
            risk: entry.risk,
            tier: entry.tier.as_deref(),
            timestamp: entry.timestamp,
            action: &entry.action,
            detail: &entry.detail,
        }
    }
}

/// What an entry says about an agent's conduct, if anything.
pub(super) fn observation(facts: &Facts<'_>) -> Option<Observation> {
    let risk = || PerMille::clamped(facts.risk.unwrap_or_default());
    match (facts.kind, facts.result) {
        (Kind::Decision, Outcome::Deny) => {
            let reason: Reason = facts.reason?.parse().ok()?;
            reason.counts_against_agent().then(|| Observation::Violated { risk: risk() })
        }
        // A human had lifted the policies: that it went well says nothing about conduct.
        (Kind::Outcome, Outcome::Success) if facts.reason == Some(Reason::GlassBroken.code()) => {
            None
        }
        (Kind::Outcome, Outcome::Success) => {
            // Opening sessions and listing says nothing about conduct.
            let kind: ActionKind =
                serde_json::from_value(facts.action.get("kind")?.clone()).ok()?;
            let tier = if facts.tier == Some("L3") { Tier::Mesh } else { Tier::Local };
            // Nobody but the agent saw what the kernel API or its hook let it do, or what a server in its
            // own pod did: its word earns nothing, and what was risky wears its trust all the same.
            let unseen = [Protocol::Kernel.as_str(), Protocol::Ide.as_str()];
            let own_word = facts.is_within()
                || facts.action.get("protocol").is_some_and(|p| unseen.iter().any(|own| p == own));
            let risk = if own_word { PerMille::clamped(0) } else { risk() };
            let counts = !kind.is_preparatory() && (!own_word || tier == Tier::Mesh);
            counts.then_some(Observation::Succeeded { risk, tier })
        }
        (Kind::TrustAdjusted, _) => {
            let number = |name: &str| facts.detail.get(name).and_then(Value::as_u64);
            Some(Observation::Adjusted { a: number("a")?, b: number("b")? })
        }
        _ => None,
    }
}
