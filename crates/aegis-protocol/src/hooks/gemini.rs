//! Gemini CLI: `docs/hooks/reference.md` of google-gemini/gemini-cli (`BeforeTool`, `BeforeAgent`). A tool
//! of an MCP server comes with `mcp_context`, which names both apart.

use super::{
    Hook, HookError,
    payload::{self, Payload},
};

pub(super) fn read(mut payload: Payload) -> Result<Hook, HookError> {
    let before = payload.tool("hook_event_name", "BeforeTool", "BeforeAgent")?;
    let Some((tool, input)) = before else { return payload.prompt() };
    if payload.has("mcp_context") {
        let context = payload.object("mcp_context")?;
        let (server, tool) =
            (payload::text(&context, "server_name")?, payload::text(&context, "tool_name")?);
        return payload.mcp(server, tool, input);
    }
    match tool.as_str() {
        "run_shell_command" => payload.shell(input),
        // Its older releases say `absolute_path`.
        "read_file" if input.contains_key("absolute_path") => {
            payload.file(false, "absolute_path", input)
        }
        "read_file" => payload.file(false, "file_path", input),
        "write_file" | "replace" => payload.file(true, "file_path", input),
        other => payload.own(other, input),
    }
}
