//! The kinds as objects of the Kubernetes API: each wraps the specification that a folder has too.
//!
//! The specifications themselves know nothing of Kubernetes; here stand names, short names,
//! columns and status.

#![expect(clippy::duplicated_attributes, reason = "each printer column names its own type")]

use std::fmt;

use aegis_core::{policy::PolicySpec, thresholds::Thresholds};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error as _};
use serde_json::{Map, Value};

use crate::{
    approval::{ApprovalRequestSpec, ApprovalStatus},
    identity::AgentIdentitySpec,
    status::{IdentityStatus, PolicyStatus, ThresholdStatus, UpstreamStatus},
    upstream::AgentUpstreamSpec,
};

/// What an AgentPolicy says.
#[derive(Clone, Debug, PartialEq, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "aegis.dev",
    version = "v1alpha1",
    kind = "AgentPolicy",
    plural = "agentpolicies",
    namespaced,
    shortname = "agpol",
    category = "aegis",
    status = "PolicyStatus",
    derive = "PartialEq",
    doc = "What the agents of a namespace may do. What no policy allows is denied; deny overrides require_approval, which overrides allow.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether it is in force as it is written"
    ),
    printcolumn(
        name = "Compiled",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Compiled\")].status",
        description = "Whether it compiles"
    ),
    printcolumn(
        name = "Mode",
        type_ = "string",
        json_path = ".spec.mode",
        description = "enforce or audit"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    ),
    printcolumn(
        name = "Digest",
        type_ = "string",
        json_path = ".status.inForce.digest",
        priority = 1
    )
)]
#[serde(transparent)]
pub struct AgentPolicySpec(pub PolicySpec);

/// What a ClusterAgentPolicy says.
#[derive(Clone, Debug, PartialEq, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "aegis.dev",
    version = "v1alpha1",
    kind = "ClusterAgentPolicy",
    plural = "clusteragentpolicies",
    shortname = "cagpol",
    category = "aegis",
    status = "PolicyStatus",
    derive = "PartialEq",
    doc = "What agents of the cluster may do. A namespace's own policies can only forbid more.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether it is in force as it is written"
    ),
    printcolumn(
        name = "Compiled",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Compiled\")].status",
        description = "Whether it compiles"
    ),
    printcolumn(
        name = "Mode",
        type_ = "string",
        json_path = ".spec.mode",
        description = "enforce or audit"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    ),
    printcolumn(
        name = "Digest",
        type_ = "string",
        json_path = ".status.inForce.digest",
        priority = 1
    )
)]
#[serde(transparent)]
pub struct ClusterAgentPolicySpec(pub PolicySpec);

/// What an AgentIdentity says.
#[derive(Clone, Debug, PartialEq, Eq, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "aegis.dev",
    version = "v1alpha1",
    kind = "AgentIdentity",
    plural = "agentidentities",
    namespaced,
    shortname = "agid",
    category = "aegis",
    status = "IdentityStatus",
    derive = "PartialEq",
    doc = "Who an agent is, who answers for it, and what it may ever do.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether its pods can get an identity"
    ),
    printcolumn(
        name = "SPIFFE-ID",
        type_ = "string",
        json_path = ".status.spiffeID",
        description = "The identity of its pods"
    ),
    printcolumn(
        name = "Trust",
        type_ = "integer",
        json_path = ".status.trust.score",
        description = "How much it is trusted, 0..1000; empty while nothing is known of it"
    ),
    printcolumn(
        name = "Standing",
        type_ = "string",
        json_path = ".status.trust.standing",
        description = "The name of that",
        priority = 1
    ),
    printcolumn(
        name = "Sponsor",
        type_ = "string",
        json_path = ".spec.sponsor",
        description = "Who answers for it"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    )
)]
#[serde(transparent)]
pub struct AgentIdentityObjectSpec(pub AgentIdentitySpec);

/// What a TrustThreshold says.
#[derive(Clone, Debug, PartialEq, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "aegis.dev",
    version = "v1alpha1",
    kind = "TrustThreshold",
    plural = "trustthresholds",
    namespaced,
    shortname = "agtrust",
    category = "aegis",
    status = "ThresholdStatus",
    derive = "PartialEq",
    doc = "Stricter thresholds for one namespace. What it leaves out, and what would loosen, is the cluster's.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether it counts as it is written"
    ),
    printcolumn(
        name = "T-Min",
        type_ = "integer",
        json_path = ".spec.tMin",
        description = "Below this trust, sensitive actions wait for approval"
    ),
    printcolumn(
        name = "Tau",
        type_ = "integer",
        json_path = ".spec.tau",
        description = "Above this risk, actions are escalated to L3"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    )
)]
#[serde(transparent)]
pub struct TrustThresholdSpec(pub WrittenThresholds);

/// What a ClusterTrustThreshold says.
#[derive(Clone, Debug, PartialEq, Eq, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "aegis.dev",
    version = "v1alpha1",
    kind = "ClusterTrustThreshold",
    plural = "clustertrustthresholds",
    shortname = "cagtrust",
    category = "aegis",
    status = "ThresholdStatus",
    derive = "PartialEq",
    doc = "The thresholds of the cluster. The oldest one counts.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether it counts"
    ),
    printcolumn(
        name = "T-Min",
        type_ = "integer",
        json_path = ".spec.tMin",
        description = "Below this trust, sensitive actions wait for approval"
    ),
    printcolumn(
        name = "Tau",
        type_ = "integer",
        json_path = ".spec.tau",
        description = "Above this risk, actions are escalated to L3"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    )
)]
#[serde(transparent)]
pub struct ClusterTrustThresholdSpec(pub Thresholds);

/// What an AgentUpstream says.
#[derive(Clone, Debug, PartialEq, Eq, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "aegis.dev",
    version = "v1alpha1",
    kind = "AgentUpstream",
    plural = "agentupstreams",
    namespaced,
    shortname = "agup",
    category = "aegis",
    status = "UpstreamStatus",
    derive = "PartialEq",
    doc = "A server that agents reach through Aegis, and how.",
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].status",
        description = "Whether agents can reach it"
    ),
    printcolumn(
        name = "URL",
        type_ = "string",
        json_path = ".spec.url",
        description = "Where it is"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".status.conditions[?(@.type==\"Ready\")].message",
        priority = 1
    )
)]
#[serde(transparent)]
pub struct AgentUpstreamObjectSpec(pub AgentUpstreamSpec);

/// What an ApprovalRequest says.
#[derive(Clone, Debug, PartialEq, Eq, CustomResource, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "aegis.dev",
    version = "v1alpha1",
    kind = "ApprovalRequest",
    plural = "approvalrequests",
    namespaced,
    shortname = "agapr",
    category = "aegis",
    status = "ApprovalStatus",
    derive = "PartialEq",
    doc = "An action that waits for a human. Answer with `kubectl patch agapr NAME --type=merge -p '{\"spec\":{\"answer\":\"approve\"}}'`, or with `deny`; that takes the verb `approve` on approvalrequests.",
    printcolumn(
        name = "Agent",
        type_ = "string",
        json_path = ".spec.requester",
        description = "Who wants to act"
    ),
    printcolumn(
        name = "Server",
        type_ = "string",
        json_path = ".spec.server",
        description = "On what"
    ),
    printcolumn(
        name = "Tool",
        type_ = "string",
        json_path = ".spec.tool",
        description = "By what"
    ),
    printcolumn(
        name = "Needed",
        type_ = "integer",
        json_path = ".spec.quorum",
        description = "How many approvers must agree"
    ),
    printcolumn(
        name = "State",
        type_ = "string",
        json_path = ".status.state",
        description = "How it stands"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = ".spec.reason",
        description = "Why a person is asked",
        priority = 1
    ),
    printcolumn(
        name = "Expires",
        type_ = "string",
        json_path = ".spec.expiresAt",
        description = "When it is denied by itself",
        priority = 1
    )
)]
#[serde(transparent)]
pub struct ApprovalRequestObjectSpec(pub ApprovalRequestSpec);

/// Thresholds together with which of them were written: what a namespace leaves out is the
/// cluster's, and must not be mistaken for a wish for the default.
#[derive(Clone, Default, PartialEq)]
pub struct WrittenThresholds {
    /// The fields as they were written.
    written: Map<String, Value>,
    /// With defaults for the rest.
    values: Thresholds,
}

impl WrittenThresholds {
    /// All values, defaults included.
    #[must_use]
    pub const fn values(&self) -> &Thresholds {
        &self.values
    }

    /// Whether this field was written.
    #[must_use]
    pub fn has(&self, field: &str) -> bool {
        self.written.contains_key(field)
    }

    /// Without these fields.
    #[must_use]
    pub fn without(&self, fields: &[&str]) -> Self {
        let mut written = self.written.clone();
        written.retain(|name, _| !fields.contains(&name.as_str()));
        let values = serde_json::from_value(Value::Object(written.clone()));
        Self { values: values.unwrap_or_default(), written }
    }

    /// The written fields over `base`.
    ///
    /// # Errors
    /// Never for a value that was read; the message of serde otherwise.
    pub fn over(&self, base: &Thresholds) -> Result<Thresholds, serde_json::Error> {
        let mut merged = serde_json::to_value(base)?;
        if let Some(members) = merged.as_object_mut() {
            members.extend(self.written.clone());
        }
        serde_json::from_value(merged)
    }
}

impl fmt::Debug for WrittenThresholds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.written, f)
    }
}

impl Serialize for WrittenThresholds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.written.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for WrittenThresholds {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let written = Map::deserialize(deserializer)?;
        let values =
            serde_json::from_value(Value::Object(written.clone())).map_err(D::Error::custom)?;
        Ok(Self { written, values })
    }
}

impl JsonSchema for WrittenThresholds {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> std::borrow::Cow<'static, str> {
        "WrittenThresholds".into()
    }

    fn json_schema(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
        let mut schema = Thresholds::json_schema(generator);
        without_defaults(schema.ensure_object());
        schema
    }
}

/// Takes the defaults away: with them, the API server would write what nobody wrote.
fn without_defaults(schema: &mut Map<String, Value>) {
    schema.remove("default");
    for member in schema.values_mut() {
        match member {
            Value::Object(members) => without_defaults(members),
            Value::Array(members) => {
                members.iter_mut().filter_map(Value::as_object_mut).for_each(without_defaults);
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_not_written_is_the_clusters() {
        let own: WrittenThresholds = serde_json::from_value(json!({ "tMin": 950 })).unwrap();
        assert!(own.has("tMin") && !own.has("tau"));
        let base: Thresholds = serde_json::from_value(json!({ "tau": 400 })).unwrap();
        let merged = own.over(&base).unwrap();
        assert_eq!((merged.t_min.get(), merged.tau.get()), (950, 400));
        assert_eq!(serde_json::to_value(&own).unwrap(), json!({ "tMin": 950 }));
    }

    #[test]
    fn a_field_that_does_not_exist_is_refused() {
        assert!(serde_json::from_value::<WrittenThresholds>(json!({ "tmin": 1 })).is_err());
    }
}
