//! Hooks of coding agents at the kernel API: who asks, what is judged, what is recorded.

use aegis_audit::{Kind, Outcome};
use http::StatusCode;
use serde_json::{Value, json};

use crate::{
    kernel_api::Point,
    world::{AGENT, DESK, Plan, World},
};

fn payload(tool: &str, input: &Value) -> Value {
    json!({
        "session_id": "s", "transcript_path": "/t", "cwd": "/work", "user_email": "root@acme.example",
        "principal": { "id": "spiffe://acme.example/ns/shop/sa/bot/agent/admin" }, "subject": "root",
        "hook_event_name": "PreToolUse", "tool_name": tool, "tool_input": input, "tool_use_id": "u",
    })
}

async fn desk() -> Point {
    let plan = Plan { policies: DESK, ..Plan::default() };
    Point::in_world(World::plan(plan).await).await
}

/// What the hook of Claude Code is told: whether, the reason, the message.
async fn asked(point: &Point, tool: &str, input: &Value) -> (bool, String, String) {
    let answer = point.post("/v1/hooks/claude-code", &payload(tool, input)).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    let said = answer.json();
    let text = |name: &str| said["context"][name].as_str().unwrap().to_owned();
    (said["decision"] == true, text("reason"), text("message"))
}

#[tokio::test]
async fn a_hook_is_decided_and_recorded_in_the_name_of_who_was_attested() {
    let point = desk().await;
    let (allowed, reason, message) = asked(&point, "Bash", &json!({ "command": "rm -rf x" })).await;
    assert_eq!((allowed, reason.as_str()), (false, "policy_denied"));
    assert_eq!(message, "Nothing is deleted here.");
    assert!(asked(&point, "Read", &json!({ "file_path": "a" })).await.0);
    let entries = point.world.recorded(Kind::Decision, 2).await;
    assert_eq!([entries[0].result, entries[1].result], [Outcome::Deny, Outcome::Allow]);
    for entry in entries {
        // Whatever the payload says of its sender.
        assert_eq!(entry.agent_id.as_deref(), Some(AGENT));
        assert_eq!(entry.action["protocol"], "ide");
        assert_eq!(entry.action["server"], "claude-code");
    }
}

#[tokio::test]
async fn one_policy_blocks_at_the_hook_and_at_the_kernel_api() {
    let point = desk().await;
    let (allowed, _, by_hook) = asked(&point, "mcp__shop__drop", &json!({ "t": 1 })).await;
    let by_api = point
        .evaluate(&json!({
            "subject": { "type": "agent", "id": "self" },
            "action": { "name": "tools/call", "properties": { "t": 1 } },
            "resource": { "type": "tool", "id": "drop", "properties": { "server": "shop" } },
        }))
        .await;
    assert_eq!((allowed, &by_api["decision"]), (false, &json!(false)));
    assert_eq!(by_hook, "Nothing is dropped.");
    assert_eq!(by_api["context"]["message"], by_hook.as_str());
    let entries = point.world.recorded(Kind::Decision, 2).await;
    assert_eq!([entries[0].result, entries[1].result], [Outcome::Deny, Outcome::Deny]);
    assert_eq!(entries[0].action["server"], entries[1].action["server"]);
    assert_eq!(entries[0].action["tool"], entries[1].action["tool"]);
    assert_eq!(entries[0].reason, entries[1].reason);
}

#[tokio::test]
async fn what_cannot_be_done_to_a_result_denies_at_a_hook_too() {
    let point = desk().await;
    let (allowed, reason, _) = asked(&point, "mcp__shop__leaky", &json!({})).await;
    assert_eq!((allowed, reason.as_str()), (false, "obligation_unmet"));
}

#[tokio::test]
async fn a_policy_of_the_ide_says_nothing_elsewhere() {
    let point = desk().await;
    assert!(asked(&point, "Read", &json!({ "file_path": "/work/a" })).await.0);
    let by_api = point
        .evaluate(&json!({
            "subject": { "type": "agent", "id": "self" }, "action": { "name": "file.read" },
            "resource": { "type": "file", "id": "/work/a", "properties": { "server": "claude-code" } },
        }))
        .await;
    assert_eq!(by_api["decision"], false);
}

#[tokio::test]
async fn all_of_a_patch_is_judged_and_one_refused_file_refuses_it() {
    let point = desk().await;
    let patch = "*** Begin Patch\n*** Add File: a\n+x\n*** Update File: /outside/b\n+y\n*** Add File: c\n+z\n*** End Patch";
    let answer = point
        .post("/v1/hooks/codex", &payload("apply_patch", &json!({ "command": patch })))
        .await
        .json();
    assert_eq!(answer["decision"], false);
    assert_eq!(answer["context"]["message"], "Outside is not yours.");
    let entries = point.world.recorded(Kind::Decision, 2).await;
    assert_eq!([entries[0].result, entries[1].result], [Outcome::Allow, Outcome::Deny]);
    // What was allowed did not happen; nobody says that it went well.
    let outcomes = point.world.recorded(Kind::Outcome, 1).await;
    assert_eq!(outcomes[0].result, Outcome::Unknown);
}

#[tokio::test]
async fn what_is_no_payload_is_denied_and_recorded() {
    let point = desk().await;
    let mut after = payload("Bash", &json!({ "command": "ls" }));
    after["hook_event_name"] = "PostToolUse".into();
    for (payload, reason) in [
        (json!({}), "malformed_message"),
        (json!([1]), "malformed_message"),
        (payload("Bash", &json!({ "command": ["ls"] })), "malformed_message"),
        (payload("mcp__a__b__c", &json!({})), "malformed_message"),
        (after, "method_unknown"),
    ] {
        let answer = point.post("/v1/hooks/claude-code", &payload).await;
        assert_eq!(answer.status, StatusCode::OK);
        assert_eq!(answer.json()["decision"], false, "{payload}");
        assert_eq!(answer.json()["context"]["reason"], reason, "{payload}");
    }
    assert_eq!(point.world.recorded(Kind::Decision, 5).await.len(), 5);
    let nobodys = point.post("/v1/hooks/eliza", &json!({})).await;
    assert_eq!(nobodys.status, StatusCode::NOT_FOUND);
}
