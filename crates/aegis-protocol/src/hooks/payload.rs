//! Reading members strictly, and making actions of them: the same for every agent.

use aegis_core::action::{Action, ActionKind, Protocol};
use serde_json::{Map, Value, json};

use super::{Agent, Event, Hook, HookError};
use crate::{
    json::{self, Limits},
    mcp::name,
};

/// The longest path. PATH_MAX of Linux.
const MAX_PATH: usize = 4096;

/// A tool's name and its arguments.
pub(super) type NamedTool = (String, Map<String, Value>);

/// What a hook was told.
pub(super) struct Payload {
    agent: Agent,
    members: Map<String, Value>,
}

impl Payload {
    pub(super) fn new(agent: Agent, whole: Value) -> Result<Self, HookError> {
        match whole {
            Value::Object(members) => Ok(Self { agent, members }),
            _ => Err(HookError::Member { member: "payload", expected: "an object" }),
        }
    }

    /// A text that must be there.
    pub(super) fn text(&self, member: &'static str) -> Result<&str, HookError> {
        text(&self.members, member)
    }

    pub(super) fn has(&self, member: &str) -> bool {
        self.members.contains_key(member)
    }

    /// The arguments of a tool.
    pub(super) fn object(&mut self, member: &'static str) -> Result<Map<String, Value>, HookError> {
        match self.members.shift_remove(member) {
            Some(Value::Object(object)) => Ok(object),
            _ => Err(HookError::Member { member, expected: "an object" }),
        }
    }

    /// The arguments of a tool, as an object or as the text of one, which is read as strictly.
    pub(super) fn object_or_text(
        &mut self,
        member: &'static str,
    ) -> Result<Map<String, Value>, HookError> {
        let parsed = match self.members.get(member) {
            Some(Value::String(text)) => json::parse(text.as_bytes(), Limits::default())?,
            _ => return self.object(member),
        };
        match parsed {
            Value::Object(object) => Ok(object),
            _ => Err(HookError::Member { member, expected: "an object" }),
        }
    }

    /// The tool that is about to run, with its arguments; `None` before a prompt. The event stands in
    /// `member`.
    pub(super) fn tool(
        &mut self,
        member: &'static str,
        before_tool: &str,
        before_prompt: &str,
    ) -> Result<Option<NamedTool>, HookError> {
        let event = self.text(member)?;
        if event == before_prompt {
            return Ok(None);
        }
        if event != before_tool {
            return Err(HookError::Event);
        }
        let tool = self.text("tool_name")?.to_owned();
        Ok(Some((tool, self.object("tool_input")?)))
    }

    pub(super) fn prompt(&self) -> Result<Hook, HookError> {
        let mut action = self.action(ActionKind::AgentMessage, "prompt.submit");
        action.arguments = json!({ "prompt": self.text("prompt")? });
        Ok(Hook { event: Event::Prompt, actions: vec![action] })
    }

    /// The command stands in the argument `command`, and nowhere else.
    pub(super) fn shell(&self, arguments: Map<String, Value>) -> Result<Hook, HookError> {
        text(&arguments, "command")?;
        let mut action = self.action(ActionKind::ShellExec, "shell.exec");
        action.arguments = Value::Object(arguments);
        Ok(one(action))
    }

    /// A file that an argument names.
    pub(super) fn file(
        &self,
        write: bool,
        named: &'static str,
        arguments: Map<String, Value>,
    ) -> Result<Hook, HookError> {
        let path = self.path(text(&arguments, named)?)?;
        Ok(one(self.file_at(write, path, arguments)))
    }

    pub(super) fn file_at(
        &self,
        write: bool,
        path: String,
        arguments: Map<String, Value>,
    ) -> Action {
        let (kind, method) = if write {
            (ActionKind::FileWrite, "file.write")
        } else {
            (ActionKind::FileRead, "file.read")
        };
        let mut action = self.action(kind, method);
        action.resource = Some(path);
        action.arguments = Value::Object(arguments);
        action
    }

    /// A tool of an MCP server.
    pub(super) fn mcp(
        &self,
        server: &str,
        tool: &str,
        arguments: Map<String, Value>,
    ) -> Result<Hook, HookError> {
        checked("the server's name", server)?;
        // Under such a name its tools would pass for the agent's own.
        if Agent::named(server).is_some() {
            return Err(HookError::AgentsName);
        }
        self.called(server, tool, arguments)
    }

    /// A tool of the agent itself.
    pub(super) fn own(&self, tool: &str, arguments: Map<String, Value>) -> Result<Hook, HookError> {
        self.called(self.agent.as_str(), tool, arguments)
    }

    fn called(
        &self,
        server: &str,
        tool: &str,
        arguments: Map<String, Value>,
    ) -> Result<Hook, HookError> {
        checked("the tool's name", tool)?;
        let mut action = self.action(ActionKind::ToolCall, "tools/call");
        action.server = server.into();
        action.tool = Some(tool.into());
        action.arguments = Value::Object(arguments);
        Ok(one(action))
    }

    /// A tool that is named `mcp__SERVER__TOOL` if it is one of an MCP server, and the agent's own otherwise.
    pub(super) fn named(
        &self,
        tool: &str,
        arguments: Map<String, Value>,
    ) -> Result<Hook, HookError> {
        match mcp_name(tool) {
            Some(names) => {
                let (server, tool) = names?;
                self.mcp(server, tool, arguments)
            }
            None => self.own(tool, arguments),
        }
    }

    /// The absolute path that the agent means: relative to its working folder, with `.` and `..` taken by
    /// their text, as these agents do.
    pub(super) fn path(&self, named: &str) -> Result<String, HookError> {
        let whole = if named.starts_with('/') {
            named.to_owned()
        } else {
            let folder = self.text("cwd").map_err(|_| HookError::Path)?;
            if !folder.starts_with('/') || named.is_empty() || named.starts_with('~') {
                return Err(HookError::Path);
            }
            format!("{folder}/{named}")
        };
        if whole.len() > MAX_PATH || whole.chars().any(char::is_control) {
            return Err(HookError::Path);
        }
        let mut segments: Vec<&str> = Vec::new();
        for segment in whole.split('/') {
            match segment {
                "" | "." => {}
                ".." => {
                    segments.pop();
                }
                _ => segments.push(segment),
            }
        }
        Ok(format!("/{}", segments.join("/")))
    }

    fn action(&self, kind: ActionKind, method: &str) -> Action {
        Action {
            kind,
            protocol: Protocol::Ide,
            method: method.into(),
            server: self.agent.as_str().into(),
            tool: None,
            tool_pin: None,
            resource: None,
            arguments: Value::Object(Map::new()),
        }
    }
}

/// One action before a tool.
pub(super) fn one(action: Action) -> Hook {
    Hook { event: Event::Tool, actions: vec![action] }
}

/// A text that must be there.
pub(super) fn text<'a>(
    members: &'a Map<String, Value>,
    member: &'static str,
) -> Result<&'a str, HookError> {
    match members.get(member) {
        Some(Value::String(text)) if !text.is_empty() => Ok(text),
        _ => Err(HookError::Member { member, expected: "a string that is not empty" }),
    }
}

/// `mcp__SERVER__TOOL`, where the names leave one way to read it.
fn mcp_name(tool: &str) -> Option<Result<(&str, &str), HookError>> {
    let (server, tool) = tool.strip_prefix("mcp__")?.split_once("__")?;
    // `a__b__c` is the tool `c` of `a__b` or the tool `b__c` of `a`; `a___b` is no better.
    let split = !tool.contains("__") && !tool.starts_with('_');
    Some(split.then_some((server, tool)).ok_or(HookError::Ambiguous))
}

fn checked(what: &'static str, text: &str) -> Result<(), HookError> {
    name::check(text).map_err(|error| HookError::Name { what, error })
}
