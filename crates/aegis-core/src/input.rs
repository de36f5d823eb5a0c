//! The input document: what every policy sees, in every scope. Version 1.
//!
//! Policies are projected: one that reads only `action.tool` is handed only that. Field names are
//! a contract; adding one is compatible, changing one is not.

use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::{
    AgentId, Digest, Timestamp,
    action::{Action, ActionKind, Protocol},
    capability::Capability,
    policy::Scope,
    risk::Risk,
    tier::Tier,
    trust::TrustScore,
};

/// The input document.
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct Input<'a> {
    /// What is to be done.
    pub action: ActionInput<'a>,
    /// Who wants to do it.
    pub principal: PrincipalInput<'a>,
    /// Who signed the content or the intent, if anybody did and the signature holds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provenance: Option<ProvenanceInput<'a>>,
    /// The circumstances.
    pub context: ContextInput<'a>,
}

/// `input.action`
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ActionInput<'a> {
    /// The kind, such as `tool_call`.
    pub kind: ActionKind,
    /// The protocol, such as `mcp`.
    pub protocol: Protocol,
    /// The protocol's method, such as `tools/call`.
    pub method: &'a str,
    /// The upstream's configured name.
    pub server: &'a str,
    /// The tool or prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tool: Option<&'a str>,
    /// The resource: a URI or path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource: Option<&'a str>,
    /// Port and path of the server, where it is another pod that was reached by its address, such as
    /// `8080/mcp`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub endpoint: Option<&'a str>,
    /// The arguments.
    pub arguments: &'a Value,
    /// The action's digest.
    pub digest: Digest,
}

impl<'a> ActionInput<'a> {
    /// What policies see of `action`, which has this digest and goes to this endpoint.
    #[must_use]
    pub fn of(action: &'a Action, endpoint: Option<&'a str>, digest: Digest) -> Self {
        Self {
            kind: action.kind,
            protocol: action.protocol,
            method: &action.method,
            server: &action.server,
            tool: action.tool.as_deref(),
            resource: action.resource.as_deref(),
            endpoint,
            arguments: &action.arguments,
            digest,
        }
    }
}

/// `input.principal`
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct PrincipalInput<'a> {
    /// The SPIFFE ID.
    pub id: &'a AgentId,
    /// The agent's name.
    pub name: &'a str,
    /// The namespace; empty for a user at an editor.
    pub namespace: &'a str,
    /// The human sponsor's address; empty if none is registered.
    pub sponsor: &'a str,
    /// The capabilities, after delegation has narrowed them.
    pub capabilities: &'a [Capability],
    /// The principals from the first delegator to the one before this.
    pub delegation: &'a [AgentId],
    /// The trust score, 0..1000.
    pub trust: TrustScore,
}

/// `input.provenance`
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ProvenanceInput<'a> {
    /// Who signed.
    pub signer: &'a AgentId,
    /// The signer's trust score, 0..1000.
    pub trust: TrustScore,
    /// What was signed: `content` or `intent`.
    pub signed: &'a str,
}

/// `input.context`
#[derive(Clone, Debug, Serialize, JsonSchema)]
pub struct ContextInput<'a> {
    /// The scope of the enforcement point.
    pub scope: Scope,
    /// The id of the active intent, if a valid one covers the action.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub intent: Option<&'a str>,
    /// The protocol's session, if it has one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub session: Option<&'a str>,
    /// How many valid approvals the action holds.
    pub approvals: u32,
    /// Whether an approval was confirmed by a second factor.
    pub mfa: bool,
    /// How many actions this agent started in the last 60 seconds at this enforcement point.
    pub rate: u32,
    /// The tier that risk, trust and cost call for.
    pub tier: Tier,
    /// The risk computation.
    pub risk: Risk,
    /// The time of the decision.
    pub now: Timestamp,
    /// The same in whole seconds since the epoch, for comparisons.
    pub now_secs: u64,
}
