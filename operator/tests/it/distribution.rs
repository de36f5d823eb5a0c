//! From the operator's signature to a sidecar, over mutual TLS.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use aegis_api::distribution::{Followed, Statement, Verifier, follow};
use aegis_core::{TrustDomain, thresholds::Thresholds};
use aegis_identity::{
    Revocations,
    source::SvidSource,
    tls::{PeerRule, client_config, server_config},
};
use aegis_operator::{
    clock,
    distribution::{Content, Publisher, serve},
};
use ed25519_dalek::SigningKey;
use hyper_util::rt::TokioIo;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::{Channel, Endpoint};

use crate::authority::Authority;

const OPERATOR: &str = "spiffe://acme.example/ns/aegis-system/sa/operator/agent/operator";
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
    let config = server_config(source, nothing_revoked(), PeerRule::agents_of(domain())).unwrap();
    let listener = TcpListener::bind(address).await.unwrap();
    let address = listener.local_addr().unwrap();
    (address, tokio::spawn(serve(listener, config, publisher.clone(), stop.clone())))
}

/// A channel to the operator that shows the source's SVID, and connects anew by itself.
fn channel(address: SocketAddr, source: &Arc<SvidSource>) -> Channel {
    let rule = PeerRule::exactly(OPERATOR.parse().unwrap());
    let mut config = client_config(source, nothing_revoked(), rule).unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let connect = tower::service_fn(move |_: http::Uri| {
        let connector = connector.clone();
        async move {
            let stream = TcpStream::connect(address).await?;
            let name = "operator".try_into().map_err(std::io::Error::other)?;
            Ok::<_, std::io::Error>(TokioIo::new(connector.connect(name, stream).await?))
        }
    });
    Endpoint::from_static("http://operator").connect_with_connector_lazy(connect)
}

enum Heard {
    State(u64, u16),
    Confirmed,
    Lost(String),
}

struct Ear(mpsc::UnboundedSender<Heard>);

impl Followed for Ear {
    fn put(&mut self, statement: &Statement) -> Result<(), String> {
        let heard = match statement {
            Statement::State(state) => Heard::State(state.serial, state.thresholds.t_min.get()),
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
            if let Heard::State(serial, t_min) = self.next().await {
                return (serial, t_min);
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
    let mut sidecar = Sidecar::follow(channel(address, &sidecar), verifier());
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
    let mut sidecar = Sidecar::follow(channel(address, &source), verifier());
    sidecar.state().await;
    let knows = sidecar.end().await;
    // Connecting again with the newest state brings a confirmation, not the state.
    let mut again = Sidecar::follow(channel(address, &source), knows.clone());
    assert!(matches!(again.next().await, Heard::Confirmed));
    again.end().await;
    stop.cancel();
    serving.await.unwrap();

    let old = Publisher::new(key());
    old.publish(1, content(1));
    let stop = CancellationToken::new();
    let (address, serving) = started(&old, &operator, anywhere(), &stop).await;
    let mut sidecar = Sidecar::follow(channel(address, &source), knows.clone());
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
    let mut stranger = Sidecar::follow(channel(address, &other.source(SIDECAR).await), verifier());
    stranger.lost().await;
    stranger.end().await;
    // The application's own SVID is no sidecar's.
    let workload = authority.source(&format!("{SIDECAR}/workload")).await;
    let mut workload = Sidecar::follow(channel(address, &workload), verifier());
    workload.lost().await;
    workload.end().await;
    // A signature by another key.
    let sidecar = authority.source(SIDECAR).await;
    let another = SigningKey::from_bytes(&[8; 32]).verifying_key();
    let mut sidecar = Sidecar::follow(channel(address, &sidecar), Verifier::new(vec![another]));
    assert!(sidecar.lost().await.contains("not signed by the operator"));
    assert_eq!(sidecar.end().await.serial(), 0);
    stop.cancel();
    serving.await.unwrap();
}
