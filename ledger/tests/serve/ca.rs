//! A CA that takes whoever has the token for the ledger, and what the tests put around it.

use std::{path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use aegis_api::authority::proto::{
    FollowTrustRequest, IssueJwtRequest, IssueRequest, Issued, IssuedJwt, Trust,
    authority_server::{Authority, AuthorityServer},
};
use aegis_audit::{Draft, Journal, Kind, Location, Options, Outcome, Signer};
use aegis_core::Timestamp;
use aegis_identity::{Bundle, system_clock, tls::open_server_config};
use aegis_mesh::{ShipCounters, Shipper, channel, serve_tls};
use futures::{Stream, StreamExt as _};
use rcgen::CertificateSigningRequestParams;
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, service::Routes};

use crate::fixture::{AGENT, Root, listener, revocations};

const LEDGER: &str = "spiffe://acme.example/aegis/ledger";
const TOKEN: &str = "the-ledgers-token";

#[derive(Clone)]
struct Ca {
    root: Arc<Root>,
    trust: watch::Sender<Trust>,
}

fn trust(bundle: &Bundle, revoked: &[&str]) -> Trust {
    Trust {
        bundle: bundle.to_jwks().unwrap(),
        revoked_serials: vec![],
        revoked_ids: revoked.iter().map(ToString::to_string).collect(),
    }
}

#[tonic::async_trait]
impl Authority for Ca {
    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<Issued>, Status> {
        let request = request.into_inner();
        if request.token != TOKEN {
            return Err(Status::permission_denied("nobody has this token"));
        }
        let asked = CertificateSigningRequestParams::from_der(&request.request.into()).unwrap();
        let chain = vec![self.root.sign(LEDGER, &asked.public_key)];
        let trust = Some(self.trust.borrow().clone());
        Ok(Response::new(Issued { chain, workload_chain: vec![], trust }))
    }

    async fn issue_jwt(&self, _: Request<IssueJwtRequest>) -> Result<Response<IssuedJwt>, Status> {
        Err(Status::unimplemented("a ledger has no application"))
    }

    type FollowTrustStream = Pin<Box<dyn Stream<Item = Result<Trust, Status>> + Send>>;

    async fn follow_trust(
        &self,
        _: Request<FollowTrustRequest>,
    ) -> Result<Response<Self::FollowTrustStream>, Status> {
        Ok(Response::new(Box::pin(WatchStream::new(self.trust.subscribe()).map(Ok))))
    }
}

/// A CA, the files that a ledger is given, and a journal that wants to be there.
pub(crate) struct World {
    pub(crate) root: Arc<Root>,
    pub(crate) folder: TempDir,
    pub(crate) address: String,
    pub(crate) acknowledged: watch::Sender<u64>,
    pub(crate) stop: CancellationToken,
    trust: watch::Sender<Trust>,
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

impl World {
    pub(crate) async fn new() -> Self {
        let root = Arc::new(Root::new(1));
        let trust = watch::Sender::new(trust(&root.bundle, &[]));
        let ca = Ca { root: Arc::clone(&root), trust: trust.clone() };
        let (listener, address) = listener().await;
        let source = root.source("spiffe://acme.example/aegis/ca").await;
        let tls = open_server_config(&source).unwrap();
        let stop = CancellationToken::new();
        let service = Routes::new(AuthorityServer::new(ca)).prepare();
        let serving = serve_tls(listener, tls, None, service, Duration::ZERO, stop.clone());
        tokio::spawn(async move {
            serving.await;
            drop(source);
        });
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("roots.pem"), &root.pem).unwrap();
        std::fs::write(folder.path().join("token"), format!("{TOKEN}\n")).unwrap();
        let acknowledged = watch::Sender::new(0);
        Self { root, folder, address: address.to_string(), acknowledged, stop, trust }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// From now on these are revoked.
    pub(crate) fn revoke(&self, ids: &[&str]) {
        self.trust.send_replace(trust(&self.root.bundle, ids));
    }

    /// A journal of the agent, with so many entries besides its opening one.
    pub(crate) async fn journal(&self, entries: u64) -> Journal {
        let signer = Signer::from_seed("journal", &[9; 32]).unwrap();
        let place = Location::Sqlite(self.path("journal.db"));
        let options = Options::new(format!("{AGENT}#1"), signer);
        let journal = Journal::open(&place, options).await.unwrap();
        fill(&journal, entries).await;
        journal
    }

    /// Ships a journal to a ledger at `address` as `id`, until the world ends.
    pub(crate) async fn ship(
        &self,
        journal: &Journal,
        address: &str,
        id: &str,
    ) -> Arc<ShipCounters> {
        let (source, unaware) = (self.root.source(id).await, revocations());
        let channel = channel(address, "ledger", &source, unaware.subscribe()).unwrap();
        let counters = Arc::<ShipCounters>::default();
        let shipping = Shipper::of(journal).run(
            channel,
            Arc::clone(&counters),
            self.acknowledged.clone(),
            self.stop.child_token(),
        );
        tokio::spawn(async move {
            shipping.await;
            drop((source, unaware));
        });
        counters
    }
}

pub(crate) async fn fill(journal: &Journal, entries: u64) {
    for _ in 0..entries {
        let now: Timestamp = system_clock()();
        let draft = Draft::new(Kind::Decision, now, Outcome::Allow);
        journal.append(draft).await.unwrap().await.unwrap();
    }
}
