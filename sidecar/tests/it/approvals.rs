//! Calls that wait for a human.

use aegis_audit::{Kind, Outcome};
use aegis_core::approval::{Factor, Vote};
use http::Method;
use serde_json::json;

use crate::{
    upstream,
    world::{World, call, next, now, world, world_with},
};

async fn vote(world: &World, approve: bool) {
    let id = world.recorded(Kind::ApprovalRequested, 1).await.pop().unwrap().approval.unwrap();
    let vote = Vote {
        approver: "grace@acme.example".into(),
        approve,
        factor: Factor::Totp,
        comment: None,
        at: now(),
    };
    world.kernel.vote(&id, vote).await.unwrap();
}

const JSON_ONLY: (&str, &str) = ("accept", "application/json");

#[tokio::test]
async fn an_approval_holds_the_call_and_is_used_once() {
    let world = world_with(json!({ "limits": { "holdSecs": 60 } })).await;
    let mut body = world.open(Method::POST, &[], call(1, "risky").to_string()).await.into_body();
    assert!(next(&mut body).await.unwrap().starts_with(": held for approval "));
    assert_eq!(world.upstream.seen().len(), 0);
    vote(&world, true).await;
    let answer = next(&mut body).await.unwrap();
    assert!(answer.ends_with("data: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n\n"), "{answer}");
    assert_eq!(next(&mut body).await, None);
    assert_eq!(world.upstream.seen().len(), 1);
    assert_eq!(world.recorded(Kind::ApprovalConsumed, 1).await.len(), 1);
    let decisions = world.recorded(Kind::Decision, 2).await;
    assert_eq!(decisions[1].reason.as_deref(), Some("approved"));
    // The same call again asks again.
    let _held = world.open(Method::POST, &[], call(1, "risky").to_string()).await;
    world.recorded(Kind::ApprovalRequested, 2).await;
    assert_eq!(world.upstream.seen().len(), 1);
}

#[tokio::test]
async fn an_approval_covers_no_other_arguments() {
    let world = world_with(json!({ "limits": { "holdSecs": 0 } })).await;
    let answer = world.send(Method::POST, &[JSON_ONLY], call(1, "risky").to_string()).await;
    assert_eq!(answer.reason(), "approval_pending");
    vote(&world, true).await;
    let mut other = call(1, "risky");
    other["params"]["arguments"]["text"] = "bye".into();
    let answer = world.send(Method::POST, &[JSON_ONLY], other.to_string()).await;
    assert_eq!(answer.reason(), "approval_pending");
    assert_eq!(world.upstream.seen().len(), 0);
    // Its id is not part of the action.
    let answer = world.send(Method::POST, &[JSON_ONLY], call(9, "risky").to_string()).await;
    assert_eq!(answer.json(), json!({ "jsonrpc": "2.0", "id": 9, "result": {} }));
}

#[tokio::test]
async fn a_refused_approval_refuses_the_call() {
    let world = world_with(json!({ "limits": { "holdSecs": 60 } })).await;
    let mut body = world.open(Method::POST, &[], call(1, "risky").to_string()).await.into_body();
    next(&mut body).await.unwrap();
    vote(&world, false).await;
    assert!(next(&mut body).await.unwrap().contains("approval_denied"));
    assert_eq!(next(&mut body).await, None);
    assert_eq!(world.upstream.seen().len(), 0);
    let decisions = world.recorded(Kind::Decision, 2).await;
    assert_eq!(decisions[1].result, Outcome::Deny);
}

#[tokio::test]
async fn an_approved_call_outlives_other_changes() {
    let world = world_with(json!({ "limits": { "holdSecs": 60 } })).await;
    let events = world.upstream.streams();
    let mut body = world.open(Method::POST, &[], call(1, "risky").to_string()).await.into_body();
    next(&mut body).await.unwrap();
    vote(&world, true).await;
    world.recorded(Kind::ApprovalConsumed, 1).await;
    world.kernel.announce_change();
    events.send("data: {\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{}}\n\n").await.unwrap();
    assert!(next(&mut body).await.unwrap().contains("\"result\":{}"));
}

#[tokio::test]
async fn a_held_call_is_let_go_when_the_process_drains() {
    let world = world_with(json!({ "limits": { "holdSecs": 600 } })).await;
    let mut body = world.open(Method::POST, &[], call(1, "risky").to_string()).await.into_body();
    next(&mut body).await.unwrap();
    world.drain.cancel();
    assert!(next(&mut body).await.unwrap().contains("approval_pending"));
    assert_eq!(next(&mut body).await, None);
    tokio::time::timeout(crate::world::PATIENCE, world.serving).await.unwrap().unwrap();
    assert_eq!(world.upstream.seen().len(), 0);
}

#[tokio::test]
async fn a_held_call_whose_upstream_fails_gets_an_answer() {
    let world = world().await;
    world.upstream.answers(|_| async { upstream::raw(500, "text/plain", "sk-abc") });
    let mut body = world.open(Method::POST, &[], call(1, "risky").to_string()).await.into_body();
    next(&mut body).await.unwrap();
    vote(&world, true).await;
    let answer = next(&mut body).await.unwrap();
    assert!(answer.contains("upstream_malformed") && !answer.contains("sk-abc"), "{answer}");
    assert_eq!(next(&mut body).await, None);
}
