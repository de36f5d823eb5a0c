//! What is refused before, or instead of, being forwarded.

use aegis_core::decision::Reason;
use http::Method;
use serde_json::{Value, json};

use crate::world::{Plan, World, borrowed, call, modern, request, world, world_with};

#[tokio::test]
async fn header_and_body_must_agree() {
    let world = world().await;
    let (headers, body) = modern("tools/call", json!({ "name": "echo", "arguments": {} }));
    let good = borrowed(&headers);
    assert_eq!(world.send(Method::POST, &good, body.to_string()).await.status, 200);
    for (name, lie) in [
        ("mcp-name", "other"),
        ("mcp-method", "tools/list"),
        ("mcp-protocol-version", "2025-11-25"),
    ] {
        let mut lying = good.clone();
        lying.iter_mut().find(|header| header.0 == name).unwrap().1 = lie;
        let answer = world.send(Method::POST, &lying, body.to_string()).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["error"]["code"]),
            (400, &json!(-32020))
        );
        let missing: Vec<_> = good.iter().copied().filter(|header| header.0 != name).collect();
        assert_eq!(
            world.send(Method::POST, &missing, body.to_string()).await.status,
            400,
            "{name}"
        );
    }
    assert_eq!(world.upstream.seen().len(), 1);
    assert!(world.refused_for().await.iter().all(|reason| reason == "header_mismatch"));
}

#[tokio::test]
async fn duplicate_headers_are_refused() {
    let world = world().await;
    for name in
        ["mcp-session-id", "mcp-method", "mcp-name", "mcp-protocol-version", "authorization"]
    {
        let twice = [(name, "2025-11-25"), (name, "2025-11-25")];
        let answer = world.send(Method::POST, &twice, call(1, "echo").to_string()).await;
        assert_eq!(answer.status, 400, "{name}");
    }
    for method in [Method::GET, Method::DELETE] {
        let twice = [("mcp-session-id", "a"), ("mcp-session-id", "b")];
        assert_eq!(world.send(method, &twice, "").await.status, 400);
    }
    let twice = [("last-event-id", "a"), ("last-event-id", "b")];
    assert_eq!(world.send(Method::GET, &twice, "").await.status, 400);
    assert_eq!(world.upstream.seen().len(), 0);
}

#[tokio::test]
async fn duplicate_json_keys_are_refused() {
    let world = world().await;
    for body in [
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","name":"forbidden"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"ping","method":"tools/call","params":{"name":"echo"}}"#,
        r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"echo","arguments":{"a":1,"\u0061":2}}}"#,
    ] {
        let answer = world.post(body).await;
        assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (400, "duplicate_key"));
    }
    assert_eq!(world.upstream.seen().len(), 0);
}

#[tokio::test]
async fn numbers_a_double_cannot_hold_are_refused() {
    let world = world().await;
    for number in [
        "9007199254740993",
        "1e400",
        "0.1000000000000000055511151231257827021181583404541015625001",
    ] {
        let body = format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"echo","arguments":{{"n":{number}}}}}}}"#
        );
        assert_eq!(world.post(body).await.reason(), "inexact_number", "{number}");
    }
    assert_eq!(world.upstream.seen().len(), 0);
}

#[tokio::test]
async fn batches_are_refused() {
    let world = world().await;
    let batch = json!([call(1, "echo"), call(2, "forbidden")]).to_string();
    let answer = world.post(batch).await;
    assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (400, "batch_refused"));
    assert_eq!(world.upstream.seen().len(), 0);
    assert_eq!(world.refused_for().await, ["batch_refused"]);
}

#[tokio::test]
async fn unknown_methods_are_denied() {
    let world = world().await;
    for method in ["tools/execute", "Tools/Call", "tools/call ", "rpc.discover", ""] {
        let answer = world.post(request(1, method, json!({})).to_string()).await;
        assert!(answer.json()["error"].is_object(), "{method}");
    }
    let unknown = json!({ "jsonrpc": "2.0", "method": "notifications/evil" });
    assert!(world.post(unknown.to_string()).await.status.is_client_error());
    assert_eq!(world.upstream.seen().len(), 0);
    assert_eq!(world.refused_for().await.len(), 6);
}

#[tokio::test]
async fn bad_host_and_origin_are_refused() {
    let world = world_with(json!({ "allowedOrigins": ["https://console.acme.example"] })).await;
    let body = call(1, "echo").to_string();
    let port = world.address.port();
    let evil = format!("evil.example.com:{port}");
    for host in [evil.as_str(), "127.0.0.1:1", "", "localhost"] {
        let answer = world.send(Method::POST, &[("host", host)], body.clone()).await;
        assert_eq!(answer.status, 403, "{host}");
        assert_eq!(answer.reason(), "host_refused");
    }
    let own = world.address.to_string();
    let twice = [("host", own.as_str()), ("host", own.as_str())];
    assert!(world.send(Method::POST, &twice, body.clone()).await.status.is_client_error());
    for origin in ["http://evil.example.com", "null", "http://localhost.evil.example", "file://"] {
        let answer = world.send(Method::POST, &[("origin", origin)], body.clone()).await;
        assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (403, "origin_refused"));
    }
    assert_eq!(world.upstream.seen().len(), 0);
    for origin in ["http://localhost:6274", "http://127.0.0.1", "https://console.acme.example"] {
        let answer = world.send(Method::POST, &[("origin", origin)], body.clone()).await;
        assert_eq!(answer.status, 200, "{origin}");
    }
}

#[tokio::test]
async fn a_caller_without_identity_is_refused() {
    let world =
        World::plan(Plan { attested: Some(Reason::IdentityMissing), ..Plan::default() }).await;
    let answer = world.call("echo").await;
    assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (403, "identity_missing"));
    assert_eq!(world.upstream.seen().len(), 0);
    world.route.shared.refusals.flush(&world.kernel).await;
    let recorded = world.recorded(aegis_audit::Kind::Refusals, 1).await;
    assert_eq!(recorded[0].reason.as_deref(), Some("identity_missing"));
}

#[tokio::test]
async fn only_json_without_an_encoding_is_read() {
    let world = world().await;
    for header in [("content-type", "text/plain"), ("content-encoding", "gzip")] {
        let answer = world.send(Method::POST, &[header], call(1, "echo").to_string()).await;
        assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (400, "malformed_message"));
    }
    assert_eq!(world.upstream.seen().len(), 0);
}

#[tokio::test]
async fn deny_forms_hide_explain_step_up() {
    let explain = world().await;
    let result = explain.call("forbidden").await.json()["result"].clone();
    assert_eq!(result["isError"], true);
    assert!(result["content"][0]["text"].as_str().unwrap().contains("Not for agents."));

    let hide = world_with(json!({ "denyForm": "hide" })).await;
    let answer = hide.call("forbidden").await;
    let unknown = json!({ "code": -32602, "message": "Unknown tool: forbidden" });
    assert_eq!((answer.status.as_u16(), &answer.json()["error"]), (200, &unknown));
    assert!(!String::from_utf8_lossy(&answer.body).contains("policy"));

    let step_up = world_with(json!({ "denyForm": "step_up" })).await;
    let answer = step_up.call("forbidden").await;
    assert_eq!(answer.status, 403);
    let challenge = answer.headers["www-authenticate"].to_str().unwrap();
    assert!(challenge.contains("insufficient_scope") && challenge.contains("call:"), "{challenge}");
    for world in [explain, hide, step_up] {
        assert_eq!(world.upstream.seen().len(), 0);
    }
}

#[tokio::test]
async fn a_refusal_keeps_the_connection() {
    let world = world().await;
    let stream = tokio::net::TcpStream::connect(world.address).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    for tool in ["forbidden", "echo", "forbidden", "echo"] {
        let request = http::Request::post("/mcp")
            .header("host", world.address.to_string())
            .header("content-type", "application/json")
            .body(http_body_util::Full::new(bytes::Bytes::from(call(1, tool).to_string())))
            .unwrap();
        sender.ready().await.unwrap();
        let answer = sender.send_request(request).await.unwrap();
        let body = http_body_util::BodyExt::collect(answer.into_body()).await.unwrap().to_bytes();
        let answer: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(answer["result"]["isError"] == true, tool == "forbidden");
    }
}

#[tokio::test]
async fn another_charset_is_refused() {
    let world = world().await;
    let (headers, body) = modern("tools/call", json!({ "name": "echo", "arguments": {} }));
    for (kind, status) in [
        ("application/json; charset=utf-8", 200),
        ("application/json;charset=\"UTF-8\"", 200),
        ("application/json; charset=utf-7", 415),
        ("application/json; charset=utf-8; charset=utf-16le", 415),
        ("application/json; profile=x", 415),
        ("text/plain", 415),
    ] {
        let mut sent: Vec<_> = borrowed(&headers);
        sent.retain(|header| header.0 != "content-type");
        sent.push(("content-type", kind));
        let answer = world.send(Method::POST, &sent, body.to_string()).await;
        assert_eq!(answer.status == 200, status == 200, "{kind}: {}", answer.status);
    }
    let seen = world.upstream.seen();
    assert_eq!(seen.len(), 2);
    assert!(seen.iter().all(|request| request.headers["content-type"] == "application/json"));
}

#[tokio::test]
async fn a_client_takes_no_judged_header_away() {
    let world = world().await;
    let (headers, body) = modern("tools/call", json!({ "name": "echo", "arguments": {} }));
    let mut sent = borrowed(&headers);
    sent.push(("connection", "mcp-name, mcp-method, content-type, x-mine"));
    sent.push(("x-mine", "1"));
    assert_eq!(world.send(Method::POST, &sent, body.to_string()).await.status, 200);
    let seen = world.upstream.seen();
    let last = &seen.last().unwrap().headers;
    assert_eq!(
        (&last["mcp-name"], &last["mcp-method"]),
        (&"echo".parse().unwrap(), &"tools/call".parse().unwrap())
    );
    assert!(!last.contains_key("x-mine"));
}
