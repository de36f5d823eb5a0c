//! Trust scores, folded from the ledger in ledger order.
//!
//! The book sees every committed entry, first those of the log as it stood when the process
//! started, then each new one as it is committed. Nothing else moves a score.
//!
//! A cluster's ledger holds many journals. An agent's own (its sidecar's) says nothing by hand, nothing
//! of agents that have none, and nothing good of another agent: a call between two agents is in both
//! their journals, and one leg counts. What it refused another agent counts, since nobody else has seen
//! it. A call within the agent's own pod earns nothing. How much evidence counts in an hour, and which
//! hour it is, the components say ([`journals`]).
//!
//! A sidecar has one journal and no more, so it is told what the cluster's ledger has folded
//! ([`TrustBook::told`]) and goes by that; what it records afterwards is folded on top until it is
//! told again.

mod facts;
mod journals;

use std::collections::{BTreeMap, HashMap};

use aegis_audit::entry::{Draft, Entry, Kind};
use aegis_core::{
    AgentId,
    risk::PerMille,
    thresholds::Thresholds,
    trust::{Trust, TrustScore},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use facts::{Facts, observation};
use journals::Journals;

/// What a snapshot holds. Another version may fold otherwise, so it starts from the entries.
#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Kept {
    version: String,
    as_of: u64,
    thresholds: Thresholds,
    owners: BTreeMap<String, Thresholds>,
    journals: Journals,
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
    /// The last that anybody recorded.
    thresholds: Thresholds,
    /// The last that each owner of journals recorded.
    owners: BTreeMap<String, Thresholds>,
    journals: Journals,
    as_of: u64,
    /// What a cluster's ledger has folded, with what was recorded here since.
    told: HashMap<AgentId, Trust>,
    /// The size of that ledger, once anything was told.
    told_as_of: Option<u64>,
    /// Who is critical, and what that was computed from.
    critical: HashMap<AgentId, (Question, bool)>,
    /// Entries that were committed while the history before them was still being read.
    waiting: Vec<(u64, String, Draft)>,
    caught_up: bool,
}

impl TrustBook {
    /// The book as a snapshot keeps it.
    #[must_use]
    pub fn to_snapshot(&self) -> String {
        let kept = Kept {
            version: env!("CARGO_PKG_VERSION").into(),
            as_of: self.as_of,
            thresholds: self.thresholds.clone(),
            owners: self.owners.clone(),
            journals: self.journals.clone(),
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
        self.owners = kept.owners;
        self.journals = kept.journals;
        self.as_of = size;
        true
    }

    /// Folds one entry of the history; whose trust it moved.
    pub fn replay(&mut self, index: u64, entry: &Entry) -> Option<AgentId> {
        self.fold(index, entry.into())
    }

    /// Takes an entry as it is committed; it waits while the history is being read.
    pub fn commit(&mut self, index: u64, source: &str, draft: &Draft) {
        if self.caught_up {
            self.fold(index, Facts::of_draft(source, draft));
        } else {
            self.waiting.push((index, source.to_owned(), draft.clone()));
        }
    }

    /// The history up to `size` has been read: what waited follows.
    pub fn caught_up(&mut self, size: u64) {
        self.as_of = self.as_of.max(size);
        self.caught_up = true;
        for (index, source, draft) in std::mem::take(&mut self.waiting) {
            self.fold(index, Facts::of_draft(&source, &draft));
        }
    }

    /// Folds the entry at `index`. Entries come in order; one that was folded before is skipped.
    fn fold(&mut self, index: u64, facts: Facts<'_>) -> Option<AgentId> {
        if index < self.as_of {
            return None;
        }
        self.as_of = index + 1;
        let by_agent = self.journals.note(&facts);
        let bound = by_agent && self.journals.are_of_a_cluster();
        if facts.kind == Kind::Configuration {
            if !bound {
                self.configure(&facts);
            }
            return None;
        }
        let observation = observation(&facts)?;
        let agent = facts.agent_id?.parse::<AgentId>().ok()?;
        if !self.journals.may_speak(&facts, by_agent, &agent) {
            return None;
        }
        let at = self.journals.time_of(&facts, by_agent);
        let default = Thresholds::default();
        let thresholds = if bound {
            self.journals.of_namespace(&agent).unwrap_or(&self.thresholds)
        } else {
            self.owners.get(facts.owner()).unwrap_or(&default)
        };
        if let Some(told) = self.told.get_mut(&agent) {
            *told = told.after(observation, at, thresholds);
        }
        let trust = self.agents.entry(agent.clone()).or_default();
        let before = *trust;
        *trust = trust.after(observation, at, thresholds);
        (*trust != before).then_some(agent)
    }

    /// Takes what a configuration says of thresholds.
    fn configure(&mut self, facts: &Facts<'_>) {
        let Some(thresholds) = facts.detail.get("thresholds") else { return };
        if let Some(namespace) = facts.detail.get("namespace").and_then(Value::as_str) {
            return self.journals.tighten(namespace, thresholds);
        }
        let own = self.owners.entry(facts.owner().to_owned()).or_default();
        // What a newer version wrote and this one cannot read keeps the old numbers.
        *own = serde_json::from_value(thresholds.clone()).unwrap_or(own.clone());
        self.thresholds.clone_from(own);
    }

    /// Goes by what a cluster's ledger has folded of these agents, as of its first `as_of` entries.
    /// The fold over this book's own ledger stays what it is.
    pub fn told(&mut self, as_of: u64, agents: impl IntoIterator<Item = (AgentId, Trust)>) {
        self.told_as_of = Some(as_of);
        self.told.extend(agents);
    }

    /// The posterior of an agent; the prior for one never seen.
    #[must_use]
    pub fn trust(&self, agent: &AgentId) -> Trust {
        self.told.get(agent).or_else(|| self.agents.get(agent)).copied().unwrap_or_default()
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

    /// The thresholds of the last `configuration` entry. With one journal, the fold uses them.
    #[must_use]
    pub const fn thresholds(&self) -> &Thresholds {
        &self.thresholds
    }

    /// The thresholds that an agent's evidence is weighed by.
    #[must_use]
    pub fn thresholds_of(&self, agent: &AgentId) -> &Thresholds {
        let own = if self.journals.are_of_a_cluster() {
            self.journals.of_namespace(agent)
        } else {
            self.owners.get(agent.as_str())
        };
        own.unwrap_or(&self.thresholds)
    }

    /// The size of the ledger that has been folded.
    #[must_use]
    pub const fn as_of(&self) -> u64 {
        self.as_of
    }

    /// The size of the ledger that [`TrustBook::trust`] is as of: the cluster's, once it was told, and
    /// this book's own before.
    #[must_use]
    pub fn trust_as_of(&self) -> u64 {
        self.told_as_of.unwrap_or(self.as_of)
    }

    /// Every agent that has a history, in no order.
    pub fn agents(&self) -> impl Iterator<Item = (&AgentId, &Trust)> {
        self.agents.iter()
    }
}

#[cfg(test)]
mod tests {
    use aegis_audit::entry::Outcome;
    use aegis_core::Timestamp;
    use serde_json::Map;

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

    impl TrustBook {
        fn commit_at(&mut self, index: u64, draft: &Draft) {
            self.fold(index, Facts::of_draft("one", draft));
        }

        fn commit_by(&mut self, source: &str, draft: &Draft) -> Option<AgentId> {
            self.fold(self.as_of, Facts::of_draft(source, draft))
        }
    }

    fn score_after(drafts: &[Draft]) -> u16 {
        let mut book = TrustBook::default();
        for (index, draft) in drafts.iter().enumerate() {
            book.commit_at(index as u64, draft);
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
        for protocol in ["kernel", "ide"] {
            let mut own_word = draft(Kind::Outcome, Outcome::Success, None);
            own_word.action.insert("protocol".into(), json!(protocol));
            assert_eq!(score_after(std::slice::from_ref(&own_word)), 500, "{protocol}");
            own_word.tier = Some("L3".into());
            assert!(score_after(&vec![own_word; 500]) < 500, "what was risky wears trust");
        }
        assert_eq!(
            score_after(&[draft(Kind::Outcome, Outcome::Success, Some("glass_broken"))]),
            500
        );
    }

    #[test]
    fn an_entry_is_folded_once() {
        let mut book = TrustBook::default();
        let success = draft(Kind::Outcome, Outcome::Success, None);
        book.commit_at(0, &success);
        book.commit_at(0, &success);
        assert_eq!((book.trust(&agent("x")).score().get(), book.as_of()), (600, 1));
    }

    #[test]
    fn a_restored_book_goes_on_like_the_one_that_was_kept() {
        let success = draft(Kind::Outcome, Outcome::Success, None);
        let mut whole = TrustBook::default();
        whole.commit_at(0, &success);
        let kept = whole.to_snapshot();
        let mut restored = TrustBook::default();
        assert!(!restored.restore(2, &kept), "of another size");
        let older = kept.replace(env!("CARGO_PKG_VERSION"), "0.0.0-older");
        assert!(!restored.restore(1, &older), "of another version");
        assert!(restored.restore(1, &kept));
        for book in [&mut whole, &mut restored] {
            book.commit_at(0, &success);
            book.commit_at(1, &draft(Kind::Decision, Outcome::Deny, Some("policy_denied")));
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
            book.commit_at(index, &violation);
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
            book.commit_at(index, &draft(Kind::Outcome, Outcome::Success, None));
        }
        let (own, chain) = (book.effective(&agent("x"), &[]), [agent("y")]);
        assert_eq!(own.get(), 857);
        // The newcomer y is trusted 500; ρ leaves 450 of it.
        assert_eq!(book.effective(&agent("x"), &chain).get(), 450);
    }

    #[test]
    fn one_leg_of_a_call_counts() {
        let (mut book, x) = (TrustBook::default(), agent("x"));
        let success = draft(Kind::Outcome, Outcome::Success, None);
        assert_eq!(book.commit_by(&format!("{}#1", agent("callee")), &success), None);
        assert_eq!(book.trust(&x), Trust::default(), "the callee's leg");
        assert_eq!(book.commit_by(&format!("{x}#1"), &success), Some(x.clone()));
        assert_eq!(book.trust(&x).score().get(), 600);
        // What the callee refused, nobody else has seen.
        let denial = draft(Kind::Decision, Outcome::Deny, Some("policy_denied"));
        assert_eq!(book.commit_by(&format!("{}#1", agent("callee")), &denial), Some(x.clone()));
        assert_eq!(book.trust(&x).score().get(), 500);
    }

    #[test]
    fn no_agents_journal_sets_a_score() {
        let (mut book, x) = (TrustBook::default(), agent("x"));
        let mut adjusted = draft(Kind::TrustAdjusted, Outcome::Recorded, None);
        adjusted.detail = Map::from_iter([("a".into(), json!(9)), ("b".into(), json!(1))]);
        assert_eq!(book.commit_by(&format!("{x}#1"), &adjusted), None);
        assert_eq!(book.trust(&x), Trust::default());
        assert_eq!(book.commit_by("spiffe://acme.example/aegis/operator#1", &adjusted), Some(x));
    }

    const LEDGER: &str = "spiffe://acme.example/aegis/ledger";

    /// A cluster's ledger, as it begins.
    fn ledger() -> TrustBook {
        let mut book = TrustBook::default();
        book.commit_by(LEDGER, &draft(Kind::JournalOpened, Outcome::Recorded, None));
        book
    }

    fn thresholds(namespace: Option<&str>, thresholds: Value) -> Draft {
        let mut draft = draft(Kind::Configuration, Outcome::Recorded, None);
        draft.detail.insert("thresholds".into(), thresholds);
        draft.detail.extend(namespace.map(|name| ("namespace".into(), name.into())));
        draft
    }

    #[test]
    fn a_log_of_its_own_is_weighed_by_what_is_recorded_there() {
        let (mut book, x) = (TrustBook::default(), agent("x"));
        book.commit_by(&format!("{x}#1"), &thresholds(None, json!({ "evidenceCap": 900_000 })));
        let success = draft(Kind::Outcome, Outcome::Success, None);
        for _ in 0..100 {
            book.commit_by(&format!("{x}#1"), &success);
        }
        assert!(book.trust(&x).score().get() > 857);
        assert_eq!(book.thresholds_of(&x).evidence_cap, 900_000);
    }

    #[test]
    fn no_agent_says_by_what_its_evidence_is_weighed() {
        let (mut book, x) = (ledger(), agent("x"));
        let (own, lavish) = (format!("{x}#1"), json!({ "evidenceCap": 900_000 }));
        book.commit_by(&own, &thresholds(None, lavish.clone()));
        book.commit_by(&own, &thresholds(Some("a"), lavish.clone()));
        let success = draft(Kind::Outcome, Outcome::Success, None);
        let score = |book: &mut TrustBook| {
            for _ in 0..100 {
                book.commit_by(&own, &success);
            }
            book.trust(&x).score().get()
        };
        assert_eq!(score(&mut book), 857, "the default cap holds");
        book.commit_by(LEDGER, &thresholds(None, json!({ "evidenceCap": 9_000 })));
        assert_eq!((score(&mut book), book.thresholds_of(&x).evidence_cap), (909, 9_000));
        book.commit_by(LEDGER, &thresholds(Some("other"), lavish.clone()));
        assert_eq!(score(&mut book), 909);
        book.commit_by(LEDGER, &thresholds(Some("a"), lavish));
        assert!(score(&mut book) > 909, "of its own namespace");
        book.commit_by(LEDGER, &thresholds(Some("a"), Value::Null));
        assert_eq!(book.thresholds_of(&x).evidence_cap, 9_000);
        let (mut restored, as_of) = (TrustBook::default(), book.as_of());
        assert!(restored.restore(as_of, &book.to_snapshot()));
        assert_eq!(score(&mut book), score(&mut restored));
        assert_eq!(restored.journals, book.journals);
    }

    #[test]
    fn which_hour_it_is_the_components_say() {
        let (mut book, x) = (ledger(), agent("x"));
        let mut success = draft(Kind::Outcome, Outcome::Success, None);
        for hour in 2..50 {
            success.timestamp = Timestamp::from_secs(hour * 3_600);
            book.commit_by(&format!("{x}#1"), &success);
        }
        assert_eq!(book.trust(&x).score().get(), 857, "one hour, whatever it says");
        let mut later = draft(Kind::Configuration, Outcome::Recorded, None);
        later.timestamp = Timestamp::from_secs(3 * 3_600);
        book.commit_by(LEDGER, &later);
        book.commit_by(&format!("{x}#1"), &success);
        assert!(book.trust(&x).score().get() > 857);
    }

    #[test]
    fn who_has_no_journal_is_nobody() {
        let (mut book, ghost) = (ledger(), agent("x"));
        let (denial, callee) = (
            draft(Kind::Decision, Outcome::Deny, Some("policy_denied")),
            format!("{}#1", agent("callee")),
        );
        assert_eq!(book.commit_by(&callee, &denial), None);
        assert_eq!(book.agents().count(), 0);
        let opened = draft(Kind::JournalOpened, Outcome::Recorded, None);
        book.commit_by(&format!("{ghost}#1"), &opened);
        assert_eq!(book.commit_by(&callee, &denial), Some(ghost));
    }

    #[test]
    fn a_server_in_its_own_pod_earns_an_agent_nothing() {
        let x = agent("x");
        for (server, earned) in [("x", 500), ("other/x", 600), ("calc", 600)] {
            let (mut book, mut success) = (ledger(), draft(Kind::Outcome, Outcome::Success, None));
            success.action.insert("server".into(), server.into());
            book.commit_by(&format!("{x}#1"), &success);
            assert_eq!(book.trust(&x).score().get(), earned, "{server}");
            success.tier = Some("L3".into());
            for _ in 0..9 {
                book.commit_by(&format!("{x}#1"), &success);
            }
            assert!(earned != 500 || book.trust(&x).score().get() < 500, "risk wears it");
        }
    }

    #[test]
    fn what_was_told_counts_with_what_was_recorded_since() {
        let (mut book, x) = (TrustBook::default(), agent("x"));
        let denial = draft(Kind::Decision, Outcome::Deny, Some("policy_denied"));
        book.commit_at(0, &denial);
        assert_eq!((book.trust(&x).score().get(), book.trust_as_of()), (400, 1));
        let good = Trust { a: 19 * aegis_core::trust::OBSERVATION, ..Trust::default() };
        book.told(7_000, [(x.clone(), good)]);
        assert_eq!((book.trust(&x).score().get(), book.trust_as_of()), (950, 7_000));
        book.commit_at(1, &denial);
        assert_eq!((book.trust(&x).score().get(), book.trust_as_of()), (926, 7_000));
        assert!(!book.is_critical(&x, &Thresholds::default()));
        let bad = Trust { b: 19 * aegis_core::trust::OBSERVATION, ..Trust::default() };
        book.told(7_003, [(x.clone(), bad)]);
        assert!(book.is_critical(&x, &Thresholds::default()));
        // The fold over its own ledger is untouched, and so is what a snapshot keeps of it.
        let own: Vec<_> = book.agents().map(|(_, trust)| trust.score().get()).collect();
        assert_eq!(own, [333]);
        assert!(!book.to_snapshot().contains("7003"));
    }
}
