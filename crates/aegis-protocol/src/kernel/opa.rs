//! OPA's REST shape: `{"input": …}`, where the input is what policies see of an action, less what
//! only Aegis can know.

use serde_json::{Map, Value};

use super::{
    Question, QuestionError,
    authzen::optional,
    target::{self, LOCAL, Target},
};
use crate::json::{self, Limits};

/// Reads a data query.
///
/// # Errors
/// When the bytes are none, or hold what would not be judged.
pub fn query(bytes: &[u8], limits: Limits) -> Result<Question, QuestionError> {
    let mut input = match json::parse(bytes, limits)? {
        Value::Object(mut whole) => object(whole.shift_remove("input"), "input")?,
        _ => return Err(QuestionError::Member { member: "request", expected: "an object" }),
    };
    let mut action = object(input.shift_remove("action"), "input.action")?;
    let subject = match input.shift_remove("principal") {
        None => None,
        Some(Value::Object(principal)) if principal.keys().all(|key| key == "id") => {
            optional(&principal, "id", "input.principal.id")?
        }
        Some(_) => return Err(QuestionError::Unjudged { within: "input.principal" }),
    };
    let approval = optional(&input, "approval", "input.approval")?;
    input.shift_remove("approval");
    if !input.is_empty() {
        return Err(QuestionError::Unjudged { within: "input" });
    }
    let mut text = |name: &str, path| {
        let text = optional(&action, name, path)?;
        action.shift_remove(name);
        Ok::<_, QuestionError>(text)
    };
    let named = text("method", "input.action.method")?;
    let (method, kind) = target::method(named.as_deref().unwrap_or("tools/call"), None)?;
    let (said, server) =
        (text("kind", "input.action.kind")?, text("server", "input.action.server")?);
    let namespace = text("namespace", "input.action.namespace")?;
    let (tool, resource) =
        (text("tool", "input.action.tool")?, text("resource", "input.action.resource")?);
    if said.is_some_and(|said| said != kind.as_str()) {
        return Err(QuestionError::Method);
    }
    let arguments = match action.shift_remove("arguments") {
        None => Map::new(),
        some => object(some, "input.action.arguments")?,
    };
    if !action.is_empty() {
        return Err(QuestionError::Unjudged { within: "input.action" });
    }
    let id = match (tool, resource) {
        (Some(id), None) if matches!(method, "tools/call" | "prompts/get") => id,
        (None, Some(id)) if !matches!(method, "tools/call" | "prompts/get") => id,
        _ => {
            let expected = "what the method acts on, and the other of `tool` and `resource` absent";
            return Err(QuestionError::Member { member: "input.action", expected });
        }
    };
    let server = server.unwrap_or_else(|| LOCAL.into());
    let action = Target { method, kind, id, server, arguments }.into_action()?;
    Ok(Question { subject, action, namespace, approval })
}

fn object(value: Option<Value>, member: &'static str) -> Result<Map<String, Value>, QuestionError> {
    match value {
        Some(Value::Object(members)) => Ok(members),
        _ => Err(QuestionError::Member { member, expected: "an object" }),
    }
}
