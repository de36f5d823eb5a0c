//! A CA that signs what it is asked to, and the sources of its SVIDs.

use std::{error::Error, net::SocketAddr, sync::Arc, time::Duration};

use aegis_core::{Timestamp, TrustDomain};
use aegis_identity::{
    Bundle, Fetched, JwtSigner, Revocations, SvidFetcher, SvidSource, X509Svid, system_clock,
};
use futures::future::BoxFuture;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType,
};
use time::OffsetDateTime;
use tokio::{net::TcpListener, sync::watch};

pub(crate) const AGENT: &str = "spiffe://acme.example/ns/shop/sa/bot/agent/buyer";
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) struct Root {
    pub(crate) bundle: Bundle,
    pub(crate) pem: String,
    /// It signs JWT-SVIDs too.
    pub(crate) issuer: Issuer<'static, KeyPair>,
}

fn date(time: Timestamp) -> OffsetDateTime {
    OffsetDateTime::from_unix_timestamp(i64::try_from(time.as_secs()).unwrap()).unwrap()
}

pub(crate) fn domain() -> TrustDomain {
    "acme.example".parse().unwrap()
}

impl Root {
    pub(crate) fn new(sequence: u64) -> Self {
        let now = system_clock()();
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, "test");
        params.subject_alt_names = vec![SanType::URI("spiffe://acme.example".try_into().unwrap())];
        params.not_before = date(now.minus(Duration::from_secs(3600)));
        params.not_after = date(now.plus(Duration::from_secs(86_400)));
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
        let key = KeyPair::generate().unwrap();
        let root = params.self_signed(&key).unwrap();
        let (pem, der) = (root.pem(), root.der().clone());
        let hint = Duration::from_secs(300);
        let jwt = JwtSigner::from_pkcs8(&key.serialize_der()).unwrap();
        let keys = vec![jwt.public().clone()];
        let bundle = Bundle::new(domain(), vec![der], keys, sequence, hint).unwrap();
        Self { bundle, pem, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn sign(&self, id: &str, key: &impl PublicKeyData) -> Vec<u8> {
        let now = system_clock()();
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.not_before = date(now.minus(Duration::from_secs(30)));
        params.not_after = date(now.plus(Duration::from_secs(900)));
        params.is_ca = IsCa::ExplicitNoCa;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        params.signed_by(key, &self.issuer).unwrap().der().to_vec()
    }

    /// A source of the SVID with this ID.
    pub(crate) async fn source(&self, id: &str) -> Arc<SvidSource> {
        let key = KeyPair::generate().unwrap();
        let chain = vec![self.sign(id, &key).into()];
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

pub(crate) async fn listener() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    (listener, address)
}

/// Who is revoked, as the test says.
pub(crate) fn revocations() -> watch::Sender<Arc<Revocations>> {
    watch::Sender::new(Arc::default())
}

/// Waits for a condition on a watched value.
pub(crate) async fn until<T>(watched: &mut watch::Receiver<T>, holds: impl FnMut(&T) -> bool) {
    tokio::time::timeout(PATIENCE, watched.wait_for(holds)).await.unwrap().unwrap();
}
