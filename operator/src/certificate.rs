//! The certificate of the webhooks, made by the operator itself.
//!
//! One CA for all replicas, kept in a Secret. A new CA is trusted before anything signed by it is
//! served, and the old one as long as it could still be met: so that at no moment the API server
//! and a replica disagree.

use std::time::Duration;

use aegis_core::Timestamp;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::{
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject as _},
    sign::CertifiedKey,
};
use time::OffsetDateTime;
use x509_parser::{
    extensions::{GeneralName, ParsedExtension},
    prelude::{FromDer as _, X509Certificate},
};

/// How long a CA lives.
pub const CA_LIFE: Duration = Duration::from_secs(365 * 86_400);
/// How long a serving certificate lives.
pub const LEAF_LIFE: Duration = Duration::from_secs(30 * 86_400);
/// How far clocks may differ.
const SKEW: Duration = Duration::from_secs(300);

/// Why there is no certificate.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// It cannot be made.
    #[error("a webhook certificate cannot be made: {0}")]
    Make(#[from] rcgen::Error),
    /// What the Secret holds cannot be used.
    #[error(
        "the webhook certificate in the Secret cannot be used ({0}); delete the Secret, and the operator makes a new one"
    )]
    Unusable(String),
}

/// A certificate with its key, in PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Pair {
    /// The certificate.
    pub certificate: String,
    /// The key.
    pub key: String,
}

impl std::fmt::Debug for Pair {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pair").finish_non_exhaustive()
    }
}

/// What the Secret holds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// The CA that signs from now on.
    pub ca: Pair,
    /// All CAs that are trusted, newest first.
    pub bundle: Vec<String>,
    /// What replicas serve.
    pub leaf: Pair,
}

/// What to do before the next look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// What the Secret is to hold.
    pub held: Held,
    /// Whether the bundle must be trusted everywhere before the next step.
    pub announce_first: bool,
    /// When to look again.
    pub again_at: Timestamp,
}

/// One step from what is held to what should be. Called again with its own result, at the same
/// time and after the bundle was announced, it comes to rest.
///
/// # Errors
/// When certificates cannot be made.
pub fn step(
    held: Option<&Held>,
    names: &[String],
    now: Timestamp,
) -> Result<Step, CertificateError> {
    let Some(held) = held.filter(|held| held.is_usable()) else {
        let ca = new_ca(now)?;
        let leaf = new_leaf(&ca, names, now)?;
        let held = Held { bundle: vec![ca.certificate.clone()], ca, leaf };
        return Ok(at_rest(held));
    };
    let mut next = held.clone();
    next.bundle.retain(|ca| not_after(ca).is_ok_and(|end| end > now));
    if is_old(&held.ca.certificate, CA_LIFE, now) {
        // Trusted first; what it signs is served only in the next step.
        next.ca = new_ca(now)?;
        next.bundle.insert(0, next.ca.certificate.clone());
        return Ok(Step { held: next, announce_first: true, again_at: now });
    }
    let foreign = !signed_by(&held.leaf.certificate, &held.ca.certificate);
    if foreign || is_old(&held.leaf.certificate, LEAF_LIFE, now) || !serves(&held.leaf, names) {
        next.leaf = new_leaf(&held.ca, names, now)?;
    }
    Ok(at_rest(next))
}

fn at_rest(held: Held) -> Step {
    let renewal = |pem: &str, life: Duration| {
        not_after(pem).map_or(Timestamp::from_secs(0), |end| end.minus(life / 3))
    };
    let again_at =
        renewal(&held.ca.certificate, CA_LIFE).min(renewal(&held.leaf.certificate, LEAF_LIFE));
    Step { held, announce_first: false, again_at }
}

impl Held {
    fn is_usable(&self) -> bool {
        !self.bundle.is_empty()
            && KeyPair::from_pem(&self.ca.key).is_ok()
            && not_after(&self.ca.certificate).is_ok()
            && self.leaf.certified().is_ok()
    }

    /// The bundle as one PEM text, for `caBundle`.
    #[must_use]
    pub fn bundle_pem(&self) -> String {
        self.bundle.concat()
    }
}

impl Pair {
    /// As rustls serves it.
    ///
    /// # Errors
    /// When certificate or key cannot be read.
    pub fn certified(&self) -> Result<CertifiedKey, CertificateError> {
        let unusable = |error: String| CertificateError::Unusable(error);
        let chain = CertificateDer::pem_slice_iter(self.certificate.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|error| unusable(error.to_string()))?;
        let key = PrivateKeyDer::from_pem_slice(self.key.as_bytes())
            .map_err(|error| unusable(error.to_string()))?;
        let key = any_supported_type(&key).map_err(|error| unusable(error.to_string()))?;
        let certified = CertifiedKey::new(chain, key);
        certified.keys_match().map_err(|error| unusable(error.to_string()))?;
        Ok(certified)
    }
}

fn date(time: Timestamp) -> OffsetDateTime {
    let seconds = i64::try_from(time.as_secs()).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds).unwrap_or(OffsetDateTime::UNIX_EPOCH)
}

fn new_ca(now: Timestamp) -> Result<Pair, CertificateError> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, format!("aegis webhooks {}", now.as_secs()));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_before = date(now.minus(SKEW));
    params.not_after = date(now.plus(CA_LIFE));
    let certificate = params.self_signed(&key)?.pem();
    Ok(Pair { certificate, key: key.serialize_pem() })
}

fn new_leaf(ca: &Pair, names: &[String], now: Timestamp) -> Result<Pair, CertificateError> {
    let issuer = Issuer::from_ca_cert_pem(&ca.certificate, KeyPair::from_pem(&ca.key)?)?;
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names.to_vec())?;
    params.is_ca = IsCa::ExplicitNoCa;
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    params.not_before = date(now.minus(SKEW));
    params.not_after = date(now.plus(LEAF_LIFE));
    let certificate = params.signed_by(&key, &issuer)?.pem();
    Ok(Pair { certificate, key: key.serialize_pem() })
}

/// Whether less than a third of its life is left.
fn is_old(pem: &str, life: Duration, now: Timestamp) -> bool {
    not_after(pem).is_ok_and(|end| end.minus(life / 3) <= now)
}

fn der(pem: &str) -> Result<CertificateDer<'static>, CertificateError> {
    CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|error| CertificateError::Unusable(error.to_string()))
}

fn not_after(pem: &str) -> Result<Timestamp, CertificateError> {
    let der = der(pem)?;
    let (_, certificate) = X509Certificate::from_der(&der)
        .map_err(|error| CertificateError::Unusable(error.to_string()))?;
    let seconds = certificate.validity().not_after.timestamp();
    Ok(Timestamp::from_secs(u64::try_from(seconds).unwrap_or(0)))
}

/// Whether this CA is the one that signed, by the identifiers of their keys.
fn signed_by(leaf: &str, ca: &str) -> bool {
    let identifier = |pem: &str, of_issuer: bool| {
        let der = der(pem).ok()?;
        let (_, certificate) = X509Certificate::from_der(&der).ok()?;
        certificate.extensions().iter().find_map(|extension| match extension.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(issuer) if of_issuer => {
                issuer.key_identifier.as_ref().map(|id| id.0.to_vec())
            }
            ParsedExtension::SubjectKeyIdentifier(id) if !of_issuer => Some(id.0.to_vec()),
            _ => None,
        })
    };
    let issuer = identifier(leaf, true);
    issuer.is_some() && issuer == identifier(ca, false)
}

/// Whether a certificate is for these names.
fn serves(leaf: &Pair, names: &[String]) -> bool {
    let Ok(der) = der(&leaf.certificate) else { return false };
    let Ok((_, certificate)) = X509Certificate::from_der(&der) else { return false };
    let Ok(Some(extension)) = certificate.subject_alternative_name() else { return false };
    let has = |name: &String| {
        extension
            .value
            .general_names
            .iter()
            .any(|one| matches!(one, GeneralName::DNSName(dns) if dns == name))
    };
    names.iter().all(has)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
    const DAY: Duration = Duration::from_secs(86_400);

    fn names() -> Vec<String> {
        vec!["aegis-operator.aegis-system.svc".into()]
    }

    #[test]
    fn what_is_made_comes_to_rest() {
        let first = step(None, &names(), NOW).unwrap();
        assert!(!first.announce_first);
        let again = step(Some(&first.held), &names(), NOW).unwrap();
        assert_eq!(again.held, first.held);
        assert_eq!(again.again_at, NOW.plus(LEAF_LIFE - LEAF_LIFE / 3));
    }

    #[test]
    fn a_serving_certificate_is_renewed_under_the_same_ca() {
        let first = step(None, &names(), NOW).unwrap().held;
        let later = step(Some(&first), &names(), NOW.plus(21 * DAY)).unwrap();
        assert_ne!(later.held.leaf, first.leaf);
        assert_eq!((&later.held.ca, &later.held.bundle), (&first.ca, &first.bundle));
        let other = step(Some(&first), &["other.svc".into()], NOW).unwrap();
        assert!(serves(&other.held.leaf, &["other.svc".into()]));
    }

    /// A new CA is trusted first, with the old one, and only then serves.
    #[test]
    fn a_new_ca_is_trusted_before_it_serves() {
        let first = step(None, &names(), NOW).unwrap().held;
        let due = NOW.plus(CA_LIFE - CA_LIFE / 3);
        let announced = step(Some(&first), &names(), due).unwrap();
        assert!(announced.announce_first);
        assert_eq!(announced.held.leaf, first.leaf);
        assert_eq!(announced.held.bundle.len(), 2);
        let served = step(Some(&announced.held), &names(), due).unwrap();
        assert!(!served.announce_first);
        assert!(signed_by(&served.held.leaf.certificate, &announced.held.ca.certificate));
        assert_eq!(served.held.bundle.len(), 2);
        let after = step(Some(&served.held), &names(), NOW.plus(CA_LIFE + DAY)).unwrap();
        assert_eq!(after.held.bundle, [announced.held.ca.certificate]);
    }

    #[test]
    fn what_cannot_be_used_is_made_anew() {
        let mut held = step(None, &names(), NOW).unwrap().held;
        held.leaf.key = step(None, &names(), NOW).unwrap().held.leaf.key;
        assert!(held.leaf.certified().is_err());
        assert!(step(Some(&held), &names(), NOW).unwrap().held.leaf.certified().is_ok());
    }
}
