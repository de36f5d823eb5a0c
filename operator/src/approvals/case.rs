//! From what a sidecar tells to what people are shown: checked, shortened, and under its own name.

use std::time::Duration;

use aegis_api::approvals::proto::{Case, State};
use aegis_core::{AgentId, Timestamp};
use aegis_resources::approval::{ApprovalRequestSpec, ApprovalState};

use crate::status::rfc3339;

/// The longest that anything waits; the largest `approvalTtlSecs`, and a little for clocks.
const MAX_LIFE: Duration = Duration::from_secs(604_800 + 300);

/// Why nobody is shown a case.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// A member that cannot be read.
    #[error("`{0}` of the case cannot be read")]
    Member(&'static str),
    /// Who enforces has no namespace.
    #[error("an agent without a namespace cannot ask here")]
    Namespace,
    /// Of another trust domain.
    #[error("the requester is of another trust domain")]
    TrustDomain,
    /// Over, or too far away.
    #[error("the case has expired, or does so too late")]
    Expiry,
    /// Something else has that name.
    #[error("an ApprovalRequest of this name asks something else, or is another agent's")]
    Another,
    /// Too many.
    #[error("too many ApprovalRequests of this agent are open or still shown")]
    TooMany,
}

/// What people are shown of a case of `peer`, whose SVID the connection has shown.
///
/// # Errors
/// When it is not a case that the peer can have.
pub fn spec_of(
    case: &Case,
    peer: &AgentId,
    now: Timestamp,
) -> Result<ApprovalRequestSpec, Invalid> {
    if !is_id(&case.id) {
        return Err(Invalid::Member("id"));
    }
    let requester: AgentId = case.requester.parse().map_err(|_| Invalid::Member("requester"))?;
    if requester.trust_domain() != peer.trust_domain() {
        return Err(Invalid::TrustDomain);
    }
    let sponsor = Some(&case.sponsor).filter(|text| !text.is_empty());
    let expires_at = Timestamp::from_secs(case.expires_at);
    if expires_at <= now || expires_at > now.plus(MAX_LIFE) {
        return Err(Invalid::Expiry);
    }
    let quorum = u8::try_from(case.quorum).ok().filter(|quorum| (1..=10).contains(quorum));
    let risk = u16::try_from(case.risk).ok().filter(|risk| *risk <= 1000);
    Ok(ApprovalRequestSpec {
        enforced_by: peer.clone(),
        action: case.action.parse().map_err(|_| Invalid::Member("action"))?,
        requester,
        sponsor: match sponsor {
            Some(text) => Some(text.parse().map_err(|_| Invalid::Member("sponsor"))?),
            None => None,
        },
        server: shortened(&case.server, 253),
        method: shortened(&case.method, 128),
        tool: Some(shortened(&case.tool, 256)).filter(|tool| !tool.is_empty()),
        reason: shortened(&case.reason, 1024),
        risk: risk.ok_or(Invalid::Member("risk"))?,
        tier: shortened(&case.tier, 8),
        quorum: quorum.ok_or(Invalid::Member("quorum"))?,
        mfa: case.mfa,
        expires_at: rfc3339(expires_at),
        answer: None,
        answers: Vec::new(),
    })
}

/// How the sidecar has it.
pub(super) fn state_of(case: &Case) -> Result<ApprovalState, Invalid> {
    match case.state() {
        State::Pending => Ok(ApprovalState::Pending),
        State::Approved => Ok(ApprovalState::Approved),
        State::Denied => Ok(ApprovalState::Denied),
        State::Expired => Ok(ApprovalState::Expired),
        State::Used => Ok(ApprovalState::Used),
        State::Unspecified => Err(Invalid::Member("state")),
    }
}

/// An id becomes the name of an object.
fn is_id(id: &str) -> bool {
    (8..=32).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
}

/// What is shown on a terminal holds nothing that moves its cursor.
fn shortened(text: &str, most: usize) -> String {
    let clean = || text.chars().filter(|one| !one.is_control());
    if clean().count() <= most {
        return clean().collect();
    }
    clean().take(most.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn case() -> Case {
        Case {
            id: "9s01zq5rj7".into(),
            requester: "spiffe://acme.example/ns/shop/sa/bot/agent/buyer".into(),
            sponsor: "ada@acme.example".into(),
            action: aegis_core::Digest::of(b"action").to_string(),
            server: "notes".into(),
            method: "tools/call".into(),
            tool: "write_note".into(),
            reason: "Changes need a human.".into(),
            risk: 400,
            tier: "L2".into(),
            quorum: 1,
            mfa: false,
            expires_at: NOW.as_secs() + 900,
            state: State::Pending.into(),
        }
    }

    fn peer() -> AgentId {
        "spiffe://acme.example/ns/shop/sa/tools/agent/notes".parse().unwrap()
    }

    fn invalid(change: impl FnOnce(&mut Case)) -> Invalid {
        let mut case = case();
        change(&mut case);
        spec_of(&case, &peer(), NOW).unwrap_err()
    }

    #[test]
    fn who_enforces_is_who_speaks() {
        let spec = spec_of(&case(), &peer(), NOW).unwrap();
        assert_eq!(spec.enforced_by, peer());
        assert_eq!(spec.expires_at, "2027-01-15T08:15:00Z");
        assert_eq!(spec, spec.asked());
    }

    #[test]
    fn what_cannot_be_a_case_is_refused() {
        for id in ["", "short", "../../evil", "UPPERCASE1", "with-dash-1", &"x".repeat(33)] {
            assert_eq!(invalid(|case| case.id = id.into()), Invalid::Member("id"), "{id}");
        }
        let other = "spiffe://other.example/ns/shop/sa/bot/agent/buyer";
        assert_eq!(invalid(|case| case.requester = other.into()), Invalid::TrustDomain);
        assert_eq!(invalid(|case| case.requester = "me".into()), Invalid::Member("requester"));
        assert_eq!(invalid(|case| case.quorum = 0), Invalid::Member("quorum"));
        assert_eq!(invalid(|case| case.quorum = 300), Invalid::Member("quorum"));
        assert_eq!(invalid(|case| case.risk = 1001), Invalid::Member("risk"));
        assert_eq!(invalid(|case| case.action = "md5:0".into()), Invalid::Member("action"));
        assert_eq!(invalid(|case| case.expires_at = NOW.as_secs()), Invalid::Expiry);
        assert_eq!(invalid(|case| case.expires_at = u64::MAX), Invalid::Expiry);
    }

    #[test]
    fn what_is_shown_is_short_and_moves_no_cursor() {
        let long = Case { reason: format!("\u{1b}[2J{}", "ö".repeat(2000)), ..case() };
        let spec = spec_of(&long, &peer(), NOW).unwrap();
        assert_eq!(spec.reason.chars().count(), 1024);
        assert!(spec.reason.starts_with("[2Jö") && spec.reason.ends_with('…'));
    }
}
