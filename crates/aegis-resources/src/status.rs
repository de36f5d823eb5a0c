//! The status of resources: conditions as Kubernetes' API conventions have them, and what the
//! operator found out about each kind.
//!
//! Only the operator writes a status; `aegis up` reads none.

use aegis_core::{Digest, SpiffeId, policy::PolicySpec, trust::Standing};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The longest message of a condition. Characters.
pub const MAX_MESSAGE: usize = 4096;

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not.
    False,
    /// Nobody can tell.
    Unknown,
}

/// One aspect of a resource's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What it is about, such as `Ready`.
    #[serde(rename = "type")]
    #[schemars(length(min = 1, max = 64))]
    pub kind: String,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// The generation of the specification that this is about.
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64))]
    pub observed_generation: i64,
    /// When `status` last changed.
    #[schemars(length(max = 64), extend("format" = "date-time"))]
    pub last_transition_time: String,
    /// Why, in one word.
    #[schemars(length(min = 1, max = 128))]
    pub reason: String,
    /// Why, and what to do, in one sentence.
    #[schemars(length(max = 4096))]
    pub message: String,
}

/// What every status holds.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct CommonStatus {
    /// The generation of the specification that the operator has dealt with.
    #[serde(default)]
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64))]
    pub observed_generation: i64,
    /// How it stands; `Ready` sums the others up.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(
        length(max = 16),
        extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"])
    )]
    pub conditions: Vec<Condition>,
}

/// The status of an AgentPolicy or ClusterAgentPolicy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyStatus {
    /// What every status holds.
    #[serde(flatten)]
    pub common: CommonStatus,
    /// The last version that compiled: what is in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_force: Option<PolicyInForce>,
}

/// A version of a policy that compiled.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct PolicyInForce {
    /// Its generation.
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64))]
    pub generation: i64,
    /// The digest of what it says.
    pub digest: Digest,
    /// What it says; kept so that a later version which does not compile removes no protection,
    /// even across a restart of the operator.
    #[schemars(schema_with = "any_object")]
    pub spec: PolicySpec,
}

/// The status of an AgentIdentity.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IdentityStatus {
    /// What every status holds.
    #[serde(flatten)]
    pub common: CommonStatus,
    /// The SPIFFE ID that its pods get.
    #[serde(default, rename = "spiffeID", skip_serializing_if = "Option::is_none")]
    pub spiffe_id: Option<SpiffeId>,
    /// How much it is trusted, by what the ledger holds of it; absent while it holds nothing.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<TrustStatus>,
}

/// How much an agent is trusted. Not written for every call: at once where the standing or the
/// quarantine changes, else after some seconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrustStatus {
    /// 0..1000; a newcomer has 500.
    #[schemars(range(min = 0, max = 1000))]
    pub score: u16,
    /// The name of the score's range.
    pub standing: Standing,
    /// How many entries of the ledger it was folded from when it last changed.
    #[schemars(range(min = 0, max = 9_007_199_254_740_991_i64))]
    pub as_of: u64,
    /// Why its conduct has every action of it denied; absent where it does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub quarantined: Option<String>,
}

/// The status of a TrustThreshold or ClusterTrustThreshold.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ThresholdStatus {
    /// What every status holds.
    #[serde(flatten)]
    pub common: CommonStatus,
}

/// The status of an AgentUpstream.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct UpstreamStatus {
    /// What every status holds.
    #[serde(flatten)]
    pub common: CommonStatus,
}

fn any_object(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true })
}

impl CommonStatus {
    /// The condition of this type.
    #[must_use]
    pub fn condition(&self, kind: &str) -> Option<&Condition> {
        self.conditions.iter().find(|condition| condition.kind == kind)
    }

    /// Sets a condition. `last_transition_time` changes only where `status` does, so that dealing
    /// with the same specification again gives the same status and nothing is written.
    pub fn set(&mut self, mut condition: Condition) {
        if condition.message.chars().count() > MAX_MESSAGE {
            condition.message = condition.message.chars().take(MAX_MESSAGE - 1).collect();
            condition.message.push('…');
        }
        match self.conditions.iter_mut().find(|known| known.kind == condition.kind) {
            Some(known) => {
                if known.status == condition.status {
                    condition.last_transition_time.clone_from(&known.last_transition_time);
                }
                *known = condition;
            }
            None => self.conditions.push(condition),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn condition(status: ConditionStatus, at: &str) -> Condition {
        Condition {
            kind: "Ready".into(),
            status,
            observed_generation: 1,
            last_transition_time: at.into(),
            reason: "Because".into(),
            message: String::new(),
        }
    }

    #[test]
    fn a_transition_is_a_change_of_status() {
        let mut status = CommonStatus::default();
        status.set(condition(ConditionStatus::False, "a"));
        status.set(Condition { message: "new".into(), ..condition(ConditionStatus::False, "b") });
        let ready = status.condition("Ready").unwrap();
        assert_eq!((ready.last_transition_time.as_str(), ready.message.as_str()), ("a", "new"));
        status.set(condition(ConditionStatus::True, "c"));
        assert_eq!(status.condition("Ready").unwrap().last_transition_time, "c");
        assert_eq!(status.conditions.len(), 1);
    }

    #[test]
    fn a_long_message_is_cut() {
        let mut status = CommonStatus::default();
        let long = "ö".repeat(MAX_MESSAGE + 1);
        status.set(Condition { message: long, ..condition(ConditionStatus::True, "a") });
        assert_eq!(status.conditions[0].message.chars().count(), MAX_MESSAGE);
    }
}
