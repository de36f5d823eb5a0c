//! The kubelet's gRPC probes: what was declared is asked of the application, and nothing else comes in
//! by HTTP/2.

use std::net::{IpAddr, SocketAddr};

use aegis_sidecar::transparent::{Ports, Probe};
use http::StatusCode;
use tokio::{
    io::AsyncWriteExt as _,
    net::{TcpListener, TcpSocket, TcpStream},
};
use tonic::transport::{Channel, Endpoint};
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

use crate::{
    mesh::{Authority, LAX, NODE, Pod, SERVER, exchange, get},
    upstream::{Upstream, json as answer},
    world::PATIENCE,
};

/// An application that tells its health by gRPC.
async fn healthy() -> SocketAddr {
    let (reporter, service) = tonic_health::server::health_reporter();
    reporter.set_service_status("shop", tonic_health::ServingStatus::Serving).await;
    reporter.set_service_status("cellar", tonic_health::ServingStatus::NotServing).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
    let server = tonic::transport::Server::builder().add_service(service);
    tokio::spawn(server.serve_with_incoming(incoming));
    address
}

/// As the kubelet connects.
async fn dial(pod: &Pod) -> Result<HealthClient<Channel>, tonic::transport::Error> {
    let endpoint = Endpoint::from_shared(format!("http://{}", pod.inbound))?;
    endpoint.connect().await.map(HealthClient::new)
}

#[tokio::test]
async fn the_kubelet_asks_by_grpc_what_was_declared() {
    let application = healthy().await;
    let port = application.port();
    let declared = |service: &str| Probe { port, path: None, grpc: Some(service.into()) };
    let probes = vec![declared("shop"), declared("cellar"), declared("gone")];
    let ports = Ports { probes, ..Ports::default() };
    let pod = Pod::start(&Authority::new(), SERVER, LAX, ports).await;
    pod.destination.set(application).unwrap();
    let connect = async || dial(&pod).await.unwrap();
    let check = async |service: &str| {
        let asked = HealthCheckRequest { service: service.into() };
        let told = tokio::time::timeout(PATIENCE, connect().await.check(asked)).await.unwrap();
        told.map(|answer| answer.into_inner().status).map_err(|status| status.code())
    };
    assert_eq!(check("shop").await, Ok(1));
    assert_eq!(check("cellar").await, Ok(2));
    assert_eq!(check("gone").await, Err(tonic::Code::NotFound), "the application does not know it");
    assert_eq!(check("").await, Err(tonic::Code::PermissionDenied), "nobody has declared it");
    let watched = HealthCheckRequest { service: "shop".into() };
    let seen = async {
        // A refusal that is no gRPC message shows when the stream is read.
        let mut stream = connect().await.watch(watched).await.ok()?.into_inner();
        stream.message().await.ok().flatten()
    };
    assert_eq!(tokio::time::timeout(PATIENCE, seen).await.unwrap(), None, "a probe only checks");
    assert_eq!(pod.strangers().await, ["identity_missing"]);
}

/// What is no probe stays outside: a port without one, and whatever else speaks HTTP/2.
#[tokio::test]
async fn nothing_else_comes_in_by_http2() {
    let application = healthy().await;
    let pod = Pod::start(&Authority::new(), SERVER, LAX, Ports::default()).await;
    pod.destination.set(application).unwrap();
    let asked = async {
        let mut client = dial(&pod).await.ok()?;
        client.check(HealthCheckRequest { service: "shop".into() }).await.ok()
    };
    assert!(tokio::time::timeout(PATIENCE, asked).await.unwrap().is_none());
    assert_eq!(pod.strangers().await, ["identity_missing"]);
}

async fn connect_from(from: IpAddr, to: SocketAddr) -> TcpStream {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::new(from, 0)).unwrap();
    socket.connect(to).await.unwrap()
}

/// Whoever reaches the pod can hold all places that there are for those who have proven nothing.
#[tokio::test]
async fn the_kubelet_finds_a_place_when_strangers_hold_all() {
    let application = Upstream::start().await;
    application.answers(|_| async { answer(200, &serde_json::json!({})) });
    let port = application.address.port();
    let probes = vec![Probe { port, path: Some("/healthz".into()), grpc: None }];
    let pod =
        Pod::start(&Authority::new(), SERVER, LAX, Ports { probes, ..Ports::default() }).await;
    pod.destination.set(application.address).unwrap();
    let mut held = Vec::new();
    for last in 1..=9 {
        for _ in 0..40 {
            // The head of a request that never ends.
            let mut stream = connect_from([127, 0, 1, last].into(), pod.inbound).await;
            stream.write_all(b"GET /healthz HTTP/1.1\r\nhost: ").await.unwrap();
            held.push(stream);
        }
    }
    let refused = async {
        loop {
            let stranger = connect_from([127, 0, 2, 1].into(), pod.inbound).await;
            let (mut sender, connection) =
                hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stranger))
                    .await
                    .unwrap();
            tokio::spawn(connection);
            if sender.send_request(get("/healthz")).await.is_err() {
                return;
            }
        }
    };
    tokio::time::timeout(PATIENCE, refused).await.unwrap();
    for _ in 0..3 {
        let (status, _) = exchange(connect_from(NODE, pod.inbound).await, get("/healthz")).await;
        assert_eq!(status, StatusCode::OK);
    }
    assert!(pod.strangers().await.contains(&"overloaded".to_owned()));
}
