//! `ApprovalRequest`: what waits for a human in a cluster, and the humans' answers.
//!
//! The operator writes what is asked, as the sidecar that waits has told it; it holds no arguments.
//! A person answers with `spec.answer`; admission takes who that is from the authenticated request
//! and moves it to `spec.answers`, which nobody can type. It is not read from a folder.

use aegis_core::{AgentId, Digest, Sponsor};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::status::CommonStatus;

/// How many people can answer one request.
pub const MAX_ANSWERS: usize = 16;

/// What is asked, which never changes, and what has been answered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    {
        "rule": "self.enforcedBy == oldSelf.enforcedBy && self.action == oldSelf.action && self.requester == oldSelf.requester && self.server == oldSelf.server && self.method == oldSelf.method && self.reason == oldSelf.reason && self.risk == oldSelf.risk && self.tier == oldSelf.tier && self.quorum == oldSelf.quorum && self.mfa == oldSelf.mfa && self.expiresAt == oldSelf.expiresAt",
        "message": "what is asked for cannot be changed; the agent has to ask again",
    },
    {
        "rule": "has(self.sponsor) == has(oldSelf.sponsor) && (!has(self.sponsor) || self.sponsor == oldSelf.sponsor) && has(self.tool) == has(oldSelf.tool) && (!has(self.tool) || self.tool == oldSelf.tool)",
        "message": "what is asked for cannot be changed; the agent has to ask again",
    },
]))]
pub struct ApprovalRequestSpec {
    /// The agent whose sidecar waits for the answer: the one that acts, or the one that is called.
    pub enforced_by: AgentId,
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
    /// Why a person is asked: the deciding rule's sentence.
    #[schemars(length(max = 1024))]
    pub reason: String,
    /// The risk of the action, in per mille.
    #[schemars(range(min = 0, max = 1000))]
    pub risk: u16,
    /// The tier of the action: `L1`, `L2` or `L3`.
    #[schemars(length(max = 8))]
    pub tier: String,
    /// How many approvers must agree.
    #[schemars(range(min = 1, max = 10))]
    pub quorum: u8,
    /// Whether a second factor is needed, which cannot be given here.
    #[serde(default)]
    pub mfa: bool,
    /// When it expires, which denies. RFC 3339.
    #[schemars(length(max = 64), extend("format" = "date-time"))]
    pub expires_at: String,
    /// Your answer, `approve` or `deny`. It is taken at once and moves to `answers` under your name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answer: Option<AnswerVerdict>,
    /// Who has answered. Nobody can write this.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub answers: Vec<Answer>,
}

/// Yes or no.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum AnswerVerdict {
    /// Yes.
    Approve,
    /// No, which denies whatever others say.
    Deny,
}

/// One person's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Answer {
    /// Who, as the API server has authenticated.
    #[schemars(length(max = 512))]
    pub by: String,
    /// Yes or no.
    pub verdict: AnswerVerdict,
    /// When. RFC 3339.
    #[schemars(length(max = 64), extend("format" = "date-time"))]
    pub at: String,
}

impl ApprovalRequestSpec {
    /// What is asked, without any answer.
    #[must_use]
    pub fn asked(&self) -> Self {
        Self { answer: None, answers: Vec::new(), ..self.clone() }
    }
}

/// How it stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ApprovalState {
    /// It waits.
    Pending,
    /// Enough approvers agreed.
    Approved,
    /// An approver refused.
    Denied,
    /// Nobody decided in time.
    Expired,
    /// It has been used.
    Used,
}

/// The status of an ApprovalRequest, as the sidecar that waits has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ApprovalStatus {
    /// What every status holds.
    #[serde(flatten)]
    pub common: CommonStatus,
    /// How it stands.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<ApprovalState>,
}
