//! `--cluster`: what an API server is asked, and what is made of its answers.

use std::{path::PathBuf, process::Command, sync::Arc};

use axum::{
    Json, Router,
    body::Bytes,
    extract::State,
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse as _, Response},
};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::fixture::{AGENT, Run, command};

/// What the API server holds, and how it was asked.
#[derive(Default)]
struct Server {
    pods: Vec<Value>,
    forbidden: Vec<&'static str>,
    asked: Vec<String>,
    patched: Vec<(String, Value)>,
}

type Shared = Arc<Mutex<Server>>;

const PROXY: &str = "/api/v1/namespaces/aegis-system/services/aegis-ledger:http/proxy";

fn list(items: &[Value]) -> Value {
    json!({ "metadata": {}, "items": items })
}

fn identity() -> Value {
    json!({
        "metadata": { "namespace": "shop", "name": "buyer", "generation": 1 },
        "status": {
            "observedGeneration": 1, "spiffeID": AGENT,
            "conditions": [{ "type": "Ready", "status": "True", "message": "fine" }],
            "trust": { "score": 333, "standing": "probationary", "asOf": 17 },
        },
    })
}

fn approval(state: &str) -> Value {
    json!({
        "metadata": { "namespace": "shop", "name": "9s01zq5rj7", "uid": "u-1" },
        "spec": { "requester": AGENT, "server": "notes", "method": "tools/call", "tool": "write_note",
                  "reason": "Changes need a human.", "expiresAt": "2026-01-31T00:00:00Z" },
        "status": { "state": state },
    })
}

fn trust(after: bool) -> Value {
    let view = |agent: &str| {
        json!({
            "agent": agent, "score": 333, "standing": "probationary", "stage": "CBT", "a": 1_000_000,
            "b": 2_000_000, "below_critical": 510, "quarantined": false, "as_of": 17,
        })
    };
    let second = "spiffe://acme.example/ns/shop/sa/bot/agent/seller";
    let (agent, next) = if after { (second, Value::Null) } else { (AGENT, json!(AGENT)) };
    json!({ "as_of": 17, "role": "writing", "agents": [view(agent)], "next": next })
}

async fn answer(
    State(server): State<Shared>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let mut server = server.lock();
    server.asked.push(uri.to_string());
    let path = uri.path();
    if server.forbidden.iter().any(|part| path.contains(part)) {
        let message = format!("{path} is forbidden");
        let status = json!({ "kind": "Status", "status": "Failure", "message": message, "reason": "Forbidden", "code": 403 });
        return (StatusCode::FORBIDDEN, Json(status)).into_response();
    }
    if method == Method::PATCH {
        assert_eq!(headers["content-type"], "application/merge-patch+json");
        server.patched.push((path.to_owned(), serde_json::from_slice(&body).unwrap()));
        return Json(approval("Pending")).into_response();
    }
    let query = uri.query().unwrap_or_default();
    let told = match path {
        "/apis/aegis.dev/v1alpha1/agentidentities" => list(&[identity()]),
        "/apis/aegis.dev/v1alpha1/agentpolicies" => list(&[]),
        "/apis/aegis.dev/v1alpha1/clusteragentpolicies" => list(&[]),
        "/apis/aegis.dev/v1alpha1/approvalrequests" if query.contains("nobody") => list(&[]),
        "/apis/aegis.dev/v1alpha1/approvalrequests" => list(&[approval("Pending")]),
        "/apis/aegis.dev/v1alpha1/namespaces/done/approvalrequests" => list(&[approval("Denied")]),
        "/api/v1/namespaces" => list(&[json!({ "metadata": { "name": "shop" } })]),
        "/api/v1/namespaces/shop/pods" => list(&server.pods),
        _ => match path.strip_prefix(PROXY) {
            Some("/healthz") => json!({ "status": "ok", "entries": 17 }),
            Some("/v1/trust") => trust(query.contains("after=")),
            Some("/v1/entries") => json!({ "entries": [], "next": null }),
            _ => {
                return (StatusCode::NOT_FOUND, Json(json!({ "message": "nothing" })))
                    .into_response();
            }
        },
    };
    Json(told).into_response()
}

struct Cluster {
    server: Shared,
    kubeconfig: PathBuf,
    _folder: tempfile::TempDir,
}

impl Cluster {
    async fn start() -> Self {
        let server = Shared::default();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let routes = Router::new().fallback(answer).with_state(Arc::clone(&server));
        tokio::spawn(axum::serve(listener, routes).into_future());
        let folder = tempfile::tempdir().unwrap();
        let kubeconfig = folder.path().join("config");
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "here",
            "clusters": [{ "name": "c", "cluster": { "server": url } }],
            "users": [{ "name": "u", "user": {} }],
            "contexts": [{ "name": "here", "context": { "cluster": "c", "user": "u" } }],
        });
        std::fs::write(&kubeconfig, config.to_string()).unwrap();
        Self { server, kubeconfig, _folder: folder }
    }

    fn aegis(&self, args: &[&str]) -> Run {
        let mut command: Command = command(args);
        Run::of(&command.env("KUBECONFIG", &self.kubeconfig).output().unwrap())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn status_names_what_is_not_covered() {
    let cluster = Cluster::start().await;
    let governed = json!({
        "metadata": { "namespace": "shop", "name": "a" }, "status": { "phase": "Running" },
        "spec": { "initContainers": [{ "name": "aegis-proxy" }] },
    });
    cluster.server.lock().pods = vec![governed];
    let all = ["status", "--cluster", "--check", "--coverage", "-o", "json"];
    let told = cluster.aegis(&all).exits(0).json();
    assert_eq!((&told["entries"], &told["enrolled"]), (&json!(17), &json!(["shop"])));
    assert_eq!(told["agents"][0]["trust"], 333);
    let asked = cluster.server.lock().asked.join("\n");
    assert!(asked.contains("labelSelector=aegis.dev%2Finject%3Denabled"), "{asked}");

    let bare = json!({ "metadata": { "namespace": "shop", "name": "b" }, "status": { "phase": "Running" }, "spec": {} });
    cluster.server.lock().pods.push(bare);
    let told = cluster.aegis(&all).exits(1).json();
    assert_eq!(told["not_covered"].as_array().unwrap().len(), 1);
    assert!(told["not_covered"][0].as_str().unwrap().contains("shop/b"));
    cluster.aegis(&["status", "--cluster", "--check"]).exits(0);

    // What may not be asked is not said to be well.
    cluster.server.lock().forbidden = vec!["/pods"];
    let told = cluster.aegis(&all).exits(1).json();
    assert!(told["not_covered"][0].as_str().unwrap().contains("unknown what runs in shop"));
    cluster.server.lock().forbidden = vec!["/proxy"];
    let told = cluster.aegis(&["status", "--cluster", "--check", "-o", "json"]).exits(1).json();
    assert_eq!(told["entries"], Value::Null);
    assert!(told["ledger_problem"].as_str().unwrap().contains("forbidden"));
    cluster.server.lock().forbidden = vec!["/agentidentities"];
    cluster.aegis(&["status", "--cluster"]).refuses("forbidden");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_approval_is_answered_as_oneself() {
    let cluster = Cluster::start().await;
    let listed = cluster.aegis(&["approvals", "list", "--cluster", "-o", "json"]).exits(0).json();
    assert_eq!(listed[0]["id"], "shop/9s01zq5rj7");
    cluster.aegis(&["approvals", "approve", "9s01zq5rj7", "--cluster"]).exits(0);
    let patched = cluster.server.lock().patched.clone();
    let path = "/apis/aegis.dev/v1alpha1/namespaces/shop/approvalrequests/9s01zq5rj7";
    let patch = json!({ "metadata": { "uid": "u-1" }, "spec": { "answer": "approve" } });
    assert_eq!(patched, [(path.to_owned(), patch)]);
    cluster.aegis(&["approvals", "deny", "shop2/x", "--cluster"]).refuses("does not tell");
    cluster.aegis(&["approvals", "deny", "nobody", "--cluster"]).refuses("there is no approval");
    cluster.aegis(&["approvals", "deny", "done/x", "--cluster"]).refuses("is already denied");
    let commented = ["approvals", "deny", "9s01zq5rj7", "--comment", "x", "--cluster"];
    cluster.aegis(&commented).refuses("neither comment nor code");
    assert_eq!(cluster.server.lock().patched.len(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trust_and_the_log_are_read_from_the_ledger() {
    let cluster = Cluster::start().await;
    let told = cluster.aegis(&["trust", "show", "--cluster", "-o", "json"]).exits(0).json();
    assert_eq!(told.as_array().unwrap().len(), 2, "every page: {told}");
    let told = cluster.aegis(&["trust", "show", "seller", "--cluster"]).exits(0);
    assert!(told.stdout.contains("seller") && !told.stdout.contains("buyer"), "{}", told.stdout);
    cluster.aegis(&["trust", "replay", "--cluster"]).refuses("only `trust show` asks a cluster");
    cluster.aegis(&["audit", "query", "--cluster", "--result", "deny"]).exits(0);
    let asked = cluster.server.lock().asked.clone();
    let query = format!("{PROXY}/v1/entries?");
    assert!(asked.iter().any(|one| one.starts_with(&query) && one.contains("result=deny")));
    cluster.aegis(&["trust", "show", "--context", "here"]).refuses("add --cluster");
    let elsewhere = ["trust", "show", "--cluster", "--context", "there"];
    cluster.aegis(&elsewhere).refuses("there is no cluster to ask");
    let other = ["trust", "show", "--cluster", "--namespace", "other"];
    cluster.aegis(&other).refuses("nothing");
}
