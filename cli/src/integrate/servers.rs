//! The stdio MCP servers in an agent's configuration, put behind `aegis wrap` or taken out again.

use std::path::{Path, PathBuf};

use aegis_protocol::{hooks::Agent, json::edit};
use anyhow::Context as _;
use serde_json::{Value, json};
use toml_edit::{Array, DocumentMut, Item};

use super::Scope;

/// The file in which an agent's MCP servers stand, and the member that holds them.
pub(super) fn file(
    agent: Agent,
    scope: Scope,
    home: &Path,
    project: &Path,
) -> Option<(PathBuf, &'static str)> {
    Some(match (agent, scope) {
        (Agent::ClaudeCode, Scope::User) => (home.join(".claude.json"), "mcpServers"),
        (Agent::ClaudeCode, Scope::Project) => (project.join(".mcp.json"), "mcpServers"),
        (Agent::Codex, Scope::User) => (home.join(".codex/config.toml"), "mcp_servers"),
        (Agent::Codex, Scope::Project) => (project.join(".codex/config.toml"), "mcp_servers"),
        (Agent::Gemini, Scope::User) => (home.join(".gemini/settings.json"), "mcpServers"),
        (Agent::Gemini, Scope::Project) => (project.join(".gemini/settings.json"), "mcpServers"),
        (Agent::Copilot, Scope::User) => (home.join(".copilot/mcp-config.json"), "mcpServers"),
        (Agent::Cursor, Scope::User) => (home.join(".cursor/mcp.json"), "mcpServers"),
        (Agent::Cursor, Scope::Project) => (project.join(".cursor/mcp.json"), "mcpServers"),
        (Agent::Vscode, Scope::Project) => (project.join(".vscode/mcp.json"), "servers"),
        (Agent::Copilot, Scope::Project) | (Agent::Vscode, Scope::User) => return None,
    })
}

/// `aegis wrap` as a command, with the daemon's socket.
#[derive(Debug)]
pub(super) struct Wrapper {
    pub(super) program: String,
    pub(super) socket: String,
}

impl Wrapper {
    fn arguments(&self, name: &str, command: &str, args: &[String]) -> Vec<String> {
        let own = ["wrap", "--socket", &self.socket, "--server", name, "--", command];
        own.into_iter().map(str::to_owned).chain(args.iter().cloned()).collect()
    }
}

/// The command that stands behind `aegis wrap`, if that is what these are.
fn unwrapped(command: &str, args: &[String]) -> Option<(String, Vec<String>)> {
    let program = command.rsplit('/').next();
    if program != Some("aegis") || args.first().map(String::as_str) != Some("wrap") {
        return None;
    }
    let behind = args.iter().position(|word| word == "--")? + 1;
    let (command, rest) = args.get(behind..)?.split_first()?;
    Some((command.clone(), rest.to_vec()))
}

/// What a server's command becomes: wrapped as given, or as it was before. `None` leaves it.
fn changed(
    wrapper: Option<&Wrapper>,
    name: &str,
    command: &str,
    args: &[String],
) -> Option<(String, Vec<String>)> {
    let bare = unwrapped(command, args);
    match (wrapper, bare) {
        (Some(wrapper), bare) => {
            let (command, args) = bare.unwrap_or_else(|| (command.to_owned(), args.to_vec()));
            Some((wrapper.program.clone(), wrapper.arguments(name, &command, &args)))
        }
        (None, bare) => bare,
    }
}

/// A JSON file with its servers changed.
pub(super) fn in_json(
    text: &[u8],
    member: &str,
    wrapper: Option<&Wrapper>,
) -> anyhow::Result<Vec<u8>> {
    let Some(servers) = edit::find(text, &[member]) else { return Ok(text.to_vec()) };
    let servers =
        edit::members(text, &servers).with_context(|| format!("`{member}` is no object"))?;
    let mut edits = Vec::new();
    for server in servers {
        let bytes = text.get(server.value.clone()).unwrap_or_default();
        let value: Value = serde_json::from_slice(bytes)?;
        let Some(command) = value.get("command").and_then(Value::as_str) else { continue };
        let args = words(value.get("args")).with_context(|| {
            format!("the arguments of the server `{}` are no list of texts", server.name)
        })?;
        let Some((command, args)) = changed(wrapper, &server.name, command, &args) else {
            continue;
        };
        let parts = edit::members(text, &server.value).unwrap_or_default();
        let part = |name: &str| parts.iter().find(|part| part.name == name);
        let Some(at) = part("command") else { continue };
        let mut command = json!(command).to_string();
        match part("args") {
            Some(list) => {
                let mut both = [
                    (at.value.clone(), command.into_bytes()),
                    (list.value.clone(), json!(args).to_string().into_bytes()),
                ];
                both.sort_by_key(|(range, _)| range.start);
                edits.extend(both);
            }
            None => {
                command.push_str(&format!(", \"args\": {}", json!(args)));
                edits.push((at.value.clone(), command.into_bytes()));
            }
        }
    }
    edit::splice(text, &edits).context("the file changed while it was read")
}

fn words(list: Option<&Value>) -> Option<Vec<String>> {
    match list {
        None => Some(Vec::new()),
        Some(list) => {
            list.as_array()?.iter().map(|word| word.as_str().map(str::to_owned)).collect()
        }
    }
}

/// A TOML file with its servers changed.
pub(super) fn in_toml(
    text: &str,
    member: &str,
    wrapper: Option<&Wrapper>,
) -> anyhow::Result<String> {
    let parsed: Result<DocumentMut, _> = text.parse();
    let mut document = parsed.map_err(|error| anyhow::anyhow!("{}", error.message()))?;
    let Some(servers) = document.get_mut(member).and_then(Item::as_table_like_mut) else {
        return Ok(text.to_owned());
    };
    for (name, server) in servers.iter_mut() {
        let Some(server) = server.as_table_like_mut() else { continue };
        let Some(command) = server.get("command").and_then(Item::as_str) else { continue };
        let args = match server.get("args") {
            None => Some(Vec::new()),
            Some(list) => list.as_array().and_then(|list| {
                list.iter().map(|word| word.as_str().map(str::to_owned)).collect()
            }),
        };
        let args = args.with_context(|| {
            format!("the arguments of the server `{}` are no list of texts", name.get())
        })?;
        let Some((command, args)) = changed(wrapper, name.get(), command, &args) else { continue };
        if server.get("command").and_then(Item::as_str) != Some(command.as_str()) {
            server.insert("command", toml_edit::value(command));
        }
        if args.is_empty() {
            server.remove("args");
        } else {
            server.insert("args", toml_edit::value(args.into_iter().collect::<Array>()));
        }
    }
    Ok(document.to_string())
}
