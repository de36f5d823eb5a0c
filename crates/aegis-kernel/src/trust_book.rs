//! Trust scores, folded from the ledger in ledger order.
//!
//! The book sees every committed entry, first those of the log as it stood when the process
//! started, then each new one as it is committed. Nothing else moves a score.

use std::collections::{BTreeMap, HashMap};

use aegis_audit::entry::{Draft, Entry, Kind, Outcome};
use aegis_core::{
    AgentId, Timestamp,
    action::{ActionKind, Protocol},
    decision::Reason,
    risk::PerMille,
    thresholds::Thresholds,
    tier::Tier,
    trust::{Observation, Trust, TrustScore},
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

/// The members of an entry that the fold reads.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    kind: Kind,
    result: Outcome,
    agent_id: Option<&'a str>,
    reason: Option<&'a str>,
    risk: Option<u64>,
    tier: Option<&'a str>,
    timestamp: Timestamp,
    action: &'a Map<String, Value>,
    detail: &'a Map<String, Value>,
}

/// What a snapshot holds. Another version may fold otherwise, so it starts from the entries.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    version: String,
    as_of: u64,
    thresholds: Thresholds,
    agents: BTreeMap<AgentId, Trust>,
}

/// What decides whether an agent is critical: its posterior, the score and the confidence.
type Question = (Trust, PerMille, PerMille);

/// How many answers to [`Question`]s are remembered.
const MAX_ANSWERS: usize = 10_000;

/// Trust per agent, as of a size of the ledger.
#[derive(Debug, Default)]
pub struct TrustBook {
    agents: HashMap<AgentId, Trust>,
    thresholds: Thresholds,
    as_of: u64,
    /// Who is critical, and what that was computed from.
    critical: HashMap<AgentId, (Question, bool)>,
    /// Entries that were committed while the history before them was still being read.
    waiting: Vec<(u64, Draft)>,
    caught_up: bool,
}

impl<'a> From<&'a Draft> for Facts<'a> {
    fn from(draft: &'a Draft) -> Self {
        Self {
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
}

impl<'a> From<&'a Entry> for Facts<'a> {
    fn from(entry: &'a Entry) -> Self {
        Self {
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
fn observation(facts: &Facts<'_>) -> Option<Observation> {
    let risk = || PerMille::clamped(facts.risk.unwrap_or_default());
    match (facts.kind, facts.result) {
        (Kind::Decision, Outcome::Deny) => {
            let reason: Reason = facts.reason?.parse().ok()?;
            reason.counts_against_agent().then(|| Observation::Violated { risk: risk() })
        }
        (Kind::Outcome, Outcome::Success) => {
            // Opening sessions and listing says nothing about conduct.
            let kind: ActionKind =
                serde_json::from_value(facts.action.get("kind")?.clone()).ok()?;
            let tier = if facts.tier == Some("L3") { Tier::Mesh } else { Tier::Local };
            // Nobody but the agent saw what the kernel API let it do: its word earns nothing, and what
            // was risky wears its trust all the same.
            let own_word =
                facts.action.get("protocol").is_some_and(|p| p == Protocol::Kernel.as_str());
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

impl TrustBook {
    /// The book as a snapshot keeps it.
    #[must_use]
    pub fn to_snapshot(&self) -> String {
        let kept = Kept {
            version: env!("CARGO_PKG_VERSION").into(),
            as_of: self.as_of,
            thresholds: self.thresholds.clone(),
            agents: self.agents.iter().map(|(agent, trust)| (agent.clone(), *trust)).collect(),
        };
        json!(kept).to_string()
    }

    /// Takes over a snapshot of the first `size` entries, before any entry is folded; whether it
    /// could be read.
    pub fn restore(&mut self, size: u64, snapshot: &str) -> bool {
        let Ok(kept) = serde_json::from_str::<Kept>(snapshot) else { return false };
        if kept.version != env!("CARGO_PKG_VERSION") || kept.as_of != size || self.as_of > 0 {
            return false;
        }
        self.agents = kept.agents.into_iter().collect();
        self.thresholds = kept.thresholds;
        self.as_of = size;
        true
    }

    /// Folds one entry of the history.
    pub fn replay(&mut self, index: u64, entry: &Entry) {
        self.fold(index, entry);
    }

    /// Takes an entry as it is committed; it waits while the history is being read.
    pub fn commit(&mut self, index: u64, draft: &Draft) {
        if self.caught_up {
            self.fold(index, draft);
        } else {
            self.waiting.push((index, draft.clone()));
        }
    }

    /// The history up to `size` has been read: what waited follows.
    pub fn caught_up(&mut self, size: u64) {
        self.as_of = self.as_of.max(size);
        self.caught_up = true;
        for (index, draft) in std::mem::take(&mut self.waiting) {
            self.fold(index, &draft);
        }
    }

    /// Folds the entry at `index`. Entries come in order; one that was folded before is skipped.
    fn fold<'a>(&mut self, index: u64, facts: impl Into<Facts<'a>>) {
        if index < self.as_of {
            return;
        }
        self.as_of = index + 1;
        let facts = facts.into();
        if facts.kind == Kind::Configuration {
            if let Some(thresholds) = facts.detail.get("thresholds") {
                // What a newer version wrote and this one cannot read keeps the old numbers.
                self.thresholds =
                    serde_json::from_value(thresholds.clone()).unwrap_or(self.thresholds.clone());
            }
            return;
        }
        let Some(observation) = observation(&facts) else { return };
        let Some(Ok(agent)) = facts.agent_id.map(str::parse::<AgentId>) else { return };
        let trust = self.agents.entry(agent).or_default();
        *trust = trust.after(observation, facts.timestamp, &self.thresholds);
    }

    /// The posterior of an agent; the prior for one never seen.
    #[must_use]
    pub fn trust(&self, agent: &AgentId) -> Trust {
        self.agents.get(agent).copied().unwrap_or_default()
    }

    /// Whether an agent must be quarantined. Every decision asks this, and the answer is a sum of up
    /// to 64 terms: it is computed again only when what it depends on has changed.
    pub fn is_critical(&mut self, agent: &AgentId, thresholds: &Thresholds) -> bool {
        let trust = self.trust(agent);
        let question = (trust, thresholds.critical_score, thresholds.critical_confidence);
        if let Some((known, answer)) = self.critical.get(agent)
            && *known == question
        {
            return *answer;
        }
        let answer = trust.is_critical(thresholds);
        if self.critical.len() >= MAX_ANSWERS {
            self.critical.clear();
        }
        self.critical.insert(agent.clone(), (question, answer));
        answer
    }

    /// The trust in an agent that acts for `delegation`: its own, and no more than `ρ` per link of
    /// what each delegator is trusted.
    #[must_use]
    pub fn effective(&self, agent: &AgentId, delegation: &[AgentId]) -> TrustScore {
        let mut inherited: Option<TrustScore> = None;
        for delegator in delegation {
            let own = self.trust(delegator).score();
            let limited = inherited.map_or(own, |score| score.min(own));
            inherited = Some(limited.delegated(self.thresholds.rho));
        }
        let own = self.trust(agent).score();
        inherited.map_or(own, |score| score.min(own))
    }

    /// The thresholds that the fold uses: those of the last `configuration` entry.
    #[must_use]
    pub const fn thresholds(&self) -> &Thresholds {
        &self.thresholds
    }

    /// The size of the ledger that has been folded.
    #[must_use]
    pub const fn as_of(&self) -> u64 {
        self.as_of
    }

    /// Every agent that has a history, in no order.
    pub fn agents(&self) -> impl Iterator<Item = (&AgentId, &Trust)> {
        self.agents.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(name: &str) -> AgentId {
        format!("spiffe://acme.example/ns/a/sa/b/agent/{name}").parse().unwrap()
    }

    fn draft(kind: Kind, result: Outcome, reason: Option<&str>) -> Draft {
        let mut draft = Draft::new(kind, Timestamp::from_secs(7_200), result);
        draft.agent_id = Some(agent("x").to_string());
        draft.reason = reason.map(Into::into);
        draft.risk = Some(500);
        draft.tier = Some("L1".into());
        draft.action.insert("kind".into(), json!("tool_call"));
        draft
    }

    fn score_after(drafts: &[Draft]) -> u16 {
        let mut book = TrustBook::default();
        for (index, draft) in drafts.iter().enumerate() {
            book.fold(index as u64, draft);
        }
        book.trust(&agent("x")).score().get()
    }

    #[test]
    fn conduct_moves_trust_and_nothing_else_does() {
        assert_eq!(score_after(&[]), 500);
        assert_eq!(score_after(&[draft(Kind::Outcome, Outcome::Success, None)]), 600);
        assert_eq!(
            score_after(&[draft(Kind::Decision, Outcome::Deny, Some("policy_denied"))]),
            400
        );
        for neutral in [
            draft(Kind::Outcome, Outcome::Failure, None),
            draft(Kind::Outcome, Outcome::Unknown, None),
            draft(Kind::Decision, Outcome::Allow, Some("policy_allowed")),
            draft(Kind::Decision, Outcome::Deny, Some("upstream_unavailable")),
            draft(Kind::Decision, Outcome::Deny, Some("agent_quarantined")),
            draft(Kind::Decision, Outcome::Deny, Some("no such reason")),
        ] {
            assert_eq!(score_after(&[neutral]), 500);
        }
        let mut list = draft(Kind::Outcome, Outcome::Success, None);
        list.action.insert("kind".into(), json!("list"));
        assert_eq!(score_after(&[list]), 500);
        let mut own_word = draft(Kind::Outcome, Outcome::Success, None);
        own_word.action.insert("protocol".into(), json!("kernel"));
        assert_eq!(score_after(std::slice::from_ref(&own_word)), 500);
        own_word.tier = Some("L3".into());
        assert!(score_after(&vec![own_word; 500]) < 500, "what was risky wears trust");
    }

    #[test]
    fn an_entry_is_folded_once() {
        let mut book = TrustBook::default();
        let success = draft(Kind::Outcome, Outcome::Success, None);
        book.fold(0, &success);
        book.fold(0, &success);
        assert_eq!((book.trust(&agent("x")).score().get(), book.as_of()), (600, 1));
    }

    #[test]
    fn a_restored_book_goes_on_like_the_one_that_was_kept() {
        let success = draft(Kind::Outcome, Outcome::Success, None);
        let mut whole = TrustBook::default();
        whole.fold(0, &success);
        let kept = whole.to_snapshot();
        let mut restored = TrustBook::default();
        assert!(!restored.restore(2, &kept), "of another size");
        let older = kept.replace(env!("CARGO_PKG_VERSION"), "0.0.0-older");
        assert!(!restored.restore(1, &older), "of another version");
        assert!(restored.restore(1, &kept));
        for book in [&mut whole, &mut restored] {
            book.fold(0, &success);
            book.fold(1, &draft(Kind::Decision, Outcome::Deny, Some("policy_denied")));
        }
        assert_eq!(whole.trust(&agent("x")), restored.trust(&agent("x")));
        assert_eq!((whole.as_of(), restored.as_of()), (2, 2));
    }

    #[test]
    fn who_is_critical_follows_conduct_and_thresholds() {
        let (mut book, thresholds) = (TrustBook::default(), Thresholds::default());
        let violation = draft(Kind::Decision, Outcome::Deny, Some("policy_denied"));
        for index in 0..100 {
            let answer = book.is_critical(&agent("x"), &thresholds);
            assert_eq!(answer, book.trust(&agent("x")).is_critical(&thresholds), "after {index}");
            book.fold(index, &violation);
        }
        assert!(book.is_critical(&agent("x"), &thresholds));
        assert!(!book.is_critical(&agent("y"), &thresholds));
        let lenient = Thresholds { critical_score: PerMille::clamped(0), ..thresholds };
        assert!(!book.is_critical(&agent("x"), &lenient));
    }

    #[test]
    fn delegation_shrinks_trust() {
        let mut book = TrustBook::default();
        for index in 0..10 {
            book.fold(index, &draft(Kind::Outcome, Outcome::Success, None));
        }
        let (own, chain) = (book.effective(&agent("x"), &[]), [agent("y")]);
        assert_eq!(own.get(), 857);
        // The newcomer y is trusted 500; ρ leaves 450 of it.
        assert_eq!(book.effective(&agent("x"), &chain).get(), 450);
    }
}
