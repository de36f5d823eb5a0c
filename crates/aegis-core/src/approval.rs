//! Approvals: one human answer to one action, used once.
//!
//! A pure state machine. The ledger holds its events; whoever replays them gets the same state, so
//! an approval survives a restart. It is bound to the digest of the action and to the policies
//! that asked for it. Expiry denies.

use serde::{Deserialize, Serialize};

use crate::{AgentId, Digest, Sponsor, Timestamp, decision::ApprovalNeed};

/// A request for approval, as it was recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalRequest {
    /// Unique; chosen by the enforcement point.
    pub id: String,
    /// The digest of the action: principal, target, tool pin, arguments.
    pub action: Digest,
    /// The digest over the policies that were in force.
    pub policies: Digest,
    /// Who wants to act.
    pub requester: AgentId,
    /// The human behind the requester, who may not approve it alone… nor as the only approver.
    pub sponsor: Option<Sponsor>,
    /// What it takes.
    pub need: ApprovalNeed,
    /// When it was asked.
    pub requested_at: Timestamp,
    /// When it expires.
    pub expires_at: Timestamp,
}

/// How an approver proved that it is not the agent that answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Factor {
    /// Nothing that the agent's own user account does not hold as well: advisory.
    None,
    /// The approver's user account differs from the agent's (peer credentials of the socket).
    Account,
    /// A time-based one-time password (RFC 6238).
    Totp,
}

/// One approver's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Vote {
    /// Who; authenticated, never taken from a body.
    pub approver: String,
    /// Yes or no.
    pub approve: bool,
    /// By what factor.
    pub factor: Factor,
    /// Why, in the approver's words.
    pub comment: Option<String>,
    /// When.
    pub at: Timestamp,
}

/// Where a request stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalState {
    /// It waits.
    Pending,
    /// Enough approvers agreed; it has not been used.
    Approved,
    /// An approver refused.
    Denied,
    /// Nobody decided in time, or nobody used it in time.
    Expired,
    /// It has been used.
    Consumed,
}

/// A request with what has happened to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Approval {
    /// What was asked.
    pub request: ApprovalRequest,
    /// The answers so far.
    pub votes: Vec<Vote>,
    /// Whether it has been used.
    pub consumed: bool,
}

/// Why an answer or a use was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ApprovalError {
    /// Not pending any more.
    #[error("approval {id} is already {state}; list the open ones with `aegis approvals list`")]
    NotPending {
        /// The request.
        id: String,
        /// Where it stands.
        state: &'static str,
    },
    /// The requester or another agent tried to answer.
    #[error(
        "an agent cannot answer for approval {0}: the approver must be a person other than the requester"
    )]
    SelfApproval(String),
    /// The same approver twice.
    #[error("`{approver}` has already answered for approval {id}")]
    AlreadyVoted {
        /// The request.
        id: String,
        /// Who.
        approver: String,
    },
    /// The last missing factor.
    #[error("approval {0} needs a second factor: answer again with `--totp CODE`")]
    FactorMissing(String),
    /// Not approved, so not usable.
    #[error("approval {id} is {state}, so it permits nothing")]
    NotApproved {
        /// The request.
        id: String,
        /// Where it stands.
        state: &'static str,
    },
    /// Bound to something else.
    #[error("approval {0} is for another action or other policies")]
    Mismatch(String),
}

impl ApprovalState {
    /// The stable name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Approved => "approved",
            Self::Denied => "denied",
            Self::Expired => "expired",
            Self::Consumed => "consumed",
        }
    }
}

impl Approval {
    /// A new request, pending.
    #[must_use]
    pub const fn new(request: ApprovalRequest) -> Self {
        Self { request, votes: Vec::new(), consumed: false }
    }

    /// Where it stands at `now`. One refusal denies; expiry denies whatever was not used.
    #[must_use]
    pub fn state(&self, now: Timestamp) -> ApprovalState {
        if self.consumed {
            ApprovalState::Consumed
        } else if self.votes.iter().any(|vote| !vote.approve) {
            ApprovalState::Denied
        } else if now >= self.request.expires_at {
            ApprovalState::Expired
        } else if self.is_satisfied() {
            ApprovalState::Approved
        } else {
            ApprovalState::Pending
        }
    }

    fn is_satisfied(&self) -> bool {
        let agreed = self.votes.iter().filter(|vote| vote.approve).count();
        let confirmed = self.votes.iter().any(|vote| vote.approve && vote.factor == Factor::Totp);
        agreed >= usize::from(self.request.need.quorum.max(1))
            && (confirmed || !self.request.need.mfa)
    }

    /// Adds an answer.
    ///
    /// # Errors
    /// When it is not pending, when the approver is the requester or has answered before, and when
    /// this would be the deciding approval but the second factor is missing.
    pub fn vote(&mut self, vote: Vote) -> Result<ApprovalState, ApprovalError> {
        let id = || self.request.id.clone();
        let state = self.state(vote.at);
        if state != ApprovalState::Pending {
            return Err(ApprovalError::NotPending { id: id(), state: state.as_str() });
        }
        if vote.approver == self.request.requester.as_str()
            || vote.approver.parse::<AgentId>().is_ok()
        {
            return Err(ApprovalError::SelfApproval(id()));
        }
        if self.votes.iter().any(|earlier| earlier.approver == vote.approver) {
            return Err(ApprovalError::AlreadyVoted { id: id(), approver: vote.approver });
        }
        let at = vote.at;
        let lacks_factor = self.request.need.mfa && vote.approve && vote.factor != Factor::Totp;
        if lacks_factor {
            return Err(ApprovalError::FactorMissing(id()));
        }
        self.votes.push(vote);
        Ok(self.state(at))
    }

    /// Checks that this permits the action with that digest under those policies, and marks it
    /// used. The caller makes the use durable by a conditional append, which decides a race.
    ///
    /// # Errors
    /// When it is not approved, already used, or bound to something else.
    pub fn consume(
        &mut self,
        action: Digest,
        policies: Digest,
        now: Timestamp,
    ) -> Result<(), ApprovalError> {
        let id = self.request.id.clone();
        let state = self.state(now);
        if state != ApprovalState::Approved {
            return Err(ApprovalError::NotApproved { id, state: state.as_str() });
        }
        if action != self.request.action || policies != self.request.policies {
            return Err(ApprovalError::Mismatch(id));
        }
        self.consumed = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_000);

    fn approval(quorum: u8, mfa: bool) -> Approval {
        Approval::new(ApprovalRequest {
            id: "a1".into(),
            action: Digest::of(b"action"),
            policies: Digest::of(b"policies"),
            requester: "spiffe://acme.example/ns/a/sa/b/agent/c".parse().unwrap(),
            sponsor: None,
            need: ApprovalNeed { quorum, mfa },
            requested_at: NOW,
            expires_at: NOW.plus(Duration::from_secs(60)),
        })
    }

    fn yes(who: &str, factor: Factor) -> Vote {
        Vote { approver: who.into(), approve: true, factor, comment: None, at: NOW }
    }

    #[test]
    fn one_approval_is_used_once() {
        let mut one = approval(1, false);
        assert_eq!(one.vote(yes("ada", Factor::Account)), Ok(ApprovalState::Approved));
        assert!(one.consume(Digest::of(b"other"), Digest::of(b"policies"), NOW).is_err());
        assert!(one.consume(Digest::of(b"action"), Digest::of(b"newer"), NOW).is_err());
        assert_eq!(one.consume(Digest::of(b"action"), Digest::of(b"policies"), NOW), Ok(()));
        assert!(one.consume(Digest::of(b"action"), Digest::of(b"policies"), NOW).is_err());
    }

    #[test]
    fn a_quorum_counts_people_and_one_refusal_denies() {
        let mut two = approval(2, false);
        assert_eq!(two.vote(yes("ada", Factor::Account)), Ok(ApprovalState::Pending));
        assert!(matches!(
            two.vote(yes("ada", Factor::Account)),
            Err(ApprovalError::AlreadyVoted { .. })
        ));
        let no = Vote { approve: false, ..yes("grace", Factor::Account) };
        assert_eq!(two.vote(no), Ok(ApprovalState::Denied));
        assert!(two.vote(yes("joan", Factor::Account)).is_err());
    }

    #[test]
    fn an_agent_never_approves() {
        let mut one = approval(1, false);
        let own = one.request.requester.to_string();
        assert!(matches!(
            one.vote(yes(&own, Factor::Account)),
            Err(ApprovalError::SelfApproval(_))
        ));
        let other = "spiffe://acme.example/ns/a/sa/b/agent/d";
        assert!(matches!(
            one.vote(yes(other, Factor::Account)),
            Err(ApprovalError::SelfApproval(_))
        ));
    }

    #[test]
    fn a_second_factor_cannot_be_left_out() {
        let mut one = approval(1, true);
        assert!(matches!(
            one.vote(yes("ada", Factor::Account)),
            Err(ApprovalError::FactorMissing(_))
        ));
        assert_eq!(one.vote(yes("ada", Factor::Totp)), Ok(ApprovalState::Approved));
    }

    #[test]
    fn expiry_denies_even_what_was_approved() {
        let mut one = approval(1, false);
        one.vote(yes("ada", Factor::Account)).unwrap();
        let late = NOW.plus(Duration::from_secs(60));
        assert_eq!(one.state(late), ApprovalState::Expired);
        assert!(one.consume(Digest::of(b"action"), Digest::of(b"policies"), late).is_err());
    }

    proptest! {
        /// Whatever the order of votes, no more than one use succeeds, and none without quorum.
        #[test]
        fn never_used_without_quorum(quorum in 1_u8..4, votes in prop::collection::vec((0_u8..4, prop::bool::weighted(0.9)), 0..8)) {
            let mut approval = approval(quorum, false);
            let mut agreed = std::collections::BTreeSet::new();
            for (who, approve) in votes {
                let vote = Vote { approve, ..yes(&format!("p{who}"), Factor::Account) };
                if approval.vote(vote).is_ok() && approve {
                    agreed.insert(who);
                }
                let used = approval.clone().consume(Digest::of(b"action"), Digest::of(b"policies"), NOW);
                prop_assert!(used.is_err() || agreed.len() >= usize::from(quorum));
            }
        }
    }
}
