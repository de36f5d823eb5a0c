//! An upstream at fault gets a reason of its own, and nothing of it passes unread.

use aegis_audit::{Kind, Outcome};
use bytes::Bytes;
use http::Method;
use serde_json::json;

use crate::{
    upstream::{self, Upstream},
    world::{Plan, World, call, request, world, world_with},
};

#[tokio::test]
async fn an_upstream_that_is_down_slow_lying_or_oversized_gets_its_own_reason() {
    // A port that was free a moment ago.
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let down = World::around(Upstream::on(closed), Plan::default()).await;
    let answer = down.call("echo").await;
    assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (502, "upstream_unavailable"));
    assert_eq!(answer.json()["id"], 1);
    // It could not even be asked what it offers; what needs no list fails later.
    assert_eq!(down.refused_for().await, ["upstream_unavailable"]);
    let answer = down.post(request(2, "ping", json!({})).to_string()).await;
    assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (502, "upstream_unavailable"));
    let outcome = down.recorded(Kind::Outcome, 1).await.remove(0);
    assert_eq!(
        (outcome.result, outcome.reason.as_deref()),
        (Outcome::Failure, Some("upstream_unavailable"))
    );

    let limits = json!({ "limits": { "answerTimeoutSecs": 1, "responseBytes": 1024 } });
    let world = world_with(limits).await;
    world.upstream.answers(|_| std::future::pending());
    let answer = world.call("echo").await;
    assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (504, "upstream_timeout"));

    let big: Bytes =
        format!(r#"{{"jsonrpc":"2.0","id":1,"result":"{}"}}"#, "x".repeat(2000)).into();
    let event: Bytes = [b"data: ", &big[..], b"\n\n"].concat().into();
    for (kind, body) in [("application/json", big), ("text/event-stream", event)] {
        world.upstream.answers(move |_| {
            let body = body.clone();
            async move { upstream::raw(200, kind, body) }
        });
        let text = String::from_utf8(world.call("echo").await.body.to_vec()).unwrap();
        assert!(text.contains("upstream_too_large") && !text.contains("xxx"), "{kind}: {text}");
    }
}

#[tokio::test]
async fn a_lying_answer_is_withheld() {
    let world = world().await;
    let ok = r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[]}}"#;
    for (kind, body) in [
        ("text/html", ok),
        ("application/octet-stream", ok),
        ("", ok),
        ("application/json", "<html>"),
        ("application/json", r#"{"jsonrpc":"2.0","id":1,"id":2,"result":{}}"#),
        ("application/json", r#"{"jsonrpc":"2.0","id":1,"result":{"a":1,"a":2}}"#),
        ("application/json", r#"{"jsonrpc":"2.0","id":2,"result":{}}"#),
        ("application/json", r#"[{"jsonrpc":"2.0","id":1,"result":{}}]"#),
        ("application/json", r#"{"id":1,"result":{}}"#),
    ] {
        world.upstream.says(200, kind, body);
        let answer = world.call("echo").await;
        assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (502, "upstream_malformed"));
    }
    let text = "data: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"a\":1,\"a\":2}}\n\n";
    world.upstream.says(200, "text/event-stream", text);
    let text = String::from_utf8(world.call("echo").await.body.to_vec()).unwrap();
    assert!(text.contains("upstream_malformed"), "{text}");
    world.upstream.answers(|seen| async move {
        let mut answer = upstream::json(200, &upstream::result_for(&seen, &json!({})));
        answer.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
        answer
    });
    assert_eq!(world.call("echo").await.reason(), "upstream_malformed");
}

#[tokio::test]
async fn a_lost_session_passes_as_the_status_it_is() {
    let world = world().await;
    let told =
        r#"{"jsonrpc":"2.0","error":{"code":-32001,"message":"Session not found"},"id":null}"#;
    let told_bare = r#"{"jsonrpc":"2.0","error":{"code":-32001,"message":"Session not found"}}"#;
    for told in [told, told_bare] {
        world.upstream.says(404, "application/json", told);
        let answer = world.call("echo").await;
        assert_eq!((answer.status.as_u16(), &answer.body[..]), (404, told.as_bytes()));
    }
    // What is no message does not pass; its status and its challenge do.
    for (kind, body) in
        [("text/plain", "gone: sk-abc"), ("application/json", r#"{"detail":"sk-abc"}"#)]
    {
        world.upstream.answers(move |_| async move {
            let mut answer = upstream::raw(404, kind, body);
            answer.headers_mut().insert("www-authenticate", "Bearer".parse().unwrap());
            answer
        });
        let answer = world.call("echo").await;
        assert_eq!((answer.status.as_u16(), answer.json()["id"].as_i64()), (404, Some(1)));
        assert_eq!(answer.headers["www-authenticate"], "Bearer");
        assert_eq!(answer.headers["content-type"], "application/json");
        assert!(!String::from_utf8_lossy(&answer.body).contains("sk-abc"));
        let answer = world.send(Method::DELETE, &[("mcp-session-id", "one")], "").await;
        assert_eq!((answer.status.as_u16(), &answer.body[..]), (404, &b""[..]));
    }
    world.upstream.answers(|_| async { upstream::status(405) });
    let answer = world.send(Method::GET, &[("mcp-session-id", "one")], "").await;
    assert_eq!(answer.status, 405);
    let outcomes = world.recorded(Kind::Outcome, 7).await;
    assert!(outcomes.iter().all(|outcome| outcome.result == Outcome::Failure));
}

#[tokio::test]
async fn a_redirect_is_not_followed_and_not_passed_on() {
    let world = world().await;
    world.upstream.answers(|_| async {
        let mut answer = upstream::status(307);
        answer.headers_mut().insert("location", "http://elsewhere.example/mcp".parse().unwrap());
        answer
    });
    let answer = world.call("echo").await;
    assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (502, "upstream_malformed"));
    assert!(!answer.headers.contains_key("location"));
}

#[tokio::test]
async fn notifications_are_acknowledged_by_the_server() {
    let world = world().await;
    let told = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    assert_eq!(world.post(told.to_string()).await.status, 202);
    assert_eq!(world.upstream.seen().len(), 1);
    let outcome = world.recorded(Kind::Outcome, 1).await.remove(0);
    assert_eq!(outcome.result, Outcome::Success);
    // A call that is only acknowledged has no answer.
    world.upstream.answers(|_| async { upstream::status(202) });
    let answer = world.post(call(1, "echo").to_string()).await;
    assert_eq!(answer.reason(), "upstream_malformed");
}
