//! Sizes and times: what is over a limit is refused and recorded, never judged in part.

use aegis_audit::Kind;
use aegis_core::Digest;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::world::{PATIENCE, call, request, world_with};

#[tokio::test]
async fn over_limit_messages_are_refused_and_recorded() {
    let world = world_with(json!({ "limits": { "requestBytes": 1024 } })).await;
    let mut big = call(1, "echo");
    let full = |big: &serde_json::Value| big.to_string().len();
    big["params"]["arguments"]["text"] = "x".repeat(1024 - full(&big) + 2).into();
    assert_eq!(full(&big), 1024);
    assert_eq!(world.post(big.to_string()).await.status, 200);
    // One byte more, although all of it is space after a message that would be allowed.
    let answer = world.post(format!("{big} ")).await;
    assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (413, "message_too_large"));
    assert_eq!(answer.headers["connection"], "close");
    assert_eq!(world.upstream.seen().len(), 1);
    assert_eq!(world.refused_for().await, ["message_too_large"]);
}

#[tokio::test]
async fn deep_nesting_is_refused() {
    let world = world_with(json!({})).await;
    let deep = format!("{}1{}", "[".repeat(200), "]".repeat(200));
    let body = format!(
        r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{{"name":"echo","arguments":{{"a":{deep}}}}}}}"#
    );
    assert_eq!(world.post(body).await.reason(), "nesting_too_deep");
    assert_eq!(world.upstream.seen().len(), 0);
}

#[tokio::test]
async fn slow_requests_time_out() {
    let world = world_with(json!({ "limits": { "readTimeoutSecs": 1 } })).await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let head = format!(
        "POST /mcp HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{{",
        world.address
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 408"), "{answer}");
    assert!(answer.contains("message_timeout"));
    assert_eq!(world.refused_for().await, ["message_timeout"]);
}

#[tokio::test]
async fn a_body_that_breaks_off_is_no_message() {
    let world = world_with(json!({})).await;
    let mut stream = TcpStream::connect(world.address).await.unwrap();
    let body = call(1, "echo").to_string();
    let head = format!(
        "POST /mcp HTTP/1.1\r\nhost: {}\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
        world.address,
        body.len() + 1
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut rest = Vec::new();
    let _ = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await.unwrap();
    // A later call shows that the listener has dealt with the first.
    world.call("echo").await;
    assert_eq!(world.upstream.seen().len(), 1);
    assert_eq!(world.recorded(Kind::Outcome, 1).await.len(), 1);
}

#[tokio::test]
async fn connections_over_the_cap_are_closed_and_counted() {
    let world = world_with(json!({ "limits": { "connections": 2 } })).await;
    let mut open = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        // Half a request: the listener has accepted it and waits for the rest.
        stream.write_all(b"POST /mcp HTTP/1.1\r\n").await.unwrap();
        open.push(stream);
    }
    let mut third = TcpStream::connect(world.address).await.unwrap();
    let mut nothing = Vec::new();
    let read = third.read_to_end(&mut nothing);
    let _ = tokio::time::timeout(PATIENCE, read).await.unwrap();
    assert!(nothing.is_empty());
    let refusals = std::sync::Arc::clone(&world.route.shared.refusals);
    refusals.flush(&world.kernel).await;
    let counted = world.recorded(Kind::Refusals, 1).await.remove(0);
    assert_eq!(counted.reason.as_deref(), Some("overloaded"));
    // Room is made by whoever leaves.
    open.pop();
    tokio::time::timeout(PATIENCE, async {
        loop {
            let mut stream = TcpStream::connect(world.address).await.unwrap();
            let head = format!(
                "GET /none HTTP/1.1\r\nhost: {}\r\nconnection: close\r\n\r\n",
                world.address
            );
            let _ = stream.write_all(head.as_bytes()).await;
            let mut answer = String::new();
            if stream.read_to_string(&mut answer).await.is_ok() && answer.contains("404") {
                return;
            }
        }
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn names_that_are_too_long_are_told_by_their_digest() {
    let world = world_with(json!({})).await;
    let name = "x".repeat(300);
    let uri = format!("file:///{}", "é".repeat(2_000));
    assert_eq!(world.call(&name).await.reason(), "name_too_long");
    let read = request(1, "resources/read", json!({ "uri": uri }));
    assert_eq!(world.post(read.to_string()).await.reason(), "name_too_long");
    let session = [("mcp-session-id", name.as_str())];
    assert_eq!(
        world.send(http::Method::POST, &session, call(1, "echo").to_string()).await.status,
        200
    );
    let long = "y".repeat(1_025);
    let session = [("mcp-session-id", long.as_str())];
    let answer = world.send(http::Method::POST, &session, call(1, "echo").to_string()).await;
    assert_eq!(answer.reason(), "name_too_long");
    assert_eq!(world.refused_for().await, ["name_too_long"; 3]);
    let entries = world.recorded(Kind::Decision, 4).await;
    for (entry, text) in [(&entries[0], &name), (&entries[1], &uri), (&entries[3], &long)] {
        assert_eq!(entry.detail["name_digest"], json!(Digest::of(text.as_bytes())));
        assert_eq!(entry.detail["bytes"], json!(text.len()));
    }
}
