//! How much agents are trusted, as sidecars are told it: each change once, and all to whoever is new.
//!
//! Every sidecar is told of every agent that has a history: any of them may call its agent, or stand
//! in a chain of delegations.

use std::{collections::BTreeMap, time::Duration};

use aegis_api::distribution::{AgentTrust, Statement, ToldTrust};
use aegis_core::{AgentId, Timestamp, trust::Trust};

/// How long what was said counts on its way.
const LIFE: Duration = Duration::from_secs(30);
/// The most agents that are told of. Of more, those that came last are not: sidecars go by what they
/// have recorded themselves.
const MAX_AGENTS: usize = 50_000;

/// How much an agent is trusted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known {
    /// The posterior.
    pub trust: Trust,
    /// How many entries of the ledger it was folded from when it changed.
    pub as_of: u64,
    number: u64,
}

/// How much all are trusted.
#[derive(Debug, Default)]
pub(super) struct Posteriors {
    number: u64,
    as_of: u64,
    agents: BTreeMap<AgentId, Known>,
}

impl Posteriors {
    /// The number of the last change; 0 before the first.
    pub(super) const fn number(&self) -> u64 {
        self.number
    }

    pub(super) fn of(&self, agent: &AgentId) -> Option<Known> {
        self.agents.get(agent).copied()
    }

    /// Takes what the ledger says; `all` if whoever is not named has no history any more. Returns
    /// whose trust is another now. As with states, a later term's numbers are larger.
    pub(super) fn change(
        &mut self,
        term: u32,
        as_of: u64,
        told: Vec<(AgentId, Trust)>,
        all: bool,
    ) -> Vec<AgentId> {
        let mut told: BTreeMap<AgentId, Trust> = told.into_iter().collect();
        if all {
            for agent in self.agents.keys() {
                told.entry(agent.clone()).or_default();
            }
        }
        told.retain(|agent, trust| self.of(agent).is_none_or(|known| known.trust != *trust));
        if told.is_empty() {
            return Vec::new();
        }
        let first = (u64::from(term) << 32) | 1;
        self.number = first.max(self.number + 1);
        self.as_of = as_of;
        for (agent, trust) in &told {
            if self.agents.len() >= MAX_AGENTS && !self.agents.contains_key(agent) {
                tracing::error!(%agent, most = MAX_AGENTS, "sidecars are not told this agent's trust");
                continue;
            }
            self.agents.insert(agent.clone(), Known { trust: *trust, as_of, number: self.number });
        }
        told.into_keys().collect()
    }

    /// What has changed since the number `since`.
    pub(super) fn since(&self, since: u64, now: Timestamp) -> Statement {
        let changed = self.agents.iter().filter(|(_, known)| known.number > since);
        let agents = changed.map(|(id, known)| AgentTrust { id: id.clone(), trust: known.trust });
        Statement::Trust(ToldTrust {
            number: self.number,
            since,
            as_of: self.as_of,
            issued_at: now,
            expires_at: now.plus(LIFE),
            agents: agents.collect(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(name: &str) -> AgentId {
        format!("spiffe://acme.example/ns/a/sa/b/agent/{name}").parse().unwrap()
    }

    fn trust(a: u64) -> Trust {
        Trust { a, ..Trust::default() }
    }

    fn told(posteriors: &Posteriors, since: u64) -> Vec<AgentId> {
        let Statement::Trust(told) = posteriors.since(since, Timestamp::from_secs(1)) else {
            panic!("trust")
        };
        told.agents.into_iter().map(|one| one.id).collect()
    }

    #[test]
    fn only_what_changes_is_told_again() {
        let mut all = Posteriors::default();
        let both = vec![(agent("x"), trust(5)), (agent("y"), trust(6))];
        assert_eq!(all.change(1, 10, both.clone(), true).len(), 2);
        let first = all.number();
        assert!(all.change(1, 11, both, true).is_empty(), "the same again is no news");
        assert_eq!(all.number(), first);
        assert_eq!(all.change(1, 12, vec![(agent("y"), trust(7))], false), [agent("y")]);
        assert_eq!(told(&all, first), [agent("y")]);
        assert_eq!(told(&all, 0), [agent("x"), agent("y")]);
        assert_eq!(
            (all.of(&agent("x")).unwrap().as_of, all.of(&agent("y")).unwrap().as_of),
            (10, 12)
        );
        // A ledger that knows nothing of x any more.
        assert_eq!(all.change(1, 1, vec![(agent("y"), trust(7))], true), [agent("x")]);
        assert_eq!(all.of(&agent("x")).unwrap().trust, Trust::default());
        // A later leader tells all of it again, under larger numbers.
        let mut later = Posteriors::default();
        later.change(2, 12, vec![(agent("x"), trust(5))], true);
        assert!(later.number() > all.number());
        assert_eq!(told(&later, all.number()), [agent("x")]);
    }
}
