//! From the operator's signature to a sidecar, over mutual TLS.

use std::{net::SocketAddr, sync::Arc};

use aegis_api::distribution::Verifier;
use aegis_core::thresholds::Thresholds;
use aegis_identity::{Revocations, source::SvidSource};
use aegis_operator::{
    approvals::Desk,
    distribution::{Content, Publisher, Served, serve},
};
use ed25519_dalek::SigningKey;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    approvals::Board,
    authority::Authority,
    follower::{Heard, OPERATOR, PATIENCE, SIDECAR, Sidecar, nothing_revoked, to},
};

pub(crate) fn key() -> SigningKey {
    SigningKey::from_bytes(&[7; 32])
}

pub(crate) fn verifier() -> Verifier {
    Verifier::new(vec![key().verifying_key()])
}

fn content(t_min: u16) -> Content {
    let thresholds: Thresholds =
        serde_json::from_value(serde_json::json!({ "tMin": t_min })).unwrap();
    Content { thresholds, ..Content::default() }
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
        let served = Served { publisher, desk: Desk::new(Board::default()) };
        serve(listener, &source, revocations, served, stop).await.unwrap();
    });
    (address, serving)
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

/// The TLS of somebody who has no SVID, as far as reading an answer.
async fn without_svid(authority: &Authority, address: SocketAddr) -> std::io::Result<usize> {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let rule = aegis_identity::PeerRule::exactly(OPERATOR.parse().unwrap());
    let bundle = watch::channel(authority.bundle()).1;
    let clock = aegis_identity::system_clock();
    let mut config =
        aegis_identity::tls::anonymous_client_config(bundle, nothing_revoked(), rule, clock)
            .unwrap();
    config.alpn_protocols = vec![b"h2".to_vec()];
    let stream = TcpStream::connect(address).await?;
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let mut stream = connector.connect("aegis".try_into().unwrap(), stream).await?;
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0").await?;
    tokio::time::timeout(PATIENCE, stream.read(&mut [0; 64])).await.unwrap()
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
    // Nobody at all.
    assert!(without_svid(&authority, address).await.is_err());
    // One of Aegis' own components is no agent.
    let ledger = authority.source("spiffe://acme.example/aegis/ledger").await;
    let mut ledger = Sidecar::follow(to(address, &ledger), verifier());
    ledger.lost().await;
    ledger.end().await;
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

#[tokio::test]
async fn a_stream_is_cut_when_its_follower_is_revoked() {
    let authority = Authority::new();
    let (operator, source) = (authority.source(OPERATOR).await, authority.source(SIDECAR).await);
    let publisher = Publisher::new(key());
    publisher.publish(1, content(900));
    let stop = CancellationToken::new();
    let (revoked, revocations) = watch::channel(Arc::new(Revocations::default()));
    let (address, serving) =
        started_with(&publisher, &operator, revocations, anywhere(), &stop).await;
    let mut sidecar = Sidecar::follow(to(address, &source), verifier());
    sidecar.state().await;
    let ids = [SIDECAR.parse().unwrap()].into();
    revoked.send_replace(Arc::new(Revocations { ids, ..Revocations::default() }));
    sidecar.lost().await;
    // Nor is it let in again.
    let mut again = Sidecar::follow(to(address, &source), verifier());
    again.lost().await;
    assert_eq!(again.end().await.serial(), 0);
    // Another agent is none the worse for it.
    let other = authority.source("spiffe://acme.example/ns/shop/sa/bot/agent/seller").await;
    let mut other = Sidecar::follow(to(address, &other), verifier());
    other.state().await;
    stop.cancel();
    serving.await.unwrap();
}
