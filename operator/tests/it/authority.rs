//! A small CA whose SVIDs the tests show each other.

use std::{error::Error, sync::Arc, time::Duration};

use aegis_core::{Timestamp, TrustDomain};
use aegis_identity::{
    Bundle, X509Svid,
    source::{Fetched, SvidFetcher, SvidSource},
    system_clock,
};
use futures::future::BoxFuture;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use time::OffsetDateTime;

pub(crate) struct Authority {
    bundle: Bundle,
    issuer: Issuer<'static, KeyPair>,
}

fn date(time: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(i64::try_from(time.as_secs()).unwrap()).unwrap()
}

fn now() -> Timestamp {
    system_clock()()
}

impl Authority {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test");
        params.subject_alt_names = vec![SanType::URI("spiffe://acme.example".try_into().unwrap())];
        params.not_before = date(now().minus(Duration::from_secs(3600)));
        params.not_after = date(now().plus(Duration::from_secs(86_400)));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap().der().clone();
        let domain: TrustDomain = "acme.example".parse().unwrap();
        let bundle = Bundle::new(domain, vec![root], vec![], 1, Duration::from_secs(300)).unwrap();
        Self { bundle, issuer: Issuer::new(params, key) }
    }

    /// A source of the SVID with this ID.
    pub(crate) async fn source(&self, id: &str) -> Arc<SvidSource> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.not_before = date(now().minus(Duration::from_secs(30)));
        params.not_after = date(now().plus(Duration::from_secs(900)));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        let key = KeyPair::generate().unwrap();
        let chain = vec![params.signed_by(&key, &self.issuer).unwrap().der().clone()];
        let svid = X509Svid::new(chain, key.serialize_der().into()).unwrap();
        let fixed = Arc::new(Fixed(Fetched { svid, bundle: self.bundle.clone() }));
        Arc::new(SvidSource::start(fixed, system_clock(), Arc::new(|| 0)).await.unwrap())
    }
}

struct Fixed(Fetched);

impl SvidFetcher for Fixed {
    fn fetch(&self) -> BoxFuture<'_, Result<Fetched, Box<dyn Error + Send + Sync>>> {
        let fetched = self.0.clone();
        Box::pin(async move { Ok(fetched) })
    }
}
