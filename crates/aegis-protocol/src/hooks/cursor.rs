//! Cursor: cursor.com/docs/agent/hooks (`preToolUse`, `beforeShellExecution`, `beforeMCPExecution`,
//! `beforeReadFile`, `beforeSubmitPrompt`).
//!
//! A payload does not name the MCP server: its tools are judged under their own names, as tools of Cursor.
//! `tool_input` is an object, or the text of one.

use serde_json::{Map, Value};

use super::{Hook, HookError, payload::Payload};

pub(super) fn read(mut payload: Payload) -> Result<Hook, HookError> {
    match payload.text("hook_event_name")? {
        "preToolUse" => tool(payload),
        "beforeShellExecution" => {
            let command = Value::String(payload.text("command")?.into());
            payload.shell(Map::from_iter([("command".to_owned(), command)]))
        }
        "beforeMCPExecution" => {
            let tool = payload.text("tool_name")?.to_owned();
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
        other => payload.own(other.strip_prefix("MCP:").unwrap_or(other), input),
    }
}
