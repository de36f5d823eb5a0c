//! The kernel API: who asks, what is recorded, what is no question.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use aegis_audit::{Kind, Outcome};
use aegis_core::decision::Reason;
use aegis_sidecar::{
    KernelApi,
    kernel_api::{Door, Token, feed},
};
use bytes::Bytes;
use http::{HeaderName, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use crate::{
    approvals::vote,
    world::{AGENT, Answer, OTHER, PATIENCE, Plan, World, world},
};

/// A decision point with its doors.
pub(crate) struct Point {
    pub(crate) world: World,
    folder: tempfile::TempDir,
    address: SocketAddr,
    serving: tokio::task::JoinHandle<()>,
}

impl Point {
    pub(crate) async fn in_world(world: World) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = UnixListener::bind(folder.path().join("kernel.sock")).unwrap();
        let loopback = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = loopback.local_addr().unwrap();
        let api = KernelApi::new(Arc::clone(&world.route.shared), feed().0, Box::new(|| true));
        let doors = vec![Door::Unix(socket), Door::Loopback(loopback, Token::new("open sesame"))];
        let serving = tokio::spawn(api.serve(doors));
        Self { world, folder, address, serving }
    }

    pub(crate) async fn new() -> Self {
        Self::in_world(world().await).await
    }

    async fn connect(&self) -> SendRequest<Full<Bytes>> {
        let socket = self.folder.path().join("kernel.sock");
        let stream = TokioIo::new(UnixStream::connect(socket).await.unwrap());
        let (sender, connection) = handshake(stream).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    pub(crate) async fn post(&self, path: &str, body: &Value) -> Answer {
        send(&mut self.connect().await, Method::POST, path, &[], body.to_string()).await
    }

    pub(crate) async fn evaluate(&self, body: &Value) -> Value {
        let answer = self.post("/access/v1/evaluation", body).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        answer.json()
    }

    /// Everything that was decided, as `reason` and `result`.
    async fn decided(&self) -> Vec<(String, Outcome)> {
        let entries = self.world.entries().await.into_iter();
        let decisions = entries.filter(|entry| entry.kind == Kind::Decision);
        decisions.map(|entry| (entry.reason.unwrap(), entry.result)).collect()
    }
}

async fn send(
    sender: &mut SendRequest<Full<Bytes>>,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: impl Into<Bytes>,
) -> Answer {
    let mut request = Request::new(Full::new(body.into()));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().unwrap();
    let out = request.headers_mut();
    for (name, value) in headers {
        out.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
    }
    for (name, value) in [("host", "localhost"), ("content-type", "application/json")] {
        if !out.contains_key(name) {
            out.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
    }
    let sent = tokio::time::timeout(PATIENCE, sender.send_request(request)).await;
    let (head, body) = sent.unwrap().unwrap().into_parts();
    let body = tokio::time::timeout(PATIENCE, body.collect()).await.unwrap().unwrap();
    Answer { status: head.status, headers: head.headers, body: body.to_bytes() }
}

/// A question about a tool of the agent's own server.
fn question(tool: &str) -> Value {
    json!({
        "subject": { "type": "agent", "id": "self" },
        "action": { "name": "tools/call", "properties": { "text": "hi" } },
        "resource": { "type": "tool", "id": tool },
    })
}

fn reason(answer: &Value) -> &str {
    answer.pointer("/context/reason").and_then(Value::as_str).unwrap()
}

#[tokio::test]
async fn a_question_is_decided_recorded_and_concluded_once() {
    let point = Point::new().await;
    let denied = point.evaluate(&question("forbidden_x")).await;
    assert_eq!((&denied["decision"], reason(&denied)), (&json!(false), "policy_denied"));
    assert_eq!(denied["context"]["message"], "Not for agents.");
    let allowed = point.evaluate(&question("echo")).await;
    assert_eq!((&allowed["decision"], reason(&allowed)), (&json!(true), "policy_allowed"));
    let entries = point.world.recorded(Kind::Decision, 2).await;
    assert_eq!(entries.len(), 2);
    let entry = &entries[1];
    assert_eq!(entry.agent_id.as_deref(), Some(AGENT));
    assert_eq!(
        (&entry.action["protocol"], &entry.action["tool"]),
        (&json!("kernel"), &json!("echo"))
    );
    assert_eq!(json!(entry.decision_id), allowed["context"]["decision_id"]);
    let report = json!({ "decision_id": entry.decision_id, "result": "failure" });
    assert_eq!(point.post("/v1/outcomes", &report).await.status, StatusCode::OK);
    assert_eq!(point.post("/v1/outcomes", &report).await.status, StatusCode::NOT_FOUND);
    let of_denied = json!({ "decision_id": entries[0].decision_id, "result": "success" });
    assert_eq!(point.post("/v1/outcomes", &of_denied).await.status, StatusCode::NOT_FOUND);
    let wrong = json!({ "decision_id": "x", "result": "fine" });
    assert_eq!(point.post("/v1/outcomes", &wrong).await.status, StatusCode::BAD_REQUEST);
    let outcomes = point.world.recorded(Kind::Outcome, 1).await;
    assert_eq!((outcomes.len(), outcomes[0].result), (1, Outcome::Failure));
}

#[tokio::test]
async fn nobody_concludes_what_another_was_allowed() {
    let point = Point::new().await;
    let allowed = point.evaluate(&question("echo")).await;
    let report = json!({ "decision_id": allowed["context"]["decision_id"], "result": "success" });
    point.world.speaks(Ok(OTHER));
    let refused = point.post("/v1/outcomes", &report).await;
    let unknown = json!({ "decision_id": "nowhere", "result": "success" });
    let missing = point.post("/v1/outcomes", &unknown).await;
    assert_eq!((refused.status, refused.body), (StatusCode::NOT_FOUND, missing.body));
    point.world.speaks(Ok(AGENT));
    assert_eq!(point.post("/v1/outcomes", &report).await.status, StatusCode::OK);
    assert_eq!(point.world.recorded(Kind::Outcome, 1).await.len(), 1);
}

#[tokio::test]
async fn who_asks_is_who_was_attested_whatever_is_claimed() {
    let point = Point::new().await;
    let mut other = question("echo");
    other["subject"]["id"] = "spiffe://acme.example/ns/shop/sa/bot/agent/admin".into();
    let refused = point.evaluate(&other).await;
    assert_eq!((&refused["decision"], reason(&refused)), (&json!(false), "subject_mismatch"));
    let opa = json!({ "input": { "principal": { "id": "root" }, "action": { "tool": "echo" } } });
    let refused = point.post("/v1/data/aegis/decision", &opa).await.json();
    assert_eq!(refused["result"]["allow"], false);
    assert_eq!(refused["result"]["reason"], "subject_mismatch");
    other["subject"]["id"] = AGENT.into();
    assert_eq!(point.evaluate(&other).await["decision"], true);
    for entry in point.world.recorded(Kind::Decision, 3).await {
        assert_eq!(entry.agent_id.as_deref(), Some(AGENT));
    }
}

#[tokio::test]
async fn what_an_enforcement_point_refuses_by_itself_is_recorded() {
    let point = Point::new().await;
    // `echo` is allowed: nothing that is said here permits it, or lets it wait for its outcome.
    let mut own = question("echo");
    own["context"] = json!({ "reason": "outside_root" });
    let refused = point.post("/v1/refusals", &own).await.json();
    assert_eq!((&refused["decision"], reason(&refused)), (&json!(false), "outside_root"));
    let entry = point.world.recorded(Kind::Decision, 1).await.remove(0);
    assert_eq!((entry.agent_id.as_deref(), entry.result), (Some(AGENT), Outcome::Deny));
    assert_eq!(entry.action["tool"], "echo");
    assert_eq!(refused["context"].get("decision_id"), None);
    // Not in another's name, and not for a reason that is the daemon's to give.
    let mut other = own.clone();
    other["subject"]["id"] = OTHER.into();
    let refused = point.post("/v1/refusals", &other).await.json();
    assert_eq!(reason(&refused), "subject_mismatch");
    for code in [json!("policy_allowed"), json!("approved"), json!("none"), json!(1), Value::Null] {
        own["context"]["reason"] = code;
        let answer = point.post("/v1/refusals", &own).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    }
    let decided = point.decided().await;
    assert_eq!(decided.len(), 7);
    assert!(decided.iter().all(|(_, result)| *result == Outcome::Deny), "{decided:?}");
}

/// One policy for all, one for another agent alone.
const TOLD: &[&str] = &[
    "rules:
  - { name: all, effect: allow }
  - name: never
    effect: deny
    reason: Not for agents.
    when: [{ argument: $.secret, operator: exists }]
",
    "selector: { agents: [somebody-else] }
rules: [{ name: others, effect: deny }]
",
];

#[tokio::test]
async fn an_agent_is_told_what_it_is_governed_by_and_nothing_of_others() {
    let plan = Plan { policies: TOLD, ..Plan::default() };
    let point = Point::in_world(World::plan(plan).await).await;
    let mut asker = point.connect().await;
    let answer = send(&mut asker, Method::GET, "/v1/policies", &[], "").await;
    assert_eq!(answer.status, StatusCode::OK);
    let told = answer.json();
    assert_eq!(told["policies"].as_array().unwrap().len(), 1, "{told}");
    let policy = &told["policies"][0];
    assert!(policy["digest"].as_str().unwrap().starts_with("sha256:"), "{policy}");
    let rules = json!([
        { "name": "all", "effect": "allow" },
        { "name": "never", "effect": "deny", "reason": "Not for agents." },
    ]);
    assert_eq!((&policy["mode"], &policy["rules"]), (&json!("enforce"), &rules));
}

#[tokio::test]
async fn a_stranger_is_told_nothing_and_counted() {
    let plan = Plan { attested: Some(Reason::IdentityUnknown), ..Plan::default() };
    let point = Point::in_world(World::plan(plan).await).await;
    let mut asker = point.connect().await;
    for (method, path) in [
        (Method::POST, "/access/v1/evaluation"),
        (Method::POST, "/v1/outcomes"),
        (Method::POST, "/v1/hooks/claude-code"),
        (Method::POST, "/v1/preview"),
        (Method::POST, "/v1/refusals"),
        (Method::GET, "/v1/self"),
        (Method::GET, "/v1/policies"),
        (Method::GET, "/v1/events"),
        (Method::GET, "/.well-known/authzen-configuration"),
    ] {
        let answer = send(&mut asker, method, path, &[], question("echo").to_string()).await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{path}");
        assert_eq!(answer.json()["reason"], "identity_unknown");
    }
    assert_eq!(point.decided().await, []);
    point.world.route.shared.refusals.flush(&point.world.kernel).await;
    let counted = point.world.recorded(Kind::Refusals, 1).await;
    assert_eq!(counted[0].detail["count"], 9);
}

#[tokio::test]
async fn what_is_no_question_is_refused_and_recorded() {
    let point = Point::new().await;
    let mut asker = point.connect().await;
    let path = "/access/v1/evaluation";
    let twice = r#"{"action":{"name":"a","name":"b"}}"#;
    let many = json!({ "evaluations": vec![json!({}); 101] }).to_string();
    for (path, body, reason) in [
        (path, "", "malformed_message"),
        (path, "{}", "malformed_message"),
        (path, twice, "duplicate_key"),
        (path, r#"{"n":1e999}"#, "inexact_number"),
        ("/access/v1/evaluations", many.as_str(), "batch_refused"),
        (
            "/v1/data/aegis/decision",
            r#"{"input":{"action":{"tool":"t"},"context":{}}}"#,
            "malformed_message",
        ),
    ] {
        let answer = send(&mut asker, Method::POST, path, &[], body.to_owned()).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST, "{body}");
        assert_eq!(answer.json()["reason"], reason, "{body}");
    }
    let text = [("content-type", "text/plain")];
    let answer = send(&mut asker, Method::POST, path, &text, question("echo").to_string()).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
    let unknown = json!({
        "subject": { "type": "agent", "id": "self" }, "action": { "name": "read" },
        "resource": { "type": "record", "id": "1" },
    });
    assert_eq!(reason(&point.evaluate(&unknown).await), "method_unknown");
    let decided = point.decided().await;
    assert_eq!(decided.len(), 8);
    assert!(decided.iter().all(|(_, result)| *result == Outcome::Deny), "{decided:?}");
    let large = vec![b' '; (1 << 20) + 1];
    let answer = send(&mut asker, Method::POST, path, &[], large).await;
    assert_eq!(answer.status, StatusCode::PAYLOAD_TOO_LARGE);
    let mut asker = point.connect().await;
    let page = [("origin", "https://evil.example")];
    let answer = send(&mut asker, Method::POST, path, &page, question("echo").to_string()).await;
    assert_eq!(answer.json()["reason"], "origin_refused");
    let answer = send(&mut asker, Method::GET, path, &[], "").await;
    assert_eq!(answer.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_batch_is_as_many_decisions_and_stops_where_it_says() {
    let point = Point::new().await;
    let tools = |semantic: &str, tools: &[&str]| {
        let one = |tool: &&str| json!({ "resource": { "type": "tool", "id": tool } });
        json!({
            "subject": { "type": "agent", "id": "self" }, "action": { "name": "tools/call" },
            "options": { "evaluations_semantic": semantic },
            "evaluations": tools.iter().map(one).collect::<Vec<_>>(),
        })
    };
    let mut decided = 0;
    for (semantic, asked, expected) in [
        ("execute_all", ["echo", "forbidden", "echo"], &[true, false, true][..]),
        ("deny_on_first_deny", ["echo", "forbidden", "echo"], &[true, false]),
        ("permit_on_first_permit", ["forbidden", "echo", "echo"], &[false, true]),
    ] {
        let answer = point.post("/access/v1/evaluations", &tools(semantic, &asked)).await.json();
        let answers = answer["evaluations"].as_array().unwrap().iter();
        let decisions: Vec<bool> = answers.map(|one| one["decision"].as_bool().unwrap()).collect();
        assert_eq!(decisions, expected, "{semantic}");
        decided += expected.len();
        assert_eq!(point.decided().await.len(), decided);
    }
    let mut lacking = tools("execute_all", &["echo"]);
    lacking["evaluations"].as_array_mut().unwrap().push(json!({}));
    let answer = point.post("/access/v1/evaluations", &lacking).await.json();
    assert_eq!(answer["evaluations"][0]["decision"], true);
    assert_eq!(answer["evaluations"][1]["decision"], false);
    assert_eq!(point.decided().await.len(), decided + 2);
    let single = point.post("/access/v1/evaluations", &question("echo")).await.json();
    assert_eq!(single["decision"], true);
}

#[tokio::test]
async fn an_approval_lets_the_same_action_pass_once() {
    let point = Point::new().await;
    let asked = point.evaluate(&question("risky")).await;
    assert_eq!((&asked["decision"], reason(&asked)), (&json!(false), "approval_by_policy"));
    assert_eq!(asked["context"]["verdict"], "require_approval");
    let again = point.evaluate(&question("risky")).await;
    assert_eq!(again["context"]["approval"], asked["context"]["approval"]);
    vote(&point.world, true).await;
    let mut other = question("risky");
    other["action"]["properties"]["text"] = "bye".into();
    assert_eq!(point.evaluate(&other).await["decision"], false);
    let passed = point.evaluate(&question("risky")).await;
    assert_eq!((&passed["decision"], reason(&passed)), (&json!(true), "approved"));
    assert_eq!(point.evaluate(&question("risky")).await["decision"], false);
    assert_eq!(point.world.recorded(Kind::ApprovalConsumed, 1).await.len(), 1);
}

#[tokio::test]
async fn a_question_can_be_held_for_a_human() {
    let point = Point::new().await;
    let held = async {
        let mut asker = point.connect().await;
        let wait = [("prefer", "wait=30")];
        let body = question("risky").to_string();
        send(&mut asker, Method::POST, "/access/v1/evaluation", &wait, body).await.json()
    };
    let (held, ()) = tokio::join!(held, vote(&point.world, false));
    assert_eq!((&held["decision"], reason(&held)), (&json!(false), "approval_denied"));
    let mut named = question("risky");
    named["context"] = json!({ "approval": held["context"]["approval"] });
    assert_eq!(reason(&point.evaluate(&named).await), "approval_denied");
    named["context"] = json!({ "approval": "none" });
    assert_eq!(reason(&point.evaluate(&named).await), "approval_expired");
    assert_eq!(point.world.recorded(Kind::ApprovalRequested, 1).await.len(), 1);
}

#[tokio::test]
async fn a_preview_permits_nothing_and_leaves_no_trace() {
    let point = Point::new().await;
    let preview = async |question: &Value| {
        let answer = point.post("/v1/preview", question).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        let said = answer.json();
        // What obeys decisions alone finds none.
        assert!(said.get("decision").is_none() && said.get("decision_id").is_none(), "{said}");
        let text = |name: &str| said[name].as_str().unwrap().to_owned();
        (text("verdict"), text("reason"))
    };
    let told = |verdict: &str, reason: &str| (verdict.to_owned(), reason.to_owned());
    let (before, _) = point.world.kernel.trust(&AGENT.parse().unwrap());
    assert_eq!(preview(&question("echo")).await, told("allow", "policy_allowed"));
    assert_eq!(preview(&question("forbidden_x")).await, told("deny", "policy_denied"));
    assert_eq!(preview(&question("leaky")).await, told("deny", "obligation_unmet"));
    assert_eq!(preview(&question("risky")).await, told("require_approval", "approval_by_policy"));
    let mut other = question("echo");
    other["subject"]["id"] = "spiffe://acme.example/ns/shop/sa/bot/agent/admin".into();
    assert_eq!(preview(&other).await, told("deny", "subject_mismatch"));
    let unknown = json!({
        "subject": { "type": "agent", "id": "self" }, "action": { "name": "read" },
        "resource": { "type": "record", "id": "1" },
    });
    assert_eq!(preview(&unknown).await, told("deny", "method_unknown"));
    assert_eq!(point.post("/v1/preview", &json!({})).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(point.world.entries().await.iter().filter(|e| e.agent_id.is_some()).count(), 0);
    assert_eq!(point.world.kernel.approvals().len(), 0);
    assert_eq!(point.world.kernel.trust(&AGENT.parse().unwrap()).0, before);
    // The decision itself is one.
    assert_eq!(point.evaluate(&question("forbidden_x")).await["decision"], false);
    assert_eq!(point.decided().await.len(), 1);
    for _ in 0..300 {
        if point.post("/v1/preview", &question("echo")).await.status != StatusCode::OK {
            return;
        }
    }
    panic!("previews have no end");
}

#[tokio::test]
async fn a_caller_is_told_who_it_is() {
    let point = Point::new().await;
    let mut asker = point.connect().await;
    let told = send(&mut asker, Method::GET, "/v1/self", &[], "").await.json();
    assert_eq!((&told["agent"], &told["mode"]), (&json!(AGENT), &json!("advisory")));
    assert_eq!((&told["stopped"], &told["tier"]), (&json!(false), &json!("L1")));
    assert_eq!(told["trust"], 500);
    let agent: aegis_core::AgentId = AGENT.parse().unwrap();
    let stop = |state: &mut aegis_kernel::State| {
        state.quarantined.insert(agent.clone());
    };
    point.world.kernel.update_with(stop).await.unwrap();
    let told = send(&mut asker, Method::GET, "/v1/self", &[], "").await.json();
    assert_eq!(told["stopped"], true);
}

#[tokio::test]
async fn what_cannot_be_done_to_a_result_denies() {
    let point = Point::new().await;
    let answer = point.evaluate(&question("leaky")).await;
    assert_eq!((&answer["decision"], reason(&answer)), (&json!(false), "obligation_unmet"));
}

#[tokio::test]
async fn a_caller_that_goes_leaves_an_unknown_outcome_after_a_while() {
    let point = Point::new().await;
    let mut asker = point.connect().await;
    let body = || question("echo").to_string();
    let path = "/access/v1/evaluation";
    let first = send(&mut asker, Method::POST, path, &[], body()).await.json();
    let second = send(&mut asker, Method::POST, path, &[], body()).await.json();
    drop(asker);
    let told = json!({ "decision_id": second["context"]["decision_id"], "result": "success" });
    assert_eq!(point.post("/v1/outcomes", &told).await.status, StatusCode::OK);
    assert_eq!(point.world.recorded(Kind::Outcome, 1).await.len(), 1);
    tokio::time::pause();
    // In steps: the end of the connection may not have been seen yet.
    for _ in 0..8 {
        tokio::time::advance(Duration::from_secs(5)).await;
    }
    tokio::time::resume();
    let outcomes = point.world.recorded(Kind::Outcome, 2).await;
    assert_eq!(outcomes[1].result, Outcome::Unknown);
    assert_eq!(json!(outcomes[1].decision_id), first["context"]["decision_id"]);
}

#[tokio::test]
async fn a_process_that_ends_concludes_what_is_open() {
    let point = Point::new().await;
    let mut asker = point.connect().await;
    let body = question("echo").to_string();
    send(&mut asker, Method::POST, "/access/v1/evaluation", &[], body).await;
    point.world.drain.cancel();
    tokio::time::timeout(PATIENCE, point.serving).await.unwrap().unwrap();
    let outcomes = point.world.recorded(Kind::Outcome, 1).await;
    assert_eq!((outcomes.len(), outcomes[0].result), (1, Outcome::Unknown));
}

#[tokio::test]
async fn loopback_asks_for_the_token_and_its_own_name() {
    let point = Point::new().await;
    let own = point.address.to_string();
    for (headers, expected) in [
        (vec![("authorization", "Bearer open sesame")], None),
        (vec![], Some("identity_missing")),
        (vec![("authorization", "Bearer open")], Some("identity_missing")),
        (
            vec![("authorization", "Bearer open sesame"), ("host", "evil.example")],
            Some("host_refused"),
        ),
        (
            vec![("authorization", "Bearer open sesame"), ("origin", "http://localhost")],
            Some("origin_refused"),
        ),
    ] {
        let stream = TokioIo::new(TcpStream::connect(point.address).await.unwrap());
        let (mut asker, connection) = handshake(stream).await.unwrap();
        tokio::spawn(connection);
        let mut headers = headers;
        if !headers.iter().any(|(name, _)| *name == "host") {
            headers.push(("host", &own));
        }
        let body = question("echo").to_string();
        let path = "/access/v1/evaluation";
        let answer = send(&mut asker, Method::POST, path, &headers, body).await.json();
        assert_eq!(answer.get("reason").and_then(Value::as_str), expected, "{headers:?}");
        assert_eq!(answer.get("decision").is_some(), expected.is_none());
    }
    assert_eq!(point.decided().await.len(), 1);
}

#[tokio::test]
async fn discovery_and_request_ids_are_as_authzen_has_them() {
    let point = Point::new().await;
    let mut asker = point.connect().await;
    let path = "/.well-known/authzen-configuration";
    let named = [("x-request-id", "abc-1")];
    let answer = send(&mut asker, Method::GET, path, &named, "").await;
    assert_eq!(answer.headers["x-request-id"], "abc-1");
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(
        answer.json(),
        json!({
            "policy_decision_point": "http://localhost",
            "access_evaluation_endpoint": "http://localhost/access/v1/evaluation",
            "access_evaluations_endpoint": "http://localhost/access/v1/evaluations",
        })
    );
    let opa = json!({ "input": { "action": { "tool": "echo", "arguments": { "text": "hi" } } } });
    let answer = point.post("/v1/data/aegis/decision", &opa).await.json();
    assert_eq!(answer["result"]["allow"], true);
    assert_eq!(answer["decision_id"], answer["result"]["decision_id"]);
}
