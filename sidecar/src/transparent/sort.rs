//! Which HTTP requests are MCP.
//!
//! On a port that is declared to speak MCP, all are. Elsewhere it is what carries JSON-RPC, or the
//! headers of an MCP session. What is taken for MCP and is none is refused; what is MCP cannot pass
//! for something else by leaving a header out, because bodies of JSON are looked into.

use std::time::Duration;

use aegis_core::decision::Reason;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, header};
use http_body_util::{BodyExt as _, Either, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use serde_json::Value;

use super::MAX_BODY_BYTES;
use crate::inbound::is_json;

/// How long a body may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// A body that may have been read.
pub(super) type Whole = Either<Incoming, Full<Bytes>>;

/// What a request is.
pub(super) enum Sorted {
    /// A request of MCP's transport.
    Mcp(Request<Whole>),
    /// Other HTTP, with its whole body.
    Plain(Request<Full<Bytes>>),
}

/// Sorts a request.
///
/// # Errors
/// Why it can be neither.
pub(super) async fn sort(request: Request<Incoming>, declared: bool) -> Result<Sorted, Reason> {
    if declared || is_session(request.method(), request.headers()) {
        return Ok(Sorted::Mcp(request.map(Either::Left)));
    }
    let (head, body) = request.into_parts();
    if body.size_hint().lower() > MAX_BODY_BYTES as u64 {
        return Err(Reason::MessageTooLarge);
    }
    let collecting = Limited::new(body, MAX_BODY_BYTES).collect();
    let bytes = match tokio::time::timeout(PATIENCE, collecting).await {
        Err(_) => return Err(Reason::MessageTimeout),
        Ok(Ok(collected)) => collected.to_bytes(),
        Ok(Err(error)) if error.is::<LengthLimitError>() => return Err(Reason::MessageTooLarge),
        Ok(Err(_)) => return Err(Reason::MalformedMessage),
    };
    if is_rpc(&bytes) {
        // An encoding would hide what it is from whoever looks, and not from the server.
        let readable =
            is_json(&head.headers) && !head.headers.contains_key(header::CONTENT_ENCODING);
        if head.method != Method::POST || !readable {
            return Err(Reason::MalformedMessage);
        }
        let whole = Either::Right(Full::new(bytes));
        return Ok(Sorted::Mcp(Request::from_parts(head, whole)));
    }
    let encoded = head.headers.contains_key(header::CONTENT_ENCODING);
    if encoded && claims_json(&head.headers) {
        return Err(Reason::MalformedMessage);
    }
    Ok(Sorted::Plain(Request::from_parts(head, Full::new(bytes))))
}

fn is_session(method: &Method, headers: &HeaderMap) -> bool {
    let named = ["mcp-session-id", "mcp-protocol-version", "mcp-method"];
    named.iter().any(|name| headers.contains_key(*name))
        && matches!(*method, Method::POST | Method::GET | Method::DELETE)
}

fn claims_json(headers: &HeaderMap) -> bool {
    let claims = headers.get_all(header::CONTENT_TYPE);
    claims
        .iter()
        .any(|claim| claim.to_str().is_ok_and(|claim| claim.to_ascii_lowercase().contains("json")))
}

/// Whether it is JSON-RPC: an object with `jsonrpc`, or a list with such an object. A name can be
/// written with escapes, so a body with escapes is parsed.
fn is_rpc(bytes: &[u8]) -> bool {
    let plain = memchr::memmem::find(bytes, b"jsonrpc").is_some();
    let escaped = memchr::memmem::find(bytes, b"\\u").is_some();
    if !plain && !escaped {
        return false;
    }
    match serde_json::from_slice::<Value>(bytes) {
        Ok(Value::Object(members)) => members.contains_key("jsonrpc"),
        Ok(Value::Array(items)) => items.iter().any(|item| item.get("jsonrpc").is_some()),
        Ok(_) => false,
        // Another parser may be less strict than this one.
        Err(_) => plain,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_rpc_is_recognised_however_it_is_written() {
        for (body, expected) in [
            (r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#, true),
            (r#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, true),
            (r#"{"\u006asonrpc":"2.0","id":1,"method":"ping"}"#, true),
            (r#"{"jsonrpc":"2.0","#, true),
            (r#"{"name":"jsonrpc"}"#, false),
            (r#"{"name":"\u00e9"}"#, false),
            (r#"{"name":"x"}"#, false),
            ("name=x", false),
            ("", false),
        ] {
            assert_eq!(is_rpc(body.as_bytes()), expected, "{body}");
        }
    }
}
