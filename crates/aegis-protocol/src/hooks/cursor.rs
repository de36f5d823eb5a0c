//! Cursor: cursor.com/docs/agent/hooks (`preToolUse`, `beforeShellExecution`, `beforeMCPExecution`,
//! `beforeReadFile`, `beforeSubmitPrompt`).
//!
//! A payload does not name the MCP server: its tools are judged as tools of Cursor that are named `MCP:TOOL`, so
//! that none passes for one that Cursor itself has. `tool_input` is an object, or the text of one.

use serde_json::{Map, Value};

use super::{Hook, HookError, payload::Payload};

/// What Cursor puts before the name of an MCP server's tool.
const OF_A_SERVER: &str = "MCP:";

pub(super) fn read(mut payload: Payload) -> Result<Hook, HookError> {
    match payload.text("hook_event_name")? {
        "preToolUse" => tool(payload),
        "beforeShellExecution" => {
            let command = Value::String(payload.text("command")?.into());
            payload.shell(Map::from_iter([("command".to_owned(), command)]))
        }
        "beforeMCPExecution" => {
            let tool = format!("{OF_A_SERVER}{}", payload.text("tool_name")?);
            let input = payload.object_or_text("tool_input")?;
            payload.own(&tool, input)
        }
        "beforeReadFile" => {
            let path = payload.path(payload.text("file_path")?)?;
            Ok(super::payload::one(payload.file_at(false, path, Map::new())))
        }
        "beforeSubmitPrompt" => payload.prompt(),
        _ => Err(HookError::Event),
    }
}

fn tool(mut payload: Payload) -> Result<Hook, HookError> {
    let tool = payload.text("tool_name")?.to_owned();
    let input = payload.object_or_text("tool_input")?;
    // Releases differ in how they spell the path.
    let named = if input.contains_key("file_path") { "file_path" } else { "path" };
    match tool.as_str() {
        "Shell" => payload.shell(input),
        "Read" => payload.file(false, named, input),
        "Write" | "Edit" | "StrReplace" | "Delete" => payload.file(true, named, input),
        // With its prefix, where it has one.
        other => payload.own(other, input),
    }
}
