//! A trust domain's bundle: whom to believe (SPIFFE Trust Domain and Bundle §3 and §4).
//!
//! Reads and writes the JWKS document. A key of an unknown `use` or type is skipped, as the
//! specification says; an `x509-svid` key without exactly one certificate is an error.

use std::{sync::Arc, time::Duration};

use aegis_core::{Timestamp, TrustDomain};
use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use rustls::pki_types::{CertificateDer, Der, TrustAnchor};
use serde::{Deserialize, Serialize};
use x509_parser::prelude::{FromDer, X509Certificate};

use crate::{JwtKey, verify};

/// The largest bundle document that is read.
pub const MAX_DOCUMENT_BYTES: usize = 1024 * 1024;

/// The authorities of one trust domain. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Bundle {
    trust_domain: TrustDomain,
    authorities: Arc<[Authority]>,
    jwt_keys: Arc<[JwtKey]>,
    sequence: u64,
    refresh_hint: Duration,
}

#[derive(Debug, PartialEq, Eq)]
struct Authority {
    certificate: CertificateDer<'static>,
    anchor: TrustAnchor<'static>,
    not_after: Timestamp,
}

/// Why something is not a trust bundle.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    /// Not the JSON that the specification describes.
    #[error("the bundle of {trust_domain} is not a JWKS document: {cause}")]
    Document {
        /// Whose bundle.
        trust_domain: TrustDomain,
        /// What the parser says.
        cause: serde_json::Error,
    },
    /// Too large.
    #[error("the bundle document has {0} bytes; at most {MAX_DOCUMENT_BYTES} are read")]
    TooLarge(usize),
    /// A member that cannot be used.
    #[error("key {index} of the bundle cannot be used: {cause}")]
    Key {
        /// Its place in `keys`.
        index: usize,
        /// What is wrong with it.
        cause: String,
    },
}

/// RFC 7517 with SPIFFE's members.
#[derive(Serialize, Deserialize)]
struct Document {
    keys: Vec<Jwk>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spiffe_sequence: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    spiffe_refresh_hint: Option<u64>,
}

#[derive(Serialize, Deserialize, Default)]
struct Jwk {
    kty: String,
    #[serde(rename = "use", default)]
    usage: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    kid: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    crv: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    x: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    y: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    x5c: Option<Vec<String>>,
}

impl Authority {
    fn new(certificate: CertificateDer<'static>) -> Result<Self, String> {
        let anchor = webpki::anchor_from_trusted_cert(&certificate).map_err(|e| e.to_string())?;
        let anchor = anchor.to_owned();
        let (_, parsed) = X509Certificate::from_der(&certificate).map_err(|e| e.to_string())?;
        if !parsed.is_ca() {
            return Err("the certificate is not a signing certificate".to_owned());
        }
        let not_after = verify::not_after(&parsed);
        Ok(Self { anchor, not_after, certificate })
    }

    fn jwk(&self) -> Result<Jwk, String> {
        let (_, parsed) =
            X509Certificate::from_der(&self.certificate).map_err(|e| e.to_string())?;
        let point = &parsed.public_key().subject_public_key.data;
        let (curve, half) = match point.len() {
            65 => ("P-256", 32),
            97 => ("P-384", 48),
            _ => return Err("only authorities with P-256 and P-384 keys can be written".to_owned()),
        };
        let (x, y) =
            coordinates(point, half).ok_or("the public key is not an uncompressed point")?;
        Ok(Jwk {
            kty: "EC".to_owned(),
            usage: "x509-svid".to_owned(),
            crv: Some(curve.to_owned()),
            x: Some(x),
            y: Some(y),
            x5c: Some(vec![BASE64_STANDARD.encode(&self.certificate)]),
            kid: None,
        })
    }
}

fn coordinates(point: &[u8], half: usize) -> Option<(String, String)> {
    let (tag, rest) = point.split_first()?;
    let (x, y) = rest.split_at_checked(half)?;
    let uncompressed = *tag == 4 && y.len() == half;
    uncompressed.then(|| (BASE64_URL_SAFE_NO_PAD.encode(x), BASE64_URL_SAFE_NO_PAD.encode(y)))
}

fn jwt_jwk(key: &JwtKey) -> Option<Jwk> {
    let (x, y) = coordinates(key.point(), 32)?;
    Some(Jwk {
        kty: "EC".to_owned(),
        usage: "jwt-svid".to_owned(),
        kid: Some(key.kid().to_owned()),
        crv: Some("P-256".to_owned()),
        x: Some(x),
        y: Some(y),
        x5c: None,
    })
}

impl Jwk {
    fn x509(&self) -> Result<CertificateDer<'static>, String> {
        let [certificate] = self.x5c.as_deref().unwrap_or_default() else {
            return Err("an x509-svid key has exactly one certificate in x5c".to_owned());
        };
        let der = BASE64_STANDARD.decode(certificate).map_err(|e| format!("x5c: {e}"))?;
        Ok(CertificateDer::from(der))
    }

    /// `None` for a key of a kind that Aegis does not verify with.
    fn jwt(&self) -> Result<Option<JwtKey>, String> {
        if self.kty != "EC" || self.crv.as_deref() != Some("P-256") {
            return Ok(None);
        }
        let kid = self.kid.as_deref().filter(|kid| !kid.is_empty()).ok_or("kid is missing")?;
        let mut point = vec![4];
        for part in [&self.x, &self.y] {
            let part = part.as_deref().ok_or("x or y is missing")?;
            point.extend(BASE64_URL_SAFE_NO_PAD.decode(part).map_err(|e| format!("x or y: {e}"))?);
        }
        JwtKey::new(kid.to_owned(), point).map(Some).map_err(|e| e.to_string())
    }
}

impl Bundle {
    /// A bundle of the given authorities.
    ///
    /// # Errors
    /// When a certificate cannot be an authority.
    pub fn new(
        trust_domain: TrustDomain,
        certificates: Vec<CertificateDer<'static>>,
        jwt_keys: Vec<JwtKey>,
        sequence: u64,
        refresh_hint: Duration,
    ) -> Result<Self, BundleError> {
        let authorities = certificates
            .into_iter()
            .enumerate()
            .map(|(index, c)| Authority::new(c).map_err(|cause| BundleError::Key { index, cause }))
            .collect::<Result<Arc<[_]>, _>>()?;
        Ok(Self { trust_domain, authorities, jwt_keys: jwt_keys.into(), sequence, refresh_hint })
    }

    /// Reads a JWKS document.
    ///
    /// # Errors
    /// When it is too large, not the JSON that is expected, or holds an unusable key.
    pub fn from_jwks(trust_domain: TrustDomain, document: &[u8]) -> Result<Self, BundleError> {
        if document.len() > MAX_DOCUMENT_BYTES {
            return Err(BundleError::TooLarge(document.len()));
        }
        let parsed: Document = serde_json::from_slice(document)
            .map_err(|cause| BundleError::Document { trust_domain: trust_domain.clone(), cause })?;
        let (mut certificates, mut jwt_keys) = (Vec::new(), Vec::new());
        for (index, key) in parsed.keys.iter().enumerate() {
            let unusable = |cause| BundleError::Key { index, cause };
            match key.usage.as_str() {
                "x509-svid" => certificates.push(key.x509().map_err(unusable)?),
                "jwt-svid" => jwt_keys.extend(key.jwt().map_err(unusable)?),
                _ => {}
            }
        }
        let hint = Duration::from_secs(parsed.spiffe_refresh_hint.unwrap_or(300));
        let sequence = parsed.spiffe_sequence.unwrap_or(0);
        Self::new(trust_domain, certificates, jwt_keys, sequence, hint)
    }

    /// The whole JWKS document, as a bundle endpoint serves it.
    ///
    /// # Errors
    /// When an authority's key is of a kind that cannot be written.
    pub fn to_jwks(&self) -> Result<Vec<u8>, BundleError> {
        let mut keys = Vec::new();
        for (index, authority) in self.authorities.iter().enumerate() {
            keys.push(authority.jwk().map_err(|cause| BundleError::Key { index, cause })?);
        }
        keys.extend(self.jwt_keys.iter().filter_map(jwt_jwk));
        self.document(keys)
    }

    /// The JWKS document of the JWT keys alone, as the Workload API sends it.
    ///
    /// # Errors
    /// None in practice: every member is text.
    pub fn to_jwt_jwks(&self) -> Result<Vec<u8>, BundleError> {
        self.document(self.jwt_keys.iter().filter_map(jwt_jwk).collect())
    }

    fn document(&self, keys: Vec<Jwk>) -> Result<Vec<u8>, BundleError> {
        let document = Document {
            keys,
            spiffe_sequence: Some(self.sequence),
            spiffe_refresh_hint: Some(self.refresh_hint.as_secs()),
        };
        serde_json::to_vec(&document).map_err(|cause| BundleError::Document {
            trust_domain: self.trust_domain.clone(),
            cause,
        })
    }

    /// Whose bundle this is.
    #[must_use]
    pub const fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The X.509 authorities.
    pub fn certificates(&self) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.authorities.iter().map(|authority| &authority.certificate)
    }

    /// The X.509 authorities concatenated, as the Workload API sends them.
    #[must_use]
    pub fn certificates_der(&self) -> Vec<u8> {
        self.certificates().flat_map(|certificate| certificate.iter().copied()).collect()
    }

    /// The key that signs JWT-SVIDs under `kid`.
    #[must_use]
    pub fn jwt_key(&self, kid: &str) -> Option<&JwtKey> {
        self.jwt_keys.iter().find(|key| key.kid() == kid)
    }

    /// All keys that sign JWT-SVIDs.
    #[must_use]
    pub fn jwt_keys(&self) -> &[JwtKey] {
        &self.jwt_keys
    }

    /// Grows with every change.
    #[must_use]
    pub const fn sequence(&self) -> u64 {
        self.sequence
    }

    /// How often a federated trust domain should ask again.
    #[must_use]
    pub const fn refresh_hint(&self) -> Duration {
        self.refresh_hint
    }

    pub(crate) fn anchors_at(&self, now: Timestamp) -> impl Iterator<Item = TrustAnchor<'_>> {
        let valid = self.authorities.iter().filter(move |authority| now <= authority.not_after);
        valid.map(|authority| TrustAnchor {
            subject: Der::from_slice(&authority.anchor.subject),
            subject_public_key_info: Der::from_slice(&authority.anchor.subject_public_key_info),
            name_constraints: authority.anchor.name_constraints.as_deref().map(Der::from_slice),
        })
    }
}

impl PartialEq for Bundle {
    fn eq(&self, other: &Self) -> bool {
        (&self.trust_domain, self.sequence, self.refresh_hint)
            == (&other.trust_domain, other.sequence, other.refresh_hint)
            && self.authorities == other.authorities
            && self.jwt_keys == other.jwt_keys
    }
}

impl Eq for Bundle {}
