//! Components answer whom they expect, and connections end with the SVID on either side.

use std::{convert::Infallible, sync::Arc, time::Duration};

use aegis_api::journal::proto::{Shipment, ledger_client::LedgerClient};
use aegis_identity::{
    PeerIdentity, PeerRule, Revocations, system_clock,
    tls::{client_config, server_config},
};
use aegis_mesh::{Peers, channel, serve_tls};
use http::{Request, Response};
use hyper::body::Incoming;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;
use tonic::Code;

use crate::fixture::{AGENT, PATIENCE, Root, domain, listener, revocations};

const LEDGER: &str = "spiffe://acme.example/aegis/ledger";

/// Says who asks, and to who asks for `/wait` nothing, ever.
async fn who(request: Request<Incoming>) -> Result<Response<String>, Infallible> {
    if request.uri().path() == "/wait" {
        return std::future::pending().await;
    }
    let peer = request.extensions().get::<PeerIdentity>().unwrap();
    Ok(Response::new(peer.id.to_string()))
}

#[tokio::test]
async fn a_connection_ends_when_its_peer_is_revoked() {
    let root = Root::new(1);
    let (revoked, stop) = (revocations(), CancellationToken::new());
    let server = root.source(LEDGER).await;
    let rule = PeerRule::agents_of(domain());
    let tls = server_config(&server, revoked.subscribe(), rule).unwrap();
    let peers = Peers { revocations: revoked.subscribe(), clock: system_clock() };
    let (listener, address) = listener().await;
    let service = tower::service_fn(who);
    tokio::spawn(serve_tls(listener, tls, Some(peers), service, Duration::ZERO, stop.clone()));

    let client = root.source(AGENT).await;
    let unaware = revocations();
    let tls = client_config(&client, unaware.subscribe(), PeerRule::agents_of(domain()));
    let stream = TcpStream::connect(address).await.unwrap();
    let connector = TlsConnector::from(Arc::new(tls.unwrap()));
    // The server is a component and no agent, which a client's rule tells apart.
    assert!(connector.connect("aegis".try_into().unwrap(), stream).await.is_err());

    let rule = PeerRule::exactly(LEDGER.parse().unwrap());
    let tls = client_config(&client, unaware.subscribe(), rule).unwrap();
    let stream = TcpStream::connect(address).await.unwrap();
    let connector = TlsConnector::from(Arc::new(tls));
    let mut stream = connector.connect("aegis".try_into().unwrap(), stream).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let mut answer = vec![0; 4096];
    let read = tokio::time::timeout(PATIENCE, stream.read(&mut answer)).await.unwrap().unwrap();
    let answer = String::from_utf8_lossy(&answer[..read]).into_owned();
    assert!(answer.ends_with(AGENT), "{answer}");

    // An idle connection would end by itself after a while; one that waits for its answer does not.
    stream.write_all(b"GET /wait HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    let ids = [AGENT.parse().unwrap()].into();
    revoked.send_replace(Arc::new(Revocations { ids, ..Revocations::default() }));
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    assert!(ended.is_ok() && rest.is_empty(), "the connection stays open");
    stop.cancel();
}

#[tokio::test]
async fn a_channel_is_to_one_component() {
    let root = Root::new(1);
    let (revoked, stop) = (revocations(), CancellationToken::new());
    // Somebody in the mesh answers at the ledger's address.
    let server = root.source("spiffe://acme.example/aegis/operator").await;
    let tls = server_config(&server, revoked.subscribe(), PeerRule::agents_of(domain())).unwrap();
    let (listener, address) = listener().await;
    let service = tower::service_fn(who);
    tokio::spawn(serve_tls(listener, tls, None, service, Duration::ZERO, stop.clone()));
    let client = root.source(AGENT).await;
    let ship = async |name: &str| {
        let channel = channel(&address.to_string(), name, &client, revoked.subscribe()).unwrap();
        let shipments = futures::stream::empty::<Shipment>();
        LedgerClient::new(channel).ship(shipments).await.unwrap_err()
    };
    assert_eq!(ship("ledger").await.code(), Code::Unavailable);
    // The operator itself is reached; it is no gRPC server here.
    assert_ne!(ship("operator").await.code(), Code::Unavailable);
    stop.cancel();
}

#[tokio::test]
async fn a_channel_ends_when_its_server_is_revoked() {
    let root = Root::new(1);
    let stop = CancellationToken::new();
    let server = root.source(LEDGER).await;
    let unaware = revocations();
    let tls = server_config(&server, unaware.subscribe(), PeerRule::agents_of(domain())).unwrap();
    let (listener, address) = listener().await;
    // Takes requests, and leaves them open.
    let service = tower::service_fn(|_: Request<Incoming>| async {
        std::future::pending::<Result<Response<String>, Infallible>>().await
    });
    tokio::spawn(serve_tls(listener, tls, None, service, Duration::ZERO, stop.clone()));
    let (client, revoked) = (root.source(AGENT).await, revocations());
    let channel = channel(&address.to_string(), "ledger", &client, revoked.subscribe()).unwrap();
    let ship = || {
        let mut client = LedgerClient::new(channel.clone());
        async move { client.ship(futures::stream::pending::<Shipment>()).await.unwrap_err() }
    };
    let mut open = tokio::spawn(ship());
    let early = tokio::time::timeout(Duration::from_millis(500), &mut open).await;
    assert!(early.is_err(), "the request is open: {early:?}");
    let ids = [LEDGER.parse().unwrap()].into();
    revoked.send_replace(Arc::new(Revocations { ids, ..Revocations::default() }));
    tokio::time::timeout(PATIENCE, open).await.unwrap().unwrap();
    // And none is opened to it any more.
    assert_eq!(tokio::time::timeout(PATIENCE, ship()).await.unwrap().code(), Code::Unavailable);
    stop.cancel();
}
