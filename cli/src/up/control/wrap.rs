//! What `aegis wrap` asks: a stream of frames to a server, which the daemon starts where an AgentUpstream
//! registers its command.

use std::sync::Arc;

use aegis_api::control::{STARTED_BY, WrapHello};
use aegis_core::decision::Reason;
use aegis_sidecar::{Route, route::Caller, span::CallSpan};
use axum::{
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse as _, Response},
};
use hyper_util::rt::TokioIo;

use super::{Asker, Failure, Shared, listener::HEAD_TIMEOUT};
use crate::up::command::{self, Started};

/// What a client puts into its configuration for a server on standard streams.
pub(in crate::up) fn wrap_line(route: &Route) -> String {
    let name = &route.name;
    match route.spec.command {
        Some(_) => format!("aegis wrap --server {name}"),
        None => format!("aegis wrap --server {name} -- COMMAND"),
    }
}

/// Turns the connection into a wrapper's stream of frames.
pub(super) async fn wrap(
    State(daemon): Shared,
    ConnectInfo(asker): ConnectInfo<Asker>,
    headers: HeaderMap,
    mut request: Request,
) -> Result<Response, Failure> {
    let upgrade = headers.get(header::UPGRADE).is_some_and(|value| value == "aegis-wrap");
    if !upgrade {
        return Err(Failure(StatusCode::UPGRADE_REQUIRED, "ask with `Upgrade: aegis-wrap`".into()));
    }
    let body = std::mem::take(request.body_mut());
    let bytes = tokio::time::timeout(HEAD_TIMEOUT, axum::body::to_bytes(body, 64 * 1024)).await;
    let slow = |_| Failure(StatusCode::REQUEST_TIMEOUT, "the wrapper said nothing in time".into());
    let bytes = bytes.map_err(slow)??;
    let hello: WrapHello = serde_json::from_slice(&bytes)?;
    let refused = |reason: Reason| {
        // Under one name: a stranger chooses no labels, and makes no route.
        daemon.shared.refusals.count("wrap", reason);
        let message = format!(
            "{} Add an AgentIdentity whose selector fits the program that starts `aegis wrap`.",
            reason.sentence()
        );
        Failure(StatusCode::FORBIDDEN, message)
    };
    let attested = asker.attested.map_err(refused)?;
    let principal = daemon.kernel.state().registry.principal(&attested.id, attested.not_after);
    let principal = principal.ok_or_else(|| refused(Reason::IdentityUnknown))?;
    let uid = asker.uid.ok_or_else(|| refused(Reason::IdentityMissing))?;
    let operator = daemon.operators.includes(Some(uid));
    let Some(pass) = daemon.gates.wrappers.enter(uid, operator) else {
        daemon.shared.refusals.count("wrap", Reason::Overloaded);
        let message = "there are as many wrapped servers as may be; end some of their clients";
        return Err(Failure(StatusCode::SERVICE_UNAVAILABLE, message.into()));
    };
    let namespace = hello.namespace.unwrap_or_else(|| "default".into());
    let route = daemon
        .wrapped(&namespace, &hello.server, !hello.command.is_empty())
        .await
        .map_err(|error| Failure(StatusCode::CONFLICT, format!("{error:#}")))?;
    let server = registered(&route, &hello.command)?;
    let by = if server.is_some() { "daemon" } else { "wrapper" };
    let session = format!("stdio-{}", uuid::Uuid::now_v7());
    let caller = Caller {
        principal,
        session: Some(session),
        grant: None,
        carried: Arc::default(),
        span: CallSpan::default(),
    };
    tokio::spawn(async move {
        match hyper::upgrade::on(request).await {
            Ok(upgraded) => match server {
                Some(server) => {
                    command::serve(route, caller, TokioIo::new(upgraded), server).await;
                }
                None => aegis_sidecar::stdio::serve(route, caller, TokioIo::new(upgraded)).await,
            },
            Err(error) => tracing::warn!(%error, "a wrapper did not follow up"),
        }
        drop(pass);
    });
    let mut upgraded = HeaderMap::new();
    for (name, value) in [("connection", "upgrade"), ("upgrade", "aegis-wrap"), (STARTED_BY, by)] {
        upgraded.insert(name, HeaderValue::from_static(value));
    }
    Ok((StatusCode::SWITCHING_PROTOCOLS, upgraded).into_response())
}

/// Starts the command that the route's AgentUpstream registers; `None` if it registers none and the
/// client gives one.
fn registered(route: &Route, given: &[String]) -> Result<Option<Started>, Failure> {
    let name = &route.name;
    let refuse = |message: String| Err(Failure(StatusCode::CONFLICT, message));
    match (&route.spec.command, given.split_first()) {
        (None, Some(_)) => Ok(None),
        (None, None) => refuse(format!(
            "no AgentUpstream `{name}` registers a command; register one, or give one after `--`"
        )),
        (Some(spec), Some((program, args))) if *program != spec.program || *args != spec.args => {
            refuse(format!(
                "the command given is not the one that AgentUpstream `{name}` registers; leave it out"
            ))
        }
        (Some(spec), _) => match command::start(spec) {
            Ok(started) => Ok(Some(started)),
            Err(error) => refuse(format!("AgentUpstream `{name}`: {error:#}")),
        },
    }
}
