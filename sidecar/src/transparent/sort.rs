//! Which HTTP requests are MCP, and which A2A.
//!
//! A port that is declared to speak one of them speaks nothing else. On one that is not, HTTP is decided on by
//! its method and its path, and what carries JSON-RPC is refused: its owner has to declare it. On the
//! way out the other pod's sidecar says where A2A is declared, and no more; so other JSON-RPC and the requests of a session
//! are MCP there; the other pod's sidecar, which knows, looks again.
//!
//! Bodies are looked into, whatever the headers say of them. What looks like JSON has to be JSON that
//! every parser reads alike: a body that this one cannot read is refused, because another might.

use std::time::Duration;

use aegis_core::decision::Reason;
use bytes::Bytes;
use http::{HeaderMap, Method, Request, header};
use http_body_util::{BodyExt as _, Either, Full, LengthLimitError, Limited};
use hyper::body::{Body as _, Incoming};
use serde_json::Value;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::MAX_BODY_BYTES;
use crate::inbound::is_json;

/// How long a body may take.
const PATIENCE: Duration = Duration::from_secs(30);
/// How much of bodies is held at a time, in KiB: whoever stalls them does not fill the memory.
static HELD: Semaphore = Semaphore::const_new(32 * 1024);

/// A body that may have been read.
pub(super) type Whole = Either<Incoming, Full<Bytes>>;

/// What is known of a port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Speaks {
    /// It is declared to speak MCP.
    Mcp,
    /// It is declared to speak A2A.
    A2a,
    /// It is another pod's.
    Unknown,
    /// It is this pod's, and not declared.
    Http,
}

/// What a request is.
pub(super) enum Sorted {
    /// A request of MCP's transport.
    Mcp(Request<Whole>),
    /// A request of one of A2A's bindings.
    A2a(Request<Whole>),
    /// Other HTTP, with its whole body.
    Plain(Request<Bytes>),
}

/// Sorts a request.
///
/// # Errors
/// Why it can be neither.
pub(super) async fn sort(request: Request<Incoming>, speaks: Speaks) -> Result<Sorted, Reason> {
    if !is_canonical(request.uri().path()) {
        return Err(Reason::MalformedMessage);
    }
    if speaks == Speaks::A2a {
        return Ok(Sorted::A2a(request.map(Either::Left)));
    }
    let session = speaks == Speaks::Unknown && is_session(request.method(), request.headers());
    if speaks == Speaks::Mcp || session {
        return Ok(Sorted::Mcp(request.map(Either::Left)));
    }
    let (head, body) = request.into_parts();
    let bytes = read(body).await?;
    if !bytes.is_empty() && head.headers.contains_key(header::CONTENT_ENCODING) {
        // It would hide what it is from whoever looks, and not from the server.
        return Err(Reason::MalformedMessage);
    }
    if !is_rpc(&head.headers, &bytes)? {
        return Ok(Sorted::Plain(Request::from_parts(head, bytes)));
    }
    if speaks == Speaks::Http {
        return Err(Reason::ProtocolUnsupported);
    }
    if head.method != Method::POST || !is_json(&head.headers) {
        return Err(Reason::MalformedMessage);
    }
    Ok(Sorted::Mcp(Request::from_parts(head, Either::Right(Full::new(bytes)))))
}

/// The whole body.
async fn read(body: Incoming) -> Result<Bytes, Reason> {
    let hint = body.size_hint();
    if hint.lower() > MAX_BODY_BYTES as u64 {
        return Err(Reason::MessageTooLarge);
    }
    let most = hint.upper().unwrap_or(u64::MAX).min(MAX_BODY_BYTES as u64);
    let reading = async {
        let _held = hold(most).await?;
        match Limited::new(body, MAX_BODY_BYTES).collect().await {
            Ok(collected) => Ok(collected.to_bytes()),
            Err(error) if error.is::<LengthLimitError>() => Err(Reason::MessageTooLarge),
            Err(_) => Err(Reason::MalformedMessage),
        }
    };
    tokio::time::timeout(PATIENCE, reading).await.unwrap_or(Err(Reason::MessageTimeout))
}

async fn hold(bytes: u64) -> Result<SemaphorePermit<'static>, Reason> {
    let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
    HELD.acquire_many(kib).await.map_err(|_| Reason::Overloaded)
}

fn is_session(method: &Method, headers: &HeaderMap) -> bool {
    let named = ["mcp-session-id", "mcp-protocol-version", "mcp-method"];
    let streams = *method == Method::GET
        && headers.get_all(header::ACCEPT).iter().any(|accept| {
            accept.as_bytes().to_ascii_lowercase().windows(17).any(|w| w == b"text/event-stream")
        });
    streams
        || named.iter().any(|name| headers.contains_key(*name))
            && matches!(*method, Method::POST | Method::GET | Method::DELETE)
}

/// Whether a path says what it means: two spellings of one path would be two paths to a policy, and
/// one to a server.
fn is_canonical(path: &str) -> bool {
    let spelled = path.split('/').skip(1).enumerate().all(|(at, segment)| {
        // An empty segment is one only as the path's end.
        let empty = segment.is_empty() && path.split('/').count() != at + 2;
        !empty && !matches!(segment, "." | "..")
    });
    spelled && !path.contains('\\') && path.split('%').skip(1).all(is_needed)
}

/// Whether what follows a `%` encodes a byte that could not stand there by itself.
fn is_needed(encoded: &str) -> bool {
    let byte = encoded.get(..2).and_then(|hex| u8::from_str_radix(hex, 16).ok());
    byte.is_some_and(|byte| {
        let unreserved = byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
        !unreserved && !byte.is_ascii_control() && !b"/\\%".contains(&byte)
    })
}

/// Whether a body is JSON-RPC: an object, or a list with an object, that has the names of one.
fn is_rpc(headers: &HeaderMap, bytes: &[u8]) -> Result<bool, Reason> {
    if !looks_like_json(headers, bytes) {
        return Ok(false);
    }
    match serde_json::from_slice::<Value>(bytes) {
        Ok(Value::Array(items)) => Ok(items.iter().any(names_rpc)),
        Ok(value) => Ok(names_rpc(&value)),
        Err(_) => Err(Reason::MalformedMessage),
    }
}

fn looks_like_json(headers: &HeaderMap, bytes: &[u8]) -> bool {
    let claims = |value: &http::HeaderValue| {
        value.as_bytes().to_ascii_lowercase().windows(4).any(|window| window == b"json")
    };
    let first = bytes.iter().find(|byte| !byte.is_ascii_whitespace());
    !bytes.is_empty()
        && (headers.get_all(header::CONTENT_TYPE).iter().any(claims)
            // An object or a list, in UTF-8 or with the marks and zeros of other encodings.
            || matches!(first, Some(b'{' | b'[' | 0 | 0xef | 0xfe | 0xff))
            || bytes.get(1) == Some(&0))
}

/// Some parsers do not tell letters by their case.
fn names_rpc(value: &Value) -> bool {
    let Value::Object(members) = value else { return false };
    let has = |name: &str| members.keys().any(|key| folded(key) == name);
    has("jsonrpc") || has("method") && has("params")
}

fn folded(name: &str) -> String {
    name.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_rpc_is_recognised_however_it_is_written() {
        let call = r#"{"jsonrpc":"2.0","id":1,"method":"ping"}"#;
        let wide: Vec<u8> = call.encode_utf16().flat_map(u16::to_le_bytes).collect();
        let nested =
            format!(r#"{{"\u006asonrpc":"2.0","x":{}{}}}"#, "[".repeat(200), "]".repeat(200));
        let refused = Err(Reason::MalformedMessage);
        for (body, expected) in [
            (call.as_bytes(), Ok(true)),
            (br#"[{"jsonrpc":"2.0","id":1,"method":"ping"}]"#, Ok(true)),
            (br#"{"\u006asonrpc":"2.0","id":1,"method":"ping"}"#, Ok(true)),
            (br#"{"JSONRPC":"2.0","id":1,"METHOD":"ping"}"#, Ok(true)),
            ("{\"j\u{17f}onrpc\":\"2.0\"}".as_bytes(), Ok(true)),
            (br#" {"method":"tools/call","params":{}}"#, Ok(true)),
            (br#"{"jsonrpc":"2.0","#, refused),
            (br#"{"\u006asonrpc":"2.0","x":1e999}"#, refused),
            (nested.as_bytes(), refused),
            (&wide, refused),
            (b"\xef\xbb\xbf{}", refused),
            (br#"{"name":"jsonrpc"}"#, Ok(false)),
            (br#"{"method":"card"}"#, Ok(false)),
            (b"name=x", Ok(false)),
            (b"", Ok(false)),
        ] {
            assert_eq!(is_rpc(&HeaderMap::new(), body), expected, "{body:?}");
        }
        let mut odd = HeaderMap::new();
        let claim = http::HeaderValue::from_bytes(b"application/JSON; x=\"\xe9\"").unwrap();
        odd.insert(header::CONTENT_TYPE, claim);
        assert_eq!(is_rpc(&odd, b"\x1f\x8b"), refused);
    }

    #[test]
    fn a_path_has_one_spelling() {
        for path in ["/", "/mcp", "/mcp/", "/a/b.c", "/a%20b", "/a%C3%A9", "/..a", "/a~"] {
            assert!(is_canonical(path), "{path}");
        }
        for path in [
            "//",
            "//a",
            "/a//b",
            "/a//",
            "/.",
            "/a/../b",
            "/a/./b",
            "/a/..",
            "/%61",
            "/a%2fb",
            "/a%5Cb",
            "/%2e%2e/b",
            "/a\\b",
            "/%00",
            "/%",
            "/%2",
            "/%zz",
            "/%25",
            "/a%7e",
        ] {
            assert!(!is_canonical(path), "{path}");
        }
    }
}
