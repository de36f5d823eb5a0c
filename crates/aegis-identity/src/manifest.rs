//! Manifests on the wire (IATP): a JWS by the key of the SVID that a connection shows, bound to that
//! SVID and to that connection.
//!
//! The binding is keying material that both ends of a TLS connection derive and nobody else can
//! (RFC 5705, RFC 8446 §7.5), another for each direction, so that a manifest is of use on no other
//! connection and cannot be sent back to whom it came from.

use aegis_core::{
    AgentId, Digest, Sponsor, Timestamp,
    capability::{Capability, MAX_CAPABILITIES},
    manifest::{Manifest, ManifestError},
};
use rustls::{ConnectionCommon, pki_types::CertificateDer};
use serde::{Deserialize, Serialize};

use crate::{
    CLOCK_SKEW, X509Svid,
    jws::{self, Jws, JwsError, SignError},
    tls::peer_identity,
};

/// The longest manifest that is read: an AgentIdentity has up to 256 capabilities of up to 1 KiB.
pub const MAX_MANIFEST_BYTES: usize = 512 * 1024;
/// The one label by which Aegis exports keying material of TLS connections. Of those for private use
/// (RFC 5705 §4).
pub const EXPORTER_LABEL: &[u8] = b"EXPERIMENTAL-aegis-manifest";
/// What kind of JWS it is.
const TYPE: &str = "aegis-manifest+jwt";

/// Which end of a connection a manifest comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// The end that connects.
    Client,
    /// The end that is connected to.
    Server,
}

/// A manifest whose signature, SVID, connection and time hold. Only [`verify_manifest`] makes one:
///
/// ```compile_fail,E0423
/// fn forge(manifest: aegis_core::manifest::Manifest) -> aegis_identity::VerifiedManifest {
///     aegis_identity::VerifiedManifest(manifest, aegis_core::Digest::of(b""))
/// }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifiedManifest(Manifest, Digest);

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Claims {
    iss: AgentId,
    sponsor: Sponsor,
    capabilities: Vec<Capability>,
    policies: Digest,
    state: u64,
    svid: Digest,
    channel: Digest,
    iat: u64,
    exp: u64,
}

impl VerifiedManifest {
    /// What it says.
    #[must_use]
    pub const fn manifest(&self) -> &Manifest {
        &self.0
    }

    /// The digest of the token, by which records name it.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.1
    }
}

/// What binds a manifest of one side to this connection.
///
/// # Errors
/// Before the handshake is over.
pub fn channel<D>(session: &ConnectionCommon<D>, side: Side) -> Result<Digest, rustls::Error> {
    let context: &[u8] = match side {
        Side::Client => b"client",
        Side::Server => b"server",
    };
    let exported = session.export_keying_material([0_u8; 32], EXPORTER_LABEL, Some(context))?;
    Ok(Digest::of(&exported))
}

/// What binds a manifest to an SVID.
#[must_use]
pub fn certificate(leaf: &CertificateDer<'_>) -> Digest {
    Digest::of(leaf)
}

/// Signs a manifest with the key of `svid`. Its times are whole seconds.
///
/// # Errors
/// When the key cannot.
pub fn sign_manifest(svid: &X509Svid, manifest: &Manifest) -> Result<String, SignError> {
    let claims = Claims {
        iss: manifest.agent.clone(),
        sponsor: manifest.sponsor.clone(),
        capabilities: manifest.capabilities.clone(),
        policies: manifest.policies,
        state: manifest.state,
        svid: manifest.svid,
        channel: manifest.channel,
        iat: manifest.issued_at.as_secs(),
        exp: manifest.expires_at.as_secs(),
    };
    jws::sign(svid, TYPE, &claims)
}

/// Reads a manifest without believing it.
///
/// # Errors
/// When it is none, or too long.
pub fn read_manifest(token: &str) -> Result<Manifest, ManifestError> {
    manifest_in(&parse(token)?)
}

fn parse(token: &str) -> Result<Jws<'_>, ManifestError> {
    if token.len() > MAX_MANIFEST_BYTES {
        return Err(ManifestError::TooLarge);
    }
    Ok(Jws::parse(token, TYPE)?)
}

fn manifest_in(jws: &Jws<'_>) -> Result<Manifest, ManifestError> {
    let claims: Claims = jws.claims()?;
    if claims.capabilities.len() > MAX_CAPABILITIES {
        return Err(ManifestError::TooLarge);
    }
    Ok(Manifest {
        agent: claims.iss,
        sponsor: claims.sponsor,
        capabilities: claims.capabilities,
        policies: claims.policies,
        state: claims.state,
        svid: claims.svid,
        channel: claims.channel,
        issued_at: Timestamp::from_secs(claims.iat),
        expires_at: Timestamp::from_secs(claims.exp),
    })
}

/// Verifies a manifest that came over a connection whose peer has shown `leaf`, which the handshake has
/// verified, and whose [`channel`] on the peer's side is that.
///
/// # Errors
/// The first reason for which it does not hold.
pub fn verify_manifest(
    token: &str,
    leaf: &CertificateDer<'_>,
    channel: Digest,
    now: Timestamp,
) -> Result<VerifiedManifest, ManifestError> {
    let jws = parse(token)?;
    jws.verify(leaf)?;
    let manifest = manifest_in(&jws)?;
    let peer = peer_identity(Some(std::slice::from_ref(leaf))).map_err(|_| ManifestError::Agent)?;
    if *manifest.agent.spiffe_id() != peer.id {
        return Err(ManifestError::Agent);
    }
    if manifest.svid != certificate(leaf) {
        return Err(ManifestError::Svid);
    }
    if manifest.channel != channel {
        return Err(ManifestError::Channel);
    }
    if !manifest.is_current(now, CLOCK_SKEW) {
        return Err(ManifestError::Expired);
    }
    Ok(VerifiedManifest(manifest, Digest::of(token.as_bytes())))
}

impl From<JwsError> for ManifestError {
    fn from(error: JwsError) -> Self {
        match error {
            JwsError::Malformed => Self::Malformed,
            JwsError::Signature => Self::Signature,
        }
    }
}
