//! Delegation: an agent lends another a part of what it may do, for a time.
//!
//! A chain of signed links. Capabilities may only shrink, the time may only shorten, the depth is
//! bounded, and each link is bound to the one before it by its digest.

use serde::{Deserialize, Serialize};

use crate::{AgentId, Digest, Timestamp, canonical, capability::Capability};

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
    /// More than the delegator holds.
    #[error("link {link} grants `{capability}`, which its delegator does not hold")]
    Widened {
        /// Which.
        link: usize,
        /// What.
        capability: Capability,
    },
    /// Expired, or outliving the link before.
    #[error("link {0} has expired or outlives the link before it")]
    Expired(usize),
    /// The signature does not verify.
    #[error("the signature of link {0} does not verify")]
    Signature(usize),
    /// Not for this principal.
    #[error("the chain ends at another agent than the caller")]
    Holder,
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
/// `held` is what the first delegator's own identity holds; `verify` says whether a signature by
/// that agent over those bytes holds.
///
/// # Errors
/// The first rule that the chain breaks.
pub fn verify_chain(
    links: &[Link],
    holder: &AgentId,
    held: &[Capability],
    now: Timestamp,
    verify: impl Fn(&AgentId, &[u8], &str) -> bool,
) -> Result<Vec<Capability>, InvalidDelegation> {
    if links.is_empty() || links.len() > MAX_DEPTH {
        return Err(InvalidDelegation::Depth(links.len()));
    }
    let mut granted = held;
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
        if link.not_after <= now || before.is_some_and(|before| link.not_after > before.not_after) {
            return Err(InvalidDelegation::Expired(i));
        }
        for capability in &link.capabilities {
            if !granted.iter().any(|wider| wider.includes(capability)) {
                return Err(InvalidDelegation::Widened { link: i, capability: capability.clone() });
            }
        }
        if !verify(&link.delegator, &link.signed_bytes(), &link.signature) {
            return Err(InvalidDelegation::Signature(i));
        }
        granted = &link.capabilities;
        before = Some(link);
    }
    if before.is_none_or(|last| last.delegate != *holder) {
        return Err(InvalidDelegation::Holder);
    }
    Ok(granted.to_vec())
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
        let held = caps(&["read:**", "call:**"]);
        verify_chain(links, &agent("c"), &held, Timestamp::from_secs(50), |who, _, signature| {
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
            InvalidDelegation::Expired(1)
        );
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
