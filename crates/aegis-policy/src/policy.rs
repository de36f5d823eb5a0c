//! A policy and its name.

use std::fmt;

use aegis_core::{Digest, policy::PolicySpec};
use serde::{Deserialize, Serialize};

/// The two kinds of policy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub enum PolicyKind {
    /// Of one namespace.
    AgentPolicy,
    /// Of the whole cluster.
    ClusterAgentPolicy,
}

/// A policy's name, unique.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct PolicyId {
    /// Its kind.
    pub kind: PolicyKind,
    /// Its namespace; `None` for a ClusterAgentPolicy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Its name.
    pub name: String,
}

/// A policy as it was written.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Policy {
    /// Its name.
    pub id: PolicyId,
    /// What it says.
    pub spec: PolicySpec,
}

impl Policy {
    /// The digest by which the ledger names this version of it.
    ///
    /// # Errors
    /// When it cannot be rendered as JSON.
    pub fn digest(&self) -> Result<Digest, serde_json::Error> {
        Ok(Digest::of(&serde_json::to_vec(self)?))
    }
}

impl PolicyId {
    /// An AgentPolicy.
    #[must_use]
    pub fn namespaced(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        let namespace = Some(namespace.into());
        Self { kind: PolicyKind::AgentPolicy, namespace, name: name.into() }
    }

    /// A ClusterAgentPolicy.
    #[must_use]
    pub fn cluster(name: impl Into<String>) -> Self {
        Self { kind: PolicyKind::ClusterAgentPolicy, namespace: None, name: name.into() }
    }
}

impl fmt::Display for PolicyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{namespace}/{}", self.name),
            None => f.write_str(&self.name),
        }
    }
}
