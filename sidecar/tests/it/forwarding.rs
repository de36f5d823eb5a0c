//! What reaches the upstream is what was judged, and nothing else.

use http::Method;
use serde_json::json;

use crate::{
    upstream,
    world::{Plan, World, borrowed, call, modern, request, world, world_with},
};

#[tokio::test]
async fn judged_bytes_are_forwarded_bytes() {
    let world = world().await;
    let odd = concat!(
        "{ \"vendor\" : {\"b\":1.50, \"a\":1e2},\n\t\"params\":{\"unknown\":[1 ,2],\"arguments\":",
        "{\"z\":\"\\u00e9\",\"a\":true},\"name\":\"echo\"} , \"method\":\"tools/call\",",
        "\"id\":7,\"jsonrpc\":\"2.0\"}  ",
    );
    assert_eq!(world.post(odd).await.status, 200);
    assert_eq!(world.upstream.seen().last().unwrap().body, odd);
}

#[tokio::test]
async fn released_bytes_are_the_servers_bytes() {
    let world = world().await;
    let odd = "{\"result\":{ \"vendor\":1.0,\"content\":[]},\n\"id\":1 ,\"jsonrpc\":\"2.0\"}";
    world.upstream.says(200, "application/json; charset=utf-8", odd);
    assert_eq!(world.call("echo").await.body, odd);
}

#[tokio::test]
async fn a_denied_call_never_reaches_the_upstream() {
    let world = world().await;
    assert_eq!(world.call("forbidden").await.reason(), "policy_denied");
    assert_eq!(world.call("forbidden_too").await.reason(), "policy_denied");
    let (headers, body) = modern("tools/call", json!({ "name": "forbidden", "arguments": {} }));
    let answer = world.send(Method::POST, &borrowed(&headers), body.to_string()).await;
    assert_eq!(answer.reason(), "policy_denied");
    let read = request(2, "resources/read", json!({ "uri": "file:///secret/key" }));
    assert_eq!(world.post(read.to_string()).await.reason(), "policy_denied");
    // Another spelling of the same resource.
    let read = request(2, "resources/read", json!({ "uri": "file:///open/../secret/%6bey" }));
    assert!(world.post(read.to_string()).await.json()["error"].is_object());
    assert_eq!(world.upstream.seen().len(), 0);
    assert_eq!(world.call("echo").await.json()["result"], json!({}));
}

#[tokio::test]
async fn no_policy_means_no() {
    let plan = Plan {
        policies: &["rules: [{ name: never, effect: deny, tools: [x] }]"],
        ..Plan::default()
    };
    let world = World::plan(plan).await;
    assert_eq!(world.call("echo").await.reason(), "no_policy_allows");
    assert_eq!(world.upstream.seen().len(), 0);
}

#[tokio::test]
async fn ids_keep_their_json_type() {
    let world = world().await;
    for (id, body) in [("7", ""), ("\"7\"", ""), ("-1", "")] {
        let sent = format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":{id},\"method\":\"tools/call\",\"params\":{{\"name\":\"forbidden\"{body}}}}}"
        );
        let answer = world.post(sent.clone()).await;
        assert_eq!(answer.json()["id"].to_string(), id);
        world.post(sent.replace("forbidden", "echo")).await;
        assert_eq!(world.upstream.seen().last().unwrap().json()["id"].to_string(), id);
    }
    // An answer for the id as a string answers another request than the one for the number.
    world.upstream.says(200, "application/json", r#"{"jsonrpc":"2.0","id":"1","result":{}}"#);
    assert_eq!(world.call("echo").await.reason(), "upstream_malformed");
}

#[tokio::test]
async fn x_aegis_headers_are_stripped() {
    let world = world().await;
    world.upstream.answers(|seen| async move {
        let mut answer = upstream::json(200, &upstream::result_for(&seen, &json!({})));
        answer.headers_mut().insert("x-aegis-verdict", "allow".parse().unwrap());
        answer.headers_mut().insert("x-other", "kept".parse().unwrap());
        answer
    });
    let headers = [
        ("x-aegis-agent", "spiffe://acme.example/admin"),
        ("connection", "x-hop"),
        ("x-hop", "1"),
        ("x-kept", "1"),
        ("accept-encoding", "gzip"),
    ];
    let answer = world.send(Method::POST, &headers, call(1, "echo").to_string()).await;
    assert!(!answer.headers.contains_key("x-aegis-verdict"));
    assert_eq!(answer.headers["x-other"], "kept");
    let seen = world.upstream.seen().pop().unwrap().headers;
    for gone in ["x-aegis-agent", "x-hop", "accept-encoding"] {
        assert!(!seen.contains_key(gone), "{gone}");
    }
    assert_eq!(seen["x-kept"], "1");
    assert_eq!(seen["host"], world.upstream.address.to_string());
}

#[tokio::test]
async fn credentials_are_injected_and_agents_never_see_them() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "first\n").unwrap();
    let world = world_with(json!({ "credential": { "prefix": "Bearer ", "file": file } })).await;
    let own = [("authorization", "Bearer the-agents-own")];
    let answer = world.send(Method::POST, &own, call(1, "echo").to_string()).await;
    let sent = world.upstream.seen().pop().unwrap().headers;
    let all: Vec<_> = sent.get_all("authorization").iter().collect();
    assert_eq!(all, ["Bearer first"]);
    assert!(!format!("{answer:?}").contains("first"));
    // A file that has gone stops forwarding: an old secret is no secret.
    std::fs::remove_file(&file).unwrap();
    assert_eq!(world.call("echo").await.reason(), "upstream_unverified");
    assert_eq!(world.upstream.seen().len(), 1);
}

#[tokio::test]
async fn results_are_redacted_when_a_policy_says_so() {
    let world = world().await;
    world.upstream.results(json!({
        "content": [{ "type": "text", "text": "key sk-abc123 and sk-def" }],
        "structuredContent": { "deep": ["sk-zzz"] },
    }));
    let result = world.call("leaky").await.json()["result"].clone();
    assert_eq!(result["content"][0]["text"], "key [redacted] and [redacted]");
    assert_eq!(result["structuredContent"]["deep"][0], "[redacted]");
    assert!(world.call("echo").await.json().to_string().contains("sk-abc123"));
    // An error can carry the same secret.
    world.upstream.says(
        200,
        "application/json",
        r#"{"jsonrpc":"2.0","id":1,"error":{"code":-32000,"message":"bad key sk-abc123","data":"sk-def"}}"#,
    );
    let error = world.call("leaky").await.json()["error"].clone();
    assert_eq!(
        error,
        json!({ "code": -32000, "message": "bad key [redacted]", "data": "[redacted]" })
    );
    // So can what the server tells on the way.
    let events = world.upstream.streams();
    let told = concat!(
        "data: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{\"level\":\"info\",\"data\":\"sk-abc\"}}\n\n",
        "data: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"content\":[]}}\n\n",
    );
    events.send(told).await.unwrap();
    drop(events);
    let streamed = String::from_utf8(world.call("leaky").await.body.to_vec()).unwrap();
    assert!(streamed.contains("[redacted]") && !streamed.contains("sk-abc"), "{streamed}");
}

#[tokio::test]
async fn another_path_is_not_found() {
    let world = world_with(json!({})).await;
    let other = format!("http://{}/other", world.address);
    let stream = tokio::net::TcpStream::connect(world.address).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    let request = http::Request::post(other)
        .header("host", world.address.to_string())
        .body(http_body_util::Full::new(bytes::Bytes::from(call(1, "echo").to_string())))
        .unwrap();
    assert_eq!(sender.send_request(request).await.unwrap().status(), 404);
    assert_eq!(world.upstream.seen().len(), 0);
}

#[tokio::test]
async fn other_methods_of_http_are_not_allowed() {
    let world = world().await;
    for method in [Method::HEAD, Method::OPTIONS, Method::PUT, Method::PATCH] {
        let answer = world.send(method, &[], "").await;
        assert_eq!(answer.status, 405);
        assert_eq!(answer.headers["allow"], "GET, POST, DELETE");
    }
    assert_eq!(world.upstream.seen().len(), 0);
}
