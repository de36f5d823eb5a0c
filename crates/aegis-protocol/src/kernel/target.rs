//! What a question is about: one closed table of methods, for every shape of question.

use aegis_core::action::{Action, ActionKind, Protocol};
use serde_json::{Map, Value};

use super::QuestionError;
use crate::mcp::{name, uri};

/// The server of functions that belong to no server: those of the agent's own process.
pub const LOCAL: &str = "local";

/// The longest path. PATH_MAX of Linux.
const MAX_PATH: usize = 4096;

/// A method, the type of resource that it acts on, and the kind of action that it is.
pub const METHODS: &[(&str, &str, ActionKind)] = &[
    ("tools/call", "tool", ActionKind::ToolCall),
    ("prompts/get", "prompt", ActionKind::PromptGet),
    ("resources/read", "resource", ActionKind::ResourceRead),
    ("file.read", "file", ActionKind::FileRead),
    ("file.write", "file", ActionKind::FileWrite),
    ("shell.exec", "command", ActionKind::ShellExec),
    ("http.request", "url", ActionKind::HttpRequest),
];

/// The type of resource by which an action's name is a tool's.
pub(super) const SERVER: &str = "server";

/// What is acted on.
pub(super) struct Target {
    pub(super) method: &'static str,
    pub(super) kind: ActionKind,
    pub(super) id: String,
    pub(super) server: String,
    pub(super) arguments: Map<String, Value>,
}

/// The method of that name and its kind, if it acts on that type of resource.
pub(super) fn method(
    named: &str,
    on: Option<&str>,
) -> Result<(&'static str, ActionKind), QuestionError> {
    let fits =
        |entry: &&(&str, &str, ActionKind)| entry.0 == named && on.is_none_or(|on| entry.1 == on);
    METHODS.iter().find(fits).map(|entry| (entry.0, entry.2)).ok_or(QuestionError::Method)
}

impl Target {
    /// The action, once everything that names something is in its one spelling.
    pub(super) fn into_action(self) -> Result<Action, QuestionError> {
        let Self { method, kind, id, server, mut arguments } = self;
        checked_name("the server's name", &server)?;
        let (mut tool, mut resource) = (None, None);
        match kind {
            ActionKind::ToolCall => {
                checked_name("the tool's name", &id)?;
                tool = Some(id);
            }
            ActionKind::PromptGet => {
                checked_name("the prompt's name", &id)?;
                tool = Some(id);
            }
            ActionKind::FileRead | ActionKind::FileWrite => {
                if !is_path(&id) {
                    return Err(QuestionError::Path);
                }
                resource = Some(id);
            }
            ActionKind::ShellExec => {
                let named = Value::String(id);
                // Policies look at the arguments: the command is there, and once.
                if arguments.get("command").is_some_and(|other| *other != named) {
                    let expected = "the command that the resource names";
                    return Err(QuestionError::Member { member: "command", expected });
                }
                arguments.insert("command".into(), named);
            }
            _ => resource = Some(uri::canonical(&id)?.into_owned()),
        }
        Ok(Action {
            kind,
            protocol: Protocol::Kernel,
            method: method.into(),
            server,
            tool,
            tool_pin: None,
            resource,
            arguments: Value::Object(arguments),
        })
    }
}

fn checked_name(what: &'static str, text: &str) -> Result<(), QuestionError> {
    name::check(text).map_err(|error| QuestionError::Name { what, error })
}

/// Whether a path has one spelling only.
fn is_path(path: &str) -> bool {
    let Some(rest) = path.strip_prefix('/') else { return false };
    let plain = |segment: &str| !matches!(segment, "" | "." | "..");
    path.len() <= MAX_PATH
        && !path.chars().any(char::is_control)
        && (rest.is_empty() || rest.split('/').all(plain))
}
