//! One governed A2A agent: a request is parsed, its tasks are the caller's, its webhook may be called,
//! it is decided on, and then its own bytes go to the path that the client named. The answer leaves
//! through the same [`Exchange`] as an MCP server's.

mod tasks;
mod webhook;

use std::{sync::Arc, time::Duration};

use aegis_core::{
    action::Action,
    approval::ApprovalState,
    decision::{Reason, Verdict},
};
use aegis_kernel::Permit;
use aegis_protocol::{
    a2a::{
        self, Asked, ClientRequest, Form, MEDIA_TYPE, Received, VERSION_HEADER, Version,
        binding_of, deny,
    },
    mcp::deny::Answer,
};
use bytes::Bytes;
use futures::stream::{self, StreamExt as _};
use http::{HeaderMap, HeaderValue, Method, Request, Response, header, uri::PathAndQuery};
use hyper::body::Incoming;
use serde_json::Map;

use crate::{
    exchange::Exchange,
    grant::Told,
    inbound::{self, Body, RequestBody, boxed},
    relay::{failed, relay},
    respond,
    route::{Caller, Route},
    stream as streams,
};

pub(crate) use tasks::Tasks;

/// The answer to somebody who has proven nothing.
pub(crate) fn stranger<B>(route: &Route, request: &Request<B>, reason: Reason) -> Answer {
    let form = form(&received(route, request.method(), request.uri(), request.headers()));
    deny::denied(&form, reason, reason.sentence())
}

fn received<'a>(
    route: &'a Route,
    method: &'a Method,
    uri: &'a http::Uri,
    headers: &'a HeaderMap,
) -> Received<'a> {
    let base = route.target.as_ref().map_or("/", |target| target.path());
    Received { method, path: uri.path(), query: uri.query(), headers, base }
}

/// How a request is answered whose body nobody has read.
fn form(received: &Received<'_>) -> Form {
    let told = received.headers.get(VERSION_HEADER).and_then(|value| value.to_str().ok());
    let version = told.and_then(Version::of).unwrap_or(Version::V0_3);
    Form { binding: binding_of(received), version, id: None }
}

/// Answers one request of somebody who is known.
pub(crate) async fn governed<B: RequestBody>(
    route: &Arc<Route>,
    caller: Caller,
    request: Request<B>,
) -> Response<Body> {
    let (head, body) = request.into_parts();
    let received = received(route, &head.method, &head.uri, &head.headers);
    let bytes = match read(route, &head.headers, body).await {
        Ok(bytes) => bytes,
        Err(reason) => {
            unreadable(route, &caller, reason).await;
            let answer = deny::denied(&form(&received), reason, reason.sentence());
            let mut response = respond::http(answer);
            // What is left of the body is not worth reading.
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            return boxed(response);
        }
    };
    let known = &route.spec.a2a.extensions;
    let request = match a2a::parse(&route.name, &received, known, bytes, route.request_limits()) {
        Ok(request) => request,
        Err(refusal) => {
            unreadable(route, &caller, refusal.error.reason()).await;
            return boxed(respond::http(deny::refuse(&refusal)));
        }
    };
    caller.span.begin_a2a(route, &caller, &head.headers, &request);
    if !is_own(route, &caller, &request) {
        route.refuse(&caller, request.action(), None, Reason::TaskUnknown).await;
        return boxed(respond::http(deny::task_not_found(&request.asked().form)));
    }
    let egress = match request.webhook() {
        None => None,
        Some(url) => match webhook::check(route, &caller, url).await {
            Ok(action) => Some(action),
            Err(reason) => {
                route.refuse(&caller, request.action(), None, reason).await;
                let form = &request.asked().form;
                return boxed(respond::http(deny::denied(form, reason, reason.sentence())));
            }
        },
    };
    let path = head.uri.path_and_query().cloned();
    let path = path.unwrap_or_else(|| PathAndQuery::from_static("/"));
    let route = Arc::clone(route);
    Call { route, caller, method: head.method, path, headers: head.headers, egress }
        .run(request)
        .await
}

/// Reads a whole body, which is JSON if there is any.
async fn read(route: &Route, headers: &HeaderMap, body: impl RequestBody) -> Result<Bytes, Reason> {
    if headers.contains_key(header::CONTENT_ENCODING) {
        return Err(Reason::MalformedMessage);
    }
    let json = inbound::claims(headers, &["application/json", MEDIA_TYPE]);
    let bytes = inbound::read_whole(route, body).await?;
    if json || bytes.is_empty() { Ok(bytes) } else { Err(Reason::MalformedMessage) }
}

async fn unreadable(route: &Route, caller: &Caller, reason: Reason) {
    route.count(Verdict::Deny, reason);
    route.kernel().refuse(&caller.principal, &route.name, reason, Map::new()).await;
}

/// Whether every task and the context that a request names are the caller's.
fn is_own(route: &Route, caller: &Caller, request: &ClientRequest) -> bool {
    let (tasks, agent) = (&route.tasks, &caller.principal.id);
    let new = route.spec.a2a.client_contexts;
    request.tasks().iter().all(|task| tasks.owns(agent, task))
        && request.context().is_none_or(|context| tasks.may_join(agent, context, new))
}

/// A request on its way.
struct Call {
    route: Arc<Route>,
    caller: Caller,
    method: Method,
    path: PathAndQuery,
    headers: HeaderMap,
    /// What the agent is to send by itself.
    egress: Option<Action>,
}

/// What the kernel says of a request.
enum Settled {
    Permit(Box<Permit<ClientRequest>>),
    Answer(Answer),
    Waits(Box<Waits>),
}

/// A request that waits for a human.
struct Waits {
    request: ClientRequest,
    approval: String,
    text: String,
}

impl Call {
    async fn run(self, request: ClientRequest) -> Response<Body> {
        let streaming = request.asked().operation.streams();
        match self.settle(request).await {
            Settled::Permit(permit) => self.exchange(*permit).await,
            Settled::Answer(answer) => boxed(respond::http(answer)),
            Settled::Waits(waits) if streaming => {
                let approval = waits.approval.clone();
                let waiting = Box::pin(async move {
                    match self.wait(*waits).await {
                        Ok(permit) => streams::carried(self.send(*permit).await).await,
                        Err(answer) => {
                            let event = deny::event(&answer);
                            stream::once(async move { event }).boxed()
                        }
                    }
                });
                inbound::event_stream(streams::kept_alive(&approval, waiting))
            }
            Settled::Waits(waits) => match self.wait(*waits).await {
                Ok(permit) => self.exchange(*permit).await,
                Err(answer) => boxed(respond::http(answer)),
            },
        }
    }

    async fn settle(&self, request: ClientRequest) -> Settled {
        let trace = self.headers.get("traceparent").and_then(|value| value.to_str().ok());
        match self.route.judge(&self.caller, request, trace).await {
            Ok(permit) => Settled::Permit(Box::new(permit)),
            Err((refusal, request)) => match (refusal.decision.verdict, refusal.approval) {
                (Verdict::RequireApproval, Some(approval)) => {
                    let text = refusal.decision.message.clone();
                    Settled::Waits(Box::new(Waits { request, approval, text }))
                }
                _ => {
                    let (decision, form) = (&refusal.decision, &request.asked().form);
                    let text = format!("Refused by policy: {}", decision.message);
                    Settled::Answer(deny::denied(form, decision.reason, &text))
                }
            },
        }
    }

    /// Waits for a human as long as the route holds calls, and judges the request again.
    async fn wait(&self, waits: Waits) -> Result<Box<Permit<ClientRequest>>, Answer> {
        let Waits { request, approval, text } = waits;
        let asked = request.asked().clone();
        let pending = |asked: &Asked| {
            let reason = Reason::ApprovalPending;
            let text = format!(
                "Waiting for a human: {text} Approval {approval} is open; repeat the request once it is approved"
            );
            deny::denied(&asked.form, reason, &text)
        };
        let reason = match inbound::decided(&self.route, &approval).await {
            ApprovalState::Pending => return Err(pending(&asked)),
            ApprovalState::Approved => {
                return match self.settle(request).await {
                    Settled::Permit(permit) => Ok(permit),
                    Settled::Answer(answer) => Err(answer),
                    Settled::Waits(_) => Err(pending(&asked)),
                };
            }
            ApprovalState::Denied => Reason::ApprovalDenied,
            _ => Reason::ApprovalExpired,
        };
        self.route.refuse(&self.caller, request.action(), Some(&approval), reason).await;
        Err(deny::denied(&asked.form, reason, reason.sentence()))
    }

    /// Forwards a permitted request and releases its answer.
    async fn exchange(&self, permit: Permit<ClientRequest>) -> Response<Body> {
        match self.send(permit).await {
            Ok((response, exchange)) => relay(response, exchange).await,
            Err((reason, exchange)) => failed(exchange, reason).await,
        }
    }

    async fn send(
        &self,
        permit: Permit<ClientRequest>,
    ) -> Result<(Response<Incoming>, Exchange), (Reason, Exchange)> {
        let told = Told::of(permit.receipt(), &self.caller.carried);
        let within = permit.receipt().decision_id.clone();
        let route = &self.route;
        let (bytes, exchange) =
            Exchange::open_request(Arc::clone(route), self.caller.clone(), permit);
        if let Some(egress) = self.egress.clone()
            && let Err(reason) = webhook::decide(route, &self.caller, &within, egress).await
        {
            return Err((reason, exchange));
        }
        let Some(target) = &route.target else {
            return Err((Reason::UpstreamUnavailable, exchange));
        };
        let timeout = Duration::from_secs(route.spec.limits.answer_timeout_secs.into());
        let (method, path, mut headers) =
            (self.method.clone(), self.path.clone(), self.headers.clone());
        self.caller.span.pass_on(&mut headers);
        match target.send_to(method, path, headers, (bytes, told), timeout).await {
            Ok(response) => Ok((response, exchange)),
            Err(reason) => Err((reason, exchange)),
        }
    }
}
