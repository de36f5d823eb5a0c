//! `ApprovalRequest`: a view of what waits for a human, for `kubectl get`.
//!
//! The ledger holds the request itself; this view holds no arguments, and nobody answers by editing
//! it. So it is not read from a folder.

use aegis_core::{AgentId, Digest, Sponsor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::status::CommonStatus;

/// What is asked. It never changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    { "rule": "self == oldSelf", "message": "what is asked for cannot be changed; the agent has to ask again" },
]))]
pub struct ApprovalRequestSpec {
    /// The digest of the action that waits.
    pub action: Digest,
    /// Who wants to act.
    pub requester: AgentId,
    /// The human behind the requester, who may not be its only approver.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sponsor: Option<Sponsor>,
    /// The upstream.
    #[schemars(length(max = 253))]
    pub server: String,
    /// The protocol's method, such as `tools/call`.
    #[schemars(length(max = 128))]
    pub method: String,
    /// The tool or prompt.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub tool: Option<String>,
    /// How many approvers must agree.
    #[schemars(range(min = 1, max = 10))]
    pub quorum: u8,
    /// Whether a second factor is needed.
    #[serde(default)]
    pub mfa: bool,
    /// When it expires, which denies. RFC 3339.
    #[schemars(length(max = 64), extend("format" = "date-time"))]
    pub expires_at: String,
}

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ApprovalPhase {
    /// It waits.
    Pending,
    /// Enough approvers agreed.
    Approved,
    /// An approver refused.
    Denied,
    /// Nobody decided in time.
    Expired,
    /// It has been used.
    Consumed,
}

/// The status of an ApprovalRequest, as the ledger has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalStatus {
    /// What every status holds.
    #[serde(flatten)]
    pub common: CommonStatus,
    /// How it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub phase: Option<ApprovalPhase>,
    /// Who has agreed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16), inner(length(max = 512)))]
    pub approvers: Vec<String>,
}
