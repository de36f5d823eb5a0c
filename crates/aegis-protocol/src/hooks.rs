//! Hooks of coding agents: the payload on a hook's standard input → [`Hook`] with the actions that are
//! judged, and a verdict → the [`Answer`] that this agent obeys.
//!
//! One file per agent, each after the description that its maker publishes. What is read: the event, the tool,
//! its arguments (all of them: they are what is judged) and the working folder. Members beyond those say
//! nothing about the action and are ignored, because every release of an agent adds some; a member that
//! is read and is missing or of another type refuses the payload. Nothing in a payload says who asks.
//!
//! The mapping is the same for every agent. A command is `shell.exec`, with the command as the argument
//! `command`. A file is `file.read` or `file.write`, named by its absolute path as the agent resolves it: by
//! its text, so what symbolic links make of it is not seen. A tool of an MCP server is `tools/call` under the server's
//! and the tool's own names, as at the proxy. Every other tool is `tools/call` on the server that is named
//! as the agent is. A prompt is `prompt.submit`.

mod answer;
mod claude_code;
mod codex;
mod copilot;
mod cursor;
mod gemini;
mod patch;
mod payload;
mod vscode;

use aegis_core::{action::Action, decision::Reason};

use crate::{
    json::{self, JsonError, Limits},
    mcp::name::NameError,
};

pub use answer::{Answer, allowed, denied};

/// The most actions of one payload, as when a patch touches many files.
pub const MAX_ACTIONS: usize = 100;

/// A coding agent whose hooks are understood.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Agent {
    /// Anthropic's Claude Code.
    ClaudeCode,
    /// OpenAI's Codex CLI.
    Codex,
    /// Google's Gemini CLI.
    Gemini,
    /// GitHub's Copilot CLI.
    Copilot,
    /// The editor Cursor.
    Cursor,
    /// The agents of VS Code.
    Vscode,
}

/// When a hook was run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// Before a tool.
    Tool,
    /// Before a prompt goes to the model.
    Prompt,
}

/// What a payload asks.
#[derive(Clone, Debug, PartialEq)]
pub struct Hook {
    /// When.
    pub event: Event,
    /// What is about to happen: all of it, or nothing. Never empty.
    pub actions: Vec<Action>,
}

/// Why a payload is refused. Content is never quoted, as it may be secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HookError {
    /// Not JSON, or refused as such.
    #[error(transparent)]
    Json(#[from] JsonError),
    /// A member is missing or of another type.
    #[error("the hook's payload must have `{member}`: {expected}; is it the hook of this agent?")]
    Member {
        /// Which.
        member: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// An event that asks nothing.
    #[error(
        "the hook ran at an event that Aegis does not decide on; register it as `aegis integrate` does"
    )]
    Event,
    /// The name of a tool or server.
    #[error("{what}: {error}")]
    Name {
        /// Whose.
        what: &'static str,
        /// Why.
        error: NameError,
    },
    /// A name that may mean two tools.
    #[error(
        "the tool's name can be read as that of two MCP servers; rename the server so that it has no `__`"
    )]
    Ambiguous,
    /// An MCP server that is named as a coding agent is.
    #[error(
        "an MCP server has the name of a coding agent, whose own tools its tools would pass for; rename the server"
    )]
    AgentsName,
    /// A path.
    #[error(
        "a file must be named by a path of at most 4096 bytes without control characters, and a relative one needs `cwd`"
    )]
    Path,
    /// A patch that is none, or touches too much.
    #[error(
        "the patch must consist of sections that add, update or delete a file, at most {MAX_ACTIONS}"
    )]
    Patch,
}

impl HookError {
    /// The reason it is refused for.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Json(error) => error.reason(),
            Self::Event => Reason::MethodUnknown,
            Self::Name { error: NameError::TooLong, .. } => Reason::NameTooLong,
            Self::Member { .. }
            | Self::Name { .. }
            | Self::Ambiguous
            | Self::AgentsName
            | Self::Path
            | Self::Patch => Reason::MalformedMessage,
        }
    }
}

impl Agent {
    /// All of them.
    pub const ALL: [Self; 6] =
        [Self::ClaudeCode, Self::Codex, Self::Gemini, Self::Copilot, Self::Cursor, Self::Vscode];

    /// The name on command lines; also of the server that the agent's own tools belong to.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClaudeCode => "claude-code",
            Self::Codex => "codex",
            Self::Gemini => "gemini",
            Self::Copilot => "copilot",
            Self::Cursor => "cursor",
            Self::Vscode => "vscode",
        }
    }

    /// The agent of that name.
    #[must_use]
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|agent| agent.as_str() == name)
    }
}

/// Reads a hook's payload.
///
/// # Errors
/// When it is none of this agent's.
pub fn read(agent: Agent, bytes: &[u8], limits: Limits) -> Result<Hook, HookError> {
    let payload = payload::Payload::new(agent, json::parse(bytes, limits)?)?;
    let hook = match agent {
        // VS Code runs the hooks that Claude Code's and Copilot's files register, with payloads of its own.
        Agent::ClaudeCode | Agent::Copilot if payload.has("hookEventName") => vscode::read(payload),
        Agent::Copilot if payload.has("hook_event_name") => vscode::read(payload),
        Agent::ClaudeCode => claude_code::read(payload),
        Agent::Codex => codex::read(payload),
        Agent::Gemini => gemini::read(payload),
        Agent::Copilot => copilot::read(payload),
        Agent::Cursor => cursor::read(payload),
        Agent::Vscode => vscode::read(payload),
    }?;
    // What names nothing would be allowed by nobody's decision.
    if hook.actions.is_empty() || hook.actions.len() > MAX_ACTIONS {
        return Err(HookError::Patch);
    }
    Ok(hook)
}

#[cfg(test)]
mod tests;
