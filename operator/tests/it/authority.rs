//! A small CA whose SVIDs the tests show each other, and that CA as a service.

use std::{error::Error, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use aegis_api::authority::proto::{
    FollowTrustRequest, IssueJwtRequest, IssueRequest, Issued, IssuedJwt, Trust,
    authority_server::{Authority as Service, AuthorityServer},
};
use aegis_core::{Timestamp, TrustDomain};
use aegis_identity::{
    Bundle, X509Svid,
    source::{Fetched, SvidFetcher, SvidSource},
    system_clock,
    tls::open_server_config,
};
use aegis_mesh::serve_tls;
use futures::{Stream, StreamExt as _, future::BoxFuture};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PublicKeyData, SanType,
};
use time::OffsetDateTime;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, service::Routes};

pub(crate) struct Authority {
    bundle: Bundle,
    /// The root, in PEM.
    pub(crate) pem: String,
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
        let root = params.self_signed(&key).unwrap();
        let (pem, der) = (root.pem(), root.der().clone());
        let domain: TrustDomain = "acme.example".parse().unwrap();
        let bundle = Bundle::new(domain, vec![der], vec![], 1, Duration::from_secs(300)).unwrap();
        Self { bundle, pem, issuer: Issuer::new(params, key) }
    }

    pub(crate) fn bundle(&self) -> Bundle {
        self.bundle.clone()
    }

    fn sign(&self, id: &str, key: &impl PublicKeyData) -> Vec<u8> {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(id.try_into().unwrap())];
        params.not_before = date(now().minus(Duration::from_secs(30)));
        params.not_after = date(now().plus(Duration::from_secs(900)));
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

    fn trust(&self, revoked: &[&str]) -> Trust {
        Trust {
            bundle: self.bundle.to_jwks().unwrap(),
            revoked_serials: vec![],
            revoked_ids: revoked.iter().map(ToString::to_string).collect(),
        }
    }

    /// This CA as a service. A token is the SPIFFE ID that it is for.
    pub(crate) async fn serve(self: &Arc<Self>, address: SocketAddr) -> Ca {
        self.serve_revoking(address, &[]).await
    }

    /// The same, with these identities revoked from the start.
    pub(crate) async fn serve_revoking(
        self: &Arc<Self>,
        address: SocketAddr,
        revoked: &[&str],
    ) -> Ca {
        let stop = CancellationToken::new();
        let trust = watch::Sender::new(self.trust(revoked));
        let ca = Signs { authority: Arc::clone(self), trust, stop: stop.clone() };
        let listener = TcpListener::bind(address).await.unwrap();
        let address = listener.local_addr().unwrap();
        let tls = open_server_config(&self.source("spiffe://acme.example/aegis/ca").await).unwrap();
        let routes = Routes::new(AuthorityServer::new(ca.clone())).prepare();
        let serving = serve_tls(listener, tls, None, routes, Duration::from_secs(5), stop.clone());
        Ca { address, ca, stop, serving: tokio::spawn(serving) }
    }
}

/// A CA that is served.
pub(crate) struct Ca {
    pub(crate) address: SocketAddr,
    ca: Signs,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Ca {
    /// Has these identities revoked, and no others.
    pub(crate) fn revoke(&self, ids: &[&str]) {
        self.ca.trust.send_replace(self.ca.authority.trust(ids));
    }

    /// Takes it away, with the connections to it.
    pub(crate) async fn end(self) {
        self.stop.cancel();
        self.serving.await.unwrap();
    }
}

#[derive(Clone)]
struct Signs {
    authority: Arc<Authority>,
    trust: watch::Sender<Trust>,
    stop: CancellationToken,
}

#[tonic::async_trait]
impl Service for Signs {
    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<Issued>, Status> {
        let request = request.into_inner();
        if !request.token.starts_with("spiffe://") {
            return Err(Status::permission_denied("nobody has this token"));
        }
        let asked = CertificateSigningRequestParams::from_der(&request.request.into()).unwrap();
        let chain = vec![self.authority.sign(&request.token, &asked.public_key)];
        let trust = Some(self.trust.borrow().clone());
        Ok(Response::new(Issued { chain, workload_chain: vec![], trust }))
    }

    async fn issue_jwt(&self, _: Request<IssueJwtRequest>) -> Result<Response<IssuedJwt>, Status> {
        Err(Status::unimplemented("an operator has no application"))
    }

    type FollowTrustStream = Pin<Box<dyn Stream<Item = Result<Trust, Status>> + Send>>;

    async fn follow_trust(
        &self,
        _: Request<FollowTrustRequest>,
    ) -> Result<Response<Self::FollowTrustStream>, Status> {
        let told = WatchStream::new(self.trust.subscribe()).map(Ok);
        Ok(Response::new(Box::pin(told.take_until(self.stop.clone().cancelled_owned()))))
    }
}

struct Fixed(Fetched);

impl SvidFetcher for Fixed {
    fn fetch(&self) -> BoxFuture<'_, Result<Fetched, Box<dyn Error + Send + Sync>>> {
        let fetched = self.0.clone();
        Box::pin(async move { Ok(fetched) })
    }
}
