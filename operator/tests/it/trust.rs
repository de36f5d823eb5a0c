//! From the ledger's fold to sidecars: what agents are trusted.

use std::{net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use aegis_api::{
    distribution::{Tightened, ToldTrust},
    trust::{
        Weighing,
        proto::{
            self, Changes, FollowRequest, Posterior, Weighed,
            trust_server::{Trust as Service, TrustServer},
        },
    },
};
use aegis_core::{AgentId, thresholds::Thresholds, trust::Trust};
use aegis_identity::{PeerRule, tls::server_config};
use aegis_mesh::serve_tls;
use aegis_operator::{
    distribution::Content,
    trust::{Pace, follow},
};
use futures::{Stream, StreamExt as _};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, service::Routes};

use crate::{
    authority::Authority,
    distribution::verifier,
    follower::{OPERATOR, PATIENCE, SIDECAR, Sidecar, nothing_revoked, to},
    mesh::{Operator, roots, unused},
};

fn agent(name: &str) -> AgentId {
    format!("spiffe://acme.example/ns/shop/sa/bot/agent/{name}").parse().unwrap()
}

fn posterior(name: &str, a: u64) -> Posterior {
    Posterior::of(&agent(name), &Trust { a: a * 1_000_000, ..Trust::default() })
}

fn changes(as_of: u64, agents: &[(&str, u64)]) -> Changes {
    let agents = agents.iter().map(|(name, a)| posterior(name, *a)).collect();
    Changes { as_of, agents, more: false }
}

fn told(trust: &ToldTrust) -> Vec<(&str, u64)> {
    trust.agents.iter().map(|one| (one.id.name(), one.trust.a / 1_000_000)).collect()
}

/// A ledger that says what a test has it say.
#[derive(Clone)]
struct Ledger {
    says: watch::Sender<Changes>,
    /// By what it was told to weigh, each time.
    weighs: watch::Sender<Vec<Weighing>>,
    stop: CancellationToken,
}

#[tonic::async_trait]
impl Service for Ledger {
    type FollowStream = Pin<Box<dyn Stream<Item = Result<Changes, Status>> + Send>>;

    async fn follow(
        &self,
        _: Request<FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        let told = WatchStream::new(self.says.subscribe()).map(Ok);
        Ok(Response::new(Box::pin(told.take_until(self.stop.clone().cancelled_owned()))))
    }

    async fn weigh(&self, told: Request<proto::Weighing>) -> Result<Response<Weighed>, Status> {
        let told = told.into_inner().read().unwrap();
        self.weighs.send_modify(|weighs| weighs.push(told));
        Ok(Response::new(Weighed {}))
    }
}

impl Ledger {
    /// Answers the operator as `id` at `address`.
    async fn serve(
        authority: &Authority,
        id: &str,
        address: SocketAddr,
        says: Changes,
    ) -> (Self, JoinHandle<()>) {
        let (says, stop) = (watch::Sender::new(says), CancellationToken::new());
        let ledger = Self { says, weighs: watch::Sender::default(), stop: stop.clone() };
        let source = authority.source(id).await;
        let rule = PeerRule::exactly(OPERATOR.parse().unwrap());
        let mut tls = server_config(&source, nothing_revoked(), rule).unwrap();
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let listener = TcpListener::bind(address).await.unwrap();
        let routes = Routes::new(TrustServer::new(ledger.clone())).prepare();
        let serving = tokio::spawn(async move {
            serve_tls(listener, tls, None, routes, Duration::ZERO, stop).await;
            drop(source);
        });
        (ledger, serving)
    }

    async fn end(self, serving: JoinHandle<()>) {
        self.stop.cancel();
        serving.await.unwrap();
    }
}

/// An operator in the mesh that follows the ledger at `address`.
async fn started(
    authority: &Arc<Authority>,
    address: SocketAddr,
) -> (Operator, mpsc::UnboundedReceiver<AgentId>) {
    let ca = authority.serve(unused().await).await;
    let operator = Operator::start(ca.address).await;
    operator.roots.send_replace(Some(roots(authority)));
    operator.joined(&authority.bundle()).await;
    // The CA stays for as long as the test does.
    std::mem::forget(ca);
    let (pace, due) = Pace::new();
    let telling = (operator.publisher.clone(), 1);
    let (members, metrics) = (operator.mesh.member.clone(), operator.metrics.clone());
    let stop = operator.stop.clone();
    tokio::spawn(follow(address.to_string(), members, telling, pace, metrics, stop));
    (operator, due)
}

#[tokio::test]
async fn what_the_ledger_has_folded_reaches_sidecars_once() {
    let authority = Arc::new(Authority::new());
    let address = unused().await;
    let (operator, mut due) = started(&authority, address).await;
    operator.publisher.publish(1, Content::default());
    let source = authority.source(SIDECAR).await;
    let mut sidecar = Sidecar::follow(to(operator.address, &source), verifier());
    sidecar.state().await;

    let ledger = "spiffe://acme.example/aegis/ledger";
    let all = changes(7, &[("buyer", 3), ("seller", 4)]);
    let (serves, serving) = Ledger::serve(&authority, ledger, address, all).await;
    let first = sidecar.trust().await;
    assert_eq!((told(&first), first.since, first.as_of), (vec![("buyer", 3), ("seller", 4)], 0, 7));
    operator.until(|operator| operator.gauge("ledger") == 1).await;
    let looked_at = tokio::time::timeout(PATIENCE, due.recv()).await.unwrap();
    assert_eq!(looked_at, Some(agent("buyer")), "its AgentIdentity is looked at");

    serves.says.send_replace(changes(9, &[("seller", 2)]));
    let second = sidecar.trust().await;
    assert_eq!((told(&second), second.since), (vec![("seller", 2)], first.number));
    // Who comes again is told what he has missed, and who is new, all.
    let known = sidecar.end().await;
    serves.says.send_replace(changes(12, &[("buyer", 1)]));
    let mut again = Sidecar::follow(to(operator.address, &source), known);
    assert_eq!(told(&again.trust().await), [("buyer", 1)]);
    let mut new = Sidecar::follow(to(operator.address, &source), verifier());
    let whole = new.trust().await;
    assert_eq!((told(&whole), whole.as_of), (vec![("buyer", 1), ("seller", 2)], 12));

    // The ledger goes, and comes back with another fold: only what differs is told.
    serves.end(serving).await;
    operator.until(|operator| operator.gauge("ledger") == 0).await;
    let all = changes(15, &[("buyer", 1), ("seller", 5)]);
    let (serves, serving) = Ledger::serve(&authority, ledger, address, all).await;
    assert_eq!(told(&again.trust().await), [("seller", 5)]);
    serves.end(serving).await;
}

/// What an agent's sidecar records of thresholds does not count: the operator says them, once, and again
/// when they change or the ledger is another.
#[tokio::test]
async fn the_ledger_is_told_by_what_to_weigh() {
    let authority = Arc::new(Authority::new());
    let address = unused().await;
    let (operator, _due) = started(&authority, address).await;
    let strict = Thresholds { evidence_cap: 9, ..Thresholds::default() };
    let shop = Tightened { namespace: "shop".into(), thresholds: strict.clone() };
    operator.publisher.publish(1, Content { tightened: vec![shop], ..Content::default() });
    let ledger = "spiffe://acme.example/aegis/ledger";
    let (serves, serving) = Ledger::serve(&authority, ledger, address, changes(7, &[])).await;
    let weighed = async |ledger: &Ledger, count: usize| {
        let mut weighs = ledger.weighs.subscribe();
        let told = weighs.wait_for(|weighs| weighs.len() == count);
        tokio::time::timeout(PATIENCE, told).await.unwrap().unwrap().last().cloned().unwrap()
    };
    let mut expected = Weighing::default();
    expected.namespaces.insert("shop".into(), strict.clone());
    assert_eq!(weighed(&serves, 1).await, expected);
    let content = Content { thresholds: strict.clone(), ..Content::default() };
    operator.publisher.publish(1, content.clone());
    expected = Weighing { cluster: strict, ..Weighing::default() };
    assert_eq!(weighed(&serves, 2).await, expected);
    let revoked = vec![agent("buyer")];
    operator.publisher.publish(1, Content { revoked, ..content });
    serves.end(serving).await;
    operator.until(|operator| operator.gauge("ledger") == 0).await;
    let (serves, serving) = Ledger::serve(&authority, ledger, address, changes(7, &[])).await;
    assert_eq!(weighed(&serves, 1).await, expected, "nothing had changed for the one before");
    serves.end(serving).await;
}

/// Passes connections on to `to`, and counts them.
async fn counting(at: SocketAddr, to: SocketAddr) -> (watch::Receiver<u32>, JoinHandle<()>) {
    let listener = TcpListener::bind(at).await.unwrap();
    let (counted, count) = watch::channel(0);
    let passing = tokio::spawn(async move {
        loop {
            let (mut from, _) = listener.accept().await.unwrap();
            counted.send_modify(|count| *count += 1);
            tokio::spawn(async move {
                let mut to = TcpStream::connect(to).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut from, &mut to).await;
            });
        }
    });
    (count, passing)
}

#[tokio::test]
async fn nobody_else_says_what_agents_are_trusted() {
    let authority = Arc::new(Authority::new());
    let address = unused().await;
    let (operator, _due) = started(&authority, address).await;
    for (authority, id) in [
        (&authority, SIDECAR),
        (&authority, "spiffe://acme.example/aegis/ca"),
        (&Arc::new(Authority::new()), "spiffe://acme.example/aegis/ledger"),
    ] {
        let (own, lies) = (unused().await, changes(7, &[("buyer", 900)]));
        let (serves, serving) = Ledger::serve(authority, id, own, lies).await;
        let (mut tries, passing) = counting(address, own).await;
        // With the second try, the first one has failed.
        let tried = tries.wait_for(|tries| *tries >= 2);
        tokio::time::timeout(PATIENCE, tried).await.unwrap().unwrap();
        assert_eq!(operator.gauge("ledger"), 0, "{id}");
        assert_eq!(operator.publisher.trust_of(&agent("buyer")), None, "{id}");
        passing.abort();
        let _ = passing.await;
        serves.end(serving).await;
    }
    let truth = changes(7, &[("buyer", 3)]);
    let ledger = "spiffe://acme.example/aegis/ledger";
    let (serves, serving) = Ledger::serve(&authority, ledger, address, truth).await;
    operator.until(|operator| operator.publisher.trust_of(&agent("buyer")).is_some()).await;
    assert_eq!(operator.publisher.trust_of(&agent("buyer")).unwrap().trust.a, 3_000_000);
    serves.end(serving).await;
}
