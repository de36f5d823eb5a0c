//! What the daemon tells of itself: changes of the folder, unknown names, another daemon, and what is
//! recorded, as it comes.

use std::path::Path;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpStream, UnixStream},
};

use crate::{
    fixture::{command, text},
    live::{Live, PATIENCE, STDIO, Server, Wrapped, registered, until},
};

#[tokio::test]
async fn a_removed_upstream_is_closed() {
    let server = Server::start().await;
    let live = Live::start(&server.document, &[]).await;
    live.write("notes.yaml", &registered(STDIO));
    until("the new upstream is up", async || {
        live.status().await["upstreams"].as_array().unwrap().len() == 2
    })
    .await;
    assert_eq!(live.call("echo").await, None);
    let address = live.status().await["upstreams"][0]["address"].as_str().unwrap().to_owned();
    let host = address.strip_prefix("http://").unwrap().strip_suffix("/mcp").unwrap().to_owned();
    let mut open = Wrapped::start(&live, &["wrap", "--server", "notes"]);
    let echo = json!({ "name": "echo", "arguments": {} });
    assert!(open.ask("tools/call", echo).await["result"]["content"].is_array());

    // A folder with a document that nobody can read takes nothing out of service.
    live.write("broken.yaml", "nonsense");
    live.write("notes.yaml", "");
    live.write("upstream.yaml", "");
    until("the broken document is told", async || {
        live.aegis(&["status", "--check"]).await.code == 1
    })
    .await;
    assert_eq!(live.status().await["upstreams"].as_array().unwrap().len(), 2);
    std::fs::remove_file(live.folder.path().join("aegis.d/broken.yaml")).unwrap();
    until("both are gone", async || live.status().await["upstreams"] == json!([])).await;
    until("the listener is closed", async || TcpStream::connect(&host).await.is_err()).await;
    let ended = tokio::time::timeout(PATIENCE, open.process.wait()).await.unwrap();
    assert!(ended.is_ok(), "{ended:?}");
    live.aegis(&["wrap", "--server", "notes"]).await.refuses("registers a command");
    assert_eq!(live.status().await["upstreams"], json!([]), "who is refused makes no route");
    let log = std::fs::read_to_string(live.folder.path().join("log")).unwrap();
    assert!(log.contains("AgentUpstream default/calc was removed; it is closed"), "{log}");
    assert!(!log.contains('\u{1b}'), "a log file has no colours: {log}");
    // And back again.
    live.write("upstream.yaml", &server.document);
    until("it is back", async || live.status().await["upstreams"].as_array().unwrap().len() == 1)
        .await;
    assert_eq!(live.call("echo").await, None);
}

#[tokio::test]
async fn an_explanation_gives_the_reason_that_a_call_meets() {
    let server = Server::start().await;
    let mut live = Live::start(&server.document, &[]).await;
    let explain = async |live: &Live, words: &[&str]| {
        let words = [&["explain", "-o", "json"], words].concat();
        live.aegis(&words).await.exits(0).json()
    };
    let note = |told: &Value| told["notes"][0].as_str().unwrap_or_default().to_owned();
    // Nothing is listed yet: what the policies say, and what else could be.
    let told = explain(&live, &["--server", "calc", "--tool", "ech"]).await;
    assert_eq!(told["reason"], "policy_allowed");
    assert!(note(&told).contains("has not listed its tools"), "{told}");

    for tool in ["echo", "never", "ech"] {
        live.call(tool).await;
        let decided = live.entries("decision").await;
        let told = explain(&live, &["--server", "calc", "--tool", tool]).await;
        assert_eq!(told["reason"], decided[0]["reason"], "{tool}");
        assert_eq!(told["verdict"], decided[0]["result"], "{tool}");
    }
    let told = explain(&live, &["--server", "calc", "--tool", "ech"]).await;
    assert_eq!(told["reason"], "tool_unknown");
    assert!(note(&told).ends_with("did you mean `echo`?"), "{told}");
    let told = explain(&live, &["--server", "calk", "--tool", "echo"]).await;
    assert_eq!((&told["reason"], &told["verdict"]), (&json!("server_unknown"), &json!("deny")));
    assert!(note(&told).ends_with("did you mean `calc`?"), "{told}");
    let told = explain(&live, &["--server", "calc", "--method", "tools/cal"]).await;
    assert_eq!(told["reason"], "method_unknown");
    assert!(note(&told).ends_with("did you mean `tools/call`?"), "{told}");
    *server.description.lock() = "second";
    live.restart().await;
    assert_eq!(live.call("echo").await.as_deref(), Some("tool_quarantined"));
    let told = explain(&live, &["--server", "calc", "--tool", "echo"]).await;
    assert_eq!(told["reason"], "tool_quarantined");

    // A rule about a tool that the server does not have.
    let policy = "apiVersion: aegis.dev/v1alpha1\nkind: AgentPolicy\nmetadata: { name: more }\nspec:\n  match: { servers: [calc, clac] }\n  rules: [{ name: a, effect: deny, tools: [nevr] }]\n";
    live.write("more.yaml", policy);
    until("the names are doubted", async || {
        let doubts = live.status().await["warnings"].to_string();
        doubts.contains("did you mean `calc`?") && doubts.contains("did you mean `never`?")
    })
    .await;
    live.aegis(&["status", "--check"]).await.exits(0);
}

#[tokio::test]
async fn a_second_daemon_is_told_of_the_first() {
    let live = Live::start("", &[]).await;
    let status = live.status().await;
    let config = live.folder.path().join("aegis.d");
    assert_eq!(status["config"], text(&config), "not as it was given, but where it is");
    let state = live.state();
    let mut second = command(&["up", "--config", text(&config), "--state", text(&state)]);
    // The same port would be in use too; that is not what is wrong.
    second.args(["--admin", "127.0.0.1:0"]);
    let run = crate::fixture::Run::of(&second.output().unwrap());
    run.refuses(&format!("another `aegis up` (process {}) uses the state folder", status["pid"]));
    assert_eq!(live.status().await["pid"], status["pid"], "the first goes on");
}

/// Only root can be another user; everybody else is told so, and nothing is started.
#[tokio::test]
async fn a_server_can_be_started_as_another_user() {
    let script = STDIO
        .replace("dict(os.environ)", "[os.getuid(),os.getgid(),os.getgroups(),os.environ['HOME']]");
    let user = "program: python3\n    user: nobody";
    let live = Live::start(&registered(&script).replace("program: python3", user), &[]).await;
    if !nix::unistd::getuid().is_root() {
        let refused = live.aegis(&["wrap", "--server", "notes"]).await;
        refused.refuses("only a daemon that runs as root");
        return;
    }
    let nobody = nix::unistd::User::from_name("nobody").unwrap().unwrap();
    let mut client = Wrapped::start(&live, &["wrap", "--server", "notes"]);
    let answer = client.ask("tools/call", json!({ "name": "echo", "arguments": {} })).await;
    let told: Value =
        serde_json::from_str(answer["result"]["content"][0]["text"].as_str().unwrap()).unwrap();
    let expected = json!([nobody.uid.as_raw(), nobody.gid.as_raw(), [], text(&nobody.dir)]);
    assert_eq!(told, expected);
}

const ASKS: &str = "---
apiVersion: aegis.dev/v1alpha1
kind: AgentPolicy
metadata: { name: editor }
spec:
  match: { servers: [editor] }
  rules: [{ name: ask, effect: require_approval, reason: A person looks at it. }]
";

/// A request on a socket, whose answer is still to be read.
async fn sent(socket: &Path, method: &str, path: &str, body: &str) -> UnixStream {
    let mut stream = UnixStream::connect(socket).await.unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

async fn asked(socket: &Path, method: &str, path: &str, body: &Value) -> Value {
    let body = if body.is_null() { String::new() } else { body.to_string() };
    let mut stream = sent(socket, method, path, &body).await;
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200 "), "{answer}");
    serde_json::from_str(answer.split_once("\r\n\r\n").unwrap().1).unwrap()
}

/// Reads on until all of it holds `words`.
async fn heard(stream: &mut UnixStream, all: &mut String, words: &str) {
    while !all.contains(words) {
        let mut part = vec![0; 4096];
        let read = tokio::time::timeout(PATIENCE, stream.read(&mut part)).await;
        let length = read.unwrap_or_else(|_| panic!("no {words} in {all}")).unwrap();
        assert!(length > 0, "the stream ended without {words}: {all}");
        all.push_str(std::str::from_utf8(&part[..length]).unwrap());
    }
}

#[tokio::test]
async fn operators_hear_of_approvals_as_they_come_and_a_preview_is_none() {
    let server = Server::start().await;
    let mut live = Live::start(&format!("{}{ASKS}", server.document), &[]).await;
    let (control, kernel) = (live.state().join("control.sock"), live.state().join("kernel.sock"));
    let question = json!({
        "subject": { "type": "agent", "id": "self" },
        "action": { "name": "file.write", "properties": { "content": "x" } },
        "resource": { "type": "file", "id": "/work/a.txt", "properties": { "server": "editor" } },
    });
    let who = asked(&kernel, "GET", "/v1/self", &Value::Null).await;
    assert!(who["agent"].as_str().unwrap().ends_with("/agent/bot"), "{who}");
    // The daemon runs under the agent's own user.
    assert_eq!((&who["mode"], &who["sponsor"]), (&json!("advisory"), &json!("ada@acme.example")));
    let before = asked(&kernel, "POST", "/v1/preview", &question).await;
    assert_eq!(
        (&before["verdict"], &before["approval"]),
        (&json!("require_approval"), &Value::Null)
    );
    assert_eq!(live.entries("decision").await.len(), 0);

    let (mut events, mut all) = (sent(&control, "GET", "/v1/events", "").await, String::new());
    heard(&mut events, &mut all, "event: open").await;
    let held = asked(&kernel, "POST", "/access/v1/evaluation", &question).await;
    let id = held["context"]["approval"].as_str().unwrap();
    heard(&mut events, &mut all, "event: approval_requested").await;
    heard(&mut events, &mut all, id).await;
    assert!(all.contains("/agent/bot\"") && !all.contains("\"content\""), "{all}");
    assert_eq!(asked(&kernel, "POST", "/v1/preview", &question).await["approval"], id);
    live.aegis(&["approvals", "approve", id, "--comment", "looked"]).await.exits(0);
    heard(&mut events, &mut all, "event: approval_vote").await;
    assert!(!all.contains("looked"), "who voted how is in the ledger: {all}");
    let view = asked(&control, "GET", &format!("/v1/approvals/{id}"), &Value::Null).await;
    assert_eq!((&view["resource"], &view["state"]), (&json!("/work/a.txt"), &json!("approved")));
    let shown = live.aegis(&["approvals", "show", id]).await.exits(0).stdout;
    assert!(shown.contains("/work/a.txt"), "{shown}");
    assert_eq!(asked(&kernel, "POST", "/v1/preview", &question).await["reason"], "approved");

    // After a restart the question is still a whole one.
    live.restart().await;
    let view = asked(&control, "GET", &format!("/v1/approvals/{id}"), &Value::Null).await;
    assert_eq!((&view["resource"], &view["state"]), (&json!("/work/a.txt"), &json!("approved")));
}

#[tokio::test]
async fn broken_glass_is_a_persons_recorded_and_ends_with_the_daemon() {
    let server = Server::start().await;
    let mut live = Live::start(&server.document, &[]).await;
    assert_eq!(live.call("never").await.as_deref(), Some("policy_denied"));
    let order = |minutes: &'static str, why: &'static str| {
        ["agents", "break-glass", "bot", "--minutes", minutes, "--reason", why]
    };
    live.aegis(&order("5", "too short")).await.refuses("at least 10 characters");
    live.aegis(&order("481", "a reason that is long enough")).await.exits(2);
    let nobody = "spiffe://aegis.local/ns/default/sa/default/agent/nobody";
    let stranger = ["agents", "break-glass", nobody, "--reason", "a reason that is long enough"];
    live.aegis(&stranger).await.refuses("is registered");
    assert_eq!(live.call("never").await.as_deref(), Some("policy_denied"));

    live.aegis(&order("5", "restore the orders by hand")).await.exits(0);
    assert_eq!(live.call("never").await, None);
    let status = live.aegis(&["status"]).await.exits(0);
    assert!(status.stdout.contains("without policies until"), "{}", status.stdout);
    let orders = live.entries("configuration").await;
    let broke = orders.iter().find(|entry| entry["detail"]["order"] == "break_glass").unwrap();
    assert_eq!(broke["detail"]["why"], "restore the orders by hand");
    assert!(broke["detail"]["who"].is_string() && broke["detail"]["until"].is_string(), "{broke}");
    let lifted = live.entries("decision").await;
    assert!(lifted.iter().any(|entry| entry["reason"] == "glass_broken"), "{lifted:?}");
    let end = ["agents", "end-break-glass", "bot", "--reason", "done"];
    live.aegis(&end).await.exits(0);
    assert_eq!(live.call("never").await.as_deref(), Some("policy_denied"));

    live.aegis(&order("5", "restore the orders by hand")).await.exits(0);
    assert_eq!(live.call("never").await, None);
    live.restart().await;
    assert_eq!(live.call("never").await.as_deref(), Some("policy_denied"));
}
