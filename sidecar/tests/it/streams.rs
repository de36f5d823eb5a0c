//! Streams: one event at a time, in order, for as long as the decision holds.

use std::sync::Arc;

use aegis_audit::{Kind, Outcome};
use http::Method;
use serde_json::json;

use crate::{
    upstream,
    world::{PATIENCE, Plan, STRICTER, World, bundle, call, next, world},
};

const SESSION: (&str, &str) = ("mcp-session-id", "one");
const FIRST: &str = "id: a\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{\"progressToken\":1,\"progress\":1}}\n\n";
const SECOND: &str = ": comment\n\nid: b\ndata: {\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{\"progressToken\":1,\"progress\":2}}\n\n";
const DONE: &str = "data: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"content\":[]}}\n\n";

#[tokio::test]
async fn events_are_flushed_one_by_one() {
    let world = world().await;
    let events = world.upstream.streams();
    let answer = world.open(Method::POST, &[], call(1, "echo").to_string()).await;
    assert_eq!(answer.headers()["x-accel-buffering"], "no");
    let mut body = answer.into_body();
    events.send(FIRST).await.unwrap();
    assert_eq!(next(&mut body).await.unwrap(), FIRST);
    events.send(SECOND).await.unwrap();
    assert_eq!(next(&mut body).await.unwrap(), ": comment\n\n");
    assert_eq!(next(&mut body).await.unwrap(), SECOND.strip_prefix(": comment\n\n").unwrap());
    events.send(DONE).await.unwrap();
    assert_eq!(next(&mut body).await.unwrap(), DONE);
    drop(events);
    assert_eq!(next(&mut body).await, None);
    let outcome = world.recorded(Kind::Outcome, 1).await.remove(0);
    assert_eq!((outcome.result, &outcome.detail["events"]), (Outcome::Success, &json!(3)));
}

#[tokio::test]
async fn a_client_that_leaves_closes_the_upstream_stream() {
    let world = world().await;
    let events = world.upstream.streams();
    let answer = world.open(Method::POST, &[], call(1, "echo").to_string()).await;
    let mut body = answer.into_body();
    events.send(FIRST).await.unwrap();
    next(&mut body).await.unwrap();
    drop(body);
    tokio::time::timeout(PATIENCE, events.closed()).await.unwrap();
    let outcome = world.recorded(Kind::Outcome, 1).await.remove(0);
    assert_eq!(outcome.result, Outcome::Unknown);
}

#[tokio::test]
async fn a_policy_change_cuts_an_open_stream() {
    let world = World::plan(Plan { changes_policies: true, ..Plan::default() }).await;
    let events = world.upstream.streams();
    let mut body = world.open(Method::POST, &[], call(1, "echo").to_string()).await.into_body();
    events.send(FIRST).await.unwrap();
    next(&mut body).await.unwrap();
    // A change of something else does not.
    world.kernel.announce_change();
    events.send(FIRST).await.unwrap();
    assert_eq!(next(&mut body).await.unwrap(), FIRST);
    let stricter = tokio::task::spawn_blocking(|| bundle(STRICTER)).await.unwrap();
    world.kernel.engine().load(&stricter).unwrap();
    world.kernel.announce_change();
    let last = next(&mut body).await.unwrap();
    assert!(last.contains("policy_denied") && last.contains("\"id\":1"), "{last}");
    assert_eq!(next(&mut body).await, None);
    tokio::time::timeout(PATIENCE, events.closed()).await.unwrap();
    let outcome = world.recorded(Kind::Outcome, 1).await.remove(0);
    assert_eq!(
        (outcome.result, outcome.reason.as_deref()),
        (Outcome::Failure, Some("policy_denied"))
    );
}

#[tokio::test]
async fn an_answer_that_comes_after_a_change_is_judged_by_it() {
    let world = world().await;
    let kernel = Arc::clone(&world.kernel);
    world.upstream.answers(move |seen| {
        let kernel = Arc::clone(&kernel);
        async move {
            let agent: aegis_core::AgentId = crate::world::AGENT.parse().unwrap();
            let revoke = |state: &mut aegis_kernel::State| {
                state.revoked.insert(agent.clone());
            };
            kernel.update_with(revoke).await.unwrap();
            upstream::json(200, &upstream::result_for(&seen, &json!({ "content": ["late"] })))
        }
    });
    let answer = world.call("echo").await;
    assert_eq!(answer.reason(), "identity_revoked");
    assert!(!String::from_utf8_lossy(&answer.body).contains("late"));
}

#[tokio::test]
async fn an_approval_that_somebody_else_waits_for_cuts_no_stream() {
    let world = world().await;
    let events = world.upstream.streams();
    let mut body = world.open(Method::POST, &[], call(1, "echo").to_string()).await.into_body();
    let _held = world.open(Method::POST, &[], call(2, "risky").to_string()).await;
    world.recorded(Kind::ApprovalRequested, 1).await;
    events.send(FIRST).await.unwrap();
    assert_eq!(next(&mut body).await.unwrap(), FIRST);
}

#[tokio::test]
async fn a_second_answer_is_not_released() {
    let world = world().await;
    let events = world.upstream.streams();
    let mut body = world.open(Method::POST, &[], call(1, "echo").to_string()).await.into_body();
    events.send(DONE).await.unwrap();
    assert_eq!(next(&mut body).await.unwrap(), DONE);
    events.send(DONE).await.unwrap();
    assert_eq!(next(&mut body).await, None);
    assert_eq!(world.recorded(Kind::Outcome, 1).await.len(), 1);
}

#[tokio::test]
async fn a_stream_that_ends_without_its_answer_is_told() {
    let world = world().await;
    world.upstream.says(200, "text/event-stream", ": nothing\n\n");
    let text = String::from_utf8(world.call("echo").await.body.to_vec()).unwrap();
    assert!(text.contains("upstream_unavailable") && text.contains("\"id\":1"), "{text}");
    let outcome = world.recorded(Kind::Outcome, 1).await.remove(0);
    assert_eq!(outcome.result, Outcome::Failure);
}

#[tokio::test]
async fn a_broken_stream_is_resumed_where_it_broke_and_nowhere_else() {
    const ANSWER: &str = "id: c\ndata: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{\"tools\":[{\"name\":\"forbidden\",\"inputSchema\":{}}]}}\n\n";
    let world = world().await;
    let list = json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/list" }).to_string();
    world.upstream.says(200, "text/event-stream", FIRST);
    world.send(Method::POST, &[SESSION], list).await;
    world.upstream.says(200, "text/event-stream", ANSWER);
    // Without the id of an event that this very call has had, the answer belongs to nobody.
    for last in [None, Some(("last-event-id", "z"))] {
        let headers: Vec<_> = [Some(SESSION), last].into_iter().flatten().collect();
        assert_eq!(world.send(Method::GET, &headers, "").await.body, "");
    }
    let other = [("mcp-session-id", "two"), ("last-event-id", "a")];
    assert_eq!(world.send(Method::GET, &other, "").await.body, "");
    // A resumed stream that breaks again can be resumed from its own last event.
    let again = SECOND.strip_prefix(": comment\n\n").unwrap();
    world.upstream.says(200, "text/event-stream", again);
    let resumed = world.send(Method::GET, &[SESSION, ("last-event-id", "a")], "").await;
    assert_eq!(resumed.body, again);
    world.upstream.says(200, "text/event-stream", ANSWER);
    let resumed = world.send(Method::GET, &[SESSION, ("last-event-id", "b")], "").await;
    let text = String::from_utf8(resumed.body.to_vec()).unwrap();
    assert!(text.contains("\"tools\":[]"), "the answer is filtered as the list it is: {text}");
}

#[tokio::test]
async fn a_listening_stream_carries_no_answers() {
    let world = world().await;
    let events = world.upstream.streams();
    let mut body = world.open(Method::GET, &[SESSION], "").await.into_body();
    events.send(FIRST).await.unwrap();
    assert_eq!(next(&mut body).await.unwrap(), FIRST);
    events.send(DONE).await.unwrap();
    assert_eq!(next(&mut body).await, None);
    tokio::time::timeout(PATIENCE, events.closed()).await.unwrap();
}

#[tokio::test]
async fn graceful_drain_finishes_open_calls() {
    let world = world().await;
    let events = world.upstream.streams();
    let mut call = world.open(Method::POST, &[], call(1, "echo").to_string()).await.into_body();
    let listening = world.upstream.streams();
    let mut listens = world.open(Method::GET, &[SESSION], "").await.into_body();
    listening.send(FIRST).await.unwrap();
    next(&mut listens).await.unwrap();
    world.drain.cancel();
    // What would never end is let go; what has an answer gets it.
    assert_eq!(next(&mut listens).await, None);
    events.send(FIRST).await.unwrap();
    assert_eq!(next(&mut call).await.unwrap(), FIRST);
    assert!(!world.serving.is_finished());
    assert!(tokio::net::TcpStream::connect(world.address).await.is_err());
    events.send(DONE).await.unwrap();
    assert_eq!(next(&mut call).await.unwrap(), DONE);
    drop(events);
    assert_eq!(next(&mut call).await, None);
    tokio::time::timeout(PATIENCE, world.serving).await.unwrap().unwrap();
}

#[tokio::test]
async fn an_open_stream_ends_with_its_callers_identity() {
    let lasts = std::time::Duration::from_secs(2);
    let world = World::plan(Plan { lasts, ..Plan::default() }).await;
    let events = world.upstream.streams();
    let mut body = world.open(Method::POST, &[], call(1, "echo").to_string()).await.into_body();
    events.send(FIRST).await.unwrap();
    assert_eq!(next(&mut body).await.unwrap(), FIRST);
    // Nothing else happens: the end of the identity wakes the stream.
    let last = next(&mut body).await.unwrap();
    assert!(last.contains("identity_expired"), "{last}");
    assert_eq!(next(&mut body).await, None);
    tokio::time::timeout(PATIENCE, events.closed()).await.unwrap();
    let outcome = world.recorded(Kind::Outcome, 1).await.remove(0);
    assert_eq!(outcome.reason.as_deref(), Some("identity_expired"));
    assert_eq!(world.call("echo").await.reason(), "identity_expired");
}
