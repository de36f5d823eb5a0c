//! One governed upstream: from a message's bytes to a permit, an answer, or a wait.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Instant,
};

use aegis_audit::entry::Outcome as Ended;
use aegis_core::{
    AgentId, Digest,
    action::{Action, ActionKind, Protocol},
    decision::{Reason, Verdict},
    policy::Scope,
};
use aegis_kernel::{Context, Judged, Kernel, Permit, Principal, Refusal, Shown};
use aegis_protocol::{
    json::Limits as JsonLimits,
    jsonrpc::Id,
    mcp::{
        self, ClientKind, ClientMessage, ClientMethod, Era, ProtocolError, ServerMethod, Transport,
        capabilities::{self, Allowed},
        deny::Answer,
    },
};
use aegis_resources::AgentUpstreamSpec;
use aegis_runtime::telemetry::Tracer;
use bytes::Bytes;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::{
    a2a::Tasks,
    attest::Attest,
    bounded::{Bounded, MAX_REMEMBERED},
    delegation::Carried,
    exchange::Exchange,
    forward::Target,
    listing::Unlisted,
    metrics::Metrics,
    pins::{Known, Pins},
    refusals::Refusals,
    resolve::Reachable,
    respond,
    span::CallSpan,
};

/// What every route of a process shares.
pub struct Shared {
    /// The decision point.
    pub kernel: Arc<Kernel>,
    /// Tells who is at the other end.
    pub attest: Arc<dyn Attest>,
    /// Refusals of strangers.
    pub refusals: Arc<Refusals>,
    /// What is counted.
    pub metrics: Metrics,
    /// Makes the spans of calls, where they are exported.
    pub tracer: Option<Tracer>,
    /// Which addresses upstreams may be at.
    pub reachable: Reachable,
    /// Cancelled when the process is to end.
    pub drain: CancellationToken,
}

/// One governed upstream.
pub struct Route {
    /// What all routes share.
    pub shared: Arc<Shared>,
    /// The upstream's name in the configuration.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// Its specification.
    pub spec: AgentUpstreamSpec,
    /// Port and path of another pod's server, which has other ports and paths under the same name.
    pub(crate) endpoint: Option<String>,
    /// The definitions of its tools.
    pub pins: Arc<Pins>,
    /// Whose the tasks of an A2A agent are.
    pub(crate) tasks: Arc<Tasks>,
    /// Where to forward; `None` for a wrapped command, whose streams the wrapper holds.
    pub target: Option<Target>,
    /// What the server has asked its clients, by session and id.
    asked: Mutex<Bounded<Key, ServerMethod>>,
    /// Exchanges whose stream broke off and may be resumed, by session and id.
    parked: Mutex<Bounded<Key, Exchange>>,
    /// The sessions in which the server has listed all its tools.
    listed: Mutex<Bounded<(AgentId, Option<String>), ()>>,
    allowed: Mutex<HashMap<AgentId, (u64, u64, Allowed)>>,
    address: OnceLock<SocketAddr>,
}

/// Why a route cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("AgentUpstream `{name}`: {message}")]
pub struct RouteError {
    /// Which.
    pub name: String,
    /// What is wrong and what to do.
    pub message: String,
}

mod held;

pub(crate) use held::OWN_STATE;

/// Who speaks, and in which session.
#[derive(Clone, Debug)]
pub struct Caller {
    /// The agent.
    pub principal: Principal,
    /// The protocol's session.
    pub session: Option<String>,
    /// The grant of an approval that came with the message.
    pub grant: Option<Arc<Shown>>,
    /// On whose behalf it was sent, and what is lent with it.
    pub carried: Arc<Carried>,
    /// The span of the message.
    pub span: CallSpan,
}

impl Caller {
    /// The same caller with another message.
    pub(crate) fn with_span(&self, span: CallSpan) -> Self {
        Self { span, ..self.clone() }
    }
}

/// How far a message is.
#[derive(Debug)]
pub enum Governed {
    /// It is judged.
    Settled(Step),
    /// It calls a tool in a session in which the server has not listed its tools yet: they are to
    /// be learned first, and then [`Route::govern_listed`] judges it.
    Unlisted(Box<Pending>),
}

/// A parsed message that is not judged yet.
#[derive(Debug)]
pub struct Pending {
    message: ClientMessage,
    asks: Asks,
}

impl Pending {
    /// How its client speaks.
    #[must_use]
    pub const fn era(&self) -> Era {
        self.message.era()
    }
}

/// How a client can be told that a call waits for a human.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asks {
    /// It is held, or told in a tool's result.
    Never,
    /// By a form that Aegis answers it with at once, and whose answer repeats the call.
    Now,
    /// It repeats a call after such a form: it is held, and gets the form again if nobody has
    /// decided by then. So a client that confirms by itself does not ask in a circle.
    Later,
}

/// What becomes of a message.
#[derive(Debug)]
pub enum Step {
    /// It may go.
    Forward(Box<Permit<ClientMessage>>),
    /// It is answered here. `one_way` messages get no answer on stdio.
    Answer {
        /// The answer.
        answer: Answer,
        /// Whether the message was a notification or a response.
        one_way: bool,
    },
    /// It waits for a human.
    Hold(Box<Held>),
}

/// A call that waits for a human.
#[derive(Debug)]
pub struct Held {
    /// The message, as it was judged.
    pub message: ClientMessage,
    /// The approval that it waits for.
    pub approval: String,
    /// The sentence for whoever asked.
    pub text: String,
    /// How its client can be told that it waits.
    pub asks: Asks,
}

/// An id within an agent's session.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Key {
    /// The agent: a session's name is the client's claim, and not enough.
    pub agent: AgentId,
    /// The session, where the protocol has one.
    pub session: Option<String>,
    /// The id.
    pub id: Id,
}

impl Key {
    fn is_of(&self, caller: &Caller) -> bool {
        self.agent == caller.principal.id && self.session == caller.session
    }
}

impl std::fmt::Debug for Route {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Route").field("name", &self.name).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").finish_non_exhaustive()
    }
}

impl Route {
    /// A route for an upstream that has passed its own validation.
    ///
    /// # Errors
    /// When its URL, its roots or its credential cannot be used.
    pub fn new(
        shared: Arc<Shared>,
        namespace: &str,
        name: &str,
        spec: AgentUpstreamSpec,
    ) -> Result<Self, RouteError> {
        let target = match spec.url {
            Some(_) => Some(
                Target::new(&spec, shared.reachable.clone())
                    .map_err(|message| RouteError { name: name.into(), message })?,
            ),
            None => None,
        };
        let pins = Arc::new(Pins::new(namespace, name, &spec.tool_pins));
        Ok(Self::with_target(shared, namespace, name, spec, target, pins))
    }

    /// The same server as `before` by another specification: what is known of its tools stays, unless
    /// other pins are configured.
    ///
    /// # Errors
    /// As [`Route::new`].
    pub fn succeeding(before: &Self, spec: AgentUpstreamSpec) -> Result<Self, RouteError> {
        let same = before.spec.tool_pins == spec.tool_pins && before.spec.url == spec.url;
        let mut route =
            Self::new(Arc::clone(&before.shared), &before.namespace, &before.name, spec)?;
        if same {
            route.pins = Arc::clone(&before.pins);
        }
        if before.spec.url == route.spec.url {
            route.tasks = Arc::clone(&before.tasks);
        }
        Ok(route)
    }

    /// A route to `target`, whatever the specification says of a URL.
    pub(crate) fn with_target(
        shared: Arc<Shared>,
        namespace: &str,
        name: &str,
        spec: AgentUpstreamSpec,
        target: Option<Target>,
        pins: Arc<Pins>,
    ) -> Self {
        Self {
            pins,
            endpoint: None,
            shared,
            name: name.into(),
            namespace: namespace.into(),
            spec,
            tasks: Arc::default(),
            target,
            asked: Mutex::default(),
            parked: Mutex::default(),
            listed: Mutex::default(),
            allowed: Mutex::default(),
            address: OnceLock::new(),
        }
    }

    /// Leads to one of several endpoints of its server.
    pub(crate) fn at(self, endpoint: String) -> Self {
        Self { endpoint: Some(endpoint), ..self }
    }

    /// Knows of these tasks, as others do that lead to the same agent.
    pub(crate) fn sharing(self, tasks: Arc<Tasks>) -> Self {
        Self { tasks, ..self }
    }

    /// How large and deep a client's message may be.
    #[must_use]
    pub fn request_limits(&self) -> JsonLimits {
        JsonLimits { size: size(self.spec.limits.request_bytes), ..JsonLimits::default() }
    }

    /// How large and deep a server's message may be.
    #[must_use]
    pub fn response_limits(&self) -> JsonLimits {
        JsonLimits { size: size(self.spec.limits.response_bytes), ..JsonLimits::default() }
    }

    /// Where it listens, once it does.
    #[must_use]
    pub fn address(&self) -> Option<SocketAddr> {
        self.address.get().copied()
    }

    /// Notes where it listens.
    pub(crate) fn listens_on(&self, address: SocketAddr) {
        let _ = self.address.set(address);
    }

    /// The kernel.
    #[must_use]
    pub fn kernel(&self) -> &Arc<Kernel> {
        &self.shared.kernel
    }

    /// The circumstances of a question by `caller`.
    #[must_use]
    pub fn context<'a>(&'a self, caller: &'a Caller) -> Context<'a> {
        let mut context = Context::new(&caller.principal, Scope::Mesh, &self.namespace);
        context.session = caller.session.as_deref();
        context.endpoint = self.endpoint.as_deref();
        context.trace = caller.span.traceparent();
        context
    }

    /// The span of a message that has just come.
    #[must_use]
    pub fn span(&self) -> CallSpan {
        CallSpan::of(self.shared.tracer.as_ref())
    }

    /// Judges one message of a client.
    pub async fn govern(
        self: &Arc<Self>,
        caller: &Caller,
        transport: Transport<'_>,
        body: Bytes,
    ) -> Governed {
        let retry = held::take_retry(&body);
        let body = retry.as_ref().map_or(body, |retry| retry.body.clone());
        let stripped = self.strip_capabilities(caller, body.clone());
        let mut message =
            match mcp::parse_client(&self.name, transport, stripped, self.request_limits()) {
                Ok(message) => message,
                Err(refusal) => return Governed::Settled(self.unreadable(caller, &refusal).await),
            };
        caller.span.begin_mcp(self, caller, transport, &message);
        if let Some(retry) = &retry
            && let Some(step) = self.check_retry(caller, &message, retry).await
        {
            return Governed::Settled(step);
        }
        let asks = held::asks(&message, &body, retry.is_some());
        if message.method() == Some(ClientMethod::ToolsCall)
            && self.is_unlisted(caller, message.action())
        {
            let judgement = self.kernel().evaluate(&self.context(caller).about(message.action()));
            if judgement.decision.verdict != Verdict::Deny {
                return Governed::Unlisted(Box::new(Pending { message, asks }));
            }
            // Denied whatever the server has: it is not asked for it.
            return Governed::Settled(self.deny_unlisted(caller, message).await);
        }
        if message.method() == Some(ClientMethod::ToolsCall) && self.is_denied(caller, &message) {
            // Another enforcement point may have left the tool out of the list for the same reason.
            return Governed::Settled(self.deny_unlisted(caller, message).await);
        }
        let checked = self.check_before(caller, transport, &mut message);
        Governed::Settled(self.settle_checked(caller, message, asks, checked).await)
    }

    /// Whether the server does not list the tool and the policies forbid it all the same.
    fn is_denied(&self, caller: &Caller, message: &ClientMessage) -> bool {
        let tool = message.action().tool.as_deref().unwrap_or_default();
        self.pins.find(tool) == Known::Absent && {
            let judgement = self.kernel().evaluate(&self.context(caller).about(message.action()));
            judgement.decision.verdict == Verdict::Deny
        }
    }

    /// Judges a call once the server was asked for its tools.
    pub async fn govern_listed(
        &self,
        caller: &Caller,
        transport: Transport<'_>,
        pending: Pending,
        learned: Result<(), Unlisted>,
    ) -> Step {
        let Pending { mut message, asks } = pending;
        let checked = match learned {
            Ok(()) => self.check_tool(transport, &mut message),
            Err(unlisted) => Err((unlisted.reason, respond::unlisted(&message, &unlisted))),
        };
        self.settle_checked(caller, message, asks, checked).await
    }

    async fn settle_checked(
        &self,
        caller: &Caller,
        message: ClientMessage,
        asks: Asks,
        checked: Result<(), (Reason, Answer)>,
    ) -> Step {
        match checked {
            Ok(()) => self.settle(caller, message, asks).await,
            Err((reason, answer)) => {
                let one_way = message.request_id().is_none();
                self.refuse(caller, message.action(), None, reason).await;
                Step::Answer { answer, one_way }
            }
        }
    }

    /// A call that is denied without a look at its tool. Should the policies have changed since, it
    /// does not go on either: nobody knows the tool.
    async fn deny_unlisted(self: &Arc<Self>, caller: &Caller, message: ClientMessage) -> Step {
        let reason = Reason::ToolsUnlisted;
        let answer = respond::explained(&message, reason);
        match self.settle(caller, message, Asks::Never).await {
            Step::Forward(permit) => {
                let (_, mut exchange) = Exchange::open(Arc::clone(self), caller.clone(), *permit);
                exchange.conclude(Ended::Failure, Some(reason), None).await;
                Step::Answer { answer, one_way: false }
            }
            Step::Hold(_) => Step::Answer { answer, one_way: false },
            denied @ Step::Answer { .. } => denied,
        }
    }

    async fn unreadable(&self, caller: &Caller, refusal: &mcp::Refusal) -> Step {
        let reason = refusal.error.reason();
        self.count(Verdict::Deny, reason);
        let detail = match &refusal.error {
            ProtocolError::TooLong { what, bytes, digest } => too_long(what, *bytes, digest),
            _ => serde_json::Map::new(),
        };
        self.kernel().refuse(&caller.principal, &self.name, reason, detail).await;
        Step::Answer { answer: mcp::deny::refuse(refusal), one_way: refusal.one_way }
    }

    /// Counts and records that an action is refused whatever the policies say.
    pub async fn refuse(
        &self,
        caller: &Caller,
        action: &Action,
        approval: Option<&str>,
        reason: Reason,
    ) {
        self.count(Verdict::Deny, reason);
        let request = self.context(caller).about(action);
        let index = self.kernel().refuse_action(&request, approval, reason).await;
        caller.span.refused(reason, index);
    }

    /// Whether the server's tools must be listed before this call. A wrapped command is another
    /// process in each session; a server with an address is one, and what it has said of a tool holds
    /// until it says otherwise.
    fn is_unlisted(&self, caller: &Caller, action: &Action) -> bool {
        let seen = || action.tool.as_deref().is_some_and(|tool| self.pins.is_fresh(tool));
        !(self.is_listed(caller) || self.target.is_some() && seen())
    }

    /// Whether the server has listed all its tools in the caller's session.
    pub(crate) fn is_listed(&self, caller: &Caller) -> bool {
        let session = (caller.principal.id.clone(), caller.session.clone());
        self.listed.lock().contains(&session)
    }

    /// Notes that the server has listed all its tools in the caller's session.
    pub(crate) fn note_listed(&self, caller: &Caller) {
        let session = (caller.principal.id.clone(), caller.session.clone());
        self.listed.lock().put(session, ());
    }

    /// The server says that its tools have changed: before the next call they are listed anew.
    pub(crate) fn forget_listed(&self) {
        self.pins.expire();
        self.listed.lock().clear();
    }

    /// Judges a call again whose approval has been decided.
    pub async fn resume(&self, caller: &Caller, held: Held) -> Step {
        self.settle(caller, held.message, held.asks).await
    }

    async fn settle(&self, caller: &Caller, message: ClientMessage, asks: Asks) -> Step {
        let trace = message.meta().get("traceparent").and_then(|t| t.as_str()).map(str::to_owned);
        match self.judge(caller, message, trace.as_deref()).await {
            Ok(permit) => Step::Forward(Box::new(permit)),
            Err((refusal, message)) => self.refused(message, refusal, asks),
        }
    }

    /// Asks the kernel, and counts what it says.
    pub(crate) async fn judge<M: Judged>(
        &self,
        caller: &Caller,
        message: M,
        trace: Option<&str>,
    ) -> Result<Permit<M>, (Refusal, M)> {
        let started = Instant::now();
        let mut context = self.context(caller);
        // The span stands in the caller's trace; without one, what the caller says of it does.
        context.trace = context.trace.or(trace.filter(|trace| trace.len() <= 55));
        // It speaks for the message that it came with, and for no question of the server's.
        context.grant = caller.grant.as_deref();
        let decided = self.kernel().decide_or_return(context, message).await;
        self.shared.metrics.decision_seconds.observe(started.elapsed().as_secs_f64());
        match &decided {
            Ok(permit) => {
                let receipt = permit.receipt();
                caller.span.decided(&receipt.decision, receipt.record.index());
                self.count(Verdict::Allow, receipt.decision.reason);
            }
            Err((refusal, _)) => {
                caller.span.decided(&refusal.decision, refusal.index);
                self.count(refusal.decision.verdict, refusal.decision.reason);
            }
        }
        decided
    }

    fn refused(&self, message: ClientMessage, refusal: Refusal, asks: Asks) -> Step {
        match (refusal.decision.verdict, refusal.approval) {
            (Verdict::RequireApproval, Some(approval)) => {
                let text = refusal.decision.message.clone();
                Step::Hold(Box::new(Held { message, approval, text, asks }))
            }
            _ => {
                let one_way = message.request_id().is_none();
                let answer = respond::refused(&self.spec, &message, &refusal.decision);
                Step::Answer { answer, one_way }
            }
        }
    }

    /// What is checked before the kernel is asked: pins, mirrored parameters, answers to questions
    /// that nobody asked, and the resources of a subscription.
    fn check_before(
        &self,
        caller: &Caller,
        transport: Transport<'_>,
        message: &mut ClientMessage,
    ) -> Result<(), (Reason, Answer)> {
        if let ClientKind::Response(id) = message.kind().clone() {
            let (agent, session) = (caller.principal.id.clone(), caller.session.clone());
            let key = id.map(|id| Key { agent, session, id });
            let asked = key.as_ref().and_then(|key| self.asked.lock().take(key));
            let Some(asked) = asked else {
                return Err((Reason::MalformedMessage, respond::unexpected_response()));
            };
            message.set_answered(asked);
            return Ok(());
        }
        if message.method() == Some(ClientMethod::ToolsCall) {
            self.check_tool(transport, message)?;
        }
        for action in message.resource_actions() {
            let judgement = self.kernel().evaluate(&self.context(caller).about(&action));
            if judgement.decision.verdict != Verdict::Allow {
                let answer = respond::refused(&self.spec, message, &judgement.decision);
                return Err((judgement.decision.reason, answer));
            }
        }
        Ok(())
    }

    fn check_tool(
        &self,
        transport: Transport<'_>,
        message: &mut ClientMessage,
    ) -> Result<(), (Reason, Answer)> {
        let tool = message.action().tool.clone().unwrap_or_default();
        match self.pins.find(&tool) {
            Known::Pinned(pin, params) => {
                message.set_tool_pin(pin);
                if let (Transport::Http(headers), true, Some(id)) =
                    (transport, message.era().is_modern(), message.request_id())
                    && let Err(problem) = message.check_params(headers, &params)
                {
                    return Err((Reason::HeaderMismatch, mcp::deny::header_mismatch(id, &problem)));
                }
                Ok(())
            }
            Known::Absent => Err((Reason::ToolUnknown, respond::hidden(message))),
            Known::Quarantined => {
                let reason = Reason::ToolQuarantined;
                Err((reason, respond::quarantined(&self.spec, message)))
            }
        }
    }

    /// Takes away what the client says it can do for the server and no policy allows, so that a
    /// conforming server will not ask for it.
    fn strip_capabilities(&self, caller: &Caller, body: Bytes) -> Bytes {
        // Only messages that declare capabilities are worth the questions.
        if memchr::memmem::find(&body, b"apabilities").is_none() {
            return body;
        }
        capabilities::strip(&body, self.allowed_requests(caller))
    }

    fn allowed_requests(&self, caller: &Caller) -> Allowed {
        let kernel = self.kernel();
        let versions = (kernel.engine().version(), *kernel.changes().borrow());
        let id = &caller.principal.id;
        if let Some((policies, state, allowed)) = self.allowed.lock().get(id)
            && (*policies, *state) == versions
        {
            return *allowed;
        }
        let may = |method: ServerMethod, arguments: serde_json::Value| {
            let action = server_request(&self.name, method.as_str(), arguments);
            kernel.may_list(&self.context(caller).about(&action))
        };
        let elicit = |mode: &str| may(ServerMethod::Elicit, serde_json::json!({ "mode": mode }));
        let allowed = Allowed {
            sampling: may(ServerMethod::CreateMessage, serde_json::Value::Null),
            elicitation_form: elicit("form"),
            elicitation_url: elicit("url"),
            roots: may(ServerMethod::RootsList, serde_json::Value::Null),
        };
        let mut cache = self.allowed.lock();
        if cache.len() >= MAX_REMEMBERED {
            cache.clear();
        }
        cache.insert(id.clone(), (versions.0, versions.1, allowed));
        allowed
    }

    /// Remembers that the server has asked its client something.
    pub fn note_asked(&self, key: Key, method: ServerMethod) {
        self.asked.lock().put(key, method);
    }

    /// Keeps an exchange whose stream broke off, for a stream that resumes it.
    pub fn park(&self, key: Key, exchange: Exchange) {
        let forgotten = self.parked.lock().put(key, exchange);
        drop(forgotten);
    }

    /// Takes back a parked exchange, for a stream that resumes after `event`: only the very stream
    /// that the event was on, so that no answer is released as that of another call.
    #[must_use]
    pub fn unpark(&self, key: &Key, event: &[u8]) -> Option<Exchange> {
        let mut parked = self.parked.lock();
        parked.get(key).filter(|exchange| exchange.has_sent(event))?;
        parked.take(key)
    }

    /// What the calls redact whose stream is resumed after `event`.
    #[must_use]
    pub fn redactions_after(&self, caller: &Caller, event: &[u8]) -> Vec<regex::Regex> {
        let parked = self.parked.lock();
        let resumed =
            parked.iter().filter(|(key, exchange)| key.is_of(caller) && exchange.has_sent(event));
        resumed.flat_map(|(_, exchange)| exchange.redactions().iter().cloned()).collect()
    }

    /// A stream that resumed after `event` has sent another, from which the same calls can be
    /// resumed when it breaks too.
    pub fn resumed(&self, caller: &Caller, event: &[u8], another: &Bytes) {
        let mut parked = self.parked.lock();
        let of_caller = parked.iter_mut().filter(|(key, _)| key.is_of(caller));
        for (_, exchange) in of_caller.filter(|(_, exchange)| exchange.has_sent(event)) {
            exchange.remember(another.clone());
        }
    }

    /// Counts a decision.
    pub fn count(&self, verdict: Verdict, reason: Reason) {
        let labels = [self.name.as_str(), verdict.as_str(), reason.code()];
        self.shared.metrics.decisions.with_label_values(&labels).inc();
    }
}

/// The action of a request that a server makes to its client.
#[must_use]
pub fn server_request(server: &str, method: &str, arguments: serde_json::Value) -> Action {
    Action {
        kind: ActionKind::ServerRequest,
        protocol: Protocol::Mcp,
        method: method.into(),
        server: server.into(),
        tool: None,
        tool_pin: None,
        resource: None,
        arguments,
    }
}

/// What is recorded of a name that is too long to be recorded: its digest, never a part of it.
pub(crate) fn too_long(
    what: &str,
    bytes: usize,
    digest: &Digest,
) -> serde_json::Map<String, serde_json::Value> {
    let told = serde_json::json!({ "too_long": what, "bytes": bytes, "name_digest": digest });
    match told {
        serde_json::Value::Object(members) => members,
        _ => serde_json::Map::new(),
    }
}

fn size(bytes: u32) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}
