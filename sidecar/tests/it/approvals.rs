//! Calls that wait for a human.

use std::time::Duration;

use aegis_audit::{Kind, Outcome};
use aegis_core::approval::{Factor, Vote};
use http::Method;
use serde_json::{Value, json};

use crate::{
    upstream,
    world::{Answer, World, asking, borrowed, call, next, now, world, world_with},
};

pub(crate) async fn vote(world: &World, approve: bool) {
    let id = world.recorded(Kind::ApprovalRequested, 1).await.pop().unwrap().approval.unwrap();
    // It is recorded first and can be answered a moment later.
    let known = async {
        while world.kernel.approval_state(&id).is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(20), known).await.unwrap();
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

/// The call of a client that shows forms, as a retry of what it was asked.
fn retry(id: u64, asked: &Value, action: &str) -> (Vec<(&'static str, String)>, Value) {
    let (headers, mut body) = asking(id, "risky");
    body["params"]["requestState"] = asked["result"]["requestState"].clone();
    body["params"]["inputResponses"] = json!({ "aegis.approval": { "action": action } });
    (headers, body)
}

async fn send(world: &World, (headers, body): (Vec<(&'static str, String)>, Value)) -> Answer {
    let mut headers = borrowed(&headers);
    headers.push(JSON_ONLY);
    world.send(Method::POST, &headers, body.to_string()).await
}

#[tokio::test]
async fn a_modern_client_that_shows_forms_is_asked_to_repeat_the_call() {
    let world = world_with(json!({ "limits": { "holdSecs": 0 } })).await;
    let asked = send(&world, asking(1, "risky")).await.json();
    assert_eq!(asked["result"]["resultType"], "input_required");
    let question = &asked["result"]["inputRequests"]["aegis.approval"];
    assert_eq!(question["method"], "elicitation/create");
    assert!(question["params"]["message"].as_str().unwrap().contains("answered elsewhere"));
    assert_eq!(world.upstream.seen().len(), 0);
    vote(&world, true).await;
    let answer = send(&world, retry(2, &asked, "accept")).await;
    assert_eq!(answer.json()["result"], json!({}));
    // The upstream gets the call as it was approved, and none of Aegis' members.
    let sent = world.upstream.seen()[0].json();
    let names: Vec<&String> = sent["params"].as_object().unwrap().keys().collect();
    assert_eq!(names, ["name", "arguments", "_meta"]);
    assert_eq!(world.recorded(Kind::ApprovalConsumed, 1).await.len(), 1);
    // The approval was for one time: the same retry asks anew.
    let again = send(&world, retry(3, &asked, "accept")).await;
    assert_eq!(world.recorded(Kind::ApprovalRequested, 2).await.len(), 2, "{again:?}");
    assert_eq!(world.upstream.seen().len(), 1);
}

#[tokio::test]
async fn the_answer_to_the_form_is_no_approval() {
    let world = world_with(json!({ "limits": { "holdSecs": 0 } })).await;
    let asked = send(&world, asking(1, "risky")).await.json();
    for content in [json!({}), json!({ "approved": true })] {
        let (headers, mut body) = retry(2, &asked, "accept");
        body["params"]["inputResponses"]["aegis.approval"]["content"] = content;
        let again = send(&world, (headers, body)).await.json();
        assert_eq!(again["result"]["requestState"], asked["result"]["requestState"]);
    }
    assert_eq!(world.upstream.seen().len(), 0);
    let entries = world.entries().await;
    assert!(entries.iter().all(|entry| entry.kind != Kind::ApprovalVote));
    assert_eq!(world.recorded(Kind::ApprovalRequested, 1).await.len(), 1);
}

#[tokio::test]
async fn a_client_that_declines_gives_its_call_up_and_refuses_nothing() {
    let world = world_with(json!({ "limits": { "holdSecs": 60 } })).await;
    let asked = send(&world, asking(1, "risky")).await.json();
    for action in ["decline", "cancel"] {
        assert_eq!(send(&world, retry(2, &asked, action)).await.reason(), "approval_pending");
    }
    vote(&world, true).await;
    assert_eq!(send(&world, retry(3, &asked, "accept")).await.json()["result"], json!({}));
}

#[tokio::test]
async fn a_refusal_reaches_the_client_that_asks_again() {
    let world = world().await;
    let asked = send(&world, asking(1, "risky")).await.json();
    vote(&world, false).await;
    assert_eq!(send(&world, retry(2, &asked, "accept")).await.reason(), "approval_denied");
    assert_eq!(world.upstream.seen().len(), 0);
    assert_eq!(world.recorded(Kind::ApprovalRequested, 1).await.len(), 1, "nobody is asked anew");
}

#[tokio::test]
async fn a_retry_of_nothing_is_refused() {
    let world = world().await;
    let asked = json!({ "result": { "requestState": "aegis.approval.0123456789" } });
    let answer = send(&world, retry(1, &asked, "accept")).await;
    assert_eq!(answer.json()["error"]["code"], -32602);
    assert_eq!(world.refused_for().await, ["malformed_message"]);
    assert_eq!(world.upstream.seen().len(), 0);
}

#[tokio::test]
async fn who_shows_no_forms_is_held_and_told() {
    let world = world_with(json!({ "limits": { "holdSecs": 0 } })).await;
    let (headers, mut body) = asking(1, "risky");
    body["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"] =
        json!({ "elicitation": { "url": {} } });
    assert_eq!(send(&world, (headers, body)).await.reason(), "approval_pending");
    let answer = world.send(Method::POST, &[JSON_ONLY], call(1, "risky").to_string()).await;
    assert_eq!(answer.reason(), "approval_pending");
}

#[tokio::test]
async fn a_state_of_the_upstreams_own_passes() {
    let world = world().await;
    let (headers, mut body) = asking(1, "echo");
    body["params"]["requestState"] = "aegis.other".into();
    body["params"]["inputResponses"] = json!({ "k": {} });
    assert_eq!(send(&world, (headers, body)).await.status, 200);
    assert_eq!(world.upstream.seen()[0].json()["params"]["requestState"], "aegis.other");
}
