//! ClusterTrustThreshold and TrustThreshold: the cluster's numbers, and what a namespace tightens.

use std::sync::Arc;

use aegis_core::thresholds::Thresholds;
use aegis_resources::{
    kinds::{ClusterTrustThreshold, TrustThreshold, WrittenThresholds},
    status::ThresholdStatus,
};
use kube::runtime::reflector::Store;

use crate::{
    clock,
    controller::{Reconcile, ReconcileError, Shared},
    object::Stored,
    status::{Finding, conclude},
};

/// Of several ClusterTrustThresholds, the one that counts: the oldest, so that nobody replaces the
/// cluster's numbers by adding an object.
#[must_use]
pub fn counting(
    all: &[Arc<Stored<ClusterTrustThreshold>>],
) -> Option<&Arc<Stored<ClusterTrustThreshold>>> {
    let sound =
        all.iter().filter(|one| one.spec.as_ref().is_ok_and(|spec| spec.0.validate().is_ok()));
    sound.min_by_key(|one| {
        let created = one.metadata.creation_timestamp.as_ref().map(|time| time.0);
        (created, one.name().to_owned())
    })
}

/// The thresholds of the cluster. `suspended` counts in each of them: a kill switch is not lost by
/// standing in the wrong object.
#[must_use]
pub fn base(all: &[Arc<Stored<ClusterTrustThreshold>>]) -> Thresholds {
    let first = counting(all).and_then(|one| one.spec.as_ref().ok());
    let suspended = all.iter().any(|one| one.spec.as_ref().is_ok_and(|spec| spec.0.suspended));
    Thresholds { suspended, ..first.map(|spec| spec.0.clone()).unwrap_or_default() }
}

/// Reconciles the cluster's thresholds.
#[derive(Debug)]
pub struct ClusterThresholds {
    /// All of them.
    pub all: Store<Stored<ClusterTrustThreshold>>,
    /// What controllers share.
    pub shared: Shared,
}

impl Reconcile for ClusterThresholds {
    type Kind = ClusterTrustThreshold;
    const CONTROLLER: &'static str = "clustertrustthreshold";

    async fn status(
        &self,
        object: Arc<Stored<ClusterTrustThreshold>>,
    ) -> Result<ThresholdStatus, ReconcileError> {
        self.shared.touch();
        let mut status = object.status.clone().unwrap_or_default();
        let all = self.all.state();
        let first = counting(&all).map(|one| one.name());
        let problem = object.spec.as_ref().map_err(Clone::clone).and_then(|spec| spec.0.validate());
        let suspends = object.spec.as_ref().is_ok_and(|spec| spec.0.suspended);
        let finding = match (problem, first) {
            (Err(message), _) => Finding::no("Ready", "Invalid", message),
            (Ok(()), Some(first)) if first != object.name() => {
                let but = if suspends { "; every agent is suspended all the same" } else { "" };
                let message =
                    format!("`{first}` is older and counts; change that one, or remove it{but}");
                Finding::no("Ready", "Ignored", message)
            }
            (Ok(()), _) if suspends => {
                Finding::yes("Ready", "Suspends", "every action of every agent is denied")
            }
            (Ok(()), _) => Finding::yes("Ready", "InForce", "these are the cluster's thresholds"),
        };
        conclude(&mut status.common, object.generation(), vec![finding], clock::now());
        Ok(status)
    }
}

/// Reconciles namespaces' thresholds.
#[derive(Debug)]
pub struct NamespaceThresholds {
    /// The cluster's, which they may only tighten.
    pub cluster: Store<Stored<ClusterTrustThreshold>>,
    /// What controllers share.
    pub shared: Shared,
}

impl Reconcile for NamespaceThresholds {
    type Kind = TrustThreshold;
    const CONTROLLER: &'static str = "trustthreshold";

    async fn status(
        &self,
        object: Arc<Stored<TrustThreshold>>,
    ) -> Result<ThresholdStatus, ReconcileError> {
        self.shared.touch();
        let mut status = object.status.clone().unwrap_or_default();
        let all = self.cluster.state();
        let finding = match &object.spec {
            Err(message) => Finding::no("Ready", "Invalid", message.clone()),
            Ok(spec) => judge(&spec.0, &base(&all)),
        };
        conclude(&mut status.common, object.generation(), vec![finding], clock::now());
        Ok(status)
    }
}

/// What holds in a namespace: the base, with each written field that tightens it.
#[must_use]
pub fn tightened(own: &WrittenThresholds, base: &Thresholds) -> Thresholds {
    let Ok(merged) = own.over(base) else { return base.clone() };
    let loosened: Vec<&str> = merged.loosenings(base).iter().map(|one| one.field).collect();
    let merged = own.without(&loosened).over(base).unwrap_or_else(|_| base.clone());
    if merged.validate().is_ok() { merged } else { base.clone() }
}

/// What a namespace's thresholds come to beside the cluster's.
fn judge(own: &WrittenThresholds, base: &Thresholds) -> Finding {
    let merged = match own.over(base) {
        Ok(merged) => merged,
        Err(error) => return Finding::no("Ready", "Invalid", error.to_string()),
    };
    if let Err(message) = merged.validate() {
        return Finding::no("Ready", "Invalid", message);
    }
    let loosened = merged.loosenings(base);
    if loosened.is_empty() && merged.suspended {
        let message = "every action of every agent of this namespace is denied";
        return Finding::yes("Ready", "Suspends", message);
    }
    if loosened.is_empty() {
        return Finding::yes("Ready", "InForce", "what it says holds in this namespace");
    }
    let fields: Vec<String> = loosened.into_iter().map(|one| one.message).collect();
    let message = format!("{}; what loosens does not count", fields.join("; "));
    Finding::no("Ready", "Loosens", message)
}

#[cfg(test)]
mod tests {
    use aegis_resources::status::ConditionStatus;
    use serde_json::json;

    use super::*;

    fn judged(own: serde_json::Value, base: serde_json::Value) -> Finding {
        judge(&serde_json::from_value(own).unwrap(), &serde_json::from_value(base).unwrap())
    }

    #[test]
    fn what_would_loosen_is_named() {
        let finding = judged(json!({ "tMin": 800, "fileLimit": 20 }), json!({ "tMin": 950 }));
        assert_eq!((finding.status, finding.reason), (ConditionStatus::False, "Loosens"));
        assert!(finding.message.contains("`tMin` is 800"), "{}", finding.message);
        assert!(finding.message.contains("`fileLimit` is 20"), "{}", finding.message);
    }

    /// The default of `tau` is looser than this cluster's; who does not write it does not loosen.
    #[test]
    fn what_is_left_out_loosens_nothing() {
        let finding = judged(json!({ "tMin": 960 }), json!({ "tMin": 950, "tau": 300 }));
        assert_eq!(finding.reason, "InForce", "{}", finding.message);
    }

    fn cluster(
        name: &str,
        created: &str,
        spec: serde_json::Value,
    ) -> Arc<Stored<ClusterTrustThreshold>> {
        let object =
            json!({ "metadata": { "name": name, "creationTimestamp": created }, "spec": spec });
        Arc::new(serde_json::from_value(object).unwrap())
    }

    #[test]
    fn the_oldest_sound_one_counts() {
        let all = [
            cluster("new", "2026-02-01T00:00:00Z", json!({})),
            cluster("old", "2026-01-01T00:00:00Z", json!({})),
            cluster("oldest-and-broken", "2025-01-01T00:00:00Z", json!({ "tMin": 0 })),
        ];
        assert_eq!(counting(&all).unwrap().name(), "old");
    }

    #[test]
    fn a_suspension_counts_wherever_it_stands() {
        let mut all = vec![cluster("old", "2026-01-01T00:00:00Z", json!({ "tMin": 990 }))];
        assert!(!base(&all).suspended);
        all.push(cluster("new", "2026-02-01T00:00:00Z", json!({ "suspended": true })));
        let base = base(&all);
        assert_eq!((base.suspended, base.t_min.get()), (true, 990));
        // No namespace lifts it, and each may suspend itself.
        let own = serde_json::from_value(json!({ "suspended": false })).unwrap();
        assert!(tightened(&own, &base).suspended);
        assert_eq!(judge(&own, &base).reason, "Loosens");
        let own = serde_json::from_value(json!({ "suspended": true })).unwrap();
        assert!(tightened(&own, &Thresholds::default()).suspended);
        assert_eq!(judge(&own, &Thresholds::default()).reason, "Suspends");
    }
}
