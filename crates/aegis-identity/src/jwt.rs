//! JWT-SVIDs (SPIFFE JWT-SVID §2 to §4), ES256 only.
//!
//! Refuses any other algorithm including `none`, any header beside `alg`, `kid` and `typ`, a token
//! without `sub`, `aud` or `exp`, one for another audience, and a repeated claim.

use std::{fmt, time::Duration};

use aegis_core::{Digest, SpiffeId, Timestamp, TrustDomain, identity::InvalidIdentity};
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _,
        ParsedPublicKey,
    },
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{Bundle, CLOCK_SKEW};

/// The longest token that is read.
const MAX_TOKEN_BYTES: usize = 16 * 1024;
/// The most audiences that a token is issued for.
const MAX_AUDIENCES: usize = 16;
/// The longest audience.
const MAX_AUDIENCE_BYTES: usize = 1024;

/// A public key that verifies JWT-SVIDs.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct JwtKey {
    kid: String,
    /// An uncompressed P-256 point.
    point: Vec<u8>,
}

/// A private key that signs JWT-SVIDs.
pub struct JwtSigner {
    key: EcdsaKeyPair,
    public: JwtKey,
}

/// A signed JWT-SVID. The token is a bearer credential: `Debug` does not print it.
#[derive(Clone, PartialEq, Eq)]
pub struct JwtSvid {
    /// Whose it is.
    pub id: SpiffeId,
    /// Whom it is for.
    pub audience: Vec<String>,
    /// When it ends.
    pub expires: Timestamp,
    /// The compact serialisation.
    pub token: String,
}

/// What a verified JWT-SVID says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JwtClaims {
    /// Whose it is.
    pub id: SpiffeId,
    /// Whom it is for.
    pub audience: Vec<String>,
    /// When it ends.
    pub expires: Timestamp,
    /// All claims.
    pub claims: Map<String, Value>,
}

/// Why a JWT-SVID is refused, or cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum JwtError {
    /// Not three base64url parts of JSON, or too long.
    #[error("the token is not a compact JWS: {0}")]
    Malformed(String),
    /// Another algorithm.
    #[error("the token is signed with `{0}`; only ES256 is accepted")]
    Algorithm(String),
    /// `typ` is neither JWT nor JOSE.
    #[error("the token's typ is `{0}`; only JWT and JOSE are accepted")]
    Type(String),
    /// The signing key is not in the bundle.
    #[error("the trust domain has no JWT key `{0}`")]
    UnknownKey(String),
    /// The signature does not fit.
    #[error("the token's signature is wrong")]
    Signature,
    /// `sub` is not a SPIFFE ID.
    #[error(transparent)]
    Subject(#[from] InvalidIdentity),
    /// Another trust domain's.
    #[error("{id} is not in the trust domain {expected}")]
    ForeignTrustDomain {
        /// Who it says it is.
        id: SpiffeId,
        /// The bundle's trust domain.
        expected: TrustDomain,
    },
    /// For somebody else.
    #[error("the token is not for the audience `{0}`")]
    Audience(String),
    /// No longer valid.
    #[error("the token expired at {0}")]
    Expired(Timestamp),
    /// Not valid yet.
    #[error("the token is not valid before {0}; check both clocks")]
    NotYetValid(Timestamp),
    /// The identity was revoked.
    #[error("{0} was revoked")]
    Revoked(SpiffeId),
    /// A request for a token without an audience, or with unusable ones.
    #[error("a JWT-SVID needs 1 to {MAX_AUDIENCES} audiences of 1 to {MAX_AUDIENCE_BYTES} bytes")]
    Audiences,
    /// The key cannot be used.
    #[error("the JWT key cannot be used: {0}")]
    Key(String),
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    kid: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    typ: Option<String>,
}

#[derive(Serialize, Deserialize)]
struct Claims {
    sub: String,
    aud: Audience,
    exp: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    iat: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    nbf: Option<u64>,
}

/// RFC 7519 §4.1.3: one text, or a list of them.
#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Audience {
    One(String),
    Many(Vec<String>),
}

fn malformed(cause: impl fmt::Display) -> JwtError {
    JwtError::Malformed(cause.to_string())
}

// === impl JwtKey ===

impl JwtKey {
    /// From a key id and an uncompressed P-256 point.
    ///
    /// # Errors
    /// When the point is not on the curve.
    pub fn new(kid: String, point: Vec<u8>) -> Result<Self, JwtError> {
        ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &point)
            .map_err(|_| JwtError::Key("not an uncompressed P-256 point".to_owned()))?;
        Ok(Self { kid, point })
    }

    /// The key id.
    #[must_use]
    pub fn kid(&self) -> &str {
        &self.kid
    }

    /// The uncompressed point.
    #[must_use]
    pub fn point(&self) -> &[u8] {
        &self.point
    }

    fn verify(&self, message: &[u8], signature: &[u8]) -> Result<(), JwtError> {
        let key = ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.point)
            .map_err(|_| JwtError::Signature)?;
        key.verify_sig(message, signature).map_err(|_| JwtError::Signature)
    }
}

// === impl JwtSigner ===

impl JwtSigner {
    /// From a P-256 key in PKCS#8. The key id is derived from the public key.
    ///
    /// # Errors
    /// When the bytes are not such a key.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, JwtError> {
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8)
            .map_err(|error| JwtError::Key(error.to_string()))?;
        let point = key.public_key().as_ref().to_vec();
        let kid = Digest::of(&point).to_hex().chars().take(32).collect();
        Ok(Self { public: JwtKey::new(kid, point)?, key })
    }

    /// The key that verifies what this one signs.
    #[must_use]
    pub const fn public(&self) -> &JwtKey {
        &self.public
    }

    /// Signs a JWT-SVID.
    ///
    /// # Errors
    /// When the audiences are unusable or signing fails.
    pub fn sign(
        &self,
        id: &SpiffeId,
        audience: &[String],
        now: Timestamp,
        ttl: Duration,
    ) -> Result<JwtSvid, JwtError> {
        let usable = |a: &String| (1..=MAX_AUDIENCE_BYTES).contains(&a.len());
        if !(1..=MAX_AUDIENCES).contains(&audience.len()) || !audience.iter().all(usable) {
            return Err(JwtError::Audiences);
        }
        let expires = Timestamp::from_secs(now.plus(ttl).as_secs());
        let header = Header {
            alg: "ES256".to_owned(),
            kid: self.public.kid.clone(),
            typ: Some("JWT".to_owned()),
        };
        let claims = Claims {
            sub: id.to_string(),
            aud: Audience::Many(audience.to_vec()),
            exp: expires.as_secs(),
            iat: Some(now.as_secs()),
            nbf: None,
        };
        let mut token = encode(&header)?;
        token.push('.');
        token.push_str(&encode(&claims)?);
        let signature = self
            .key
            .sign(&SystemRandom::new(), token.as_bytes())
            .map_err(|_| JwtError::Key("signing failed".to_owned()))?;
        token.push('.');
        token.push_str(&BASE64_URL_SAFE_NO_PAD.encode(signature));
        Ok(JwtSvid { id: id.clone(), audience: audience.to_vec(), expires, token })
    }
}

impl fmt::Debug for JwtSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSigner").field("kid", &self.public.kid).finish_non_exhaustive()
    }
}

impl fmt::Debug for JwtSvid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JwtSvid")
            .field("id", &self.id.as_str())
            .field("audience", &self.audience)
            .field("expires", &self.expires.to_string())
            .finish_non_exhaustive()
    }
}

fn encode(part: &impl Serialize) -> Result<String, JwtError> {
    Ok(BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(part).map_err(malformed)?))
}

fn decode(part: &str) -> Result<Vec<u8>, JwtError> {
    BASE64_URL_SAFE_NO_PAD.decode(part).map_err(malformed)
}

/// Verifies a JWT-SVID for `audience` against its trust domain's bundle.
///
/// # Errors
/// The first reason to refuse it.
pub fn verify_jwt(
    token: &str,
    audience: &str,
    bundle: &Bundle,
    now: Timestamp,
) -> Result<JwtClaims, JwtError> {
    if token.len() > MAX_TOKEN_BYTES {
        return Err(malformed("too long"));
    }
    let (signed, signature) = token.rsplit_once('.').ok_or_else(|| malformed("no signature"))?;
    let (header, payload) = signed.split_once('.').ok_or_else(|| malformed("no payload"))?;
    let header: Header = serde_json::from_slice(&decode(header)?).map_err(malformed)?;
    if header.alg != "ES256" {
        return Err(JwtError::Algorithm(header.alg.chars().take(40).collect()));
    }
    if let Some(typ) = header.typ.filter(|typ| !matches!(typ.as_str(), "JWT" | "JOSE")) {
        return Err(JwtError::Type(typ.chars().take(40).collect()));
    }
    let unknown = || JwtError::UnknownKey(header.kid.chars().take(80).collect());
    let key = bundle.jwt_key(&header.kid).ok_or_else(unknown)?;
    key.verify(signed.as_bytes(), &decode(signature)?)?;
    check_claims(&decode(payload)?, audience, bundle.trust_domain(), now)
}

fn check_claims(
    payload: &[u8],
    audience: &str,
    trust_domain: &TrustDomain,
    now: Timestamp,
) -> Result<JwtClaims, JwtError> {
    let typed: Claims = serde_json::from_slice(payload).map_err(malformed)?;
    let claims: Map<String, Value> = serde_json::from_slice(payload).map_err(malformed)?;
    let id: SpiffeId = typed.sub.parse()?;
    if id.trust_domain() != *trust_domain {
        return Err(JwtError::ForeignTrustDomain { id, expected: trust_domain.clone() });
    }
    let audiences = match typed.aud {
        Audience::One(one) => vec![one],
        Audience::Many(many) => many,
    };
    if audience.is_empty() || !audiences.iter().any(|a| a == audience) {
        return Err(JwtError::Audience(audience.chars().take(120).collect()));
    }
    let expires = Timestamp::from_secs(typed.exp);
    if now >= expires.plus(CLOCK_SKEW) {
        return Err(JwtError::Expired(expires));
    }
    for start in [typed.nbf, typed.iat].into_iter().flatten().map(Timestamp::from_secs) {
        if now.plus(CLOCK_SKEW) < start {
            return Err(JwtError::NotYetValid(start));
        }
    }
    Ok(JwtClaims { id, audience: audiences, expires, claims })
}
