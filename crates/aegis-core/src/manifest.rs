//! Manifests: what the sidecar of an agent says of that agent to the sidecar at the other end of a
//! connection (IATP), before anything else passes.
//!
//! Only data and its rules. A manifest is of one SVID and one connection. It can only tell less than
//! what is registered: whoever claims more, by the same state of the operator's, is not believed, and
//! where two sides go by different states, what is registered is the bound all the same.

use std::time::Duration;

use crate::{
    AgentId, Digest, Sponsor, Timestamp,
    capability::{Capability, holds_all},
};

/// How long a manifest holds at most.
pub const MANIFEST_LIFE: Duration = Duration::from_secs(15 * 60);

/// What a manifest says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Manifest {
    /// Of which agent.
    pub agent: AgentId,
    /// The human who answers for it.
    pub sponsor: Sponsor,
    /// What it may ever do; empty means whatever policies allow.
    pub capabilities: Vec<Capability>,
    /// The digest of the policies that its sidecar decides by.
    pub policies: Digest,
    /// The serial of the operator's state that its sidecar goes by.
    pub state: u64,
    /// The digest of the certificate that this connection has shown.
    pub svid: Digest,
    /// What this connection has in common at both ends, and no other one has.
    pub channel: Digest,
    /// Since when it holds.
    pub issued_at: Timestamp,
    /// Until when.
    pub expires_at: Timestamp,
}

/// What is registered about the agent of a manifest, and as of when.
#[derive(Clone, Copy, Debug)]
pub struct Known<'a> {
    /// Who answers for it and what it may ever do, if it is registered.
    pub registered: Option<(&'a Sponsor, &'a [Capability])>,
    /// The serial of the operator's state that says so.
    pub state: u64,
}

/// Why a manifest does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ManifestError {
    /// None was shown.
    #[error("the peer's sidecar has shown no manifest")]
    Absent,
    /// Longer than any.
    #[error("the manifest is longer than manifests may be")]
    TooLarge,
    /// Not in the form of one.
    #[error("the manifest cannot be read")]
    Malformed,
    /// Altered, or signed by another.
    #[error("the manifest is not signed by the SVID that this connection has shown")]
    Signature,
    /// Another's.
    #[error("the manifest is of another agent than the peer of this connection")]
    Agent,
    /// Of another SVID.
    #[error("the manifest is of another SVID than this connection has shown")]
    Svid,
    /// Of another connection.
    #[error("the manifest was made for another connection")]
    Channel,
    /// Over, not valid yet, or valid for too long.
    #[error("the manifest does not hold at this time; check both clocks")]
    Expired,
    /// Nobody has registered the agent.
    #[error("the agent of the manifest is not registered")]
    Unregistered,
    /// Another sponsor than is registered.
    #[error("the manifest names another sponsor than is registered")]
    Sponsor,
    /// More than is registered.
    #[error("the manifest claims capabilities that are not registered")]
    Exceeds,
    /// The other side does not take this side's.
    #[error("the peer's sidecar refuses the manifest of this one")]
    Refused,
}

impl ManifestError {
    /// The stable name, for records.
    #[must_use]
    pub const fn code(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::TooLarge => "too_large",
            Self::Malformed => "malformed",
            Self::Signature => "signature",
            Self::Agent => "agent",
            Self::Svid => "svid",
            Self::Channel => "channel",
            Self::Expired => "expired",
            Self::Unregistered => "unregistered",
            Self::Sponsor => "sponsor",
            Self::Exceeds => "exceeds",
            Self::Refused => "refused",
        }
    }
}

impl Manifest {
    /// Whether it holds at `now`, with clocks that differ by `skew` at most.
    #[must_use]
    pub fn is_current(&self, now: Timestamp, skew: Duration) -> bool {
        self.issued_at <= now.plus(skew)
            && now < self.expires_at.plus(skew)
            && self.expires_at <= self.issued_at.plus(MANIFEST_LIFE)
    }

    /// Whether it agrees with what is known here. Two sides that go by different states of the
    /// operator's may differ while one is on its way; they then go by what is registered.
    ///
    /// # Errors
    /// Where it claims something else, or more.
    pub fn agrees_with(&self, known: &Known<'_>) -> Result<(), ManifestError> {
        if self.state != known.state {
            return Ok(());
        }
        let (sponsor, capabilities) = known.registered.ok_or(ManifestError::Unregistered)?;
        if self.sponsor != *sponsor {
            return Err(ManifestError::Sponsor);
        }
        if holds_all(capabilities, &self.capabilities) {
            Ok(())
        } else {
            Err(ManifestError::Exceeds)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(10_000);

    fn caps(list: &[&str]) -> Vec<Capability> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn manifest(capabilities: &[&str]) -> Manifest {
        Manifest {
            agent: "spiffe://acme.example/ns/a/sa/b/agent/c".parse().unwrap(),
            sponsor: "ada@acme.example".parse().unwrap(),
            capabilities: caps(capabilities),
            policies: Digest::of(b"policies"),
            state: 7,
            svid: Digest::of(b"svid"),
            channel: Digest::of(b"channel"),
            issued_at: NOW,
            expires_at: NOW.plus(MANIFEST_LIFE),
        }
    }

    #[test]
    fn a_manifest_claims_no_more_than_is_registered() {
        let ada: Sponsor = "ada@acme.example".parse().unwrap();
        let grace: Sponsor = "grace@acme.example".parse().unwrap();
        let some = caps(&["call:calc/*"]);
        let agrees = |claimed: &[&str], sponsor: &Sponsor, held: &[Capability], state: u64| {
            manifest(claimed).agrees_with(&Known { registered: Some((sponsor, held)), state })
        };
        assert_eq!(agrees(&["call:calc/*"], &ada, &some, 7), Ok(()));
        assert_eq!(agrees(&["call:calc/echo"], &ada, &some, 7), Ok(()), "less");
        assert_eq!(agrees(&["call:**"], &ada, &some, 7), Err(ManifestError::Exceeds));
        assert_eq!(agrees(&[], &ada, &some, 7), Err(ManifestError::Exceeds), "everything");
        assert_eq!(agrees(&[], &ada, &[], 7), Ok(()));
        assert_eq!(agrees(&["call:calc/*"], &grace, &some, 7), Err(ManifestError::Sponsor));
        let nobody = Known { registered: None, state: 7 };
        assert_eq!(manifest(&[]).agrees_with(&nobody), Err(ManifestError::Unregistered));
        assert_eq!(agrees(&["call:**"], &grace, &some, 8), Ok(()), "a state is on its way");
    }

    #[test]
    fn it_holds_for_a_while() {
        let (skew, second) = (Duration::from_secs(30), Duration::from_secs(1));
        let mut manifest = manifest(&[]);
        assert!(manifest.is_current(NOW.minus(skew), skew));
        assert!(!manifest.is_current(NOW.minus(skew + second), skew), "not yet");
        let end = manifest.expires_at.plus(skew);
        assert!(manifest.is_current(end.minus(second), skew) && !manifest.is_current(end, skew));
        manifest.expires_at = NOW.plus(MANIFEST_LIFE + second);
        assert!(!manifest.is_current(NOW, skew), "longer than any manifest");
    }
}
