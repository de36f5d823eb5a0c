//! JSON-RPC 2.0 as MCP uses it: one request, notification or response per message.
//!
//! Refused: batches (only MCP 2025-03-26 had them, and each element would need its own decision),
//! ids that are neither string nor integer (the specification forbids `null`, and fractions do not
//! survive other parsers), parameters that are not an object, and messages that are two things at
//! once. Members that the protocol does not know are left alone and travel on in the bytes.

use std::fmt;

use aegis_core::decision::Reason;
use bytes::Bytes;
use serde_json::{Map, Value};

use crate::json::{self, JsonError, Limits};

/// A request's id. Its JSON type is part of it: `1` and `"1"` are different requests.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Id {
    /// An integer.
    Integer(i64),
    /// A string.
    String(String),
}

/// One message.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// Asks for an answer.
    Request {
        /// What the answer will be matched by.
        id: Id,
        /// What is asked.
        method: String,
        /// With what; empty if absent.
        params: Map<String, Value>,
    },
    /// Tells something.
    Notification {
        /// What is told.
        method: String,
        /// The details; empty if absent.
        params: Map<String, Value>,
    },
    /// Answers a request.
    Response {
        /// Of which request; an error about a request that could not be read has none.
        id: Option<Id>,
        /// The answer.
        outcome: Outcome,
    },
}

/// What a response says.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It was done.
    Result(Value),
    /// It was not.
    Error {
        /// The code.
        code: i64,
        /// One sentence.
        message: String,
        /// Details.
        data: Option<Value>,
    },
}

/// A message and the bytes that it was read from. Those bytes are what is forwarded.
#[derive(Clone, Debug, PartialEq)]
pub struct RawMessage {
    /// The bytes.
    pub bytes: Bytes,
    /// What they say.
    pub message: Message,
}

/// Why bytes are not a message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RpcError {
    /// Not strict JSON.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A batch.
    #[error("JSON-RPC batches are not accepted; send each message on its own")]
    Batch,
    /// JSON, but no message.
    #[error("not a JSON-RPC 2.0 message: {problem}")]
    Invalid {
        /// What is wrong.
        problem: &'static str,
        /// The id, if one could be read.
        id: Option<Id>,
    },
    /// A request whose `params` is not an object.
    #[error("`params` must be an object")]
    Params {
        /// The request's id.
        id: Option<Id>,
    },
}

impl RpcError {
    /// The reason it is refused for.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Json(error) => error.reason(),
            Self::Batch => Reason::BatchRefused,
            Self::Invalid { .. } | Self::Params { .. } => Reason::MalformedMessage,
        }
    }

    /// The id of the message, if it could be read.
    #[must_use]
    pub const fn id(&self) -> Option<&Id> {
        match self {
            Self::Invalid { id, .. } | Self::Params { id } => id.as_ref(),
            Self::Json(_) | Self::Batch => None,
        }
    }
}

impl Id {
    /// The id in JSON.
    #[must_use]
    pub fn to_value(&self) -> Value {
        match self {
            Self::Integer(number) => Value::from(*number),
            Self::String(text) => Value::from(text.as_str()),
        }
    }

    /// The id that `value` is, if it is one.
    #[must_use]
    pub fn from_value(value: &Value) -> Option<Self> {
        match value {
            Value::Number(number) => number.as_i64().map(Self::Integer),
            Value::String(text) => Some(Self::String(text.clone())),
            _ => None,
        }
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_value().fmt(f)
    }
}

impl RawMessage {
    /// Reads one message.
    ///
    /// # Errors
    /// When the bytes are not strict JSON or not one JSON-RPC 2.0 message.
    pub fn parse(bytes: Bytes, limits: Limits) -> Result<Self, RpcError> {
        let message = Message::from_value(json::parse(&bytes, limits)?)?;
        Ok(Self { bytes, message })
    }
}

impl Message {
    /// Reads a message from JSON that was parsed strictly.
    ///
    /// # Errors
    /// When it is not one JSON-RPC 2.0 message.
    pub fn from_value(value: Value) -> Result<Self, RpcError> {
        let invalid = |problem, id| RpcError::Invalid { problem, id };
        let mut members = match value {
            Value::Object(members) => members,
            Value::Array(_) => return Err(RpcError::Batch),
            _ => return Err(invalid("it is not an object", None)),
        };
        let id = match members.get("id") {
            None => None,
            Some(Value::Null) if members.contains_key("error") => None,
            Some(value) => Some(
                Id::from_value(value)
                    .ok_or_else(|| invalid("`id` must be a string or an integer", None))?,
            ),
        };
        if is_ambiguous(&members, &MEMBERS) {
            return Err(invalid("a name differs from another by its case alone", id));
        }
        if members.get("jsonrpc").and_then(Value::as_str) != Some("2.0") {
            return Err(invalid("`jsonrpc` must be \"2.0\"", id));
        }
        let method = members.swap_remove("method");
        let result = members.swap_remove("result");
        let error = members.swap_remove("error");
        match (method, result, error) {
            (Some(Value::String(method)), None, None) => {
                let params = match members.swap_remove("params") {
                    None => Map::new(),
                    Some(Value::Object(params)) if is_ambiguous(&params, &PARAMS) => {
                        let problem = "a name in `params` differs from another by its case alone";
                        return Err(invalid(problem, id));
                    }
                    Some(Value::Object(params)) => params,
                    Some(_) => return Err(RpcError::Params { id }),
                };
                Ok(match id {
                    Some(id) => Self::Request { id, method, params },
                    None => Self::Notification { method, params },
                })
            }
            (None, Some(result), None) => match id {
                Some(id) => Ok(Self::Response { id: Some(id), outcome: Outcome::Result(result) }),
                None => Err(invalid("a result needs an `id`", None)),
            },
            (None, None, Some(error)) => {
                Ok(Self::Response { outcome: error_outcome(error, id.as_ref())?, id })
            }
            (Some(_), None, None) => Err(invalid("`method` must be a string", id)),
            (None, None, None) => Err(invalid("it has no `method`, `result` or `error`", id)),
            _ => Err(invalid("it has more than one of `method`, `result` and `error`", id)),
        }
    }
}

/// The names of a message's own members.
const MEMBERS: [&str; 6] = ["jsonrpc", "id", "method", "params", "result", "error"];
/// The names of parameters that say what is asked for.
const PARAMS: [&str; 9] =
    ["name", "arguments", "uri", "_meta", "ref", "argument", "cursor", "level", "uris"];

/// Whether some parsers, which do not tell letters by their case, could read other members than this
/// one does: two names that differ by case alone, or one that is a known name in another case.
fn is_ambiguous(members: &Map<String, Value>, known: &[&str]) -> bool {
    let plain = |name: &str| name.bytes().all(|b| b.is_ascii() && !b.is_ascii_uppercase());
    members.keys().filter(|name| !plain(name)).any(|name| {
        let own = folded(name);
        known.iter().any(|known| own == *known)
            || members.keys().any(|other| other != name && folded(other) == own)
    })
}

/// A name without its case, as simple folding has it: `K` (kelvin) is `k` and `ſ` is `s`.
fn folded(name: &str) -> String {
    name.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
}

fn error_outcome(error: Value, id: Option<&Id>) -> Result<Outcome, RpcError> {
    let invalid = || RpcError::Invalid {
        problem: "`error` needs an integer `code` and a `message`",
        id: id.cloned(),
    };
    let Value::Object(mut members) = error else { return Err(invalid()) };
    let code = members.get("code").and_then(Value::as_i64).ok_or_else(invalid)?;
    let Some(Value::String(message)) = members.swap_remove("message") else {
        return Err(invalid());
    };
    Ok(Outcome::Error { code, message, data: members.swap_remove("data") })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn parse(text: &str) -> Result<Message, RpcError> {
        RawMessage::parse(Bytes::copy_from_slice(text.as_bytes()), Limits::default())
            .map(|raw| raw.message)
    }

    #[test]
    fn ids_keep_their_json_type() {
        let id = |text: &str| match parse(text).unwrap() {
            Message::Request { id, .. } => id,
            other => panic!("{other:?}"),
        };
        assert_eq!(id(r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#), Id::Integer(1));
        assert_eq!(id(r#"{"jsonrpc":"2.0","id":"1","method":"ping"}"#), Id::String("1".into()));
        assert_eq!(Id::Integer(1).to_string(), "1");
        assert_eq!(Id::String("1".into()).to_string(), "\"1\"");
        for bad in ["null", "1.5", "1.0", "-0", "true", "[]", "{}"] {
            let text = format!(r#"{{"jsonrpc":"2.0","id":{bad},"method":"ping"}}"#);
            assert!(matches!(parse(&text), Err(RpcError::Invalid { .. })), "{bad}");
        }
    }

    #[test]
    fn names_that_differ_by_case_alone_are_refused() {
        let call = |params: &str| {
            format!(r#"{{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{params}}}"#)
        };
        for text in [
            call(r#"{"name":"echo","Name":"forbidden"}"#),
            call(r#"{"name":"echo","Arguments":{}}"#),
            call(r#"{"name":"echo","x":1,"other":2,"OTHER":3}"#),
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","Method":"tools/call"}"#.to_owned(),
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","Params":{}}"#.to_owned(),
            "{\"j\u{17f}onrpc\":1,\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"ping\"}".to_owned(),
        ] {
            assert!(matches!(parse(&text), Err(RpcError::Invalid { .. })), "{text}");
        }
        // What a tool's own arguments are called is for the tool to say.
        assert!(
            parse(&call(r#"{"name":"echo","arguments":{"a":1,"A":2},"protocolVersion":1}"#))
                .is_ok()
        );
    }

    #[test]
    fn batches_are_refused() {
        let error = parse(r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#).unwrap_err();
        assert_eq!(error.reason(), Reason::BatchRefused);
        assert_eq!(parse("[]").unwrap_err(), RpcError::Batch);
    }

    #[test]
    fn a_message_is_one_thing() {
        for text in [
            r#"{"jsonrpc":"2.0","id":1,"method":"ping","result":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{},"error":{"code":1,"message":""}}"#,
            r#"{"jsonrpc":"2.0","id":1}"#,
            r#"{"jsonrpc":"2.0","result":{}}"#,
            r#"{"jsonrpc":"2.0","id":null,"result":{}}"#,
            r#"{"jsonrpc":"1.0","id":1,"method":"ping"}"#,
            r#"{"id":1,"method":"ping"}"#,
            r#"{"jsonrpc":"2.0","id":1,"method":5}"#,
            r#"{"jsonrpc":"2.0","id":1,"error":{"code":"x","message":""}}"#,
            r#"{"jsonrpc":"2.0","id":1,"error":"x"}"#,
            "5",
        ] {
            assert_eq!(parse(text).unwrap_err().reason(), Reason::MalformedMessage, "{text}");
        }
        let error = parse(r#"{"jsonrpc":"2.0","id":7,"method":"ping","params":[]}"#).unwrap_err();
        assert_eq!(error, RpcError::Params { id: Some(Id::Integer(7)) });
    }

    #[test]
    fn an_error_without_an_id_is_a_response() {
        let text =
            r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32700,"message":"x","data":[1]}}"#;
        let outcome = Outcome::Error { code: -32700, message: "x".into(), data: Some(json!([1])) };
        assert_eq!(parse(text).unwrap(), Message::Response { id: None, outcome });
    }

    proptest! {
        #[test]
        fn judged_bytes_are_kept_as_they_came(id in any::<i32>(), method in "[a-z/]{1,12}", extra in any::<String>()) {
            let text = json!({ "jsonrpc": "2.0", "id": id, "method": method, "x-vendor": extra }).to_string();
            let raw = RawMessage::parse(Bytes::from(text.clone()), Limits::default()).unwrap();
            prop_assert_eq!(raw.bytes, text);
            prop_assert_eq!(raw.message, Message::Request { id: Id::Integer(id.into()), method, params: Map::new() });
        }
    }
}
