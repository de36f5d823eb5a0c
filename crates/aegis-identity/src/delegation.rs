//! Delegations on the wire: a chain of links, each signed by the SVID of its delegator, which goes with
//! it, so that whoever is shown the chain can check it alone.
//!
//! A link ends with that SVID at the latest: what a delegator has lent outlives neither its identity nor
//! its revocation. A chain is of use to the agent alone at which it ends, because who shows it has to prove
//! that it is that agent; it is no secret.

use std::sync::Arc;

use aegis_core::{
    AgentId, Timestamp,
    capability::{Capability, MAX_CAPABILITIES},
    delegation::{InvalidDelegation, Link, MAX_DEPTH, verify_chain as verify_links},
};
use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::{
    Bundle, Revocations, X509Svid,
    jws::{SignError, sign_bytes, verify_bytes},
    verify_chain,
};

/// The longest delegation that is read.
pub const MAX_DELEGATION_BYTES: usize = 24 * 1024;

/// A link with the SVID that has signed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SignedLink {
    /// What is delegated.
    pub link: Link,
    /// The delegator's certificates, leaf first, each DER in base64.
    pub svid: Vec<String>,
}

/// A delegation whose links, SVIDs and times hold. Only [`verify_delegation`] makes one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Delegation {
    token: String,
    links: Vec<SignedLink>,
    delegators: Arc<[AgentId]>,
    capabilities: Vec<Capability>,
    not_after: Timestamp,
}

impl Delegation {
    /// As it travels.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// For whom its holder acts, the first delegator first.
    #[must_use]
    pub const fn delegators(&self) -> &Arc<[AgentId]> {
        &self.delegators
    }

    /// What is lent, never nothing.
    #[must_use]
    pub fn capabilities(&self) -> &[Capability] {
        &self.capabilities
    }

    /// Until when.
    #[must_use]
    pub const fn not_after(&self) -> Timestamp {
        self.not_after
    }
}

/// Signs a link.
///
/// # Errors
/// When the key cannot.
pub fn sign_link(svid: &X509Svid, link: Link) -> Result<SignedLink, SignError> {
    let signature = BASE64_STANDARD.encode(sign_bytes(svid, &link.signed_bytes())?);
    let certificates = svid.chain().iter().map(|one| BASE64_STANDARD.encode(one));
    Ok(SignedLink { link: Link { signature, ..link }, svid: certificates.collect() })
}

/// A chain as it travels.
///
/// # Errors
/// When it cannot be written.
pub fn encode(links: &[SignedLink]) -> Result<String, serde_json::Error> {
    Ok(BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(links)?))
}

/// Reads a chain without believing it.
///
/// # Errors
/// When it is none, or too long.
pub fn read_delegation(token: &str) -> Result<Vec<SignedLink>, InvalidDelegation> {
    if token.len() > MAX_DELEGATION_BYTES {
        return Err(InvalidDelegation::Malformed);
    }
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(token).map_err(|_| InvalidDelegation::Malformed)?;
    let links: Vec<SignedLink> =
        serde_json::from_slice(&bytes).map_err(|_| InvalidDelegation::Malformed)?;
    if links.is_empty() || links.len() > MAX_DEPTH {
        return Err(InvalidDelegation::Depth(links.len()));
    }
    if links.iter().any(|one| one.link.capabilities.len() > MAX_CAPABILITIES) {
        return Err(InvalidDelegation::Malformed);
    }
    Ok(links)
}

/// Lends `capabilities` to `delegate` until `until`, in the name of whose SVID that is; on a delegation
/// that it holds itself, if it acts on one. Whether it may is for the verifier to say.
///
/// # Errors
/// When it cannot be signed.
pub fn lend(
    svid: &X509Svid,
    by: Option<&Delegation>,
    delegate: &AgentId,
    capabilities: &[Capability],
    until: Timestamp,
) -> Result<String, SignError> {
    let delegator = AgentId::try_from(svid.id().clone());
    let mut links = by.map_or_else(Vec::new, |by| by.links.clone());
    let bound = by.map_or(until, |by| by.not_after.min(until));
    let link = Link {
        delegator: delegator.map_err(|_| SignError::Key(svid.id().to_string()))?,
        delegate: delegate.clone(),
        capabilities: capabilities.to_vec(),
        not_after: bound.min(svid.not_after()),
        previous: links.last().map(|last| last.link.digest()),
        signature: String::new(),
    };
    links.push(sign_link(svid, link)?);
    Ok(encode(&links)?)
}

/// Verifies a delegation that `holder` has shown, who has proven that it is that agent. `held` is what an
/// agent's own identity holds; `None` for who is not registered.
///
/// # Errors
/// The first reason for which it does not hold.
pub fn verify_delegation(
    token: &str,
    holder: &AgentId,
    (bundle, revocations): (&Bundle, &Revocations),
    now: Timestamp,
    held: impl Fn(&AgentId) -> Option<Vec<Capability>>,
) -> Result<Delegation, InvalidDelegation> {
    let links = read_delegation(token)?;
    let mut leaves: Vec<(AgentId, CertificateDer<'static>)> = Vec::with_capacity(links.len());
    for (i, signed) in links.iter().enumerate() {
        // What is over is said to be over, and not to be forged.
        if signed.link.not_after <= now {
            return Err(InvalidDelegation::Expired(i));
        }
        leaves.push((signed.link.delegator.clone(), proven(signed, i, bundle, revocations, now)?));
    }
    let plain: Vec<Link> = links.iter().map(|signed| signed.link.clone()).collect();
    let capabilities = verify_links(&plain, holder, held, now, |who, bytes, signature| {
        let leaf = leaves.iter().find(|(delegator, _)| delegator == who);
        let signature = BASE64_STANDARD.decode(signature);
        matches!((leaf, signature), (Some((_, leaf)), Ok(signature))
            if verify_bytes(leaf, bytes, &signature).is_ok())
    })?;
    // No link outlives the one before.
    let not_after = plain.last().map_or(now, |last| last.not_after);
    let delegators = plain.into_iter().map(|link| link.delegator).collect();
    Ok(Delegation { token: token.to_owned(), links, delegators, capabilities, not_after })
}

/// The certificate that proves who the delegator of a link is.
fn proven(
    signed: &SignedLink,
    at: usize,
    bundle: &Bundle,
    revocations: &Revocations,
    now: Timestamp,
) -> Result<CertificateDer<'static>, InvalidDelegation> {
    let unproven = || InvalidDelegation::Svid(at);
    let decoded: Result<Vec<CertificateDer<'static>>, _> = signed
        .svid
        .iter()
        .map(|one| BASE64_STANDARD.decode(one).map(CertificateDer::from))
        .collect();
    let chain = decoded.map_err(|_| unproven())?;
    let peer = verify_chain(&chain, bundle, revocations, now).map_err(|_| unproven())?;
    if peer.id != *signed.link.delegator.spiffe_id() {
        return Err(unproven());
    }
    if signed.link.not_after > peer.not_after {
        return Err(InvalidDelegation::Outlives(at));
    }
    chain.into_iter().next().ok_or_else(unproven)
}
