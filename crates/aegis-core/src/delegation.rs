//! Delegation: an agent lends another a part of what it may do, for a time.
//!
//! A chain of signed links. Capabilities may only shrink, the time may only shorten, the depth is
//! bounded, and each link is bound to the one before it by its digest. A delegation says on whose behalf
//! somebody acts; it gives nobody more than its own identity holds.

use serde::{Deserialize, Serialize};

use crate::{
    AgentId, Digest, Timestamp, canonical,
    capability::{Capability, holds_all},
};

/// The longest chain.
pub const MAX_DEPTH: usize = 5;

/// One delegation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Link {
    /// Who delegates.
    pub delegator: AgentId,
    /// To whom.
    pub delegate: AgentId,
    /// What.
    pub capabilities: Vec<Capability>,
    /// Until when.
    pub not_after: Timestamp,
    /// The digest of the link before; absent in the first.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub previous: Option<Digest>,
    /// The delegator's signature over [`Link::signed_bytes`], base64.
    pub signature: String,
}

/// Why a chain does not hold.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidDelegation {
    /// No links, or too many.
    #[error("a delegation chain has between 1 and {MAX_DEPTH} links; this one has {0}")]
    Depth(usize),
    /// A link does not start where the one before ended.
    #[error("link {0} does not continue the link before it")]
    Broken(usize),
    /// An agent appears twice.
    #[error("link {0} delegates to an agent that is already in the chain")]
    Cycle(usize),
    /// More than the link before.
    #[error("link {link} grants `{capability}`, which was not lent to its delegator")]
    Widened {
        /// Which.
        link: usize,
        /// What.
        capability: Capability,
    },
    /// More than the delegator is registered for, perhaps no longer.
    #[error("link {link} grants `{capability}`, for which its delegator is not registered")]
    Unheld {
        /// Which.
        link: usize,
        /// What.
        capability: Capability,
    },
    /// Nothing, which elsewhere stands for whatever policies allow.
    #[error("link {0} grants nothing")]
    Empty(usize),
    /// Over.
    #[error("link {0} has expired")]
    Expired(usize),
    /// Outliving the link before, or the SVID that signs it.
    #[error("link {0} outlives the link before it, or the SVID that signs it")]
    Outlives(usize),
    /// Nobody is registered by the delegator's name.
    #[error("the delegator of link {0} is not registered")]
    Unregistered(usize),
    /// The delegator has not proven who it is.
    #[error("the SVID of the delegator of link {0} does not hold")]
    Svid(usize),
    /// The signature does not verify.
    #[error("the signature of link {0} does not verify")]
    Signature(usize),
    /// Not for this principal.
    #[error("the chain ends at another agent than the caller")]
    Holder,
    /// Not in the form of a chain.
    #[error("the delegation cannot be read")]
    Malformed,
    /// There is nobody who could hold it.
    #[error("whoever is called is no agent, and can hold no delegation")]
    NoDelegate,
}

impl InvalidDelegation {
    /// The stable name, for records.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::Depth(_) => "depth",
            Self::Broken(_) => "broken",
            Self::Cycle(_) => "cycle",
            Self::Widened { .. } => "widened",
            Self::Unheld { .. } => "unheld",
            Self::Empty(_) => "empty",
            Self::Expired(_) => "expired",
            Self::Outlives(_) => "outlives",
            Self::Unregistered(_) => "unregistered",
            Self::Svid(_) => "svid",
            Self::Signature(_) => "signature",
            Self::Holder => "holder",
            Self::Malformed => "malformed",
            Self::NoDelegate => "no_delegate",
        }
    }
}

impl Link {
    /// The bytes that are signed and digested: RFC 8785 form without the signature, after a line that
    /// keeps it apart from every other signature in Aegis.
    #[must_use]
    pub fn signed_bytes(&self) -> Vec<u8> {
        #[derive(Serialize)]
        struct Signed<'a> {
            delegator: &'a AgentId,
            delegate: &'a AgentId,
            capabilities: &'a [Capability],
            not_after: Timestamp,
            #[serde(skip_serializing_if = "Option::is_none")]
            previous: Option<Digest>,
        }
        let signed = Signed {
            delegator: &self.delegator,
            delegate: &self.delegate,
            capabilities: &self.capabilities,
            not_after: self.not_after,
            previous: self.previous,
        };
        let mut bytes = b"aegis.delegation.v1\n".to_vec();
        // Only texts and digests: there is no number to refuse.
        bytes.extend(canonical::to_vec(&signed).unwrap_or_default());
        bytes
    }

    /// What the next link names as `previous`.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&self.signed_bytes())
    }
}

/// Checks a chain that ends at `holder` and returns what it grants.
///
/// `held` is what a delegator's own identity holds, where none at all stands for whatever policies allow,
/// and `None` for who is not registered; `verify` says whether a signature by that agent over those bytes
/// holds.
///
/// # Errors
/// The first rule that the chain breaks.
pub fn verify_chain(
    links: &[Link],
    holder: &AgentId,
    held: impl Fn(&AgentId) -> Option<Vec<Capability>>,
    now: Timestamp,
    verify: impl Fn(&AgentId, &[u8], &str) -> bool,
) -> Result<Vec<Capability>, InvalidDelegation> {
    if links.is_empty() || links.len() > MAX_DEPTH {
        return Err(InvalidDelegation::Depth(links.len()));
    }
    let mut before: Option<&Link> = None;
    let mut seen: Vec<&AgentId> = Vec::new();
    for (i, link) in links.iter().enumerate() {
        if link.previous != before.map(Link::digest)
            || before.is_some_and(|before| before.delegate != link.delegator)
        {
            return Err(InvalidDelegation::Broken(i));
        }
        seen.push(&link.delegator);
        if seen.contains(&&link.delegate) {
            return Err(InvalidDelegation::Cycle(i));
        }
        if link.not_after <= now {
            return Err(InvalidDelegation::Expired(i));
        }
        if before.is_some_and(|before| link.not_after > before.not_after) {
            return Err(InvalidDelegation::Outlives(i));
        }
        if link.capabilities.is_empty() {
            return Err(InvalidDelegation::Empty(i));
        }
        let own = held(&link.delegator).ok_or(InvalidDelegation::Unregistered(i))?;
        for capability in &link.capabilities {
            let one = std::slice::from_ref(capability);
            let lent = before.is_none_or(|before| holds_all(&before.capabilities, one));
            let capability = capability.clone();
            if !lent {
                return Err(InvalidDelegation::Widened { link: i, capability });
            }
            if !holds_all(&own, one) {
                return Err(InvalidDelegation::Unheld { link: i, capability });
            }
        }
        if !verify(&link.delegator, &link.signed_bytes(), &link.signature) {
            return Err(InvalidDelegation::Signature(i));
        }
        before = Some(link);
    }
    match before {
        Some(last) if last.delegate == *holder => Ok(last.capabilities.clone()),
        _ => Err(InvalidDelegation::Holder),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(name: &str) -> AgentId {
        format!("spiffe://acme.example/ns/a/sa/b/agent/{name}").parse().unwrap()
    }

    fn caps(list: &[&str]) -> Vec<Capability> {
        list.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn chain() -> Vec<Link> {
        let first = Link {
            delegator: agent("a"),
            delegate: agent("b"),
            capabilities: caps(&["read:files/**", "call:sqlite/*"]),
            not_after: Timestamp::from_secs(200),
            previous: None,
            signature: "a".into(),
        };
        let second = Link {
            delegator: agent("b"),
            delegate: agent("c"),
            capabilities: caps(&["read:files/reports/*"]),
            not_after: Timestamp::from_secs(100),
            previous: Some(first.digest()),
            signature: "b".into(),
        };
        vec![first, second]
    }

    fn check(links: &[Link]) -> Result<Vec<Capability>, InvalidDelegation> {
        let held = |who: &AgentId| match who.name() {
            "a" => Some(caps(&["read:**", "call:**"])),
            "b" => Some(Vec::new()),
            "narrow" => Some(caps(&["read:other"])),
            _ => None,
        };
        verify_chain(links, &agent("c"), held, Timestamp::from_secs(50), |who, _, signature| {
            who.name() == signature
        })
    }

    #[test]
    fn a_sound_chain_grants_its_last_link() {
        assert_eq!(check(&chain()), Ok(caps(&["read:files/reports/*"])));
    }

    #[test]
    fn each_rule_refuses() {
        let broken = |change: fn(&mut Vec<Link>)| {
            let mut links = chain();
            change(&mut links);
            check(&links).unwrap_err()
        };
        assert_eq!(broken(Vec::clear), InvalidDelegation::Depth(0));
        assert_eq!(broken(|l| l[1].previous = None), InvalidDelegation::Broken(1));
        assert_eq!(broken(|l| l[1].delegator = agent("x")), InvalidDelegation::Broken(1));
        assert_eq!(broken(|l| l[1].delegate = agent("a")), InvalidDelegation::Cycle(1));
        assert_eq!(
            broken(|l| l[1].not_after = Timestamp::from_secs(201)),
            InvalidDelegation::Outlives(1)
        );
        assert_eq!(broken(|l| l[1].capabilities.clear()), InvalidDelegation::Empty(1));
        assert_eq!(
            broken(|l| {
                l.remove(0);
                (l[0].previous, l[0].delegator) = (None, agent("nobody"));
            }),
            InvalidDelegation::Unregistered(0)
        );
        assert!(matches!(
            broken(|l| {
                l.remove(0);
                (l[0].previous, l[0].delegator) = (None, agent("narrow"));
            }),
            InvalidDelegation::Unheld { link: 0, .. }
        ));
        assert_eq!(
            broken(|l| l[1].not_after = Timestamp::from_secs(50)),
            InvalidDelegation::Expired(1)
        );
        assert!(matches!(
            broken(|l| l[1].capabilities = caps(&["read:**"])),
            InvalidDelegation::Widened { link: 1, .. }
        ));
        assert_eq!(broken(|l| l[1].signature = "z".into()), InvalidDelegation::Signature(1));
        assert_eq!(
            broken(|l| {
                l.pop();
            }),
            InvalidDelegation::Holder
        );
    }
}
