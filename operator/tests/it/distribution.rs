//! From the operator's signature to a sidecar, over mutual TLS.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use aegis_api::distribution::{Distributed, Followed, Statement, Verifier, follow};
use aegis_core::{TrustDomain, thresholds::Thresholds};
use aegis_identity::{Revocations, source::SvidSource};
use aegis_mesh::channel;
use aegis_operator::{
    clock,
    distribution::{Content, Publisher, serve},
};
use ed25519_dalek::SigningKey;
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::authority::Authority;

const OPERATOR: &str = "spiffe://acme.example/aegis/operator";
const SIDECAR: &str = "spiffe://acme.example/ns/shop/sa/bot/agent/buyer";
const PATIENCE: Duration = Duration::from_secs(20);

fn domain() -> TrustDomain {
    "acme.example".parse().unwrap()
}

fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

fn content(t_min: u16) -> Content {
    let thresholds: Thresholds =
        serde_json::from_value(serde_json::json!({ "tMin": t_min })).unwrap();
    Content { thresholds, ..Content::default() }
}

fn nothing_revoked() -> watch::Receiver<Arc<Revocations>> {
    // The sender lives as long as the test.
    Box::leak(Box::new(watch::channel(Arc::default()).0)).subscribe()
}

async fn started(
    publisher: &Publisher,
    source: &Arc<SvidSource>,
    address: SocketAddr,
    stop: &CancellationToken,
) -> (SocketAddr, JoinHandle<()>) {
    started_with(publisher, source, nothing_revoked(), address, stop).await
}

async fn started_with(
    publisher: &Publisher,
    source: &Arc<SvidSource>,
    revocations: watch::Receiver<Arc<Revocations>>,
    address: SocketAddr,
    stop: &CancellationToken,
) -> (SocketAddr, JoinHandle<()>) {
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    let (source, publisher, stop) = (Arc::clone(source), publisher.clone(), stop.clone());
    let serving = tokio::spawn(async move {
        serve(listener, &source, revocations, publisher, stop).await.unwrap();
    });
    (address, serving)
}

/// A channel to the operator that shows the source's SVID, as sidecars have it.
fn to(address: SocketAddr, source: &Arc<SvidSource>) -> Channel {
    channel(&address.to_string(), "operator", source, nothing_revoked()).unwrap()
}

/// What a sidecar was told.
pub(crate) enum Heard {
    State(Box<Distributed>),
    Confirmed,
    Lost(String),
}

struct Ear(mpsc::UnboundedSender<Heard>);

impl Followed for Ear {
    fn put(&mut self, statement: &Statement) -> Result<(), String> {
        let heard = match statement {
            Statement::State(state) => Heard::State(state.clone()),
            Statement::Confirmation(_) => Heard::Confirmed,
        };
        self.0.send(heard).map_err(|error| error.to_string())
    }

    fn lost(&mut self, why: &str) {
        let _ = self.0.send(Heard::Lost(why.to_owned()));
    }
}

struct Sidecar {
    heard: mpsc::UnboundedReceiver<Heard>,
    stop: CancellationToken,
    following: JoinHandle<Verifier>,
}

impl Sidecar {
    fn follow(channel: Channel, verifier: Verifier) -> Self {
        let (tell, heard) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        let following = tokio::spawn(async move {
            follow(channel, verifier, clock::now, &mut Ear(tell), stopping).await
        });
        Self { heard, stop, following }
    }

    async fn next(&mut self) -> Heard {
        tokio::time::timeout(PATIENCE, self.heard.recv()).await.unwrap().unwrap()
    }

    /// The next state, whatever comes before.
    async fn state(&mut self) -> (u64, u16) {
        loop {
            if let Heard::State(state) = self.next().await {
                return (state.serial, state.thresholds.t_min.get());
            }
        }
    }

    /// Waits for a state of which this holds.
    async fn until(&mut self, holds: impl Fn(&Distributed) -> bool) -> Distributed {
        loop {
            if let Heard::State(state) = self.next().await
                && holds(&state)
            {
                return *state;
            }
        }
    }

    async fn lost(&mut self) -> String {
        loop {
            if let Heard::Lost(why) = self.next().await {
                return why;
            }
        }
    }

    async fn end(self) -> Verifier {
        self.stop.cancel();
        self.following.await.unwrap()
    }
}

fn verifier() -> Verifier {
    Verifier::new(vec![key().verifying_key()])
}

fn anywhere() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

#[tokio::test]
async fn a_sidecar_follows_and_outlives_the_operator() {
    let authority = Authority::new();
    let (operator, sidecar) = (authority.source(OPERATOR).await, authority.source(SIDECAR).await);
    let publisher = Publisher::new(key());
    let stop = CancellationToken::new();
    let (address, serving) = started(&publisher, &operator, anywhere(), &stop).await;
    let mut sidecar = Sidecar::follow(to(address, &sidecar), verifier());
    // An operator that does not lead says nothing.
    assert!(sidecar.lost().await.contains("does not lead"));
    assert!(publisher.publish(1, content(900)));
    let (first, t_min) = sidecar.state().await;
    assert_eq!(t_min, 900);
    assert!(!publisher.publish(1, content(900)), "the same content is no new state");
    assert!(publisher.publish(1, content(950)));
    let (second, t_min) = sidecar.state().await;
    assert_eq!((second > first, t_min), (true, 950));

    // The operator goes; the sidecar keeps what it has and says that it is alone.
    stop.cancel();
    serving.await.unwrap();
    sidecar.lost().await;

    // Its successor, in a later term, is heard again.
    let successor = Publisher::new(key());
    successor.publish(2, content(960));
    let stop = CancellationToken::new();
    let (_, serving) = started(&successor, &operator, address, &stop).await;
    let (third, t_min) = sidecar.state().await;
    assert_eq!((third > second, t_min), (true, 960));
    assert_eq!(sidecar.end().await.serial(), third);
    stop.cancel();
    serving.await.unwrap();
}

#[tokio::test]
async fn what_is_in_force_is_confirmed_and_nothing_older_is_taken() {
    let authority = Authority::new();
    let (operator, source) = (authority.source(OPERATOR).await, authority.source(SIDECAR).await);
    let publisher = Publisher::new(key());
    publisher.publish(2, content(950));
    let stop = CancellationToken::new();
    let (address, serving) = started(&publisher, &operator, anywhere(), &stop).await;
    let mut sidecar = Sidecar::follow(to(address, &source), verifier());
    sidecar.state().await;
    let knows = sidecar.end().await;
    // Connecting again with the newest state brings a confirmation, not the state.
    let mut again = Sidecar::follow(to(address, &source), knows.clone());
    assert!(matches!(again.next().await, Heard::Confirmed));
    again.end().await;
    stop.cancel();
    serving.await.unwrap();

    let old = Publisher::new(key());
    old.publish(1, content(1));
    let stop = CancellationToken::new();
    let (address, serving) = started(&old, &operator, anywhere(), &stop).await;
    let mut sidecar = Sidecar::follow(to(address, &source), knows.clone());
    let why = sidecar.lost().await;
    assert!(why.contains("an older state is never taken"), "{why}");
    assert_eq!(sidecar.end().await.serial(), knows.serial());
    stop.cancel();
    serving.await.unwrap();
}

#[tokio::test]
async fn strangers_get_nothing_and_impostors_are_not_believed() {
    let (authority, other) = (Authority::new(), Authority::new());
    let operator = authority.source(OPERATOR).await;
    let publisher = Publisher::new(key());
    publisher.publish(1, content(900));
    let stop = CancellationToken::new();
    let (address, serving) = started(&publisher, &operator, anywhere(), &stop).await;
    // An SVID of another CA.
    let mut stranger = Sidecar::follow(to(address, &other.source(SIDECAR).await), verifier());
    stranger.lost().await;
    stranger.end().await;
    // The application's own SVID is no sidecar's.
    let workload = authority.source(&format!("{SIDECAR}/workload")).await;
    let mut workload = Sidecar::follow(to(address, &workload), verifier());
    workload.lost().await;
    workload.end().await;
    // A signature by another key.
    let sidecar = authority.source(SIDECAR).await;
    let another = SigningKey::from_bytes(&[8; 32]).verifying_key();
    let mut sidecar = Sidecar::follow(to(address, &sidecar), Verifier::new(vec![another]));
    assert!(sidecar.lost().await.contains("not signed by the operator"));
    assert_eq!(sidecar.end().await.serial(), 0);
    stop.cancel();
    serving.await.unwrap();
}
