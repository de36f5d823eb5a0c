//! The shapes of both standards, what they mean, and what is refused.

use aegis_core::action::{ActionKind, Protocol};
use serde_json::{Value, json};

use super::*;
use crate::json::Limits;

fn ask(value: &Value) -> Result<Question, QuestionError> {
    evaluation(value.to_string().as_bytes(), Limits::default())
}

fn call() -> Value {
    json!({
        "subject": { "type": "agent", "id": "self" },
        "action": { "name": "tools/call", "properties": { "query": "SELECT 1" } },
        "resource": { "type": "tool", "id": "write_query", "properties": { "server": "shop" } },
    })
}

#[test]
fn a_call_means_the_same_in_every_shape() {
    let asked = ask(&call()).unwrap();
    assert_eq!((asked.subject.as_deref(), asked.approval.as_deref()), (None, None));
    let action = &asked.action;
    assert_eq!((action.kind, action.protocol), (ActionKind::ToolCall, Protocol::Kernel));
    assert_eq!((action.method.as_str(), action.server.as_str()), ("tools/call", "shop"));
    assert_eq!(action.tool.as_deref(), Some("write_query"));
    assert_eq!(action.arguments, json!({ "query": "SELECT 1" }));
    let named = json!({
        "subject": { "type": "agent", "id": "self" },
        "action": { "name": "write_query", "properties": { "query": "SELECT 1" } },
        "resource": { "type": "server", "id": "shop" },
    });
    assert_eq!(ask(&named).unwrap(), asked);
    let opa = json!({ "input": { "action": {
        "kind": "tool_call", "method": "tools/call", "server": "shop", "tool": "write_query",
        "arguments": { "query": "SELECT 1" },
    } } });
    assert_eq!(query(opa.to_string().as_bytes(), Limits::default()).unwrap(), asked);
}

#[test]
fn what_every_method_acts_on() {
    let about = |name: &str, on: &str, id: &str| {
        ask(&json!({
            "subject": { "type": "agent", "id": "x" }, "action": { "name": name },
            "resource": { "type": on, "id": id },
        }))
        .map(|asked| {
            assert_eq!(asked.subject.as_deref(), Some("x"));
            asked.action
        })
    };
    let file = about("file.write", "file", "/srv/a").unwrap();
    assert_eq!((file.kind, file.resource.as_deref()), (ActionKind::FileWrite, Some("/srv/a")));
    assert_eq!(file.server, LOCAL);
    let shell = about("shell.exec", "command", "ls -l").unwrap();
    assert_eq!((shell.kind, &shell.arguments["command"]), (ActionKind::ShellExec, &json!("ls -l")));
    let url = about("http.request", "url", "https://a.example/b").unwrap();
    assert_eq!(url.resource.as_deref(), Some("https://a.example/b"));
    for (name, on, id, reason) in [
        ("read", "record", "1", Reason::MethodUnknown),
        ("tools/call", "file", "/a", Reason::MethodUnknown),
        ("file.read", "file", "/srv/../etc/passwd", Reason::MalformedMessage),
        ("file.read", "file", "etc/passwd", Reason::MalformedMessage),
        ("file.read", "file", "/srv//a", Reason::MalformedMessage),
        ("resources/read", "resource", "file:///a/../b", Reason::MalformedMessage),
        ("tools/call", "tool", "a\u{200b}b", Reason::MalformedMessage),
    ] {
        assert_eq!(about(name, on, id).unwrap_err().reason(), reason, "{name} {id}");
    }
    let long = "x".repeat(300);
    assert_eq!(about("tools/call", "tool", &long).unwrap_err().reason(), Reason::NameTooLong);
}

#[test]
fn what_must_be_there_must_be_there() {
    for path in ["/subject", "/action", "/resource", "/subject/type", "/subject/id", "/action/name"]
    {
        let mut lacking = call();
        let (parent, name) = path.rsplit_once('/').unwrap();
        lacking.pointer_mut(parent).unwrap().as_object_mut().unwrap().shift_remove(name);
        assert_eq!(ask(&lacking).unwrap_err().reason(), Reason::MalformedMessage, "{path}");
        let mut other = call();
        *other.pointer_mut(path).unwrap() = json!(7);
        assert_eq!(ask(&other).unwrap_err().reason(), Reason::MalformedMessage, "{path}");
    }
    let mut more = call();
    more["futureField"] = json!({ "nested": true });
    more["context"] = json!({ "time": "2026-01-01T00:00:00Z", "approval": "abc" });
    assert_eq!(ask(&more).unwrap().approval.as_deref(), Some("abc"));
}

#[test]
fn other_readings_of_the_same_bytes_are_refused() {
    let twice = br#"{"subject":{"type":"agent","id":"self"},"action":{"name":"a","name":"b"},"resource":{"type":"server","id":"s"}}"#;
    let refused = |bytes: &[u8]| evaluation(bytes, Limits::default()).unwrap_err().reason();
    assert_eq!(refused(twice), Reason::DuplicateKey);
    assert_eq!(refused(b""), Reason::MalformedMessage);
    assert_eq!(refused(b"[]"), Reason::MalformedMessage);
    assert_eq!(refused(br#"{"n":9007199254740993}"#), Reason::InexactNumber);
    let deep = format!("{}{}", "[".repeat(100), "]".repeat(100));
    assert_eq!(refused(deep.as_bytes()), Reason::NestingTooDeep);
    let small = Limits { size: 10, ..Limits::default() };
    let large = evaluation(call().to_string().as_bytes(), small).unwrap_err();
    assert_eq!(large.reason(), Reason::MessageTooLarge);
}

#[test]
fn a_batch_has_defaults_and_says_in_place_what_is_wrong() {
    let batch = |value: &Value| evaluations(value.to_string().as_bytes(), Limits::default());
    let asked = batch(&json!({
        "subject": { "type": "agent", "id": "self" },
        "action": { "name": "tools/call", "properties": { "a": 1 } },
        "resource": { "type": "tool" },
        "options": { "evaluations_semantic": "deny_on_first_deny" },
        "evaluations": [
            { "resource": { "id": "one" } },
            {},
            { "action": { "name": "tools/call" }, "resource": { "type": "tool", "id": "two" } },
        ],
    }));
    let Ok(Asked::Several(Semantic::DenyOnFirstDeny, list)) = asked else { panic!("{asked:?}") };
    assert_eq!(list[0].as_ref().unwrap().action.arguments, json!({ "a": 1 }));
    assert_eq!(list[1].as_ref().unwrap_err().reason(), Reason::MalformedMessage);
    let third = &list[2].as_ref().unwrap().action;
    assert_eq!((third.tool.as_deref(), &third.arguments), (Some("two"), &json!({})));
    let mut single = call();
    single["evaluations"] = json!([]);
    assert!(matches!(batch(&single), Ok(Asked::One(_))));
    assert!(matches!(batch(&call()), Ok(Asked::One(_))));
    single["options"] = json!({ "evaluations_semantic": "any" });
    assert!(batch(&single).is_err());
    let many = json!({ "evaluations": vec![json!({}); MAX_EVALUATIONS + 1] });
    assert_eq!(batch(&many), Err(QuestionError::Batch));
}

#[test]
fn opas_shape_refuses_what_would_not_be_judged() {
    let ask =
        |input: Value| query(json!({ "input": input }).to_string().as_bytes(), Limits::default());
    let action = json!({ "tool": "t", "arguments": {} });
    assert_eq!(ask(json!({ "action": action })).unwrap().action.server, LOCAL);
    let named = ask(json!({ "action": action, "principal": { "id": "x" } })).unwrap();
    assert_eq!(named.subject.as_deref(), Some("x"));
    for input in [
        json!({ "action": action, "principal": { "id": "x", "trust": 1000 } }),
        json!({ "action": action, "context": { "approvals": 1 } }),
        json!({ "action": { "tool": "t", "digest": "sha256:0" } }),
        json!({ "action": { "tool": "t", "resource": "/x" } }),
        json!({ "action": { "tool": "t", "kind": "list" } }),
        json!({ "action": { "method": "file.read", "tool": "t" } }),
        json!({ "action": { "tool": "t", "arguments": [] } }),
        json!({}),
    ] {
        assert!(ask(input.clone()).is_err(), "{input}");
    }
}
