//! What `aegis up` exports: a collector that receives it over real OTLP, a server that sees what reaches
//! it, and the ledger that both lead to.

use std::sync::Arc;

use axum::{
    Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, StatusCode, Uri},
    response::IntoResponse as _,
    routing::post,
};
use opentelemetry_proto::tonic::{
    collector::{logs::v1::ExportLogsServiceRequest, trace::v1::ExportTraceServiceRequest},
    common::v1::{KeyValue, any_value::Value as Any},
    logs::v1::LogRecord,
    trace::v1::{Span, span::SpanKind, status::StatusCode as SpanStatus},
};
use parking_lot::Mutex;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
    sync::Semaphore,
};

use crate::live::{Live, STDIO, Wrapped, registered, until};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
const OTHER: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// A collector: it answers as it is let, and keeps what it was sent.
#[derive(Clone)]
struct Collector {
    spans: Arc<Mutex<Vec<Span>>>,
    records: Arc<Mutex<Vec<LogRecord>>>,
    resources: Arc<Mutex<Vec<KeyValue>>>,
    raw: Arc<Mutex<Vec<u8>>>,
    /// How many requests may be answered.
    may_answer: Arc<Semaphore>,
    address: String,
}

impl Collector {
    async fn start(answers: usize) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let collector = Self {
            spans: Arc::default(),
            records: Arc::default(),
            resources: Arc::default(),
            raw: Arc::default(),
            may_answer: Arc::new(Semaphore::new(answers)),
            address: format!("http://{}", listener.local_addr().unwrap()),
        };
        let router = Router::new()
            .route("/v1/traces", post(receive))
            .route("/v1/logs", post(receive))
            .with_state(collector.clone());
        tokio::spawn(async move { axum::serve(listener, router).await });
        collector
    }

    /// The environment of a daemon that exports to it at once.
    fn environment(&self) -> Vec<(&'static str, String)> {
        vec![
            ("OTEL_EXPORTER_OTLP_ENDPOINT", self.address.clone()),
            ("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test".into()),
            ("OTEL_BSP_SCHEDULE_DELAY", "20".into()),
            ("OTEL_BLRP_SCHEDULE_DELAY", "20".into()),
        ]
    }

    /// The one span whose name begins so.
    async fn span(&self, name: &str) -> Span {
        let found = || {
            let spans = self.spans.lock();
            let named: Vec<Span> =
                spans.iter().filter(|span| span.name.starts_with(name)).cloned().collect();
            named
        };
        until(name, async || !found().is_empty()).await;
        let mut named = found();
        assert_eq!(named.len(), 1, "{named:?}");
        named.remove(0)
    }
}

async fn receive(
    State(collector): State<Collector>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> axum::response::Response {
    collector.may_answer.acquire().await.unwrap().forget();
    assert_eq!(headers["content-type"], "application/x-protobuf");
    collector.raw.lock().extend_from_slice(&body);
    if uri.path() == "/v1/traces" {
        for of in ExportTraceServiceRequest::decode(body).unwrap().resource_spans {
            collector.resources.lock().extend(of.resource.unwrap().attributes);
            let spans = of.scope_spans.into_iter().flat_map(|scope| scope.spans);
            collector.spans.lock().extend(spans);
        }
    } else {
        for of in ExportLogsServiceRequest::decode(body).unwrap().resource_logs {
            let records = of.scope_logs.into_iter().flat_map(|scope| scope.log_records);
            collector.records.lock().extend(records);
        }
    }
    (StatusCode::OK, [("content-type", "application/x-protobuf")], Bytes::new()).into_response()
}

fn said(attributes: &[KeyValue]) -> Value {
    let mut members = serde_json::Map::new();
    for attribute in attributes {
        let value = match attribute.value.clone().and_then(|value| value.value) {
            Some(Any::StringValue(text)) => json!(text),
            Some(Any::IntValue(number)) => json!(number),
            other => panic!("{}: {other:?}", attribute.key),
        };
        assert!(members.insert(attribute.key.clone(), value).is_none(), "{} twice", attribute.key);
    }
    Value::Object(members)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn traceparent_of(span: &Span) -> String {
    format!("00-{}-{}-01", hex(&span.trace_id), hex(&span.span_id))
}

/// What reached the server: headers and bodies of calls, in order.
type Reached = Arc<Mutex<Vec<(HeaderMap, Bytes)>>>;

/// An MCP server with the tools `echo`, `fail`, `break` and `never`.
async fn server() -> (Reached, String) {
    let reached = Reached::default();
    let keep = Arc::clone(&reached);
    let answer = async move |headers: HeaderMap, body: Bytes| {
        let message: Value = serde_json::from_slice(&body).unwrap();
        let (id, name) = (&message["id"], message["params"]["name"].as_str().unwrap_or_default());
        let answer = match (message["method"].as_str().unwrap(), name) {
            ("tools/list", _) => {
                let tool = |name: &str| json!({ "name": name, "inputSchema": {} });
                let tools = ["echo", "fail", "break", "never"].map(tool);
                json!({ "result": { "tools": tools } })
            }
            (_, "fail") => json!({ "result": { "content": [], "isError": true } }),
            (_, "break") => json!({ "error": { "code": -32603, "message": "it broke" } }),
            _ => json!({ "result": { "content": [{ "type": "text", "text": "of the result" }] } }),
        };
        if message["method"] == "tools/call" {
            keep.lock().push((headers, body.clone()));
        }
        let mut whole = json!({ "jsonrpc": "2.0", "id": id });
        whole.as_object_mut().unwrap().extend(answer.as_object().unwrap().clone());
        axum::Json(whole)
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/mcp", post(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let document = format!(
        "apiVersion: aegis.dev/v1alpha1\nkind: AgentUpstream\nmetadata: {{ name: calc }}\nspec: {{ url: 'http://{address}/mcp' }}\n"
    );
    (reached, document)
}

/// Posts to the upstream's listener.
async fn post_to(live: &Live, headers: &[(&str, &str)], body: &str) {
    let status = live.status().await;
    let address = status["upstreams"][0]["address"].as_str().unwrap().to_owned();
    let (host, path) = address.strip_prefix("http://").unwrap().split_once('/').unwrap();
    let more: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
    let request = format!(
        "POST /{path} HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\naccept: application/json\r\ncontent-type: application/json\r\nauthorization: Bearer of-the-client\r\n{more}content-length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(host).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// Calls a tool through the listener; gives the body as it was sent.
async fn call(live: &Live, tool: &str, meta: Value, headers: &[(&str, &str)]) -> String {
    let arguments = json!({ "password": "open sesame" });
    let body = json!({
        "jsonrpc": "2.0", "id": "call-7", "method": "tools/call",
        "params": { "_meta": meta, "name": tool, "arguments": arguments },
    })
    .to_string();
    post_to(live, &[headers, &[("mcp-session-id", "s-1")]].concat(), &body).await;
    body
}

/// The decision in the ledger about a tool, with its index.
async fn decision(live: &Live, tool: &str) -> (u64, Value) {
    let run = live.aegis(&["audit", "query", "--kind", "decision", "-o", "json"]).await.exits(0);
    let lines = run.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let mut found: Vec<Value> =
        lines.filter(|line| line["entry"]["action"]["tool"] == tool).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    let mut line = found.remove(0);
    (line["index"].as_u64().unwrap(), line["entry"].take())
}

#[tokio::test]
async fn a_call_is_one_span_of_its_callers_trace_and_leads_to_its_record() {
    let collector = Collector::start(Semaphore::MAX_PERMITS).await;
    let (reached, document) = server().await;
    let live = Live::start_in(collector.environment(), &document, &[]).await;
    let sent = call(&live, "echo", json!({ "traceparent": PARENT }), &[]).await;
    let span = collector.span("tools/call echo").await;
    assert_eq!(
        (hex(&span.trace_id), hex(&span.parent_span_id)),
        (TRACE.into(), "b7ad6b7169203331".into())
    );
    assert_eq!((span.kind(), &span.status), (SpanKind::Server, &Some(Default::default())));
    assert!(span.end_time_unix_nano > span.start_time_unix_nano);
    let (index, entry) = decision(&live, "echo").await;
    assert_eq!(entry["trace"], traceparent_of(&span), "the record leads to the span");
    assert_eq!(
        said(&span.attributes),
        json!({
            "mcp.method.name": "tools/call", "mcp.protocol.version": "2025-03-26",
            "mcp.session.id": "s-1", "jsonrpc.request.id": "call-7",
            "gen_ai.operation.name": "execute_tool", "gen_ai.tool.name": "echo",
            "network.transport": "tcp", "aegis.server": "calc",
            "aegis.agent.id": entry["agent_id"], "aegis.decision": "allow",
            "aegis.reason": entry["reason"], "aegis.tier": entry["tier"],
            "aegis.log.index": index, "aegis.outcome": "success",
        })
    );
    let (headers, body) = reached.lock()[0].clone();
    assert_eq!(headers["traceparent"], traceparent_of(&span).as_str(), "the server is a child");
    assert_eq!(body, sent.as_bytes(), "judged bytes are forwarded bytes");
    let service = |of: &KeyValue| {
        of.key == "service.name" && said(std::slice::from_ref(of))["service.name"] == "aegis"
    };
    assert!(collector.resources.lock().iter().any(service));
}

#[tokio::test]
async fn what_goes_wrong_is_told_and_nothing_that_was_said() {
    let collector = Collector::start(Semaphore::MAX_PERMITS).await;
    let (_, document) = server().await;
    let live = Live::start_in(collector.environment(), &document, &[]).await;
    for (tool, name, kind, reason) in [
        ("never", "tools/call", "policy_denied", "policy_denied"),
        ("absent", "tools/call", "tool_unknown", "tool_unknown"),
        ("fail", "tools/call fail", "tool_error", "policy_allowed"),
        ("break", "tools/call break", "-32603", "policy_allowed"),
    ] {
        call(&live, tool, json!({}), &[("traceparent", PARENT), ("tracestate", "vendor=1")]).await;
        let found = || {
            let spans = collector.spans.lock().clone();
            spans.into_iter().find(|span| said(&span.attributes)["gen_ai.tool.name"] == tool)
        };
        until(tool, async || found().is_some()).await;
        let (span, (index, entry)) = (found().unwrap(), decision(&live, tool).await);
        let told = said(&span.attributes);
        // A tool that nobody has allowed names no span: an agent can make up any number.
        assert_eq!((span.name.as_str(), &told["error.type"]), (name, &json!(kind)));
        assert_eq!(
            (hex(&span.trace_id), hex(&span.parent_span_id)),
            (TRACE.into(), "b7ad6b7169203331".into())
        );
        assert_eq!(span.status.as_ref().unwrap().code(), SpanStatus::Error);
        assert_eq!(
            (&told["aegis.log.index"], &told["aegis.reason"]),
            (&json!(index), &json!(reason))
        );
        assert_eq!(entry["trace"], traceparent_of(&span));
        let code = if tool == "break" { json!("-32603") } else { Value::Null };
        assert_eq!(told["rpc.response.status_code"], code);
    }
    let raw = String::from_utf8_lossy(&collector.raw.lock()).into_owned();
    for secret in ["open sesame", "password", "of-the-client", "of the result", "it broke"] {
        assert!(!raw.contains(secret), "{secret} was exported");
    }
    assert!(raw.contains("deployment.environment.name"));
}

#[tokio::test]
async fn the_messages_context_is_the_parent_and_the_requests_a_link() {
    let collector = Collector::start(Semaphore::MAX_PERMITS).await;
    let (reached, document) = server().await;
    let live = Live::start_in(collector.environment(), &document, &[]).await;
    call(&live, "echo", json!({ "traceparent": PARENT }), &[("traceparent", OTHER)]).await;
    let span = collector.span("tools/call echo").await;
    assert_eq!(hex(&span.trace_id), TRACE);
    assert_eq!(span.links.len(), 1);
    assert_eq!(hex(&span.links[0].trace_id), "4bf92f3577b34da6a3ce929d0e0e4736");
    // What is no context is no parent, and is not passed on either.
    call(&live, "fail", json!({ "traceparent": "00-nonsense" }), &[("tracestate", "vendor=1")])
        .await;
    let span = collector.span("tools/call fail").await;
    assert!(span.parent_span_id.is_empty() && hex(&span.trace_id) != TRACE);
    let (headers, _) = reached.lock()[1].clone();
    assert_eq!(headers["traceparent"], traceparent_of(&span).as_str());
    assert!(!headers.contains_key("tracestate"), "a state without its parent is discarded");
}

#[tokio::test]
async fn no_call_waits_for_a_collector_and_none_fails_with_it() {
    // It takes requests and answers none; and there is one that is not there at all.
    let silent = Collector::start(0).await;
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
    let mut environment = silent.environment();
    environment.push(("OTEL_BSP_MAX_QUEUE_SIZE", "2".into()));
    environment.push(("OTEL_BSP_MAX_EXPORT_BATCH_SIZE", "1".into()));
    let mut absent = environment.clone();
    absent[0].1 = format!("http://{gone}");
    for environment in [environment, absent] {
        let (reached, document) = server().await;
        let mut live = Live::start_in(environment, &document, &[]).await;
        for call_number in 0..40 {
            let tool = if call_number % 2 == 0 { "echo" } else { "fail" };
            call(&live, tool, json!({ "traceparent": PARENT }), &[]).await;
        }
        assert_eq!(reached.lock().len(), 40);
        let run = live.aegis(&["audit", "query", "--kind", "decision", "-o", "json"]).await;
        let traced = run.exits(0).stdout.lines().filter(|line| line.contains(TRACE)).count();
        assert_eq!(traced, 40, "each is recorded with its trace");
        // Nothing was exported while all this went on, and the daemon still ends in order.
        assert!(silent.spans.lock().is_empty());
        live.stop().await;
    }
}

#[tokio::test]
async fn without_a_collector_nothing_is_changed() {
    let (reached, document) = server().await;
    let live = Live::start(&document, &[]).await;
    call(&live, "echo", json!({ "traceparent": PARENT }), &[("traceparent", OTHER)]).await;
    assert_eq!(decision(&live, "echo").await.1["trace"], PARENT);
    assert_eq!(reached.lock()[0].0["traceparent"], OTHER);
}

#[tokio::test]
async fn what_cannot_be_exported_to_is_said_and_enforcement_goes_on() {
    let (_, document) = server().await;
    let environment = vec![
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4317".into()),
        ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc".into()),
    ];
    let live = Live::start_in(environment, &document, &[]).await;
    call(&live, "never", json!({}), &[]).await;
    assert_eq!(decision(&live, "never").await.1["result"], "deny");
    let log = std::fs::read_to_string(live.folder.path().join("log")).unwrap();
    assert!(log.contains("OTEL_EXPORTER_OTLP_PROTOCOL is `grpc`"), "{log}");
}

#[tokio::test]
async fn a_wrapped_servers_calls_are_spans_each_of_its_own() {
    let collector = Collector::start(Semaphore::MAX_PERMITS).await;
    let live = Live::start_in(collector.environment(), &registered(STDIO), &[]).await;
    let mut client = Wrapped::start(&live, &["wrap", "--server", "notes"]);
    for (tool, parent) in [("echo", PARENT), ("never", OTHER)] {
        let params = json!({ "name": tool, "arguments": {}, "_meta": { "traceparent": parent } });
        client.ask("tools/call", params).await;
        let found = || {
            let spans = collector.spans.lock().clone();
            spans.into_iter().find(|span| said(&span.attributes)["gen_ai.tool.name"] == tool)
        };
        until(tool, async || found().is_some()).await;
        let span = found().unwrap();
        assert_eq!(hex(&span.trace_id), parent.split('-').nth(1).unwrap());
        assert_eq!(said(&span.attributes)["network.transport"], "pipe");
        assert_eq!(decision(&live, tool).await.1["trace"], traceparent_of(&span));
    }
}

#[tokio::test]
async fn entries_are_log_records_of_their_trace_without_what_was_said() {
    let collector = Collector::start(Semaphore::MAX_PERMITS).await;
    let (_, document) = server().await;
    let live = Live::start_in(collector.environment(), &document, &[]).await;
    call(&live, "never", json!({ "traceparent": PARENT }), &[]).await;
    let (index, entry) = decision(&live, "never").await;
    let found = || {
        let records = collector.records.lock().clone();
        records.into_iter().find(|record| said(&record.attributes)["aegis.log.index"] == index)
    };
    until("the entry's record", async || found().is_some()).await;
    let (record, span) = (found().unwrap(), collector.span("tools/call").await);
    assert_eq!((&record.trace_id, &record.span_id), (&span.trace_id, &span.span_id));
    assert_eq!(record.severity_text, "WARN");
    let told = said(&record.attributes);
    assert_eq!((&told["aegis.result"], &told["aegis.reason"]), (&json!("deny"), &entry["reason"]));
    assert_eq!(
        (&told["gen_ai.tool.name"], &told["aegis.agent.id"]),
        (&json!("never"), &entry["agent_id"])
    );
    let export = live.aegis(&["audit", "export", "--jsonl"]).await.exits(0);
    let lines = export.stdout.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let exported = lines.into_iter().find(|line| line["index"] == index).unwrap();
    assert_eq!(told["aegis.log.leaf_hash"], exported["leaf_hash"], "it leads to its leaf");
    let raw = String::from_utf8_lossy(&collector.raw.lock()).into_owned();
    assert!(!raw.contains("open sesame") && !raw.contains("password"));
}

#[tokio::test]
async fn a_message_to_an_agent_is_a_span_too() {
    let collector = Collector::start(Semaphore::MAX_PERMITS).await;
    let reached: Reached = Reached::default();
    let keep = Arc::clone(&reached);
    let answer = async move |headers: HeaderMap, body: Bytes| {
        let message: Value = serde_json::from_slice(&body).unwrap();
        keep.lock().push((headers, body));
        let parts = json!([{ "kind": "text", "text": "of the result" }]);
        let result =
            json!({ "kind": "message", "messageId": "r-1", "role": "agent", "parts": parts });
        axum::Json(json!({ "jsonrpc": "2.0", "id": message["id"], "result": result }))
    };
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let document = format!(
        "apiVersion: aegis.dev/v1alpha1\nkind: AgentUpstream\nmetadata: {{ name: helper }}\nspec: {{ protocol: a2a, url: 'http://{}/' }}\n",
        listener.local_addr().unwrap()
    );
    let router = Router::new().route("/", post(answer));
    tokio::spawn(async move { axum::serve(listener, router).await });
    let live = Live::start_in(collector.environment(), &document, &[]).await;
    let parts = json!([{ "kind": "text", "text": "open sesame" }]);
    let sent = json!({ "kind": "message", "messageId": "m-1", "role": "user", "parts": parts });
    let body = json!({ "jsonrpc": "2.0", "id": 3, "method": "message/send", "params": { "message": sent } });
    post_to(&live, &[("traceparent", PARENT)], &body.to_string()).await;
    until("its span", async || !collector.spans.lock().is_empty()).await;
    let span = collector.spans.lock()[0].clone();
    let told = said(&span.attributes);
    assert_eq!(
        (hex(&span.trace_id), hex(&span.parent_span_id)),
        (TRACE.into(), "b7ad6b7169203331".into())
    );
    assert_eq!(
        (&told["a2a.method.name"], &told["a2a.protocol.version"]),
        (&json!(span.name), &json!("0.3"))
    );
    assert_eq!(
        (&told["aegis.decision"], &told["aegis.outcome"]),
        (&json!("allow"), &json!("success"))
    );
    let entries = live.entries("decision").await;
    let entry = entries.iter().find(|entry| entry["action"]["protocol"] == "a2a").unwrap();
    assert_eq!(entry["trace"], traceparent_of(&span));
    assert_eq!(reached.lock()[0].0["traceparent"], traceparent_of(&span).as_str());
    let raw = String::from_utf8_lossy(&collector.raw.lock()).into_owned();
    assert!(!raw.contains("open sesame") && !raw.contains("of the result"));
}
