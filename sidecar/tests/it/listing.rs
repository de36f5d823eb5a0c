//! Unknown tool means deny, also before anybody has listed anything.

use aegis_audit::Kind;
use http::Method;
use serde_json::{Value, json};

use crate::{
    upstream::{self, Seen},
    world::{World, borrowed, call, modern, request, world, world_with},
};

fn own_request(seen: &Seen) -> Value {
    let mut message = seen.json();
    message["id"].take();
    message
}

async fn modern_call(world: &World, tool: &str) -> crate::world::Answer {
    let (headers, body) = modern("tools/call", json!({ "name": tool, "arguments": {} }));
    world.send(Method::POST, &borrowed(&headers), body.to_string()).await
}

#[tokio::test]
async fn unknown_tool_means_deny_before_any_list() {
    let world = world().await;
    world.upstream.lists(|seen| async move { upstream::page(&seen, &[&["add"], &["echo"]]) });
    let answer = world.call("absent").await;
    assert_eq!(answer.json()["error"]["code"], -32602, "as a server would say it");
    assert_eq!(world.refused_for().await, ["tool_unknown"]);
    assert_eq!(world.upstream.seen().len(), 0);
    assert_eq!(world.call("echo").await.json()["result"], json!({}));
    // All pages, once for the session, and the call is bound to the definition.
    assert_eq!(world.upstream.listed().len(), 2);
    assert_eq!(world.upstream.count("tools/call"), 1);
    let pinned = world.recorded(Kind::ToolPinned, 2).await;
    let allowed = world.recorded(Kind::Decision, 2).await.pop().unwrap();
    assert_eq!(allowed.action_text("tool_pin"), pinned[1].action_text("tool_pin"));
}

#[tokio::test]
async fn aegis_asks_as_its_client_does_and_claims_nothing_for_it() {
    let world = world().await;
    assert_eq!(modern_call(&world, "echo").await.status, 200);
    let listed = world.upstream.listed();
    let asked = own_request(&listed[0]);
    let meta = &asked["params"]["_meta"];
    assert_eq!(meta["io.modelcontextprotocol/protocolVersion"], "2026-07-28");
    assert_eq!(meta["io.modelcontextprotocol/clientCapabilities"], json!({}));
    assert_eq!(listed[0].headers["mcp-method"], "tools/list");
    assert!(!listed[0].headers.contains_key("mcp-name"));
    // What the server has said of a tool holds for its other clients and sessions.
    world.call("echo").await;
    assert_eq!(world.upstream.listed().len(), 1);

    let world = crate::world::world().await;
    let own = [("mcp-session-id", "s1"), ("authorization", "Bearer theirs")];
    world.send(Method::POST, &own, call(1, "echo").to_string()).await;
    let listed = world.upstream.listed();
    assert_eq!(own_request(&listed[0])["params"], json!({}));
    assert_eq!(listed[0].headers["mcp-session-id"], "s1");
    assert_eq!(listed[0].headers["authorization"], "Bearer theirs");
}

#[tokio::test]
async fn a_client_that_lists_first_costs_no_list_of_aegis_own() {
    let world = world().await;
    world.upstream.results(json!({ "tools": upstream::definitions(&["echo"]) }));
    world.post(request(1, "tools/list", json!({})).to_string()).await;
    assert_eq!(world.call("echo").await.status, 200);
    assert_eq!(world.upstream.listed().len(), 0);
    // A page from the middle tells nothing of the others.
    let session = [("mcp-session-id", "two")];
    let page = request(1, "tools/list", json!({ "cursor": "9" })).to_string();
    world.send(Method::POST, &session, page).await;
    world.send(Method::POST, &session, call(1, "leaky").to_string()).await;
    assert_eq!(world.upstream.listed().len(), 1);
}

#[tokio::test]
async fn a_denied_call_is_denied_without_asking_the_server() {
    let world = world().await;
    assert_eq!(world.call("forbidden").await.reason(), "policy_denied");
    assert_eq!(world.upstream.listed().len(), 0);
}

#[tokio::test]
async fn the_list_may_come_as_a_stream() {
    let world = world().await;
    world.upstream.lists(|seen| async move {
        let result = json!({ "tools": upstream::definitions(&["echo"]) });
        let told = json!({ "jsonrpc": "2.0", "method": "notifications/message", "params": {} });
        let text =
            format!(": hi\n\ndata: {told}\n\ndata: {}\n\n", upstream::result_for(&seen, &result));
        upstream::raw(200, "text/event-stream", text)
    });
    assert_eq!(world.call("echo").await.json()["result"], json!({}));
}

#[tokio::test]
async fn a_server_that_does_not_list_its_tools_has_none_that_can_be_called() {
    let world = world().await;
    for (status, kind, body, reason) in [
        (
            200,
            "application/json",
            r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[]}}"#,
            "tools_unlisted",
        ),
        (200, "application/json", "{}", "tools_unlisted"),
        (200, "text/html", "<p>", "upstream_malformed"),
        (200, "text/event-stream", "data: {}\n\n", "upstream_malformed"),
        (200, "text/event-stream", "", "upstream_unavailable"),
        (500, "text/plain", "", "tools_unlisted"),
    ] {
        world.upstream.lists(move |_| async move { upstream::raw(status, kind, body) });
        assert_eq!(world.call("echo").await.reason(), reason, "{body}");
    }
    world.upstream.lists(|seen| async move {
        let result = json!({ "tools": [], "nextCursor": "on and on" });
        upstream::json(200, &upstream::result_for(&seen, &result))
    });
    assert_eq!(world.call("echo").await.reason(), "upstream_too_large");
    assert_eq!(world.upstream.seen().len(), 0);
    assert_eq!(world.refused_for().await.len(), 7);
}

#[tokio::test]
async fn what_the_server_says_instead_of_a_list_reaches_its_client() {
    let world = world().await;
    world.upstream.lists(|_| async { upstream::status(404) });
    assert_eq!(world.call("echo").await.status, 404, "a client opens a new session then");
    world.upstream.lists(|_| async {
        let mut answer = upstream::status(401);
        answer.headers_mut().insert("www-authenticate", "Bearer scope=\"x\"".parse().unwrap());
        answer
    });
    let answer = world.call("echo").await;
    assert_eq!(answer.status, 401);
    assert_eq!(answer.headers["www-authenticate"], "Bearer scope=\"x\"");
    assert_eq!(world.upstream.seen().len(), 0);
}

#[tokio::test]
async fn after_a_change_the_tools_are_listed_anew() {
    let world = world().await;
    world.upstream.says(
        200,
        "text/event-stream",
        concat!(
            "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/tools/list_changed\"}\n\n",
            "data: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n\n",
        ),
    );
    world.call("echo").await;
    world.upstream.lists(|seen| async move {
        let tools = json!([{ "name": "echo", "description": "more", "inputSchema": {} }]);
        upstream::json(200, &upstream::result_for(&seen, &json!({ "tools": tools })))
    });
    assert_eq!(world.call("echo").await.reason(), "tool_quarantined");
    assert_eq!(world.upstream.count("tools/call"), 1);
}

#[tokio::test]
async fn an_unlisted_tool_is_quarantined_where_unknown_ones_are() {
    let world = world_with(json!({ "toolPins": { "unknown": "quarantine" } })).await;
    assert_eq!(world.call("echo").await.reason(), "tool_quarantined");
    assert_eq!(world.upstream.seen().len(), 0);
}
