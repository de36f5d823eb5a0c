//! Keys are signed for whom the token says, by the CA and nobody else; what is believed follows.

use std::{pin::Pin, sync::Arc, time::Duration};

use aegis_api::authority::proto::{
    FollowTrustRequest, IssueJwtRequest, IssueRequest, Issued, IssuedJwt, Trust,
    authority_server::{Authority as Service, AuthorityServer},
};
use aegis_identity::{JwtSigner, SvidSource, system_clock, tls::open_server_config};
use aegis_mesh::{Authority, AuthorityConfig, AuthorityError, authority::first_roots, serve_tls};
use futures::{Stream, StreamExt as _};
use parking_lot::Mutex;
use rcgen::CertificateSigningRequestParams;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, service::Routes};

use crate::fixture::{AGENT, Root, domain, listener, until};

pub(crate) const CA: &str = "spiffe://acme.example/aegis/ca";
const TOKEN: &str = "a-token";

#[derive(Clone)]
pub(crate) struct Ca {
    pub(crate) root: Arc<Mutex<Arc<Root>>>,
    pub(crate) trust: watch::Sender<Trust>,
}

pub(crate) fn trust(bundle: &aegis_identity::Bundle, revoked: &[&str]) -> Trust {
    Trust {
        bundle: bundle.to_jwks().unwrap(),
        revoked_serials: vec![],
        revoked_ids: revoked.iter().map(ToString::to_string).collect(),
    }
}

/// The key of a request, which has to ask for nothing else.
fn key(request: &[u8]) -> rcgen::PublicKey {
    let asked = CertificateSigningRequestParams::from_der(&request.to_vec().into()).unwrap();
    assert!(asked.params.subject_alt_names.is_empty() && asked.params.key_usages.is_empty());
    asked.public_key
}

#[tonic::async_trait]
impl Service for Ca {
    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<Issued>, Status> {
        let request = request.into_inner();
        if request.token != TOKEN {
            return Err(Status::permission_denied("nobody has this token"));
        }
        let root = Arc::clone(&self.root.lock());
        let workload_chain = match request.workload_request.as_slice() {
            [] => vec![],
            asked => vec![root.sign(&format!("{AGENT}/workload"), &key(asked))],
        };
        Ok(Response::new(Issued {
            chain: vec![root.sign(AGENT, &key(&request.request))],
            workload_chain,
            trust: Some(self.trust.borrow().clone()),
        }))
    }

    async fn issue_jwt(
        &self,
        request: Request<IssueJwtRequest>,
    ) -> Result<Response<IssuedJwt>, Status> {
        let audience = request.into_inner().audience;
        let (id, now) = (format!("{AGENT}/workload").parse().unwrap(), system_clock()());
        let key = self.root.lock().issuer.key().serialize_der();
        let signer = JwtSigner::from_pkcs8(&key).unwrap();
        let svid = signer.sign(&id, &audience, now, Duration::from_secs(300)).unwrap();
        Ok(Response::new(IssuedJwt { token: svid.token, expires_at: svid.expires.as_micros() }))
    }

    type FollowTrustStream = Pin<Box<dyn Stream<Item = Result<Trust, Status>> + Send>>;

    async fn follow_trust(
        &self,
        _: Request<FollowTrustRequest>,
    ) -> Result<Response<Self::FollowTrustStream>, Status> {
        Ok(Response::new(Box::pin(WatchStream::new(self.trust.subscribe()).map(Ok))))
    }
}

pub(crate) struct World {
    pub(crate) root: Arc<Root>,
    pub(crate) ca: Ca,
    pub(crate) config: AuthorityConfig,
    token: tempfile::NamedTempFile,
    pub(crate) stop: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A CA that shows the SVID of `id`.
pub(crate) async fn world(id: &str) -> World {
    let root = Arc::new(Root::new(1));
    let ca = Ca {
        root: Arc::new(Mutex::new(Arc::clone(&root))),
        trust: watch::Sender::new(trust(&root.bundle, &[])),
    };
    let (listener, address) = listener().await;
    let tls = open_server_config(&root.source(id).await).unwrap();
    let stop = CancellationToken::new();
    let service = Routes::new(AuthorityServer::new(ca.clone())).prepare();
    tokio::spawn(serve_tls(listener, tls, None, service, Duration::ZERO, stop.clone()));
    let token = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(token.path(), format!("{TOKEN}\n")).unwrap();
    let config = AuthorityConfig {
        trust_domain: domain(),
        address: address.to_string(),
        roots: first_roots(&domain(), &root.pem).unwrap(),
        token: token.path().to_owned(),
        application: true,
        clock: system_clock(),
    };
    World { root, ca, config, token, stop }
}

pub(crate) async fn source(
    authority: &Authority,
) -> Result<SvidSource, aegis_identity::source::SourceError> {
    SvidSource::start(Arc::new(authority.clone()), system_clock(), Arc::new(|| 0)).await
}

#[tokio::test]
async fn the_ca_signs_keys_that_are_made_here() {
    let world = world(CA).await;
    let authority = Authority::new(world.config.clone()).unwrap();
    let source = source(&authority).await.unwrap();
    assert_eq!(source.current().unwrap().svid.id().as_str(), AGENT);
    let application = authority.application().borrow().clone().unwrap();
    assert_eq!(application.id().as_str(), format!("{AGENT}/workload"));
    let (jwt, expires) = authority.issue_jwt(vec!["x".into()]).await.unwrap();
    let claims = aegis_identity::jwt::verify_jwt(&jwt, "x", &world.root.bundle, system_clock()());
    assert_eq!(claims.unwrap().id.as_str(), format!("{AGENT}/workload"));
    assert!(expires > system_clock()());
}

#[tokio::test]
async fn only_the_ca_is_told_the_token() {
    // Vouched for by the same root, and not the CA.
    let world = world("spiffe://acme.example/aegis/ledger").await;
    let authority = Authority::new(world.config.clone()).unwrap();
    let error = source(&authority).await.unwrap_err().to_string();
    assert!(error.contains("NotAccepted"), "{error}");
    // The right name, and another root.
    let mut config = world.config.clone();
    config.roots = first_roots(&domain(), &Root::new(1).pem).unwrap();
    let error = source(&Authority::new(config).unwrap()).await.unwrap_err().to_string();
    assert!(error.contains("Untrusted"), "{error}");
}

#[tokio::test]
async fn the_token_is_read_anew_each_time() {
    let world = world(CA).await;
    let authority = Authority::new(world.config.clone()).unwrap();
    std::fs::write(world.token.path(), "stolen").unwrap();
    let error = source(&authority).await.unwrap_err().to_string();
    assert!(error.contains("nobody has this token"), "{error}");
    std::fs::write(world.token.path(), TOKEN).unwrap();
    source(&authority).await.unwrap();
    std::fs::remove_file(world.token.path()).unwrap();
    let error = authority.issue_jwt(vec![]).await.unwrap_err();
    assert!(matches!(error, AuthorityError::Token { .. }), "{error}");
}

#[tokio::test]
async fn trust_and_revocations_are_followed() {
    let world = world(CA).await;
    let authority = Authority::new(world.config.clone()).unwrap();
    let source = Arc::new(source(&authority).await.unwrap());
    let (following, followed) = (authority.clone(), Arc::clone(&source));
    let stop = world.stop.clone();
    tokio::spawn(async move { following.follow(&followed, stop).await });
    until(&mut authority.following(), |following| *following).await;

    let other = "spiffe://acme.example/ns/shop/sa/bot/agent/seller";
    world.ca.trust.send_replace(trust(&world.root.bundle, &[other, "nonsense"]));
    let mut revocations = authority.revocations();
    until(&mut revocations, |revoked| revoked.covers_id(&other.parse().unwrap())).await;
    assert_eq!(revocations.borrow().ids.len(), 1);

    // Other authorities: they are believed at once, and the SVID of the old ones is replaced.
    let next = Arc::new(Root::new(2));
    *world.ca.root.lock() = Arc::clone(&next);
    let mut identity = source.watch();
    let before = identity.borrow().svid.serial().clone();
    world.ca.trust.send_replace(trust(&next.bundle, &[]));
    until(&mut identity, |identity| identity.bundle == next.bundle).await;
    until(&mut identity, |identity| *identity.svid.serial() != before).await;
    assert_eq!(identity.borrow().bundle, next.bundle);

    // Nobody to believe is not taken for the truth.
    let empty = Trust { bundle: b"{\"keys\":[]}".to_vec(), ..Trust::default() };
    world.ca.trust.send_replace(empty);
    until(&mut authority.following(), |following| !following).await;
    assert_eq!(*authority.bundle().borrow(), next.bundle);
}
