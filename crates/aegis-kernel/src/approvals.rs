//! The approvals that this decision domain waits for, rebuilt from the ledger at the start.
//!
//! Every step is in the ledger before it has an effect, so an approval outlives the process that
//! asked for it.

use std::collections::HashMap;

use aegis_audit::entry::{Entry, Kind};
use aegis_core::{
    Digest, Timestamp,
    approval::{Approval, ApprovalError, ApprovalRequest, ApprovalState, Vote},
};
use serde_json::{Map, Value};

/// What a person is shown when asked.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct Question {
    /// The action as it is recorded, without its arguments.
    pub action: Map<String, Value>,
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
}

/// Every case, by id.
#[derive(Debug, Default)]
pub struct ApprovalBook {
    cases: HashMap<String, Case>,
    by_action: HashMap<Digest, Vec<String>>,
}

impl ApprovalBook {
    /// Adds a new case.
    pub fn open(&mut self, case: Case) {
        let request = &case.approval.request;
        self.by_action.entry(request.action).or_default().push(request.id.clone());
        self.cases.insert(request.id.clone(), case);
    }

    /// The case that an action with that digest, under those policies, may use or wait for: an
    /// approved one before a pending one.
    #[must_use]
    pub fn usable(
        &self,
        action: Digest,
        policies: Digest,
        now: Timestamp,
    ) -> Option<(&str, ApprovalState)> {
        let mut pending = None;
        for id in self.by_action.get(&action)? {
            let case = self.cases.get(id)?;
            if case.approval.request.policies != policies {
                continue;
            }
            match case.approval.state(now) {
                ApprovalState::Approved => return Some((id, ApprovalState::Approved)),
                ApprovalState::Pending => pending = Some((id.as_str(), ApprovalState::Pending)),
                ApprovalState::Denied | ApprovalState::Expired | ApprovalState::Consumed => {}
            }
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

    /// Uses an approval up. Exactly one caller succeeds; it must record the use before it acts.
    ///
    /// # Errors
    /// As [`Approval::consume`].
    pub fn consume(
        &mut self,
        id: &str,
        action: Digest,
        policies: Digest,
        now: Timestamp,
    ) -> Result<(), ApprovalError> {
        match self.cases.get_mut(id) {
            Some(case) => case.approval.consume(action, policies, now),
            None => Err(ApprovalError::NotApproved { id: id.into(), state: "unknown" }),
        }
    }

    /// Removes cases that ended before `before`; the ledger keeps them.
    pub fn forget(&mut self, before: Timestamp) {
        self.cases.retain(|_, case| case.approval.request.expires_at >= before);
        let cases = &self.cases;
        self.by_action.retain(|_, ids| {
            ids.retain(|id| cases.contains_key(id));
            !ids.is_empty()
        });
    }

    /// Replays one entry of the ledger.
    pub fn replay(&mut self, entry: &Entry) {
        let Some(id) = entry.approval.as_deref() else { return };
        match entry.kind {
            Kind::ApprovalRequested => {
                let read = |name: &str| entry.detail.get(name).cloned().unwrap_or_default();
                let request = serde_json::from_value::<ApprovalRequest>(read("request"));
                let question = serde_json::from_value::<Question>(read("question"));
                if let (Ok(request), Ok(mut question)) = (request, question) {
                    question.action.clone_from(&entry.action);
                    question.arguments = entry.arguments.clone().unwrap_or_default();
                    self.open(Case { approval: Approval::new(request), question });
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
