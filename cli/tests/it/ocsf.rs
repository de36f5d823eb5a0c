//! `aegis audit export --ocsf`: each kind of entry against the schemas that OCSF and CloudEvents publish, and
//! back to its leaf.

use aegis_audit::{Draft, Kind, Outcome, PolicyRef, Salt};
use aegis_core::{Digest, Timestamp};
use serde_json::{Value, json};

use crate::fixture::{AGENT, Ledger, aegis, text};

/// Compiled from the schema's own sources by `tests/ocsf/compile.py`.
const CLASSES: &str = include_str!("../ocsf/classes.json");
/// As the CloudEvents specification publishes it.
const ENVELOPE: &str = include_str!("../ocsf/cloudevents.json");
const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

/// An entry that says all that one can say.
fn full(kind: Kind, result: Outcome) -> Draft {
    let salt = Salt::from_bytes([7; 32]);
    let mut draft = Draft::new(kind, Timestamp::from_micros(1_700_000_000_123_456), result)
        .with_arguments(json!({ "path": "/srv/of-the-arguments" }), b"{}", salt);
    let action = json!({
        "kind": "resource_read", "protocol": "mcp", "method": "tools/call", "server": "files",
        "tool": "read_file", "digest": "sha256:00", "tool_pin": "sha256:01",
    });
    draft.action = action.as_object().unwrap().clone();
    draft.agent_id = Some(AGENT.into());
    draft.sponsor = Some("ada@acme.example".into());
    draft.resource = Some("file:///srv/x".into());
    draft.reason = Some("policy_denied".into());
    draft.decision_id = Some("d1".into());
    let policy = |mode: &str| PolicyRef {
        name: "default/files#never".into(),
        digest: Digest::of(b"p"),
        effect: "deny".into(),
        mode: mode.into(),
    };
    draft.policies = vec![policy("enforce"), policy("audit")];
    draft.approval = Some("a1".into());
    draft.tier = Some("L3".into());
    (draft.risk, draft.trust, draft.trust_as_of) = (Some(700), Some(512), Some(3));
    let detail = json!({
        "status": -32603, "policy": "default/files", "digest": "sha256:02", "who": "ada@acme.example",
        "vote": { "approver": "ada@acme.example", "approve": true },
    });
    draft.detail = detail.as_object().unwrap().clone();
    draft.trace = Some(TRACE.into());
    draft
}

/// The events of a ledger with these entries.
async fn events(drafts: impl IntoIterator<Item = Draft>) -> Vec<Value> {
    let ledger = Ledger::with(0).await;
    ledger.append(drafts).await;
    let run = aegis(&["audit", "export", "--ocsf", "--database", text(&ledger.path)]).exits(0);
    run.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn problems(schema: &Value, value: &Value) -> Vec<String> {
    let schema = jsonschema::validator_for(schema).unwrap();
    schema.iter_errors(value).map(|error| format!("{}: {error}", error.instance_path())).collect()
}

/// What the class that an event claims to be of says against it.
fn refused(event: &Value) -> Vec<String> {
    let all: Value = serde_json::from_str(CLASSES).unwrap();
    let class = all["oneOf"]
        .as_array()
        .unwrap()
        .iter()
        .find(|class| class["properties"]["class_uid"]["const"] == event["data"]["class_uid"]);
    let mut class = class.unwrap_or_else(|| panic!("no such class: {event}")).clone();
    class["$defs"] = all["$defs"].clone();
    let envelope = problems(&serde_json::from_str(ENVELOPE).unwrap(), event);
    [envelope, problems(&class, &event["data"])].concat()
}

#[tokio::test]
async fn each_entry_is_an_event_of_the_published_schemas() {
    let mut drafts = Vec::new();
    for kind in Kind::ALL {
        for result in Outcome::ALL {
            drafts.push(full(*kind, *result));
        }
        drafts.push(Draft::new(*kind, Timestamp::from_secs(0), Outcome::Recorded));
    }
    let events = events(drafts).await;
    assert!(events.len() > Kind::ALL.len() * (Outcome::ALL.len() + 1));
    for event in &events {
        assert_eq!(refused(event), Vec::<String>::new(), "{event:#}");
        let data = &event["data"];
        let class = data["class_uid"].as_u64().unwrap();
        assert_eq!(data["type_uid"], class * 100 + data["activity_id"].as_u64().unwrap());
    }
    // The schemas refuse what is wrong, so passing them says something.
    for (member, wrong) in [
        ("class_uid", json!(6004)),
        ("severity_id", json!("high")),
        ("actor", json!({ "user": { "nonsense": 1 } })),
        ("invented", json!(1)),
    ] {
        let mut event =
            events.iter().find(|event| event["data"]["class_uid"] == 6003).unwrap().clone();
        event["data"][member] = wrong;
        if member != "class_uid" {
            assert!(!refused(&event).is_empty(), "{member}");
        }
    }
    let mut without = events[0].clone();
    without.as_object_mut().unwrap().remove("specversion");
    assert!(!refused(&without).is_empty());
}

#[tokio::test]
async fn an_event_leads_to_its_leaf_and_says_what_was_decided() {
    let events = events([full(Kind::Decision, Outcome::Deny)]).await;
    let found = events.iter().find(|event| event["data"]["metadata"]["event_code"] == "decision");
    let event = found.unwrap();
    let (data, raw) = (&event["data"], event["data"]["raw_data"].as_str().unwrap());
    let leaf = Digest::of(&[&[0], raw.as_bytes()].concat());
    assert_eq!(event["id"], leaf.to_string());
    assert_eq!(data["unmapped"]["leaf_hash"], leaf.to_string());
    let proven = &data["attestation_list"][0]["fingerprint"]["value"];
    assert_eq!(format!("sha256:{}", proven.as_str().unwrap()), leaf.to_string());
    assert_eq!(event["sequence"], data["unmapped"]["index"].to_string());
    assert_eq!(
        (&event["type"], &event["traceparent"]),
        (&json!("dev.aegis.audit.decision.v1"), &json!(TRACE))
    );
    assert_eq!(data["trace"]["uid"], "0af7651916cd43dd8448eb211c80319c");
    assert_eq!(
        (&data["action"], &data["status_code"]),
        (&json!("Denied"), &json!("policy_denied"))
    );
    assert_eq!(data["api"]["operation"], "tools/call");
    assert_eq!(data["actor"]["user"]["uid"], AGENT);
    assert_eq!(data["time"], 1_700_000_000_123_u64);
    assert_eq!(data["authorizations"][0]["policy"]["is_applied"], true);
    assert_eq!(data["authorizations"][1]["policy"]["is_applied"], false);
    // Arguments stand where the entry has them, redacted as there, and nowhere else.
    let mut rest = event.clone();
    rest["data"].as_object_mut().unwrap().remove("raw_data");
    assert!(raw.contains("of-the-arguments") && !rest.to_string().contains("of-the-arguments"));
}

#[tokio::test]
async fn what_people_order_is_theirs_and_a_claim_of_a_trace_is_no_trace() {
    let mut odd = full(Kind::Decision, Outcome::Allow);
    odd.trace = Some("00-nonsense".into());
    let ordered = [
        full(Kind::IdentityRevoked, Outcome::Recorded),
        full(Kind::ApprovalVote, Outcome::Recorded),
    ];
    let events = events(ordered.into_iter().chain([odd])).await;
    for event in events.iter().filter(|event| event["data"]["class_uid"] == 3004) {
        assert_eq!(event["data"]["actor"]["user"]["name"], "ada@acme.example", "{event:#}");
    }
    let decision = events.iter().find(|event| event["data"]["class_uid"] == 6003).unwrap();
    assert!(decision.get("traceparent").is_none() && decision["data"].get("trace").is_none());
}
