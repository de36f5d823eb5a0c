//! One governed call as an OpenTelemetry span, by the semantic conventions for MCP and for A2A.
//!
//! A span tells what the record tells, and leads to it: who asked what of which server, what was decided,
//! and at which index that stands. It never tells arguments, results or resources. What a caller says of
//! its trace is a claim: it places the span and decides nothing. Where nothing is exported there is no
//! span, and asking for one costs a look at a `None`.

use std::{
    borrow::Cow,
    sync::{Arc, OnceLock},
    time::SystemTime,
};

use aegis_audit::entry::Outcome as Ended;
use aegis_core::decision::{Decision, Reason, Verdict};
use aegis_protocol::{
    a2a::ClientRequest,
    jsonrpc::Id,
    mcp::{ClientMessage, ClientMethod, Transport},
};
use aegis_runtime::telemetry::{Tracer, remote_context, traceparent};
use http::{HeaderMap, HeaderValue};
use opentelemetry::{
    Context, KeyValue,
    trace::{
        Link, Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt as _,
        Tracer as _,
    },
};
use parking_lot::Mutex;

use crate::{
    inbound::one,
    route::{Caller, Route},
};

/// The longest text of the wire that a span carries. Bytes.
const MAX_TEXT: usize = 1_024;

/// The span of the message that a caller sent. It ends when nobody holds it any more.
#[derive(Clone, Default)]
pub struct CallSpan(Option<Arc<Call>>);

/// A message that has come.
struct Call {
    tracer: Tracer,
    came: SystemTime,
    /// Filled once it is known what the message is.
    begun: OnceLock<Begun>,
}

struct Begun {
    context: SpanContext,
    traceparent: String,
    told: Mutex<Told>,
}

/// What becomes of a call; written when its span ends, for each attribute has one value.
struct Told {
    span: <Tracer as opentelemetry::trace::Tracer>::Span,
    /// The name once it is known that there is such a tool.
    named: Option<String>,
    decided: Option<Decided>,
    outcome: Option<Ended>,
    error: Option<(Cow<'static, str>, &'static str)>,
    rpc_status: Option<i64>,
}

struct Decided {
    verdict: Verdict,
    reason: Reason,
    tier: Option<&'static str>,
    index: Option<u64>,
}

impl std::fmt::Debug for CallSpan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("CallSpan").field(&self.traceparent()).finish()
    }
}

impl CallSpan {
    /// The span of a message that has just come.
    #[must_use]
    pub fn of(tracer: Option<&Tracer>) -> Self {
        Self(tracer.map(|tracer| {
            let (tracer, came) = (tracer.clone(), SystemTime::now());
            Arc::new(Call { tracer, came, begun: OnceLock::new() })
        }))
    }

    fn begun(&self) -> Option<&Begun> {
        self.0.as_ref().and_then(|call| call.begun.get())
    }

    /// Where it stands in its trace, as W3C Trace Context writes it.
    #[must_use]
    pub fn traceparent(&self) -> Option<&str> {
        self.begun().map(|begun| begun.traceparent.as_str())
    }

    /// Begins the span of a message to an MCP server.
    pub(crate) fn begin_mcp(
        &self,
        route: &Route,
        caller: &Caller,
        transport: Transport<'_>,
        message: &ClientMessage,
    ) {
        let Some(call) = &self.0 else { return };
        let action = message.action();
        let mut attributes = vec![
            KeyValue::new("mcp.method.name", action.method.clone()),
            KeyValue::new("mcp.protocol.version", message.era().version()),
        ];
        let mut text =
            |name: &'static str, value: Option<&str>| attributes.extend(bounded(name, value));
        text("mcp.session.id", caller.session.as_deref());
        text("jsonrpc.request.id", message.request_id().map(id_text).as_deref());
        match message.method() {
            Some(ClientMethod::ToolsCall) => {
                text("gen_ai.operation.name", Some("execute_tool"));
                text("gen_ai.tool.name", action.tool.as_deref());
            }
            Some(ClientMethod::PromptsGet) => text("gen_ai.prompt.name", action.tool.as_deref()),
            _ => {}
        }
        let headers = match transport {
            Transport::Http(headers) => Some(headers),
            Transport::Stdio => None,
        };
        text("network.transport", Some(if headers.is_some() { "tcp" } else { "pipe" }));
        let meta = |name: &str| message.meta().get(name).and_then(|value| value.as_str());
        let told = meta("traceparent").and_then(|text| remote_context(text, meta("tracestate")));
        let named = action.tool.as_ref().map(|tool| format!("{} {tool}", action.method));
        let parents = (told, headers.and_then(context_of));
        call.begin(route, caller, action.method.clone(), named, parents, attributes);
    }

    /// Begins the span of a request to an A2A agent.
    pub(crate) fn begin_a2a(
        &self,
        route: &Route,
        caller: &Caller,
        headers: &HeaderMap,
        request: &ClientRequest,
    ) {
        let Some(call) = &self.0 else { return };
        let (action, asked) = (request.action(), request.asked());
        let mut attributes = vec![KeyValue::new("a2a.method.name", action.method.clone())];
        let mut text =
            |name: &'static str, value: Option<&str>| attributes.extend(bounded(name, value));
        text("a2a.protocol.version", Some(asked.form.version.as_str()));
        text("a2a.task.id", asked.task.as_deref());
        text("gen_ai.conversation.id", request.context());
        text("jsonrpc.request.id", asked.form.id.as_ref().map(id_text).as_deref());
        text("network.transport", Some("tcp"));
        let parents = (context_of(headers), None);
        call.begin(route, caller, action.method.clone(), None, parents, attributes);
    }

    /// Tells whoever the message goes on to that this span is its parent. The body is left alone: it was
    /// judged.
    pub(crate) fn pass_on(&self, headers: &mut HeaderMap) {
        let Some(begun) = self.begun() else { return };
        for (name, value) in [
            ("traceparent", begun.traceparent.clone()),
            ("tracestate", begun.context.trace_state().header()),
        ] {
            headers.remove(name);
            if let Some(value) = HeaderValue::try_from(value).ok().filter(|value| !value.is_empty())
            {
                headers.insert(name, value);
            }
        }
    }

    /// Notes what the kernel has decided, and where that stands.
    pub(crate) fn decided(&self, decision: &Decision, index: Option<u64>) {
        let (verdict, reason) = (decision.verdict, decision.reason);
        self.note(Decided { verdict, reason, tier: Some(decision.tier.as_str()), index });
    }

    /// Notes that it is refused whatever the policies say.
    pub(crate) fn refused(&self, reason: Reason, index: Option<u64>) {
        self.note(Decided { verdict: Verdict::Deny, reason, tier: None, index });
    }

    fn note(&self, decided: Decided) {
        if let Some(begun) = self.begun() {
            begun.told.lock().decided = Some(decided);
        }
    }

    /// Notes where a decision stands that was written while the call went on.
    pub(crate) fn recorded(&self, index: Option<u64>) {
        if let Some(begun) = self.begun()
            && let Some(decided) = &mut begun.told.lock().decided
        {
            decided.index = index;
        }
    }

    /// Notes how a permitted call has ended, and what went wrong if anything did.
    pub(crate) fn concluded(&self, outcome: Ended, failed: Option<Failed>) {
        let Some(begun) = self.begun() else { return };
        let mut told = begun.told.lock();
        told.outcome = Some(outcome);
        told.error = failed.map(|failed| match failed {
            Failed::By(reason) => (reason.code().into(), reason.sentence()),
            Failed::Rpc(code) => {
                told.rpc_status = Some(code);
                (code.to_string().into(), "")
            }
            Failed::Status(code) => (code.to_string().into(), ""),
            Failed::Tool => ("tool_error".into(), ""),
            Failed::Otherwise => ("_OTHER".into(), ""),
        });
    }
}

/// What went wrong with a permitted call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failed {
    /// Aegis or the upstream is at fault.
    By(Reason),
    /// The server answered with this JSON-RPC error.
    Rpc(i64),
    /// The server answered with this status.
    Status(i64),
    /// The tool says that it failed.
    Tool,
    /// It failed, and nothing more is known.
    Otherwise,
}

impl Call {
    /// Begins at most once: a call that is judged again is the same call.
    fn begin(
        &self,
        route: &Route,
        caller: &Caller,
        method: String,
        named: Option<String>,
        (parent, beside): (Option<SpanContext>, Option<SpanContext>),
        mut attributes: Vec<KeyValue>,
    ) {
        self.begun.get_or_init(|| {
            attributes.push(KeyValue::new("aegis.server", route.name.clone()));
            attributes.push(KeyValue::new("aegis.agent.id", caller.principal.id.to_string()));
            let known = parent.clone().or_else(|| beside.clone());
            let around = known
                .map_or_else(Context::new, |known| Context::new().with_remote_span_context(known));
            // The message's own context is the parent, that of the request which carried it a link.
            let links = match (parent, beside) {
                (Some(parent), Some(beside)) if parent != beside => {
                    vec![Link::with_context(beside)]
                }
                _ => Vec::new(),
            };
            let builder = SpanBuilder::from_name(method)
                .with_kind(SpanKind::Server)
                .with_start_time(self.came)
                .with_attributes(attributes)
                .with_links(links);
            let span = self.tracer.build_with_context(builder, &around);
            let context = span.span_context().clone();
            let told =
                Told { span, named, decided: None, outcome: None, error: None, rpc_status: None };
            Begun { traceparent: traceparent(&context), context, told: Mutex::new(told) }
        });
    }
}

impl Drop for Told {
    /// Writes what has become of the call; the span ends with it.
    fn drop(&mut self) {
        let span = &mut self.span;
        if !span.is_recording() {
            return;
        }
        let mut allowed = false;
        if let Some(Decided { verdict, reason, tier, index }) = &self.decided {
            allowed = *verdict == Verdict::Allow;
            span.set_attribute(KeyValue::new("aegis.decision", verdict.as_str()));
            span.set_attribute(KeyValue::new("aegis.reason", reason.code()));
            if let Some(tier) = tier {
                span.set_attribute(KeyValue::new("aegis.tier", *tier));
            }
            if let Some(index) = index.and_then(|index| i64::try_from(index).ok()) {
                span.set_attribute(KeyValue::new("aegis.log.index", index));
            }
            if !allowed {
                self.error = Some((reason.code().into(), reason.sentence()));
            }
        }
        if allowed {
            let outcome = self.outcome.unwrap_or(Ended::Unknown);
            span.set_attribute(KeyValue::new("aegis.outcome", outcome.as_str()));
            // A name that nobody has allowed is whatever an agent makes up.
            if let Some(named) = self.named.take() {
                span.update_name(named);
            }
        }
        if let Some(code) = self.rpc_status {
            span.set_attribute(KeyValue::new("rpc.response.status_code", code.to_string()));
        }
        if let Some((kind, sentence)) = self.error.take() {
            span.set_attribute(KeyValue::new("error.type", kind.into_owned()));
            span.set_status(Status::error(sentence));
        }
    }
}

/// What the headers of a request say of its trace.
fn context_of(headers: &HeaderMap) -> Option<SpanContext> {
    let text = |name| one(headers, name).ok().flatten();
    remote_context(text("traceparent")?, text("tracestate"))
}

fn id_text(id: &Id) -> String {
    match id {
        Id::Integer(number) => number.to_string(),
        Id::String(text) => text.clone(),
    }
}

fn bounded(name: &'static str, value: Option<&str>) -> Option<KeyValue> {
    let value = value.filter(|value| !value.is_empty() && value.len() <= MAX_TEXT)?;
    Some(KeyValue::new(name, value.to_owned()))
}
