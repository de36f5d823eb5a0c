//! The numbers by which trust, risk and cost are judged: the `spec` of TrustThreshold.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::risk::PerMille;

/// Thresholds and weights. Every field has a default, so that `{}` is a complete specification.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Thresholds {
    /// Below this trust, a sensitive action waits for approval. 0..1000.
    #[schemars(range(min = 1, max = 1000))]
    pub t_min: PerMille,
    /// τ: above this risk, an action is escalated to L3. Per mille.
    #[schemars(range(min = 1, max = 1000))]
    pub tau: PerMille,
    /// From this sensitivity on, an action is sensitive. Per mille.
    #[schemars(range(min = 1, max = 1000))]
    pub sensitive_at: PerMille,
    /// The weights of the risk formula.
    pub weights: Weights,
    /// α: what a risky action leaves of an agent's positive evidence. Per mille.
    #[schemars(range(min = 500, max = 1000))]
    pub alpha: PerMille,
    /// ρ: what a delegation leaves of the delegator's trust. Per mille.
    #[schemars(range(min = 0, max = 1000))]
    pub rho: PerMille,
    /// An agent is quarantined once its trust lies below this score … 0..500.
    #[schemars(range(min = 0, max = 500))]
    pub critical_score: PerMille,
    /// … with at least this probability under its own posterior. Per mille.
    #[schemars(range(min = 500, max = 1000))]
    pub critical_confidence: PerMille,
    /// The most positive evidence an agent can gather in one clock hour, in thousandths of an
    /// observation.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub evidence_cap: u32,
    /// Above this cost of a task, in micro-dollars, the tier is L3.
    #[schemars(range(min = 0, max = 1_000_000_000_000_u64))]
    pub cost_limit_micros: u64,
    /// Above this number of files, the tier is L3.
    #[schemars(range(min = 1, max = 100_000))]
    pub file_limit: u32,
    /// How many approvals an L3 action needs.
    #[schemars(range(min = 1, max = 10))]
    pub approvals_at_l3: u8,
    /// How old the last good state may be before sensitive actions are denied. Seconds.
    #[schemars(range(min = 1, max = 86_400))]
    pub max_staleness_secs: u32,
    /// How long an approval request waits before it expires, which denies. Seconds.
    #[schemars(range(min = 1, max = 604_800))]
    pub approval_ttl_secs: u32,
    /// The kill switch: every action of every agent that these thresholds are for is denied. Default
    /// false.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub suspended: bool,
}

/// The weights of `R = w_s·S + w_c·C + w_t·(1 − T/1000)`, in per mille.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Weights {
    /// w_s
    #[schemars(range(min = 0, max = 1000))]
    pub scope: PerMille,
    /// w_c
    #[schemars(range(min = 0, max = 1000))]
    pub sensitivity: PerMille,
    /// w_t
    #[schemars(range(min = 0, max = 1000))]
    pub trust: PerMille,
}

impl Default for Weights {
    fn default() -> Self {
        Self {
            scope: PerMille::clamped(200),
            sensitivity: PerMille::clamped(500),
            trust: PerMille::clamped(300),
        }
    }
}

impl Default for Thresholds {
    fn default() -> Self {
        Self {
            t_min: PerMille::clamped(900),
            tau: PerMille::clamped(650),
            sensitive_at: PerMille::clamped(700),
            weights: Weights::default(),
            alpha: PerMille::clamped(990),
            rho: PerMille::clamped(900),
            critical_score: PerMille::clamped(300),
            critical_confidence: PerMille::clamped(950),
            evidence_cap: 5_000,
            cost_limit_micros: 300_000,
            file_limit: 10,
            approvals_at_l3: 2,
            max_staleness_secs: 60,
            approval_ttl_secs: 900,
            suspended: false,
        }
    }
}

/// A field by which a namespace would allow more than the whole does, or which is not its to set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loosening {
    /// The field, as YAML names it.
    pub field: &'static str,
    /// What is wrong with it, and what would be right.
    pub message: String,
}

impl Thresholds {
    /// The fields of a namespace's thresholds that `base`, the whole's, does not let it set so.
    #[must_use]
    pub fn loosenings(&self, base: &Self) -> Vec<Loosening> {
        let at_least: [(&'static str, u64, u64); 3] = [
            ("tMin", self.t_min.get().into(), base.t_min.get().into()),
            ("approvalsAtL3", self.approvals_at_l3.into(), base.approvals_at_l3.into()),
            ("criticalScore", self.critical_score.get().into(), base.critical_score.get().into()),
        ];
        let at_most: [(&'static str, u64, u64); 7] = [
            ("tau", self.tau.get().into(), base.tau.get().into()),
            ("sensitiveAt", self.sensitive_at.get().into(), base.sensitive_at.get().into()),
            (
                "criticalConfidence",
                self.critical_confidence.get().into(),
                base.critical_confidence.get().into(),
            ),
            ("costLimitMicros", self.cost_limit_micros, base.cost_limit_micros),
            ("fileLimit", self.file_limit.into(), base.file_limit.into()),
            ("maxStalenessSecs", self.max_staleness_secs.into(), base.max_staleness_secs.into()),
            ("approvalTtlSecs", self.approval_ttl_secs.into(), base.approval_ttl_secs.into()),
        ];
        // No direction of these is stricter, so they are the whole's.
        let same = [
            ("weights", self.weights == base.weights),
            ("alpha", self.alpha == base.alpha),
            ("rho", self.rho == base.rho),
            ("evidenceCap", self.evidence_cap == base.evidence_cap),
        ];
        let low = at_least.into_iter().filter(|(_, own, base)| own < base).map(|(field, own, base)| {
            let message = format!("`{field}` is {own}, which loosens the cluster's {base}; it must be at least {base}");
            Loosening { field, message }
        });
        let high = at_most.into_iter().filter(|(_, own, base)| own > base).map(|(field, own, base)| {
            let message = format!("`{field}` is {own}, which loosens the cluster's {base}; it must be at most {base}");
            Loosening { field, message }
        });
        let other = same.into_iter().filter(|(_, same)| !same).map(|(field, _)| {
            let message =
                format!("`{field}` can only be set in a ClusterTrustThreshold; remove it");
            Loosening { field, message }
        });
        let lifted = (base.suspended && !self.suspended).then(|| Loosening {
            field: "suspended",
            message: "`suspended` is false, and the cluster's is true; it holds for every namespace, so remove it here or lift it there".into(),
        });
        low.chain(high).chain(other).chain(lifted).collect()
    }

    /// Checks the bounds that the schema states, for values that did not pass a schema.
    ///
    /// # Errors
    /// One sentence naming the field and its bounds.
    pub fn validate(&self) -> Result<(), String> {
        let bounds: [(&str, u64, u64, u64); 9] = [
            ("tMin", self.t_min.get().into(), 1, 1000),
            ("tau", self.tau.get().into(), 1, 1000),
            ("sensitiveAt", self.sensitive_at.get().into(), 1, 1000),
            ("alpha", self.alpha.get().into(), 500, 1000),
            ("criticalScore", self.critical_score.get().into(), 0, 500),
            ("criticalConfidence", self.critical_confidence.get().into(), 500, 1000),
            ("evidenceCap", self.evidence_cap.into(), 1, 1_000_000),
            ("approvalsAtL3", self.approvals_at_l3.into(), 1, 10),
            ("fileLimit", self.file_limit.into(), 1, 100_000),
        ];
        for (name, value, low, high) in bounds {
            if !(low..=high).contains(&value) {
                return Err(format!("`{name}` is {value}; it must lie between {low} and {high}"));
            }
        }
        Ok(())
    }
}
