//! What a client asks, parsed once: method, path, headers and body → operation →
//! [`Action`].

use std::collections::BTreeSet;

use aegis_core::action::{Action, Protocol};
use bytes::Bytes;
use http::{HeaderMap, Method};
use serde_json::{Map, Value};

use super::{
    Binding, EXTENSIONS_HEADER, Form, LEGACY_EXTENSIONS_HEADER, Operation, ProtocolError, Refusal,
    VERSION_HEADER, Version,
    normal::normal,
    path::{self, MAX_ID_BYTES, percent_decoded},
};
use crate::{
    json::{self, Limits},
    jsonrpc::{Message, RawMessage},
    mcp::name::is_invisible,
};

/// A request as it came over HTTP, but for its body.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// The HTTP method.
    pub method: &'a Method,
    /// The path, as it came.
    pub path: &'a str,
    /// The query, as it came.
    pub query: Option<&'a str>,
    /// The headers.
    pub headers: &'a HeaderMap,
    /// The path under which the agent is reached.
    pub base: &'a str,
}

/// What an answer is the answer to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Asked {
    /// How it is answered.
    pub form: Form,
    /// What was asked.
    pub operation: Operation,
    /// The task that it is about, where it names one.
    pub task: Option<String>,
}

/// A request of a client, judged by its [`action`](Self::action) and forwarded by its
/// [`bytes`](Self::bytes).
#[derive(Clone, Debug, PartialEq)]
pub struct ClientRequest {
    bytes: Bytes,
    asked: Asked,
    action: Action,
    tasks: Vec<String>,
    context: Option<String>,
    webhook: Option<String>,
}

/// How a request is spelled, and so answered, as far as its path tells.
#[must_use]
pub fn binding_of(received: &Received<'_>) -> Binding {
    if received.method == Method::POST && path::is_endpoint(received.base, received.path) {
        Binding::JsonRpc
    } else {
        Binding::HttpJson
    }
}

/// Parses a client's request to the agent `server`, which may ask for these `extensions`.
///
/// # Errors
/// When it is not exactly one known operation, or its parts contradict each other.
pub fn parse(
    server: &str,
    received: &Received<'_>,
    extensions: &[String],
    body: Bytes,
    limits: Limits,
) -> Result<ClientRequest, Refusal> {
    let mut form = Form { binding: binding_of(received), version: Version::V0_3, id: None };
    let result = match form.binding {
        Binding::JsonRpc => by_rpc(server, received, extensions, body, limits, &mut form),
        Binding::HttpJson => by_path(server, received, extensions, body, limits, &mut form),
    };
    result.map_err(|error| Refusal { error, form })
}

fn by_rpc(
    server: &str,
    received: &Received<'_>,
    extensions: &[String],
    body: Bytes,
    limits: Limits,
    form: &mut Form,
) -> Result<ClientRequest, ProtocolError> {
    let mut query = query(received.query)?;
    let told = version(received.headers, &mut query);
    if let Ok(Some(version)) = told {
        form.version = version;
    }
    let RawMessage { bytes, message } = RawMessage::parse(body, limits).inspect_err(|error| {
        form.id = error.id().cloned();
    })?;
    let Message::Request { id, method, params } = message else {
        return Err(ProtocolError::NotRequest);
    };
    form.id = Some(id);
    let version = told?.unwrap_or(Version::V0_3);
    if !query.is_empty() {
        return Err(ProtocolError::Query);
    }
    let operation =
        Operation::of_method(&method, version).ok_or(ProtocolError::OperationUnknown)?;
    let params = normal(operation, version, params, &[])?;
    request(server, operation, received.headers, extensions, bytes, params, form)
}

fn by_path(
    server: &str,
    received: &Received<'_>,
    extensions: &[String],
    body: Bytes,
    limits: Limits,
    form: &mut Form,
) -> Result<ClientRequest, ProtocolError> {
    let located = path::locate(received.method, received.base, received.path);
    let mut query = query(received.query)?;
    let told = version(received.headers, &mut query);
    form.version = match (&told, &located) {
        (Ok(Some(version)), _) => *version,
        (_, Ok(located)) => located.version.unwrap_or(Version::V1_0),
        _ => Version::V1_0,
    };
    let located = located?;
    match (located.version, told) {
        // Whoever looks for the card does not know the version yet.
        (None, _) => {}
        (Some(of_path), told) => match told? {
            Some(told) if told != of_path => return Err(ProtocolError::VersionMismatch),
            // An empty version is 0.3, whose paths are others.
            None if of_path == Version::V1_0 => return Err(ProtocolError::VersionUnsupported),
            _ => form.version = of_path,
        },
    }
    let mut params = match json_object(&body, limits)? {
        Some(_) if received.method != Method::POST => return Err(ProtocolError::BodyUnexpected),
        Some(members) if query.is_empty() => members,
        // One of them would not be looked at by somebody.
        Some(_) => return Err(ProtocolError::Query),
        None => query,
    };
    if located.operation == Operation::GetAgentCard {
        params.clear();
    }
    let mut named = Vec::new();
    let task = if names_task_by_id(located.operation) { "id" } else { "taskId" };
    for (name, value) in
        [("tenant", &located.tenant), (task, &located.task), ("id", &located.config)]
    {
        if let Some(value) = value {
            named.push((name, value.as_str()));
        }
    }
    let params = normal(located.operation, form.version, params, &named)?;
    request(server, located.operation, received.headers, extensions, body, params, form)
}

/// Whether the task is the operation's `id`, not its `taskId`.
const fn names_task_by_id(operation: Operation) -> bool {
    matches!(operation, Operation::GetTask | Operation::CancelTask | Operation::SubscribeToTask)
}

fn request(
    server: &str,
    operation: Operation,
    headers: &HeaderMap,
    known: &[String],
    bytes: Bytes,
    mut params: Map<String, Value>,
    form: &Form,
) -> Result<ClientRequest, ProtocolError> {
    let text = |value: Option<&Value>| value.and_then(Value::as_str).map(str::to_owned);
    let message = params.get("message").and_then(Value::as_object);
    let asked_for = extensions(headers, message)?;
    if operation != Operation::GetAgentCard {
        if asked_for.iter().any(|extension| !known.contains(extension)) {
            return Err(ProtocolError::ExtensionUnknown);
        }
        if params.contains_key(EXTENSIONS_HEADER) {
            return Err(ProtocolError::Reserved);
        }
    }
    let mut tasks: Vec<String> = Vec::new();
    let mut task = None;
    if let Some(message) = message {
        task = text(message.get("taskId"));
        let referred = message.get("referenceTaskIds").and_then(Value::as_array);
        tasks.extend(referred.into_iter().flatten().filter_map(|id| text(Some(id))));
    } else if operation != Operation::ListTasks && !operation.is_card() {
        let name = if names_task_by_id(operation) { "id" } else { "taskId" };
        task = Some(text(params.get(name)).ok_or(ProtocolError::Param(name))?);
        let config = matches!(operation, Operation::GetPushConfig | Operation::DeletePushConfig);
        // In 0.3 the only configuration of a task need not be named.
        if config && form.version == Version::V1_0 && !params.contains_key("id") {
            return Err(ProtocolError::Param("id"));
        }
    }
    tasks.extend(task.clone());
    let context = match message {
        Some(message) => text(message.get("contextId")),
        None => text(params.get("contextId")),
    };
    for id in tasks.iter().chain(&context) {
        if id.len() > MAX_ID_BYTES || id.chars().any(is_invisible) {
            return Err(ProtocolError::Param("id"));
        }
    }
    let webhook = match operation {
        Operation::CreatePushConfig => {
            Some(text(params.get("url")).ok_or(ProtocolError::Param("url"))?)
        }
        _ => match params.get("configuration").and_then(|c| c.get("taskPushNotificationConfig")) {
            None => None,
            Some(push) => Some(text(push.get("url")).ok_or(ProtocolError::Param("url"))?),
        },
    };
    if !asked_for.is_empty() && operation != Operation::GetAgentCard {
        let sorted = asked_for.into_iter().map(Value::String).collect();
        params.insert(EXTENSIONS_HEADER.to_owned(), Value::Array(sorted));
    }
    let action = action(server, operation, params);
    let asked = Asked { form: form.clone(), operation, task };
    Ok(ClientRequest { bytes, asked, action, tasks, context, webhook })
}

fn action(server: &str, operation: Operation, params: Map<String, Value>) -> Action {
    Action {
        kind: operation.kind(),
        protocol: Protocol::A2a,
        method: operation.as_str().to_owned(),
        server: server.to_owned(),
        tool: None,
        tool_pin: None,
        resource: None,
        arguments: Value::Object(params),
    }
}

/// The one value of a header that speaks for the request.
fn single<'a>(
    headers: &'a HeaderMap,
    name: &'static str,
) -> Result<Option<&'a str>, ProtocolError> {
    let mut values = headers.get_all(name).iter();
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(value), None) => value.to_str().map(Some).map_err(|_| ProtocolError::Header(name)),
        (Some(_), Some(_)) => Err(ProtocolError::Header(name)),
    }
}

/// The version that header and query name. Taken out of the query.
fn version(
    headers: &HeaderMap,
    query: &mut Map<String, Value>,
) -> Result<Option<Version>, ProtocolError> {
    let known = |text: &str| Version::of(text).ok_or(ProtocolError::VersionUnsupported);
    let named: Vec<String> =
        query.keys().filter(|name| name.eq_ignore_ascii_case(VERSION_HEADER)).cloned().collect();
    let mut told = single(headers, VERSION_HEADER)?.map(known).transpose()?;
    for name in named {
        let value = query.shift_remove(&name);
        let of_query = known(value.as_ref().and_then(Value::as_str).unwrap_or_default())?;
        if told.is_some_and(|told| told != of_query) {
            return Err(ProtocolError::VersionMismatch);
        }
        told = Some(of_query);
    }
    Ok(told)
}

/// The extensions that headers and message name, sorted.
fn extensions(
    headers: &HeaderMap,
    message: Option<&Map<String, Value>>,
) -> Result<BTreeSet<String>, ProtocolError> {
    let of = |name: &'static str| {
        let mut found = BTreeSet::new();
        for value in headers.get_all(name) {
            let value = value.to_str().map_err(|_| ProtocolError::Header(name))?;
            let named = value.split(',').map(str::trim).filter(|uri| !uri.is_empty());
            found.extend(named.map(str::to_owned));
        }
        Ok::<_, ProtocolError>(found)
    };
    let (mut named, legacy) = (of(EXTENSIONS_HEADER)?, of(LEGACY_EXTENSIONS_HEADER)?);
    if !named.is_empty() && !legacy.is_empty() && named != legacy {
        return Err(ProtocolError::ExtensionMismatch);
    }
    named.extend(legacy);
    let in_message = message.and_then(|message| message.get("extensions"));
    for extension in in_message.and_then(Value::as_array).into_iter().flatten() {
        named.extend(extension.as_str().map(str::to_owned));
    }
    Ok(named)
}

/// The parameters of a query (§11.5): each once. Flags and numbers are what they stand for.
fn query(text: Option<&str>) -> Result<Map<String, Value>, ProtocolError> {
    let mut members = Map::new();
    let pairs = text.unwrap_or_default().split('&').filter(|pair| !pair.is_empty());
    for pair in pairs {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decoded = |text: &str| percent_decoded(text.as_bytes(), true);
        let (Some(name), Some(value)) = (decoded(name), decoded(value)) else {
            return Err(ProtocolError::Query);
        };
        let flag = matches!(name.as_str(), "includeArtifacts" | "include_artifacts");
        let value = match value.as_str() {
            "true" if flag => Value::Bool(true),
            "false" if flag => Value::Bool(false),
            _ => Value::String(value),
        };
        if members.insert(name, value).is_some() {
            return Err(ProtocolError::Query);
        }
    }
    Ok(members)
}

/// The members of a body; `None` if there is no body.
fn json_object(body: &Bytes, limits: Limits) -> Result<Option<Map<String, Value>>, ProtocolError> {
    if body.is_empty() {
        return Ok(None);
    }
    match json::parse(body, limits)? {
        Value::Object(members) => Ok(Some(members)),
        _ => Err(ProtocolError::Param("body")),
    }
}

impl ClientRequest {
    /// The bytes that were judged: exactly what is forwarded.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// What it wants.
    #[must_use]
    pub const fn action(&self) -> &Action {
        &self.action
    }

    /// What its answer is the answer to.
    #[must_use]
    pub const fn asked(&self) -> &Asked {
        &self.asked
    }

    /// The tasks that it names: each must be the caller's.
    #[must_use]
    pub fn tasks(&self) -> &[String] {
        &self.tasks
    }

    /// The context that it names: nobody else's.
    #[must_use]
    pub fn context(&self) -> Option<&str> {
        self.context.as_deref()
    }

    /// Where the agent is to send news of a task.
    #[must_use]
    pub fn webhook(&self) -> Option<&str> {
        self.webhook.as_deref()
    }

    /// The message in parts: what its answer answers, its action, and the bytes to forward.
    #[must_use]
    pub fn into_parts(self) -> (Asked, Action, Bytes) {
        (self.asked, self.action, self.bytes)
    }
}

#[cfg(test)]
mod tests;
