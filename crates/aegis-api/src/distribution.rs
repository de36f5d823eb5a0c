//! What the operator tells sidecars: the state to enforce, signed, with a serial and an expiry.
//!
//! A sidecar takes a state only if the operator signed it, it has not expired and it is newer than
//! the one in force: an old state cannot be played back to bring an old policy or a released agent
//! back. A confirmation says that the state in force is still the newest; without one, the state
//! grows old, and sensitive actions are denied once it is too old.
//!
//! Agents' trust moves far more often than the rest, so it comes in statements of its own, with those
//! agents alone that have changed. They are numbered, and what is older is not taken either.

mod client;
mod verify;

use aegis_core::{
    AgentId, Sponsor, Timestamp, capability::Capability, thresholds::Thresholds, trust::Trust,
};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

pub use client::{Followed, follow};
pub use verify::{Refused, Verifier, sign};

/// The generated messages and the service.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod proto {
    tonic::include_proto!("aegis.distribution.v1");
}

/// The largest statement. Bytes.
pub const MAX_STATEMENT_BYTES: usize = 64 << 20;

/// What is signed.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Statement {
    /// This is to be enforced from now on.
    State(Box<Distributed>),
    /// This is still the newest state.
    Confirmation(Confirmation),
    /// So much are these agents trusted.
    Trust(ToldTrust),
}

/// The state to enforce.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Distributed {
    /// Larger than that of every state before.
    pub serial: u64,
    /// When it was signed.
    pub issued_at: Timestamp,
    /// From when on it counts no more.
    pub expires_at: Timestamp,
    /// The compiled policies, as `aegis-policy` has them.
    pub policies: Box<RawValue>,
    /// The cluster's thresholds.
    pub thresholds: Thresholds,
    /// What namespaces tighten.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub tightened: Vec<Tightened>,
    /// The agents that are registered.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub agents: Vec<Registered>,
    /// The servers outside the mesh that agents may be sent to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub upstreams: Vec<Upstream>,
    /// Whose identity is revoked.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub revoked: Vec<AgentId>,
    /// Who is quarantined.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub quarantined: Vec<AgentId>,
}

/// The thresholds of one namespace, over the cluster's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tightened {
    /// The namespace.
    pub namespace: String,
    /// All of them.
    pub thresholds: Thresholds,
}

/// A server outside the mesh. Its namespace's agents alone may use it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Upstream {
    /// The namespace.
    pub namespace: String,
    /// What policies and records call the server.
    pub name: String,
    /// The `spec` of the AgentUpstream, as `aegis-resources` has it.
    pub spec: Box<RawValue>,
}

/// An agent that is registered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// Who.
    pub id: AgentId,
    /// Who answers for it.
    pub sponsor: Sponsor,
    /// What it may ever do; empty means whatever policies allow.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub capabilities: Vec<Capability>,
}

/// That a state is still the newest.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Confirmation {
    /// The serial of the state.
    pub serial: u64,
    /// When this was said.
    pub issued_at: Timestamp,
    /// From when on it counts no more.
    pub expires_at: Timestamp,
}

/// What the cluster's ledger has folded of agents' conduct.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ToldTrust {
    /// Larger than that of every one before.
    pub number: u64,
    /// Which one it continues; 0 if it tells of all agents.
    pub since: u64,
    /// How many entries of the ledger it is folded from.
    pub as_of: u64,
    /// When this was said.
    pub issued_at: Timestamp,
    /// From when on it counts no more.
    pub expires_at: Timestamp,
    /// The agents whose trust has changed since.
    pub agents: Vec<AgentTrust>,
}

/// How much an agent is trusted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentTrust {
    /// Who.
    pub id: AgentId,
    /// The posterior.
    #[serde(flatten)]
    pub trust: Trust,
}
