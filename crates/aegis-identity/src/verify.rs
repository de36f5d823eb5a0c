//! Checks somebody else's X.509-SVID (SPIFFE X509-SVID §4 and §5).
//!
//! A leaf is refused unless it has exactly one URI SAN that is a SPIFFE ID with a path, no CA bit,
//! a critical key usage with `digitalSignature` and without signing of certificates, both extended
//! key usages, a validity period that covers now (give or take [`CLOCK_SKEW`]), and a path to an
//! authority of its own trust domain.

use aegis_core::{SpiffeId, Timestamp, TrustDomain, identity::InvalidIdentity};
use rustls::pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};
use x509_parser::prelude::{FromDer, GeneralName, X509Certificate};

use crate::{Bundle, CLOCK_SKEW, Revocations, Serial};

/// More certificates than any real chain has.
const MAX_CHAIN: usize = 8;
/// More bytes than any real certificate has.
const MAX_CERTIFICATE_BYTES: usize = 16 * 1024;

/// Who the other end has proven to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PeerIdentity {
    /// Its SPIFFE ID.
    pub id: SpiffeId,
    /// The serial number of the certificate it showed.
    pub serial: Serial,
    /// When that certificate ends; a connection ends with it.
    pub not_after: Timestamp,
}

/// Why an X.509-SVID is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifyError {
    /// Nothing was presented.
    #[error("no certificate was presented")]
    NoCertificate,
    /// Too long a chain, or too large a certificate.
    #[error("the certificate chain is larger than {MAX_CHAIN} certificates of 16 KiB")]
    TooLarge,
    /// Not a certificate, or an extension that cannot be read or stands twice.
    #[error("the certificate cannot be read: {0}")]
    Malformed(String),
    /// None, or several, URI names.
    #[error("the certificate has {0} URI names; an X.509-SVID has exactly one")]
    UriNames(usize),
    /// The URI name is not a SPIFFE ID with a path.
    #[error(transparent)]
    Name(#[from] InvalidIdentity),
    /// The certificate may sign others.
    #[error("the certificate is a signing certificate; it cannot be used to authenticate")]
    SigningCertificate,
    /// Key usage is absent, not critical, or not for signatures.
    #[error("the certificate's key usage must be critical and include digitalSignature")]
    KeyUsage,
    /// Extended key usage lacks server or client authentication.
    #[error("the certificate's extended key usage must include serverAuth and clientAuth")]
    ExtendedKeyUsage,
    /// A chain certificate may not sign.
    #[error("an intermediate certificate lacks the CA bit or keyCertSign")]
    Intermediate,
    /// Not valid yet.
    #[error("the certificate is not valid before {0}; check both clocks")]
    NotYetValid(Timestamp),
    /// No longer valid.
    #[error("the certificate expired at {0}")]
    Expired(Timestamp),
    /// Another trust domain's.
    #[error("{id} is not in the trust domain {expected}")]
    ForeignTrustDomain {
        /// Who it says it is.
        id: SpiffeId,
        /// The bundle's trust domain.
        expected: TrustDomain,
    },
    /// No path to an authority in the bundle.
    #[error("no authority of the trust domain vouches for {id}: {cause}")]
    Untrusted {
        /// Who it says it is.
        id: SpiffeId,
        /// What path validation says.
        cause: String,
    },
    /// Revoked by serial or by SPIFFE ID.
    #[error("{0} was revoked")]
    Revoked(SpiffeId),
    /// A valid identity that this endpoint does not talk to.
    #[error("{0} is not accepted here")]
    NotAccepted(SpiffeId),
}

/// What a leaf says of itself.
pub(crate) struct Leaf {
    pub(crate) id: SpiffeId,
    pub(crate) serial: Serial,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
}

fn malformed(cause: impl std::fmt::Display) -> VerifyError {
    VerifyError::Malformed(cause.to_string())
}

fn parse<'a>(der: &'a CertificateDer<'_>) -> Result<X509Certificate<'a>, VerifyError> {
    if der.len() > MAX_CERTIFICATE_BYTES {
        return Err(VerifyError::TooLarge);
    }
    match X509Certificate::from_der(der) {
        Ok(([], certificate)) => Ok(certificate),
        Ok(_) => Err(malformed("bytes follow it")),
        Err(error) => Err(malformed(error)),
    }
}

pub(crate) fn not_before(certificate: &X509Certificate<'_>) -> Timestamp {
    seconds(certificate.validity().not_before.timestamp())
}

pub(crate) fn not_after(certificate: &X509Certificate<'_>) -> Timestamp {
    seconds(certificate.validity().not_after.timestamp())
}

fn seconds(since_epoch: i64) -> Timestamp {
    Timestamp::from_secs(u64::try_from(since_epoch).unwrap_or(0))
}

impl Leaf {
    /// Reads a leaf and checks its form.
    pub(crate) fn parse(der: &CertificateDer<'_>) -> Result<Self, VerifyError> {
        let certificate = parse(der)?;
        let id = spiffe_id(&certificate)?;
        let constraints = certificate.basic_constraints().map_err(malformed)?;
        if constraints.is_some_and(|c| c.value.ca) {
            return Err(VerifyError::SigningCertificate);
        }
        let usage = certificate.key_usage().map_err(malformed)?.ok_or(VerifyError::KeyUsage)?;
        if usage.value.key_cert_sign() || usage.value.crl_sign() {
            return Err(VerifyError::SigningCertificate);
        }
        if !usage.critical || !usage.value.digital_signature() {
            return Err(VerifyError::KeyUsage);
        }
        let extended = certificate.extended_key_usage().map_err(malformed)?;
        if !extended.is_some_and(|e| e.value.server_auth && e.value.client_auth) {
            return Err(VerifyError::ExtendedKeyUsage);
        }
        Ok(Self {
            id,
            serial: Serial::from_bytes(certificate.raw_serial()),
            not_before: not_before(&certificate),
            not_after: not_after(&certificate),
        })
    }

    fn check_time(&self, now: Timestamp) -> Result<(), VerifyError> {
        if now.plus(CLOCK_SKEW) < self.not_before {
            return Err(VerifyError::NotYetValid(self.not_before));
        }
        if now > self.not_after.plus(CLOCK_SKEW) {
            return Err(VerifyError::Expired(self.not_after));
        }
        Ok(())
    }
}

/// The public key of a certificate, as its subject public key's bytes.
pub(crate) fn public_key(der: &CertificateDer<'_>) -> Result<Vec<u8>, VerifyError> {
    Ok(parse(der)?.public_key().subject_public_key.data.to_vec())
}

fn spiffe_id(certificate: &X509Certificate<'_>) -> Result<SpiffeId, VerifyError> {
    let names = certificate.subject_alternative_name().map_err(malformed)?;
    let uris: Vec<&str> = names
        .iter()
        .flat_map(|names| &names.value.general_names)
        .filter_map(|name| match name {
            GeneralName::URI(uri) => Some(*uri),
            _ => None,
        })
        .collect();
    match uris.as_slice() {
        [uri] => Ok(uri.parse()?),
        others => Err(VerifyError::UriNames(others.len())),
    }
}

fn check_intermediate(der: &CertificateDer<'_>) -> Result<(), VerifyError> {
    let certificate = parse(der)?;
    let signs =
        certificate.key_usage().map_err(malformed)?.is_some_and(|u| u.value.key_cert_sign());
    if certificate.is_ca() && signs { Ok(()) } else { Err(VerifyError::Intermediate) }
}

/// Verifies a chain (leaf first) against its trust domain's bundle and what has been revoked.
///
/// # Errors
/// The first reason to refuse it.
pub fn verify_chain(
    chain: &[CertificateDer<'_>],
    bundle: &Bundle,
    revocations: &Revocations,
    now: Timestamp,
) -> Result<PeerIdentity, VerifyError> {
    let (end_entity, intermediates) = chain.split_first().ok_or(VerifyError::NoCertificate)?;
    if chain.len() > MAX_CHAIN {
        return Err(VerifyError::TooLarge);
    }
    let leaf = Leaf::parse(end_entity)?;
    if leaf.id.trust_domain() != *bundle.trust_domain() {
        let expected = bundle.trust_domain().clone();
        return Err(VerifyError::ForeignTrustDomain { id: leaf.id, expected });
    }
    leaf.check_time(now)?;
    intermediates.iter().try_for_each(check_intermediate)?;
    // The skew allowance is the leaf's alone: an issuer's period contains that of what it issued.
    let at = now.max(leaf.not_before).min(leaf.not_after);
    check_path(end_entity, intermediates, bundle, at)
        .map_err(|cause| VerifyError::Untrusted { id: leaf.id.clone(), cause })?;
    if revocations.covers(&leaf.id, &leaf.serial) {
        return Err(VerifyError::Revoked(leaf.id));
    }
    Ok(PeerIdentity { id: leaf.id, serial: leaf.serial, not_after: leaf.not_after })
}

fn check_path(
    end_entity: &CertificateDer<'_>,
    intermediates: &[CertificateDer<'_>],
    bundle: &Bundle,
    at: Timestamp,
) -> Result<(), String> {
    // A trust anchor has no validity period for webpki, so expired roots are left out here.
    let anchors: Vec<TrustAnchor<'_>> = bundle.anchors_at(at).collect();
    let certificate = EndEntityCert::try_from(end_entity).map_err(|e| e.to_string())?;
    let path = certificate.verify_for_usage(
        webpki::ALL_VERIFICATION_ALGS,
        &anchors,
        intermediates,
        UnixTime::since_unix_epoch(std::time::Duration::from_micros(at.as_micros())),
        KeyUsage::client_auth(),
        None,
        None,
    );
    path.map(|_| ()).map_err(|error| error.to_string())
}
