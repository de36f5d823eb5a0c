//! Grants on the wire: a compact JWS (RFC 7515), ES256, signed with the key of the very SVID that the
//! caller has shown on the connection.
//!
//! Refuses any other algorithm or type, any member that it does not know, and one that stands twice.
//! What is verified here is who signed what, for whom and when; that it is for this action, and that
//! it was not used before, is the kernel's to say.

use aegis_core::{
    AgentId, Digest, Timestamp,
    grant::{Approver, Grant, GrantError},
};
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, ParsedPublicKey,
    },
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::{CLOCK_SKEW, X509Svid, tls::peer_identity, verify::public_key};

/// The longest grant that is read.
const MAX_BYTES: usize = 8 * 1024;
/// The longest id of a grant, and of an approval.
const MAX_ID_BYTES: usize = 64;
/// What kind of JWS it is (RFC 7515 §4.1.9), so that no other token passes for one.
const TYPE: &str = "aegis-grant+jwt";

/// A grant whose signature, audience and time hold. Only [`verify_grant`] makes one:
///
/// ```compile_fail,E0423
/// fn forge(grant: aegis_core::grant::Grant) -> aegis_identity::VerifiedGrant {
///     aegis_identity::VerifiedGrant(grant)
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedGrant(Grant);

/// Why a grant could not be made.
#[derive(Debug, thiserror::Error)]
pub enum GrantSignError {
    /// The SVID's key does not sign by ES256.
    #[error("the key of {0} cannot sign grants; it has to be a P-256 key")]
    Key(String),
    /// It cannot be written.
    #[error("the grant cannot be written: {0}")]
    Form(#[from] serde_json::Error),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    typ: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claims {
    iss: AgentId,
    aud: AgentId,
    iat: u64,
    exp: u64,
    jti: String,
    action: Digest,
    approval: String,
    approvers: Vec<Approver>,
}

impl VerifiedGrant {
    /// What it says.
    #[must_use]
    pub const fn grant(&self) -> &Grant {
        &self.0
    }
}

fn encode(part: &impl Serialize) -> Result<String, serde_json::Error> {
    Ok(BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(part)?))
}

/// Signs a grant with the key of `svid`. Its times are whole seconds.
///
/// # Errors
/// When the key cannot.
pub fn sign_grant(svid: &X509Svid, grant: &Grant) -> Result<String, GrantSignError> {
    let unusable = || GrantSignError::Key(svid.id().to_string());
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, svid.key_pkcs8())
        .map_err(|_| unusable())?;
    let claims = Claims {
        iss: grant.issuer.clone(),
        aud: grant.audience.clone(),
        iat: grant.issued_at.as_secs(),
        exp: grant.expires_at.as_secs(),
        jti: grant.id.clone(),
        action: grant.action,
        approval: grant.approval.clone(),
        approvers: grant.approvers.clone(),
    };
    let header = Header { alg: "ES256".to_owned(), typ: TYPE.to_owned() };
    let mut token = format!("{}.{}", encode(&header)?, encode(&claims)?);
    let signature = key.sign(&SystemRandom::new(), token.as_bytes()).map_err(|_| unusable())?;
    token.push('.');
    token.push_str(&BASE64_URL_SAFE_NO_PAD.encode(signature));
    Ok(token)
}

/// Verifies a grant that came over a connection whose peer has shown `leaf`, which the handshake has
/// verified, to the agent `own`.
///
/// # Errors
/// The first reason for which it does not hold.
pub fn verify_grant(
    token: &str,
    leaf: &CertificateDer<'_>,
    own: &AgentId,
    now: Timestamp,
) -> Result<VerifiedGrant, GrantError> {
    let (signed, signature) =
        token.rsplit_once('.').filter(|_| token.len() <= MAX_BYTES).ok_or(GrantError::Malformed)?;
    let (header, payload) = signed.split_once('.').ok_or(GrantError::Malformed)?;
    let header: Header = read(header)?;
    if header.alg != "ES256" || header.typ != TYPE {
        return Err(GrantError::Malformed);
    }
    let signature = decode(signature)?;
    let point = public_key(leaf).map_err(|_| GrantError::Signature)?;
    ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
        .ok()
        .and_then(|key| key.verify_sig(signed.as_bytes(), &signature).ok())
        .ok_or(GrantError::Signature)?;
    let claims: Claims = read(payload)?;
    let peer = peer_identity(Some(std::slice::from_ref(leaf))).map_err(|_| GrantError::Issuer)?;
    if *claims.iss.spiffe_id() != peer.id {
        return Err(GrantError::Issuer);
    }
    if claims.aud != *own {
        return Err(GrantError::Audience);
    }
    let named = |text: &str| (1..=MAX_ID_BYTES).contains(&text.len());
    if !named(&claims.jti) || !named(&claims.approval) {
        return Err(GrantError::Malformed);
    }
    let grant = Grant {
        id: claims.jti,
        issuer: claims.iss,
        audience: claims.aud,
        action: claims.action,
        approval: claims.approval,
        approvers: claims.approvers,
        issued_at: Timestamp::from_secs(claims.iat),
        expires_at: Timestamp::from_secs(claims.exp),
    };
    if !grant.is_current(now, CLOCK_SKEW) {
        return Err(GrantError::Expired);
    }
    Ok(VerifiedGrant(grant))
}

fn decode(part: &str) -> Result<Vec<u8>, GrantError> {
    BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_| GrantError::Malformed)
}

fn read<T: for<'de> Deserialize<'de>>(part: &str) -> Result<T, GrantError> {
    serde_json::from_slice(&decode(part)?).map_err(|_| GrantError::Malformed)
}
