//! Refusals in the words of the binding that was used: a JSON-RPC error (specification 1.0 §9.5) or
//! a `google.rpc.Status` with an HTTP status (§11.6), by the table of §5.4.
//!
//! The protocol has no error of its own for "not allowed" (§3.3.2 leaves it to the binding): over
//! HTTP it is 403, in JSON-RPC the code [`DENIED`], with the reason's code as detail.

use aegis_core::decision::Reason;
use bytes::Bytes;
use http::StatusCode;
use serde_json::{Value, json};

use super::{Binding, ProtocolError, Refusal, Version};
use crate::{
    json::JsonError,
    jsonrpc::{Id, RpcError},
    mcp::deny::{Answer, DENIED},
    sse,
};

/// How a request is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Form {
    /// The binding it came by.
    pub binding: Binding,
    /// The version it is of.
    pub version: Version,
    /// In JSON-RPC, the id that the answer carries, if one could be read.
    pub id: Option<Id>,
}

/// An error of the protocol, in each of its forms.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Error {
    code: i64,
    status: StatusCode,
    name: &'static str,
    reason: &'static str,
}

const fn error(code: i64, status: StatusCode, name: &'static str, reason: &'static str) -> Error {
    Error { code, status, name, reason }
}

impl Error {
    /// No such task, or not the caller's: nobody can tell which (§3.3.2, §13.1).
    pub const TASK_NOT_FOUND: Self =
        error(-32001, StatusCode::NOT_FOUND, "NOT_FOUND", "TASK_NOT_FOUND");
    const UNSUPPORTED_OPERATION: Self =
        error(-32004, StatusCode::BAD_REQUEST, "FAILED_PRECONDITION", "UNSUPPORTED_OPERATION");
    const INVALID_AGENT_RESPONSE: Self =
        error(-32006, StatusCode::INTERNAL_SERVER_ERROR, "INTERNAL", "INVALID_AGENT_RESPONSE");
    const VERSION_NOT_SUPPORTED: Self =
        error(-32009, StatusCode::BAD_REQUEST, "FAILED_PRECONDITION", "VERSION_NOT_SUPPORTED");
    const PARSE: Self =
        error(-32700, StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", "INVALID_REQUEST");
    const INVALID_REQUEST: Self =
        error(-32600, StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", "INVALID_REQUEST");
    const TOO_LARGE: Self =
        error(-32600, StatusCode::PAYLOAD_TOO_LARGE, "INVALID_ARGUMENT", "INVALID_REQUEST");
    const METHOD_NOT_FOUND: Self =
        error(-32601, StatusCode::NOT_FOUND, "NOT_FOUND", "METHOD_NOT_FOUND");
    const INVALID_PARAMS: Self =
        error(-32602, StatusCode::BAD_REQUEST, "INVALID_ARGUMENT", "INVALID_PARAMS");
    const UNAVAILABLE: Self = error(-32603, StatusCode::SERVICE_UNAVAILABLE, "UNAVAILABLE", "");
    const DEADLINE_EXCEEDED: Self =
        error(-32603, StatusCode::GATEWAY_TIMEOUT, "DEADLINE_EXCEEDED", "");
    const UNAUTHENTICATED: Self = error(DENIED, StatusCode::UNAUTHORIZED, "UNAUTHENTICATED", "");
    const EXHAUSTED: Self = error(DENIED, StatusCode::TOO_MANY_REQUESTS, "RESOURCE_EXHAUSTED", "");
    const DENIED: Self = error(DENIED, StatusCode::FORBIDDEN, "PERMISSION_DENIED", "");

    /// The error that a reason is told by.
    const fn of_reason(reason: Reason) -> Self {
        match reason {
            Reason::IdentityMissing | Reason::IdentityUnknown | Reason::IdentityExpired => {
                Self::UNAUTHENTICATED
            }
            Reason::UpstreamMalformed | Reason::UpstreamTooLarge => Self::INVALID_AGENT_RESPONSE,
            Reason::UpstreamUnavailable
            | Reason::UpstreamUnverified
            | Reason::Overloaded
            | Reason::Draining
            | Reason::RecordFailed => Self::UNAVAILABLE,
            Reason::UpstreamTimeout => Self::DEADLINE_EXCEEDED,
            Reason::RateLimited => Self::EXHAUSTED,
            Reason::MessageTooLarge => Self::TOO_LARGE,
            Reason::MalformedMessage | Reason::MessageTimeout | Reason::HeaderMismatch => {
                Self::INVALID_REQUEST
            }
            Reason::MethodUnknown => Self::METHOD_NOT_FOUND,
            Reason::ProtocolUnsupported => Self::VERSION_NOT_SUPPORTED,
            _ => Self::DENIED,
        }
    }

    const fn of_protocol(problem: &ProtocolError) -> Self {
        match problem {
            ProtocolError::Json(JsonError::TooLarge { .. })
            | ProtocolError::Rpc(RpcError::Json(JsonError::TooLarge { .. })) => Self::TOO_LARGE,
            ProtocolError::Json(_) | ProtocolError::Rpc(RpcError::Json(_)) => Self::PARSE,
            ProtocolError::Rpc(RpcError::Params { .. })
            | ProtocolError::Param(_)
            | ProtocolError::Ambiguous(_)
            | ProtocolError::PathMismatch(_)
            | ProtocolError::Reserved => Self::INVALID_PARAMS,
            ProtocolError::OperationUnknown => Self::METHOD_NOT_FOUND,
            ProtocolError::VersionUnsupported => Self::VERSION_NOT_SUPPORTED,
            ProtocolError::ExtensionUnknown => Self::UNSUPPORTED_OPERATION,
            ProtocolError::Rpc(_)
            | ProtocolError::NotRequest
            | ProtocolError::VersionMismatch
            | ProtocolError::ExtensionMismatch
            | ProtocolError::Header(_)
            | ProtocolError::Path
            | ProtocolError::Query
            | ProtocolError::BodyUnexpected => Self::INVALID_REQUEST,
        }
    }
}

/// An answer with `error`. `text` must not quote arguments.
#[must_use]
pub fn answer(form: &Form, error: Error, reason: Reason, text: &str) -> Answer {
    let mut details = Vec::new();
    if !error.reason.is_empty() {
        details.push(info(error.reason, "a2a-protocol.org"));
    }
    // Why a task is not found is nobody's business.
    if error != Error::TASK_NOT_FOUND {
        details.push(info(&reason.code().to_ascii_uppercase(), "aegis.dev"));
    }
    let body = match form.binding {
        Binding::JsonRpc => {
            let id = form.id.as_ref().map_or(Value::Null, Id::to_value);
            let error = json!({ "code": error.code, "message": text, "data": details });
            json!({ "jsonrpc": "2.0", "id": id, "error": error })
        }
        Binding::HttpJson => {
            let status = json!({
                "code": error.status.as_u16(), "status": error.name, "message": text,
                "details": details,
            });
            json!({ "error": status })
        }
    };
    // JSON-RPC has its errors in answers that succeed, unless nobody could be answered at all.
    let told = form.binding == Binding::JsonRpc
        && error != Error::UNAUTHENTICATED
        && error != Error::TOO_LARGE;
    let status = if told { StatusCode::OK } else { error.status };
    let www_authenticate = (error == Error::UNAUTHENTICATED).then(|| "Aegis".to_owned());
    Answer { status, www_authenticate, body: body.to_string().into() }
}

fn info(reason: &str, domain: &str) -> Value {
    json!({
        "@type": "type.googleapis.com/google.rpc.ErrorInfo",
        "reason": reason, "domain": domain, "metadata": {},
    })
}

/// The answer to a request that a decision refuses, or whose upstream failed.
#[must_use]
pub fn denied(form: &Form, reason: Reason, text: &str) -> Answer {
    answer(form, Error::of_reason(reason), reason, text)
}

/// As if the task that a request names did not exist.
#[must_use]
pub fn task_not_found(form: &Form) -> Answer {
    answer(form, Error::TASK_NOT_FOUND, Reason::TaskUnknown, "Task not found")
}

/// The answer to a request that could not be accepted.
#[must_use]
pub fn refuse(refusal: &Refusal) -> Answer {
    let error = Error::of_protocol(&refusal.error);
    answer(&refusal.form, error, refusal.error.reason(), &refusal.error.to_string())
}

/// An answer as an event of a stream that has begun.
#[must_use]
pub fn event(answer: &Answer) -> Bytes {
    let mut out = b"event: error\n".to_vec();
    let encoded = sse::encode(&answer.body);
    out.extend_from_slice(encoded.strip_prefix(b"event: message\n").unwrap_or(&encoded));
    out.into()
}
