//! The parameters of an operation in one form, whichever version and binding they came by.
//!
//! That form is 1.0's (`a2a.proto`). Two things of a request are no parameters: its id and the
//! message's id, which only tell it from its repetition. Secrets that go with a webhook are stood
//! for by their SHA-256.

use aegis_core::Digest;
use serde_json::{Map, Value};

use super::{
    Operation, ProtocolError, Version,
    fields::{self, canonical},
};

type Members = Map<String, Value>;

/// The parameters in 1.0's form. `path` are the members that the path names.
pub(super) fn normal(
    operation: Operation,
    version: Version,
    params: Members,
    path: &[(&'static str, &str)],
) -> Result<Members, ProtocolError> {
    let sends = matches!(operation, Operation::SendMessage | Operation::SendStreamingMessage);
    let mut params = match (version, sends) {
        (Version::V1_0, true) => canonical(params, fields::SEND)?,
        (Version::V1_0, false) => canonical(params, fields::REFER)?,
        (Version::V0_3, true) => send_of_0_3(canonical(params, fields::SEND_0_3)?)?,
        (Version::V0_3, false) => {
            refer_of_0_3(operation, canonical(params, fields::REFER_0_3)?, path.is_empty())?
        }
    };
    for (name, value) in path {
        agree(&mut params, name, value)?;
    }
    if sends {
        message(&mut params)?;
        if let Some(Value::Object(configuration)) = params.get_mut("configuration")
            && let Some(Value::Object(push)) = configuration.get_mut("taskPushNotificationConfig")
        {
            conceal(push);
        }
        // Empty is absent.
        let empty = |value: &Value| value.as_object().is_some_and(Map::is_empty);
        if params.get("configuration").is_some_and(empty) {
            params.shift_remove("configuration");
        }
    }
    conceal(&mut params);
    Ok(params)
}

/// Puts a member that the path names; the body may name it too, but nothing else.
fn agree(params: &mut Members, name: &'static str, value: &str) -> Result<(), ProtocolError> {
    match params.get(name) {
        Some(Value::String(body)) if body == value => Ok(()),
        Some(_) => Err(ProtocolError::PathMismatch(name)),
        None => {
            params.insert(name.to_owned(), value.into());
            Ok(())
        }
    }
}

/// Checks the message and puts its role into one form.
fn message(params: &mut Members) -> Result<(), ProtocolError> {
    let Some(Value::Object(message)) = params.get_mut("message") else {
        return Err(ProtocolError::Param("message"));
    };
    message.shift_remove("messageId");
    if let Some(role) = message.get_mut("role") {
        let known = match role {
            Value::String(text) if text == "user" || text == "ROLE_USER" => "ROLE_USER",
            Value::String(text) if text == "agent" || text == "ROLE_AGENT" => "ROLE_AGENT",
            Value::Number(number) if number.as_i64() == Some(1) => "ROLE_USER",
            Value::Number(number) if number.as_i64() == Some(2) => "ROLE_AGENT",
            _ => return Err(ProtocolError::Param("role")),
        };
        *role = known.into();
    }
    if !message.contains_key("parts") {
        return Err(ProtocolError::Param("parts"));
    }
    Ok(())
}

/// Lets digests stand for what only the webhook's owner may know.
fn conceal(push: &mut Members) {
    let hide = |members: &mut Members, name: &str| {
        if let Some(Value::String(secret)) = members.get_mut(name) {
            *secret = Digest::of(secret.as_bytes()).to_string();
        }
    };
    hide(push, "token");
    if let Some(Value::Object(authentication)) = push.get_mut("authentication") {
        hide(authentication, "credentials");
    }
}

/// Takes the one of two members that say the same thing; not both.
fn either(
    members: &mut Members,
    one: &'static str,
    other: &str,
) -> Result<Option<Value>, ProtocolError> {
    match (members.shift_remove(one), members.shift_remove(other)) {
        (Some(_), Some(_)) => Err(ProtocolError::Ambiguous(one)),
        (one, other) => Ok(one.or(other)),
    }
}

/// Puts a member under the name that 1.0 has for it. Whoever sent that name too would have one of them
/// judged and both forwarded.
fn place(members: &mut Members, name: &'static str, value: Value) -> Result<(), ProtocolError> {
    match members.insert(name.to_owned(), value) {
        None => Ok(()),
        Some(_) => Err(ProtocolError::Ambiguous(name)),
    }
}

fn send_of_0_3(mut params: Members) -> Result<Members, ProtocolError> {
    let Some(Value::Object(mut message)) = either(&mut params, "message", "request")? else {
        return Err(ProtocolError::Param("message"));
    };
    message.shift_remove("kind");
    if let Some(Value::Array(parts)) = either(&mut message, "parts", "content")? {
        let parts = parts.into_iter().map(part_of_0_3).collect::<Result<_, _>>()?;
        place(&mut message, "parts", Value::Array(parts))?;
    }
    place(&mut params, "message", Value::Object(message))?;
    if let Some(Value::Object(configuration)) = params.get_mut("configuration") {
        // Both wait for the task's end unless they are told not to.
        if configuration.shift_remove("blocking") == Some(Value::Bool(false)) {
            place(configuration, "returnImmediately", true.into())?;
        }
        let push = either(configuration, "pushNotificationConfig", "pushNotification")?;
        if let Some(Value::Object(mut push)) = push {
            one_scheme(&mut push);
            place(configuration, "taskPushNotificationConfig", Value::Object(push))?;
        }
    }
    Ok(params)
}

/// 1.0 has one scheme where 0.3 has a list.
fn one_scheme(push: &mut Members) {
    if let Some(Value::Object(authentication)) = push.get_mut("authentication")
        && let Some(Value::Array(schemes)) = authentication.get("schemes")
        && let ([scheme], false) = (schemes.as_slice(), authentication.contains_key("scheme"))
    {
        let scheme = scheme.clone();
        authentication.shift_remove("schemes");
        authentication.insert("scheme".to_owned(), scheme);
    }
}

fn part_of_0_3(part: Value) -> Result<Value, ProtocolError> {
    let Value::Object(mut part) = part else { return Err(ProtocolError::Param("parts")) };
    let plain = part.shift_remove("kind").is_some();
    if let Some(Value::Object(mut file)) = part.shift_remove("file") {
        let content = [("raw", "bytes", "fileWithBytes"), ("url", "uri", "fileWithUri")];
        for (name, one, other) in content {
            if let Some(value) = either(&mut file, one, other)? {
                place(&mut part, name, value)?;
            }
        }
        for (name, old) in [("mediaType", "mimeType"), ("filename", "name")] {
            if let Some(value) = file.shift_remove(old) {
                place(&mut part, name, value)?;
            }
        }
        for (name, value) in file {
            if part.insert(format!("file.{name}"), value).is_some() {
                return Err(ProtocolError::Ambiguous("file"));
            }
        }
    }
    // In the proto of 0.3, data is wrapped once more.
    if !plain && let Some(Value::Object(wrapped)) = part.get_mut("data") {
        let inner = (wrapped.len() == 1).then(|| wrapped.shift_remove("data")).flatten();
        part.insert("data".to_owned(), inner.ok_or(ProtocolError::Param("data"))?);
    }
    Ok(Value::Object(part))
}

/// A request that refers to a task. Without a path, `id` is the task's and the configuration has a
/// member of its own; with one, the body is that of the proto, whose names are paths.
fn refer_of_0_3(
    operation: Operation,
    mut params: Members,
    by_rpc: bool,
) -> Result<Members, ProtocolError> {
    let config = matches!(
        operation,
        Operation::CreatePushConfig
            | Operation::GetPushConfig
            | Operation::ListPushConfigs
            | Operation::DeletePushConfig
    );
    for name in ["name", "parent"] {
        resource_name(&mut params, name)?;
    }
    if let Some(Value::Object(mut wrapped)) = params.shift_remove("config") {
        resource_name(&mut wrapped, "name")?;
        for (name, value) in wrapped {
            put(&mut params, &name, value)?;
        }
    }
    if config && by_rpc && operation != Operation::CreatePushConfig {
        if let Some(task) = params.shift_remove("id") {
            put(&mut params, "taskId", task)?;
        }
        if let Some(id) = params.shift_remove("pushNotificationConfigId") {
            put(&mut params, "id", id)?;
        }
    }
    if !config && let Some(task) = params.shift_remove("taskId") {
        put(&mut params, "id", task)?;
    }
    if let Some(id) = params.shift_remove("configId") {
        put(&mut params, "id", id)?;
    }
    if let Some(Value::Object(mut push)) = params.shift_remove("pushNotificationConfig") {
        one_scheme(&mut push);
        for (name, value) in push {
            put(&mut params, &name, value)?;
        }
    }
    Ok(params)
}

/// Reads `tasks/{task}[/pushNotificationConfigs[/{id}]]`, as the proto of 0.3 names things.
fn resource_name(params: &mut Members, member: &'static str) -> Result<(), ProtocolError> {
    let Some(Value::String(name)) = params.shift_remove(member) else { return Ok(()) };
    let segments: Vec<&str> = name.split('/').collect();
    let (task, config) = match segments.as_slice() {
        ["tasks", task] | ["tasks", task, "pushNotificationConfigs"] => (*task, None),
        ["tasks", task, "pushNotificationConfigs", config] => (*task, Some(*config)),
        _ => return Err(ProtocolError::Param(member)),
    };
    put(params, "taskId", task.into())?;
    config.map_or(Ok(()), |config| put(params, "id", config.into()))
}

/// Puts a member that another may have named already, if it says the same.
fn put(params: &mut Members, name: &str, value: Value) -> Result<(), ProtocolError> {
    match params.get(name) {
        Some(there) if *there != value => Err(ProtocolError::Ambiguous("a task or configuration")),
        Some(_) => Ok(()),
        None => {
            params.insert(name.to_owned(), value);
            Ok(())
        }
    }
}
