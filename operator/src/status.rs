//! What a reconciliation found, as a status; written once per change, by server-side apply.

use aegis_core::Timestamp;
use aegis_resources::status::{CommonStatus, Condition, ConditionStatus};
use kube::{
    Api, Resource,
    api::{Patch, PatchParams},
    runtime::events::{Event, EventType, Recorder},
};
use serde_json::json;
use time::{OffsetDateTime, format_description::well_known::Rfc3339};

use crate::object::{Kind, Status, Stored};

/// The name under which the operator owns fields.
pub const FIELD_MANAGER: &str = "aegis-operator";

/// A finding about one aspect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The condition's type.
    pub kind: &'static str,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, in one word.
    pub reason: &'static str,
    /// Why, in a sentence.
    pub message: String,
}

impl Finding {
    /// The aspect is as it should be.
    #[must_use]
    pub fn yes(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, status: ConditionStatus::True, reason, message: message.into() }
    }

    /// It is not.
    #[must_use]
    pub fn no(kind: &'static str, reason: &'static str, message: impl Into<String>) -> Self {
        Self { kind, status: ConditionStatus::False, reason, message: message.into() }
    }
}

/// Now, as conditions have it.
#[must_use]
pub fn rfc3339(now: Timestamp) -> String {
    let seconds = i64::try_from(now.as_secs()).unwrap_or(i64::MAX);
    OffsetDateTime::from_unix_timestamp(seconds)
        .ok()
        .and_then(|time| time.format(&Rfc3339).ok())
        .unwrap_or_else(|| "1970-01-01T00:00:00Z".to_owned())
}

/// Puts findings into a status, for the generation that they are about.
pub fn conclude(
    status: &mut CommonStatus,
    generation: i64,
    findings: Vec<Finding>,
    now: Timestamp,
) {
    status.observed_generation = generation;
    for Finding { kind, status: holds, reason, message } in findings {
        status.set(Condition {
            kind: kind.to_owned(),
            status: holds,
            observed_generation: generation,
            last_transition_time: rfc3339(now),
            reason: reason.to_owned(),
            message,
        });
    }
}

/// Writes a status if it differs from the one that is there, and tells an Event where `Ready` has
/// changed. Returns whether it was written.
///
/// # Errors
/// When the API server refuses.
pub async fn write<K: Kind>(
    api: &Api<Stored<K>>,
    recorder: &Recorder,
    object: &Stored<K>,
    mut status: K::Status,
) -> Result<bool, kube::Error> {
    if object.status.as_ref() == Some(&status) {
        return Ok(false);
    }
    let patch = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        "metadata": { "name": object.name(), "uid": object.uid() },
        "status": status,
    });
    let params = PatchParams::apply(FIELD_MANAGER).force();
    api.patch_status(object.name(), &params, &Patch::Apply(patch)).await?;
    let mut before = object.status.clone().unwrap_or_default();
    let before = before.common().condition("Ready").cloned();
    if let Some(ready) = status.common().condition("Ready") {
        // An object that is well from the start is no news, and ten thousand of them a flood.
        let news = before.map_or(ready.status != ConditionStatus::True, |old| {
            old.reason != ready.reason || old.message != ready.message
        });
        if news {
            tell(recorder, object, ready).await;
        }
    }
    Ok(true)
}

/// An Event is a courtesy: that it cannot be written is logged and stops nothing.
async fn tell<K: Kind>(recorder: &Recorder, object: &Stored<K>, ready: &Condition) {
    let event = Event {
        type_: match ready.status {
            ConditionStatus::True => EventType::Normal,
            _ => EventType::Warning,
        },
        reason: ready.reason.clone(),
        note: Some(ready.message.chars().take(900).collect()),
        action: "Reconcile".into(),
        secondary: None,
    };
    if let Err(error) = recorder.publish(&event, &object.object_ref(&())).await {
        tracing::warn!(?object, %error, "an Event could not be written");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concluding_the_same_twice_changes_nothing() {
        let findings = || vec![Finding::yes("Ready", "Compiled", "in force")];
        let mut status = CommonStatus::default();
        conclude(&mut status, 2, findings(), Timestamp::from_secs(10));
        let first = status.clone();
        conclude(&mut status, 2, findings(), Timestamp::from_secs(20));
        assert_eq!(status, first);
        assert_eq!(first.conditions[0].last_transition_time, "1970-01-01T00:00:10Z");
        conclude(
            &mut status,
            3,
            vec![Finding::no("Ready", "Broken", "line 3")],
            Timestamp::from_secs(30),
        );
        assert_eq!(status.observed_generation, 3);
        assert_eq!(status.conditions[0].last_transition_time, "1970-01-01T00:00:30Z");
    }
}
