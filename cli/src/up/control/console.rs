//! The console: pages for people, on the admin port where that is of loopback, and what they may ask.
//!
//! Three things must fit before anything is told: the request names this port and comes from its own
//! page (`Host`, `Origin`), the program at the other end runs as an operator (the kernel says so), and the
//! session is that user's. The token of a session travels in a header and never in a cookie: cookies
//! know no ports, and whatever else listens on loopback would be sent it. Sessions that only read change
//! nothing. What is asked then meets the checks of the control socket.

use std::{
    net::SocketAddr,
    sync::{Arc, OnceLock},
};

use aegis_api::control::{ConsoleLink, ConsoleRequest, ConsoleSession, ConsoleToken};
use aegis_core::decision::Reason;
use axum::{
    Extension, Json, Router,
    extract::{ConnectInfo, DefaultBodyLimit, Request, State},
    http::{HeaderMap, HeaderValue, Method, StatusCode, header},
    middleware::{Next, from_fn, from_fn_with_state},
    response::{IntoResponse as _, Redirect, Response},
    routing::{get, post},
};

use super::{
    Answer, Asker, Failure, Shared, approvals, events, listener,
    people::{for_operators, refuse_agents},
    question, standing, tools, trust,
};
use crate::up::{attest::now, daemon::Daemon};

mod pages;
mod sessions;

pub(in crate::up) use sessions::Sessions;

use sessions::Role;

/// How large a request may be: an answer to an approval, or an action to explain.
const MAX_BODY: usize = 256 * 1024;

/// Both ends of a connection of the admin port, and, once somebody has asked, who is at the other one.
#[derive(Clone, Debug)]
pub(super) struct Ends {
    local: SocketAddr,
    remote: SocketAddr,
    asker: Arc<OnceLock<Asker>>,
}

impl Ends {
    pub(super) fn new(local: SocketAddr, remote: SocketAddr) -> Self {
        Self { local, remote, asker: Arc::default() }
    }

    /// Who is at the other end: looked up once for a connection, and not for those that never ask.
    async fn asker(&self, daemon: &Arc<Daemon>) -> Asker {
        if let Some(known) = self.asker.get() {
            return known.clone();
        }
        let (daemon, ends) = (Arc::clone(daemon), self.clone());
        let asked = listener::attesting(move || Asker {
            uid: daemon.attest.user(ends.local, ends.remote),
            attested: aegis_sidecar::Attest::tcp(&*daemon.attest, ends.local, ends.remote),
        });
        let nobody = Asker { uid: None, attested: Err(Reason::IdentityMissing) };
        let asker = asked.await.unwrap_or(nobody);
        self.asker.get_or_init(|| asker).clone()
    }
}

/// The pages, and what they ask, under `/console`; nothing where the admin port is not of loopback.
pub(super) fn console(daemon: &Arc<Daemon>) -> anyhow::Result<Router> {
    if address(daemon).is_none() {
        return Ok(Router::new());
    }
    // Only what the pages use. Whoever orders more has the command line.
    let asked = Router::new()
        .route("/v1/status", get(standing::status))
        .route("/v1/approvals", get(approvals::approvals))
        .route("/v1/approvals/{id}", get(approvals::approval).post(approvals::vote))
        .route("/v1/events", get(events::events))
        .route("/v1/trust", get(trust))
        .route("/v1/tools", get(tools))
        .route("/v1/explain", post(question::explain_action))
        .route("/v1/session", get(session).delete(leave))
        .with_state(Arc::clone(daemon));
    let reader = daemon.kernel.journal().reader().clone();
    let asked = asked
        .merge(aegis_ledger::router(aegis_ledger::Ledger::of_reader(reader)?))
        .layer(from_fn_with_state(Arc::clone(daemon), for_sessions))
        .merge(Router::new().route("/session", post(enter)).with_state(Arc::clone(daemon)))
        .layer(from_fn_with_state(Arc::clone(daemon), for_operators))
        .layer(from_fn_with_state(Arc::clone(daemon), who_asks))
        .layer(from_fn(unkept))
        .layer(DefaultBodyLimit::max(MAX_BODY));
    Ok(Router::new()
        .nest("/console/api", asked)
        .merge(pages::router())
        .route("/", get(|| async { Redirect::temporary("/console/") }))
        .layer(from_fn_with_state(Arc::clone(daemon), from_its_own_page)))
}

/// Where the console is, if it is anywhere.
fn address(daemon: &Daemon) -> Option<SocketAddr> {
    daemon.admin.local_addr().ok().filter(|address| address.ip().is_loopback())
}

/// A link that signs one browser in, for as long as it is said to.
pub(in crate::up) fn link(daemon: &Daemon, read_only: bool) -> Option<ConsoleLink> {
    let address = address(daemon)?;
    let role = if read_only { Role::Reader } else { Role::Operator };
    let (code, expires_at) = daemon.sessions.link(role, now());
    Some(ConsoleLink { url: format!("http://{address}/console/#{code}"), expires_at })
}

/// Makes a link for an operator of the control socket.
pub(super) async fn make_link(
    State(daemon): Shared,
    ConnectInfo(asker): ConnectInfo<Asker>,
    Json(request): Json<ConsoleRequest>,
) -> Answer<ConsoleLink> {
    refuse_agents(&daemon, &asker)?;
    let link = link(&daemon, request.read_only);
    let nowhere = || {
        let message =
            "the console is served where --admin is an address of loopback, such as 127.0.0.1:7100";
        Failure(StatusCode::CONFLICT, message.into())
    };
    link.map(Json).ok_or_else(nowhere)
}

/// Exchanges a link's code for a session; the code is used up.
async fn enter(
    State(daemon): Shared,
    ConnectInfo(asker): ConnectInfo<Asker>,
    Json(token): Json<ConsoleToken>,
) -> Answer<ConsoleSession> {
    refuse_agents(&daemon, &asker)?;
    let opened = asker.uid.and_then(|uid| daemon.sessions.open(&token.token, uid, now()));
    let Some((token, role)) = opened else {
        daemon.shared.refusals.count("console", Reason::IdentityMissing);
        let message = "this link was used before or is too old; `aegis console` prints another";
        return Err(Failure(StatusCode::UNAUTHORIZED, message.into()));
    };
    Ok(Json(ConsoleSession { token: Some(token), read_only: role == Role::Reader }))
}

/// What the session may.
async fn session(Extension(role): Extension<Role>) -> Json<ConsoleSession> {
    Json(ConsoleSession { token: None, read_only: role == Role::Reader })
}

/// Ends the session.
async fn leave(State(daemon): Shared, headers: HeaderMap) -> StatusCode {
    if let Some(token) = bearer(&headers) {
        daemon.sessions.end(token);
    }
    StatusCode::NO_CONTENT
}

/// A page that a browser has loaded from elsewhere must not reach this one, by whatever name (DNS
/// rebinding).
async fn from_its_own_page(State(daemon): Shared, request: Request, next: Next) -> Response {
    let headers = request.headers();
    let host = only(headers, header::HOST.as_str());
    let port = address(&daemon).map(|address| address.port());
    let own = host.is_some_and(|host| aegis_sidecar::inbound::is_loopback(host, port));
    let origin = host.map(|host| format!("http://{host}"));
    let foreign = headers.contains_key(header::ORIGIN)
        && only(headers, header::ORIGIN.as_str()) != origin.as_deref();
    if own && !foreign {
        return next.run(request).await;
    }
    daemon
        .shared
        .refusals
        .count("console", if own { Reason::OriginRefused } else { Reason::HostRefused });
    let message = "the console answers its own page, at the address that `aegis console` prints";
    Failure(StatusCode::FORBIDDEN, message.into()).into_response()
}

/// The value of a header that is there once.
fn only<'a>(headers: &'a HeaderMap, name: &str) -> Option<&'a str> {
    let mut values = headers.get_all(name).iter();
    let value = values.next()?.to_str().ok()?;
    values.next().is_none().then_some(value)
}

async fn who_asks(State(daemon): Shared, mut request: Request, next: Next) -> Response {
    let ends = request.extensions().get::<Ends>().cloned();
    let asker = match ends {
        Some(ends) => ends.asker(&daemon).await,
        None => Asker { uid: None, attested: Err(Reason::IdentityMissing) },
    };
    request.extensions_mut().insert(ConnectInfo(asker));
    next.run(request).await
}

/// Lets those in who have a session, to what it is for.
async fn for_sessions(
    State(daemon): Shared,
    ConnectInfo(asker): ConnectInfo<Asker>,
    mut request: Request,
    next: Next,
) -> Response {
    let token = bearer(request.headers());
    let role =
        token.zip(asker.uid).and_then(|(token, uid)| daemon.sessions.role(token, uid, now()));
    let Some(role) = role else {
        let message = "this session is unknown or has ended; `aegis console` prints a link";
        return Failure(StatusCode::UNAUTHORIZED, message.into()).into_response();
    };
    // Leaving is not a change of anything but the session.
    let leaves = request.method() == Method::DELETE;
    if role == Role::Reader && request.method() != Method::GET && !leaves {
        let message = "this session only reads; `aegis console` prints a link to one that decides";
        return Failure(StatusCode::FORBIDDEN, message.into()).into_response();
    }
    request.extensions_mut().insert(role);
    next.run(request).await
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    only(headers, header::AUTHORIZATION.as_str())?.strip_prefix("Bearer ")
}

/// What is told here is not for a browser's disk.
async fn unkept(request: Request, next: Next) -> Response {
    let mut response = next.run(request).await;
    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}
