//! What a client sends, parsed once: bytes and headers → message → [`Action`].

use std::borrow::Cow;

use aegis_core::{
    Digest,
    action::{Action, ActionKind, Protocol},
};
use bytes::Bytes;
use http::HeaderMap;
use serde_json::{Map, Value};

use super::{
    ClientMethod, Era, HeaderError, HeaderParam, LegacyVersion, META_CAPABILITIES, META_VERSION,
    ProtocolError, RESERVED_PREFIX, Refusal, ServerMethod, header, name, uri,
};
use crate::{
    json::Limits,
    jsonrpc::{Id, Message, Outcome, RawMessage},
};

/// How a message came.
#[derive(Clone, Copy, Debug)]
pub enum Transport<'a> {
    /// Streamable HTTP: the request's headers mirror its body.
    Http(&'a HeaderMap),
    /// Newline-delimited on a byte stream: there are no headers (basic/transports/stdio).
    Stdio,
}

/// A message of a client, judged by its [`action`](Self::action) and forwarded by its
/// [`bytes`](Self::bytes).
#[derive(Clone, Debug, PartialEq)]
pub struct ClientMessage {
    bytes: Bytes,
    era: Era,
    kind: ClientKind,
    action: Action,
    meta: Map<String, Value>,
    resources: Vec<String>,
}

/// What a client's message is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientKind {
    /// A request; the response must carry this id.
    Request(Id, ClientMethod),
    /// A notification.
    Notification(ClientMethod),
    /// A legacy client's answer to a request of the server.
    Response(Option<Id>),
}

/// Parses a client's message for the upstream `server`.
///
/// Arguments of the action: for `tools/call`, `prompts/get` and `resources/read`, the call's own
/// arguments; whatever else `params` holds is judged too, each member under `io.modelcontextprotocol/`
/// and its name, so that `inputResponses` of a retry or `task` of a legacy call can be seen by
/// policies and change the digest. `requestState` is opaque and the sender's claim: its SHA-256
/// stands for it. For other methods the arguments are `params`. `_meta`, ids and `clientInfo`, which
/// nobody verifies, are never arguments.
///
/// # Errors
/// When the message is not exactly one known message whose headers agree with its body.
pub fn parse_client(
    server: &str,
    transport: Transport<'_>,
    body: Bytes,
    limits: Limits,
) -> Result<ClientMessage, Refusal> {
    let raw = RawMessage::parse(body, limits).map_err(|error| {
        let id = error.id().cloned();
        Refusal { error: error.into(), id, era: transport_era(transport), one_way: false }
    })?;
    let (id, one_way) = match &raw.message {
        Message::Request { id, .. } => (Some(id.clone()), false),
        Message::Notification { .. } => (None, true),
        Message::Response { id, .. } => (id.clone(), true),
    };
    let mut era = transport_era(transport);
    interpret(server, transport, raw, &mut era).map_err(|error| Refusal { error, id, era, one_way })
}

/// The era that the headers alone tell.
fn transport_era(transport: Transport<'_>) -> Option<Era> {
    let Transport::Http(headers) = transport else { return None };
    header::text(headers, header::VERSION).ok().flatten().and_then(Era::of_version)
}

fn interpret(
    server: &str,
    transport: Transport<'_>,
    raw: RawMessage,
    told: &mut Option<Era>,
) -> Result<ClientMessage, ProtocolError> {
    let RawMessage { bytes, message } = raw;
    if let Transport::Http(headers) = transport {
        header::check_single(headers)?;
    }
    let (id, method, mut params) = match message {
        Message::Request { id, method, params } => (Some(id), method, params),
        Message::Notification { method, params } => (None, method, params),
        Message::Response { id, outcome } => return answer(server, transport, bytes, id, outcome),
    };
    let meta = match params.swap_remove("_meta") {
        None => Map::new(),
        Some(Value::Object(meta)) => meta,
        Some(_) => return Err(ProtocolError::Param("_meta")),
    };
    let era = era_of(transport, id.is_some(), &method, &params, &meta)?;
    *told = Some(era);
    let method = ClientMethod::from_name(&method)
        .filter(|method| method.exists_in(era) && method.is_notification() == id.is_none())
        .ok_or(ProtocolError::MethodUnknown);
    if era.is_modern() && id.is_some() && !meta.get(META_CAPABILITIES).is_some_and(Value::is_object)
    {
        return Err(ProtocolError::MetaMissing(META_CAPABILITIES));
    }
    let method = method?;
    if let Transport::Http(headers) = transport {
        header::check_mirrors(headers, method, &params, era.is_modern() && id.is_some())?;
    }
    let (action, resources) = action(server, method, params)?;
    let kind = match id {
        Some(id) => ClientKind::Request(id, method),
        None => ClientKind::Notification(method),
    };
    Ok(ClientMessage { bytes, era, kind, action, meta, resources })
}

/// The era, from the version header and the body, which must agree.
fn era_of(
    transport: Transport<'_>,
    request: bool,
    method: &str,
    params: &Map<String, Value>,
    meta: &Map<String, Value>,
) -> Result<Era, ProtocolError> {
    let known = |version: &str| {
        Era::of_version(version).ok_or_else(|| ProtocolError::VersionUnsupported {
            requested: version.chars().take(40).collect(),
        })
    };
    let in_body = match meta.get(META_VERSION) {
        None => None,
        Some(Value::String(version)) => Some(version.as_str()),
        Some(_) => return Err(ProtocolError::MetaMissing(META_VERSION)),
    };
    let Transport::Http(headers) = transport else {
        return match in_body {
            Some(version) => known(version),
            None => Ok(Era::Legacy(opened_version(method, params))),
        };
    };
    match (header::text(headers, header::VERSION)?, in_body) {
        (Some(header), Some(body)) if header != body => {
            Err(HeaderError::Mismatch(header::VERSION.to_owned()).into())
        }
        (Some(version), Some(_)) => known(version),
        (Some(version), None) => match known(version)? {
            Era::Modern if request => Err(ProtocolError::MetaMissing(META_VERSION)),
            era => Ok(era),
        },
        (None, Some(_)) => Err(HeaderError::Missing(header::VERSION.to_owned()).into()),
        (None, None) => Ok(Era::Legacy(opened_version(method, params))),
    }
}

/// The version that `initialize` proposes; what a message without any is assumed to speak otherwise.
/// An unknown proposal is the server's to negotiate.
fn opened_version(method: &str, params: &Map<String, Value>) -> LegacyVersion {
    let proposed = params.get("protocolVersion").and_then(Value::as_str).and_then(Era::of_version);
    match (method, proposed) {
        ("initialize", Some(Era::Legacy(version))) => version,
        ("initialize", _) => LegacyVersion::V2025_11_25,
        _ => LegacyVersion::ASSUMED,
    }
}

fn answer(
    server: &str,
    transport: Transport<'_>,
    bytes: Bytes,
    id: Option<Id>,
    outcome: Outcome,
) -> Result<ClientMessage, ProtocolError> {
    let era = transport_era(transport).unwrap_or(Era::Legacy(LegacyVersion::ASSUMED));
    if let Transport::Http(headers) = transport
        && let Some(version) = header::text(headers, header::VERSION)?
        && Era::of_version(version).is_none()
    {
        let requested = version.chars().take(40).collect();
        return Err(ProtocolError::VersionUnsupported { requested });
    }
    if era.is_modern() {
        return Err(ProtocolError::ResponseUnexpected);
    }
    let (name, mut value) = match outcome {
        Outcome::Result(result) => ("result", result),
        Outcome::Error { code, message, data } => {
            let members =
                [("code", Value::from(code)), ("message", message.into()), ("data", data.into())];
            ("error", members.into_iter().map(|(name, value)| (name.to_owned(), value)).collect())
        }
    };
    if let Value::Object(members) = &mut value {
        members.shift_remove("_meta");
    }
    let arguments = Value::Object([(name.to_owned(), value)].into_iter().collect());
    let mut action = empty_action(server, ActionKind::ServerRequest, "response");
    action.arguments = arguments;
    let kind = ClientKind::Response(id);
    Ok(ClientMessage { bytes, era, kind, action, meta: Map::new(), resources: Vec::new() })
}

pub(super) fn empty_action(server: &str, kind: ActionKind, method: &str) -> Action {
    Action {
        kind,
        protocol: Protocol::Mcp,
        method: method.to_owned(),
        server: server.to_owned(),
        tool: None,
        tool_pin: None,
        resource: None,
        arguments: Value::Object(Map::new()),
    }
}

fn action(
    server: &str,
    method: ClientMethod,
    mut params: Map<String, Value>,
) -> Result<(Action, Vec<String>), ProtocolError> {
    let mut action = empty_action(server, method.kind(), method.as_str());
    let mut resources = Vec::new();
    match method {
        ClientMethod::ToolsCall => action.tool = Some(take_name(&mut params, "tool")?),
        ClientMethod::PromptsGet => action.tool = Some(take_name(&mut params, "prompt")?),
        ClientMethod::ResourcesRead
        | ClientMethod::ResourcesSubscribe
        | ClientMethod::ResourcesUnsubscribe => {
            let text = take_string(&mut params, "uri")?;
            action.resource = Some(canonical(&text)?);
        }
        ClientMethod::Complete => complete_reference(&mut action, &params)?,
        ClientMethod::Listen => resources = listened_resources(&params)?,
        ClientMethod::TasksGet
        | ClientMethod::TasksResult
        | ClientMethod::TasksUpdate
        | ClientMethod::TasksCancel
            if !params.get("taskId").is_some_and(Value::is_string) =>
        {
            return Err(ProtocolError::Param("taskId"));
        }
        ClientMethod::Initialize => {
            params.shift_remove("clientInfo");
        }
        _ => {}
    }
    let arguments = if method.may_require_input() { call_arguments(params)? } else { params };
    action.arguments = Value::Object(arguments);
    Ok((action, resources))
}

fn take_string(
    params: &mut Map<String, Value>,
    member: &'static str,
) -> Result<String, ProtocolError> {
    match params.shift_remove(member) {
        Some(Value::String(text)) => Ok(text),
        _ => Err(ProtocolError::Param(member)),
    }
}

fn canonical(text: &str) -> Result<String, ProtocolError> {
    let canonical = uri::canonical(text);
    canonical.map(Cow::into_owned).map_err(|error| ProtocolError::of_uri(error, text))
}

fn take_name(params: &mut Map<String, Value>, what: &'static str) -> Result<String, ProtocolError> {
    let text = take_string(params, "name")?;
    name::check(&text).map_err(|error| ProtocolError::of_name(error, what, &text))?;
    Ok(text)
}

/// The arguments of a call and, under reserved names, whatever else its parameters hold.
fn call_arguments(mut params: Map<String, Value>) -> Result<Map<String, Value>, ProtocolError> {
    let mut arguments = match params.shift_remove("arguments") {
        None => Map::new(),
        Some(Value::Object(arguments)) => arguments,
        Some(_) => return Err(ProtocolError::Param("arguments")),
    };
    if arguments.keys().any(|name| name.starts_with(RESERVED_PREFIX)) {
        return Err(ProtocolError::ReservedArgument);
    }
    if params.get("inputResponses").is_some_and(|responses| !responses.is_object()) {
        return Err(ProtocolError::Param("inputResponses"));
    }
    for (name, mut value) in params {
        if name == "requestState" {
            let Value::String(state) = &value else {
                return Err(ProtocolError::Param("requestState"));
            };
            value = Value::String(Digest::of(state.as_bytes()).to_string());
        }
        arguments.insert(format!("{RESERVED_PREFIX}{name}"), value);
    }
    Ok(arguments)
}

fn complete_reference(
    action: &mut Action,
    params: &Map<String, Value>,
) -> Result<(), ProtocolError> {
    let reference =
        params.get("ref").and_then(Value::as_object).ok_or(ProtocolError::Param("ref"))?;
    let text =
        |member| reference.get(member).and_then(Value::as_str).ok_or(ProtocolError::Param("ref"));
    match text("type")? {
        "ref/prompt" => {
            let prompt = text("name")?;
            name::check(prompt).map_err(|error| ProtocolError::of_name(error, "prompt", prompt))?;
            action.tool = Some(prompt.to_owned());
        }
        "ref/resource" => {
            let template = text("uri")?;
            let canonical = uri::canonical_template(template);
            let canonical = canonical.map_err(|error| ProtocolError::of_uri(error, template))?;
            action.resource = Some(canonical.into_owned());
        }
        _ => return Err(ProtocolError::Param("ref")),
    }
    Ok(())
}

/// The resources that a `subscriptions/listen` names, in canonical form.
fn listened_resources(params: &Map<String, Value>) -> Result<Vec<String>, ProtocolError> {
    let wrong = || ProtocolError::Param("notifications");
    let filter = params.get("notifications").and_then(Value::as_object).ok_or_else(wrong)?;
    let uris = match filter.get("resourceSubscriptions") {
        None => return Ok(Vec::new()),
        Some(value) => value.as_array().ok_or_else(wrong)?,
    };
    uris.iter().map(|value| canonical(value.as_str().ok_or_else(wrong)?)).collect()
}

impl ClientMessage {
    /// The bytes that were judged: exactly what is forwarded.
    #[must_use]
    pub const fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The sender's era.
    #[must_use]
    pub const fn era(&self) -> Era {
        self.era
    }

    /// What it is.
    #[must_use]
    pub const fn kind(&self) -> &ClientKind {
        &self.kind
    }

    /// The method; a response has none.
    #[must_use]
    pub const fn method(&self) -> Option<ClientMethod> {
        match self.kind {
            ClientKind::Request(_, method) | ClientKind::Notification(method) => Some(method),
            ClientKind::Response(_) => None,
        }
    }

    /// The id of a request.
    #[must_use]
    pub const fn request_id(&self) -> Option<&Id> {
        match &self.kind {
            ClientKind::Request(id, _) => Some(id),
            _ => None,
        }
    }

    /// What it wants.
    #[must_use]
    pub const fn action(&self) -> &Action {
        &self.action
    }

    /// Binds the action to the pinned definition of its tool.
    pub fn set_tool_pin(&mut self, pin: Digest) {
        self.action.tool_pin = Some(pin);
    }

    /// For an answer: binds the action to what the server had asked.
    pub fn set_answered(&mut self, asked: ServerMethod) {
        if matches!(self.kind, ClientKind::Response(_)) {
            asked.as_str().clone_into(&mut self.action.method);
        }
    }

    /// The request's `_meta`, which is never judged: trace context, progress token, capabilities.
    #[must_use]
    pub const fn meta(&self) -> &Map<String, Value> {
        &self.meta
    }

    /// One action per resource that a `subscriptions/listen` wants to watch. All of them must be
    /// allowed, beside the message's own action.
    #[must_use]
    pub fn resource_actions(&self) -> Vec<Action> {
        let of = |resource: &String| Action {
            resource: Some(resource.clone()),
            arguments: Value::Object(Map::new()),
            ..self.action.clone()
        };
        self.resources.iter().map(of).collect()
    }

    /// Whether it retries a call with input that the upstream asked for (basic/patterns/mrtr).
    #[must_use]
    pub fn is_retry(&self) -> bool {
        let has =
            |name: &str| self.action.arguments.get(format!("{RESERVED_PREFIX}{name}")).is_some();
        self.method().is_some_and(ClientMethod::may_require_input)
            && (has("inputResponses") || has("requestState"))
    }

    /// Compares the `Mcp-Param-*` headers that the called tool designates with the arguments. Only
    /// the modern era has them.
    ///
    /// # Errors
    /// When one is missing or says something else.
    pub fn check_params(
        &self,
        headers: &HeaderMap,
        params: &[HeaderParam],
    ) -> Result<(), HeaderError> {
        if self.era.is_modern() {
            header::check_params(headers, params, &self.action.arguments)
        } else {
            Ok(())
        }
    }

    /// The action and the bytes, when the rest is done with.
    #[must_use]
    pub fn into_parts(self) -> (Action, Bytes) {
        (self.action, self.bytes)
    }
}

#[cfg(test)]
mod tests;
