//! The only place that turns a reason into an answer of the protocol.

use aegis_core::decision::{Decision, Reason};
use aegis_protocol::mcp::{
    ClientMessage, ClientMethod,
    deny::{self, Answer},
};
use aegis_resources::{AgentUpstreamSpec, upstream::DenyForm};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use http_body_util::Full;
use serde_json::json;

use crate::{
    listing::Unlisted,
    route::{Asks, Held, OWN_STATE},
};

/// The answer to a message that a decision refuses, in the form that the upstream's owner chose.
#[must_use]
pub fn refused(spec: &AgentUpstreamSpec, message: &ClientMessage, decision: &Decision) -> Answer {
    let (Some(id), Some(method)) = (message.request_id(), message.method()) else {
        return one_way(decision.reason);
    };
    let text = format!("Refused by policy: {} [{}]", decision.message, decision.reason);
    let nameable = matches!(
        method,
        ClientMethod::ToolsCall | ClientMethod::PromptsGet | ClientMethod::ResourcesRead
    );
    match spec.deny_form {
        DenyForm::Hide if nameable => hidden(message),
        DenyForm::StepUp => {
            let action = message.action();
            let scope = format!(
                "{}:{}",
                action.kind.capability_verb(),
                action.capability_segments().join("/")
            );
            deny::step_up(id, &[&scope], None, &text)
        }
        DenyForm::Explain | DenyForm::Hide => {
            deny::explain(message.era(), id, method, decision.reason, &text)
        }
    }
}

/// As if what the message names did not exist.
#[must_use]
pub fn hidden(message: &ClientMessage) -> Answer {
    let action = message.action();
    let name = action.tool.as_deref().or(action.resource.as_deref()).unwrap_or_default();
    match (message.request_id(), message.method()) {
        (Some(id), Some(method)) => deny::hide(message.era(), id, method, name),
        _ => one_way(Reason::ToolUnknown),
    }
}

/// The answer to a call of a quarantined tool, which no list names.
#[must_use]
pub fn quarantined(spec: &AgentUpstreamSpec, message: &ClientMessage) -> Answer {
    match spec.deny_form {
        DenyForm::Hide => hidden(message),
        DenyForm::Explain | DenyForm::StepUp => explained(message, Reason::ToolQuarantined),
    }
}

/// A reason's own sentence.
#[must_use]
pub fn explained(message: &ClientMessage, reason: Reason) -> Answer {
    match (message.request_id(), message.method()) {
        (Some(id), Some(method)) => {
            deny::explain(message.era(), id, method, reason, reason.sentence())
        }
        _ => one_way(reason),
    }
}

/// A call waits for a human, and its client is not held or no longer.
#[must_use]
pub fn still_pending(held: &Held) -> Answer {
    let (message, approval, why) = (&held.message, &held.approval, &held.text);
    let (Some(id), Some(method)) = (message.request_id(), message.method()) else {
        return one_way(Reason::ApprovalPending);
    };
    let reason = Reason::ApprovalPending;
    if held.asks != Asks::Never {
        let text = format!(
            "Waiting for a human: {why} Approval {approval} is open and is answered elsewhere; confirm here once it is, and the call is repeated [{reason}]"
        );
        return deny::approval_asked(id, &format!("{OWN_STATE}{approval}"), &text);
    }
    let text = format!(
        "Waiting for a human: {why} Approval {approval} is open; retry the same call once it is approved [{reason}]"
    );
    deny::explain(message.era(), id, method, reason, &text)
}

/// The server has not listed its tools: what it said, where that helps its client.
#[must_use]
pub fn unlisted(message: &ClientMessage, unlisted: &Unlisted) -> Answer {
    let mut answer = match unlisted.reason {
        Reason::ToolsUnlisted if unlisted.answered.is_none() => explained(message, unlisted.reason),
        reason => upstream_failed(message.request_id(), reason),
    };
    if let Some((status, challenge)) = &unlisted.answered {
        (answer.status, answer.www_authenticate) = (*status, challenge.clone());
    }
    answer
}

/// A client answered a question that no server has asked.
#[must_use]
pub fn unexpected_response() -> Answer {
    plain(StatusCode::BAD_REQUEST, Reason::MalformedMessage)
}

/// A notification or a response was refused: there is no id to answer.
fn one_way(reason: Reason) -> Answer {
    plain(StatusCode::FORBIDDEN, reason)
}

/// A refusal without an id.
#[must_use]
pub fn plain(status: StatusCode, reason: Reason) -> Answer {
    let body = json!({
        "jsonrpc": "2.0",
        "id": null,
        "error": { "code": deny::DENIED, "message": reason.sentence(), "data": { "reason": reason.code() } },
    });
    Answer { status, www_authenticate: None, body: Bytes::from(body.to_string()) }
}

/// The HTTP status for a reason that is no policy's.
#[must_use]
pub const fn status_of(reason: Reason) -> StatusCode {
    match reason {
        Reason::MessageTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
        Reason::MessageTimeout => StatusCode::REQUEST_TIMEOUT,
        Reason::UpstreamUnavailable
        | Reason::UpstreamUnverified
        | Reason::UpstreamMalformed
        | Reason::UpstreamTooLarge => StatusCode::BAD_GATEWAY,
        Reason::UpstreamTimeout => StatusCode::GATEWAY_TIMEOUT,
        Reason::Overloaded | Reason::Draining | Reason::RecordFailed => {
            StatusCode::SERVICE_UNAVAILABLE
        }
        Reason::MalformedMessage | Reason::HeaderMismatch | Reason::NameTooLong => {
            StatusCode::BAD_REQUEST
        }
        _ => StatusCode::FORBIDDEN,
    }
}

/// The answer to a permitted message whose upstream failed: a JSON-RPC error with the message's id,
/// so that a client does not wait for ever.
#[must_use]
pub fn upstream_failed(id: Option<&aegis_protocol::jsonrpc::Id>, reason: Reason) -> Answer {
    let mut answer = match id {
        Some(id) => deny::denied(id, reason, reason.sentence()),
        None => plain(status_of(reason), reason),
    };
    answer.status = status_of(reason);
    answer
}

/// An answer as an HTTP response.
#[must_use]
pub fn http(answer: Answer) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::new(answer.body));
    *response.status_mut() = answer.status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(challenge) = answer.www_authenticate
        && let Ok(value) = HeaderValue::from_str(&challenge)
    {
        headers.insert(header::WWW_AUTHENTICATE, value);
    }
    response
}
