//! Where each agent's hooks stand, what Aegis puts there, and how its own entries are recognised.

use std::path::{Path, PathBuf};

use aegis_protocol::hooks::Agent;
use anyhow::bail;
use serde_json::{Value, json};

use super::Scope;

/// How much longer the agent waits than the hook itself does: an agent that gives up goes on without it.
const MARGIN_SECS: u64 = 25;

/// An entry in a list of hooks.
#[derive(Debug)]
pub(super) struct Entry {
    /// Where the list stands.
    pub(super) path: [&'static str; 2],
    /// The entry.
    pub(super) item: Value,
}

/// The file in which an agent's hooks stand.
pub(super) fn file(
    agent: Agent,
    scope: Scope,
    home: &Path,
    project: &Path,
) -> anyhow::Result<PathBuf> {
    Ok(match (agent, scope) {
        (Agent::ClaudeCode, Scope::User) => home.join(".claude/settings.json"),
        (Agent::ClaudeCode, Scope::Project) => project.join(".claude/settings.json"),
        (Agent::Codex, Scope::User) => home.join(".codex/hooks.json"),
        (Agent::Codex, Scope::Project) => project.join(".codex/hooks.json"),
        (Agent::Gemini, Scope::User) => home.join(".gemini/settings.json"),
        (Agent::Gemini, Scope::Project) => project.join(".gemini/settings.json"),
        (Agent::Copilot, Scope::User) => home.join(".copilot/hooks/aegis.json"),
        (Agent::Copilot, Scope::Project) => project.join(".github/hooks/aegis.json"),
        (Agent::Cursor, Scope::User) => home.join(".cursor/hooks.json"),
        (Agent::Cursor, Scope::Project) => project.join(".cursor/hooks.json"),
        (Agent::Vscode, Scope::Project) => project.join(".github/hooks/aegis-vscode.json"),
        (Agent::Vscode, Scope::User) => bail!(
            "VS Code takes hooks from the folder that is open; use `--scope project` in that folder"
        ),
    })
}

/// The members that a file of this agent's must have.
pub(super) fn base(agent: Agent) -> Value {
    match agent {
        Agent::Copilot | Agent::Cursor => json!({ "version": 1 }),
        _ => json!({}),
    }
}

/// What Aegis puts there. `wait` is how long a person may take to approve.
pub(super) fn entries(
    agent: Agent,
    command: &str,
    wait: u64,
    prompts: bool,
) -> anyhow::Result<Vec<Entry>> {
    let seconds = wait + MARGIN_SECS + crate::hook::ask::TIMEOUT.as_secs();
    let plain = json!({ "type": "command", "command": command, "timeout": seconds });
    let item = match agent {
        Agent::ClaudeCode => {
            // `onFailure`: what it does when the hook cannot be run or is too slow; else it goes on.
            let hook = json!({ "type": "command", "command": command, "timeout": seconds, "onFailure": "block" });
            json!({ "matcher": "*", "hooks": [hook] })
        }
        Agent::Codex => json!({ "matcher": "*", "hooks": [plain] }),
        Agent::Gemini => {
            let milliseconds = seconds * 1000;
            let hook = json!({ "name": "aegis", "type": "command", "command": command, "timeout": milliseconds });
            json!({ "matcher": ".*", "hooks": [hook] })
        }
        Agent::Copilot => json!({ "type": "command", "bash": command, "timeoutSec": seconds }),
        Agent::Cursor => json!({ "command": command, "timeout": seconds, "failClosed": true }),
        Agent::Vscode => plain,
    };
    let (tool, prompt) = match agent {
        Agent::ClaudeCode | Agent::Codex | Agent::Vscode => {
            ("PreToolUse", Some("UserPromptSubmit"))
        }
        Agent::Gemini => ("BeforeTool", Some("BeforeAgent")),
        // It runs a hook for a prompt and ignores what it says.
        Agent::Copilot => ("preToolUse", None),
        Agent::Cursor => ("preToolUse", Some("beforeSubmitPrompt")),
    };
    let mut entries = vec![Entry { path: ["hooks", tool], item: item.clone() }];
    if prompts {
        let Some(prompt) = prompt else {
            bail!("{} cannot be kept from a prompt by a hook; leave out --prompts", agent.as_str());
        };
        entries.push(Entry { path: ["hooks", prompt], item });
    }
    Ok(entries)
}

/// The lists in which entries of Aegis may stand.
pub(super) fn lists(agent: Agent) -> [[&'static str; 2]; 2] {
    match agent {
        Agent::ClaudeCode | Agent::Codex | Agent::Vscode => {
            [["hooks", "PreToolUse"], ["hooks", "UserPromptSubmit"]]
        }
        Agent::Gemini => [["hooks", "BeforeTool"], ["hooks", "BeforeAgent"]],
        Agent::Copilot => [["hooks", "preToolUse"], ["hooks", "userPromptSubmitted"]],
        Agent::Cursor => [["hooks", "preToolUse"], ["hooks", "beforeSubmitPrompt"]],
    }
}

/// Whether an entry, or all the hooks in it, run `aegis hook` or `aegis-hook`.
pub(super) fn is_ours(entry: &Value) -> bool {
    if let Some(hooks) = entry.get("hooks").and_then(Value::as_array) {
        return !hooks.is_empty() && hooks.iter().all(is_ours);
    }
    let command = entry.get("command").or_else(|| entry.get("bash")).and_then(Value::as_str);
    command.is_some_and(|command| {
        let words: Vec<&str> = command.split_whitespace().collect();
        let program = |word: &str| word.trim_matches('\'').rsplit('/').next().map(str::to_owned);
        let pairs = words.windows(2).any(|pair| {
            matches!(pair, [one, two] if program(one).as_deref() == Some("aegis") && *two == "hook")
        });
        pairs || words.iter().any(|word| program(word).as_deref() == Some("aegis-hook"))
    })
}

/// What in an agent's settings keeps its hooks from running; one sentence.
pub(super) fn switched_off(agent: Agent, settings: &Value) -> Option<&'static str> {
    let is = |pointer: &str, value: bool| settings.pointer(pointer) == Some(&Value::Bool(value));
    let disabled = settings.pointer("/hooksConfig/disabled").and_then(Value::as_array);
    let named = disabled.is_some_and(|names| names.iter().any(|name| name == "aegis"));
    match agent {
        Agent::ClaudeCode if is("/disableAllHooks", true) => {
            Some("`disableAllHooks` is on, so no hook runs; remove it")
        }
        Agent::Gemini if is("/hooksConfig/enabled", false) => {
            Some("`hooksConfig.enabled` is off, so no hook runs; remove it")
        }
        Agent::Gemini if named => {
            Some("`hooksConfig.disabled` names `aegis`, so its hook does not run; remove it")
        }
        _ => None,
    }
}
