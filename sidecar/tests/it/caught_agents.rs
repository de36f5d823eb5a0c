//! A2A between pods: what one application says to another through both their sidecars.

use aegis_audit::entry::{Entry, Kind, Outcome};
use aegis_sidecar::{MESH_PROTOCOL, transparent::Ports};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::Full;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::{
    grants::{approve, waits},
    mesh::{Authority, LAX, Mesh, Pod, SERVER, connect, exchange},
    upstream::{self, Upstream},
    world::{AGENT, OTHER, call},
};

/// What its text says is forbidden.
const TALK: &[&str] = &[r"
rules:
  - { name: all, effect: allow }
  - name: forbidden
    effect: deny
    methods: [Send*]
    when: [{ argument: '$.message.parts[*].text', operator: contains, value: forbidden }]
"];
/// Messages need a person.
const ASKING: &[&str] = &[
    "rules: [{ name: all, effect: allow }, { name: ask, effect: require_approval, methods: [Send*] }]",
];

/// An agent that works on the task `t` in the context `c`.
fn working(upstream: &Upstream) {
    upstream.answers(|seen| async move {
        let task =
            json!({ "id": "t", "contextId": "c", "status": { "state": "TASK_STATE_WORKING" } });
        let method = seen.json()["method"].as_str().unwrap_or_default().to_owned();
        let said = match method.as_str() {
            "" if seen.method == Method::GET => task,
            "" => json!({ "task": task }),
            "GetTask" => upstream::result_for(&seen, &task),
            _ => upstream::result_for(&seen, &json!({ "task": task })),
        };
        upstream::json(200, &said)
    });
}

async fn a2a(of_client: &'static [&'static str], of_server: &'static [&'static str]) -> Mesh {
    let (authority, upstream) = (Authority::new(), Upstream::start().await);
    working(&upstream);
    let client = Pod::start(&authority, AGENT, of_client, Ports::default()).await;
    let a2a = [upstream.address.port()].into();
    let server = Pod::start(&authority, SERVER, of_server, Ports { a2a, ..Ports::default() }).await;
    client.destination.set(server.inbound).unwrap();
    server.destination.set(upstream.address).unwrap();
    Mesh { authority, client, server, upstream }
}

fn request(method: Method, path: &str, body: &Value) -> Request<Full<Bytes>> {
    let body = if body.is_null() { Bytes::new() } else { body.to_string().into() };
    let request = Request::builder().method(method).uri(path).header("host", "planner.shop:8080");
    let request = request.header("a2a-version", "1.0").header("content-type", "application/json");
    request.body(Full::new(body)).unwrap()
}

fn message(text: &str) -> Value {
    json!({ "message": { "messageId": "m", "role": "ROLE_USER", "parts": [{ "text": text }] } })
}

fn rpc(method: &str, params: &Value) -> Request<Full<Bytes>> {
    let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
    request(Method::POST, "/a2a", &body)
}

async fn decided(pod: &Pod) -> Vec<Entry> {
    let all = pod.entries().await;
    all.into_iter().filter(|entry| entry.kind == Kind::Decision).collect()
}

#[tokio::test]
async fn a_message_is_decided_on_both_sides_in_both_bindings() {
    let mesh = a2a(TALK, TALK).await;
    let (status, said) = mesh.ask(rpc("SendMessage", &message("hello"))).await;
    assert_eq!((status, &said["result"]["task"]["id"]), (StatusCode::OK, &json!("t")), "{said}");
    let (status, said) =
        mesh.ask(request(Method::POST, "/a2a/message:send", &message("hello"))).await;
    assert_eq!((status, &said["task"]["id"]), (StatusCode::OK, &json!("t")), "{said}");
    let (status, said) =
        mesh.ask(request(Method::GET, "/a2a/tasks/t?historyLength=2", &Value::Null)).await;
    assert_eq!((status, &said["id"]), (StatusCode::OK, &json!("t")), "{said}");
    let targets: Vec<String> = mesh.upstream.seen().into_iter().map(|seen| seen.target).collect();
    assert_eq!(targets, ["/a2a", "/a2a/message:send", "/a2a/tasks/t?historyLength=2"]);
    let endpoint = format!("{}/a2a", mesh.upstream.address.port());
    let mut digests = Vec::new();
    for pod in [&mesh.client, &mesh.server] {
        let decided = decided(pod).await;
        assert_eq!(decided.len(), 3);
        for entry in &decided {
            assert_eq!(entry.agent_id.as_deref(), Some(AGENT));
            assert_eq!(entry.action_text("protocol"), Some("a2a"));
            assert_eq!(entry.action_text("server"), Some("calc"));
            assert_eq!(entry.action_text("endpoint"), Some(endpoint.as_str()));
            assert_eq!(entry.result, Outcome::Allow);
        }
        digests.extend(decided[..2].iter().map(|entry| entry.action["digest"].clone()));
    }
    assert!(digests.iter().all(|digest| *digest == digests[0]), "one action: {digests:?}");
}

#[tokio::test]
async fn what_is_forbidden_ends_in_the_callers_pod_and_else_in_the_callees() {
    for (of_client, of_server, decisions) in [(TALK, LAX, 0), (LAX, TALK, 1)] {
        let mesh = a2a(of_client, of_server).await;
        let (status, said) = mesh.ask(rpc("SendMessage", &message("forbidden"))).await;
        assert_eq!((status, &said["error"]["code"]), (StatusCode::OK, &json!(4030)), "{said}");
        assert_eq!(mesh.upstream.seen().len(), 0);
        assert_eq!(decided(&mesh.server).await.len(), decisions);
    }
}

/// A port that speaks A2A speaks nothing else, whoever asks.
#[tokio::test]
async fn nothing_else_is_spoken_there() {
    let mesh = a2a(LAX, LAX).await;
    let (_, said) = mesh.ask(request(Method::POST, "/a2a", &call(1, "echo"))).await;
    assert_eq!(said["error"]["code"], -32601, "{said}");
    let (status, _) = mesh.ask(request(Method::GET, "/admin/users", &Value::Null)).await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(mesh.upstream.seen().len(), 0);
}

#[tokio::test]
async fn tasks_of_one_pod_are_not_anothers() {
    let mesh = a2a(LAX, LAX).await;
    let (_, said) = mesh.ask(rpc("SendMessage", &message("go"))).await;
    assert_eq!(said["result"]["task"]["id"], "t", "{said}");
    let rival = Pod::start(&mesh.authority, OTHER, LAX, Ports::default()).await;
    rival.destination.set(mesh.server.inbound).unwrap();
    let before = mesh.upstream.seen().len();
    let mut joining = message("and now?");
    joining["message"]["contextId"] = "c".into();
    let ask = async |request| {
        exchange(TcpStream::connect(rival.outbound).await.unwrap(), request).await.1
    };
    for (method, params) in [("GetTask", json!({ "id": "t" })), ("SendMessage", joining.clone())] {
        let said = ask(rpc(method, &params)).await;
        assert_eq!(said["error"]["code"], -32001, "{method}: {said}");
    }
    // A sidecar of its own that let it through would not help: the callee's knows whose the task is.
    let source = mesh.authority.source(OTHER).await;
    for request in [
        request(Method::GET, "/a2a/tasks/t", &Value::Null),
        request(Method::POST, "/a2a/message:send", &joining),
    ] {
        let stream = connect(&mesh, &source, &[MESH_PROTOCOL]).await.unwrap();
        assert_eq!(exchange(stream, request).await.1["error"]["code"], 404);
    }
    assert_eq!(mesh.upstream.seen().len(), before, "the agent was not asked");
    let said = mesh.ask(rpc("GetTask", &json!({ "id": "t" }))).await.1;
    assert_eq!(said["result"]["id"], "t", "{said}");
}

/// By whatever `Host` an agent is reached, its tasks are the same.
#[tokio::test]
async fn an_agent_has_the_same_tasks_under_every_host() {
    let mesh = a2a(LAX, LAX).await;
    let (_, said) = mesh.ask(rpc("SendMessage", &message("go"))).await;
    assert_eq!(said["result"]["task"]["id"], "t", "{said}");
    let renamed = |mut request: Request<Full<Bytes>>| {
        request.headers_mut().insert("host", "other.shop:8080".parse().unwrap());
        request
    };
    let said = mesh.ask(renamed(rpc("GetTask", &json!({ "id": "t" })))).await.1;
    assert_eq!(said["result"]["id"], "t", "{said}");
    // So the agent cannot give it to somebody else either who comes by another.
    let source = mesh.authority.source(OTHER).await;
    let stream = connect(&mesh, &source, &[MESH_PROTOCOL]).await.unwrap();
    let said = exchange(stream, renamed(rpc("SendMessage", &message("mine?")))).await.1;
    assert_eq!(said["error"]["code"], -32006, "{said}");
}

#[tokio::test]
async fn a_message_is_approved_once_for_both_pods() {
    let mesh = a2a(ASKING, ASKING).await;
    let asking = async {
        let id = waits(&mesh.client).await;
        approve(&mesh.client, &id).await;
    };
    let ((status, said), ()) = tokio::join!(mesh.ask(rpc("SendMessage", &message("pay"))), asking);
    assert_eq!((status, &said["result"]["task"]["id"]), (StatusCode::OK, &json!("t")), "{said}");
    assert!(mesh.server.kernel.approvals().is_empty(), "nobody was asked twice");
    assert_eq!(decided(&mesh.server).await[0].reason.as_deref(), Some("granted"));
    let leaked = mesh
        .upstream
        .seen()
        .iter()
        .any(|seen| seen.headers.keys().any(|name| name.as_str().starts_with("x-aegis-")));
    assert!(!leaked);
}
