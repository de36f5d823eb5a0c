//! HTTP that is neither MCP nor A2A: each request is an action of its own, with its method, its path and
//! what it carries, and its answer passes as a whole. Its headers pass and are not part of the action.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use aegis_audit::entry::Outcome as Ended;
use aegis_core::{
    AgentId, Digest,
    action::{Action, ActionKind, Protocol},
    decision::Reason,
    policy::Scope,
};
use aegis_kernel::{Context, Ending, Principal, Shown};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::{MAX_BODY_BYTES, Transparent, answer, endpoint, server_name};
use crate::{
    delegation::Carried,
    direct::Direct,
    forward::{end_to_end, refuses_manifest},
    grant::Told,
    inbound::{Body, boxed},
    relay, respond, route,
};

/// How long an application may take to answer.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long it may take to answer a probe; the kubelet has its own, shorter patience.
const PROBE: Duration = Duration::from_secs(10);
/// The longest path that is recorded as it is.
const MAX_PATH_BYTES: usize = 2048;

/// Decides on one request of somebody, who may have shown a grant; forwards it if it may go, and
/// releases its answer.
pub(super) async fn exchange(
    caught: &Arc<Transparent>,
    principal: Principal,
    (grant, carried): (Option<&Shown>, &Arc<Carried>),
    agent: &AgentId,
    direct: &Direct,
    request: Request<Bytes>,
) -> Response<Body> {
    let kernel = &caught.shared.kernel;
    let server = server_name(&principal.id, agent);
    let path = request.uri().path();
    if path.len() > MAX_PATH_BYTES {
        let reason = Reason::NameTooLong;
        let told = route::too_long("path", path.len(), &Digest::of(path.as_bytes()));
        kernel.refuse(&principal, &server, reason, told).await;
        return answer(reason);
    }
    let action = Action {
        kind: ActionKind::HttpRequest,
        protocol: Protocol::Http,
        method: request.method().as_str().to_owned(),
        server: server.clone(),
        tool: None,
        tool_pin: None,
        resource: Some(path.to_owned()),
        arguments: content(request.uri().query(), request.body()),
    };
    let namespace = agent.namespace().unwrap_or_default();
    let endpoint = endpoint(direct.port(), path);
    let mut context = Context::new(&principal, Scope::Mesh, namespace);
    context.endpoint = Some(&endpoint);
    context.grant = grant;
    let count = |verdict: aegis_core::decision::Verdict, reason: Reason| {
        let labels = [server.as_str(), verdict.as_str(), reason.code()];
        caught.shared.metrics.decisions.with_label_values(&labels).inc();
    };
    let permit = match kernel.decide(context, action).await {
        Ok(permit) => permit,
        Err(refusal) => {
            let decision = &refusal.decision;
            count(decision.verdict, decision.reason);
            let refused = respond::plain(StatusCode::FORBIDDEN, decision.reason);
            return boxed(respond::http(refused));
        }
    };
    count(permit.receipt().decision.verdict, permit.receipt().decision.reason);
    let (_, receipt) = permit.into_parts();
    let started = Instant::now();
    let request = request.map(Full::new);
    let answered = whole(direct, request, &Told::of(&receipt, carried)).await;
    let (result, reason, status, bytes) = match &answered {
        Ok(response) => {
            let status = response.status();
            let failed = status.is_server_error() || status.is_client_error();
            let result = if failed { Ended::Failure } else { Ended::Success };
            (result, None, Some(status.as_u16().into()), response.body().len() as u64)
        }
        Err(reason) => (Ended::Failure, Some(reason.code().to_owned()), None, 0),
    };
    let micros = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
    let ending =
        Ending { result, reason, status, bytes, sent: 0, events: 0, micros, redactions: 0 };
    if let Err(error) = kernel.conclude(&receipt, &ending).await {
        tracing::error!(%error, "an outcome could not be recorded");
    }
    match answered {
        Ok(response) => boxed(response.map(Full::new)),
        Err(reason) => answer(reason),
    }
}

/// What a request carries besides its method and path: the query, for policies and people, and a digest
/// of query and body as they are. Null where it carries nothing.
fn content(query: Option<&str>, body: &[u8]) -> Value {
    if query.is_none() && body.is_empty() {
        return Value::Null;
    }
    let mut named = BTreeMap::<_, Vec<_>>::new();
    for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        named.entry(name).or_default().push(value);
    }
    // No query has a line's end in it.
    let digest = Digest::of_parts(&[query.unwrap_or_default().as_bytes(), b"\n", body]);
    json!({ "query": named, "bytes": body.len(), "content": digest })
}

/// Asks the application what the kubelet asks, and tells its status alone.
///
/// # Errors
/// Why there is no answer.
pub(super) async fn probe(
    destination: SocketAddr,
    asked: &Request<Incoming>,
) -> Result<Response<Body>, Reason> {
    // Headers of somebody who has proven nothing do not reach the application.
    let mut request = Request::new(Full::new(Bytes::new()));
    request.uri_mut().clone_from(asked.uri());
    let host = HeaderValue::from_str(&destination.to_string());
    request.headers_mut().insert(header::HOST, host.map_err(|_| Reason::MalformedMessage)?);
    request.headers_mut().insert(header::USER_AGENT, HeaderValue::from_static("kube-probe/aegis"));
    let direct = Direct::Plain(destination);
    let answered = tokio::time::timeout(PROBE, send(&direct, request, &Told::default())).await;
    let status = answered.map_err(|_| Reason::UpstreamTimeout)??.status();
    let mut response = Response::new(Full::new(Bytes::new()));
    *response.status_mut() = status;
    Ok(boxed(response))
}

/// The whole answer to a request.
async fn whole(
    direct: &Direct,
    request: Request<Full<Bytes>>,
    told: &Told,
) -> Result<Response<Bytes>, Reason> {
    let answering = async {
        let (mut head, body) = send(direct, request, told).await?.into_parts();
        let bytes = match Limited::new(body, MAX_BODY_BYTES).collect().await {
            Ok(collected) => collected.to_bytes(),
            Err(error) if error.is::<LengthLimitError>() => return Err(Reason::UpstreamTooLarge),
            Err(_) => return Err(Reason::UpstreamUnavailable),
        };
        // A stream of MCP's, whose questions to the client nobody would have judged.
        if relay::content_type(&head.headers) == "text/event-stream" {
            return Err(Reason::UpstreamMalformed);
        }
        end_to_end(&mut head.headers);
        Ok(Response::from_parts(head, bytes))
    };
    let answered = tokio::time::timeout(PATIENCE, answering).await;
    answered.map_err(|_| Reason::UpstreamTimeout)?
}

/// Sends one request on a connection of its own.
async fn send(
    direct: &Direct,
    mut request: Request<Full<Bytes>>,
    told: &Told,
) -> Result<Response<Incoming>, Reason> {
    let host: Option<HeaderValue> = request.headers().get(header::HOST).cloned();
    let headers: &mut HeaderMap = request.headers_mut();
    end_to_end(headers);
    if let Some(host) = host {
        headers.insert(header::HOST, host);
    }
    direct.send(request, told).await.map_err(|error| {
        tracing::info!(%error, "the application does not answer");
        if refuses_manifest(&error) {
            return Reason::ManifestRefused;
        }
        Reason::UpstreamUnavailable
    })
}
