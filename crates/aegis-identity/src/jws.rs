//! What sidecars sign for each other: a compact JWS (RFC 7515), ES256, by the key of an SVID.
//!
//! One form is read: that algorithm, the type that is asked for, no member that is not known and none
//! twice. Reading believes nothing; only [`Jws::verify`] says who has signed.

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{
        ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, ParsedPublicKey,
    },
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use rustls::pki_types::CertificateDer;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use crate::{X509Svid, verify::public_key};

/// Why nothing was signed.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The SVID's key does not sign by ES256.
    #[error("the key of {0} cannot sign for other sidecars; it has to be a P-256 key")]
    Key(String),
    /// It cannot be written.
    #[error("what is to be signed cannot be written: {0}")]
    Form(#[from] serde_json::Error),
}

/// Why a JWS is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum JwsError {
    Malformed,
    Signature,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Header {
    alg: String,
    /// What kind it is (RFC 7515 §4.1.9), so that no other token passes for one.
    typ: String,
}

/// A JWS that is read and not believed yet.
pub(crate) struct Jws<'a> {
    signed: &'a str,
    payload: &'a str,
    signature: Vec<u8>,
}

impl<'a> Jws<'a> {
    /// Reads the frame of a token whose length the caller has bounded.
    pub(crate) fn parse(token: &'a str, typ: &str) -> Result<Self, JwsError> {
        let (signed, signature) = token.rsplit_once('.').ok_or(JwsError::Malformed)?;
        let (header, payload) = signed.split_once('.').ok_or(JwsError::Malformed)?;
        let header: Header = read(header)?;
        if header.alg != "ES256" || header.typ != typ {
            return Err(JwsError::Malformed);
        }
        Ok(Self { signed, payload, signature: decode(signature)? })
    }

    /// Whether the key of this certificate has signed it.
    pub(crate) fn verify(&self, leaf: &CertificateDer<'_>) -> Result<(), JwsError> {
        verify_bytes(leaf, self.signed.as_bytes(), &self.signature)
    }

    /// What it says.
    pub(crate) fn claims<T: DeserializeOwned>(&self) -> Result<T, JwsError> {
        read(self.payload)
    }
}

/// Signs `claims` with the key of `svid`.
pub(crate) fn sign(
    svid: &X509Svid,
    typ: &str,
    claims: &impl Serialize,
) -> Result<String, SignError> {
    let header = Header { alg: "ES256".to_owned(), typ: typ.to_owned() };
    let mut token = format!("{}.{}", encode(&header)?, encode(claims)?);
    let signature = sign_bytes(svid, token.as_bytes())?;
    token.push('.');
    token.push_str(&BASE64_URL_SAFE_NO_PAD.encode(signature));
    Ok(token)
}

/// A signature over these bytes, ES256.
pub(crate) fn sign_bytes(svid: &X509Svid, bytes: &[u8]) -> Result<Vec<u8>, SignError> {
    let unusable = || SignError::Key(svid.id().to_string());
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, svid.key_pkcs8())
        .map_err(|_| unusable())?;
    let signature = key.sign(&SystemRandom::new(), bytes).map_err(|_| unusable())?;
    Ok(signature.as_ref().to_vec())
}

/// Whether the key of this certificate has signed these bytes.
pub(crate) fn verify_bytes(
    leaf: &CertificateDer<'_>,
    bytes: &[u8],
    signature: &[u8],
) -> Result<(), JwsError> {
    let point = public_key(leaf).map_err(|_| JwsError::Signature)?;
    ParsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point)
        .ok()
        .and_then(|key| key.verify_sig(bytes, signature).ok())
        .ok_or(JwsError::Signature)
}

fn encode(part: &impl Serialize) -> Result<String, serde_json::Error> {
    Ok(BASE64_URL_SAFE_NO_PAD.encode(serde_json::to_vec(part)?))
}

fn decode(part: &str) -> Result<Vec<u8>, JwsError> {
    BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|_| JwsError::Malformed)
}

fn read<T: DeserializeOwned>(part: &str) -> Result<T, JwsError> {
    serde_json::from_slice(&decode(part)?).map_err(|_| JwsError::Malformed)
}
