//! Events about pods that were refused: whoever looks at the Deployment's ReplicaSet sees why it has
//! no pods.
//!
//! Admission never waits for them. When there are more than can be told, some are not told; all are
//! counted.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::runtime::events::{Event, EventType, Recorder};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::admission::Request;

/// How many wait to be told.
const QUEUE: usize = 64;

/// A pod that was refused.
#[derive(Clone, Debug, PartialEq)]
pub struct RefusedPod {
    /// Its controller, or itself where it has none.
    pub regarding: ObjectReference,
    /// Why, in one word.
    pub reason: String,
    /// Why, in a sentence.
    pub message: String,
}

/// Where refusals go, and where they come from.
#[must_use]
pub fn channel() -> (mpsc::Sender<RefusedPod>, mpsc::Receiver<RefusedPod>) {
    mpsc::channel(QUEUE)
}

impl RefusedPod {
    /// Of a request that was refused.
    #[must_use]
    pub fn of(request: &Request, reason: &str, message: &str) -> Self {
        let metadata = request.object.get("metadata").unwrap_or(&Value::Null);
        let owners = metadata.get("ownerReferences").and_then(Value::as_array);
        let controller = owners
            .into_iter()
            .flatten()
            .find(|owner| owner.get("controller").and_then(Value::as_bool) == Some(true));
        let text = |from: &Value, name: &str| from.get(name)?.as_str().map(str::to_owned);
        let namespace = Some(request.namespace.clone());
        let regarding = match controller {
            Some(owner) => ObjectReference {
                api_version: text(owner, "apiVersion"),
                kind: text(owner, "kind"),
                name: text(owner, "name"),
                uid: text(owner, "uid"),
                namespace,
                ..ObjectReference::default()
            },
            None => ObjectReference {
                api_version: Some("v1".into()),
                kind: Some("Pod".into()),
                name: text(metadata, "name").or_else(|| text(metadata, "generateName")),
                namespace,
                ..ObjectReference::default()
            },
        };
        Self { regarding, reason: reason.into(), message: message.into() }
    }
}

/// Tells each as an Event, until `stop`.
pub async fn tell(
    mut refused: mpsc::Receiver<RefusedPod>,
    recorder: Recorder,
    stop: CancellationToken,
) {
    loop {
        let next = tokio::select! {
            () = stop.cancelled() => return,
            next = refused.recv() => next,
        };
        let Some(RefusedPod { regarding, reason, message }) = next else { return };
        let event = Event {
            type_: EventType::Warning,
            reason,
            note: Some(message.chars().take(900).collect()),
            action: "Inject".into(),
            secondary: None,
        };
        if let Err(error) = recorder.publish(&event, &regarding).await {
            tracing::warn!(%error, "an Event about a refused pod could not be written");
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn refused(metadata: Value) -> ObjectReference {
        let request = serde_json::from_value(json!({
            "uid": "u", "kind": { "kind": "Pod" }, "operation": "CREATE", "namespace": "shop",
            "userInfo": {}, "object": { "metadata": metadata },
        }))
        .unwrap();
        RefusedPod::of(&request, "HostNetwork", "no").regarding
    }

    #[test]
    fn it_is_told_of_the_controller_or_of_the_pod() {
        let owner = |controller| json!({ "apiVersion": "apps/v1", "kind": "ReplicaSet", "name": "r", "uid": "1", "controller": controller });
        let told = refused(json!({ "generateName": "r-", "ownerReferences": [owner(true)] }));
        assert_eq!((told.kind.as_deref(), told.name.as_deref()), (Some("ReplicaSet"), Some("r")));
        assert_eq!(told.namespace.as_deref(), Some("shop"));
        let told = refused(json!({ "name": "p", "ownerReferences": [owner(false)] }));
        assert_eq!((told.kind.as_deref(), told.name.as_deref()), (Some("Pod"), Some("p")));
    }
}
