//! The agents of VS Code: code.visualstudio.com/docs/agents/reference/hooks-reference (`PreToolUse`,
//! `UserPromptSubmit`). The event is `hookEventName`, and `hook_event_name` in newer releases.
//!
//! A tool of an MCP server is named `mcp_SERVER_TOOL`, which cannot be taken apart: it is judged under that
//! name, as a tool of VS Code.

use serde_json::{Map, Value};

use super::{
    Event, Hook, HookError, patch,
    payload::{self, Payload},
};

pub(super) fn read(mut payload: Payload) -> Result<Hook, HookError> {
    let named = if payload.has("hook_event_name") { "hook_event_name" } else { "hookEventName" };
    let before = payload.tool(named, "PreToolUse", "UserPromptSubmit")?;
    let Some((tool, input)) = before else { return payload.prompt() };
    match tool.as_str() {
        "run_in_terminal" | "runInTerminal" | "bash" => payload.shell(input),
        // Copilot's own tools, where it runs hooks in this form.
        "view" => payload.file(false, "path", input),
        "create" | "edit" => payload.file(true, "path", input),
        "read_file" | "readFile" => payload.file(false, "filePath", input),
        "create_file"
        | "createFile"
        | "replace_string_in_file"
        | "replaceString"
        | "insert_edit_into_file"
        | "edit_notebook_file"
        | "editNotebook" => payload.file(true, "filePath", input),
        "multi_replace_string_in_file" => several(&payload, &input, "replacements"),
        "editFiles" => several(&payload, &input, "files"),
        "apply_patch" | "applyPatch" => patch::read(&payload, payload::text(&input, "input")?),
        other => payload.own(other, input),
    }
}

/// One write for each item: a path, or an object that has one.
fn several(
    payload: &Payload,
    input: &Map<String, Value>,
    member: &'static str,
) -> Result<Hook, HookError> {
    let malformed = HookError::Member { member, expected: "an array that names files" };
    let Some(Value::Array(items)) = input.get(member) else { return Err(malformed) };
    let write = |item: &Value| {
        let (path, arguments) = match item {
            Value::String(path) => (path.as_str(), input.clone()),
            Value::Object(own) => (payload::text(own, "filePath")?, own.clone()),
            _ => return Err(malformed),
        };
        Ok(payload.file_at(true, payload.path(path)?, arguments))
    };
    let actions = items.iter().map(write).collect::<Result<Vec<_>, HookError>>()?;
    Ok(Hook { event: Event::Tool, actions })
}
