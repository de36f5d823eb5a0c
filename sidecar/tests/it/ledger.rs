//! What is on record, and what happens when nothing can be.

use aegis_audit::{Kind, Outcome};
use http::Method;
use serde_json::json;

use crate::{
    upstream,
    world::{call, request, world},
};

#[tokio::test]
async fn every_call_has_one_decision_and_one_outcome() {
    let world = world().await;
    world.call("echo").await;
    world.call("forbidden").await;
    world.upstream.results(json!({ "isError": true, "content": [] }));
    world.call("echo").await;
    world.upstream.answers(|_| async { upstream::raw(500, "text/plain", "no") });
    world.call("echo").await;
    world.upstream.says(200, "application/json", "no");
    world.post(request(1, "tools/list", json!({})).to_string()).await;
    world.send(Method::DELETE, &[("mcp-session-id", "one")], "").await;
    let decisions = world.recorded(Kind::Decision, 6).await;
    let outcomes = world.recorded(Kind::Outcome, 5).await;
    assert_eq!((decisions.len(), outcomes.len()), (6, 5));
    let allowed: Vec<_> =
        decisions.iter().filter(|d| d.result == Outcome::Allow).map(|d| &d.decision_id).collect();
    let ended: Vec<_> = outcomes.iter().map(|o| &o.decision_id).collect();
    assert_eq!(allowed, ended);
    let results: Vec<_> = outcomes.iter().map(|o| o.result).collect();
    use Outcome::{Failure, Success};
    assert_eq!(results, [Success, Failure, Failure, Failure, Failure]);
}

#[tokio::test]
async fn a_ledger_that_cannot_write_stops_forwarding() {
    let world = world().await;
    assert_eq!(world.call("echo").await.status, 200);
    world.kernel.journal().close().await.unwrap();
    let answer = world.call("echo").await;
    assert_eq!(answer.reason(), "record_failed");
    let answer = world.send(Method::GET, &[("mcp-session-id", "one")], "").await;
    assert_eq!(answer.reason(), "record_failed");
    assert_eq!(world.upstream.seen().len(), 1);
    let told = json!({ "jsonrpc": "2.0", "method": "notifications/initialized" });
    assert!(!world.post(told.to_string()).await.status.is_success());
    assert_eq!(world.upstream.seen().len(), 1);
}

#[tokio::test]
async fn the_record_is_there_before_the_call_is() {
    let world = world().await;
    let kernel = std::sync::Arc::clone(&world.kernel);
    world.upstream.answers(move |seen| {
        let kernel = std::sync::Arc::clone(&kernel);
        async move {
            let filter =
                aegis_audit::query::Filter { kind: Some(Kind::Decision), ..Default::default() };
            let recorded = kernel.query(&filter).await.unwrap().entries.len();
            upstream::json(200, &upstream::result_for(&seen, &json!({ "recorded": recorded })))
        }
    });
    assert_eq!(world.post(call(1, "echo").to_string()).await.json()["result"]["recorded"], 1);
}
