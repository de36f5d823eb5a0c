//! The envelope and the kinds.

use aegis_core::{policy::PolicySpec, thresholds::Thresholds};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{identity::AgentIdentitySpec, place::Place, upstream::AgentUpstreamSpec};

/// The group and version of every kind.
pub const API_VERSION: &str = "aegis.dev/v1alpha1";

/// The namespace of a resource that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// What Aegis reads of a resource's metadata.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Metadata {
    /// The name, unique in kind and namespace: an RFC 1123 label.
    pub name: String,
    /// The namespace; `default` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// Labels; kept, not interpreted.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub labels: std::collections::BTreeMap<String, String>,
    /// Annotations; kept, not interpreted.
    #[serde(default, skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    pub annotations: std::collections::BTreeMap<String, String>,
}

/// A specification with its name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource<S> {
    /// Its name and namespace.
    pub metadata: Metadata,
    /// Its specification.
    pub spec: S,
    /// Where it was read.
    pub place: Place,
}

/// One resource of any kind, and where it was read.
#[derive(Clone, Debug, PartialEq)]
pub enum Loaded {
    /// `AgentPolicy`
    Policy(Resource<PolicySpec>),
    /// `ClusterAgentPolicy`
    ClusterPolicy(Resource<PolicySpec>),
    /// `AgentIdentity`
    Identity(Resource<AgentIdentitySpec>),
    /// `TrustThreshold`
    Threshold(Resource<Thresholds>),
    /// `ClusterTrustThreshold`
    ClusterThreshold(Resource<Thresholds>),
    /// `AgentUpstream`
    Upstream(Resource<AgentUpstreamSpec>),
}

/// Everything a folder holds, by kind.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Resources {
    /// AgentPolicies.
    pub policies: Vec<Resource<PolicySpec>>,
    /// ClusterAgentPolicies.
    pub cluster_policies: Vec<Resource<PolicySpec>>,
    /// AgentIdentities.
    pub identities: Vec<Resource<AgentIdentitySpec>>,
    /// TrustThresholds.
    pub thresholds: Vec<Resource<Thresholds>>,
    /// ClusterTrustThresholds.
    pub cluster_thresholds: Vec<Resource<Thresholds>>,
    /// AgentUpstreams.
    pub upstreams: Vec<Resource<AgentUpstreamSpec>>,
}

impl<S> Resource<S> {
    /// The namespace, `default` if none is written.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or(DEFAULT_NAMESPACE)
    }
}

impl Loaded {
    /// The kind, as YAML names it.
    #[must_use]
    pub const fn kind(&self) -> &'static str {
        match self {
            Self::Policy(_) => "AgentPolicy",
            Self::ClusterPolicy(_) => "ClusterAgentPolicy",
            Self::Identity(_) => "AgentIdentity",
            Self::Threshold(_) => "TrustThreshold",
            Self::ClusterThreshold(_) => "ClusterTrustThreshold",
            Self::Upstream(_) => "AgentUpstream",
        }
    }

    /// Name and namespace.
    #[must_use]
    pub const fn metadata(&self) -> &Metadata {
        match self {
            Self::Policy(r) | Self::ClusterPolicy(r) => &r.metadata,
            Self::Identity(r) => &r.metadata,
            Self::Threshold(r) | Self::ClusterThreshold(r) => &r.metadata,
            Self::Upstream(r) => &r.metadata,
        }
    }

    /// Where it was read.
    #[must_use]
    pub const fn place(&self) -> &Place {
        match self {
            Self::Policy(r) | Self::ClusterPolicy(r) => &r.place,
            Self::Identity(r) => &r.place,
            Self::Threshold(r) | Self::ClusterThreshold(r) => &r.place,
            Self::Upstream(r) => &r.place,
        }
    }

    /// Whether the kind belongs to the cluster instead of a namespace.
    #[must_use]
    pub const fn is_cluster_scoped(&self) -> bool {
        matches!(self, Self::ClusterPolicy(_) | Self::ClusterThreshold(_))
    }
}

impl Resources {
    /// Adds one resource.
    pub fn push(&mut self, loaded: Loaded) {
        match loaded {
            Loaded::Policy(r) => self.policies.push(r),
            Loaded::ClusterPolicy(r) => self.cluster_policies.push(r),
            Loaded::Identity(r) => self.identities.push(r),
            Loaded::Threshold(r) => self.thresholds.push(r),
            Loaded::ClusterThreshold(r) => self.cluster_thresholds.push(r),
            Loaded::Upstream(r) => self.upstreams.push(r),
        }
    }
}
