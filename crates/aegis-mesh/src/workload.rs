//! The SPIFFE Workload API: SVIDs and bundles for the application of the agent that asks.
//!
//! Who asks, and what it gets, a [`Source`] says, on every request and before every message of a
//! stream. A request without the `workload.spiffe.io` header is refused. The application gets
//! `…/agent/<name>/workload`, never the SVID with which governed traffic is sent.

mod application;
mod socket;

pub use application::Application;
pub use socket::{ListenError, WorkloadSocket};

use std::{collections::BTreeMap, error::Error, fmt, sync::Arc, time::Duration};

use aegis_api::workload::proto::{
    self,
    spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer},
};
use aegis_core::{SpiffeId, Timestamp};
use aegis_identity::{Bundle, Clock, JwtClaims, JwtError, X509Svid};
use serde_json::Value;
use tokio::{net::UnixStream, sync::mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, service::interceptor::InterceptedService};

use crate::limits::{Held, Hold, Rate};
use socket::Connection;

/// The largest request.
const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// Streams of one holder at a time.
const MAX_STREAMS: usize = 16;
/// Requests of one user: at once, and then per second.
const REQUEST_BURST: u32 = 200;
const REQUESTS_PER_SECOND: u32 = 100;

/// Where SVIDs of applications come from, and who they are for.
pub trait Source: Send + Sync + 'static {
    /// What is known of a connection's other end.
    type Peer: Send + Sync + 'static;
    /// Who was recognised.
    type Agent: Send + Sync;
    /// Tells of changes.
    type Changes: Changes;

    /// Who has just connected.
    ///
    /// # Errors
    /// When the kernel does not say; the connection ends.
    fn connected(&self, stream: &UnixStream) -> Result<Self::Peer, Box<dyn Error + Send + Sync>>;

    /// The user at the other end, for limits on connections and requests.
    fn user(peer: &Self::Peer) -> u32;

    /// What holds streams there, for limits on them: a process, or one connection.
    fn holder(peer: &Self::Peer) -> i64;

    /// Which agent this is now.
    fn recognise(
        &self,
        peer: &Arc<Self::Peer>,
    ) -> impl Future<Output = Result<Self::Agent, Status>> + Send;

    /// The name of the agent's application.
    fn id(&self, agent: &Self::Agent) -> SpiffeId;

    /// Its SVID, what to believe, and when to ask again at the latest.
    fn svid(
        &self,
        agent: &Self::Agent,
    ) -> impl Future<Output = Result<(X509Svid, Bundle, Timestamp), Status>> + Send;

    /// A JWT-SVID for it.
    fn jwt(
        &self,
        agent: &Self::Agent,
        audience: &[String],
    ) -> impl Future<Output = Result<String, Status>> + Send;

    /// Verifies somebody's JWT-SVID.
    ///
    /// # Errors
    /// The first reason to refuse it.
    fn verify_jwt(&self, token: &str, audience: &str) -> Result<JwtClaims, JwtError>;

    /// What to believe.
    fn bundle(&self) -> Bundle;

    /// Tells the time.
    fn clock(&self) -> Clock;

    /// Tells when anything of this may have become another.
    fn changes(&self) -> Self::Changes;
}

/// Tells of changes since they were last looked at.
pub trait Changes: Send + 'static {
    /// What has changed until now is known.
    fn mark_seen(&mut self);

    /// Waits for a change.
    fn changed(&mut self) -> impl Future<Output = ()> + Send;
}

/// The service.
pub(crate) struct WorkloadApi<S>(Arc<Inner<S>>);

impl<S> Clone for WorkloadApi<S> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Inner<S> {
    source: Arc<S>,
    rate: Rate,
    streams: Held<i64>,
    stop: CancellationToken,
}

type Header = fn(Request<()>) -> Result<Request<()>, Status>;
type Messages<T> = ReceiverStream<Result<T, Status>>;

/// SPIFFE Workload Endpoint §4: what a request forged through a confused HTTP client lacks.
fn require_header(request: Request<()>) -> Result<Request<()>, Status> {
    let mut values = request.metadata().get_all("workload.spiffe.io").iter();
    match (values.next().map(|value| value.as_bytes()), values.next()) {
        (Some(b"true"), None) => Ok(request),
        _ => Err(Status::invalid_argument("the header `workload.spiffe.io: true` is missing")),
    }
}

impl<S: Source> WorkloadApi<S> {
    pub(crate) fn new(source: Arc<S>, stop: CancellationToken) -> Self {
        Self(Arc::new(Inner {
            source,
            rate: Rate::new(REQUESTS_PER_SECOND, REQUEST_BURST),
            streams: Held::new(MAX_STREAMS),
            stop,
        }))
    }

    pub(crate) fn into_service(self) -> InterceptedService<SpiffeWorkloadApiServer<Self>, Header> {
        let service =
            SpiffeWorkloadApiServer::new(self).max_decoding_message_size(MAX_REQUEST_BYTES);
        InterceptedService::new(service, require_header)
    }

    /// Who asks, after a look at how often they do.
    fn peer<T>(&self, request: &Request<T>) -> Result<Arc<S::Peer>, Status> {
        let connection = request.extensions().get::<Connection<S::Peer>>();
        let connection = connection.ok_or_else(no_identity)?;
        let peer = Arc::clone(&connection.0);
        if !self.0.rate.take(S::user(&peer)) {
            return Err(Status::resource_exhausted("too many requests; try again in a second"));
        }
        Ok(peer)
    }

    fn hold_stream(&self, peer: &S::Peer) -> Result<Hold<i64>, Status> {
        let hold = self.0.streams.take(S::holder(peer));
        hold.ok_or_else(|| Status::resource_exhausted("this process has too many streams open"))
    }

    /// Sends a message now and whenever it has become another one, until the caller goes away or
    /// is no longer recognised.
    async fn stream<T, F>(
        &self,
        peer: Arc<S::Peer>,
        message: F,
    ) -> Result<Response<Messages<T>>, Status>
    where
        T: PartialEq + Clone + Send + 'static,
        F: AsyncMessage<T, S>,
    {
        let hold = self.hold_stream(&peer)?;
        let (send, messages) = mpsc::channel(1);
        let api = self.clone();
        tokio::spawn(async move {
            let _hold = hold;
            let mut changes = api.0.source.changes();
            let mut last = None;
            loop {
                changes.mark_seen();
                let (next, again_at) = match message.make(&api, &peer).await {
                    Ok(made) => made,
                    Err(status) => {
                        let _ = send.send(Err(status)).await;
                        return;
                    }
                };
                if last.as_ref() != Some(&next) {
                    last = Some(next.clone());
                    if send.send(Ok(next)).await.is_err() {
                        return;
                    }
                }
                let wait = again_at.since((api.0.source.clock())()).max(Duration::from_secs(1));
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    () = changes.changed() => {}
                    () = send.closed() => return,
                    () = api.0.stop.cancelled() => {
                        let _ = send.send(Err(Status::unavailable("the Workload API is stopping"))).await;
                        return;
                    }
                }
            }
        });
        Ok(Response::new(ReceiverStream::new(messages)))
    }
}

/// Makes one message of a stream, and says when to make the next at the latest.
trait AsyncMessage<T, S: Source>: Send + 'static {
    fn make(
        &self,
        api: &WorkloadApi<S>,
        peer: &Arc<S::Peer>,
    ) -> impl Future<Output = Result<(T, Timestamp), Status>> + Send;
}

/// The three kinds of stream.
struct X509Svids;
struct X509Bundles;
struct JwtBundles;

fn bundle_key(bundle: &Bundle) -> String {
    bundle.trust_domain().uri()
}

/// A bundle changes only with an event, but who may have it is looked at now and then too.
fn bundle_again<S: Source>(source: &S, bundle: &Bundle) -> Timestamp {
    (source.clock())().plus(bundle.refresh_hint())
}

impl<S: Source> AsyncMessage<proto::X509svidResponse, S> for X509Svids {
    async fn make(
        &self,
        api: &WorkloadApi<S>,
        peer: &Arc<S::Peer>,
    ) -> Result<(proto::X509svidResponse, Timestamp), Status> {
        let agent = api.0.source.recognise(peer).await?;
        let (svid, bundle, again_at) = api.0.source.svid(&agent).await?;
        let message = proto::X509svid {
            spiffe_id: svid.id().to_string(),
            x509_svid: svid.chain_der(),
            x509_svid_key: svid.key_pkcs8().to_vec(),
            bundle: bundle.certificates_der(),
            hint: String::new(),
        };
        Ok((proto::X509svidResponse { svids: vec![message], ..Default::default() }, again_at))
    }
}

impl<S: Source> AsyncMessage<proto::X509BundlesResponse, S> for X509Bundles {
    async fn make(
        &self,
        api: &WorkloadApi<S>,
        peer: &Arc<S::Peer>,
    ) -> Result<(proto::X509BundlesResponse, Timestamp), Status> {
        api.0.source.recognise(peer).await?;
        let bundle = api.0.source.bundle();
        let bundles = [(bundle_key(&bundle), bundle.certificates_der())].into();
        let message = proto::X509BundlesResponse { bundles, ..Default::default() };
        Ok((message, bundle_again(&*api.0.source, &bundle)))
    }
}

impl<S: Source> AsyncMessage<proto::JwtBundlesResponse, S> for JwtBundles {
    async fn make(
        &self,
        api: &WorkloadApi<S>,
        peer: &Arc<S::Peer>,
    ) -> Result<(proto::JwtBundlesResponse, Timestamp), Status> {
        api.0.source.recognise(peer).await?;
        let bundle = api.0.source.bundle();
        let document = bundle.to_jwt_jwks().map_err(|error| {
            tracing::error!(%error, "the JWT bundle cannot be written");
            Status::unavailable("the JWT bundle cannot be written")
        })?;
        let bundles = [(bundle_key(&bundle), document)].into();
        Ok((proto::JwtBundlesResponse { bundles }, bundle_again(&*api.0.source, &bundle)))
    }
}

#[tonic::async_trait]
impl<S: Source> SpiffeWorkloadApi for WorkloadApi<S> {
    type FetchX509SVIDStream = Messages<proto::X509svidResponse>;
    type FetchX509BundlesStream = Messages<proto::X509BundlesResponse>;
    type FetchJWTBundlesStream = Messages<proto::JwtBundlesResponse>;

    async fn fetch_x509svid(
        &self,
        request: Request<proto::X509svidRequest>,
    ) -> Result<Response<Self::FetchX509SVIDStream>, Status> {
        let peer = self.peer(&request)?;
        self.stream(peer, X509Svids).await
    }

    async fn fetch_x509_bundles(
        &self,
        request: Request<proto::X509BundlesRequest>,
    ) -> Result<Response<Self::FetchX509BundlesStream>, Status> {
        let peer = self.peer(&request)?;
        self.stream(peer, X509Bundles).await
    }

    async fn fetch_jwt_bundles(
        &self,
        request: Request<proto::JwtBundlesRequest>,
    ) -> Result<Response<Self::FetchJWTBundlesStream>, Status> {
        let peer = self.peer(&request)?;
        self.stream(peer, JwtBundles).await
    }

    async fn fetch_jwtsvid(
        &self,
        request: Request<proto::JwtsvidRequest>,
    ) -> Result<Response<proto::JwtsvidResponse>, Status> {
        let peer = self.peer(&request)?;
        let agent = self.0.source.recognise(&peer).await?;
        let request = request.into_inner();
        let own = self.0.source.id(&agent);
        if !request.spiffe_id.is_empty() && request.spiffe_id != own.as_str() {
            return Err(no_identity());
        }
        let svid = self.0.source.jwt(&agent, &request.audience).await?;
        let message = proto::Jwtsvid { spiffe_id: own.to_string(), svid, hint: String::new() };
        Ok(Response::new(proto::JwtsvidResponse { svids: vec![message] }))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<proto::ValidateJwtsvidRequest>,
    ) -> Result<Response<proto::ValidateJwtsvidResponse>, Status> {
        let peer = self.peer(&request)?;
        self.0.source.recognise(&peer).await?;
        let request = request.into_inner();
        let claims = self
            .0
            .source
            .verify_jwt(&request.svid, &request.audience)
            .map_err(|error| Status::invalid_argument(error.to_string()))?;
        let fields: BTreeMap<String, prost_types::Value> =
            claims.claims.into_iter().map(|(name, value)| (name, protobuf_value(value))).collect();
        Ok(Response::new(proto::ValidateJwtsvidResponse {
            spiffe_id: claims.id.to_string(),
            claims: Some(prost_types::Struct { fields }),
        }))
    }
}

fn protobuf_value(value: Value) -> prost_types::Value {
    use prost_types::value::Kind;
    let kind = match value {
        Value::Null => Kind::NullValue(0),
        Value::Bool(value) => Kind::BoolValue(value),
        Value::Number(value) => Kind::NumberValue(value.as_f64().unwrap_or_default()),
        Value::String(value) => Kind::StringValue(value),
        Value::Array(values) => Kind::ListValue(prost_types::ListValue {
            values: values.into_iter().map(protobuf_value).collect(),
        }),
        Value::Object(fields) => Kind::StructValue(prost_types::Struct {
            fields: fields.into_iter().map(|(name, value)| (name, protobuf_value(value))).collect(),
        }),
    };
    prost_types::Value { kind: Some(kind) }
}

/// What strangers are told: nothing of what would have been recognised.
#[must_use]
pub fn no_identity() -> Status {
    Status::permission_denied("no identity issued")
}

impl<S> fmt::Debug for WorkloadApi<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkloadApi")
    }
}
