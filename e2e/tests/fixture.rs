//! The fixture does what its name for it says, over HTTP and over standard streams.
#![expect(clippy::unwrap_used, reason = "a test may panic, and so may what it is made of")]

use std::time::Duration;

use aegis_e2e::fixture::{Bound, Fixture, Options};
use rmcp::{
    RoleClient, ServiceExt,
    model::CallToolRequestParams,
    service::RunningService,
    transport::{StreamableHttpClientTransport, TokioChildProcess},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    process::Command,
    time::timeout,
};
use tokio_util::sync::{CancellationToken, DropGuard};

/// Nothing here takes long; a test that waits this long has failed.
const DEADLINE: Duration = Duration::from_secs(30);

/// The fixture's address; it stops when the guard is dropped.
async fn started(options: Options) -> (String, DropGuard) {
    let bound: Bound = Fixture::new(options).unwrap().bind(0).await.unwrap();
    let (url, stop) = (bound.url(), CancellationToken::new());
    tokio::spawn(bound.serve(stop.clone()));
    (url, stop.drop_guard())
}

async fn client(url: &str) -> RunningService<RoleClient, ()> {
    ().serve(StreamableHttpClientTransport::from_uri(url)).await.unwrap()
}

fn host(url: &str) -> &str {
    url.strip_prefix("http://").unwrap().strip_suffix("/mcp").unwrap()
}

/// Sends one HTTP request and returns the connection.
async fn send(url: &str, head: &str, body: &str) -> TcpStream {
    let mut stream = TcpStream::connect(host(url)).await.unwrap();
    let request = format!(
        "{head} HTTP/1.1\r\nhost: {}\r\nconnection: close\r\ncontent-type: application/json\r\n\
         accept: application/json, text/event-stream\r\ncontent-length: {}\r\n\r\n{body}",
        host(url),
        body.len()
    );
    stream.write_all(request.as_bytes()).await.unwrap();
    stream
}

async fn misconduct(url: &str, tool: &str, arguments: Value) -> TcpStream {
    let params = json!({ "name": tool, "arguments": arguments });
    let call = json!({ "jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": params });
    send(url, "POST /mcp", &call.to_string()).await
}

async fn whole(mut stream: TcpStream) -> String {
    let mut bytes = Vec::new();
    // A connection that breaks off is one of the things to see.
    let _ = timeout(DEADLINE, stream.read_to_end(&mut bytes)).await.unwrap();
    String::from_utf8(bytes).unwrap()
}

fn misbehaving() -> Options {
    Options { misconduct: true, ..Options::default() }
}

#[tokio::test]
async fn misconduct_reaches_the_wire() {
    let (url, _guard) = started(misbehaving()).await;
    let answer = whole(misconduct(&url, "misconduct_content_type", json!({})).await).await;
    assert!(answer.contains("content-type: text/html\r\n") && answer.contains("\"id\":7"));
    let answer = whole(misconduct(&url, "misconduct_duplicate_keys", json!({})).await).await;
    assert_eq!(answer.matches("\"result\":").count(), 2, "{answer}");
    let answer = whole(misconduct(&url, "misconduct_wrong_id", json!({})).await).await;
    assert!(answer.contains("\"id\":\"nobody-asked\"") && !answer.contains("\"id\":7"));
    let answer = whole(misconduct(&url, "misconduct_cut_short", json!({})).await).await;
    assert!(answer.contains("chunked") && !answer.ends_with("0\r\n\r\n"), "{answer}");
    let wanted = json!({ "bytes": 300_000 });
    let answer = whole(misconduct(&url, "misconduct_oversize_event", wanted).await).await;
    assert!(answer.contains("text/event-stream") && answer.len() > 300_000);
}

#[tokio::test]
async fn an_endless_stream_goes_on() {
    let (url, _guard) = started(misbehaving()).await;
    let mut stream = misconduct(&url, "misconduct_endless", json!({ "milliseconds": 1 })).await;
    let (mut seen, mut piece) = (String::new(), [0; 4096]);
    while seen.matches("notifications/progress").count() < 20 {
        let read = timeout(DEADLINE, stream.read(&mut piece)).await.unwrap().unwrap();
        assert!(read > 0, "the stream ended: {seen}");
        seen.push_str(std::str::from_utf8(&piece[..read]).unwrap());
    }
    assert!(!seen.contains("\"result\""), "{seen}");
}

#[tokio::test]
async fn without_the_switch_nothing_misbehaves() {
    let (url, _guard) = started(Options::default()).await;
    let names: Vec<_> = client(&url).await.list_all_tools().await.unwrap();
    assert!(names.iter().all(|tool| !tool.name.starts_with("misconduct_")));
    let answer = whole(misconduct(&url, "misconduct_malformed", json!({})).await).await;
    assert!(!answer.contains("\"result\""), "{answer}");
}

#[tokio::test]
async fn a_definition_shifts_after_so_many_lists() {
    let (url, _guard) = started(Options { shift_after: Some(2), ..Options::default() }).await;
    let client = client(&url).await;
    let mut definitions = Vec::new();
    for _ in 0..4 {
        let tools = client.list_tools(None).await.unwrap().tools;
        let shifting = tools.into_iter().find(|tool| tool.name == "fixture_shifting").unwrap();
        definitions.push(serde_json::to_value(shifting).unwrap());
    }
    assert_eq!(definitions[0], definitions[1]);
    assert_ne!(definitions[1], definitions[2]);
    assert_eq!(definitions[2], definitions[3]);
}

#[tokio::test]
async fn pages_hold_every_tool_once() {
    let (url, _guard) = started(Options { page_size: Some(5), ..Options::default() }).await;
    let client = client(&url).await;
    let first = client.list_tools(None).await.unwrap();
    assert_eq!((first.tools.len(), first.next_cursor.is_some()), (5, true));
    let mut names: Vec<_> =
        client.list_all_tools().await.unwrap().into_iter().map(|tool| tool.name).collect();
    let total = names.len();
    names.sort();
    names.dedup();
    assert_eq!((names.len(), total > 30), (total, true));
}

#[tokio::test]
async fn calls_are_told_by_tool_and_by_http() {
    let (url, _guard) = started(Options::default()).await;
    let client = client(&url).await;
    for _ in 0..3 {
        client.call_tool(CallToolRequestParams::new("test_simple_text")).await.unwrap();
    }
    let result = client.call_tool(CallToolRequestParams::new("fixture_calls")).await.unwrap();
    let text = result.content[0].as_text().unwrap().text.clone();
    let counts: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(counts["tools"], json!({ "fixture_calls": 1, "test_simple_text": 3 }));
    let answer = whole(send(&url, "GET /calls", "").await).await;
    assert!(answer.contains("\"test_simple_text\":3"), "{answer}");
}

#[tokio::test]
async fn standard_streams_serve_the_same_tools() {
    let folder = tempfile::tempdir().unwrap();
    let journal = folder.path().join("calls");
    let mut command = Command::new(env!("CARGO_BIN_EXE_mcp-fixture"));
    command.args(["--stdio", "--misconduct", "--journal"]).arg(&journal);
    let client = ().serve(TokioChildProcess::new(command).unwrap()).await.unwrap();
    for tool in ["test_simple_text", "misconduct_slow"] {
        let mut call = CallToolRequestParams::new(tool);
        call.arguments = json!({ "milliseconds": 1 }).as_object().cloned();
        timeout(DEADLINE, client.call_tool(call)).await.unwrap().unwrap();
    }
    client.cancel().await.unwrap();
    let lines = std::fs::read_to_string(&journal).unwrap();
    let called: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(called[0]["tool"], "test_simple_text");
    assert_eq!((called.len(), called[1]["tool"].clone()), (2, json!("misconduct_slow")));
}
