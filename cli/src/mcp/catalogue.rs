//! The tools: what they are called, what they take, what clients are told of them.

use std::collections::BTreeMap;

use rmcp::{
    handler::server::common::schema_for_type,
    model::{Tool, ToolAnnotations},
    schemars::{self, JsonSchema},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};

use super::command::{MAX_TIMEOUT, TIMEOUT};

/// Reading a file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ReadFile {
    /// The file: relative to /workspace, or beneath /workspace, /mem or /policy
    pub(super) path: String,
}

/// Writing a file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct WriteFile {
    /// The file: relative to /workspace, or beneath /workspace or /mem
    pub(super) path: String,
    /// The whole new content
    pub(super) content: String,
}

/// Changing a part of a file.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct EditFile {
    /// The file: relative to /workspace, or beneath /workspace or /mem
    pub(super) path: String,
    /// The text that is replaced; it must stand in the file exactly once
    pub(super) old_text: String,
    /// The text that takes its place
    pub(super) new_text: String,
}

/// Listing a folder.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct ListDirectory {
    /// The folder: relative to /workspace, or one of /workspace, /mem and /policy or beneath
    #[serde(default = "here")]
    pub(super) path: String,
}

/// Running a command.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RunCommand {
    /// The program and its arguments, one word each. There is no shell: no pipes, globs or variables
    #[schemars(length(min = 1))]
    pub(super) command: Vec<String>,
    /// The folder to run it in: relative to /workspace or beneath it
    #[serde(default = "here")]
    pub(super) directory: String,
    /// How long it may take, at most 1800
    #[serde(default = "usual_timeout")]
    #[schemars(range(min = 1, max = 1800))]
    pub(super) timeout_seconds: u64,
}

/// Asking a web server.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct HttpRequest {
    /// An http:// or https:// address of the public internet. Redirects are not followed: ask again
    pub(super) url: String,
    /// The method
    #[serde(default)]
    pub(super) method: Verb,
    /// Header fields
    #[serde(default)]
    pub(super) headers: BTreeMap<String, String>,
    /// The body, as text
    #[serde(default)]
    pub(super) body: Option<String>,
}

/// The methods of HTTP that can be asked by.
#[derive(Clone, Copy, Debug, Default, Deserialize, JsonSchema)]
#[serde(rename_all = "UPPERCASE")]
pub(super) enum Verb {
    #[default]
    Get,
    Head,
    Post,
    Put,
    Patch,
    Delete,
}

impl Verb {
    /// As HTTP spells it.
    pub(super) const fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Head => "HEAD",
            Self::Post => "POST",
            Self::Put => "PUT",
            Self::Patch => "PATCH",
            Self::Delete => "DELETE",
        }
    }
}

fn here() -> String {
    ".".into()
}

const fn usual_timeout() -> u64 {
    TIMEOUT
}

/// One call, read strictly.
#[derive(Debug)]
pub(super) enum Call {
    /// `read_file`.
    Read(ReadFile),
    /// `write_file`.
    Write(WriteFile),
    /// `edit_file`.
    Edit(EditFile),
    /// `list_directory`.
    List(ListDirectory),
    /// `run_command`.
    Run(RunCommand),
    /// `http_request`.
    Fetch(HttpRequest),
}

/// Why a call is none.
#[derive(Debug, thiserror::Error)]
pub(super) enum CallError {
    /// No such tool.
    #[error("there is no tool of this name; list the tools")]
    Unknown,
    /// Not what the tool takes.
    #[error("the arguments are not what the tool takes: {0}")]
    Arguments(String),
}

impl Call {
    /// Reads a call.
    pub(super) fn read(tool: &str, arguments: Map<String, Value>) -> Result<Self, CallError> {
        Ok(match tool {
            "read_file" => Self::Read(strictly(arguments)?),
            "write_file" => Self::Write(strictly(arguments)?),
            "edit_file" => Self::Edit(strictly(arguments)?),
            "list_directory" => Self::List(strictly(arguments)?),
            "run_command" => {
                let run: RunCommand = strictly(arguments)?;
                check(&run)?;
                Self::Run(run)
            }
            "http_request" => Self::Fetch(strictly(arguments)?),
            _ => return Err(CallError::Unknown),
        })
    }
}

fn check(run: &RunCommand) -> Result<(), CallError> {
    let wrong = |what: &str| Err(CallError::Arguments(what.into()));
    if run.command.first().is_none_or(String::is_empty) {
        return wrong("`command` must begin with a program");
    }
    if run.command.iter().any(|word| word.contains('\0')) {
        return wrong("no word of `command` can hold a NUL");
    }
    if !(1..=MAX_TIMEOUT).contains(&run.timeout_seconds) {
        return wrong("`timeout_seconds` must be from 1 to 1800");
    }
    Ok(())
}

fn strictly<T: DeserializeOwned>(arguments: Map<String, Value>) -> Result<T, CallError> {
    serde_json::from_value(Value::Object(arguments))
        .map_err(|error| CallError::Arguments(error.to_string()))
}

/// The tools as clients are told of them.
pub(super) fn tools() -> Vec<Tool> {
    let reads = || ToolAnnotations::new().read_only(true).open_world(false);
    let writes = || ToolAnnotations::new().read_only(false).destructive(true).open_world(false);
    let reaches = || ToolAnnotations::new().read_only(false).destructive(true).open_world(true);
    vec![
        tool::<ReadFile>("read_file", "Read a text file of at most 512 KiB.", reads()),
        tool::<ListDirectory>(
            "list_directory",
            "List a folder. Folders end with `/`, symbolic links with `@`.",
            reads(),
        ),
        tool::<WriteFile>(
            "write_file",
            "Write a text file of at most 512 KiB as a whole; missing folders are made. What you want to remember beyond this conversation goes beneath /mem.",
            writes(),
        ),
        tool::<EditFile>("edit_file", "Replace one piece of text in a file.", writes()),
        tool::<RunCommand>(
            "run_command",
            "Run a program in the workspace and wait for its end. Its environment is cleaned, it has no input, and of each output the first 128 KiB are returned.",
            reaches(),
        ),
        tool::<HttpRequest>(
            "http_request",
            "Send one HTTP request to the public internet and return the answer, at most 1 MiB of text.",
            reaches(),
        ),
    ]
}

fn tool<T: JsonSchema + std::any::Any>(
    name: &'static str,
    what: &'static str,
    annotations: ToolAnnotations,
) -> Tool {
    let what = format!("{what} Aegis decides on each call and records it.");
    Tool::new(name, what, schema_for_type::<T>()).with_annotations(annotations)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(tool: &str, arguments: Value) -> Result<Call, CallError> {
        Call::read(tool, arguments.as_object().unwrap().clone())
    }

    #[test]
    fn a_call_is_read_strictly() {
        assert!(matches!(read("read_file", json!({ "path": "a" })), Ok(Call::Read(_))));
        assert!(matches!(read("list_directory", json!({})), Ok(Call::List(_))));
        for (tool, arguments) in [
            ("read_file", json!({})),
            ("read_file", json!({ "path": "a", "mode": "rw" })),
            ("read_file", json!({ "path": ["a"] })),
            ("run_command", json!({ "command": [] })),
            ("run_command", json!({ "command": [""] })),
            ("run_command", json!({ "command": "rm -rf x" })),
            ("run_command", json!({ "command": ["a\0b"] })),
            ("run_command", json!({ "command": ["a"], "timeout_seconds": 0 })),
            ("run_command", json!({ "command": ["a"], "timeout_seconds": 1801 })),
            ("http_request", json!({ "url": "http://x.example/", "method": "CONNECT" })),
        ] {
            let result = read(tool, arguments.clone());
            assert!(matches!(result, Err(CallError::Arguments(_))), "{tool} {arguments}");
        }
        assert!(matches!(read("erase", json!({})), Err(CallError::Unknown)));
    }

    #[test]
    fn every_tool_can_be_called_and_says_what_it_takes() {
        for tool in tools() {
            let called = read(&tool.name, json!({ "nothing": 1 }));
            assert!(matches!(called, Err(CallError::Arguments(_))), "{}", tool.name);
            assert_eq!(tool.input_schema.get("type"), Some(&json!("object")), "{}", tool.name);
            let closed = tool.input_schema.get("additionalProperties");
            assert_eq!(closed, Some(&json!(false)), "{}", tool.name);
        }
    }
}
