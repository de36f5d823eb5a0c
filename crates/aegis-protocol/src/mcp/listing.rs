//! Aegis' own `tools/list`, by which it learns what a server offers before it lets a call through.
//!
//! The request claims nothing for the client on whose behalf it is made: no capabilities, so that
//! the server asks nothing back. The answer never travels on.

use bytes::Bytes;
use serde_json::{Map, Value, json};

use super::{Era, META_CAPABILITIES, META_VERSION};
use crate::{
    json::Limits,
    jsonrpc::{Id, Message, Outcome, RawMessage},
};

/// One page of a server's tools.
#[derive(Clone, Debug, PartialEq)]
pub struct Page {
    /// The definitions, unread.
    pub tools: Vec<Value>,
    /// Where the next page begins, if there is one.
    pub next: Option<String>,
}

/// Why an answer is no page of tools.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// The server answered with an error.
    #[error("the server refused to list its tools")]
    Refused,
    /// It is something else.
    #[error("the server's answer to `tools/list` is not a list of tools")]
    Malformed,
}

/// Asks for the page at `cursor`.
#[must_use]
pub fn request(era: Era, id: &Id, cursor: Option<&str>) -> Bytes {
    let mut params = Map::new();
    if let Some(cursor) = cursor {
        params.insert("cursor".to_owned(), cursor.into());
    }
    if era.is_modern() {
        let client = json!({ "name": "aegis", "version": env!("CARGO_PKG_VERSION") });
        let meta = json!({
            META_VERSION: era.version(),
            META_CAPABILITIES: {},
            "io.modelcontextprotocol/clientInfo": client,
        });
        params.insert("_meta".to_owned(), meta);
    }
    let message =
        json!({ "jsonrpc": "2.0", "id": id.to_value(), "method": "tools/list", "params": params });
    Bytes::from(message.to_string())
}

/// Reads the answer to [`request`].
///
/// # Errors
/// When it is an error, or not a page of tools.
pub fn read(bytes: Bytes, id: &Id, limits: Limits) -> Result<Page, PageError> {
    let raw = RawMessage::parse(bytes, limits).map_err(|_| PageError::Malformed)?;
    let mut result = match raw.message {
        Message::Response { id: Some(of), outcome: Outcome::Result(result) } if of == *id => result,
        Message::Response { outcome: Outcome::Error { .. }, .. } => return Err(PageError::Refused),
        _ => return Err(PageError::Malformed),
    };
    let next = match result.get("nextCursor") {
        None | Some(Value::Null) => None,
        Some(Value::String(cursor)) => Some(cursor.clone()),
        Some(_) => return Err(PageError::Malformed),
    };
    match result.get_mut("tools").map(Value::take) {
        Some(Value::Array(tools)) => Ok(Page { tools, next }),
        _ => Err(PageError::Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mcp::{LegacyVersion, Transport, parse_client};

    #[test]
    fn the_request_is_one_that_a_client_could_send() {
        let id = Id::String("aegis-1".into());
        for era in [Era::Modern, Era::Legacy(LegacyVersion::V2025_11_25)] {
            let bytes = request(era, &id, Some("c"));
            let message = parse_client("s", Transport::Stdio, bytes, Limits::default()).unwrap();
            assert_eq!(message.request_id(), Some(&id));
            assert_eq!(message.action().arguments, json!({ "cursor": "c" }));
            assert_eq!(message.era().is_modern(), era.is_modern());
        }
    }

    #[test]
    fn only_a_page_of_tools_is_one() {
        let id = Id::String("aegis-1".into());
        let read =
            |answer: Value| super::read(Bytes::from(answer.to_string()), &id, Limits::default());
        let of = |result: Value| json!({ "jsonrpc": "2.0", "id": "aegis-1", "result": result });
        let page = read(of(json!({ "tools": [1], "nextCursor": "n" }))).unwrap();
        assert_eq!(page, Page { tools: vec![json!(1)], next: Some("n".into()) });
        assert_eq!(read(of(json!({ "tools": [] }))).unwrap().next, None);
        for malformed in [
            of(json!({})),
            of(json!({ "tools": {} })),
            of(json!({ "tools": [], "nextCursor": 1 })),
            json!({ "jsonrpc": "2.0", "id": "other", "result": { "tools": [] } }),
            json!({ "jsonrpc": "2.0", "method": "tools/list" }),
            json!([]),
        ] {
            assert_eq!(read(malformed.clone()), Err(PageError::Malformed), "{malformed}");
        }
        let error = json!({ "jsonrpc": "2.0", "id": "aegis-1", "error": { "code": -32601, "message": "no" } });
        assert_eq!(read(error), Err(PageError::Refused));
    }
}
