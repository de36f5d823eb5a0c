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
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize};

use crate::{
    CLOCK_SKEW, X509Svid,
    jws::{self, Jws, JwsError, SignError},
    tls::peer_identity,
};

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

/// Signs a grant with the key of `svid`. Its times are whole seconds.
///
/// # Errors
/// When the key cannot.
pub fn sign_grant(svid: &X509Svid, grant: &Grant) -> Result<String, SignError> {
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
    jws::sign(svid, TYPE, &claims)
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
    if token.len() > MAX_BYTES {
        return Err(GrantError::Malformed);
    }
    let jws = Jws::parse(token, TYPE)?;
    jws.verify(leaf)?;
    let claims: Claims = jws.claims()?;
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

impl From<JwsError> for GrantError {
    fn from(error: JwsError) -> Self {
        match error {
            JwsError::Malformed => Self::Malformed,
            JwsError::Signature => Self::Signature,
        }
    }
}
