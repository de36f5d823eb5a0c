//! Retries of a call that Aegis itself answered with `input_required` to await an approval.
//!
//! Such a retry carries Aegis' own `requestState` and input responses. They are taken out before
//! the message is judged, so that its action and digest are those of the call that was held, and
//! the upstream never sees them. `requestState` passed through the client: its holder must verify
//! it; here it is only told apart by its prefix.

use bytes::Bytes;
use serde_json::Value;

use crate::json::edit;

/// A retry of a held call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnRetry {
    /// The message without the retry's members: what is to be parsed and judged.
    pub body: Bytes,
    /// The `requestState` that came back, unverified.
    pub state: String,
    /// The input responses that came with it, if any.
    pub responses: Option<Value>,
}

/// Splits a retry whose `requestState` starts with `prefix`. `body` must have been parsed strictly.
/// `None` for any other message.
#[must_use]
pub fn take_own_retry(body: &Bytes, prefix: &str) -> Option<OwnRetry> {
    let params = edit::find(body, &["params"])?;
    let members = edit::members(body, &params)?;
    let value = |name: &str| {
        let member = members.iter().find(|member| member.name == name)?;
        serde_json::from_slice::<Value>(body.get(member.value.clone())?).ok()
    };
    let Some(Value::String(state)) = value("requestState") else { return None };
    if !state.starts_with(prefix) {
        return None;
    }
    let responses = value("inputResponses");
    let parts: Vec<_> = members.iter().map(|member| member.whole.clone()).collect();
    let left = edit::retain(body, &params, &parts, |index| {
        members.get(index).is_some_and(|member| {
            !matches!(member.name.as_str(), "requestState" | "inputResponses")
        })
    })?;
    let body = edit::splice(body, &[(params, left)])?;
    Some(OwnRetry { body: body.into(), state, responses })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn own_retries_become_the_held_call_again() {
        let held = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"name":"t", "arguments":{"n":1.0}}}"#;
        let retry = r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"inputResponses":{"k":{}},"name":"t", "arguments":{"n":1.0},"requestState":"aegis.x"}}"#;
        let own = take_own_retry(&Bytes::from_static(retry.as_bytes()), "aegis.").unwrap();
        assert_eq!(
            (own.body, own.state.as_str(), own.responses),
            (Bytes::from(held), "aegis.x", Some(json!({ "k": {} })))
        );
        assert_eq!(take_own_retry(&Bytes::from_static(retry.as_bytes()), "other."), None);
        assert_eq!(take_own_retry(&Bytes::from_static(held.as_bytes()), ""), None);
    }
}
