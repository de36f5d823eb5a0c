//! `AgentUpstream`: a server that agents reach through Aegis, and how.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf};

use aegis_core::Digest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The specification of an AgentUpstream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    { "rule": "has(self.url) != has(self.command)",
      "message": "an upstream is reached either by `url` or by `command`; keep exactly one" },
    { "rule": "!has(self.protocol) || self.protocol != 'a2a' || has(self.url)",
      "message": "an A2A agent is reached by `url`" },
    { "rule": "!has(self.credential) || has(self.url)",
      "message": "`credential` needs `url`; give a command its secrets by `command.env`" },
    { "rule": "!has(self.roots) || (has(self.url) && self.url.startsWith('https://'))",
      "message": "`roots` needs an https:// `url`" },
]))]
pub struct AgentUpstreamSpec {
    /// What it speaks.
    #[serde(default)]
    pub protocol: UpstreamProtocol,
    /// An HTTP or HTTPS endpoint, such as `https://tools.example/mcp`. Either this or `command`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048), regex(pattern = r"^https?://[^\s@]+$"))]
    pub url: Option<String>,
    /// A command that speaks MCP on its standard streams. Either this or `url`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<UpstreamCommand>,
    /// Where Aegis listens for it, such as `127.0.0.1:7101`. Default: a free loopback port, which
    /// `aegis status` shows.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        with = "Option<String>",
        length(max = 64),
        regex(pattern = r"^(127\.[0-9.]+|\[::1\]):[0-9]{1,5}$")
    )]
    pub listen: Option<SocketAddr>,
    /// For HTTPS: a PEM file with the roots to trust instead of the public ones.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(min = 1, max = 4096))]
    pub roots: Option<PathBuf>,
    /// A credential that Aegis adds to each request and the agent never sees.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<Credential>,
    /// How the upstream's OAuth metadata (RFC 9728) looks to clients. Default: as the upstream gives
    /// it, or hidden where there is a `credential`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oauth_metadata: Option<OauthMetadata>,
    /// How definitions of tools are pinned.
    #[serde(default)]
    pub tool_pins: ToolPins,
    /// How a refusal looks to the agent.
    #[serde(default)]
    pub deny_form: DenyForm,
    /// Values of `Origin` that may call, besides none. For browsers.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32), inner(length(min = 1, max = 512)))]
    pub allowed_origins: Vec<String>,
    /// For an A2A agent: what its clients may ask of it besides the protocol itself.
    #[serde(default, skip_serializing_if = "A2aOptions::is_default")]
    pub a2a: A2aOptions,
    /// What a server may ask of its client (`sampling/createMessage`, `elicitation/create`,
    /// `roots/list`) still needs a policy; this is how large and slow messages may be.
    #[serde(default)]
    pub limits: Limits,
}

/// What an upstream speaks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UpstreamProtocol {
    /// Model Context Protocol.
    #[default]
    Mcp,
    /// Agent2Agent, versions 0.3 and 1.0, by JSON-RPC and HTTP+JSON.
    A2a,
}

/// What the clients of an A2A agent may ask of it besides the protocol itself.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct A2aOptions {
    /// URIs of the extensions that a request may ask for. Any other is refused.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 2048)))]
    pub extensions: Vec<String>,
    /// Hosts that a webhook may lead to although they are not public, such as `hooks.shop.svc`. To
    /// every webhook a policy must agree as well.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    pub webhook_hosts: Vec<String>,
    /// Whether a client may name a context of its own making. A context that Aegis has forgotten, as
    /// after a restart, cannot be told from a new one then: another client that knows its name can join it.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub client_contexts: bool,
}

impl A2aOptions {
    fn is_default(&self) -> bool {
        *self == Self::default()
    }
}

/// A command that speaks MCP on its standard streams.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct UpstreamCommand {
    /// The program: a path, or a name looked up in `PATH`.
    #[schemars(length(min = 1, max = 4096))]
    pub program: String,
    /// Its arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(max = 4096)))]
    pub args: Vec<String>,
    /// Variables added to its environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "environment")]
    pub env: BTreeMap<String, String>,
    /// The user of this machine to run it as: a name or a number. Needs a daemon that runs as root.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(min = 1, max = 256))]
    pub user: Option<String>,
    /// Its working directory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<String>", length(min = 1, max = 4096))]
    pub directory: Option<PathBuf>,
}

fn environment(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": 128,
        "additionalProperties": { "type": "string", "maxLength": 32_768 },
    })
}

/// A credential that Aegis adds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Credential {
    /// The header. Default `authorization`.
    #[serde(default = "default_header")]
    #[schemars(length(min = 1, max = 128))]
    pub header: String,
    /// What stands before the secret, such as `Bearer `.
    #[serde(default)]
    #[schemars(length(max = 64))]
    pub prefix: String,
    /// The file that holds the secret; read anew when it changes.
    #[schemars(with = "String", length(min = 1, max = 4096))]
    pub file: PathBuf,
}

fn default_header() -> String {
    "authorization".into()
}

/// How an upstream's OAuth metadata looks to clients. Aegis itself asks for no token: it knows its
/// callers from the operating system.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OauthMetadata {
    /// As the upstream gives it, at Aegis' address: tokens are for the upstream. A client that insists
    /// on `resource` being the address it was given refuses this.
    Upstream,
    /// With Aegis' address as `resource`. The authorization server must issue tokens for it, and the
    /// upstream must accept them.
    Own,
    /// Not at all: a client is never asked for a token.
    Hidden,
}

/// How definitions of tools are pinned.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct ToolPins {
    /// What happens to a tool that has no pin yet.
    pub unknown: UnknownTool,
    /// Pins known beforehand, by tool.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "pins")]
    pub digests: BTreeMap<String, Digest>,
}

fn pins(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": 1024,
        "additionalProperties": generator.subschema_for::<Digest>(),
    })
}

impl Default for ToolPins {
    fn default() -> Self {
        Self { unknown: UnknownTool::Pin, digests: BTreeMap::new() }
    }
}

/// What happens to a tool that has no pin yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UnknownTool {
    /// Its first definition is pinned and recorded.
    Pin,
    /// It is quarantined until a human pins it.
    Quarantine,
}

/// How a refusal looks to the agent.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DenyForm {
    /// A tool result with `isError` and the reason: the model can take another way.
    #[default]
    Explain,
    /// The same answer as for a tool that does not exist.
    Hide,
    /// HTTP 403 with `WWW-Authenticate: … insufficient_scope`: the client can ask for more.
    StepUp,
}

/// Sizes and times.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Limits {
    /// The largest request. Bytes.
    #[schemars(range(min = 1024, max = 67_108_864))]
    pub request_bytes: u32,
    /// The largest JSON answer or single event. Bytes.
    #[schemars(range(min = 1024, max = 268_435_456))]
    pub response_bytes: u32,
    /// How long a request may take to arrive. Seconds.
    #[schemars(range(min = 1, max = 600))]
    pub read_timeout_secs: u32,
    /// How long an upstream may take until its answer begins. Seconds.
    #[schemars(range(min = 1, max = 86_400))]
    pub answer_timeout_secs: u32,
    /// How long a call is held for an approval before the client is told that it waits. Seconds.
    #[schemars(range(min = 0, max = 86_400))]
    pub hold_secs: u32,
    /// How many connections are served at once; more are closed and counted.
    #[schemars(range(min = 1, max = 65_536))]
    pub connections: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            request_bytes: 4 << 20,
            response_bytes: 16 << 20,
            read_timeout_secs: 15,
            answer_timeout_secs: 300,
            hold_secs: 600,
            connections: 4_096,
        }
    }
}

impl AgentUpstreamSpec {
    /// How its OAuth metadata looks to clients.
    #[must_use]
    pub fn presents_oauth(&self) -> OauthMetadata {
        let default = match self.credential {
            Some(_) => OauthMetadata::Hidden,
            None => OauthMetadata::Upstream,
        };
        self.oauth_metadata.unwrap_or(default)
    }

    /// What the schema cannot say.
    ///
    /// # Errors
    /// One sentence naming the field and what to do.
    pub fn validate(&self) -> Result<(), String> {
        match (&self.url, &self.command) {
            (Some(_), Some(_)) => {
                return Err("`spec.url` and `spec.command` exclude each other; keep one".into());
            }
            (None, None) => return Err("one of `spec.url` and `spec.command` is needed".into()),
            (Some(url), None) => {
                let scheme = ["http://", "https://"].iter().any(|scheme| url.starts_with(scheme));
                if !scheme || url.contains(char::is_whitespace) || url.contains('@') {
                    return Err(format!(
                        "`spec.url` is `{url}`; expected http:// or https://, a host and a path, without credentials"
                    ));
                }
            }
            (None, Some(command)) => {
                if command.program.trim().is_empty() {
                    return Err("`spec.command.program` is empty".into());
                }
                if self.credential.is_some() {
                    return Err("`spec.credential` needs `spec.url`; give a command its secrets by `spec.command.env`".into());
                }
            }
        }
        match self.protocol {
            UpstreamProtocol::A2a if self.url.is_none() => {
                return Err("`spec.protocol: a2a` needs `spec.url`".into());
            }
            UpstreamProtocol::Mcp if self.a2a != A2aOptions::default() => {
                return Err("`spec.a2a` needs `spec.protocol: a2a`".into());
            }
            _ => {}
        }
        if self.listen.is_some_and(|address| !address.ip().is_loopback()) {
            return Err("`spec.listen` must be a loopback address: callers are identified by the kernel of this machine".into());
        }
        match (self.oauth_metadata, &self.credential) {
            (Some(_), _) if self.url.is_none() => {
                return Err("`spec.oauthMetadata` needs `spec.url`".into());
            }
            (Some(OauthMetadata::Upstream | OauthMetadata::Own), Some(_)) => {
                return Err("`spec.credential` is Aegis' own, so clients need no token; set `spec.oauthMetadata` to `hidden` or leave it out".into());
            }
            _ => {}
        }
        if self.roots.is_some()
            && !self.url.as_deref().is_some_and(|url| url.starts_with("https://"))
        {
            return Err("`spec.roots` needs an https:// `spec.url`".into());
        }
        Ok(())
    }
}
