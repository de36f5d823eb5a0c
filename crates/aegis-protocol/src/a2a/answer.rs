//! What an agent answers, read once: which tasks it speaks of, and how they are.
//!
//! An answer that is none to what was asked does not reach the client: a task under another id, a
//! result without one, a member in two spellings.

use serde_json::{Map, Value};

use super::{Asked, Binding, Operation, Version, fields::member};
use crate::{
    json::{self, Limits},
    jsonrpc::{Message, Outcome, RawMessage},
};
use bytes::Bytes;

/// How a task is (specification §4.1.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Submitted or working.
    Open,
    /// It waits for its client: the agent's turn has ended.
    Interrupted,
    /// Completed.
    Completed,
    /// Failed, rejected or cancelled.
    Failed,
}

/// What an answer speaks of: a task, or a message that belongs to none.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Spoken {
    /// The task's id.
    pub task: Option<String>,
    /// The context of either.
    pub context: Option<String>,
    /// How it is, if the answer says so.
    pub phase: Option<Phase>,
}

/// What an answer says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Said {
    /// A result, and the tasks in it.
    Result(Vec<Spoken>),
    /// A list of tasks, which is to be filtered ([`super::tasks`]).
    Tasks,
    /// An error with its code.
    Error(i64),
}

/// An answer that is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the agent's answer is malformed: {0}")]
pub struct AnswerError(&'static str);

const fn wrong(problem: &'static str) -> AnswerError {
    AnswerError(problem)
}

/// Reads an answer, or one event of a stream. `failed` says that its HTTP status does.
///
/// # Errors
/// When it is no answer to what was asked.
pub fn read(
    asked: &Asked,
    bytes: &Bytes,
    limits: Limits,
    failed: bool,
) -> Result<Said, AnswerError> {
    if asked.operation == Operation::GetAgentCard {
        return card(bytes, limits);
    }
    let result = match asked.form.binding {
        Binding::JsonRpc => {
            let raw = RawMessage::parse(bytes.clone(), limits);
            match raw.map_err(|_| wrong("it is no JSON-RPC response"))?.message {
                Message::Response { id, outcome } => match outcome {
                    // An error about an unreadable request has no id.
                    Outcome::Error { code, .. } if id.is_none() || id == asked.form.id => {
                        return Ok(Said::Error(code));
                    }
                    Outcome::Result(result) if id.is_some() && id == asked.form.id => result,
                    _ => return Err(wrong("it has another id")),
                },
                _ => return Err(wrong("it is no response")),
            }
        }
        Binding::HttpJson => {
            let value = json::parse(bytes, limits).map_err(|_| wrong("it is not JSON"))?;
            if let Some(code) = http_error(&value, failed) {
                return Ok(Said::Error(code));
            }
            value
        }
    };
    if failed {
        return Err(wrong("it says that it failed and that it did not"));
    }
    said(asked, &result)
}

/// The code of an HTTP+JSON error; nothing of what else an agent says with it is looked at.
fn http_error(value: &Value, failed: bool) -> Option<i64> {
    let error = value.get("error");
    let code = error.and_then(|error| error.get("code")).and_then(Value::as_i64);
    let alone = value.as_object().is_some_and(|members| members.len() == 1);
    (failed || (alone && error.is_some_and(Value::is_object))).then(|| code.unwrap_or(500))
}

fn card(bytes: &Bytes, limits: Limits) -> Result<Said, AnswerError> {
    match json::parse(bytes, limits) {
        Ok(Value::Object(_)) => Ok(Said::Result(Vec::new())),
        _ => Err(wrong("it is no card")),
    }
}

fn said(asked: &Asked, result: &Value) -> Result<Said, AnswerError> {
    let one = |spoken: Option<Spoken>| Ok(Said::Result(spoken.into_iter().collect()));
    let members = result.as_object();
    match asked.operation {
        Operation::SendMessage | Operation::SendStreamingMessage | Operation::SubscribeToTask => {
            let spoken = payload(members.ok_or(wrong("it is no object"))?)?;
            if asked.operation == Operation::SubscribeToTask {
                of_asked(asked, spoken.as_ref())?;
            }
            one(spoken)
        }
        Operation::GetTask | Operation::CancelTask => {
            let spoken = task(members.ok_or(wrong("it is no task"))?)?;
            of_asked(asked, Some(&spoken))?;
            one(Some(spoken))
        }
        Operation::ListTasks => match members {
            Some(_) => Ok(Said::Tasks),
            None => Err(wrong("it is no list of tasks")),
        },
        Operation::CreatePushConfig | Operation::GetPushConfig => {
            config(asked, result)?;
            one(None)
        }
        Operation::ListPushConfigs => {
            let listed = match members {
                Some(members) => named(members, "configs")?,
                // JSON-RPC of 0.3.
                None => Some(result),
            };
            let none = Vec::new();
            let listed = match listed {
                None => &none,
                Some(listed) => listed.as_array().ok_or(wrong("it is no list"))?,
            };
            listed.iter().try_for_each(|listed| config(asked, listed))?;
            one(None)
        }
        Operation::DeletePushConfig => match members {
            _ if result.is_null() => one(None),
            Some(members) if members.is_empty() => one(None),
            _ => Err(wrong("it is not empty")),
        },
        Operation::GetExtendedAgentCard | Operation::GetAgentCard => match members {
            Some(_) => one(None),
            None => Err(wrong("it is no card")),
        },
    }
}

fn named<'a>(
    members: &'a Map<String, Value>,
    name: &str,
) -> Result<Option<&'a Value>, AnswerError> {
    member(members, name).map_err(|_| wrong("a member is there twice"))
}

fn text(members: &Map<String, Value>, name: &str) -> Result<Option<String>, AnswerError> {
    match named(members, name)? {
        None => Ok(None),
        Some(Value::String(text)) if text.is_empty() => Ok(None),
        Some(Value::String(text)) if text.len() <= super::path::MAX_ID_BYTES => {
            Ok(Some(text.clone()))
        }
        Some(_) => Err(wrong("an id is none")),
    }
}

/// One of: a task, a message, news of a task. With a `kind` in JSON-RPC of 0.3, else under a name.
fn payload(members: &Map<String, Value>) -> Result<Option<Spoken>, AnswerError> {
    match named(members, "kind")?.map(Value::as_str) {
        Some(Some("task")) => return task(members).map(Some),
        Some(Some("message" | "status-update" | "artifact-update")) => return news(members),
        Some(_) => return Err(wrong("its kind is unknown")),
        None => {}
    }
    let mut found = None;
    for name in ["task", "message", "msg", "statusUpdate", "artifactUpdate"] {
        if let Some(value) = named(members, name)? {
            let object = value.as_object().ok_or(wrong("a member is no object"))?;
            if found.replace((name, object)).is_some() {
                return Err(wrong("it is two things at once"));
            }
        }
    }
    match found {
        Some(("task", object)) => task(object).map(Some),
        Some((_, object)) => news(object),
        None => Err(wrong("it is neither a task nor a message nor news of a task")),
    }
}

fn task(members: &Map<String, Value>) -> Result<Spoken, AnswerError> {
    let task = Some(text(members, "id")?.ok_or(wrong("a task has no id"))?);
    Ok(Spoken { task, context: text(members, "contextId")?, phase: phase(members)? })
}

/// A message or an update, which may belong to a task.
fn news(members: &Map<String, Value>) -> Result<Option<Spoken>, AnswerError> {
    let (task, context) = (text(members, "taskId")?, text(members, "contextId")?);
    let phase = if task.is_some() { phase(members)? } else { None };
    let named = task.is_some() || context.is_some();
    Ok(named.then_some(Spoken { task, context, phase }))
}

fn phase(members: &Map<String, Value>) -> Result<Option<Phase>, AnswerError> {
    let Some(status) = named(members, "status")? else { return Ok(None) };
    let state = status.as_object().map(|status| named(status, "state")).transpose()?.flatten();
    let state = state.and_then(Value::as_str).unwrap_or_default();
    let state = state.strip_prefix("TASK_STATE_").unwrap_or(state).to_ascii_lowercase();
    Ok(Some(match state.as_str() {
        "completed" => Phase::Completed,
        "failed" | "rejected" | "canceled" | "cancelled" => Phase::Failed,
        "input_required" | "input-required" | "auth_required" | "auth-required" => {
            Phase::Interrupted
        }
        _ => Phase::Open,
    }))
}

/// Whether what an answer speaks of is the task that was asked about.
fn of_asked(asked: &Asked, spoken: Option<&Spoken>) -> Result<(), AnswerError> {
    match (spoken.and_then(|spoken| spoken.task.as_ref()), &asked.task) {
        (None, _) => Ok(()),
        (Some(spoken), Some(task)) if spoken == task => Ok(()),
        _ => Err(wrong("it speaks of another task")),
    }
}

/// A webhook's configuration must be of the task that was asked about.
fn config(asked: &Asked, value: &Value) -> Result<(), AnswerError> {
    let members = value.as_object().ok_or(wrong("a configuration is no object"))?;
    let of = match (text(members, "taskId")?, named(members, "name")?) {
        (Some(task), None) => task,
        (None, Some(Value::String(name))) if asked.form.version == Version::V0_3 => {
            let mut segments = name.split('/').skip(1);
            segments.next().unwrap_or_default().to_owned()
        }
        _ => return Err(wrong("a configuration names no task")),
    };
    if asked.task.as_deref() == Some(of.as_str()) {
        Ok(())
    } else {
        Err(wrong("a configuration is of another task"))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{a2a::Form, jsonrpc::Id};

    fn asked(binding: Binding, version: Version, operation: Operation) -> Asked {
        let id = (binding == Binding::JsonRpc).then_some(Id::Integer(7));
        Asked { form: Form { binding, version, id }, operation, task: Some("t".into()) }
    }

    fn read_as(asked: &Asked, result: Value) -> Result<Said, AnswerError> {
        let body = match asked.form.binding {
            Binding::JsonRpc => json!({ "jsonrpc": "2.0", "id": 7, "result": result }),
            Binding::HttpJson => result,
        };
        read(asked, &body.to_string().into(), Limits::default(), false)
    }

    fn spoken(phase: Option<Phase>) -> Result<Said, AnswerError> {
        let context = Some("c".to_owned());
        Ok(Said::Result(vec![Spoken { task: Some("t".into()), context, phase }]))
    }

    #[test]
    fn a_task_is_found_in_every_form_of_an_answer() {
        use Binding::{HttpJson, JsonRpc};
        use Version::{V0_3, V1_0};
        let task =
            json!({ "id": "t", "contextId": "c", "status": { "state": "TASK_STATE_COMPLETED" } });
        let update =
            json!({ "taskId": "t", "contextId": "c", "status": { "state": "TASK_STATE_WORKING" } });
        let operation = Operation::SendStreamingMessage;
        for binding in [JsonRpc, HttpJson] {
            let asked = asked(binding, V1_0, operation);
            assert_eq!(read_as(&asked, json!({ "task": task })), spoken(Some(Phase::Completed)));
            assert_eq!(
                read_as(&asked, json!({ "statusUpdate": update })),
                spoken(Some(Phase::Open))
            );
            assert_eq!(
                read_as(&asked, json!({ "status_update": update })),
                spoken(Some(Phase::Open))
            );
            let artifact = json!({ "artifactUpdate": { "task_id": "t", "contextId": "c" } });
            assert_eq!(read_as(&asked, artifact), spoken(None));
            assert_eq!(
                read_as(&asked, json!({ "message": { "parts": [] } })),
                Ok(Said::Result(vec![]))
            );
            for lie in [
                json!({}),
                json!([]),
                json!({ "task": task, "message": {} }),
                json!({ "task": {} }),
                json!({ "task": { "id": "t", "ID": "u" } }),
                json!({ "task": 1 }),
                json!({ "kind": "other" }),
            ] {
                assert!(read_as(&asked, lie.clone()).is_err(), "{lie}");
            }
        }
        let asked = asked(JsonRpc, V0_3, operation);
        let old = json!({ "kind": "task", "id": "t", "contextId": "c", "status": { "state": "input-required" } });
        assert_eq!(read_as(&asked, old), spoken(Some(Phase::Interrupted)));
        let old = json!({ "kind": "status-update", "taskId": "t", "contextId": "c", "final": true, "status": { "state": "canceled" } });
        assert_eq!(read_as(&asked, old), spoken(Some(Phase::Failed)));
    }

    #[test]
    fn an_answer_about_another_task_is_none() {
        for binding in [Binding::JsonRpc, Binding::HttpJson] {
            let of = |operation| asked(binding, Version::V1_0, operation);
            for operation in [Operation::GetTask, Operation::CancelTask] {
                assert!(read_as(&of(operation), json!({ "id": "t" })).is_ok());
                assert!(read_as(&of(operation), json!({ "id": "u" })).is_err());
            }
            let subscribe = of(Operation::SubscribeToTask);
            assert!(read_as(&subscribe, json!({ "task": { "id": "u" } })).is_err());
            let config = of(Operation::GetPushConfig);
            assert!(read_as(&config, json!({ "taskId": "t", "url": "x" })).is_ok());
            assert!(read_as(&config, json!({ "taskId": "u", "url": "x" })).is_err());
            let list = of(Operation::ListPushConfigs);
            assert!(
                read_as(&list, json!({ "configs": [{ "taskId": "t" }, { "taskId": "u" }] }))
                    .is_err()
            );
            assert!(read_as(&list, json!({})).is_ok());
        }
        let of = asked(Binding::HttpJson, Version::V0_3, Operation::GetPushConfig);
        assert!(read_as(&of, json!({ "name": "tasks/t/pushNotificationConfigs/p" })).is_ok());
        assert!(read_as(&of, json!({ "name": "tasks/u/pushNotificationConfigs/p" })).is_err());
    }

    #[test]
    fn an_answer_carries_the_requests_id_or_is_an_error() {
        let asked = asked(Binding::JsonRpc, Version::V1_0, Operation::GetTask);
        let limits = Limits::default();
        let read =
            |text: &str| read(&asked, &Bytes::copy_from_slice(text.as_bytes()), limits, false);
        assert!(read(r#"{"jsonrpc":"2.0","id":"7","result":{"id":"t"}}"#).is_err());
        assert!(read(r#"{"jsonrpc":"2.0","method":"x"}"#).is_err());
        let error = r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32001,"message":"x"}}"#;
        assert_eq!(read(error), Ok(Said::Error(-32001)));
    }
}
