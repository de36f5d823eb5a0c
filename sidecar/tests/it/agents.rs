//! A2A: an agent behind the sidecar, as its clients see it in both bindings.

use std::sync::Arc;

use aegis_audit::{Kind, Outcome};
use aegis_core::decision::Reason;
use bytes::Bytes;
use http::{Method, Response};
use http_body_util::combinators::UnsyncBoxBody;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::{
    upstream::{self, Seen},
    world::{AGENT, Answer, OTHER, PATIENCE, Plan, World, bundle, next},
};

/// Everything but what its name says is forbidden.
const POLICIES: &[&str] = &[
    r"
rules:
  - { name: all, effect: allow }
  - name: forbidden
    effect: deny
    methods: [Send*]
    when: [{ argument: '$.message.parts[*].text', operator: contains, value: forbidden }]
    reason: Not for agents.
  - name: leaky
    effect: allow
    obligations: [{ kind: redactResult, target: 'sk-[a-z0-9]+' }]
",
    "match: { protocols: [http], servers: [denied.example] }\nrules: [{ name: hooks, effect: deny }]",
];

/// As [`POLICIES`], and messages are forbidden.
const STRICTER: &[&str] =
    &["rules: [{ name: all, effect: allow }, { name: no, effect: deny, methods: [Send*] }]"];

/// Messages need a human.
const ASKING: &[&str] = &[
    "rules: [{ name: all, effect: allow }, { name: ask, effect: require_approval, methods: [Send*] }]",
];

const V1: (&str, &str) = ("a2a-version", "1.0");
const EXTENSION: &str = "https://example.com/extensions/geo/v1";

fn plan() -> Plan {
    let options = json!({
        "extensions": [EXTENSION],
        "webhookHosts": ["hooks.shop.svc", "127.0.0.1", "denied.example"],
    });
    let spec = json!({ "protocol": "a2a", "a2a": options });
    Plan { policies: POLICIES, spec, ..Plan::default() }
}

async fn world() -> World {
    World::plan(plan()).await
}

/// An agent that begins the task `t` with the state `state`, and knows what becomes of it.
fn agent(world: &World, state: &'static str) {
    world.upstream.answers(move |seen| async move { answered(&seen, "t", state) });
}

fn task(id: &str, state: &str) -> Value {
    json!({ "id": id, "contextId": format!("c-{id}"), "status": { "state": state } })
}

fn answered(
    seen: &Seen,
    id: &str,
    state: &str,
) -> Response<UnsyncBoxBody<Bytes, std::convert::Infallible>> {
    let method = seen.json()["method"].as_str().unwrap_or_default().to_owned();
    let what = if method.is_empty() { seen.target.as_str() } else { method.as_str() };
    let result = match what {
        "SendMessage" | "/mcp/message:send" | "/mcp/message%3Asend" => {
            json!({ "task": task(id, state) })
        }
        "message/send" => {
            let mut task = task(id, state);
            task["kind"] = "task".into();
            task
        }
        "ListTasks" | "/mcp/tasks" => {
            json!({ "tasks": [task(id, state), task("foreign", state)], "totalSize": 2 })
        }
        what if what.contains("push") || what.contains("Push") => {
            json!({ "taskId": id, "url": "https://h.example/" })
        }
        what if what.contains("Card") || what.contains("card") => json!({ "name": "planner" }),
        _ => task(id, state),
    };
    if method.is_empty() {
        upstream::json(200, &result)
    } else {
        upstream::json(200, &upstream::result_for(seen, &result))
    }
}

fn rpc(method: &str, params: Value) -> String {
    json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params }).to_string()
}

fn message(text: &str) -> Value {
    json!({ "message": { "messageId": "m", "role": "ROLE_USER", "parts": [{ "text": text }] } })
}

async fn by_rpc(world: &World, method: &str, params: Value) -> Answer {
    world.send(Method::POST, &[V1], rpc(method, params)).await
}

async fn by_path(world: &World, method: Method, path: &str, body: impl Into<Bytes>) -> Answer {
    world.send_to(method, &format!("/mcp{path}"), &[V1], body).await
}

/// Status and code of a JSON-RPC error.
fn rpc_error(answer: &Answer) -> (u16, i64) {
    (answer.status.as_u16(), answer.json()["error"]["code"].as_i64().unwrap())
}

/// Status, name and first reason of an HTTP+JSON error.
fn http_error(answer: &Answer) -> (u16, String, String) {
    let error = answer.json()["error"].clone();
    assert_eq!(error["code"], answer.status.as_u16());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    (answer.status.as_u16(), text(&error["status"]), text(&error["details"][0]["reason"]))
}

#[tokio::test]
async fn judged_bytes_are_forwarded_bytes_to_the_path_that_was_named() {
    let world = world().await;
    agent(&world, "TASK_STATE_COMPLETED");
    let odd = "{ \"message\" :{\"vendor\":1.50,\"parts\":[{\"text\":\"\\u00e9\"}],\n\"messageId\":\"m\"} }  ";
    let headers = [V1, ("content-type", "application/a2a+json"), ("x-aegis-x", "1")];
    let answer = world.send_to(Method::POST, "/mcp/message%3Asend", &headers, odd).await;
    assert_eq!(answer.status, 200);
    let seen = world.upstream.seen().remove(0);
    assert_eq!((seen.target.as_str(), seen.body.as_ref()), ("/mcp/message%3Asend", odd.as_bytes()));
    assert_eq!(seen.headers["a2a-version"], "1.0");
    assert_eq!(seen.headers["content-type"], "application/a2a+json");
    assert!(!seen.headers.contains_key("x-aegis-x"));
    let answer = by_path(&world, Method::GET, "/tasks/t?historyLength=2", "").await;
    assert_eq!(answer.status, 200);
    assert_eq!(world.upstream.seen().last().unwrap().target, "/mcp/tasks/t?historyLength=2");
}

#[tokio::test]
async fn the_same_operation_gets_the_same_decision_in_every_binding_and_version() {
    let world = world().await;
    agent(&world, "TASK_STATE_COMPLETED");
    let legacy = |text: &str| {
        json!({ "message": { "kind": "message", "messageId": "m", "role": "user",
            "parts": [{ "kind": "text", "text": text }] } })
    };
    let denied = by_rpc(&world, "SendMessage", message("forbidden")).await;
    assert_eq!(rpc_error(&denied), (200, 4030));
    assert_eq!(denied.json()["id"], 1);
    assert_eq!(denied.json()["error"]["data"][0]["reason"], "POLICY_DENIED");
    assert!(denied.json()["error"]["message"].as_str().unwrap().contains("Not for agents."));
    let denied = world.post(rpc("message/send", legacy("forbidden"))).await;
    assert_eq!(rpc_error(&denied), (200, 4030));
    for (path, body) in [
        ("/message:send", message("forbidden")),
        ("/message%3Asend", message("forbidden")),
        ("/message:stream", message("forbidden")),
    ] {
        let denied = by_path(&world, Method::POST, path, body.to_string()).await;
        let expected = (403, "PERMISSION_DENIED".to_owned(), "POLICY_DENIED".to_owned());
        assert_eq!(http_error(&denied), expected);
    }
    let body = legacy("forbidden").to_string();
    let denied = world.send_to(Method::POST, "/mcp/v1/message:send", &[], body).await;
    assert_eq!(denied.status, 403);
    assert_eq!(world.upstream.seen().len(), 0, "nothing of it has reached the agent");
    let digests: Vec<_> = world
        .recorded(Kind::Decision, 6)
        .await
        .iter()
        .filter(|entry| entry.action["method"] == "SendMessage")
        .map(|entry| entry.action["digest"].clone())
        .collect();
    assert_eq!(digests.len(), 5);
    assert!(digests.iter().all(|digest| *digest == digests[0]), "{digests:?}");
    // What is allowed is allowed in each of them too.
    assert!(by_rpc(&world, "SendMessage", message("hello")).await.json()["result"].is_object());
    let answer = world.post(rpc("message/send", legacy("hello"))).await;
    assert_eq!(answer.json()["result"]["kind"], "task");
    let answer = by_path(&world, Method::POST, "/message:send", message("hello").to_string()).await;
    assert_eq!(answer.json()["task"]["id"], "t");
}

#[tokio::test]
async fn tasks_are_visible_to_their_caller_alone() {
    let world = world().await;
    agent(&world, "TASK_STATE_WORKING");
    assert_eq!(by_rpc(&world, "SendMessage", message("go")).await.status, 200);
    assert!(by_rpc(&world, "GetTask", json!({ "id": "t" })).await.json()["result"].is_object());
    world.speaks(Ok(OTHER));
    let before = world.upstream.seen().len();
    let missing = by_rpc(&world, "GetTask", json!({ "id": "nowhere" })).await;
    let not_found = |answer: &Answer| {
        assert_eq!(rpc_error(answer), (200, -32001));
        assert_eq!(answer.body, missing.body, "whether a task exists cannot be told");
    };
    let mut continued = message("go on");
    continued["message"]["taskId"] = "t".into();
    let mut referring = message("go on");
    referring["message"]["referenceTaskIds"] = json!(["t"]);
    let mut spelled = message("go on");
    spelled["message"]["task_id"] = "t".into();
    let mut joining = message("go on");
    joining["message"]["contextId"] = "c-t".into();
    for (method, params) in [
        ("GetTask", json!({ "id": "t" })),
        ("CancelTask", json!({ "id": "t" })),
        ("SubscribeToTask", json!({ "id": "t" })),
        ("SendMessage", continued),
        ("SendMessage", referring),
        ("SendMessage", spelled),
        ("SendStreamingMessage", joining),
        ("CreateTaskPushNotificationConfig", json!({ "taskId": "t", "url": "http://127.0.0.1/" })),
        ("GetTaskPushNotificationConfig", json!({ "taskId": "t", "id": "p" })),
        ("ListTaskPushNotificationConfigs", json!({ "taskId": "t" })),
        ("DeleteTaskPushNotificationConfig", json!({ "taskId": "t", "id": "p" })),
    ] {
        not_found(&by_rpc(&world, method, params).await);
    }
    for (method, path) in [
        (Method::GET, "/tasks/t"),
        (Method::GET, "/tasks/%74"),
        (Method::POST, "/tasks/t:cancel"),
        (Method::POST, "/tasks/t%3Asubscribe"),
        (Method::GET, "/tasks/t/pushNotificationConfigs"),
        (Method::DELETE, "/tasks/t/pushNotificationConfigs/p"),
    ] {
        let expected = (404, "NOT_FOUND".to_owned(), "TASK_NOT_FOUND".to_owned());
        assert_eq!(http_error(&by_path(&world, method, path, "").await), expected, "{path}");
    }
    assert_eq!(world.upstream.seen().len(), before, "the agent was not asked");
    let listed = by_path(&world, Method::GET, "/tasks", "").await.json();
    assert_eq!((&listed["tasks"], &listed["totalSize"]), (&json!([]), &json!(0)));
    assert!(world.refused_for().await.iter().all(|reason| reason == "task_unknown"));
    world.speaks(Ok(AGENT));
    let listed = by_rpc(&world, "ListTasks", json!({})).await.json();
    assert_eq!(listed["result"]["tasks"], json!([task("t", "TASK_STATE_WORKING")]));
    assert_eq!(listed["result"]["totalSize"], 1);
    // The other may not be given it by the agent either.
    world.speaks(Ok(OTHER));
    assert_eq!(rpc_error(&by_rpc(&world, "SendMessage", message("mine?")).await), (200, -32006));
}

/// After a restart nothing is known of any context: the one who comes first must not get another's.
#[tokio::test]
async fn a_context_that_nobody_is_known_to_have_is_not_joined() {
    let world = world().await;
    agent(&world, "TASK_STATE_COMPLETED");
    let joining = |context: &str| {
        let mut joining = message("go on");
        joining["message"]["contextId"] = context.into();
        joining
    };
    let missing = by_rpc(&world, "GetTask", json!({ "id": "nowhere" })).await;
    let before = world.upstream.seen().len();
    let answer = by_rpc(&world, "SendMessage", joining("c-before-the-restart")).await;
    assert_eq!((rpc_error(&answer), answer.body), ((200, -32001), missing.body));
    let listed = by_rpc(&world, "ListTasks", json!({ "contextId": "c-before" })).await;
    assert_eq!(rpc_error(&listed), (200, -32001));
    let body = joining("c-before").to_string();
    let answer = by_path(&world, Method::POST, "/message:stream", body).await;
    let expected = (404, "NOT_FOUND".to_owned(), "TASK_NOT_FOUND".to_owned());
    assert_eq!(http_error(&answer), expected);
    assert_eq!(world.upstream.seen().len(), before, "the agent was not asked");
    // The agent's own word opens one, in a message that belongs to no task too.
    let said = json!({ "message": { "messageId": "n", "contextId": "c-said", "role": "ROLE_AGENT", "parts": [] } });
    world.upstream.answers(move |_| {
        let said = upstream::json(200, &json!({ "jsonrpc": "2.0", "id": 1, "result": said }));
        async move { said }
    });
    assert!(by_rpc(&world, "SendMessage", message("hi")).await.json()["result"].is_object());
    let answer = by_rpc(&world, "SendMessage", joining("c-said")).await;
    assert!(answer.json()["result"].is_object(), "{answer:?}");
    world.speaks(Ok(OTHER));
    assert_eq!(rpc_error(&by_rpc(&world, "SendMessage", joining("c-said")).await), (200, -32001));
    let outcomes = world.recorded(Kind::Outcome, 2).await;
    assert!(outcomes.iter().all(|entry| entry.result == Outcome::Success), "{outcomes:?}");
}

#[tokio::test]
async fn a_lying_answer_is_withheld() {
    let world = world().await;
    agent(&world, "TASK_STATE_WORKING");
    by_rpc(&world, "SendMessage", message("go")).await;
    for lie in [
        json!({ "jsonrpc": "2.0", "id": 1, "result": { "id": "u", "status": {} } }),
        json!({ "jsonrpc": "2.0", "id": 2, "result": { "id": "t" } }),
        json!({ "id": "t" }),
        json!([]),
    ] {
        world.upstream.answers(move |_| {
            let lie = upstream::json(200, &lie);
            async move { lie }
        });
        let answer = by_rpc(&world, "GetTask", json!({ "id": "t" })).await;
        assert_eq!(rpc_error(&answer), (200, -32006));
        assert_eq!(answer.json()["error"]["data"][1]["reason"], "UPSTREAM_MALFORMED");
    }
    world.upstream.says(200, "application/json", "{\"id\":\"t\",\"id\":\"u\"}");
    let answer = by_path(&world, Method::GET, "/tasks/t", "").await;
    assert_eq!(http_error(&answer).0, 500);
    world.upstream.says(200, "text/html", "<p>");
    assert_eq!(http_error(&by_path(&world, Method::GET, "/tasks/t", "").await).0, 500);
    // An error in the binding's own form passes.
    let error =
        "{\"error\":{\"code\":404,\"status\":\"NOT_FOUND\",\"message\":\"x\",\"details\":[]}}";
    world.upstream.says(404, "application/a2a+json", error);
    let answer = by_path(&world, Method::GET, "/tasks/t", "").await;
    assert_eq!((answer.status.as_u16(), answer.body.as_ref()), (404, error.as_bytes()));
}

#[tokio::test]
async fn a_webhook_is_an_egress_decision() {
    let world = world().await;
    agent(&world, "TASK_STATE_WORKING");
    by_rpc(&world, "SendMessage", message("go")).await;
    let before = world.upstream.seen().len();
    for url in [
        "http://169.254.169.254/latest/meta-data",
        "http://10.0.0.1/",
        "http://localhost:8080/",
        "http://[::1]/",
        "http://2130706433/",
        "http://metadata.google.internal/",
        "https://user@hooks.shop.svc/",
        "file:///etc/passwd",
        "http://nowhere.invalid/",
    ] {
        let params = json!({ "taskId": "t", "url": url });
        let answer = by_rpc(&world, "CreateTaskPushNotificationConfig", params).await;
        assert_eq!(rpc_error(&answer), (200, 4030), "{url}");
        assert_eq!(answer.json()["error"]["data"][0]["reason"], "WEBHOOK_REFUSED", "{url}");
        let mut with = message("go");
        with["configuration"] = json!({ "taskPushNotificationConfig": { "url": url } });
        let answer = by_path(&world, Method::POST, "/message:send", with.to_string()).await;
        assert_eq!(http_error(&answer).2, "WEBHOOK_REFUSED", "{url}");
        let legacy = json!({ "taskId": "t", "pushNotificationConfig": { "url": url } });
        let answer = world.post(rpc("tasks/pushNotificationConfig/set", legacy)).await;
        assert_eq!(rpc_error(&answer), (200, 4030), "{url}");
    }
    // A host that the upstream's owner names, and that a policy forbids all the same.
    let params = json!({ "taskId": "t", "url": "https://denied.example/x" });
    let answer = by_rpc(&world, "CreateTaskPushNotificationConfig", params).await;
    assert_eq!(answer.json()["error"]["data"][0]["reason"], "POLICY_DENIED");
    assert_eq!(world.upstream.seen().len(), before, "the agent was not told of any");
    let params = json!({ "taskId": "t", "url": "http://127.0.0.1:9/hook", "token": "s" });
    let answer = by_rpc(&world, "CreateTaskPushNotificationConfig", params).await;
    assert!(answer.json()["result"].is_object(), "{answer:?}");
    let egress = world.recorded(Kind::ServerRequest, 1).await.remove(0);
    assert_eq!(
        (&egress.action["protocol"], &egress.action["server"]),
        (&json!("http"), &json!("127.0.0.1"))
    );
    assert_eq!(egress.result, Outcome::Allow);
}

#[tokio::test]
async fn cards_pass_byte_for_byte() {
    let world = world().await;
    let card = "{ \"name\" : \"planner\", \"x\":1.50,\n\"signatures\":[{\"protected\":\"e30\",\"signature\":\"abc\"}] }";
    world.upstream.answers(move |seen| async move {
        let mut answer = upstream::raw(200, "application/json", card);
        answer.headers_mut().insert("etag", "\"1\"".parse().unwrap());
        if seen.headers.contains_key("if-none-match") {
            answer = upstream::status(304);
        }
        answer
    });
    let path = "/.well-known/agent-card.json";
    let answer = world.send_to(Method::GET, path, &[], "").await;
    assert_eq!((answer.status.as_u16(), answer.body.as_ref()), (200, card.as_bytes()));
    assert_eq!(answer.headers["etag"], "\"1\"");
    assert_eq!(world.upstream.seen()[0].target, path);
    let answer = world.send_to(Method::GET, path, &[("if-none-match", "\"1\"")], "").await;
    assert_eq!(answer.status, 304);
    let answer = by_path(&world, Method::GET, "/extendedAgentCard", "").await;
    assert_eq!(answer.body.as_ref(), card.as_bytes());
    // What a policy would have to redact in it is not shown at all.
    world.upstream.says(200, "application/json", "{\"name\":\"sk-abc\"}");
    let answer = by_path(&world, Method::GET, "/extendedAgentCard", "").await;
    assert_eq!(http_error(&answer).2, "OBLIGATION_UNMET");
    world.upstream.says(200, "application/json", "[1]");
    assert_eq!(world.send_to(Method::GET, path, &[], "").await.status, 500);
}

#[tokio::test]
async fn the_extended_card_needs_authentication() {
    let world = world().await;
    agent(&world, "TASK_STATE_WORKING");
    world.speaks(Err(Reason::IdentityMissing));
    let answer = by_path(&world, Method::GET, "/extendedAgentCard", "").await;
    assert_eq!(http_error(&answer).1, "UNAUTHENTICATED");
    assert_eq!(answer.status, 401);
    let answer = by_rpc(&world, "GetExtendedAgentCard", json!({})).await;
    assert_eq!(rpc_error(&answer), (401, 4030));
    world.speaks(Ok("spiffe://acme.example/ns/shop/sa/bot/agent/nobody"));
    assert_eq!(by_path(&world, Method::GET, "/extendedAgentCard", "").await.status, 401);
    assert_eq!(world.upstream.seen().len(), 0);
    world.speaks(Ok(AGENT));
    assert_eq!(by_path(&world, Method::GET, "/extendedAgentCard", "").await.status, 200);
    // And a policy.
    let never = &["rules: [{ name: never, effect: allow, methods: [SendMessage] }]"];
    let world = World::plan(Plan { policies: never, ..plan() }).await;
    let answer = by_path(&world, Method::GET, "/extendedAgentCard", "").await;
    assert_eq!(http_error(&answer).2, "NO_POLICY_ALLOWS");
}

#[tokio::test]
async fn unknown_extensions_and_versions_are_refused_in_the_bindings_own_words() {
    let world = world().await;
    agent(&world, "TASK_STATE_COMPLETED");
    let body = rpc("SendMessage", message("x"));
    let send = |headers: Vec<(&'static str, &'static str)>| {
        let (world, body) = (&world, body.clone());
        async move { world.send(Method::POST, &headers, body).await }
    };
    assert_eq!(rpc_error(&send(vec![("a2a-version", "2.0")]).await), (200, -32009));
    assert_eq!(rpc_error(&send(vec![V1, ("a2a-extensions", "urn:x")]).await), (200, -32004));
    let answer = world.send_to(Method::GET, "/mcp/tasks", &[("a2a-version", "2.0")], "").await;
    assert_eq!(http_error(&answer).2, "VERSION_NOT_SUPPORTED");
    let unknown = by_path(&world, Method::GET, "/other", "").await;
    assert_eq!(http_error(&unknown).2, "METHOD_NOT_FOUND");
    assert_eq!(rpc_error(&by_rpc(&world, "tools/call", json!({})).await), (200, -32601));
    assert_eq!(world.upstream.seen().len(), 0);
    assert!(send(vec![V1, ("a2a-extensions", EXTENSION)]).await.json()["result"].is_object());
    // A header that the request was judged by is not taken away by naming it in `Connection`.
    send(vec![V1, ("connection", "a2a-version")]).await;
    assert_eq!(world.upstream.seen().last().unwrap().headers["a2a-version"], "1.0");
}

#[tokio::test]
async fn path_and_body_must_agree() {
    let world = world().await;
    agent(&world, "TASK_STATE_WORKING");
    by_rpc(&world, "SendMessage", message("go")).await;
    let before = world.upstream.seen().len();
    for (path, body) in [
        ("/tasks/t:cancel", json!({ "id": "foreign" })),
        ("/tasks/t:subscribe", json!({ "id": "foreign" })),
        (
            "/tasks/t/pushNotificationConfigs",
            json!({ "taskId": "foreign", "url": "http://127.0.0.1/" }),
        ),
    ] {
        let answer = by_path(&world, Method::POST, path, body.to_string()).await;
        assert_eq!(http_error(&answer).2, "INVALID_PARAMS", "{path}");
    }
    let both = world.send_to(Method::GET, "/mcp/tasks/t?A2A-Version=0.3", &[V1], "").await;
    assert_eq!(http_error(&both).2, "INVALID_REQUEST");
    assert_eq!(world.upstream.seen().len(), before);
}

/// Answers with a stream that the test fills.
fn streams(world: &World) -> mpsc::Sender<&'static str> {
    let (sender, receiver) = mpsc::channel(16);
    let receiver = parking_lot::Mutex::new(Some(receiver));
    world.upstream.answers(move |_| {
        let taken = receiver.lock().take();
        async move { taken.map_or_else(|| upstream::status(500), upstream::stream) }
    });
    sender
}

const WORKING: &str = "data: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"task\":{\"id\":\"t\",\"contextId\":\"c\",\"status\":{\"state\":\"TASK_STATE_WORKING\"}}}}\n\n";
const DONE: &str = "data: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"statusUpdate\":{\"taskId\":\"t\",\"contextId\":\"c\",\"status\":{\"state\":\"TASK_STATE_COMPLETED\"}}}}\n\n";
const REST_WORKING: &str = "data: {\"task\":{\"id\":\"t\",\"contextId\":\"c\",\"status\":{\"state\":\"TASK_STATE_WORKING\"}}}\n\n";
const REST_DONE: &str =
    "data: {\"statusUpdate\":{\"taskId\":\"t\",\"status\":{\"state\":\"TASK_STATE_FAILED\"}}}\n\n";

#[tokio::test]
async fn stream_events_pass_one_by_one_in_order() {
    let world = world().await;
    let events = streams(&world);
    let body = rpc("SendStreamingMessage", message("go"));
    let mut answer = world.open(Method::POST, &[V1], body).await.into_body();
    for event in [WORKING, ": alive\n\n", DONE] {
        events.send(event).await.unwrap();
        assert_eq!(next(&mut answer).await.unwrap(), event);
    }
    drop(events);
    assert_eq!(next(&mut answer).await, None);
    let outcome = world.recorded(Kind::Outcome, 1).await.remove(0);
    assert_eq!((outcome.result, &outcome.detail["events"]), (Outcome::Success, &json!(2)));
    let events = streams(&world);
    let body = message("go").to_string();
    let mut answer =
        world.open_at(Method::POST, "/mcp/message:stream", &[V1], body).await.into_body();
    for event in [REST_WORKING, REST_DONE] {
        events.send(event).await.unwrap();
        assert_eq!(next(&mut answer).await.unwrap(), event);
    }
    drop(events);
    assert_eq!(next(&mut answer).await, None);
    assert_eq!(world.recorded(Kind::Outcome, 2).await.remove(1).result, Outcome::Failure);
    // The task that the stream began is its caller's.
    agent(&world, "TASK_STATE_COMPLETED");
    assert_eq!(by_path(&world, Method::GET, "/tasks/t", "").await.status, 200);
}

#[tokio::test]
async fn an_event_about_another_task_ends_the_stream() {
    let world = world().await;
    agent(&world, "TASK_STATE_WORKING");
    by_rpc(&world, "SendMessage", message("go")).await;
    world.speaks(Ok(OTHER));
    let events = streams(&world);
    let body = message("go").to_string();
    let mut answer =
        world.open_at(Method::POST, "/mcp/message:stream", &[V1], body).await.into_body();
    events.send(REST_WORKING).await.unwrap();
    let told = next(&mut answer).await.unwrap();
    assert!(
        told.starts_with("event: error\n") && told.contains("INVALID_AGENT_RESPONSE"),
        "{told}"
    );
    assert!(!told.contains("\"t\""));
    assert_eq!(next(&mut answer).await, None);
}

#[tokio::test]
async fn a_client_that_leaves_closes_the_agents_stream() {
    let world = world().await;
    let events = streams(&world);
    let body = rpc("SendStreamingMessage", message("go"));
    let mut answer = world.open(Method::POST, &[V1], body).await.into_body();
    events.send(WORKING).await.unwrap();
    next(&mut answer).await.unwrap();
    drop(answer);
    tokio::time::timeout(PATIENCE, events.closed()).await.unwrap();
    // The task goes on, and its end is the message's outcome.
    agent(&world, "TASK_STATE_COMPLETED");
    let answer = by_rpc(&world, "GetTask", json!({ "id": "t" })).await;
    assert_eq!(answer.json()["result"]["id"], "t");
    let outcomes = world.recorded(Kind::Outcome, 2).await;
    assert!(outcomes.iter().all(|entry| entry.result == Outcome::Success), "{outcomes:?}");
}

#[tokio::test]
async fn an_asynchronous_outcome_is_that_of_the_task() {
    let world = world().await;
    agent(&world, "TASK_STATE_WORKING");
    by_rpc(&world, "SendMessage", message("go")).await;
    by_rpc(&world, "GetTask", json!({ "id": "t" })).await;
    let sent = world.recorded(Kind::Decision, 2).await.remove(0);
    let outcomes = world.recorded(Kind::Outcome, 1).await;
    assert!(outcomes.iter().all(|entry| entry.decision_id != sent.decision_id));
    agent(&world, "TASK_STATE_FAILED");
    by_path(&world, Method::GET, "/tasks/t", "").await;
    let outcomes = world.recorded(Kind::Outcome, 3).await;
    let of_sent: Vec<_> =
        outcomes.iter().filter(|entry| entry.decision_id == sent.decision_id).collect();
    assert_eq!(of_sent.len(), 1);
    assert_eq!(of_sent[0].result, Outcome::Failure);
    by_path(&world, Method::GET, "/tasks/t", "").await;
    let decisions = world.recorded(Kind::Decision, 4).await.len();
    let outcomes = world.recorded(Kind::Outcome, 4).await.len();
    assert_eq!((decisions, outcomes), (4, 4), "one decision and one outcome each");
}

#[tokio::test]
async fn a_policy_change_cuts_an_agents_stream() {
    let world = World::plan(Plan { changes_policies: true, ..plan() }).await;
    let events = streams(&world);
    let body = rpc("SendStreamingMessage", message("go"));
    let mut answer = world.open(Method::POST, &[V1], body).await.into_body();
    events.send(WORKING).await.unwrap();
    next(&mut answer).await.unwrap();
    let kernel = Arc::clone(&world.kernel);
    tokio::task::spawn_blocking(move || {
        kernel.engine().load(&bundle(STRICTER)).unwrap();
        kernel.announce_change();
    })
    .await
    .unwrap();
    let told = next(&mut answer).await.unwrap();
    assert!(told.contains("POLICY_DENIED") && told.contains("4030"), "{told}");
    assert_eq!(next(&mut answer).await, None);
    tokio::time::timeout(PATIENCE, events.closed()).await.unwrap();
}

#[tokio::test]
async fn results_are_redacted_in_both_bindings() {
    let world = world().await;
    world.upstream.answers(|seen| async move {
        let message =
            json!({ "message": { "messageId": "r", "parts": [{ "text": "key sk-abc1" }] } });
        if seen.json().get("method").is_some() {
            upstream::json(200, &upstream::result_for(&seen, &message))
        } else {
            upstream::json(200, &message)
        }
    });
    let rpc = by_rpc(&world, "SendMessage", message("x")).await;
    let rest = by_path(&world, Method::POST, "/message:send", message("x").to_string()).await;
    for answer in [rpc, rest] {
        let text = String::from_utf8(answer.body.to_vec()).unwrap();
        assert!(text.contains("key ") && !text.contains("sk-abc1"), "{text}");
    }
}

#[tokio::test]
async fn a_message_waits_for_a_human() {
    let mut spec = plan().spec;
    spec["limits"] = json!({ "holdSecs": 0 });
    let world = World::plan(Plan { policies: ASKING, spec, ..plan() }).await;
    agent(&world, "TASK_STATE_COMPLETED");
    let answer = by_rpc(&world, "SendMessage", message("x")).await;
    assert_eq!(answer.json()["error"]["data"][0]["reason"], "APPROVAL_PENDING");
    let answer = by_path(&world, Method::POST, "/message:send", message("x").to_string()).await;
    assert_eq!(http_error(&answer).2, "APPROVAL_PENDING");
    let body = message("x").to_string();
    let mut stream =
        world.open_at(Method::POST, "/mcp/message:stream", &[V1], body).await.into_body();
    let mut told = String::new();
    while let Some(piece) = next(&mut stream).await {
        told.push_str(&piece);
    }
    assert!(told.starts_with(": held for approval") && told.contains("APPROVAL_PENDING"), "{told}");
    assert_eq!(world.upstream.seen().len(), 0);
}

#[tokio::test]
async fn an_agent_that_is_down_or_slow_gets_its_own_reason() {
    let mut spec = plan().spec;
    spec["url"] = "http://127.0.0.1:9/mcp".into();
    let world = World::plan(Plan { spec, ..plan() }).await;
    let answer = by_path(&world, Method::POST, "/message:send", message("x").to_string()).await;
    assert_eq!((http_error(&answer).0, http_error(&answer).1.as_str()), (503, "UNAVAILABLE"));
    assert_eq!(rpc_error(&by_rpc(&world, "SendMessage", message("x")).await), (200, -32603));
}
