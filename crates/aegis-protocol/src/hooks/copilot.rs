//! Copilot CLI: docs.github.com/en/copilot/reference/hooks-reference (`preToolUse`, `userPromptSubmitted`).
//!
//! A payload does not name its event. `toolArgs` is an object, or the text of one. A tool of an MCP server is named
//! `SERVER-TOOL`, which cannot be taken apart: it is judged under that name, as a tool of Copilot.

use super::{
    Hook, HookError, patch,
    payload::{self, Payload},
};

pub(super) fn read(mut payload: Payload) -> Result<Hook, HookError> {
    if !payload.has("toolName") {
        return if payload.has("prompt") { payload.prompt() } else { Err(HookError::Event) };
    }
    let tool = payload.text("toolName")?.to_owned();
    if tool == "apply_patch" {
        // A freeform tool: the patch itself, or an object that holds it.
        if let Ok(patch) = payload.text("toolArgs").map(str::to_owned)
            && !patch.trim_start().starts_with('{')
        {
            return patch::read(&payload, &patch);
        }
        let input = payload.object_or_text("toolArgs")?;
        let named = if input.contains_key("patch") { "patch" } else { "input" };
        return patch::read(&payload, payload::text(&input, named)?);
    }
    let input = payload.object_or_text("toolArgs")?;
    match tool.as_str() {
        "bash" | "powershell" => payload.shell(input),
        "view" => payload.file(false, "path", input),
        "create" | "edit" => payload.file(true, "path", input),
        other => payload.own(other, input),
    }
}
