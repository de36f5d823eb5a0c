//! An entry as an OCSF event (schema.ocsf.io, 1.9.0) in a CloudEvents 1.0 envelope, for collectors of
//! security events.
//!
//! What OCSF has a place for stands there; what only Aegis knows, under `unmapped`; and the canonical bytes
//! of the entry in `raw_data`, so that whoever has the event can compute the leaf hash and ask for a proof.
//! It tells what the entry tells: arguments as they were redacted, and no others.

use aegis_audit::entry::{Entry, Kind, Outcome};
use aegis_runtime::telemetry::remote_context;
use anyhow::Context as _;
use serde_json::{Map, Value, json};

use crate::log::Record;

/// The version of the schema.
const VERSION: &str = "1.9.0";

/// A class of events.
struct Class {
    uid: u64,
    category: u64,
    name: &'static str,
    category_name: &'static str,
    path: &'static str,
}

const API: Class = Class {
    uid: 6003,
    category: 6,
    name: "API Activity",
    category_name: "Application Activity",
    path: "api_activity",
};
const ENTITY: Class = Class {
    uid: 3004,
    category: 3,
    name: "Entity Management",
    category_name: "Identity & Access Management",
    path: "entity_management",
};
const LIFECYCLE: Class = Class {
    uid: 6002,
    category: 6,
    name: "Application Lifecycle",
    category_name: "Application Activity",
    path: "application_lifecycle",
};

/// The event of one entry.
///
/// # Errors
/// When the entry cannot be read.
pub(super) fn event(record: &Record) -> anyhow::Result<Value> {
    let damaged = || format!("entry {} is damaged", record.index);
    let entry = Entry::parse(&record.body).with_context(damaged)?;
    let raw = std::str::from_utf8(&record.body).with_context(damaged)?;
    let (class, activity, activity_name) = class_of(&entry);
    let trace = entry.trace.as_deref().and_then(|told| Some((told, remote_context(told, None)?)));
    let mut data = classified(&entry, class, activity, activity_name);
    data.extend(members(json!({
        "metadata": metadata(record, &entry, class.uid == API.uid && trace.is_some()),
        "attestation_list": [attestation(record, &entry)],
        "raw_data": raw,
        "raw_data_size": raw.len(),
        "unmapped": unmapped(record, &entry),
    })));
    data.extend(match class.uid {
        6003 => api(&entry),
        3004 => members(json!({ "entity": entity(&entry) })),
        _ => members(json!({ "app": { "name": "Aegis", "uid": entry.source } })),
    });
    data.extend(enforcement(&entry));
    if let Some(agent) = &entry.agent_id {
        data.insert("ai_agent".into(), json!({ "uid": agent, "name": last(agent), "type_id": 0 }));
    }
    data.extend(actor(&entry).map(|actor| ("actor".to_owned(), json!({ "user": actor }))));
    let mut envelope = members(json!({
        "specversion": "1.0",
        "id": record.leaf.to_string(),
        "source": entry.source,
        "type": format!("dev.aegis.audit.{}.v1", entry.kind),
        "time": entry.timestamp.to_string(),
        "datacontenttype": "application/json",
        "dataschema": format!("https://schema.ocsf.io/{VERSION}/classes/{}", class.path),
        // The extension of that name: the place in the log.
        "sequence": record.index.to_string(),
    }));
    if let Some(agent) = &entry.agent_id {
        envelope.insert("subject".into(), json!(agent));
    }
    if let Some((told, context)) = trace {
        envelope.insert("traceparent".into(), json!(told));
        if class.uid == API.uid {
            data.insert("trace".into(), json!({ "uid": context.trace_id().to_string() }));
        }
    }
    envelope.insert("data".into(), Value::Object(data));
    Ok(Value::Object(envelope))
}

/// The class that fits what is recorded, and what was done by its words.
fn class_of(entry: &Entry) -> (&'static Class, u64, &'static str) {
    match entry.kind {
        Kind::Decision | Kind::ServerRequest | Kind::Outcome | Kind::Refusals => {
            match entry.action_text("kind") {
                Some(kind) if kind.ends_with("_read") || kind.ends_with("_list") => {
                    (&API, 2, "Read")
                }
                _ => (&API, 99, "Call"),
            }
        }
        Kind::ApprovalRequested | Kind::IdentityIssued => (&ENTITY, 1, "Create"),
        Kind::PolicyLoaded if entry.detail.contains_key("removed") => (&ENTITY, 11, "Deactivate"),
        Kind::PolicyLoaded => (&ENTITY, 10, "Activate"),
        Kind::ApprovalExpired => (&ENTITY, 11, "Deactivate"),
        Kind::ToolQuarantined => (&ENTITY, 12, "Suspend"),
        Kind::PolicyRefused => (&ENTITY, 99, "Refuse"),
        Kind::ApprovalVote
        | Kind::ApprovalConsumed
        | Kind::IdentityRevoked
        | Kind::TrustAdjusted
        | Kind::ToolPinned
        | Kind::Configuration => (&ENTITY, 3, "Update"),
        Kind::JournalOpened => (&LIFECYCLE, 3, "Start"),
        Kind::JournalClosed => (&LIFECYCLE, 4, "Stop"),
        Kind::Gap => (&LIFECYCLE, 99, "Gap"),
    }
}

/// Class, severity, status and time.
fn classified(
    entry: &Entry,
    class: &Class,
    activity: u64,
    activity_name: &str,
) -> Map<String, Value> {
    let (severity, severity_name) = severity(entry);
    // That a call may go on says nothing of how it ends: its outcome is an event of its own.
    let (status, status_name) = match entry.result {
        Outcome::Success => (1, "Success"),
        Outcome::Deny | Outcome::Failure => (2, "Failure"),
        Outcome::Allow | Outcome::RequireApproval | Outcome::Unknown => (0, "Unknown"),
        Outcome::Recorded => (99, "recorded"),
    };
    let mut data = members(json!({
        "class_uid": class.uid, "class_name": class.name,
        "category_uid": class.category, "category_name": class.category_name,
        "activity_id": activity, "activity_name": activity_name,
        "type_uid": class.uid * 100 + activity,
        "type_name": format!("{}: {activity_name}", class.name),
        "severity_id": severity, "severity": severity_name,
        "status_id": status, "status": status_name,
        "time": entry.timestamp.as_micros() / 1_000,
        "message": sentence(entry),
    }));
    if let Some(reason) = &entry.reason {
        data.insert("status_code".into(), json!(reason));
    }
    data
}

fn severity(entry: &Entry) -> (u64, &'static str) {
    match (entry.kind, entry.result) {
        (Kind::Gap, _) => (4, "High"),
        (
            Kind::IdentityRevoked | Kind::PolicyRefused | Kind::ToolQuarantined | Kind::Refusals,
            _,
        )
        | (_, Outcome::Deny) => (3, "Medium"),
        (_, Outcome::RequireApproval | Outcome::Failure) => (2, "Low"),
        _ => (1, "Informational"),
    }
}

/// For people: what happened, never with arguments.
fn sentence(entry: &Entry) -> String {
    let mut text = entry.kind.as_str().replace('_', " ");
    let about =
        ["method", "tool", "server"].map(|name| entry.action_text(name).unwrap_or_default());
    for word in about.into_iter().filter(|word| !word.is_empty()) {
        text.push(' ');
        text.push_str(word);
    }
    text.push_str(": ");
    text.push_str(entry.result.as_str());
    if let Some(reason) = &entry.reason {
        text.push_str(", ");
        text.push_str(reason);
    }
    text
}

fn metadata(record: &Record, entry: &Entry, traced: bool) -> Value {
    let mut profiles = vec!["record_integrity", "security_control"];
    profiles.extend(entry.agent_id.is_some().then_some("ai_operation"));
    profiles.extend(traced.then_some("trace"));
    let mut told = members(json!({
        "version": VERSION,
        "product": { "name": "Aegis", "vendor_name": "Aegis", "version": env!("CARGO_PKG_VERSION") },
        "profiles": profiles,
        "uid": record.leaf.to_string(),
        "original_event_uid": record.index.to_string(),
        "original_time": entry.timestamp.to_string(),
        "event_code": entry.kind,
        "log_name": "aegis.audit",
        "log_source": entry.source,
        "sequence": entry.sequence,
    }));
    if let Some(id) = &entry.decision_id {
        told.insert("correlation_uid".into(), json!(id));
    }
    Value::Object(told)
}

/// The entry's leaf in the log, and the entry of its source before it. The fingerprint is RFC 6962's: SHA-256
/// over a zero byte and `raw_data`.
fn attestation(record: &Record, entry: &Entry) -> Value {
    let fingerprint = |value: &aegis_core::Digest| {
        json!({
            "algorithm_id": 3, "algorithm": "SHA-256", "encoding_id": 1, "encoding": "Hex",
            "serialization_id": 2, "serialization": "JCS", "value": hex::encode(value.as_bytes()),
        })
    };
    json!({
        "uid": record.index.to_string(),
        "authority_uid": entry.source,
        "chain_uid": entry.source,
        "fingerprint": fingerprint(&record.leaf),
        "prev_event": {
            "uid": entry.parent_hash.to_string(), "fingerprint": fingerprint(&entry.parent_hash),
        },
    })
}

/// What only Aegis knows. All of the entry stands in `raw_data`.
fn unmapped(record: &Record, entry: &Entry) -> Value {
    let mut told = members(json!({
        "index": record.index, "leaf_hash": record.leaf, "kind": entry.kind, "result": entry.result,
    }));
    let mut text = |name: &str, value: Option<&str>| {
        if let Some(value) = value {
            told.insert(name.into(), value.into());
        }
    };
    text("tier", entry.tier.as_deref());
    text("approval", entry.approval.as_deref());
    text("sponsor", entry.sponsor.as_deref());
    text("action_digest", entry.action_text("digest"));
    text("tool_pin", entry.action_text("tool_pin"));
    for (name, value) in [("trust", entry.trust), ("trust_as_of", entry.trust_as_of)] {
        told.extend(value.map(|value| (name.to_owned(), json!(value))));
    }
    if let Some(digest) = &entry.arguments_digest {
        told.insert("arguments_digest".into(), json!(digest));
    }
    if !entry.detail.is_empty() {
        told.insert("detail".into(), json!(entry.detail));
    }
    Value::Object(told)
}

/// Who called what of whom.
fn api(entry: &Entry) -> Map<String, Value> {
    let words = |name: &str| entry.action_text(name).filter(|text| !text.is_empty());
    let operation = words("method").unwrap_or(entry.kind.as_str());
    let mut call = members(json!({ "operation": operation }));
    let server = words("server");
    if let Some(server) = server {
        call.insert("service".into(), json!({ "name": server }));
    }
    if let Some(id) = &entry.decision_id {
        call.insert("request".into(), json!({ "uid": id }));
    }
    if entry.kind == Kind::Outcome {
        let mut response = Map::new();
        if let Some(code) = entry.detail.get("status") {
            response.insert("code".into(), code.clone());
        }
        if let Some(reason) = &entry.reason {
            response.insert("error".into(), json!(reason));
        }
        if !response.is_empty() {
            call.insert("response".into(), Value::Object(response));
        }
    }
    let from = entry.agent_id.as_deref().unwrap_or("unauthenticated");
    let mut data = members(json!({
        "api": call,
        "src_endpoint": { "name": from },
    }));
    if let Some(server) = server {
        data.insert("dst_endpoint".into(), json!({ "svc_name": server }));
    }
    let tool = words("tool").map(|tool| json!({ "name": tool, "type": "tool" }));
    let resource = entry.resource.as_deref().filter(|text| !text.is_empty());
    let resource = resource.map(|name| json!({ "name": name, "type": "resource" }));
    let resources: Vec<Value> = tool.into_iter().chain(resource).collect();
    if !resources.is_empty() {
        data.insert("resources".into(), json!(resources));
    }
    data
}

/// Who did it: a person for what is ordered by hand, else the agent, or nobody who is known.
fn actor(entry: &Entry) -> Option<Value> {
    let person = |name: &str| json!({ "name": name, "type_id": 1, "type": "User" });
    let vote = |vote: &Value| vote.get("approver").and_then(Value::as_str).map(person);
    match entry.kind {
        Kind::Refusals => Some(json!({ "name": "unauthenticated", "type_id": 0 })),
        Kind::Decision | Kind::ServerRequest | Kind::Outcome if entry.agent_id.is_none() => {
            Some(json!({ "name": "unknown", "type_id": 0 }))
        }
        Kind::Decision
        | Kind::ServerRequest
        | Kind::Outcome
        | Kind::ApprovalRequested
        | Kind::ApprovalConsumed => Some(user(entry)),
        Kind::ApprovalVote => entry.detail.get("vote").and_then(vote),
        _ => entry.detail.get("who").and_then(Value::as_str).map(person),
    }
}

/// What is managed: an approval, a policy, an agent, a tool, or the configuration.
fn entity(entry: &Entry) -> Value {
    let detail = |name: &str| entry.detail.get(name).and_then(Value::as_str);
    match entry.kind {
        Kind::PolicyLoaded | Kind::PolicyRefused => {
            let name = detail("policy").unwrap_or("policy");
            let mut policy = members(json!({ "name": name }));
            policy.extend(detail("digest").map(|digest| ("version".to_owned(), json!(digest))));
            json!({ "name": name, "type": "Policy", "type_id": 5, "policy": policy })
        }
        Kind::ToolPinned | Kind::ToolQuarantined => {
            let name = entry.action_text("tool").unwrap_or("tool");
            json!({ "name": name, "type": "Tool", "type_id": 99 })
        }
        Kind::IdentityIssued | Kind::IdentityRevoked | Kind::TrustAdjusted
            if entry.agent_id.is_some() =>
        {
            json!({ "uid": entry.agent_id, "type": "User", "type_id": 2, "user": user(entry) })
        }
        _ => match &entry.approval {
            Some(id) => json!({ "uid": id, "type": "Approval", "type_id": 99 }),
            None => json!({ "name": entry.kind, "type": "Configuration", "type_id": 99 }),
        },
    }
}

/// What was decided, by which policies, at what risk.
fn enforcement(entry: &Entry) -> Map<String, Value> {
    let mut data = match entry.result {
        Outcome::Allow => members(json!({
            "action_id": 1, "action": "Allowed", "disposition_id": 1, "disposition": "Allowed",
        })),
        Outcome::Deny => members(json!({
            "action_id": 2, "action": "Denied", "disposition_id": 2, "disposition": "Blocked",
        })),
        Outcome::RequireApproval => members(json!({
            "action_id": 99, "action": "require_approval",
            "disposition_id": 14, "disposition": "Delayed",
        })),
        _ => Map::new(),
    };
    if let Some(risk) = entry.risk {
        data.insert("risk_score".into(), json!(risk));
    }
    if !entry.policies.is_empty() {
        let spoken = entry.policies.iter().map(|policy| {
            json!({
                "decision": policy.effect,
                "policy": {
                    "name": policy.name, "version": policy.digest, "type": policy.mode,
                    "is_applied": policy.mode == "enforce",
                },
            })
        });
        data.insert("authorizations".into(), spoken.collect());
    }
    data
}

fn user(entry: &Entry) -> Value {
    let agent = entry.agent_id.as_deref().unwrap_or_default();
    json!({ "uid": agent, "name": last(agent), "type_id": 4, "type": "Service" })
}

/// The last segment of an id, by which people call it.
fn last(id: &str) -> &str {
    id.rsplit('/').next().unwrap_or(id)
}

fn members(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(members) => members,
        _ => Map::new(),
    }
}
