//! One request of the kernel API: bounded, parsed strictly, answered in its own standard's form.

use std::{convert::Infallible, sync::Arc, time::Duration};

use aegis_api::kernel::{
    Configuration, DataDocument, DataResult, Ended, Evaluation, Evaluations, MAX_WAIT_SECS,
    OutcomeReport, OutcomeTaken, Refused,
};
use aegis_audit::entry::Outcome;
use aegis_core::{Digest, decision::Reason};
use aegis_protocol::{
    hooks::{self, Agent},
    json::{self, Limits},
    kernel::{Asked, QuestionError, evaluation, evaluations, query},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde::Serialize;
use serde_json::{Map, Value};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{NAME, Session, evaluate::Caller, outcomes::DEADLINE, preview::refused};
use crate::{
    inbound::{Body, is_json, is_loopback, one},
    respond,
};

/// How large a question may be.
const LIMITS: Limits = Limits { size: 1 << 20, depth: 64 };
/// How large a hook's payload may be: it holds the whole content of a file that is to be written.
const HOOK_LIMITS: Limits = Limits { size: 4 << 20, depth: 64 };
/// Where coding agents' hooks ask; the agent's name follows.
const HOOKS: &str = "/v1/hooks/";
/// What an enforcement point may say that it refuses for.
const OWN_REASONS: [Reason; 3] =
    [Reason::MalformedMessage, Reason::OutsideRoot, Reason::ToolUnknown];
/// How large a request's head may be. Bytes.
const HEAD_BYTES: usize = 16 * 1024;
/// How long a body may take.
const BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest `traceparent`.
const MAX_TRACE: usize = 55;
/// Names a request; echoed.
const REQUEST_ID: &str = "x-request-id";

/// What a client on loopback has to know, besides being somebody.
#[derive(Clone)]
pub struct Token(Digest);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token")
    }
}

impl Token {
    /// The token with this text.
    #[must_use]
    pub fn new(text: &str) -> Self {
        Self(Digest::of(text.as_bytes()))
    }

    /// Whether a request brings it. Digests are compared: how long that takes tells nothing.
    fn is_in(&self, headers: &HeaderMap) -> bool {
        let brought = one(headers, "authorization").ok().flatten();
        let text = brought.and_then(|value| value.strip_prefix("Bearer "));
        text.is_some_and(|text| Digest::of(text.as_bytes()) == self.0)
    }
}

/// A refusal of the request itself.
struct Refusal(StatusCode, Reason, String);

impl From<Reason> for Refusal {
    fn from(reason: Reason) -> Self {
        Self(respond::status_of(reason), reason, reason.sentence().into())
    }
}

impl Session {
    /// Answers the requests of one connection, until the process drains; the one under way is still
    /// answered.
    pub(super) async fn run<S: AsyncRead + AsyncWrite + Unpin>(self, stream: S) {
        let session = Arc::new(self);
        let answering = Arc::clone(&session);
        let service = service_fn(move |request| {
            let session = Arc::clone(&answering);
            async move { Ok::<_, Infallible>(session.answer(request).await) }
        });
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            // While a function runs its caller is silent, and still there.
            .header_read_timeout(DEADLINE)
            .max_headers(64)
            .max_buf_size(HEAD_BYTES)
            .serve_connection(TokioIo::new(stream), service);
        tokio::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = session.api.shared.drain.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "a connection of the kernel API ended early");
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        let id = request.headers().get(REQUEST_ID).cloned();
        let mut response = match self.routed(request).await {
            Ok(response) => response,
            Err(Refusal(status, reason, message)) => {
                let told = Refused { message, reason: reason.code().into() };
                let mut response = sent(status, &told);
                if matches!(reason, Reason::MessageTooLarge | Reason::MessageTimeout) {
                    // What is left of the body is not worth reading.
                    let close = HeaderValue::from_static("close");
                    response.headers_mut().insert(header::CONNECTION, close);
                }
                response
            }
        };
        if let Some(id) = id {
            response.headers_mut().insert(REQUEST_ID, id);
        }
        response
    }

    async fn routed(&self, request: Request<Incoming>) -> Result<Response<Body>, Refusal> {
        self.check_door(request.headers()).map_err(|reason| self.stranger(reason))?;
        let caller = self.caller(request.headers()).map_err(|reason| self.stranger(reason))?;
        let (head, body) = request.into_parts();
        match (&head.method, head.uri.path()) {
            (&Method::POST, "/access/v1/evaluation") => {
                let bytes = self.read(&caller, &head.headers, body, LIMITS).await?;
                let asked = evaluation(&bytes, LIMITS);
                let asked = asked.map(|question| Asked::One(Box::new(question)));
                self.asked(&caller, asked).await
            }
            (&Method::POST, "/access/v1/evaluations") => {
                let bytes = self.read(&caller, &head.headers, body, LIMITS).await?;
                self.asked(&caller, evaluations(&bytes, LIMITS)).await
            }
            (&Method::POST, path) if path.starts_with(HOOKS) => {
                let named = path.strip_prefix(HOOKS).and_then(Agent::named);
                let agent = named.ok_or_else(no_agent)?;
                let bytes = self.read(&caller, &head.headers, body, HOOK_LIMITS).await?;
                Ok(sent(StatusCode::OK, &self.hook(&caller, agent, &bytes).await))
            }
            (&Method::POST, "/v1/data/aegis/decision") => {
                let bytes = self.read(&caller, &head.headers, body, LIMITS).await?;
                let Evaluation { decision, context } = match query(&bytes, LIMITS) {
                    Ok(question) => self.api.evaluate(&caller, question).await,
                    Err(error) => self.refused(&caller, &error).await?,
                };
                let decision_id = context.decision_id.clone();
                let result = DataDocument { allow: decision, context };
                Ok(sent(StatusCode::OK, &DataResult { decision_id, result }))
            }
            (&Method::POST, "/v1/outcomes") => {
                let bytes = self.read(&caller, &head.headers, body, LIMITS).await?;
                self.outcome(&caller, &bytes).await
            }
            (&Method::POST, "/v1/refusals") => {
                let bytes = self.read(&caller, &head.headers, body, LIMITS).await?;
                Ok(sent(StatusCode::OK, &self.refusal(&caller, &bytes).await?))
            }
            (&Method::POST, "/v1/preview") => self.preview(&caller, &head.headers, body).await,
            (&Method::GET, "/v1/self") => Ok(sent(StatusCode::OK, &self.api.about(&caller))),
            (&Method::GET, "/v1/policies") => {
                Ok(sent(StatusCode::OK, &self.api.policies_of(&caller)))
            }
            (&Method::GET, "/v1/events") => Ok(self.events(caller)),
            (&Method::GET, "/.well-known/authzen-configuration") => {
                Ok(sent(StatusCode::OK, &self.configuration(&head.headers)))
            }
            _ => {
                let message = "the kernel API has no such method and path; see its reference";
                Err(Refusal(StatusCode::NOT_FOUND, Reason::MethodUnknown, message.into()))
            }
        }
    }

    /// Refuses somebody who is not known.
    fn stranger(&self, reason: Reason) -> Refusal {
        self.api.shared.refusals.count(NAME, reason);
        reason.into()
    }

    /// A page that a browser has loaded must not reach the decision point by a name of its own
    /// choosing, and neither must a process that was not given the token.
    fn check_door(&self, headers: &HeaderMap) -> Result<(), Reason> {
        // No browser has anything to ask here.
        if headers.contains_key(header::ORIGIN) {
            return Err(Reason::OriginRefused);
        }
        let Some((port, token)) = &self.loopback else { return Ok(()) };
        let host = one(headers, "host").ok().flatten().ok_or(Reason::HostRefused)?;
        if !is_loopback(host, Some(*port)) {
            return Err(Reason::HostRefused);
        }
        if token.is_in(headers) { Ok(()) } else { Err(Reason::IdentityMissing) }
    }

    /// Who asks: what the operating system says of the connection, and nothing else.
    fn caller(&self, headers: &HeaderMap) -> Result<Caller, Reason> {
        let attested = self.attested.as_ref().map_err(|reason| *reason)?;
        let state = self.api.shared.kernel.state();
        let principal = state.registry.principal(&attested.id, attested.not_after);
        let principal = principal.ok_or(Reason::IdentityUnknown)?;
        let trace = one(headers, "traceparent").ok().flatten();
        let trace = trace.filter(|trace| trace.len() <= MAX_TRACE).map(str::to_owned);
        Ok(Caller { principal, connection: self.number, trace, wait: patience(headers) })
    }

    /// Reads a whole body; never judges a part of one.
    async fn read(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        body: Incoming,
        limits: Limits,
    ) -> Result<Bytes, Refusal> {
        let reason = match collect(headers, body, limits).await {
            Ok(bytes) => return Ok(bytes),
            Err(reason) => reason,
        };
        self.api.shared.kernel.refuse(&caller.principal, NAME, reason, Map::new()).await;
        Err(unread(reason))
    }

    /// Answers what would be decided. What is no question is told so, and nothing is recorded.
    async fn preview(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        body: Incoming,
    ) -> Result<Response<Body>, Refusal> {
        let bytes = collect(headers, body, LIMITS).await.map_err(unread)?;
        let preview = match evaluation(&bytes, LIMITS) {
            Ok(question) => self.api.preview(caller, &question)?,
            Err(error) if is_deniable(&error) => refused(error.reason(), error.to_string()),
            Err(error) => return Err(no_question(&error)),
        };
        Ok(sent(StatusCode::OK, &preview))
    }

    async fn asked(
        &self,
        caller: &Caller,
        asked: Result<Asked, QuestionError>,
    ) -> Result<Response<Body>, Refusal> {
        let answer = match asked {
            Ok(Asked::Several(semantic, questions)) => {
                let evaluations = self.api.evaluate_all(caller, semantic, questions).await;
                return Ok(sent(StatusCode::OK, &Evaluations { evaluations }));
            }
            Ok(Asked::One(question)) => self.api.evaluate(caller, *question).await,
            Err(error) => self.refused(caller, &error).await?,
        };
        Ok(sent(StatusCode::OK, &answer))
    }

    /// Decides on what a coding agent's hook was told. What cannot be judged is denied and recorded.
    async fn hook(&self, caller: &Caller, agent: Agent, bytes: &[u8]) -> Evaluation {
        match hooks::read(agent, bytes, HOOK_LIMITS) {
            Ok(hook) => self.api.evaluate_whole(caller, hook.actions).await,
            Err(error) => {
                let (reason, message) = (error.reason(), error.to_string());
                self.api.refuse(&caller.principal, reason, message).await
            }
        }
    }

    /// Records what cannot be judged. An action that nothing is known of is denied; what is no
    /// question at all is told so.
    async fn refused(&self, caller: &Caller, error: &QuestionError) -> Result<Evaluation, Refusal> {
        let denied = self.api.refuse(&caller.principal, error.reason(), error.to_string()).await;
        if is_deniable(error) { Ok(denied) } else { Err(no_question(error)) }
    }

    /// Records what the caller has refused by itself, before any policy.
    async fn refusal(&self, caller: &Caller, bytes: &[u8]) -> Result<Evaluation, Refusal> {
        match evaluation(bytes, LIMITS).and_then(|question| Ok((own_reason(bytes)?, question))) {
            Ok((reason, question)) => Ok(self.api.refuse_own(caller, &question, reason).await),
            Err(error) => self.refused(caller, &error).await,
        }
    }

    async fn outcome(&self, caller: &Caller, bytes: &[u8]) -> Result<Response<Body>, Refusal> {
        let malformed =
            |message: String| Refusal(StatusCode::BAD_REQUEST, Reason::MalformedMessage, message);
        let value = json::parse(bytes, LIMITS).map_err(|error| malformed(error.to_string()))?;
        let report: OutcomeReport = serde_json::from_value(value).map_err(|_| {
            malformed(
                "an outcome has `decision_id` and `result`: `success`, `failure` or `unknown`"
                    .into(),
            )
        })?;
        let result = match report.result {
            Ended::Success => Outcome::Success,
            Ended::Failure => Outcome::Failure,
            Ended::Unknown => Outcome::Unknown,
        };
        let (kernel, agent) = (&self.api.shared.kernel, &caller.principal.id);
        let decision_id = report.decision_id;
        if self.api.open.report(kernel, agent, &decision_id, result).await {
            return Ok(sent(StatusCode::OK, &OutcomeTaken { decision_id }));
        }
        let message = "no decision of yours with this id awaits an outcome; each is reported once, within the hour and by who was allowed";
        Err(Refusal(StatusCode::NOT_FOUND, Reason::MalformedMessage, message.into()))
    }

    fn events(&self, caller: Caller) -> Response<Body> {
        let mut response = Response::new(self.api.events(caller.principal));
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        response
    }

    /// Where everything is, under the name that the caller uses.
    fn configuration(&self, headers: &HeaderMap) -> Configuration {
        let host = one(headers, "host").ok().flatten().filter(|host| is_loopback(host, None));
        let point = format!("http://{}", host.unwrap_or("localhost"));
        Configuration {
            access_evaluation_endpoint: format!("{point}/access/v1/evaluation"),
            access_evaluations_endpoint: format!("{point}/access/v1/evaluations"),
            policy_decision_point: point,
        }
    }
}

/// Why an enforcement point refuses by itself, as the question's context says.
fn own_reason(bytes: &[u8]) -> Result<Reason, QuestionError> {
    let whole = json::parse(bytes, LIMITS)?;
    let named = whole.get("context").and_then(|context| context.get("reason"));
    let reason = named.and_then(Value::as_str).and_then(|code| code.parse().ok());
    reason.filter(|reason| OWN_REASONS.contains(reason)).ok_or(QuestionError::Member {
        member: "context.reason",
        expected: "`malformed_message`, `outside_root` or `tool_unknown`",
    })
}

/// Reads a whole body; never a part of one.
async fn collect(headers: &HeaderMap, body: Incoming, limits: Limits) -> Result<Bytes, Reason> {
    if !is_json(headers) || headers.contains_key(header::CONTENT_ENCODING) {
        return Err(Reason::MalformedMessage);
    }
    let read = Limited::new(body, limits.size).collect();
    match tokio::time::timeout(BODY_TIMEOUT, read).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<LengthLimitError>() => Err(Reason::MessageTooLarge),
        Ok(Err(_)) => Err(Reason::MalformedMessage),
        Err(_) => Err(Reason::MessageTimeout),
    }
}

fn unread(reason: Reason) -> Refusal {
    let message = match reason {
        Reason::MalformedMessage => "send one JSON document as `content-type: application/json`",
        _ => reason.sentence(),
    };
    Refusal(respond::status_of(reason), reason, message.into())
}

/// Whether it asks for an action, which is one that nothing is known of.
const fn is_deniable(error: &QuestionError) -> bool {
    match error {
        QuestionError::Method
        | QuestionError::Name { .. }
        | QuestionError::Uri(_)
        | QuestionError::Path => true,
        QuestionError::Json(_)
        | QuestionError::Member { .. }
        | QuestionError::Unjudged { .. }
        | QuestionError::Batch => false,
    }
}

fn no_question(error: &QuestionError) -> Refusal {
    Refusal(StatusCode::BAD_REQUEST, error.reason(), error.to_string())
}

fn no_agent() -> Refusal {
    let names: Vec<&str> = Agent::ALL.into_iter().map(Agent::as_str).collect();
    let message = format!("there are hooks of {}, and of no other agent", names.join(", "));
    Refusal(StatusCode::NOT_FOUND, Reason::MethodUnknown, message)
}

/// How long a caller wants to be held (RFC 7240, `wait`).
fn patience(headers: &HeaderMap) -> Duration {
    let prefers = one(headers, "prefer").ok().flatten().unwrap_or_default();
    let wait = prefers.split(',').find_map(|one| one.trim().strip_prefix("wait="));
    let seconds = wait.and_then(|seconds| seconds.parse::<u64>().ok()).unwrap_or_default();
    Duration::from_secs(seconds.min(MAX_WAIT_SECS))
}

fn sent(status: StatusCode, body: &impl Serialize) -> Response<Body> {
    let (status, bytes) = match serde_json::to_vec(body) {
        Ok(bytes) => (status, bytes),
        Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, Vec::new()),
    };
    let mut response = Response::new(Full::new(Bytes::from(bytes)).boxed_unsync());
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
