//! Inbound: HTTP/1.1, one bounded message at a time. [`serve`] is the listener per upstream of one
//! machine; what [`crate::transparent`] has caught and recognised comes by [`governed`].

use std::{convert::Infallible, error::Error, net::SocketAddr, sync::Arc, time::Duration};

use aegis_core::{
    Digest,
    action::{Action, ActionKind, Protocol},
    approval::ApprovalState,
    decision::{Reason, Verdict},
};
use aegis_kernel::{Permit, Principal, Shown};
use aegis_protocol::mcp::{ClientMessage, Era, LegacyVersion, Transport};
use aegis_resources::upstream::UpstreamProtocol;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Full, Limited, combinators::UnsyncBoxBody};
use hyper::{
    body::{Body as HttpBody, Incoming},
    service::service_fn,
};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Map;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};
use tokio_util::sync::CancellationToken;

use crate::{
    a2a,
    accept::accept,
    attest::Attested,
    delegation::Carried,
    exchange::Exchange,
    forward::{self, Peer},
    grant::Told,
    listing, oauth,
    relay::{failed, relay},
    respond,
    route::{self, Asks, Caller, Governed, Held, Route, Step},
    stream,
};

/// What goes to a client.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// How long a client may take to send a request's head.
const HEAD_TIMEOUT: Duration = Duration::from_secs(15);
/// How large a request's head may be. Bytes.
pub(crate) const HEAD_BYTES: usize = 64 * 1024;
/// The longest name of a session; it is in every record of its calls.
const MAX_SESSION_BYTES: usize = 1_024;
/// How many callers are attested at once: a burst of connections is no burst of threads.
static ATTESTING: Semaphore = Semaphore::const_new(2);
/// The session's header, in the legacy era.
const SESSION: &str = "mcp-session-id";

/// Serves one route until the process drains, and returns when every connection has ended.
pub async fn serve(route: Arc<Route>, listener: TcpListener) {
    if let Ok(address) = listener.local_addr() {
        route.listens_on(address);
    }
    let drain = route.shared.drain.clone();
    let room = usize::try_from(route.spec.limits.connections).unwrap_or(usize::MAX);
    let full = || route.shared.refusals.count(&route.name, Reason::Overloaded);
    let serve = |stream, remote| connection(Arc::clone(&route), stream, remote);
    accept(listener, &drain, room, full, serve).await;
}

async fn connection(route: Arc<Route>, stream: TcpStream, remote: SocketAddr) {
    let Ok(local) = stream.local_addr() else { return };
    let attested = attest(&route, local, remote).await;
    let drain = route.shared.drain.clone();
    let answer = move |request| {
        let (route, attested) = (Arc::clone(&route), attested.clone());
        async move { answer(&route, attested, local, request).await }
    };
    serve_http(stream, HEAD_BYTES, drain, answer).await;
}

/// Answers the requests of one connection, until `drain`; the one under way is still answered.
pub(crate) async fn serve_http<S, F>(
    stream: S,
    head_bytes: usize,
    drain: CancellationToken,
    answer: impl Fn(Request<Incoming>) -> F,
) where
    S: AsyncRead + AsyncWrite + Unpin,
    F: Future<Output = Response<Body>>,
{
    let service = service_fn(|request| {
        let answering = answer(request);
        async move { Ok::<_, Infallible>(answering.await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(100)
        .max_buf_size(head_bytes)
        .serve_connection(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = drain.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection ended early");
    }
}

/// Asks once per connection who is at the other end: the kernel's answer cannot change while it is
/// open. Reading it takes milliseconds on a busy machine, which open connections must not wait for.
async fn attest(route: &Route, local: SocketAddr, remote: SocketAddr) -> Result<Attested, Reason> {
    let _turn = ATTESTING.acquire().await.map_err(|_| Reason::IdentityMissing)?;
    let attest = Arc::clone(&route.shared.attest);
    let asked = tokio::task::spawn_blocking(move || attest.tcp(local, remote)).await;
    asked.unwrap_or(Err(Reason::IdentityMissing))
}

/// What a request's body has to be.
pub(crate) trait RequestBody:
    HttpBody<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send
{
}

impl<T> RequestBody for T where
    T: HttpBody<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send
{
}

/// Answers one request.
async fn answer(
    route: &Arc<Route>,
    attested: Result<Attested, Reason>,
    local: SocketAddr,
    request: Request<Incoming>,
) -> Response<Body> {
    if let Err(reason) = check_host(route, local, request.headers()) {
        return refuse(route, &request, reason);
    }
    match attested {
        Ok(attested) => {
            let state = route.kernel().state();
            let principal = state.registry.principal(&attested.id, attested.not_after);
            governed(
                route,
                principal.ok_or(Reason::IdentityUnknown),
                (None, Arc::default()),
                request,
            )
            .await
        }
        Err(reason) => refuse(route, &request, reason),
    }
}

/// Refuses a stranger.
fn refuse<B>(route: &Route, request: &Request<B>, reason: Reason) -> Response<Body> {
    route.shared.refusals.count(&route.name, reason);
    if route.spec.protocol == UpstreamProtocol::A2a {
        return boxed(respond::http(a2a::stranger(route, request, reason)));
    }
    boxed(respond::http(respond::plain(respond::status_of(reason), reason)))
}

/// Answers one request of somebody who has proven who it is, which may have come with a grant.
pub(crate) async fn governed<B: RequestBody>(
    route: &Arc<Route>,
    principal: Result<Principal, Reason>,
    (grant, carried): (Option<Arc<Shown>>, Arc<Carried>),
    request: Request<B>,
) -> Response<Body> {
    let principal = match principal {
        Ok(principal) => principal,
        Err(reason) => return refuse(route, &request, reason),
    };
    if route.spec.protocol == UpstreamProtocol::A2a {
        let caller = Caller { principal, session: None, grant, carried, span: route.span() };
        return a2a::governed(route, caller, request).await;
    }
    let session = match one(request.headers(), SESSION) {
        Ok(session) => session.map(str::to_owned),
        Err(reason) => {
            return boxed(respond::http(respond::plain(respond::status_of(reason), reason)));
        }
    };
    if let Some(long) = session.as_ref().filter(|session| session.len() > MAX_SESSION_BYTES) {
        let reason = Reason::NameTooLong;
        route.count(Verdict::Deny, reason);
        let told = route::too_long("session", long.len(), &Digest::of(long.as_bytes()));
        route.kernel().refuse(&principal, &route.name, reason, told).await;
        return boxed(respond::http(respond::plain(respond::status_of(reason), reason)));
    }
    let caller = Caller { principal, session, grant, carried, span: route.span() };
    let metadata = |target| oauth::is_metadata(target, request.uri().path());
    if request.method() == Method::GET && route.target.as_ref().is_some_and(metadata) {
        return oauth::serve(route, &caller, request.uri().path()).await;
    }
    if route.target.as_ref().is_none_or(|target| target.path() != request.uri().path()) {
        return boxed(respond::http(respond::plain(StatusCode::NOT_FOUND, Reason::MethodUnknown)));
    }
    let (head, body) = request.into_parts();
    match head.method {
        Method::POST => post(route, caller, head.headers, body).await,
        Method::GET | Method::DELETE => {
            session_request(route, caller, &head.method, head.headers).await
        }
        _ => {
            let answer = respond::plain(StatusCode::METHOD_NOT_ALLOWED, Reason::MethodUnknown);
            let mut response = respond::http(answer);
            response
                .headers_mut()
                .insert(header::ALLOW, HeaderValue::from_static("GET, POST, DELETE"));
            boxed(response)
        }
    }
}

/// The text of a header that speaks for the request: two readers of two could each take another.
pub(crate) fn one<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, Reason> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| Reason::MalformedMessage),
        (Some(_), Some(_)) => Err(Reason::HeaderMismatch),
    }
}

/// A page that a browser has loaded from elsewhere must not reach a local server by a name of its
/// own choosing (DNS rebinding; basic/transports/streamable-http, "Security Warning").
fn check_host(route: &Route, local: SocketAddr, headers: &HeaderMap) -> Result<(), Reason> {
    let host = one(headers, "host").ok().flatten().ok_or(Reason::HostRefused)?;
    if !is_loopback(host, Some(local.port())) {
        return Err(Reason::HostRefused);
    }
    let origin = one(headers, "origin").map_err(|_| Reason::OriginRefused)?;
    let Some(origin) = origin else { return Ok(()) };
    let named = route.spec.allowed_origins.iter().any(|allowed| allowed == origin);
    let authority = origin.strip_prefix("http://").or_else(|| origin.strip_prefix("https://"));
    if named || authority.is_some_and(|authority| is_loopback(authority, None)) {
        Ok(())
    } else {
        Err(Reason::OriginRefused)
    }
}

/// Whether a `Host` or an origin's authority names this machine, on that port if one is given.
#[must_use]
pub fn is_loopback(authority: &str, port: Option<u16>) -> bool {
    let Ok(authority) = authority.parse::<http::uri::Authority>() else { return false };
    let host = authority.host();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    let loopback = host.eq_ignore_ascii_case("localhost") || address.is_ok_and(|a| a.is_loopback());
    loopback
        && !authority.as_str().contains('@')
        && port.is_none_or(|port| authority.port_u16().unwrap_or(80) == port)
}

/// One message of a client.
async fn post(
    route: &Arc<Route>,
    caller: Caller,
    headers: HeaderMap,
    body: impl RequestBody,
) -> Response<Body> {
    let bytes = match read(route, &headers, body).await {
        Ok(bytes) => bytes,
        Err(reason) => {
            route.count(Verdict::Deny, reason);
            route.kernel().refuse(&caller.principal, &route.name, reason, Map::new()).await;
            let mut response = respond::http(respond::plain(respond::status_of(reason), reason));
            // What is left of the body is not worth reading.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            return boxed(response);
        }
    };
    let transport = Transport::Http(&headers);
    let step = match route.govern(&caller, transport, bytes).await {
        Governed::Settled(step) => step,
        Governed::Unlisted(pending) => {
            let server = Peer { route, headers: &headers };
            let learned = listing::learn(route, &caller, pending.era(), &server).await;
            route.govern_listed(&caller, transport, *pending, learned).await
        }
    };
    match step {
        Step::Forward(permit) => exchange(route, &caller, *permit, headers).await,
        Step::Answer { answer, .. } => boxed(respond::http(answer)),
        Step::Hold(held) if held.asks == Asks::Now => {
            boxed(respond::http(respond::still_pending(&held)))
        }
        Step::Hold(held) => hold(route, caller, *held, headers).await,
    }
}

/// Reads a whole body; never judges a part of one.
async fn read(route: &Route, headers: &HeaderMap, body: impl RequestBody) -> Result<Bytes, Reason> {
    if !is_json(headers) || headers.contains_key(header::CONTENT_ENCODING) {
        return Err(Reason::MalformedMessage);
    }
    read_whole(route, body).await
}

/// Reads a whole body, whatever it claims to be.
pub(crate) async fn read_whole(route: &Route, body: impl RequestBody) -> Result<Bytes, Reason> {
    let limits = &route.spec.limits;
    let limited = Limited::new(body, route.request_limits().size);
    let timeout = Duration::from_secs(limits.read_timeout_secs.into());
    match tokio::time::timeout(timeout, limited.collect()).await {
        Err(_) => Err(Reason::MessageTimeout),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Reason::MessageTooLarge)
        }
        Ok(Err(_)) => Err(Reason::MalformedMessage),
    }
}

/// Whether the body claims to be JSON in UTF-8, once. Another charset would let a server read other
/// characters than were judged, so it is refused, and never forwarded ([`crate::forward`]).
pub(crate) fn is_json(headers: &HeaderMap) -> bool {
    claims(headers, &["application/json"])
}

/// Whether the body claims to be of one of these types, in UTF-8, once.
pub(crate) fn claims(headers: &HeaderMap, types: &[&str]) -> bool {
    let mut found = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(claim), None) = (found.next(), found.next()) else { return false };
    let Ok(claim) = claim.to_str() else { return false };
    let claim = claim.to_ascii_lowercase();
    let mut parts = claim.split(';').map(str::trim);
    parts.next().is_some_and(|essence| types.contains(&essence))
        && parts.all(|part| matches!(part, "" | "charset=utf-8" | "charset=\"utf-8\""))
}

/// Forwards a permitted message and releases its answer.
async fn exchange(
    route: &Arc<Route>,
    caller: &Caller,
    permit: Permit<ClientMessage>,
    headers: HeaderMap,
) -> Response<Body> {
    match forward::forward(route, caller, permit, headers).await {
        Ok((response, exchange)) => relay(response, exchange).await,
        Err((reason, exchange)) => failed(exchange, reason).await,
    }
}

/// Decides on a request that is no message of the protocol.
///
/// # Errors
/// The answer to a refused one.
pub(crate) async fn decide(
    route: &Route,
    caller: &Caller,
    method: &str,
) -> Result<Permit<Action>, Response<Body>> {
    let action = Action {
        kind: ActionKind::Session,
        protocol: Protocol::Mcp,
        method: method.into(),
        server: route.name.clone(),
        tool: None,
        tool_pin: None,
        resource: None,
        arguments: serde_json::Value::Null,
    };
    match route.kernel().decide(route.context(caller), action).await {
        Ok(permit) => {
            route.count(Verdict::Allow, permit.receipt().decision.reason);
            Ok(permit)
        }
        Err(refusal) => {
            let reason = refusal.decision.reason;
            route.count(refusal.decision.verdict, reason);
            Err(boxed(respond::http(respond::plain(StatusCode::FORBIDDEN, reason))))
        }
    }
}

/// Opening the legacy stream (GET) or ending the legacy session (DELETE).
async fn session_request(
    route: &Arc<Route>,
    caller: Caller,
    method: &Method,
    headers: HeaderMap,
) -> Response<Body> {
    let (resumes, version) =
        match (one(&headers, "last-event-id"), one(&headers, "mcp-protocol-version")) {
            (Ok(resumes), Ok(version)) => (resumes.map(str::to_owned), version),
            (Err(reason), _) | (_, Err(reason)) => {
                return boxed(respond::http(respond::plain(respond::status_of(reason), reason)));
            }
        };
    let era = version.and_then(Era::of_version).unwrap_or(Era::Legacy(LegacyVersion::ASSUMED));
    let what = if method == Method::GET { "session/stream" } else { "session/delete" };
    let permit = match decide(route, &caller, what).await {
        Ok(permit) => permit,
        Err(refused) => return refused,
    };
    let resumes = resumes.map(Bytes::from);
    let told = Told::of(permit.receipt(), &caller.carried);
    let exchange = Exchange::listen(Arc::clone(route), caller, permit, era, resumes);
    let Some(target) = &route.target else {
        return failed(exchange, Reason::UpstreamUnavailable).await;
    };
    let timeout = Duration::from_secs(route.spec.limits.answer_timeout_secs.into());
    match target.send_told(method.clone(), headers, Bytes::new(), told, timeout).await {
        Ok(response) => relay(response, exchange).await,
        Err(reason) => failed(exchange, reason).await,
    }
}

/// Holds a call until a human has decided: with keep-alives where the client takes a stream.
async fn hold(
    route: &Arc<Route>,
    caller: Caller,
    held: Held,
    headers: HeaderMap,
) -> Response<Body> {
    let streams = headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .any(|value| value.contains("text/event-stream"));
    if streams {
        return event_stream(stream::held(Arc::clone(route), caller, held, headers));
    }
    match wait(route, &caller, held).await {
        Step::Forward(permit) => exchange(route, &caller, *permit, headers).await,
        Step::Answer { answer, .. } => boxed(respond::http(answer)),
        Step::Hold(held) => boxed(respond::http(respond::still_pending(&held))),
    }
}

/// A stream of Aegis' own.
pub(crate) fn event_stream(body: Body) -> Response<Body> {
    let mut response = Response::new(body);
    let out = response.headers_mut();
    out.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    out.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    out.insert("x-accel-buffering", HeaderValue::from_static("no"));
    response
}

/// Waits as long as the route holds calls, then judges again. A call that is still pending then
/// comes back as [`Step::Hold`].
pub(crate) async fn wait(route: &Arc<Route>, caller: &Caller, held: Held) -> Step {
    match decided(route, &held.approval).await {
        ApprovalState::Pending => Step::Hold(Box::new(held)),
        ApprovalState::Approved => route.resume(caller, held).await,
        ApprovalState::Denied => ended(route, caller, &held, Reason::ApprovalDenied).await,
        _ => ended(route, caller, &held, Reason::ApprovalExpired).await,
    }
}

/// How an approval is, once it is decided or the route's patience has ended.
pub(crate) async fn decided(route: &Route, approval: &str) -> ApprovalState {
    let metrics = &route.shared.metrics;
    let patience = Duration::from_secs(route.spec.limits.hold_secs.into());
    metrics.held.inc();
    let waiting = scopeguard(|| metrics.held.dec());
    let state = tokio::select! {
        state = route.kernel().wait_for_approval(approval, patience) => state,
        // It stays open; whoever comes back finds it.
        () = route.shared.drain.cancelled() => ApprovalState::Pending,
    };
    drop(waiting);
    state
}

/// Records and answers a held call that a human refused, or nobody decided.
async fn ended(route: &Arc<Route>, caller: &Caller, held: &Held, reason: Reason) -> Step {
    route.refuse(caller, held.message.action(), Some(&held.approval), reason).await;
    Step::Answer { answer: respond::explained(&held.message, reason), one_way: false }
}

/// Runs `end` when dropped, also when the waiting client goes away.
fn scopeguard<F: FnMut()>(end: F) -> impl Drop {
    struct Guard<F: FnMut()>(F);
    impl<F: FnMut()> Drop for Guard<F> {
        fn drop(&mut self) {
            (self.0)();
        }
    }
    Guard(end)
}

/// A complete body.
pub(crate) fn boxed(response: Response<Full<Bytes>>) -> Response<Body> {
    response.map(|body| body.boxed_unsync())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_this_listener() {
        for (host, expected) in [
            ("127.0.0.1:7101", true),
            ("localhost:7101", true),
            ("[::1]:7101", true),
            ("LOCALHOST:7101", true),
            ("127.0.0.1:80", false),
            ("localhost", false),
            ("evil.example.com:7101", false),
            ("localhost.evil.example:7101", false),
            ("user@localhost:7101", false),
            ("0.0.0.0:7101", false),
            ("", false),
        ] {
            assert_eq!(is_loopback(host, Some(7101)), expected, "{host}");
        }
    }
}
