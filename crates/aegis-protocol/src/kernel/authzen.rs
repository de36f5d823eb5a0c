//! AuthZEN's Authorization API 1.0: access evaluation, and access evaluations with its defaults and
//! semantics.

use serde_json::{Map, Value};

use super::{
    MAX_EVALUATIONS, Question, QuestionError,
    target::{self, LOCAL, SERVER, Target},
};
use crate::json::{self, Limits};

/// Who a caller may always say that it is.
const SELF: &str = "self";

/// What a batch does with its questions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Semantic {
    /// All are answered.
    #[default]
    ExecuteAll,
    /// Until one is denied.
    DenyOnFirstDeny,
    /// Until one is permitted.
    PermitOnFirstPermit,
}

/// What was asked.
#[derive(Clone, Debug, PartialEq)]
pub enum Asked {
    /// One question: there were no `evaluations`.
    One(Box<Question>),
    /// Several, each of which may be none.
    Several(Semantic, Vec<Result<Question, QuestionError>>),
}

/// Reads an access evaluation request.
///
/// # Errors
/// When the bytes are none.
pub fn evaluation(bytes: &[u8], limits: Limits) -> Result<Question, QuestionError> {
    question(whole(bytes, limits)?, None)
}

/// Reads an access evaluations request; without `evaluations` it is one evaluation.
///
/// # Errors
/// When the bytes are none as a whole. What is wrong with one of several is said in its place.
pub fn evaluations(bytes: &[u8], limits: Limits) -> Result<Asked, QuestionError> {
    let mut whole = whole(bytes, limits)?;
    let list = match whole.shift_remove("evaluations") {
        None => Vec::new(),
        Some(Value::Array(list)) => list,
        Some(_) => return Err(member("evaluations", "an array")),
    };
    let semantic = semantic(whole.get("options"))?;
    if list.is_empty() {
        return question(whole, None).map(|question| Asked::One(Box::new(question)));
    }
    if list.len() > MAX_EVALUATIONS {
        return Err(QuestionError::Batch);
    }
    let each = |one: Value| match one {
        Value::Object(one) => question(one, Some(&whole)),
        _ => Err(member("evaluations", "an array of objects")),
    };
    Ok(Asked::Several(semantic, list.into_iter().map(each).collect()))
}

fn whole(bytes: &[u8], limits: Limits) -> Result<Map<String, Value>, QuestionError> {
    match json::parse(bytes, limits)? {
        Value::Object(whole) => Ok(whole),
        _ => Err(member("request", "an object")),
    }
}

const fn member(member: &'static str, expected: &'static str) -> QuestionError {
    QuestionError::Member { member, expected }
}

fn semantic(options: Option<&Value>) -> Result<Semantic, QuestionError> {
    let options = match options {
        None => return Ok(Semantic::default()),
        Some(Value::Object(options)) => options,
        Some(_) => return Err(member("options", "an object")),
    };
    match options.get("evaluations_semantic").map(Value::as_str) {
        None | Some(Some("execute_all")) => Ok(Semantic::ExecuteAll),
        Some(Some("deny_on_first_deny")) => Ok(Semantic::DenyOnFirstDeny),
        Some(Some("permit_on_first_permit")) => Ok(Semantic::PermitOnFirstPermit),
        Some(_) => Err(member(
            "options.evaluations_semantic",
            "`execute_all`, `deny_on_first_deny` or `permit_on_first_permit`",
        )),
    }
}

/// One entity: the question's own, or the batch's. Of the batch's, a question's own takes over what
/// it must have and lacks.
struct Entity<'a> {
    own: Option<Map<String, Value>>,
    shared: Option<&'a Map<String, Value>>,
}

impl<'a> Entity<'a> {
    fn take(
        question: &mut Map<String, Value>,
        defaults: Option<&'a Map<String, Value>>,
        name: &'static str,
    ) -> Result<Self, QuestionError> {
        let object = |value: Option<Value>| match value {
            None => Ok(None),
            Some(Value::Object(members)) => Ok(Some(members)),
            Some(_) => Err(member(name, "an object")),
        };
        let own = object(question.shift_remove(name))?;
        let shared = match defaults.and_then(|defaults| defaults.get(name)) {
            None => None,
            Some(Value::Object(members)) => Some(members),
            Some(_) => return Err(member(name, "an object")),
        };
        if own.is_none() && shared.is_none() {
            return Err(member(name, "an object"));
        }
        Ok(Self { own, shared })
    }

    fn text(&self, key: &str, path: &'static str) -> Result<String, QuestionError> {
        let own = self.own.as_ref().and_then(|members| members.get(key));
        match own.or_else(|| self.shared?.get(key)) {
            Some(Value::String(text)) if !text.is_empty() => Ok(text.clone()),
            _ => Err(member(path, "a string that is not empty")),
        }
    }

    /// The properties go with the object that has them: an own one has its own, or none.
    fn properties(&mut self, path: &'static str) -> Result<Map<String, Value>, QuestionError> {
        let properties = match (&mut self.own, self.shared) {
            (Some(own), _) => own.shift_remove("properties"),
            (None, shared) => shared.and_then(|members| members.get("properties")).cloned(),
        };
        match properties {
            None => Ok(Map::new()),
            Some(Value::Object(properties)) => Ok(properties),
            Some(_) => Err(member(path, "an object")),
        }
    }
}

fn question(
    mut own: Map<String, Value>,
    defaults: Option<&Map<String, Value>>,
) -> Result<Question, QuestionError> {
    let subject = subject(&Entity::take(&mut own, defaults, "subject")?)?;
    let mut action = Entity::take(&mut own, defaults, "action")?;
    let name = action.text("name", "action.name")?;
    let arguments = action.properties("action.properties")?;
    let mut resource = Entity::take(&mut own, defaults, "resource")?;
    let on = resource.text("type", "resource.type")?;
    let id = resource.text("id", "resource.id")?;
    let properties = resource.properties("resource.properties")?;
    let server = optional(&properties, "server", "resource.properties.server")?;
    let namespace = optional(&properties, "namespace", "resource.properties.namespace")?;
    let target = if on == SERVER {
        let (method, kind) = target::method("tools/call", None)?;
        Target { method, kind, id: name, server: id, arguments }
    } else {
        let (method, kind) = target::method(&name, Some(&on))?;
        let server = server.unwrap_or_else(|| LOCAL.into());
        Target { method, kind, id, server, arguments }
    };
    let approval = match own.get("context").or_else(|| defaults?.get("context")) {
        None => None,
        Some(Value::Object(context)) => optional(context, "approval", "context.approval")?,
        Some(_) => return Err(member("context", "an object")),
    };
    Ok(Question { subject, action: target.into_action()?, namespace, approval })
}

/// Who the caller says that it is.
fn subject(subject: &Entity<'_>) -> Result<Option<String>, QuestionError> {
    subject.text("type", "subject.type")?;
    let id = subject.text("id", "subject.id")?;
    Ok((id != SELF).then_some(id))
}

pub(super) fn optional(
    members: &Map<String, Value>,
    name: &str,
    path: &'static str,
) -> Result<Option<String>, QuestionError> {
    match members.get(name) {
        None => Ok(None),
        Some(Value::String(text)) if !text.is_empty() => Ok(Some(text.clone())),
        Some(_) => Err(member(path, "a string that is not empty")),
    }
}
