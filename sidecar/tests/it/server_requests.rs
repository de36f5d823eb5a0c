//! What a server asks of its client needs a policy, in both eras.

use aegis_audit::{Kind, Outcome};
use http::Method;
use serde_json::json;

use crate::world::{borrowed, call, modern, next, request, world};

const SESSION: (&str, &str) = ("mcp-session-id", "one");
const ROOTS: &str = "data: {\"jsonrpc\":\"2.0\",\"id\":\"r\",\"method\":\"roots/list\"}\n\n";
const SAMPLE: &str = "data: {\"jsonrpc\":\"2.0\",\"id\":\"s\",\"method\":\"sampling/createMessage\",\"params\":{\"messages\":[],\"maxTokens\":1}}\n\n";
const DONE: &str = "data: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"content\":[]}}\n\n";

#[tokio::test]
async fn server_requests_need_a_policy() {
    let world = world().await;
    let events = world.upstream.streams();
    let answer = world.open(Method::POST, &[SESSION], call(1, "echo").to_string()).await;
    let mut body = answer.into_body();
    events.send(ROOTS).await.unwrap();
    events.send(SAMPLE).await.unwrap();
    // The client sees what is allowed, and never what is not.
    assert_eq!(next(&mut body).await.unwrap(), SAMPLE);
    let asked = world.recorded(Kind::ServerRequest, 2).await;
    assert_eq!([asked[0].result, asked[1].result], [Outcome::Deny, Outcome::Allow]);
    let within = world.recorded(Kind::Decision, 1).await[0].decision_id.clone().unwrap();
    assert!(asked.iter().all(|entry| entry.detail["within"] == within.as_str()));
    // The server is told so in the client's stead, within the session.
    let told = async {
        while world.upstream.seen().len() < 2 {
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(crate::world::PATIENCE, told).await.unwrap();
    let told = world.upstream.seen().pop().unwrap();
    assert_eq!(
        (&told.json()["id"], told.headers["mcp-session-id"].as_bytes()),
        (&json!("r"), &b"one"[..])
    );
    assert_eq!(told.json()["error"]["data"]["reason"], "server_request_denied");
    // An answer counts once, in its own session; what nobody asked is refused.
    let reply = |id: &str| json!({ "jsonrpc": "2.0", "id": id, "result": { "ok": 1 } }).to_string();
    let other = [("mcp-session-id", "two")];
    assert_eq!(world.send(Method::POST, &other, reply("s")).await.status, 400);
    assert_eq!(world.send(Method::POST, &[SESSION], reply("s")).await.status, 202);
    assert_eq!(world.send(Method::POST, &[SESSION], reply("s")).await.status, 400);
    assert_eq!(world.send(Method::POST, &[SESSION], reply("r")).await.status, 400);
    assert_eq!(world.upstream.seen().len(), 3);
    events.send(DONE).await.unwrap();
    assert_eq!(next(&mut body).await.unwrap(), DONE);
}

#[tokio::test]
async fn questions_within_a_modern_result_need_a_policy() {
    let world = world().await;
    let (headers, body) = modern("tools/call", json!({ "name": "echo", "arguments": {} }));
    let headers = borrowed(&headers);
    for (method, passes) in [("sampling/createMessage", true), ("roots/list", false)] {
        let params = json!({ "messages": [], "maxTokens": 1 });
        world.upstream.results(json!({
            "resultType": "input_required", "requestState": "x",
            "inputRequests": { "q": { "method": method, "params": params } },
        }));
        let answer = world.send(Method::POST, &headers, body.to_string()).await;
        assert_eq!(answer.json()["result"]["resultType"] == "input_required", passes, "{method}");
        assert_eq!(answer.json().to_string().contains(method), passes);
    }
    // A task that waits for input asks the same way, whatever its result is called.
    world.upstream.results(json!({
        "resultType": "complete", "taskId": "t", "status": "input_required",
        "inputRequests": { "q": { "method": "roots/list" } },
    }));
    let (headers, body) = modern("tasks/get", json!({ "taskId": "t" }));
    let mut headers = borrowed(&headers);
    headers.push(("mcp-name", "t"));
    let answer = world.send(Method::POST, &headers, body.to_string()).await;
    assert!(!answer.json().to_string().contains("roots/list"), "{}", answer.json());
}

#[tokio::test]
async fn capabilities_no_policy_allows_are_stripped() {
    let world = world().await;
    let capabilities =
        json!({ "roots": {}, "sampling": {}, "elicitation": {}, "vendor": { "x": 1 } });
    let open = request(
        1,
        "initialize",
        json!({
            "protocolVersion": "2025-11-25", "capabilities": capabilities,
            "clientInfo": { "name": "tests", "version": "1" },
        }),
    );
    world.post(open.to_string()).await;
    let sent = world.upstream.seen().pop().unwrap().json()["params"]["capabilities"].clone();
    assert_eq!(sent, json!({ "sampling": {}, "vendor": { "x": 1 } }));
    let (headers, mut body) = modern("tools/call", json!({ "name": "echo", "arguments": {} }));
    body["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"] = capabilities;
    world.send(Method::POST, &borrowed(&headers), body.to_string()).await;
    let sent = world.upstream.seen().pop().unwrap().json();
    let sent = &sent["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"];
    assert_eq!(sent, &json!({ "sampling": {}, "vendor": { "x": 1 } }));
}

#[tokio::test]
async fn what_a_server_should_not_send_is_withheld_without_ending_the_call() {
    let world = world().await;
    let events = world.upstream.streams();
    let answer = world.open(Method::POST, &[SESSION], call(1, "echo").to_string()).await;
    let mut body = answer.into_body();
    events.send("data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/evil\"}\n\n").await.unwrap();
    events
        .send("data: {\"jsonrpc\":\"2.0\",\"id\":\"x\",\"method\":\"evil/run\"}\n\n")
        .await
        .unwrap();
    events.send(DONE).await.unwrap();
    assert_eq!(next(&mut body).await.unwrap(), DONE);
}
