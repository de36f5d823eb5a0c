//! The decision and the closed list of reasons.

use std::fmt;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    Digest,
    policy::{Effect, Mode, Obligation, RateScope},
    risk::Risk,
    tier::{Escalation, Tier},
    trust::TrustScore,
};

/// The three answers.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It may happen.
    Allow,
    /// It may happen once a human agrees.
    RequireApproval,
    /// It may not happen.
    Deny,
}

/// One policy's part in a decision.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finding {
    /// The policy: `namespace/name`, or `name` for a ClusterAgentPolicy.
    pub policy: String,
    /// The rule that spoke.
    pub rule: String,
    /// What it said.
    pub effect: Effect,
    /// Whether it binds.
    pub mode: Mode,
    /// The digest of the policy's source.
    pub digest: Digest,
    /// The author's sentence, if there is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// What a rate limit looked like when the decision was made.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RateObservation {
    /// The policy and rule, as `policy#rule`.
    pub limit: String,
    /// Who shares it.
    pub scope: RateScope,
    /// How many more actions it would have allowed at once.
    pub remaining: u32,
}

/// What an approval must bring to turn `require_approval` into `allow`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApprovalNeed {
    /// How many approvers must agree.
    pub quorum: u8,
    /// Whether one of them must confirm with a second factor.
    pub mfa: bool,
}

/// The answer to one action, complete enough to be computed again from its record.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Decision {
    /// The answer.
    pub verdict: Verdict,
    /// Why.
    pub reason: Reason,
    /// The sentence for whoever asked: the determining rule's own, or the reason's. Never quotes
    /// arguments.
    pub message: String,
    /// The digest of the action decided on.
    pub action: Digest,
    /// What each matching policy said, the determining ones first.
    pub findings: Vec<Finding>,
    /// What must be done to the message.
    pub obligations: Vec<Obligation>,
    /// The rate limits that were looked at.
    pub rates: Vec<RateObservation>,
    /// The risk computation.
    pub risk: Risk,
    /// The tier.
    pub tier: Tier,
    /// What raised the tier to L3.
    pub escalations: Vec<Escalation>,
    /// The trust score used.
    pub trust: TrustScore,
    /// The size of the ledger whose entries that score is folded from.
    pub trust_as_of: u64,
    /// What an approval must bring, if the verdict is `require_approval`.
    pub approval: Option<ApprovalNeed>,
}

/// A decision explained for people. Every number in it is one that the decision was made with.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// `allow`, `require_approval` or `deny`.
    pub verdict: String,
    /// The reason code.
    pub reason: String,
    /// The reason in words.
    pub message: String,
    /// The digest of the action.
    pub digest: String,
    /// The computation, line by line.
    pub computation: Vec<String>,
    /// The rules that spoke, one line each.
    pub rules: Vec<String>,
    /// What would have allowed it; empty if it is allowed.
    pub would_allow: Vec<String>,
    /// What else there is to know, such as a name that nothing is called by.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// Declares [`Reason`] from one table, so that code, name and documentation cannot part.
macro_rules! reasons {
    ($($variant:ident $code:literal $text:literal;)*) => {
        /// Why a decision came out as it did. The list is closed; the codes are stable.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $(#[doc = $text] $variant,)*
        }

        impl Reason {
            /// Every reason, in the order of the reference.
            pub const ALL: &'static [Self] = &[$(Self::$variant,)*];

            /// The stable code.
            #[must_use]
            pub const fn code(self) -> &'static str {
                match self { $(Self::$variant => $code,)* }
            }

            /// One sentence for whoever asked. Holds nothing of the request.
            #[must_use]
            pub const fn sentence(self) -> &'static str {
                match self { $(Self::$variant => $text,)* }
            }
        }

        impl std::str::FromStr for Reason {
            type Err = UnknownReason;

            fn from_str(code: &str) -> Result<Self, Self::Err> {
                match code {
                    $($code => Ok(Self::$variant),)*
                    other => Err(UnknownReason(other.chars().take(60).collect())),
                }
            }
        }
    };
}

/// Not a code of the list.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a reason code")]
pub struct UnknownReason(String);

reasons! {
    PolicyAllowed "policy_allowed" "A policy allows it.";
    SessionAllowed "session_allowed" "It only prepares calls, each of which is decided by itself.";
    Approved "approved" "A human approved this very action.";
    Granted "granted" "A human approved this very action where it was called from, as its grant shows.";
    GlassBroken "glass_broken" "A human has lifted the policies for this agent, for a while and for a reason.";
    ApprovalByPolicy "approval_by_policy" "A policy asks for a human's approval.";
    ApprovalByTier "approval_by_tier" "Its risk, or the trust in the agent, asks for a human's approval.";
    ApprovalDenied "approval_denied" "A human refused it.";
    ApprovalExpired "approval_expired" "Nobody approved it in time.";
    ApprovalPending "approval_pending" "It still waits for a human's approval.";
    GrantRefused "grant_refused" "The grant of an approval that came with it does not hold for it.";
    PolicyDenied "policy_denied" "A policy forbids it.";
    NoPolicyAllows "no_policy_allows" "No policy allows it.";
    CapabilityMissing "capability_missing" "The agent's identity does not hold the capability for it.";
    RateLimited "rate_limited" "The agent has used up its rate limit.";
    ObligationUnmet "obligation_unmet" "A policy asks for something that this enforcement point cannot do.";
    IdentityMissing "identity_missing" "The caller has not proven who it is.";
    IdentityUnknown "identity_unknown" "No AgentIdentity is registered for the caller.";
    SubjectMismatch "subject_mismatch" "The question names another subject than the caller.";
    IdentityExpired "identity_expired" "The caller's identity has expired.";
    IdentityRevoked "identity_revoked" "The caller's identity has been revoked.";
    AgentQuarantined "agent_quarantined" "The agent is quarantined.";
    ManifestRefused "manifest_refused" "The manifest that the peer's sidecar has shown on this connection does not hold, or it has shown none.";
    DelegationInvalid "delegation_invalid" "The delegation chain does not hold.";
    DelegationEnded "delegation_ended" "The delegation on which it acts is over, or somebody in its chain has been stopped or may do less than before.";
    DelegationInsufficient "delegation_insufficient" "What was lent to the agent does not cover it, though its own identity may.";
    IntentInvalid "intent_invalid" "The intent is not valid for this action.";
    ServerUnknown "server_unknown" "No AgentUpstream has this name.";
    ToolUnknown "tool_unknown" "The server has no tool of this name.";
    ToolsUnlisted "tools_unlisted" "The server has not listed its tools, and a tool that nobody knows cannot be called.";
    ToolQuarantined "tool_quarantined" "The tool's definition has changed since it was pinned.";
    NameTooLong "name_too_long" "A name in the message is longer than names may be.";
    TaskUnknown "task_unknown" "The caller has no task or context of this id.";
    OutsideRoot "outside_root" "It leads out of the files that the agent was given.";
    WebhookRefused "webhook_refused" "The webhook leads to where the agent must not be made to call.";
    MethodUnknown "method_unknown" "Aegis does not know this method.";
    ProtocolUnsupported "protocol_unsupported" "Aegis does not know this protocol version.";
    MalformedMessage "malformed_message" "The message is not well-formed.";
    DuplicateKey "duplicate_key" "The message holds the same JSON key twice.";
    NestingTooDeep "nesting_too_deep" "The message is nested too deeply.";
    NotUtf8 "not_utf8" "The message is not valid UTF-8.";
    InexactNumber "inexact_number" "The message holds a number that a double cannot hold exactly.";
    MessageTooLarge "message_too_large" "The message is larger than the limit.";
    MessageTimeout "message_timeout" "The message did not arrive in time.";
    BatchRefused "batch_refused" "Batches are not accepted; send one message at a time.";
    HeaderMismatch "header_mismatch" "A header says something else than the body.";
    HostRefused "host_refused" "The Host header does not name this listener.";
    OriginRefused "origin_refused" "The Origin header is not one that may call this listener.";
    EvaluationFailed "evaluation_failed" "A policy could not be evaluated.";
    EvaluationTimeout "evaluation_timeout" "A policy took too long to evaluate.";
    StateStale "state_stale" "The last good policy, trust and revocation state is too old for a sensitive action.";
    RecordFailed "record_failed" "The decision could not be recorded.";
    UpstreamUnavailable "upstream_unavailable" "The upstream cannot be reached.";
    UpstreamUnverified "upstream_unverified" "The upstream could not prove its identity.";
    UpstreamTimeout "upstream_timeout" "The upstream did not answer in time.";
    UpstreamMalformed "upstream_malformed" "The upstream's answer is not well-formed.";
    UpstreamTooLarge "upstream_too_large" "The upstream's answer is larger than the limit.";
    ServerRequestDenied "server_request_denied" "No policy allows the server to ask this of its client.";
    Overloaded "overloaded" "Too many actions are under way.";
    Draining "draining" "This enforcement point is shutting down.";
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.code())
    }
}

crate::serde_text!(Reason, "A stable reason code");

impl Verdict {
    /// The stable name.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::RequireApproval => "require_approval",
            Self::Deny => "deny",
        }
    }
}

impl Reason {
    /// Whether a refusal for this reason says something about the agent's conduct: only then does
    /// it count against its trust. Faults of the upstream, the wire or Aegis itself do not.
    #[must_use]
    pub const fn counts_against_agent(self) -> bool {
        matches!(
            self,
            Self::PolicyDenied
                | Self::CapabilityMissing
                | Self::ApprovalDenied
                | Self::DelegationInvalid
                | Self::HeaderMismatch
        )
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn codes_are_unique_and_read_back() {
        let codes: BTreeSet<_> = Reason::ALL.iter().map(|reason| reason.code()).collect();
        assert_eq!(codes.len(), Reason::ALL.len());
        for &reason in Reason::ALL {
            assert_eq!(reason.code().parse(), Ok(reason));
        }
    }
}
