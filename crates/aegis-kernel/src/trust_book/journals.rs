//! The journals of a log: whose they are, what time it is, and by what their evidence is weighed.
//!
//! The log of a cluster begins with an entry of the ledger's own. From then on no agent's journal has a
//! say in how much its evidence counts: the hour is that of the newest entry of a component, the
//! thresholds are those that a component recorded, and an agent that no journal is of is nobody.

use std::collections::BTreeMap;

use aegis_audit::entry::Kind;
use aegis_core::{AgentId, Timestamp, thresholds::Thresholds};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::facts::Facts;

/// What is known of the journals.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Journals {
    /// Who has one, and whether that is an agent.
    owners: BTreeMap<String, bool>,
    /// The newest time of a component's entry; none in a log that is an agent's own.
    clock: Option<Timestamp>,
    /// What components recorded for single namespaces.
    namespaces: BTreeMap<String, Thresholds>,
}

impl Journals {
    /// Notes whose an entry is, and the time if a component tells it; whether it is an agent's.
    pub(super) fn note(&mut self, facts: &Facts<'_>) -> bool {
        let owner = facts.owner();
        let by_agent = match self.owners.get(owner) {
            Some(by_agent) => *by_agent,
            None => {
                let by_agent = owner.parse::<AgentId>().is_ok();
                self.owners.insert(owner.to_owned(), by_agent);
                by_agent
            }
        };
        if !by_agent {
            self.clock = self.clock.max(Some(facts.timestamp));
        }
        by_agent
    }

    /// Whether components write here too.
    pub(super) const fn are_of_a_cluster(&self) -> bool {
        self.clock.is_some()
    }

    /// The time of an entry: in a cluster an agent's clock is its own affair.
    pub(super) fn time_of(&self, facts: &Facts<'_>, by_agent: bool) -> Timestamp {
        self.clock.filter(|_| by_agent).unwrap_or(facts.timestamp)
    }

    /// Takes what a component recorded for one namespace: thresholds, or that it has none of its own.
    pub(super) fn tighten(&mut self, namespace: &str, thresholds: &Value) {
        if thresholds.is_null() {
            self.namespaces.remove(namespace);
        } else if let Ok(thresholds) = serde_json::from_value(thresholds.clone()) {
            self.namespaces.insert(namespace.to_owned(), thresholds);
        }
    }

    /// What was recorded for the namespace of an agent.
    pub(super) fn of_namespace(&self, agent: &AgentId) -> Option<&Thresholds> {
        self.namespaces.get(agent.namespace()?)
    }

    /// Whether the journal of an entry may say this of `agent`.
    pub(super) fn may_speak(&self, facts: &Facts<'_>, by_agent: bool, agent: &AgentId) -> bool {
        let own = facts.owner() == agent.as_str();
        match facts.kind {
            _ if !by_agent => true,
            Kind::TrustAdjusted => false,
            Kind::Outcome => own,
            _ => own || !self.are_of_a_cluster() || self.owners.contains_key(agent.as_str()),
        }
    }
}
