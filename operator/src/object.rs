//! Objects as the operator reads them: a specification that cannot be read is said, not fatal.
//!
//! One broken object must not stop the watch over all the others. And what the operator never looks
//! at (managed fields, annotations' history) is dropped on arrival, since it is most of an object.

use std::borrow::Cow;

use aegis_resources::status::CommonStatus;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{
    Api, Client, Resource,
    core::object::{HasSpec, HasStatus},
};
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::DeserializeOwned};
use serde_json::Value;

/// A kind of Aegis: what kube's derive made of it, with a status that has conditions.
pub trait Kind:
    Resource<DynamicType = (), Scope: 'static>
    + HasSpec<Spec: DeserializeOwned + Serialize + Clone + Send + Sync>
    + HasStatus<Status: Status>
    + Clone
    + std::fmt::Debug
    + Send
    + Sync
    + 'static
{
    /// Where an object of this namespace is read and written.
    fn api(client: Client, namespace: &str) -> Api<Stored<Self>>;
}

macro_rules! kinds {
    (namespaced $($namespaced:ident)*; cluster $($cluster:ident)*) => {
        $(impl Kind for aegis_resources::kinds::$namespaced {
            fn api(client: Client, namespace: &str) -> Api<Stored<Self>> {
                Api::namespaced(client, namespace)
            }
        })*
        $(impl Kind for aegis_resources::kinds::$cluster {
            fn api(client: Client, _: &str) -> Api<Stored<Self>> {
                Api::all(client)
            }
        })*
    };
}
kinds!(namespaced AgentPolicy AgentIdentity TrustThreshold AgentUpstream ApprovalRequest; cluster ClusterAgentPolicy ClusterTrustThreshold);

/// A status with conditions.
pub trait Status:
    DeserializeOwned + Serialize + Clone + Default + PartialEq + Send + Sync + 'static
{
    /// What every status holds.
    fn common(&mut self) -> &mut CommonStatus;
}

macro_rules! status {
    ($($type:path),*) => {$(
        impl Status for $type {
            fn common(&mut self) -> &mut CommonStatus {
                &mut self.common
            }
        }
    )*};
}
status!(
    aegis_resources::status::PolicyStatus,
    aegis_resources::status::IdentityStatus,
    aegis_resources::status::ThresholdStatus,
    aegis_resources::status::UpstreamStatus,
    aegis_resources::approval::ApprovalStatus
);

/// An object of kind `K`.
#[derive(Clone)]
pub struct Stored<K: Kind> {
    /// Its metadata, without managed fields.
    pub metadata: ObjectMeta,
    /// What it says, or why that cannot be read.
    pub spec: Result<K::Spec, String>,
    /// What the operator wrote last.
    pub status: Option<K::Status>,
}

impl<K: Kind> Stored<K> {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        self.metadata.name.as_deref().unwrap_or_default()
    }

    /// Its namespace; empty for a cluster's object.
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.metadata.namespace.as_deref().unwrap_or_default()
    }

    /// The generation of its specification.
    #[must_use]
    pub fn generation(&self) -> i64 {
        self.metadata.generation.unwrap_or_default()
    }

    /// The unique id, which a new object of the same name does not share.
    #[must_use]
    pub fn uid(&self) -> &str {
        self.metadata.uid.as_deref().unwrap_or_default()
    }
}

impl<K: Kind> std::fmt::Debug for Stored<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}/{}", K::kind(&()), self.namespace(), self.name())
    }
}

impl<K: Kind> Resource for Stored<K> {
    type DynamicType = ();
    type Scope = K::Scope;

    fn kind((): &()) -> Cow<'_, str> {
        K::kind(&())
    }

    fn group((): &()) -> Cow<'_, str> {
        K::group(&())
    }

    fn version((): &()) -> Cow<'_, str> {
        K::version(&())
    }

    fn plural((): &()) -> Cow<'_, str> {
        K::plural(&())
    }

    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }

    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

#[derive(Deserialize)]
struct Raw {
    metadata: ObjectMeta,
    #[serde(default)]
    spec: Value,
    #[serde(default)]
    status: Value,
}

impl<'de, K: Kind> Deserialize<'de> for Stored<K> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Raw { mut metadata, spec, status } = Raw::deserialize(deserializer)?;
        metadata.managed_fields = None;
        let spec = if spec.is_null() { Value::Object(serde_json::Map::new()) } else { spec };
        Ok(Self {
            metadata,
            spec: serde_json::from_value(spec).map_err(|error| error.to_string()),
            // A status that cannot be read is written anew.
            status: serde_json::from_value(status).ok(),
        })
    }
}

/// For the client's bounds only: the operator sends patches, never a whole object.
impl<K: Kind> Serialize for Stored<K> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serde_json::json!({
            "apiVersion": K::api_version(&()),
            "kind": K::kind(&()),
            "metadata": self.metadata,
            "spec": self.spec.as_ref().ok(),
            "status": self.status,
        })
        .serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use aegis_resources::kinds::AgentPolicy;
    use serde_json::json;

    use super::*;

    #[test]
    fn a_broken_object_is_read_all_the_same() {
        let read: Stored<AgentPolicy> = serde_json::from_value(json!({
            "metadata": { "name": "a", "namespace": "shop", "generation": 3,
                          "managedFields": [{ "manager": "kubectl" }] },
            "spec": { "rules": "none" },
            "status": "nonsense",
        }))
        .unwrap();
        assert!(read.spec.unwrap_err().contains("expected a sequence"));
        assert!(read.status.is_none());
        assert_eq!(read.metadata.managed_fields, None);
    }
}
