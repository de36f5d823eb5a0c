//! A small CA that signs whatever a test asks for, also what no honest CA would.

use std::time::Duration;

use aegis_core::{Timestamp, TrustDomain};
use aegis_identity::{Bundle, X509Svid};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls::pki_types::CertificateDer;
use time::OffsetDateTime;

pub(crate) const AGENT: &str = "spiffe://acme.example/ns/shop/sa/bot/agent/buyer";
pub(crate) const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
pub(crate) const TTL: Duration = Duration::from_secs(900);

pub(crate) struct Ca {
    pub(crate) root: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

fn date(time: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(i64::try_from(time.as_secs()).unwrap()).unwrap()
}

pub(crate) fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

/// The parameters of an honest SVID.
pub(crate) fn leaf(id: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.subject_alt_names = vec![uri(id)];
    params.not_before = date(NOW.minus(Duration::from_secs(30)));
    params.not_after = date(NOW.plus(TTL));
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    params.serial_number =
        Some(SerialNumber::from_slice(&rand::random::<[u8; 8]>().map(|b| b | 1)));
    params
}

pub(crate) fn ca_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.subject_alt_names = vec![uri("spiffe://acme.example")];
    params.not_before = date(NOW.minus(Duration::from_secs(3600)));
    params.not_after = date(NOW.plus(Duration::from_secs(7 * 86_400)));
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

impl Ca {
    pub(crate) fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = ca_params(name);
        let root = params.self_signed(&key).unwrap().der().clone();
        Self { root, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn bundle(&self) -> Bundle {
        let domain: TrustDomain = "acme.example".parse().unwrap();
        Bundle::new(domain, vec![self.root.clone()], vec![], 1, Duration::from_secs(300)).unwrap()
    }

    /// A chain of one.
    pub(crate) fn sign(&self, params: &CertificateParams) -> Vec<CertificateDer<'static>> {
        let key = KeyPair::generate().unwrap();
        vec![params.signed_by(&key, &self.issuer).unwrap().der().clone()]
    }

    /// A chain of two, through an intermediate with the given parameters.
    pub(crate) fn sign_through(
        &self,
        intermediate: CertificateParams,
        params: &CertificateParams,
    ) -> Vec<CertificateDer<'static>> {
        let key = KeyPair::generate().unwrap();
        let between = intermediate.signed_by(&key, &self.issuer).unwrap().der().clone();
        let issuer = Issuer::new(intermediate, key);
        let leaf_key = KeyPair::generate().unwrap();
        vec![params.signed_by(&leaf_key, &issuer).unwrap().der().clone(), between]
    }

    pub(crate) fn svid(&self, params: &CertificateParams) -> X509Svid {
        let key = KeyPair::generate().unwrap();
        let chain = vec![params.signed_by(&key, &self.issuer).unwrap().der().clone()];
        X509Svid::new(chain, key.serialize_der().into()).unwrap()
    }
}
