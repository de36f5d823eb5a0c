//! Grants: the word of one side of a connection that people have approved an action, for the other
//! side, so that nobody is asked twice.
//!
//! Only data and its rules. A grant is for one action of one agent at one callee, holds for a short
//! time, and counts once. It stands in for an approval that the callee's policies ask for and for
//! nothing else: what it does not show (people, a second factor) it does not satisfy.

use std::{collections::BTreeSet, time::Duration};

use serde::{Deserialize, Serialize};

use crate::{AgentId, Digest, Timestamp, approval::Factor, decision::ApprovalNeed};

/// How long a grant holds.
pub const GRANT_LIFE: Duration = Duration::from_secs(60);
/// The longest that one is taken for, whatever it says.
const LONGEST_LIFE: Duration = Duration::from_secs(300);

/// Somebody who approved.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Approver {
    /// Who, as the side that asked has authenticated it.
    pub name: String,
    /// By what factor.
    pub factor: Factor,
}

/// What a grant says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// Unique among its issuer's.
    pub id: String,
    /// The agent that calls, whose sidecar says so.
    pub issuer: AgentId,
    /// The agent that is called.
    pub audience: AgentId,
    /// The digest of the action: principal, target, tool pin, arguments.
    pub action: Digest,
    /// The approval that was used.
    pub approval: String,
    /// Who gave it.
    pub approvers: Vec<Approver>,
    /// Since when it holds.
    pub issued_at: Timestamp,
    /// Until when.
    pub expires_at: Timestamp,
}

/// Why a grant does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum GrantError {
    /// Not in the form of one.
    #[error("the grant cannot be read")]
    Malformed,
    /// Altered, or signed by another than the peer of the connection.
    #[error("the grant is not signed by the SVID that this connection has shown")]
    Signature,
    /// Another's.
    #[error("the grant is in the name of another agent than the peer of this connection")]
    Issuer,
    /// For somebody else.
    #[error("the grant is for another callee")]
    Audience,
    /// Over, not valid yet, or valid for too long.
    #[error("the grant does not hold at this time; check both clocks")]
    Expired,
    /// From before this side started, which cannot know whether it was used.
    #[error("the grant is older than this side's memory of what was used")]
    Unknowable,
    /// For something else.
    #[error("the grant is for another action")]
    OtherAction,
    /// Used before.
    #[error("the grant has been used before")]
    Replayed,
    /// Too many are remembered.
    #[error("too many grants were used lately to tell whether this one was")]
    Full,
}

impl GrantError {
    /// The stable name, for records.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Malformed => "malformed",
            Self::Signature => "signature",
            Self::Issuer => "issuer",
            Self::Audience => "audience",
            Self::Expired => "expired",
            Self::Unknowable => "unknowable",
            Self::OtherAction => "other_action",
            Self::Replayed => "replayed",
            Self::Full => "full",
        }
    }
}

impl Grant {
    /// Whether it holds at `now`, with clocks that differ by `skew` at most.
    #[must_use]
    pub fn is_current(&self, now: Timestamp, skew: Duration) -> bool {
        self.issued_at <= now.plus(skew)
            && now < self.expires_at.plus(skew)
            && self.expires_at <= self.issued_at.plus(LONGEST_LIFE)
    }

    /// Whether it shows what an approval must bring: so many people. An agent is nobody here, and a
    /// second factor counts where it was checked alone: a peer's word is none.
    #[must_use]
    pub fn satisfies(&self, need: &ApprovalNeed) -> bool {
        let people = self.approvers.iter().filter(|one| one.name.parse::<AgentId>().is_err());
        let names: BTreeSet<&str> = people.map(|one| one.name.as_str()).collect();
        !need.mfa && names.len() >= usize::from(need.quorum.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_000);

    fn grant(approvers: &[(&str, Factor)]) -> Grant {
        let agent = |name| format!("spiffe://acme.example/ns/a/sa/b/agent/{name}").parse().unwrap();
        Grant {
            id: "g".into(),
            issuer: agent("caller"),
            audience: agent("callee"),
            action: Digest::of(b"action"),
            approval: "a".into(),
            approvers: approvers
                .iter()
                .map(|(name, factor)| Approver { name: (*name).into(), factor: *factor })
                .collect(),
            issued_at: NOW,
            expires_at: NOW.plus(GRANT_LIFE),
        }
    }

    #[test]
    fn it_satisfies_what_it_shows_and_no_more() {
        let (one, two) = (("ada", Factor::Account), ("grace", Factor::Totp));
        let agent = ("spiffe://acme.example/ns/a/sa/b/agent/caller", Factor::Totp);
        type Case<'a> = (&'a [(&'a str, Factor)], u8, bool, bool);
        let cases: [Case<'_>; 9] = [
            (&[one], 1, false, true),
            (&[one], 0, false, true),
            (&[], 0, false, false),
            (&[one], 2, false, false),
            (&[one, one], 2, false, false),
            (&[one, two], 2, false, true),
            (&[one, two], 2, true, false),
            (&[one], 1, true, false),
            (&[one, agent], 2, false, false),
        ];
        for (approvers, quorum, mfa, expected) in cases {
            let said = grant(approvers).satisfies(&ApprovalNeed { quorum, mfa });
            assert_eq!(said, expected, "{approvers:?} {quorum} {mfa}");
        }
    }

    #[test]
    fn it_holds_for_a_short_time() {
        let (skew, second) = (Duration::from_secs(30), Duration::from_secs(1));
        let mut grant = grant(&[]);
        assert!(grant.is_current(NOW.minus(skew), skew));
        assert!(!grant.is_current(NOW.minus(skew + second), skew), "not yet");
        let end = grant.expires_at.plus(skew);
        assert!(grant.is_current(end.minus(second), skew) && !grant.is_current(end, skew));
        grant.expires_at = NOW.plus(LONGEST_LIFE + second);
        assert!(!grant.is_current(NOW, skew), "longer than any grant");
    }
}
