//! What a server sends: responses, notifications and requests to its client.
//!
//! A legacy server asks its client by requests of its own on the stream; a modern one embeds them
//! as `inputRequests` in a result (basic/patterns/mrtr). Both become actions of kind
//! `server_request`, so that one policy governs both.

use aegis_core::{action::Action, action::ActionKind, decision::Reason};
use bytes::Bytes;
use serde_json::{Map, Value};

use super::{ClientMethod, Era, ServerMethod, client::empty_action};
use crate::{
    json::Limits,
    jsonrpc::{Id, Message, Outcome, RawMessage, RpcError},
};

/// A message of a server and the bytes that it was read from.
#[derive(Clone, Debug, PartialEq)]
pub struct ServerMessage {
    /// The bytes: what is released if nothing is rewritten.
    pub bytes: Bytes,
    /// What they say.
    pub kind: ServerKind,
}

/// What a server's message is.
#[derive(Clone, Debug, PartialEq)]
pub enum ServerKind {
    /// An answer. To be matched with a request by `Id`'s equality, which is type-exact.
    Response {
        /// The request's id; an error about an unreadable request has none.
        id: Option<Id>,
        /// The answer.
        outcome: Outcome,
    },
    /// A notification.
    Notification {
        /// What is told.
        method: ServerMethod,
        /// The details.
        params: Map<String, Value>,
    },
    /// A legacy server asks its client.
    Request {
        /// The id of the server's request.
        id: Id,
        /// What is asked.
        method: ServerMethod,
        /// The action, to be decided.
        action: Action,
    },
}

/// Why a server's message is not released.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ServerError {
    /// Not one JSON-RPC message.
    #[error(transparent)]
    Rpc(#[from] RpcError),
    /// A method that servers do not have.
    #[error("the server sent a method that is unknown")]
    MethodUnknown,
    /// A modern server sent a request of its own.
    #[error("the server sent a request, which its protocol version does not allow")]
    RequestUnexpected,
    /// An `input_required` result that is not well-formed, or on a method that has none.
    #[error("the server's `input_required` result is malformed: {0}")]
    InputRequired(&'static str),
}

impl ServerError {
    /// The reason it is refused for.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::MethodUnknown => Reason::MethodUnknown,
            Self::Rpc(RpcError::Json(crate::json::JsonError::TooLarge { .. })) => {
                Reason::UpstreamTooLarge
            }
            Self::Rpc(_) | Self::RequestUnexpected | Self::InputRequired(_) => {
                Reason::UpstreamMalformed
            }
        }
    }
}

/// How a call ended, for its outcome record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ResultKind {
    /// A result.
    Complete,
    /// A tool's result with `isError`.
    ToolError,
    /// The server asks for input and ends the call.
    InputRequired,
    /// The server goes on with it as a task.
    Task,
    /// A JSON-RPC error.
    Error,
    /// A `resultType` that is not known: of an extension, to be treated as an error by the client.
    Unknown,
}

/// One request that a modern server embeds in a result.
#[derive(Clone, Debug, PartialEq)]
pub struct InputRequest {
    /// The server's key for it.
    pub key: String,
    /// What is asked.
    pub method: ServerMethod,
    /// The action, to be decided.
    pub action: Action,
}

/// Parses a message of the upstream `server`.
///
/// # Errors
/// When it is not exactly one known message.
pub fn parse_server(
    server: &str,
    era: Era,
    bytes: Bytes,
    limits: Limits,
) -> Result<ServerMessage, ServerError> {
    let RawMessage { bytes, message } = RawMessage::parse(bytes, limits)?;
    let named = |name: &str, notification: bool| {
        ServerMethod::from_name(name)
            .filter(|method| method.is_notification() == notification)
            .ok_or(ServerError::MethodUnknown)
    };
    let kind = match message {
        Message::Response { id, outcome } => ServerKind::Response { id, outcome },
        Message::Notification { method, params } => {
            ServerKind::Notification { method: named(&method, true)?, params }
        }
        Message::Request { .. } if era.is_modern() => return Err(ServerError::RequestUnexpected),
        Message::Request { id, method, params } => {
            let method = named(&method, false)?;
            ServerKind::Request { id, method, action: request_action(server, method, params) }
        }
    };
    Ok(ServerMessage { bytes, kind })
}

/// The action of a server's request. `_meta` is not judged.
fn request_action(server: &str, method: ServerMethod, mut params: Map<String, Value>) -> Action {
    params.shift_remove("_meta");
    let mut action = empty_action(server, ActionKind::ServerRequest, method.as_str());
    action.arguments = Value::Object(params);
    action
}

/// How the answer to a call is to be recorded.
#[must_use]
pub fn result_kind(outcome: &Outcome) -> ResultKind {
    let result = match outcome {
        Outcome::Error { .. } => return ResultKind::Error,
        Outcome::Result(result) => result,
    };
    match result.get("resultType") {
        // Legacy results have none, and mark a task by its member (2025-11-25, utilities/tasks).
        None if result.pointer("/task/taskId").is_some() => ResultKind::Task,
        None if result.get("isError") == Some(&Value::Bool(true)) => ResultKind::ToolError,
        None => ResultKind::Complete,
        Some(Value::String(kind)) => match kind.as_str() {
            "complete" if result.get("isError") == Some(&Value::Bool(true)) => {
                ResultKind::ToolError
            }
            "complete" => ResultKind::Complete,
            "input_required" => ResultKind::InputRequired,
            "task" => ResultKind::Task,
            _ => ResultKind::Unknown,
        },
        Some(_) => ResultKind::Unknown,
    }
}

/// The requests embedded in the answer to `asked`: of an `input_required` result, or of a task that
/// waits for input. Empty for other results.
///
/// # Errors
/// When they are malformed, unknown, or on a method that cannot have any.
pub fn input_requests(
    server: &str,
    asked: ClientMethod,
    outcome: &Outcome,
) -> Result<Vec<InputRequest>, ServerError> {
    let Outcome::Result(result) = outcome else { return Ok(Vec::new()) };
    let requests = result.get("inputRequests");
    if result_kind(outcome) == ResultKind::InputRequired {
        if !asked.may_require_input() {
            return Err(ServerError::InputRequired("the method has no such result"));
        }
        if requests.is_none() && !result.get("requestState").is_some_and(Value::is_string) {
            return Err(ServerError::InputRequired(
                "it has neither `inputRequests` nor `requestState`",
            ));
        }
    }
    match requests {
        None => Ok(Vec::new()),
        Some(requests) => embedded(server, requests),
    }
}

/// The requests embedded in a `notifications/tasks` (SEP-2663), which carries a whole task.
///
/// # Errors
/// When they are malformed or unknown.
pub fn task_input_requests(
    server: &str,
    params: &Map<String, Value>,
) -> Result<Vec<InputRequest>, ServerError> {
    params.get("inputRequests").map_or(Ok(Vec::new()), |requests| embedded(server, requests))
}

fn embedded(server: &str, requests: &Value) -> Result<Vec<InputRequest>, ServerError> {
    let requests = requests
        .as_object()
        .ok_or(ServerError::InputRequired("`inputRequests` is not an object"))?;
    let mut found = Vec::with_capacity(requests.len());
    for (key, request) in requests {
        let method = request
            .get("method")
            .and_then(Value::as_str)
            .and_then(ServerMethod::from_name)
            .filter(|method| method.is_input_request())
            .ok_or(ServerError::MethodUnknown)?;
        let params = match request.get("params") {
            None => Map::new(),
            Some(Value::Object(params)) => params.clone(),
            Some(_) => return Err(ServerError::InputRequired("`params` is not an object")),
        };
        found.push(InputRequest {
            key: key.clone(),
            method,
            action: request_action(server, method, params),
        });
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::mcp::LegacyVersion;

    const LEGACY: Era = Era::Legacy(LegacyVersion::V2025_11_25);

    fn parse(era: Era, message: &Value) -> Result<ServerMessage, ServerError> {
        parse_server("files", era, Bytes::from(message.to_string()), Limits::default())
    }

    #[test]
    fn server_requests_of_both_eras_are_governed() {
        let params =
            json!({ "mode": "url", "message": "m", "url": "https://x/", "_meta": { "a": 1 } });
        let legacy =
            json!({ "jsonrpc": "2.0", "id": 4, "method": "elicitation/create", "params": params });
        let ServerKind::Request { id, method, action } = parse(LEGACY, &legacy).unwrap().kind
        else {
            panic!()
        };
        assert_eq!(
            (id, method, action.kind),
            (Id::Integer(4), ServerMethod::Elicit, ActionKind::ServerRequest)
        );
        assert_eq!(action.arguments, json!({ "mode": "url", "message": "m", "url": "https://x/" }));
        assert_eq!(parse(Era::Modern, &legacy).unwrap_err(), ServerError::RequestUnexpected);

        let result = json!({ "resultType": "input_required", "inputRequests": { "k": { "method": "elicitation/create", "params": params } } });
        let embedded =
            input_requests("files", ClientMethod::ToolsCall, &Outcome::Result(result)).unwrap();
        assert_eq!(embedded[0].key, "k");
        assert_eq!(embedded[0].action, action);
    }

    #[test]
    fn malformed_input_requests_are_refused() {
        let check = |asked, result: Value| input_requests("files", asked, &Outcome::Result(result));
        let call = ClientMethod::ToolsCall;
        assert!(check(call, json!({ "resultType": "input_required" })).is_err());
        assert!(
            check(call, json!({ "resultType": "input_required", "inputRequests": [] })).is_err()
        );
        assert!(
            check(call, json!({ "resultType": "input_required", "inputRequests": { "k": {} } }))
                .is_err()
        );
        // A client's method, and methods that servers have but may not embed.
        for method in ["tools/call", "ping", "tasks/get", "notifications/message"] {
            let embedded = json!({ "resultType": "input_required", "inputRequests": { "k": { "method": method } } });
            assert_eq!(check(call, embedded), Err(ServerError::MethodUnknown), "{method}");
        }
        let state = json!({ "resultType": "input_required", "requestState": "opaque" });
        assert_eq!(check(call, state.clone()), Ok(Vec::new()));
        assert!(check(ClientMethod::ToolsList, state).is_err());
        // A task that waits for input carries them under another result type.
        let task = json!({ "resultType": "complete", "taskId": "t", "inputRequests": { "k": { "method": "roots/list" } } });
        assert_eq!(check(ClientMethod::TasksGet, task).unwrap().len(), 1);
    }

    #[test]
    fn unknown_server_methods_are_refused() {
        for message in [
            json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call" }),
            json!({ "jsonrpc": "2.0", "method": "notifications/vendor" }),
            json!({ "jsonrpc": "2.0", "id": 1, "method": "notifications/message" }),
            json!({ "jsonrpc": "2.0", "method": "roots/list" }),
        ] {
            assert_eq!(parse(LEGACY, &message).unwrap_err(), ServerError::MethodUnknown);
        }
    }

    #[test]
    fn result_kinds_are_told_apart() {
        let kind = |result: Value| result_kind(&Outcome::Result(result));
        assert_eq!(kind(json!({})), ResultKind::Complete);
        assert_eq!(kind(json!({ "isError": true })), ResultKind::ToolError);
        assert_eq!(kind(json!({ "task": { "taskId": "t" } })), ResultKind::Task);
        assert_eq!(
            kind(json!({ "resultType": "complete", "isError": true })),
            ResultKind::ToolError
        );
        assert_eq!(kind(json!({ "resultType": "input_required" })), ResultKind::InputRequired);
        assert_eq!(kind(json!({ "resultType": "task" })), ResultKind::Task);
        assert_eq!(kind(json!({ "resultType": "x" })), ResultKind::Unknown);
        assert_eq!(kind(json!({ "resultType": 1 })), ResultKind::Unknown);
        let error = Outcome::Error { code: -1, message: String::new(), data: None };
        assert_eq!(result_kind(&error), ResultKind::Error);
    }
}
