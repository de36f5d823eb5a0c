//! The kubelet's gRPC probes: it has no SVID, so what a pod declares as one is asked of the
//! application, and it gets the status alone.
//!
//! Nothing else is spoken in HTTP/2 with somebody who has proven nothing: another method, another
//! service than the declared one, a larger message and every header end here.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use aegis_core::decision::Reason;
use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tonic::{Status, transport::Endpoint};
use tonic_health::pb::{
    HealthCheckRequest, HealthCheckResponse,
    health_client::HealthClient,
    health_server::{Health, HealthServer},
};
use tower::Service as _;

use super::Transparent;

/// The one method that is answered.
const CHECK: &str = "/grpc.health.v1.Health/Check";
/// How long a probe may take, its connection included; the kubelet has its own, shorter patience.
const PATIENCE: Duration = Duration::from_secs(10);
/// How large a question and an answer may be. Bytes.
const MAX_MESSAGE_BYTES: usize = 1024;
/// How large the head of a question may be. Bytes.
const MAX_HEAD_BYTES: u32 = 8 * 1024;

/// What goes to the kubelet.
type Answer = http_body_util::combinators::UnsyncBoxBody<bytes::Bytes, Status>;

/// Answers the probes of one connection, for a short while.
pub(super) async fn probe(caught: Arc<Transparent>, destination: SocketAddr, stream: TcpStream) {
    let service = service_fn(|request| {
        let caught = Arc::clone(&caught);
        async move { Ok::<_, std::convert::Infallible>(answer(caught, destination, request).await) }
    });
    let serving = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
        .timer(TokioTimer::new())
        .max_concurrent_streams(1)
        .max_header_list_size(MAX_HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service);
    match tokio::time::timeout(PATIENCE, serving).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!(%error, "a probe's connection ended early"),
        Err(_) => tracing::debug!("a probe's connection was open for too long"),
    }
}

async fn answer(
    caught: Arc<Transparent>,
    destination: SocketAddr,
    request: Request<Incoming>,
) -> Response<Answer> {
    if request.uri().path() != CHECK || *request.method() != Method::POST {
        let refused = caught.refuse_stranger(Reason::IdentityMissing);
        return refused.map(|body| body.map_err(|never| match never {}).boxed_unsync());
    }
    let mut server = HealthServer::new(Asked { caught, destination })
        .max_decoding_message_size(MAX_MESSAGE_BYTES);
    let Ok(response) = server.call(request).await;
    response.map(|body| body.boxed_unsync())
}

/// A port that is asked.
struct Asked {
    caught: Arc<Transparent>,
    destination: SocketAddr,
}

#[tonic::async_trait]
impl Health for Asked {
    async fn check(
        &self,
        request: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<HealthCheckResponse>, Status> {
        let service = request.into_inner().service;
        let declared = self.caught.ports.probes.iter().any(|probe| {
            probe.port == self.destination.port() && probe.grpc.as_deref() == Some(&service)
        });
        if !declared {
            drop(self.caught.refuse_stranger(Reason::IdentityMissing));
            return Err(Status::permission_denied(Reason::IdentityMissing.sentence()));
        }
        let status = ask(self.destination, service).await?;
        Ok(tonic::Response::new(HealthCheckResponse { status }))
    }

    type WatchStream = futures::stream::Empty<Result<HealthCheckResponse, Status>>;

    async fn watch(
        &self,
        _: tonic::Request<HealthCheckRequest>,
    ) -> Result<tonic::Response<Self::WatchStream>, Status> {
        Err(Status::unimplemented("probes only check"))
    }
}

/// What the application says of itself; of an error, its code alone.
async fn ask(destination: SocketAddr, service: String) -> Result<i32, Status> {
    let unavailable = |_| Status::unavailable("the application does not answer");
    let endpoint = Endpoint::from_shared(format!("http://{destination}")).map_err(unavailable)?;
    let endpoint = endpoint.connect_timeout(PATIENCE).timeout(PATIENCE);
    let channel = endpoint.connect().await.map_err(unavailable)?;
    let mut client = HealthClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES);
    let asked = client.check(HealthCheckRequest { service }).await;
    let answered = asked.map_err(|status| Status::new(status.code(), ""))?;
    Ok(answered.into_inner().status)
}
