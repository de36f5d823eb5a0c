//! What a hook's process says: exit code, standard output and standard error, as the agent obeys them.
//!
//! Every one of these agents takes exit code 2 as a refusal, most with standard error as its reason (Copilot takes
//! the reason from standard output alone); so a refusal is both, and does not depend on the output being understood. That nothing
//! objects is not permission: where an agent asks its user before it acts it still does.

use serde_json::{Value, json};

use super::{Agent, Event};

/// Exit code 2: the action does not happen.
const REFUSED: u8 = 2;

/// What the hook's process says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Standard output: one JSON document, or nothing.
    pub stdout: String,
    /// Standard error: one sentence, or nothing.
    pub stderr: String,
    /// The exit code.
    pub code: u8,
}

/// Aegis has no objection.
#[must_use]
pub fn allowed(agent: Agent, event: Event) -> Answer {
    let stdout = match (agent, event) {
        // For these an empty answer is no objection.
        (Agent::ClaudeCode | Agent::Codex | Agent::Vscode, _) => String::new(),
        (Agent::Gemini | Agent::Copilot, _) => "{}".into(),
        (Agent::Cursor, Event::Tool) => json!({ "permission": "allow" }).to_string(),
        (Agent::Cursor, Event::Prompt) => json!({ "continue": true }).to_string(),
    };
    Answer { stdout, stderr: String::new(), code: 0 }
}

/// Aegis refuses, for the reason that `sentence` gives. Where the payload does not tell the event, it is taken
/// for a tool's: an agent that cannot use this form of answer still has the exit code.
#[must_use]
pub fn denied(agent: Agent, event: Option<Event>, sentence: &str) -> Answer {
    let stdout = form(agent, event.unwrap_or(Event::Tool), sentence).to_string();
    Answer { stdout, stderr: sentence.into(), code: REFUSED }
}

fn form(agent: Agent, event: Event, sentence: &str) -> Value {
    match (agent, event) {
        (Agent::ClaudeCode | Agent::Codex | Agent::Vscode, Event::Tool) => json!({
            "hookSpecificOutput": {
                "hookEventName": "PreToolUse",
                "permissionDecision": "deny",
                "permissionDecisionReason": sentence,
            },
        }),
        (Agent::ClaudeCode | Agent::Codex | Agent::Vscode | Agent::Copilot, Event::Prompt) => {
            json!({ "decision": "block", "reason": sentence })
        }
        (Agent::Gemini, _) => json!({ "decision": "deny", "reason": sentence }),
        (Agent::Copilot, Event::Tool) => {
            json!({ "permissionDecision": "deny", "permissionDecisionReason": sentence })
        }
        (Agent::Cursor, Event::Tool) => {
            json!({ "permission": "deny", "user_message": sentence, "agent_message": sentence })
        }
        (Agent::Cursor, Event::Prompt) => json!({ "continue": false, "user_message": sentence }),
    }
}
