//! Tests of the module `deny`.

use super::*;
use crate::mcp::LegacyVersion;

const LEGACY: Era = Era::Legacy(LegacyVersion::V2025_11_25);

fn body(answer: &Answer) -> Value {
    serde_json::from_slice(&answer.body).unwrap()
}

#[test]
fn a_hidden_tool_looks_like_one_that_does_not_exist() {
    for era in [LEGACY, Era::Modern] {
        let answer = hide(era, &Id::String("7".into()), ClientMethod::ToolsCall, "x");
        assert_eq!(answer.status, StatusCode::OK);
        let expected = json!({ "jsonrpc": "2.0", "id": "7", "error": { "code": -32602, "message": "Unknown tool: x" } });
        assert_eq!(body(&answer), expected);
    }
    let code = |era| {
        body(&hide(era, &Id::Integer(1), ClientMethod::ResourcesRead, "a:b"))["error"]["code"]
            .clone()
    };
    assert_eq!((code(LEGACY), code(Era::Modern)), (json!(-32002), json!(-32602)));
}

#[test]
fn an_explained_denial_is_a_tool_result_for_the_model() {
    let explained = |era| {
        body(&explain(era, &Id::Integer(1), ClientMethod::ToolsCall, Reason::PolicyDenied, "no"))
    };
    for era in [LEGACY, Era::Modern] {
        let answer = explained(era);
        assert_eq!(answer["result"]["isError"], true);
        assert_eq!(answer["result"]["content"], json!([{ "type": "text", "text": "no" }]));
        assert_eq!(answer["id"], 1);
    }
    assert_eq!(explained(Era::Modern)["result"]["resultType"], "complete");
    assert_eq!(explained(LEGACY)["result"].get("resultType"), None);
    let other = body(&explain(
        LEGACY,
        &Id::Integer(1),
        ClientMethod::ToolsList,
        Reason::PolicyDenied,
        "no",
    ));
    assert_eq!(
        other["error"],
        json!({ "code": 4030, "message": "no", "data": { "reason": "policy_denied" } })
    );
}

#[test]
fn a_step_up_is_403_with_all_scopes() {
    let answer = step_up(&Id::Integer(1), &["a", "b\"\r\n"], Some("https://x/meta"), "more");
    assert_eq!(answer.status, StatusCode::FORBIDDEN);
    let expected =
        "Bearer error=\"insufficient_scope\", scope=\"a b\", resource_metadata=\"https://x/meta\"";
    assert_eq!(answer.www_authenticate.as_deref(), Some(expected));
}

#[test]
fn unknown_methods_are_404_in_the_modern_era_only() {
    let id = Id::Integer(1);
    assert_eq!(method_unknown(Some(Era::Modern), Some(&id)).status, StatusCode::NOT_FOUND);
    assert_eq!(method_unknown(Some(LEGACY), Some(&id)).status, StatusCode::OK);
    assert_eq!(body(&method_unknown(Some(LEGACY), Some(&id)))["error"]["code"], -32601);
}

#[test]
fn refusals_carry_the_codes_of_the_protocol() {
    use crate::mcp::HeaderError;
    let refused = |error: ProtocolError| {
        let answer = refuse(&Refusal {
            error,
            id: Some(Id::Integer(3)),
            era: Some(Era::Modern),
            one_way: false,
        });
        (answer.status.as_u16(), body(&answer)["error"]["code"].as_i64().unwrap())
    };
    assert_eq!(refused(HeaderError::Missing("mcp-method".into()).into()), (400, -32020));
    assert_eq!(refused(ProtocolError::MetaMissing("x")), (400, -32602));
    assert_eq!(refused(ProtocolError::VersionUnsupported { requested: "1".into() }), (400, -32022));
    assert_eq!(refused(ProtocolError::MethodUnknown), (404, -32601));
    assert_eq!(refused(RpcError::Batch.into()), (400, -32600));
    assert_eq!(
        refused(RpcError::from(crate::json::JsonError::DuplicateKey { at: 1 }).into()),
        (400, -32700)
    );
    assert_eq!(
        refused(RpcError::from(crate::json::JsonError::TooLarge { size: 2, limit: 1 }).into()),
        (413, -32600)
    );
    let one_way = Refusal {
        error: RpcError::Batch.into(),
        id: Some(Id::Integer(3)),
        era: None,
        one_way: true,
    };
    assert_eq!(body(&refuse(&one_way)).get("id"), None);
}

#[test]
fn a_held_call_is_a_form_that_approves_nothing() {
    let asked = body(&approval_asked(&Id::Integer(1), "s", "wait"));
    assert_eq!(asked["result"]["resultType"], "input_required");
    assert_eq!(asked["result"]["requestState"], "s");
    let params = &asked["result"]["inputRequests"][APPROVAL_KEY]["params"];
    assert_eq!((&params["mode"], &params["message"]), (&json!("form"), &json!("wait")));
    assert_eq!(params["requestedSchema"]["properties"], json!({}), "there is nothing to fill in");
}
