//! The members of the protocol's objects, under one name each.
//!
//! ProtoJSON readers take `taskId` and `task_id`; some readers do not tell letters by their case;
//! and all of them take `null`, an empty text or `false` for a member that is absent. A policy that
//! looks at one spelling is evaded by another, so each known member is judged under its name in
//! camelCase (specification §5.5), is there once, and has its type. Members that the protocol does
//! not know stay as they are (§5.7) and are judged too.

use serde_json::{Map, Value};

use super::ProtocolError;

/// What a known member holds.
#[derive(Clone, Copy, Debug)]
pub(super) enum Type {
    /// Anything: free-form members such as `metadata`.
    Any,
    /// Text; empty is absent.
    Text,
    /// Text, of which the empty one is another than none.
    Content,
    /// `true` or `false`; `false` is absent.
    Flag,
    /// `true` or `false`, of which neither is absent.
    Choice,
    /// An integer, or one in a string.
    Count,
    /// A list of texts; empty is absent.
    Texts,
    /// An object.
    Object(&'static [Field]),
    /// A list of objects.
    Objects(&'static [Field]),
}

/// A known member.
pub(super) type Field = (&'static str, Type);

/// The members of an object under the names of `fields`.
pub(super) fn canonical(
    members: Map<String, Value>,
    fields: &[Field],
) -> Result<Map<String, Value>, ProtocolError> {
    let mut out = Map::new();
    let mut unknown: Vec<String> = Vec::new();
    for (name, value) in members {
        let own = folded(&name);
        let Some(&(known, kind)) = fields.iter().find(|(known, _)| folded(known) == own) else {
            if unknown.contains(&own) {
                return Err(ProtocolError::Ambiguous("an unknown member"));
            }
            unknown.push(own);
            out.insert(name, value);
            continue;
        };
        if (name != known && name != snake(known)) || out.contains_key(known) {
            return Err(ProtocolError::Ambiguous(known));
        }
        // Kept even where it counts as absent, so that a second spelling is noticed.
        let value = typed(value, kind).ok_or(ProtocolError::Param(known))?;
        out.insert(known.to_owned(), value?);
    }
    // A member of no known type may be null and mean it; of the known ones null is absent.
    out.retain(|name, value| !(value.is_null() && fields.iter().any(|(known, _)| known == name)));
    Ok(out)
}

/// The value in its one form; null where it counts as absent, `None` where its type is wrong.
fn typed(value: Value, kind: Type) -> Option<Result<Value, ProtocolError>> {
    let value = match (kind, value) {
        (_, Value::Null) => Value::Null,
        (Type::Any, value) => value,
        (Type::Text, Value::String(text)) if text.is_empty() => Value::Null,
        (Type::Flag, Value::Bool(false)) => Value::Null,
        (Type::Text | Type::Content, value @ Value::String(_)) => value,
        (Type::Flag | Type::Choice, value @ Value::Bool(_)) => value,
        (Type::Count, Value::Number(number)) => Value::from(number.as_i64()?),
        (Type::Count, Value::String(text)) => Value::from(text.parse::<i32>().ok()?),
        (Type::Texts | Type::Objects(_), Value::Array(items)) if items.is_empty() => Value::Null,
        (Type::Texts, Value::Array(items)) => {
            if !items.iter().all(Value::is_string) {
                return None;
            }
            Value::Array(items)
        }
        (Type::Object(fields), Value::Object(members)) => {
            return Some(canonical(members, fields).map(Value::Object));
        }
        (Type::Objects(fields), Value::Array(items)) => {
            let mut out = Vec::with_capacity(items.len());
            for item in items {
                let Value::Object(members) = item else { return None };
                match canonical(members, fields) {
                    Ok(members) => out.push(Value::Object(members)),
                    Err(error) => return Some(Err(error)),
                }
            }
            Value::Array(out)
        }
        _ => return None,
    };
    Some(Ok(value))
}

/// A name without its case and its underscores, as simple folding has it.
fn folded(name: &str) -> String {
    name.chars()
        .filter(|c| *c != '_')
        .flat_map(char::to_uppercase)
        .flat_map(char::to_lowercase)
        .collect()
}

/// A camelCase name in snake_case.
pub(super) fn snake(name: &str) -> String {
    let mut out = String::with_capacity(name.len() + 4);
    for c in name.chars() {
        if c.is_ascii_uppercase() {
            out.push('_');
        }
        out.push(c.to_ascii_lowercase());
    }
    out
}

/// A member of an answer, under either of its spellings.
pub(super) fn member<'a>(
    members: &'a Map<String, Value>,
    name: &str,
) -> Result<Option<&'a Value>, ProtocolError> {
    let own = folded(name);
    let mut named = members.iter().filter(|(other, _)| folded(other) == own);
    match (named.next(), named.next()) {
        (Some((_, value)), None) => Ok(Some(value).filter(|value| !value.is_null())),
        (None, _) => Ok(None),
        (Some(_), Some(_)) => Err(ProtocolError::Ambiguous("a known member")),
    }
}

const AUTHENTICATION: &[Field] =
    &[("scheme", Type::Text), ("schemes", Type::Texts), ("credentials", Type::Text)];

const PUSH: &[Field] = &[
    ("tenant", Type::Text),
    ("id", Type::Text),
    ("taskId", Type::Text),
    ("url", Type::Text),
    ("token", Type::Text),
    ("authentication", Type::Object(AUTHENTICATION)),
];

const PART: &[Field] = &[
    ("text", Type::Content),
    ("raw", Type::Content),
    ("url", Type::Content),
    ("data", Type::Any),
    ("metadata", Type::Any),
    ("filename", Type::Text),
    ("mediaType", Type::Text),
];

const MESSAGE: &[Field] = &[
    ("messageId", Type::Text),
    ("contextId", Type::Text),
    ("taskId", Type::Text),
    ("role", Type::Any),
    ("parts", Type::Objects(PART)),
    ("metadata", Type::Any),
    ("extensions", Type::Texts),
    ("referenceTaskIds", Type::Texts),
];

/// `SendMessageRequest` of 1.0.
pub(super) const SEND: &[Field] = &[
    ("tenant", Type::Text),
    ("message", Type::Object(MESSAGE)),
    (
        "configuration",
        Type::Object(&[
            ("acceptedOutputModes", Type::Texts),
            ("taskPushNotificationConfig", Type::Object(PUSH)),
            ("historyLength", Type::Count),
            ("returnImmediately", Type::Flag),
        ]),
    ),
    ("metadata", Type::Any),
];

/// Every other request of 1.0.
pub(super) const REFER: &[Field] = &[
    ("tenant", Type::Text),
    ("id", Type::Text),
    ("taskId", Type::Text),
    ("metadata", Type::Any),
    ("contextId", Type::Text),
    ("status", Type::Any),
    ("pageSize", Type::Count),
    ("pageToken", Type::Text),
    ("historyLength", Type::Count),
    ("statusTimestampAfter", Type::Text),
    ("includeArtifacts", Type::Flag),
    ("url", Type::Text),
    ("token", Type::Text),
    ("authentication", Type::Object(AUTHENTICATION)),
];

const FILE_0_3: &[Field] = &[
    ("bytes", Type::Content),
    ("uri", Type::Content),
    ("fileWithBytes", Type::Content),
    ("fileWithUri", Type::Content),
    ("mimeType", Type::Text),
    ("name", Type::Text),
];

const PART_0_3: &[Field] = &[
    ("kind", Type::Text),
    ("text", Type::Content),
    ("file", Type::Object(FILE_0_3)),
    ("data", Type::Any),
    ("metadata", Type::Any),
];

const MESSAGE_0_3: &[Field] = &[
    ("kind", Type::Text),
    ("messageId", Type::Text),
    ("contextId", Type::Text),
    ("taskId", Type::Text),
    ("role", Type::Any),
    ("parts", Type::Objects(PART_0_3)),
    ("content", Type::Objects(PART_0_3)),
    ("metadata", Type::Any),
    ("extensions", Type::Texts),
    ("referenceTaskIds", Type::Texts),
];

/// `MessageSendParams` of 0.3, and `SendMessageRequest` of its proto.
pub(super) const SEND_0_3: &[Field] = &[
    ("message", Type::Object(MESSAGE_0_3)),
    ("request", Type::Object(MESSAGE_0_3)),
    (
        "configuration",
        Type::Object(&[
            ("acceptedOutputModes", Type::Texts),
            ("pushNotificationConfig", Type::Object(PUSH)),
            ("pushNotification", Type::Object(PUSH)),
            ("historyLength", Type::Count),
            ("blocking", Type::Choice),
        ]),
    ),
    ("metadata", Type::Any),
];

const TASK_PUSH_0_3: &[Field] =
    &[("name", Type::Text), ("taskId", Type::Text), ("pushNotificationConfig", Type::Object(PUSH))];

/// Every other request of 0.3, in either binding.
pub(super) const REFER_0_3: &[Field] = &[
    ("id", Type::Text),
    ("name", Type::Text),
    ("parent", Type::Text),
    ("taskId", Type::Text),
    ("historyLength", Type::Count),
    ("metadata", Type::Any),
    ("pageSize", Type::Count),
    ("pageToken", Type::Text),
    ("pushNotificationConfigId", Type::Text),
    ("configId", Type::Text),
    ("contextId", Type::Text),
    ("status", Type::Any),
    ("statusTimestampAfter", Type::Text),
    ("includeArtifacts", Type::Flag),
    ("pushNotificationConfig", Type::Object(PUSH)),
    ("config", Type::Object(TASK_PUSH_0_3)),
];
