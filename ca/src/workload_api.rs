//! The SPIFFE Workload API: SVIDs and bundles for the application of the agent that asks.
//!
//! Who asks is settled by attestation on every request and before every message of a stream. A
//! request without the `workload.spiffe.io` header is refused, as are strangers; before the
//! registrations are loaded the answer is "unavailable". The application gets
//! `…/agent/<name>/workload`, never the SVID with which governed traffic is sent.

use std::{collections::BTreeMap, collections::HashMap, fmt, sync::Arc, time::Duration};

use aegis_core::{SpiffeId, Timestamp};
use aegis_identity::{Bundle, X509Svid, source::renewal_wait};
use serde_json::Value;
use tokio::sync::{Mutex, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, service::interceptor::InterceptedService};

use crate::{
    CaError, IdentityManager, IssueError, Registration,
    attest::Attestor,
    limits::{Held, Hold, Rate},
    listener::PeerInfo,
    peer::Peer,
};

#[expect(
    unreachable_pub,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated from workload.proto"
)]
pub(crate) mod proto {
    pub(crate) const FILE_DESCRIPTORS: &[u8] =
        include_bytes!(concat!(env!("OUT_DIR"), "/workload.bin"));
    include!(concat!(env!("OUT_DIR"), "/_.rs"));
}

use proto::spiffe_workload_api_server::{SpiffeWorkloadApi, SpiffeWorkloadApiServer};

/// The largest request.
const MAX_REQUEST_BYTES: usize = 64 * 1024;
/// Streams of one process at a time.
const MAX_STREAMS: usize = 16;
/// Requests of one user: at once, and then per second.
const REQUEST_BURST: u32 = 200;
const REQUESTS_PER_SECOND: u32 = 100;

/// The service. Cheap to clone.
#[derive(Clone)]
pub(crate) struct WorkloadApi(Arc<Inner>);

struct Inner {
    manager: IdentityManager,
    attestor: Attestor,
    svids: Mutex<HashMap<SpiffeId, Cached>>,
    rate: Rate,
    streams: Held<i32>,
    stop: CancellationToken,
}

/// One SVID per application, whoever of its processes asks.
struct Cached {
    svid: X509Svid,
    /// The bundle's sequence when it was issued.
    sequence: u64,
    renew_at: Timestamp,
    ttl: Option<Duration>,
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

fn refused(error: &CaError) -> Status {
    match error {
        CaError::Revoked(_) => Status::permission_denied("no identity issued"),
        CaError::Issue(IssueError::Jwt(cause)) => Status::invalid_argument(cause.to_string()),
        error => {
            tracing::error!(%error, "an SVID could not be issued");
            Status::unavailable("no SVID can be issued now")
        }
    }
}

impl WorkloadApi {
    pub(crate) fn new(manager: IdentityManager, stop: CancellationToken) -> Self {
        Self(Arc::new(Inner {
            manager,
            attestor: Attestor::default(),
            svids: Mutex::default(),
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
    fn peer<T>(&self, request: &Request<T>) -> Result<Arc<Peer>, Status> {
        let info = request.extensions().get::<PeerInfo>();
        let peer = info.ok_or_else(|| Status::permission_denied("no identity issued"))?.0.clone();
        if !self.0.rate.take(peer.uid()) {
            return Err(Status::resource_exhausted("too many requests; try again in a second"));
        }
        Ok(peer)
    }

    fn hold_stream(&self, peer: &Peer) -> Result<Hold<i32>, Status> {
        let hold = self.0.streams.take(peer.pid());
        hold.ok_or_else(|| Status::resource_exhausted("this process has too many streams open"))
    }

    async fn attest(&self, peer: &Arc<Peer>) -> Result<Registration, Status> {
        let registrations = self.0.manager.watch_registrations().borrow().clone();
        let registrations = registrations
            .ok_or_else(|| Status::unavailable("the registrations are not loaded yet"))?;
        let (api, peer) = (self.clone(), Arc::clone(peer));
        let attested =
            tokio::task::spawn_blocking(move || api.0.attestor.attest(&peer, &registrations)).await;
        let registration = match attested {
            Ok(Ok(registration)) => registration,
            Ok(Err(error)) => {
                // The stranger learns nothing of what would have been recognised.
                tracing::info!(%error, "the Workload API refused a process");
                return Err(Status::permission_denied("no identity issued"));
            }
            Err(error) => {
                tracing::error!(%error, "attestation failed");
                return Err(Status::permission_denied("no identity issued"));
            }
        };
        if self.0.manager.revocations().borrow().covers_id(registration.id.spiffe_id()) {
            return Err(Status::permission_denied("no identity issued"));
        }
        Ok(registration)
    }

    /// The SVID of an application: the one at hand, or a new one when that is due.
    async fn svid(&self, to: &Registration) -> Result<(X509Svid, Bundle, Timestamp), Status> {
        let manager = &self.0.manager;
        let mut svids = self.0.svids.lock().await;
        let bundle = manager.bundle();
        let now = manager.clock()();
        let id = to.id.workload();
        let usable = svids.get(&id).filter(|cached| {
            let revoked = manager.revocations().borrow().covers(&id, cached.svid.serial());
            cached.sequence == bundle.sequence()
                && now < cached.renew_at
                && cached.ttl == to.ttl
                && !revoked
        });
        if let Some(cached) = usable {
            return Ok((cached.svid.clone(), bundle, cached.renew_at));
        }
        let svid = manager.issue_workload(to).await.map_err(|error| refused(&error))?;
        let jitter = (aegis_identity::source::random_jitter())();
        let renew_at = now.plus(renewal_wait(svid.not_after(), now, jitter));
        svids.retain(|_, cached| now < cached.svid.not_after());
        let cached =
            Cached { svid: svid.clone(), sequence: bundle.sequence(), renew_at, ttl: to.ttl };
        svids.insert(id, cached);
        Ok((svid, bundle, renew_at))
    }

    /// Sends a message now and whenever it has become another one, until the caller goes away or
    /// is no longer recognised.
    async fn stream<T, F>(
        &self,
        peer: Arc<Peer>,
        message: F,
    ) -> Result<Response<Messages<T>>, Status>
    where
        T: PartialEq + Clone + Send + 'static,
        F: AsyncMessage<T>,
    {
        let hold = self.hold_stream(&peer)?;
        let (send, messages) = mpsc::channel(1);
        let api = self.clone();
        tokio::spawn(async move {
            let _hold = hold;
            let manager = &api.0.manager;
            let mut issuing = manager.watch_issuing();
            let mut registrations = manager.watch_registrations();
            let mut revocations = manager.revocations();
            let mut last = None;
            loop {
                issuing.borrow_and_update();
                registrations.borrow_and_update();
                revocations.borrow_and_update();
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
                let wait = again_at.since(manager.clock()()).max(Duration::from_secs(1));
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    _ = issuing.changed() => {}
                    _ = registrations.changed() => {}
                    _ = revocations.changed() => {}
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
trait AsyncMessage<T>: Send + 'static {
    fn make(
        &self,
        api: &WorkloadApi,
        peer: &Arc<Peer>,
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
fn bundle_again(api: &WorkloadApi, bundle: &Bundle) -> Timestamp {
    api.0.manager.clock()().plus(bundle.refresh_hint())
}

impl AsyncMessage<proto::X509svidResponse> for X509Svids {
    async fn make(
        &self,
        api: &WorkloadApi,
        peer: &Arc<Peer>,
    ) -> Result<(proto::X509svidResponse, Timestamp), Status> {
        let registration = api.attest(peer).await?;
        let (svid, bundle, again_at) = api.svid(&registration).await?;
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

impl AsyncMessage<proto::X509BundlesResponse> for X509Bundles {
    async fn make(
        &self,
        api: &WorkloadApi,
        peer: &Arc<Peer>,
    ) -> Result<(proto::X509BundlesResponse, Timestamp), Status> {
        api.attest(peer).await?;
        let bundle = api.0.manager.bundle();
        let bundles = [(bundle_key(&bundle), bundle.certificates_der())].into();
        let message = proto::X509BundlesResponse { bundles, ..Default::default() };
        Ok((message, bundle_again(api, &bundle)))
    }
}

impl AsyncMessage<proto::JwtBundlesResponse> for JwtBundles {
    async fn make(
        &self,
        api: &WorkloadApi,
        peer: &Arc<Peer>,
    ) -> Result<(proto::JwtBundlesResponse, Timestamp), Status> {
        api.attest(peer).await?;
        let bundle = api.0.manager.bundle();
        let document = bundle.to_jwt_jwks().map_err(|error| {
            tracing::error!(%error, "the JWT bundle cannot be written");
            Status::unavailable("the JWT bundle cannot be written")
        })?;
        let bundles = [(bundle_key(&bundle), document)].into();
        Ok((proto::JwtBundlesResponse { bundles }, bundle_again(api, &bundle)))
    }
}

#[tonic::async_trait]
impl SpiffeWorkloadApi for WorkloadApi {
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
        let registration = self.attest(&peer).await?;
        let request = request.into_inner();
        let own = registration.id.workload();
        if !request.spiffe_id.is_empty() && request.spiffe_id != own.as_str() {
            return Err(Status::permission_denied("no identity issued"));
        }
        let issued = self.0.manager.issue_jwt(&registration, &request.audience).await;
        let svid = issued.map_err(|error| refused(&error))?;
        let message =
            proto::Jwtsvid { spiffe_id: own.to_string(), svid: svid.token, hint: String::new() };
        Ok(Response::new(proto::JwtsvidResponse { svids: vec![message] }))
    }

    async fn validate_jwtsvid(
        &self,
        request: Request<proto::ValidateJwtsvidRequest>,
    ) -> Result<Response<proto::ValidateJwtsvidResponse>, Status> {
        let peer = self.peer(&request)?;
        self.attest(&peer).await?;
        let request = request.into_inner();
        let claims = self
            .0
            .manager
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

impl fmt::Debug for WorkloadApi {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("WorkloadApi")
    }
}
