//! What an agent wants to do: one canonical [`Action`], whatever protocol it arrived by.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{AgentId, Digest, canonical};

/// The kinds of action that Aegis knows. Whatever is not one of these is denied.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ActionKind {
    /// A call of a tool: MCP `tools/call`.
    ToolCall,
    /// Reading a resource: MCP `resources/read`.
    ResourceRead,
    /// Watching resources or lists for changes.
    Subscription,
    /// Rendering a prompt: MCP `prompts/get`.
    PromptGet,
    /// Argument completion: MCP `completion/complete`.
    Completion,
    /// Enumerating tools, prompts, resources or templates. What the answer names is filtered.
    List,
    /// Opening, probing and closing a session, log levels, pings, notifications.
    Session,
    /// Reading, updating or cancelling a task that a call has started.
    Task,
    /// Something a server asks of its client: sampling, elicitation, roots.
    ServerRequest,
    /// A message to another agent.
    AgentMessage,
    /// An HTTP request that is neither MCP nor A2A.
    HttpRequest,
    /// Opening a connection that cannot be looked into.
    Connect,
    /// Reading a file.
    FileRead,
    /// Writing, moving or deleting a file.
    FileWrite,
    /// Running a command.
    ShellExec,
}

/// How the action arrived.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    /// Model Context Protocol.
    Mcp,
    /// Agent2Agent.
    A2a,
    /// Plain HTTP.
    Http,
    /// TLS that an application speaks by itself. Only a policy that names it allows any.
    Tls,
    /// The kernel API: a function call inside the agent's process.
    Kernel,
    /// An editor or a coding agent's hook.
    Ide,
}

/// One thing that one principal wants to do to one target.
#[derive(Clone, PartialEq, Debug, Serialize, Deserialize)]
pub struct Action {
    /// What sort of action.
    pub kind: ActionKind,
    /// How it arrived.
    pub protocol: Protocol,
    /// The protocol's own name for the operation, such as `tools/call`.
    pub method: String,
    /// The upstream's name in Aegis' configuration, never a name it gives itself.
    pub server: String,
    /// The tool or prompt, if one is named.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// The digest of the tool's pinned definition, if it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool_pin: Option<Digest>,
    /// The resource: a URI or a path, in canonical form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// The arguments, complete. Request ids and `_meta` are not arguments.
    #[serde(default)]
    pub arguments: Value,
}

impl ActionKind {
    /// The verb by which capabilities grant this kind.
    #[must_use]
    pub const fn capability_verb(self) -> &'static str {
        match self {
            Self::ToolCall => "call",
            Self::ResourceRead | Self::FileRead | Self::Subscription => "read",
            Self::PromptGet | Self::Completion => "prompt",
            Self::List | Self::Session | Self::Task => "use",
            Self::ServerRequest => "answer",
            Self::AgentMessage => "message",
            Self::HttpRequest => "request",
            Self::Connect => "connect",
            Self::FileWrite => "write",
            Self::ShellExec => "execute",
        }
    }

    /// Whether this kind only opens or describes a session: it reveals and changes nothing that is
    /// not decided again, item by item or call by call.
    #[must_use]
    pub const fn is_preparatory(self) -> bool {
        matches!(self, Self::List | Self::Session | Self::Task)
    }

    /// The stable name, as in the policy input.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ToolCall => "tool_call",
            Self::ResourceRead => "resource_read",
            Self::Subscription => "subscription",
            Self::PromptGet => "prompt_get",
            Self::Completion => "completion",
            Self::List => "list",
            Self::Session => "session",
            Self::Task => "task",
            Self::ServerRequest => "server_request",
            Self::AgentMessage => "agent_message",
            Self::HttpRequest => "http_request",
            Self::Connect => "connect",
            Self::FileRead => "file_read",
            Self::FileWrite => "file_write",
            Self::ShellExec => "shell_exec",
        }
    }
}

impl Protocol {
    /// Whether nobody can look into what is said: a policy has to name it to allow it.
    #[must_use]
    pub const fn is_opaque(self) -> bool {
        matches!(self, Self::Tls)
    }

    /// The stable name, as in the policy input.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Mcp => "mcp",
            Self::A2a => "a2a",
            Self::Http => "http",
            Self::Tls => "tls",
            Self::Kernel => "kernel",
            Self::Ide => "ide",
        }
    }
}

impl Action {
    /// The digest that approvals and grants are bound to: principal, target with the endpoint of it
    /// where it has several, tool pin and arguments; never the request id, the session or `_meta`.
    /// SHA-256 over the RFC 8785 form, after a line that keeps it apart from every other digest in
    /// Aegis.
    ///
    /// # Errors
    /// When the arguments hold a number that a double cannot hold exactly.
    pub fn digest(
        &self,
        principal: &AgentId,
        endpoint: Option<&str>,
    ) -> Result<Digest, canonical::CanonicalError> {
        let mut out = Vec::with_capacity(512);
        out.extend_from_slice(b"aegis.action.v1\n{\"arguments\":");
        canonical::write_value(&mut out, &self.arguments)?;
        let mut member = |name: &str, value: Option<&str>| {
            if let Some(value) = value {
                out.push(b',');
                canonical::write_string(&mut out, name);
                out.push(b':');
                canonical::write_string(&mut out, value);
            }
        };
        // RFC 8785 order; `arguments` sorts first.
        let pin = self.tool_pin.map(|pin| pin.to_string());
        member("endpoint", endpoint);
        member("kind", Some(self.kind.as_str()));
        member("method", Some(&self.method));
        member("principal", Some(principal.as_str()));
        member("protocol", Some(self.protocol.as_str()));
        member("resource", self.resource.as_deref());
        member("server", Some(&self.server));
        member("tool", self.tool.as_deref());
        member("tool_pin", pin.as_deref());
        out.push(b'}');
        Ok(Digest::of(&out))
    }

    /// The segments that capabilities are matched against: the server, then the tool or, if there
    /// is none, the resource's path.
    #[must_use]
    pub fn capability_segments(&self) -> Vec<&str> {
        let mut segments = vec![self.server.as_str()];
        match (&self.tool, &self.resource) {
            (Some(tool), _) => segments.push(tool),
            (None, Some(resource)) => {
                segments.extend(resource.split('/').filter(|s| !s.is_empty()))
            }
            (None, None) => {}
        }
        segments
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn action() -> Action {
        Action {
            kind: ActionKind::ToolCall,
            protocol: Protocol::Mcp,
            method: "tools/call".into(),
            server: "sqlite".into(),
            tool: Some("write_query".into()),
            tool_pin: None,
            resource: None,
            arguments: json!({ "query": "SELECT 1" }),
        }
    }

    fn agent(name: &str) -> AgentId {
        format!("spiffe://acme.example/ns/a/sa/b/agent/{name}").parse().unwrap()
    }

    #[test]
    fn the_digest_is_over_canonical_json() {
        let value = json!({
            "arguments": { "query": "SELECT 1" }, "kind": "tool_call", "method": "tools/call",
            "principal": agent("x").as_str(), "protocol": "mcp", "server": "sqlite", "tool": "write_query",
        });
        let mut bytes = b"aegis.action.v1\n".to_vec();
        bytes.extend(canonical::to_vec(&value).unwrap());
        assert_eq!(action().digest(&agent("x"), None).unwrap(), Digest::of(&bytes));
    }

    #[test]
    fn every_part_changes_the_digest() {
        let base = action().digest(&agent("x"), None).unwrap();
        let changes: [fn(&mut Action); 7] = [
            |a| a.kind = ActionKind::ResourceRead,
            |a| a.method = "tools/list".into(),
            |a| a.server = "other".into(),
            |a| a.tool = Some("read_query".into()),
            |a| a.tool_pin = Some(Digest::of(b"pin")),
            |a| a.resource = Some("file:///x".into()),
            |a| a.arguments = json!({ "query": "SELECT 2" }),
        ];
        for change in changes {
            let mut other = action();
            change(&mut other);
            assert_ne!(other.digest(&agent("x"), None).unwrap(), base);
        }
        assert_ne!(action().digest(&agent("y"), None).unwrap(), base);
        let (one, other) = (Some("8080/mcp"), Some("8081/mcp"));
        assert_ne!(action().digest(&agent("x"), one).unwrap(), base);
        assert_ne!(
            action().digest(&agent("x"), one).unwrap(),
            action().digest(&agent("x"), other).unwrap()
        );
    }

    #[test]
    fn key_order_does_not_change_the_digest() {
        let mut one = action();
        let mut two = action();
        one.arguments = serde_json::from_str(r#"{"a":1,"b":[1.0]}"#).unwrap();
        two.arguments = serde_json::from_str(r#"{"b":[1],"a":1.0}"#).unwrap();
        assert_eq!(one.digest(&agent("x"), None).unwrap(), two.digest(&agent("x"), None).unwrap());
    }
}
