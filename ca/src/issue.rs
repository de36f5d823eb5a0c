//! Signs SVIDs.
//!
//! The name is an argument, decided by attestation. A certificate request gives a public key and
//! proof that its sender holds the private one, and nothing else: one that asks for names,
//! extensions or a key of another kind is refused.

use std::{fmt, time::Duration};

use aegis_core::{SpiffeId, Timestamp, TrustDomain};
use aegis_identity::{CLOCK_SKEW, JwtError, JwtSigner, JwtSvid, Serial, SvidError, X509Svid};
use aws_lc_rs::{
    rand,
    signature::{
        self, ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
        VerificationAlgorithm,
    },
};
use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, PublicKeyData, SanType, SerialNumber,
    SubjectPublicKeyInfo, string::Ia5String,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;
use x509_parser::{
    oid_registry::{OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384, OID_SIG_ED25519, Oid},
    prelude::{FromDer, X509CertificationRequest},
};
use zeroize::Zeroizing;

/// The largest certificate request that is read.
pub const MAX_CSR_BYTES: usize = 8 * 1024;
/// The shortest life of an SVID.
pub const MIN_SVID_TTL: Duration = Duration::from_secs(60);
/// The longest life of an SVID.
pub const MAX_SVID_TTL: Duration = Duration::from_secs(24 * 60 * 60);

/// How long things live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// A root.
    pub root: Duration,
    /// An intermediate.
    pub intermediate: Duration,
    /// A key that signs JWT-SVIDs.
    pub jwt_key: Duration,
    /// An X.509-SVID, unless its registration says otherwise.
    pub svid: Duration,
    /// A JWT-SVID.
    pub jwt_svid: Duration,
}

/// Why nothing was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssueError {
    /// Another trust domain's name.
    #[error("{id} is not in this CA's trust domain {expected}")]
    ForeignTrustDomain {
        /// The name.
        id: SpiffeId,
        /// Ours.
        expected: TrustDomain,
    },
    /// A lifetime out of bounds.
    #[error("an SVID lives 1 minute to 24 hours, not {0:?}")]
    Ttl(Duration),
    /// The authority itself is about to end.
    #[error("the signing certificate ends at {0}; rotation has failed, see the log")]
    AuthorityExpired(Timestamp),
    /// A certificate request that is not accepted.
    #[error("the certificate request is refused: {0}")]
    Request(String),
    /// Signing fails.
    #[error("signing failed: {0}")]
    Signing(#[from] rcgen::Error),
    /// No random numbers.
    #[error("the system has no random numbers")]
    Randomness,
    /// What was signed is not an SVID.
    #[error(transparent)]
    Svid(#[from] SvidError),
    /// A JWT-SVID cannot be made.
    #[error(transparent)]
    Jwt(#[from] JwtError),
}

/// The active authorities: a snapshot that stays usable while the next one is prepared.
pub struct Signer {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) issuer: Issuer<'static, KeyPair>,
    pub(crate) intermediate: CertificateDer<'static>,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
    pub(crate) jwt: JwtSigner,
    pub(crate) jwt_not_after: Timestamp,
    pub(crate) lifetimes: Lifetimes,
}

/// A key made for an SVID, whose public half goes into its certificate.
struct FreshKey(EcdsaKeyPair);

impl PublicKeyData for FreshKey {
    fn der_bytes(&self) -> &[u8] {
        self.0.public_key().as_ref()
    }

    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl Default for Lifetimes {
    fn default() -> Self {
        let day = 24 * 60 * 60;
        Self {
            root: Duration::from_secs(365 * day),
            intermediate: Duration::from_secs(7 * day),
            jwt_key: Duration::from_secs(7 * day),
            svid: Duration::from_secs(15 * 60),
            jwt_svid: Duration::from_secs(5 * 60),
        }
    }
}

impl Lifetimes {
    /// Each authority must outlive what it signs by a factor that leaves room for the overlap.
    ///
    /// # Errors
    /// A sentence that says which does not.
    pub fn check(&self) -> Result<(), String> {
        if !(MIN_SVID_TTL..=MAX_SVID_TTL).contains(&self.svid) {
            return Err("an SVID lives 1 minute to 24 hours".to_owned());
        }
        if self.jwt_svid < MIN_SVID_TTL || self.jwt_svid > MAX_SVID_TTL {
            return Err("a JWT-SVID lives 1 minute to 24 hours".to_owned());
        }
        // The next authority signs from the last sixth on: what the old one signed last must fit.
        for (name, authority, signed) in [
            (
                "an intermediate must live 6 times as long as the longest SVID (24 hours)",
                self.intermediate,
                MAX_SVID_TTL,
            ),
            (
                "a JWT key must live 6 times as long as the longest SVID (24 hours)",
                self.jwt_key,
                MAX_SVID_TTL,
            ),
            ("a root must live 6 times as long as an intermediate", self.root, self.intermediate),
        ] {
            if authority / 6 < signed.saturating_add(CLOCK_SKEW) {
                return Err(name.to_owned());
            }
        }
        Ok(())
    }
}

impl Signer {
    /// Issues an SVID for a key made here.
    ///
    /// # Errors
    /// When the name is foreign, the TTL out of bounds, or signing fails.
    pub fn issue(
        &self,
        id: &SpiffeId,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<X509Svid, IssueError> {
        // Not rcgen's own: that writes a new key out, reads it again and checks it, which costs
        // as much as the signature.
        let key = FreshKey(
            EcdsaKeyPair::generate(&ECDSA_P256_SHA256_ASN1_SIGNING)
                .map_err(|_| IssueError::Randomness)?,
        );
        let pkcs8 = key.0.to_pkcs8v1().map_err(|_| IssueError::Randomness)?;
        let chain = self.sign(id, &key, ttl, now)?;
        Ok(X509Svid::new(chain, Zeroizing::new(pkcs8.as_ref().to_vec()))?)
    }

    /// Signs the key of a PKCS#10 request, whose sender keeps the private key. Returns the chain.
    ///
    /// # Errors
    /// When the request is anything but a key with proof of possession, or as [`Self::issue`].
    pub fn sign_request(
        &self,
        id: &SpiffeId,
        request: &[u8],
        ttl: Duration,
        now: Timestamp,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        self.sign(id, &requested_key(request)?, ttl, now)
    }

    /// Signs a JWT-SVID.
    ///
    /// # Errors
    /// When the name is foreign or an audience unusable.
    pub fn issue_jwt(
        &self,
        id: &SpiffeId,
        audience: &[String],
        now: Timestamp,
    ) -> Result<JwtSvid, IssueError> {
        self.check_name(id)?;
        if now >= self.jwt_not_after {
            return Err(IssueError::AuthorityExpired(self.jwt_not_after));
        }
        let ttl = self.lifetimes.jwt_svid.min(self.jwt_not_after.since(now));
        Ok(self.jwt.sign(id, audience, now, ttl)?)
    }

    fn check_name(&self, id: &SpiffeId) -> Result<(), IssueError> {
        if id.trust_domain() == self.trust_domain {
            return Ok(());
        }
        let expected = self.trust_domain.clone();
        Err(IssueError::ForeignTrustDomain { id: id.clone(), expected })
    }

    fn sign(
        &self,
        id: &SpiffeId,
        key: &impl PublicKeyData,
        ttl: Duration,
        now: Timestamp,
    ) -> Result<Vec<CertificateDer<'static>>, IssueError> {
        self.check_name(id)?;
        if !(MIN_SVID_TTL..=MAX_SVID_TTL).contains(&ttl) {
            return Err(IssueError::Ttl(ttl));
        }
        if now >= self.not_after {
            return Err(IssueError::AuthorityExpired(self.not_after));
        }
        let mut params = leaf_params(id)?;
        params.serial_number = Some(random_serial()?);
        // Inside the issuer's own period, so that a path is never valid for the leaf alone.
        params.not_before = date(now.minus(CLOCK_SKEW).max(self.not_before));
        params.not_after = date(now.plus(ttl).min(self.not_after));
        let leaf = params.signed_by(key, &self.issuer)?;
        Ok(vec![leaf.der().clone(), self.intermediate.clone()])
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Signer")
            .field("trust_domain", &self.trust_domain.as_str())
            .field("not_after", &self.not_after.to_string())
            .finish_non_exhaustive()
    }
}

fn leaf_params(id: &SpiffeId) -> Result<CertificateParams, IssueError> {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Aegis");
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.subject_alt_names = vec![uri(id.as_str())?];
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

pub(crate) fn uri(text: &str) -> Result<SanType, rcgen::Error> {
    Ok(SanType::URI(Ia5String::try_from(text)?))
}

pub(crate) fn date(time: Timestamp) -> OffsetDateTime {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

/// 16 random bytes, of which the first two bits are set to 01: positive, and never short.
pub(crate) fn random_serial() -> Result<SerialNumber, IssueError> {
    let mut bytes = [0_u8; 16];
    rand::fill(&mut bytes).map_err(|_| IssueError::Randomness)?;
    bytes[0] = (bytes[0] & 0x3f) | 0x40;
    Ok(SerialNumber::from_slice(&bytes))
}

/// The serial number of a signed leaf.
///
/// # Errors
/// When the bytes are not a certificate, which a chain from [`Signer::sign_request`] always is.
pub fn serial_of(leaf: &CertificateDer<'_>) -> Result<Serial, IssueError> {
    let (_, parsed) = x509_parser::parse_x509_certificate(leaf)
        .map_err(|error| IssueError::Request(error.to_string()))?;
    Ok(Serial::from_bytes(parsed.raw_serial()))
}

/// The key of a PKCS#10 request (RFC 2986), after its proof of possession.
fn requested_key(request: &[u8]) -> Result<SubjectPublicKeyInfo, IssueError> {
    let refused = |cause: &str| IssueError::Request(cause.to_owned());
    if request.len() > MAX_CSR_BYTES {
        return Err(refused("it is larger than 8 KiB"));
    }
    let (rest, parsed) = X509CertificationRequest::from_der(request)
        .map_err(|_| refused("it is not a PKCS#10 request in DER"))?;
    if !rest.is_empty() {
        return Err(refused("bytes follow it"));
    }
    let info = &parsed.certification_request_info;
    // The cheap checks come first: verifying a signature is the expensive one.
    if !info.attributes().is_empty() {
        return Err(refused(
            "it asks for extensions; the name comes from attestation, send the key alone",
        ));
    }
    let key = SubjectPublicKeyInfo::from_der(info.subject_pki.raw)
        .map_err(|_| refused("its key is of an unknown kind"))?;
    let accepted =
        [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519];
    if !accepted.contains(&key.algorithm()) {
        return Err(refused("its key must be P-256, P-384 or Ed25519"));
    }
    let proof = verification(key.algorithm(), &parsed.signature_algorithm.algorithm)
        .ok_or_else(|| refused("its signature is of another kind than its key"))?;
    UnparsedPublicKey::new(proof, key.der_bytes())
        .verify(info.raw, &parsed.signature_value.data)
        .map_err(|_| refused("its signature does not prove that the sender has the key"))?;
    Ok(key)
}

/// How a signature of this algorithm by a key of this kind is verified.
fn verification(
    key: &rcgen::SignatureAlgorithm,
    algorithm: &Oid<'_>,
) -> Option<&'static dyn VerificationAlgorithm> {
    let sha256 = *algorithm == OID_SIG_ECDSA_WITH_SHA256;
    let sha384 = *algorithm == OID_SIG_ECDSA_WITH_SHA384;
    if *key == rcgen::PKCS_ECDSA_P256_SHA256 {
        return match (sha256, sha384) {
            (true, _) => Some(&signature::ECDSA_P256_SHA256_ASN1),
            (_, true) => Some(&signature::ECDSA_P256_SHA384_ASN1),
            _ => None,
        };
    }
    if *key == rcgen::PKCS_ECDSA_P384_SHA384 {
        return match (sha256, sha384) {
            (true, _) => Some(&signature::ECDSA_P384_SHA256_ASN1),
            (_, true) => Some(&signature::ECDSA_P384_SHA384_ASN1),
            _ => None,
        };
    }
    let ed25519 = *key == rcgen::PKCS_ED25519 && *algorithm == OID_SIG_ED25519;
    ed25519.then_some(&signature::ED25519)
}
