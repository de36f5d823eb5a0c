//! Codex CLI: developers.openai.com/codex/hooks, and the generated schemas in openai/codex under
//! `codex-rs/hooks/schema/generated` (`pre-tool-use.command.input`, `user-prompt-submit.command.input`).

use super::{
    Hook, HookError, patch,
    payload::{self, Payload},
};

pub(super) fn read(mut payload: Payload) -> Result<Hook, HookError> {
    let before = payload.tool("hook_event_name", "PreToolUse", "UserPromptSubmit")?;
    let Some((tool, input)) = before else { return payload.prompt() };
    match tool.as_str() {
        "Bash" => payload.shell(input),
        "apply_patch" => patch::read(&payload, payload::text(&input, "command")?),
        other => payload.named(other, input),
    }
}
