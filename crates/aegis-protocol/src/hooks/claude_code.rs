//! Claude Code: the hooks reference at code.claude.com/docs/en/hooks, and the types of the npm package
//! `@anthropic-ai/claude-agent-sdk` (`PreToolUseHookInput`, `UserPromptSubmitHookInput`).

use super::{
    Hook, HookError,
    payload::{self, Payload},
};

pub(super) fn read(mut payload: Payload) -> Result<Hook, HookError> {
    let before = payload.tool("hook_event_name", "PreToolUse", "UserPromptSubmit")?;
    let Some((tool, input)) = before else { return payload.prompt() };
    // Newer releases name the server apart, as the user's configuration has it.
    if payload.has("mcp_server") {
        let server = payload::text(&payload.object("mcp_server")?, "name")?.to_owned();
        let plain = |c: char| if c.is_ascii_alphanumeric() || "_-".contains(c) { c } else { '_' };
        let prefix = format!("mcp__{}__", server.chars().map(plain).collect::<String>());
        let tool = tool.strip_prefix(&prefix).ok_or(HookError::Ambiguous)?;
        return payload.mcp(&server, tool, input);
    }
    match tool.as_str() {
        "Bash" | "PowerShell" => payload.shell(input),
        "Read" => payload.file(false, "file_path", input),
        "Write" | "Edit" | "MultiEdit" => payload.file(true, "file_path", input),
        "NotebookRead" => payload.file(false, "notebook_path", input),
        "NotebookEdit" => payload.file(true, "notebook_path", input),
        other => payload.named(other, input),
    }
}
