//! Refusals in the protocol's own words: from era, id and reason to status and body.
//!
//! Codes: the protocol's where it has one. A policy's refusal of something that is no tool call has
//! none, and 2026-07-28 asks for codes outside JSON-RPC's reserved range: [`DENIED`].

use aegis_core::decision::Reason;
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Map, Value, json};

use super::{ClientMethod, Era, ProtocolError, Refusal, SUPPORTED_VERSIONS};
use crate::jsonrpc::{Id, RpcError};

/// The JSON-RPC code of a refusal by policy.
pub const DENIED: i64 = 4030;

const PARSE_ERROR: i64 = -32700;
const INVALID_REQUEST: i64 = -32600;
const METHOD_NOT_FOUND: i64 = -32601;
const INVALID_PARAMS: i64 = -32602;
const RESOURCE_NOT_FOUND_LEGACY: i64 = -32002;
const HEADER_MISMATCH: i64 = -32020;
const UNSUPPORTED_VERSION: i64 = -32022;

/// An answer that Aegis gives itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The HTTP status; stdio has none.
    pub status: StatusCode,
    /// The value of `WWW-Authenticate`, if there is one.
    pub www_authenticate: Option<String>,
    /// One JSON-RPC message.
    pub body: Bytes,
}

/// The key of Aegis' own question in `inputRequests`.
pub const APPROVAL_KEY: &str = "aegis.approval";

fn message(status: StatusCode, body: Value) -> Answer {
    Answer { status, www_authenticate: None, body: body.to_string().into() }
}

fn error(
    status: StatusCode,
    id: Option<&Id>,
    code: i64,
    text: &str,
    data: Option<Value>,
) -> Answer {
    let mut error = Map::new();
    error.insert("code".to_owned(), code.into());
    error.insert("message".to_owned(), text.into());
    if let Some(data) = data {
        error.insert("data".to_owned(), data);
    }
    let mut body = Map::new();
    body.insert("jsonrpc".to_owned(), "2.0".into());
    if let Some(id) = id {
        body.insert("id".to_owned(), id.to_value());
    }
    body.insert("error".to_owned(), error.into());
    message(status, body.into())
}

/// Hide: the answer that a server gives for a tool, prompt or resource that it does not have
/// (server/tools, "Error Handling"). Discloses nothing. Other methods answer like an unknown method.
#[must_use]
pub fn hide(era: Era, id: &Id, method: ClientMethod, name: &str) -> Answer {
    let (code, text, data) = match method {
        ClientMethod::ToolsCall => (INVALID_PARAMS, format!("Unknown tool: {name}"), None),
        ClientMethod::PromptsGet => (INVALID_PARAMS, format!("Unknown prompt: {name}"), None),
        ClientMethod::ResourcesRead | ClientMethod::ResourcesSubscribe => {
            let code = if era.is_modern() { INVALID_PARAMS } else { RESOURCE_NOT_FOUND_LEGACY };
            (code, "Resource not found".to_owned(), Some(json!({ "uri": name })))
        }
        _ => return method_unknown(Some(era), Some(id)),
    };
    error(StatusCode::OK, Some(id), code, &text, data)
}

/// Explain: a tool's result that says why, which clients give to their model; for other methods an
/// error. `text` must not quote arguments.
#[must_use]
pub fn explain(era: Era, id: &Id, method: ClientMethod, reason: Reason, text: &str) -> Answer {
    if method != ClientMethod::ToolsCall {
        return denied(id, reason, text);
    }
    let mut result = Map::new();
    if era.is_modern() {
        result.insert("resultType".to_owned(), "complete".into());
    }
    result.insert("content".to_owned(), json!([{ "type": "text", "text": text }]));
    result.insert("isError".to_owned(), true.into());
    result.insert("_meta".to_owned(), json!({ "aegis.dev/reason": reason.code() }));
    message(StatusCode::OK, json!({ "jsonrpc": "2.0", "id": id.to_value(), "result": result }))
}

/// A plain refusal: a JSON-RPC error with the reason's code as data.
#[must_use]
pub fn denied(id: &Id, reason: Reason, text: &str) -> Answer {
    error(StatusCode::OK, Some(id), DENIED, text, Some(json!({ "reason": reason.code() })))
}

/// Step-up: asks an OAuth client for more scopes (basic/authorization, "Insufficient Scope").
/// `scopes` are all that are needed; `resource_metadata` is the RFC 9728 document's URL.
#[must_use]
pub fn step_up(id: &Id, scopes: &[&str], resource_metadata: Option<&str>, text: &str) -> Answer {
    let quoted = |text: &str| {
        text.chars()
            .filter(|c| matches!(c, ' '..='~') && *c != '"' && *c != '\\')
            .collect::<String>()
    };
    let mut challenge =
        format!("Bearer error=\"insufficient_scope\", scope=\"{}\"", quoted(&scopes.join(" ")));
    if let Some(url) = resource_metadata {
        challenge.push_str(&format!(", resource_metadata=\"{}\"", quoted(url)));
    }
    let mut answer = error(StatusCode::FORBIDDEN, Some(id), DENIED, text, None);
    answer.www_authenticate = Some(challenge);
    answer
}

/// Unknown method: 404 in the modern era, an ordinary error in the legacy one.
#[must_use]
pub fn method_unknown(era: Option<Era>, id: Option<&Id>) -> Answer {
    let modern = era.is_none_or(Era::is_modern);
    let status = if modern { StatusCode::NOT_FOUND } else { StatusCode::OK };
    error(status, id, METHOD_NOT_FOUND, "Method not found", None)
}

/// The answer to a message that could not be accepted. Over HTTP a notification or response gets it
/// too, as an error without id; over stdio nothing may be written for those (`refusal.one_way`).
#[must_use]
pub fn refuse(refusal: &Refusal) -> Answer {
    let id = refusal.id.as_ref().filter(|_| !refusal.one_way);
    let text = refusal.error.to_string();
    let reason = json!({ "reason": refusal.error.reason().code() });
    let bad = |code| error(StatusCode::BAD_REQUEST, id, code, &text, Some(reason.clone()));
    match &refusal.error {
        ProtocolError::Rpc(RpcError::Json(problem)) => match problem {
            crate::json::JsonError::TooLarge { .. } => {
                error(StatusCode::PAYLOAD_TOO_LARGE, id, INVALID_REQUEST, &text, Some(reason))
            }
            _ => bad(PARSE_ERROR),
        },
        ProtocolError::Rpc(RpcError::Params { .. }) => bad(INVALID_PARAMS),
        ProtocolError::Rpc(_) | ProtocolError::ResponseUnexpected => bad(INVALID_REQUEST),
        ProtocolError::Header(_) => bad(HEADER_MISMATCH),
        ProtocolError::MethodUnknown if refusal.one_way => bad(INVALID_REQUEST),
        ProtocolError::MethodUnknown => method_unknown(refusal.era, id),
        ProtocolError::VersionUnsupported { requested } => {
            let data = json!({ "supported": SUPPORTED_VERSIONS, "requested": requested });
            error(
                StatusCode::BAD_REQUEST,
                id,
                UNSUPPORTED_VERSION,
                "Unsupported protocol version",
                Some(data),
            )
        }
        ProtocolError::MetaMissing(_) => bad(INVALID_PARAMS),
        ProtocolError::Name { what, .. } => {
            // The name itself is not repeated: it is what could be mistaken.
            let data = Some(json!({ "reason": Reason::ToolUnknown.code() }));
            error(StatusCode::OK, id, INVALID_PARAMS, &format!("Unknown {what}: {text}"), data)
        }
        ProtocolError::Param(_)
        | ProtocolError::Uri(_)
        | ProtocolError::TooLong { .. }
        | ProtocolError::ReservedArgument => {
            error(StatusCode::OK, id, INVALID_PARAMS, &text, Some(reason))
        }
    }
}

/// A request whose headers do not designate what the tool's schema mirrors.
#[must_use]
pub fn header_mismatch(id: &Id, problem: &super::HeaderError) -> Answer {
    let data = json!({ "reason": Reason::HeaderMismatch.code() });
    error(StatusCode::BAD_REQUEST, Some(id), HEADER_MISMATCH, &problem.to_string(), Some(data))
}

/// A held call, as a question to its client (basic/patterns/mrtr): an empty form, whose answer
/// repeats the call under `state`. It approves nothing, since the agent's own client fills it in.
/// `text` says what is awaited and where. For methods that may be answered so
/// ([`ClientMethod::may_require_input`]) and modern clients that declared elicitation by form.
#[must_use]
pub fn approval_asked(id: &Id, state: &str, text: &str) -> Answer {
    let params = json!({
        "mode": "form", "message": text,
        "requestedSchema": { "type": "object", "properties": {} },
    });
    let result = json!({
        "resultType": "input_required",
        "inputRequests": { APPROVAL_KEY: { "method": "elicitation/create", "params": params } },
        "requestState": state,
    });
    message(StatusCode::OK, json!({ "jsonrpc": "2.0", "id": id.to_value(), "result": result }))
}

/// The answer to a server's request that its client may not see: sent to the server in the client's
/// stead (legacy era).
#[must_use]
pub fn server_request_denied(id: &Id) -> Bytes {
    let reason = Reason::ServerRequestDenied;
    denied(id, reason, reason.sentence()).body
}

/// What replaces a result that holds a request that its client may not see (modern era), or any
/// other result that may not be released.
#[must_use]
pub fn result_withheld(era: Era, id: &Id, method: ClientMethod, reason: Reason) -> Bytes {
    explain(era, id, method, reason, reason.sentence()).body
}

#[cfg(test)]
mod tests;
