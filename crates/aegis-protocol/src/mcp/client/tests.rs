//! Tests of the module `client`.

use aegis_core::decision::Reason;
use http::{HeaderName, HeaderValue};
use serde_json::json;

use super::*;
use crate::mcp::MODERN_VERSION;

fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in pairs {
        map.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
    }
    map
}

fn http(pairs: &[(&str, &str)], body: &Value) -> Result<ClientMessage, Refusal> {
    parse_client(
        "files",
        Transport::Http(&headers(pairs)),
        Bytes::from(body.to_string()),
        Limits::default(),
    )
}

fn stdio(body: &Value) -> Result<ClientMessage, Refusal> {
    parse_client("files", Transport::Stdio, Bytes::from(body.to_string()), Limits::default())
}

fn modern(method: &str, mut params: Value) -> Value {
    params["_meta"] =
        json!({ META_VERSION: MODERN_VERSION, META_CAPABILITIES: {}, "progressToken": 1 });
    json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params })
}

fn legacy(method: &str, params: Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params })
}

const CALL: [(&str, &str); 3] =
    [("MCP-Protocol-Version", MODERN_VERSION), ("Mcp-Method", "tools/call"), ("Mcp-Name", "read")];

fn call() -> Value {
    modern("tools/call", json!({ "name": "read", "arguments": { "path": "/a" } }))
}

#[test]
fn the_decision_is_made_from_the_body_and_headers_must_agree() {
    let message = http(&CALL, &call()).unwrap();
    assert_eq!(message.action().tool.as_deref(), Some("read"));
    assert_eq!(message.action().arguments, json!({ "path": "/a" }));
    assert_eq!(message.era(), Era::Modern);
    for (index, value) in [(0, "2025-11-25"), (1, "tools/list"), (2, "write")] {
        let mut wrong = CALL;
        wrong[index].1 = value;
        assert!(matches!(
            http(&wrong, &call()).unwrap_err().error,
            ProtocolError::Header(HeaderError::Mismatch(_))
        ));
        let mut missing = CALL.to_vec();
        missing.remove(index);
        assert!(matches!(
            http(&missing, &call()).unwrap_err().error,
            ProtocolError::Header(HeaderError::Missing(_))
        ));
        let mut twice = CALL.to_vec();
        twice.push(CALL[index]);
        assert!(matches!(
            http(&twice, &call()).unwrap_err().error,
            ProtocolError::Header(HeaderError::Duplicate(_))
        ));
    }
    assert_eq!(http(&[], &call()).unwrap_err().error.reason(), Reason::HeaderMismatch);
}

#[test]
fn judged_bytes_are_forwarded_bytes() {
    let text = r#" {"vendor":1.50, "jsonrpc":"2.0","id":"a" ,"method":"tools/call","params":{"name":"t","x":[ ]}}"#;
    let message =
        parse_client("s", Transport::Stdio, Bytes::from(text), Limits::default()).unwrap();
    assert_eq!(message.bytes(), text);
    assert_eq!(message.request_id(), Some(&Id::String("a".into())));
    assert_eq!(message.into_parts().1, text);
}

#[test]
fn modern_requests_declare_version_and_capabilities() {
    for (member, error) in [(META_VERSION, META_VERSION), (META_CAPABILITIES, META_CAPABILITIES)] {
        let mut body = call();
        body["params"]["_meta"].as_object_mut().unwrap().remove(member);
        assert_eq!(http(&CALL, &body).unwrap_err().error, ProtocolError::MetaMissing(error));
        body["params"]["_meta"][member] = json!(5);
        assert_eq!(http(&CALL, &body).unwrap_err().error, ProtocolError::MetaMissing(error));
    }
    let mut body = call();
    body["params"].as_object_mut().unwrap().remove("_meta");
    assert_eq!(http(&CALL, &body).unwrap_err().error, ProtocolError::MetaMissing(META_VERSION));
}

#[test]
fn unknown_versions_are_refused_in_both_places() {
    let mut body = call();
    body["params"]["_meta"][META_VERSION] = json!("2027-01-01");
    let mut pairs = CALL;
    pairs[0].1 = "2027-01-01";
    for result in
        [http(&pairs, &body), stdio(&body), http(&pairs[..1], &legacy("tools/list", json!({})))]
    {
        let refusal = result.unwrap_err();
        assert_eq!(refusal.error.reason(), Reason::ProtocolUnsupported);
        assert_eq!(refusal.id, Some(Id::Integer(1)));
    }
}

#[test]
fn legacy_clients_need_no_headers_but_may_not_lie() {
    let body = legacy("tools/call", json!({ "name": "read" }));
    assert_eq!(http(&[], &body).unwrap().era(), Era::Legacy(LegacyVersion::V2025_03_26));
    let version = [("mcp-protocol-version", "2025-06-18")];
    assert_eq!(http(&version, &body).unwrap().era(), Era::Legacy(LegacyVersion::V2025_06_18));
    assert_eq!(
        http(&[("mcp-name", "write")], &body).unwrap_err().error.reason(),
        Reason::HeaderMismatch
    );
    let initialize = legacy(
        "initialize",
        json!({ "protocolVersion": "2025-06-18", "capabilities": { "roots": {} }, "clientInfo": { "name": "x" } }),
    );
    let message = stdio(&initialize).unwrap();
    assert_eq!(message.era(), Era::Legacy(LegacyVersion::V2025_06_18));
    assert_eq!(
        message.action().arguments,
        json!({ "protocolVersion": "2025-06-18", "capabilities": { "roots": {} } })
    );
}

#[test]
fn every_known_method_has_its_kind_and_unknown_methods_are_errors() {
    let params = json!({
        "name": "n", "uri": "a:b", "taskId": "t", "ref": { "type": "ref/prompt", "name": "p" }, "notifications": {},
    });
    for method in ClientMethod::ALL {
        for era in [Era::Modern, Era::Legacy(LegacyVersion::V2025_11_25)] {
            let mut body = if era.is_modern() {
                modern(method.as_str(), params.clone())
            } else {
                legacy(method.as_str(), params.clone())
            };
            if method.is_notification() {
                body.as_object_mut().unwrap().remove("id");
            }
            match stdio(&body) {
                Ok(message) => {
                    assert!(method.exists_in(era));
                    assert_eq!(
                        (message.action().kind, message.action().method.as_str()),
                        (method.kind(), method.as_str())
                    );
                    assert_eq!(message.method(), Some(*method));
                }
                Err(refusal) => {
                    assert!(!method.exists_in(era), "{method:?} {refusal}");
                    assert_eq!(refusal.error, ProtocolError::MethodUnknown);
                }
            }
        }
    }
    for name in ["tools/delete", "notifications/x", "Tools/call", ""] {
        assert_eq!(
            stdio(&legacy(name, json!({}))).unwrap_err().error,
            ProtocolError::MethodUnknown
        );
    }
    let mut silent = legacy("tools/call", params);
    silent.as_object_mut().unwrap().remove("id");
    let refusal = stdio(&silent).unwrap_err();
    assert_eq!((refusal.error, refusal.one_way), (ProtocolError::MethodUnknown, true));
}

#[test]
fn a_retry_is_judged_with_its_input_responses_and_state() {
    let retry = |responses: Value, state: &str| {
        let params = json!({ "name": "read", "arguments": { "a": 1 }, "inputResponses": responses, "requestState": state });
        let message = stdio(&modern("tools/call", params)).unwrap();
        assert!(message.is_retry());
        message.into_parts().0
    };
    let base = retry(json!({ "k": { "action": "accept" } }), "s");
    assert_eq!(base.arguments["a"], 1);
    assert_eq!(base.arguments["io.modelcontextprotocol/inputResponses"]["k"]["action"], "accept");
    assert_eq!(
        base.arguments["io.modelcontextprotocol/requestState"],
        Digest::of(b"s").to_string()
    );
    let agent = "spiffe://acme.example/ns/a/sa/b/agent/x".parse().unwrap();
    let digest = |action: &Action| action.digest(&agent, None).unwrap();
    assert_ne!(digest(&base), digest(&retry(json!({ "k": { "action": "decline" } }), "s")));
    assert_ne!(digest(&base), digest(&retry(json!({ "k": { "action": "accept" } }), "t")));
    assert!(!stdio(&call()).unwrap().is_retry());
    let spoofed =
        json!({ "name": "read", "arguments": { "io.modelcontextprotocol/inputResponses": {} } });
    assert_eq!(
        stdio(&modern("tools/call", spoofed)).unwrap_err().error,
        ProtocolError::ReservedArgument
    );
}

#[test]
fn meta_and_ids_are_no_arguments() {
    let mut other = call();
    other["id"] = json!("x");
    other["params"]["_meta"]["progressToken"] = json!("other");
    let (one, two) = (stdio(&call()).unwrap(), stdio(&other).unwrap());
    assert_eq!(one.action(), two.action());
    assert_eq!(two.meta()["progressToken"], "other");
}

#[test]
fn deceptive_names_and_uris_are_refused() {
    let error =
        |method: &str, params: Value| stdio(&legacy(method, params)).unwrap_err().error.reason();
    assert_eq!(error("tools/call", json!({ "name": "re\u{200b}ad" })), Reason::ToolUnknown);
    assert_eq!(error("prompts/get", json!({ "name": "reаd" })), Reason::ToolUnknown);
    assert_eq!(
        error("resources/read", json!({ "uri": "file:///a/../b" })),
        Reason::MalformedMessage
    );
    assert_eq!(
        error("tools/call", json!({ "name": "t", "arguments": [] })),
        Reason::MalformedMessage
    );
    assert_eq!(error("tools/call", json!({})), Reason::MalformedMessage);
    let message = stdio(&legacy("resources/read", json!({ "uri": "file:///é" }))).unwrap();
    assert_eq!(message.action().resource.as_deref(), Some("file:///%C3%A9"));
}

#[test]
fn each_watched_resource_is_an_action_of_its_own() {
    let listen = |uris: Value| {
        modern(
            "subscriptions/listen",
            json!({ "notifications": { "resourceSubscriptions": uris } }),
        )
    };
    let message = stdio(&listen(json!(["file:///a", "file:///b"]))).unwrap();
    let resources: Vec<_> =
        message.resource_actions().into_iter().map(|action| action.resource.unwrap()).collect();
    assert_eq!(resources, ["file:///a", "file:///b"]);
    assert!(
        message.resource_actions().iter().all(|action| action.kind == ActionKind::Subscription)
    );
    assert!(stdio(&listen(json!(["file:///a/.."]))).is_err());
    assert!(stdio(&listen(json!([1]))).is_err());
}

#[test]
fn answers_of_legacy_clients_are_governed_and_modern_ones_have_none() {
    let answer = json!({ "jsonrpc": "2.0", "id": 4, "result": { "action": "accept", "content": { "n": "x" }, "_meta": {} } });
    let mut message = stdio(&answer).unwrap();
    message.set_answered(ServerMethod::Elicit);
    assert_eq!(message.kind(), &ClientKind::Response(Some(Id::Integer(4))));
    assert_eq!(message.action().kind, ActionKind::ServerRequest);
    assert_eq!(message.action().method, "elicitation/create");
    assert_eq!(
        message.action().arguments,
        json!({ "result": { "action": "accept", "content": { "n": "x" } } })
    );
    let refusal = http(&[("mcp-protocol-version", MODERN_VERSION)], &answer).unwrap_err();
    assert_eq!((refusal.error, refusal.one_way), (ProtocolError::ResponseUnexpected, true));
}

#[test]
fn batches_duplicate_keys_and_large_messages_are_refused() {
    let refuse = |text: &str, limits: Limits| {
        parse_client("s", Transport::Stdio, Bytes::from(text.to_owned()), limits)
            .unwrap_err()
            .error
            .reason()
    };
    let limits = Limits { size: 200, depth: 8 };
    assert_eq!(
        refuse(r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, limits),
        Reason::BatchRefused
    );
    assert_eq!(
        refuse(
            r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"a","name":"b"}}"#,
            limits
        ),
        Reason::DuplicateKey
    );
    assert_eq!(refuse(&" ".repeat(201), limits), Reason::MessageTooLarge);
    assert_eq!(refuse(&"[".repeat(9), limits), Reason::NestingTooDeep);
}
