//! `AgentIdentity`: who an agent is, who answers for it, and what it may ever do.

use std::collections::BTreeMap;

use aegis_core::{Digest, Sponsor, capability::Capability};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The specification of an AgentIdentity.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentIdentitySpec {
    /// The human who answers for the agent.
    pub sponsor: Sponsor,
    /// The service account in the SPIFFE ID. Default `default`.
    #[serde(default = "default_service_account")]
    #[schemars(length(min = 1, max = 63), regex(pattern = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"))]
    pub service_account: String,
    /// How a process proves that it is this agent.
    pub selector: IdentitySelector,
    /// What the agent may ever do, as `action:server/tool`. Empty: whatever policies allow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub capabilities: Vec<Capability>,
    /// How long an SVID lives. Seconds, 60..86400. Default 900.
    #[serde(default = "default_ttl", rename = "svidTTLSeconds")]
    #[schemars(range(min = 60, max = 86_400))]
    pub svid_ttl_seconds: u32,
    /// The kill switch of one agent: every action of it is denied while this is true. Default false.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub suspended: bool,
}

/// How a process proves that it is an agent. Every selector that is given must match; of several
/// identities that match, the one with more selectors wins, and a tie is refused.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    { "rule": "has(self.unix) || has(self.kubernetes)",
      "message": "an empty selector would match everything; add `kubernetes` (pods) or `unix` (processes of one machine)" },
]))]
pub struct IdentitySelector {
    /// On one machine: what the kernel says of the process at the other end of a local socket.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub unix: Option<UnixSelector>,
    /// In a cluster: which pods of the namespace it is, among those of `serviceAccount`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kubernetes: Option<KubernetesSelector>,
}

/// Which pods are an agent: those of its service account that carry these labels.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct KubernetesSelector {
    /// Labels that a pod must carry, each with this value. Empty: every pod of the service account.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "pod_labels")]
    pub pod_labels: BTreeMap<String, String>,
}

/// At most 16 labels, with values as Kubernetes has them.
fn pod_labels(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "object",
        "maxProperties": 16,
        "additionalProperties": { "type": "string", "maxLength": 63 },
    })
}

/// What the kernel says of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    { "rule": "has(self.uid) || has(self.gid) || has(self.executable) || has(self.executableDigest) || has(self.launcher)",
      "message": "an empty `unix` selector would match every process; add at least a `uid`" },
    { "rule": "!has(self.executable) || self.executable.startsWith('/')",
      "message": "`executable` must be an absolute path" },
    { "rule": "!has(self.launcher) || self.launcher.startsWith('/')",
      "message": "`launcher` must be an absolute path" },
]))]
pub struct UnixSelector {
    /// Its user id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its group id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// The path of its executable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub executable: Option<String>,
    /// The digest of its executable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub executable_digest: Option<Digest>,
    /// The path of the executable of its parent: the program that launched it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub launcher: Option<String>,
}

fn default_service_account() -> String {
    "default".into()
}

const fn default_ttl() -> u32 {
    900
}

impl AgentIdentitySpec {
    /// What the schema cannot say.
    ///
    /// # Errors
    /// One sentence naming the field and what to do.
    pub fn validate(&self) -> Result<(), String> {
        if !(60..=86_400).contains(&self.svid_ttl_seconds) {
            return Err(format!(
                "`spec.svidTTLSeconds` is {}; it must lie between 60 and 86400",
                self.svid_ttl_seconds
            ));
        }
        let Some(unix) = &self.selector.unix else {
            return match &self.selector.kubernetes {
                Some(_) => Ok(()),
                None => Err("`spec.selector` is empty and would match every process; add `unix` with at least a `uid`, or `kubernetes`".into()),
            };
        };
        if *unix == UnixSelector::default() {
            return Err(
                "`spec.selector.unix` is empty and would match every process; add at least a `uid`"
                    .into(),
            );
        }
        for (field, path) in [("executable", &unix.executable), ("launcher", &unix.launcher)] {
            if path.as_ref().is_some_and(|path| !path.starts_with('/')) {
                return Err(format!("`spec.selector.unix.{field}` must be an absolute path"));
            }
        }
        Ok(())
    }
}
