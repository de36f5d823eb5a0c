//! The approvals that this decision domain waits for, rebuilt from the ledger at the start.
//!
//! Every step is in the ledger before it has an effect, so an approval outlives the process that
//! asked for it. An agent cannot fill the memory: how many approvals it may wait for is bounded,
//! and so is what is kept of the arguments; the ledger has all of it.

use std::collections::{HashMap, VecDeque};

use aegis_audit::{
    entry::{Entry, Kind},
    salt::Salt,
};
use aegis_core::{
    AgentId, Digest, Timestamp,
    approval::{Approval, ApprovalError, ApprovalRequest, ApprovalState, Vote},
    grant::Approver,
};
use serde_json::{Map, Value, json};

use crate::permit::Approved;

/// What a person is shown when asked.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Question {
    /// The action as it is recorded, without its arguments.
    pub action: Map<String, Value>,
    /// What it acts on, as it is recorded.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// The arguments, redacted.
    pub arguments: Value,
    /// Why it was asked: the deciding rule's sentence.
    pub message: String,
    /// The reason code.
    pub reason: String,
    /// Risk in per mille.
    pub risk: u64,
    /// Trust, 0..1000.
    pub trust: u64,
    /// `L1`, `L2` or `L3`.
    pub tier: String,
}

/// An approval with what a person is shown.
#[derive(Clone, Debug)]
pub struct Case {
    /// The state machine.
    pub approval: Approval,
    /// What a person is shown.
    pub question: Question,
    /// What the digest of the action is salted with, where something of the action is not recorded.
    pub(crate) salt: Option<Salt>,
}

impl Case {
    /// Whether it is about the action with that digest.
    fn is_about(&self, action: Digest) -> bool {
        let asked = self.approval.request.action;
        let salted = |salt: Salt| salt.digest(action.as_bytes()) == asked;
        asked == action || self.salt.is_some_and(salted)
    }
}

/// How many approvals one agent may wait for at a time.
pub const MAX_PENDING: usize = 64;
/// How many approvals are remembered.
const MAX_CASES: usize = 10_000;
/// How many bytes of arguments are kept of all approvals. Beyond, those of the oldest are left out.
const MAX_ARGUMENTS: usize = 16 << 20;

/// Every case, by id.
#[derive(Debug, Default)]
pub struct ApprovalBook {
    cases: HashMap<String, Case>,
    by_requester: HashMap<AgentId, Vec<String>>,
    /// The cases whose arguments are kept, the oldest first, and how long these are.
    kept: VecDeque<(String, usize)>,
    /// The sum of those lengths.
    bytes: usize,
}

impl ApprovalBook {
    /// Adds a new case.
    pub fn open(&mut self, case: Case) {
        let request = &case.approval.request;
        self.by_requester.entry(request.requester.clone()).or_default().push(request.id.clone());
        let bytes = case.question.arguments.to_string().len();
        self.kept.push_back((request.id.clone(), bytes));
        self.bytes += bytes;
        self.cases.insert(request.id.clone(), case);
        while self.bytes > MAX_ARGUMENTS {
            let Some((oldest, bytes)) = self.kept.pop_front() else { break };
            self.bytes -= bytes;
            if let Some(case) = self.cases.get_mut(&oldest) {
                let told = format!("{bytes} bytes; see the entry in the ledger");
                case.question.arguments = json!({ "omitted": told });
            }
        }
    }

    /// Whether one more approval can be asked for by this agent. Makes room for it by forgetting
    /// what has ended.
    pub fn make_room(&mut self, requester: &AgentId, now: Timestamp) -> bool {
        let waits = |case: &&Case| {
            case.approval.request.requester == *requester
                && case.approval.state(now) == ApprovalState::Pending
        };
        if self.cases.values().filter(waits).count() >= MAX_PENDING {
            return false;
        }
        if self.cases.len() >= MAX_CASES {
            self.retain(|case| is_open(case.approval.state(now)));
        }
        self.cases.len() < MAX_CASES
    }

    fn retain(&mut self, keep: impl Fn(&Case) -> bool) {
        self.cases.retain(|_, case| keep(case));
        let cases = &self.cases;
        self.by_requester.retain(|_, ids| {
            ids.retain(|id| cases.contains_key(id));
            !ids.is_empty()
        });
        self.kept.retain(|(id, _)| cases.contains_key(id));
        self.bytes = self.kept.iter().map(|(_, bytes)| bytes).sum();
    }

    /// The case that this agent's action with that digest, under those policies, may use or wait for: an
    /// approved one before a pending one.
    #[must_use]
    pub fn usable(
        &self,
        requester: &AgentId,
        action: Digest,
        policies: Digest,
        now: Timestamp,
    ) -> Option<(&str, ApprovalState)> {
        let mut pending = None;
        for id in self.by_requester.get(requester)? {
            let case = self.cases.get(id)?;
            let state = case.approval.state(now);
            if case.approval.request.policies != policies
                || !is_open(state)
                || !case.is_about(action)
            {
                continue;
            }
            if state == ApprovalState::Approved {
                return Some((id, state));
            }
            pending = Some((id.as_str(), state));
        }
        pending
    }

    /// One case.
    #[must_use]
    pub fn find(&self, id: &str) -> Option<&Case> {
        self.cases.get(id)
    }

    /// Every case, in no order.
    pub fn cases(&self) -> impl Iterator<Item = &Case> {
        self.cases.values()
    }

    /// What a vote would lead to, without casting it.
    ///
    /// # Errors
    /// As [`Approval::vote`]; `None` if there is no such case.
    pub fn try_vote(&self, id: &str, vote: Vote) -> Option<Result<ApprovalState, ApprovalError>> {
        Some(self.cases.get(id)?.approval.clone().vote(vote))
    }

    /// Casts a vote that is in the ledger.
    pub fn vote(&mut self, id: &str, vote: Vote) {
        if let Some(case) = self.cases.get_mut(id) {
            // It was tried before it was recorded; one that lost a race changes nothing.
            let _ = case.approval.vote(vote);
        }
    }

    /// Uses an approval up, and tells who gave it. Exactly one caller succeeds; it must record the use
    /// before it acts.
    ///
    /// # Errors
    /// As [`Approval::consume`].
    pub fn consume(
        &mut self,
        id: &str,
        action: Digest,
        policies: Digest,
        now: Timestamp,
    ) -> Result<Approved, ApprovalError> {
        let Some(case) = self.cases.get_mut(id) else {
            return Err(ApprovalError::NotApproved { id: id.into(), state: "unknown" });
        };
        let asked = if case.is_about(action) { case.approval.request.action } else { action };
        case.approval.consume(asked, policies, now)?;
        let gave = case.approval.votes.iter().filter(|vote| vote.approve);
        let approvers =
            gave.map(|vote| Approver { name: vote.approver.clone(), factor: vote.factor });
        Ok(Approved { approval: id.into(), approvers: approvers.collect() })
    }

    /// Removes cases that ended before `before`; the ledger keeps them.
    pub fn forget(&mut self, before: Timestamp) {
        self.retain(|case| case.approval.request.expires_at >= before);
    }

    /// Whether there is such a case that is not over.
    #[must_use]
    pub fn is_open(&self, id: &str, now: Timestamp) -> bool {
        self.cases.get(id).is_some_and(|case| is_open(case.approval.state(now)))
    }

    /// Tells what the digest of a case's action is salted with.
    pub fn salt(&mut self, id: &str, salt: Option<Salt>) {
        if let Some(case) = self.cases.get_mut(id) {
            case.salt = salt;
        }
    }

    /// Replays one entry of the ledger. Salts are not in it: see [`ApprovalBook::salt`].
    pub fn replay(&mut self, entry: &Entry) {
        let Some(id) = entry.approval.as_deref() else { return };
        match entry.kind {
            Kind::ApprovalRequested => {
                let read = |name: &str| entry.detail.get(name).cloned().unwrap_or_default();
                let request = serde_json::from_value::<ApprovalRequest>(read("request"));
                let question = serde_json::from_value::<Question>(read("question"));
                if let (Ok(request), Ok(mut question)) = (request, question) {
                    question.action.clone_from(&entry.action);
                    question.resource.clone_from(&entry.resource);
                    question.arguments = entry.arguments.clone().unwrap_or_default();
                    self.open(Case { approval: Approval::new(request), question, salt: None });
                }
            }
            Kind::ApprovalVote => {
                let vote = entry.detail.get("vote").cloned().unwrap_or_default();
                if let Ok(vote) = serde_json::from_value::<Vote>(vote) {
                    self.vote(id, vote);
                }
            }
            Kind::ApprovalConsumed => {
                if let Some(case) = self.cases.get_mut(id) {
                    case.approval.consumed = true;
                }
            }
            _ => {}
        }
    }
}

/// Whether an approval may still be used.
const fn is_open(state: ApprovalState) -> bool {
    matches!(state, ApprovalState::Pending | ApprovalState::Approved)
}

#[cfg(test)]
mod tests {
    use aegis_core::decision::ApprovalNeed;

    use super::*;

    fn agent(name: &str) -> AgentId {
        format!("spiffe://acme.example/ns/a/sa/b/agent/{name}").parse().unwrap()
    }

    fn case(number: usize, requester: &str, arguments: Value) -> Case {
        let approval = Approval::new(ApprovalRequest {
            id: number.to_string(),
            action: Digest::of(&number.to_be_bytes()),
            policies: Digest::of(b""),
            requester: agent(requester),
            sponsor: None,
            need: ApprovalNeed::default(),
            requested_at: Timestamp::from_secs(1_000),
            expires_at: Timestamp::from_secs(2_000),
        });
        Case { approval, question: Question { arguments, ..Question::default() }, salt: None }
    }

    #[test]
    fn an_agent_waits_for_so_many_and_no_more() {
        let now = Timestamp::from_secs(1_000);
        let mut book = ApprovalBook::default();
        for number in 0..MAX_PENDING {
            assert!(book.make_room(&agent("x"), now));
            book.open(case(number, "x", Value::Null));
        }
        assert!(!book.make_room(&agent("x"), now));
        assert!(book.make_room(&agent("y"), now), "another agent is not held up");
        assert!(book.make_room(&agent("x"), Timestamp::from_secs(2_001)), "they have run out");
    }

    #[test]
    fn what_has_ended_makes_room_for_what_comes() {
        let mut book = ApprovalBook::default();
        for number in 0..MAX_CASES {
            book.open(case(number, "x", Value::Null));
        }
        assert!(!book.make_room(&agent("y"), Timestamp::from_secs(1_000)));
        assert!(book.make_room(&agent("y"), Timestamp::from_secs(2_001)));
        assert_eq!((book.cases().count(), book.by_requester.len(), book.kept.len()), (0, 0, 0));
    }

    #[test]
    fn arguments_of_all_approvals_are_bounded_and_the_newest_stay() {
        let mut book = ApprovalBook::default();
        let large = || json!({ "text": "x".repeat(1 << 20) });
        for number in 0..40 {
            book.open(case(number, "x", large()));
            let kept: usize = book.cases().map(|c| c.question.arguments.to_string().len()).sum();
            assert!(kept < MAX_ARGUMENTS + 40 * 100, "{kept}");
        }
        assert_eq!(book.find("39").unwrap().question.arguments, large());
        let oldest = &book.find("0").unwrap().question.arguments;
        assert!(oldest["omitted"].as_str().unwrap().contains("ledger"), "{oldest}");
        book.forget(Timestamp::from_secs(2_001));
        assert_eq!((book.bytes, book.kept.len()), (0, 0));
    }
}
