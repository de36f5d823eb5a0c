//! Codex CLI: developers.openai.com/codex/hooks, and the generated schemas in openai/codex under
//! `codex-rs/hooks/schema/generated` (`pre-tool-use.command.input`, `user-prompt-submit.command.input`).

use super::{
    Hook, HookError, patch,
    payload::{self, Payload, mcp_name},
};

pub(super) fn read(mut payload: Payload) -> Result<Hook, HookError> {
    match payload.text("hook_event_name")? {
        "PreToolUse" => {}
        "UserPromptSubmit" => return payload.prompt(),
        _ => return Err(HookError::Event),
    }
    let tool = payload.text("tool_name")?.to_owned();
    let input = payload.object("tool_input")?;
    match tool.as_str() {
        "Bash" => payload.shell(input),
        "apply_patch" => patch::read(&payload, payload::text(&input, "command")?),
        other => match mcp_name(other) {
            Some(names) => {
                let (server, tool) = names?;
                payload.mcp(server, tool, input)
            }
            None => payload.own(other, input),
        },
    }
}
