//! Tiers: how much of Aegis an action calls for.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    cost::Cost,
    risk::{Facts, Risk},
    thresholds::Thresholds,
    trust::TrustScore,
};

/// How much of Aegis an action calls for.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum Tier {
    /// One agent, decided here.
    #[serde(rename = "L1")]
    Local,
    /// Several agents of one team, decided here.
    #[serde(rename = "L2")]
    Team,
    /// Approvals, or the mesh runner.
    #[serde(rename = "L3")]
    Mesh,
}

/// Why an action is L3.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Escalation {
    /// `R > τ`
    Risk,
    /// The action is sensitive and `T < T_min`.
    Trust,
    /// The cost is above the limit, or unknown.
    Cost,
    /// More files than the limit.
    Files,
}

impl Tier {
    /// The tier of an action, and what raised it to L3.
    ///
    /// `R > τ`, or a sensitive action with `T < T_min`, or a cost above the limit, or more files
    /// than the limit mean L3; otherwise a delegated action is L2 and any other L1.
    #[must_use]
    pub fn of(
        risk: &Risk,
        facts: &Facts,
        trust: TrustScore,
        cost: Cost,
        delegated: bool,
        thresholds: &Thresholds,
    ) -> (Self, Vec<Escalation>) {
        let sensitive = risk.sensitivity >= thresholds.sensitive_at;
        let causes: Vec<Escalation> = [
            (risk.score > thresholds.tau, Escalation::Risk),
            (sensitive && trust.get() < thresholds.t_min.get(), Escalation::Trust),
            (cost.exceeds(thresholds.cost_limit_micros), Escalation::Cost),
            (facts.files > thresholds.file_limit, Escalation::Files),
        ]
        .into_iter()
        .filter_map(|(holds, cause)| holds.then_some(cause))
        .collect();
        let tier = match (causes.is_empty(), delegated) {
            (false, _) => Self::Mesh,
            (true, true) => Self::Team,
            (true, false) => Self::Local,
        };
        (tier, causes)
    }

    /// `L1`, `L2` or `L3`.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Local => "L1",
            Self::Team => "L2",
            Self::Mesh => "L3",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::risk::PerMille;

    fn tier(sensitivity: u64, trust: u64, files: u32, cost: Cost) -> (Tier, Vec<Escalation>) {
        let thresholds = Thresholds::default();
        let facts = Facts {
            files,
            bytes: 0,
            scope: PerMille::clamped(0),
            sensitivity: PerMille::clamped(sensitivity),
        };
        let trust = TrustScore::clamped(trust);
        let risk = Risk::compute(&facts, trust, &thresholds);
        Tier::of(&risk, &facts, trust, cost, false, &thresholds)
    }

    #[test]
    fn each_cause_alone_escalates() {
        let free = Cost::NotApplicable;
        assert_eq!(tier(300, 500, 1, free), (Tier::Local, vec![]));
        assert_eq!(tier(700, 899, 1, free), (Tier::Mesh, vec![Escalation::Trust]));
        assert_eq!(tier(700, 900, 1, free), (Tier::Local, vec![]));
        assert_eq!(tier(300, 500, 11, free), (Tier::Mesh, vec![Escalation::Files]));
        assert_eq!(tier(300, 500, 1, Cost::Unknown), (Tier::Mesh, vec![Escalation::Cost]));
        assert_eq!(tier(300, 500, 1, Cost::Micros(300_000)), (Tier::Local, vec![]));
        assert_eq!(tier(300, 500, 1, Cost::Micros(300_001)), (Tier::Mesh, vec![Escalation::Cost]));
    }
}
