//! Trust: the mean of a Beta(a, b) posterior over an agent's conduct, ×1000, in fixed point.
//!
//! A fold over the ledger: the same observations in the same order give the same integers, on any
//! machine and in any language. `a` and `b` count in millionths of an observation.
//!
//! What moves it:
//! - an allowed action that succeeded adds its risk to `a` (an action of risk 300 ‰ is 0.3
//!   observations), at most `evidenceCap` per agent and clock hour, so that harmless calls cannot
//!   farm trust;
//! - an action that an enforced policy refused adds its risk, at least 200 ‰, to `b`;
//! - a risky (L3) action keeps the mass and shifts it: `a' = α·a`, `b' = b + (1 − α)·a`;
//! - failures of the upstream and verdicts of audit-mode policies move nothing.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{Timestamp, risk::PerMille, thresholds::Thresholds, tier::Tier};

/// One observation in fixed point.
pub const OBSERVATION: u64 = 1_000_000;

/// A refused action weighs at least this much. Per mille.
const MIN_VIOLATION: u64 = 200;

/// A succeeded action weighs at least this much. Per mille.
const MIN_SUCCESS: u64 = 10;

/// Evidence beyond this many observations is scaled down, which keeps every product in 64 bits
/// and lets old conduct fade. 1,000 observations.
const MAX_MASS: u64 = 1_000 * OBSERVATION;

/// A trust score, 0..=1000.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    Hash,
    PartialOrd,
    Ord,
    Serialize,
    Deserialize,
    JsonSchema,
)]
#[serde(transparent)]
pub struct TrustScore(u16);

/// The posterior of one agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// Evidence for, in millionths of an observation; the prior counts as one.
    pub a: u64,
    /// Evidence against, likewise.
    pub b: u64,
    /// The clock hour (hours since the epoch) that `window_gain` belongs to.
    pub window: u64,
    /// What `a` has gained in that hour.
    pub window_gain: u64,
}

/// Something that moves trust, as the ledger records it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Observation {
    /// An allowed action succeeded.
    Succeeded {
        /// Its risk.
        risk: PerMille,
        /// Its tier; L3 shifts mass by α first.
        tier: Tier,
    },
    /// An enforced policy refused an action.
    Violated {
        /// Its risk.
        risk: PerMille,
    },
    /// A human set the posterior, with a recorded reason.
    Adjusted {
        /// The new `a`.
        a: u64,
        /// The new `b`.
        b: u64,
    },
}

/// AgentMesh's names for ranges of the score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Standing {
    /// 900 and above.
    VerifiedPartner,
    /// 700..900.
    Trusted,
    /// 500..700.
    Standard,
    /// 300..500.
    Probationary,
    /// Below 300.
    Untrusted,
}

/// FailSafe's names for stages of the score.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub enum Stage {
    /// Calculus-based, below 500.
    #[serde(rename = "CBT")]
    Calculus,
    /// Knowledge-based, 500..800.
    #[serde(rename = "KBT")]
    Knowledge,
    /// Identification-based, 800 and above.
    #[serde(rename = "IBT")]
    Identification,
}

// === impl TrustScore ===

impl TrustScore {
    /// Clamps to 0..=1000.
    #[must_use]
    pub fn clamped(value: u64) -> Self {
        Self(u16::try_from(value.min(1000)).unwrap_or(1000))
    }

    /// The number, 0..=1000.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }

    /// `trust(B) = ρ·trust(A)` for one delegation.
    #[must_use]
    pub fn delegated(self, rho: PerMille) -> Self {
        Self::clamped(u64::from(self.0) * u64::from(rho.get()) / 1000)
    }

    /// AgentMesh's name for it.
    #[must_use]
    pub const fn standing(self) -> Standing {
        match self.0 {
            900.. => Standing::VerifiedPartner,
            700..=899 => Standing::Trusted,
            500..=699 => Standing::Standard,
            300..=499 => Standing::Probationary,
            _ => Standing::Untrusted,
        }
    }

    /// FailSafe's name for it.
    #[must_use]
    pub const fn stage(self) -> Stage {
        match self.0 {
            800.. => Stage::Identification,
            500..=799 => Stage::Knowledge,
            _ => Stage::Calculus,
        }
    }
}

// === impl Trust ===

impl Default for Trust {
    /// The uniform prior Beta(1, 1): score 500.
    fn default() -> Self {
        Self { a: OBSERVATION, b: OBSERVATION, window: 0, window_gain: 0 }
    }
}

impl Trust {
    /// The mean of the posterior, ×1000, rounded down.
    #[must_use]
    pub fn score(&self) -> TrustScore {
        let mass = self.a.saturating_add(self.b).max(1);
        TrustScore::clamped(self.a.saturating_mul(1000) / mass)
    }

    /// The posterior after one more observation.
    #[must_use]
    pub fn after(
        mut self,
        observation: Observation,
        at: Timestamp,
        thresholds: &Thresholds,
    ) -> Self {
        match observation {
            Observation::Succeeded { risk, tier } => {
                if tier == Tier::Mesh {
                    let kept = self.a / 1000 * u64::from(thresholds.alpha.get());
                    self.b += self.a - kept;
                    self.a = kept;
                }
                let window = at.as_secs() / 3_600;
                // An hour that is over does not begin again: journals of several pods arrive
                // interleaved, and each turn between two hours would open the cap anew.
                if window > self.window {
                    (self.window, self.window_gain) = (window, 0);
                }
                let cap = u64::from(thresholds.evidence_cap) * (OBSERVATION / 1000);
                let weight = u64::from(risk.get()).max(MIN_SUCCESS) * (OBSERVATION / 1000);
                let gain = weight.min(cap.saturating_sub(self.window_gain));
                self.window_gain += gain;
                self.a += gain;
            }
            Observation::Violated { risk } => {
                self.b += u64::from(risk.get()).max(MIN_VIOLATION) * (OBSERVATION / 1000);
            }
            Observation::Adjusted { a, b } => {
                self.a = a.clamp(1, MAX_MASS / 2);
                self.b = b.clamp(1, MAX_MASS / 2);
            }
        }
        let mass = self.a + self.b;
        if mass > MAX_MASS {
            // Scaling both keeps the mean. Dividing first keeps the products in 64 bits.
            self.a = self.a / 1000 * (MAX_MASS / 1000) / (mass / 1000) * 1000;
            self.b = self.b / 1000 * (MAX_MASS / 1000) / (mass / 1000) * 1000;
        }
        self
    }

    /// The probability, in per mille, that the agent's true score lies below `score` (at most 500).
    ///
    /// With whole `A` and `B`, `P(θ < x) = I_x(A, B) = P(Bin(A+B−1, x) ≥ A)`, summed in 2^-108
    /// fixed point. The posterior is rounded to at most 64 observations, which widens it: the
    /// answer errs towards "not sure".
    #[must_use]
    pub fn probability_below(&self, score: PerMille) -> PerMille {
        const ONE: u128 = 1 << 108;
        const MAX_OBSERVATIONS: u64 = 64;
        let x = u128::from(score.get().min(500));
        let whole = |v: u64| ((v + OBSERVATION / 2) / OBSERVATION).max(1);
        let (mut a, mut b) = (whole(self.a), whole(self.b));
        if a + b > MAX_OBSERVATIONS {
            let total = a + b;
            a = ((a * MAX_OBSERVATIONS + total / 2) / total).clamp(1, MAX_OBSERVATIONS - 1);
            b = MAX_OBSERVATIONS - a;
        }
        let n = u128::from(a + b - 1);
        let mut term = ONE;
        for _ in 0..n {
            term = term / 1000 * (1000 - x);
        }
        // term_j = C(n, j)·x^j·(1−x)^(n−j); the sum over j < A is P(Bin < A).
        let mut below_a: u128 = 0;
        for j in 0..u128::from(a) {
            below_a += term;
            term = term / ((j + 1) * (1000 - x)) * ((n - j) * x);
        }
        let at_least_a = ONE.saturating_sub(below_a);
        PerMille::clamped(u64::try_from(at_least_a / (ONE / 1000)).unwrap_or(1000))
    }

    /// Whether the agent must be quarantined: it is below `criticalScore` with at least
    /// `criticalConfidence` under its own posterior.
    #[must_use]
    pub fn is_critical(&self, thresholds: &Thresholds) -> bool {
        self.probability_below(thresholds.critical_score) >= thresholds.critical_confidence
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn permille(v: u64) -> PerMille {
        PerMille::clamped(v)
    }

    fn observations() -> impl Strategy<Value = Vec<(Observation, u64)>> {
        let one = prop_oneof![
            (0_u64..=1000, prop::bool::ANY).prop_map(|(r, risky)| Observation::Succeeded {
                risk: permille(r),
                tier: if risky { Tier::Mesh } else { Tier::Local },
            }),
            (0_u64..=1000).prop_map(|r| Observation::Violated { risk: permille(r) }),
        ];
        prop::collection::vec((one, 0_u64..100_000), 0..200)
    }

    fn fold(observations: &[(Observation, u64)]) -> Trust {
        let thresholds = Thresholds::default();
        observations.iter().fold(Trust::default(), |trust, (observation, secs)| {
            trust.after(*observation, Timestamp::from_secs(*secs), &thresholds)
        })
    }

    #[test]
    fn a_newcomer_is_standard_and_not_critical() {
        let trust = Trust::default();
        assert_eq!(trust.score().get(), 500);
        assert_eq!(trust.score().standing(), Standing::Standard);
        assert!(!trust.is_critical(&Thresholds::default()));
    }

    #[test]
    fn harmless_calls_cannot_farm_trust() {
        let calls: Vec<_> = (0..100_000)
            .map(|i| (Observation::Succeeded { risk: permille(200), tier: Tier::Local }, i / 100))
            .collect();
        // One hour of calls is worth five observations, however many there were.
        assert_eq!(fold(&calls).score().get(), 857);
    }

    #[test]
    fn an_hour_that_is_over_does_not_begin_again() {
        let calls: Vec<_> = (0..1000_u64)
            .map(|i| {
                let hour = 7_200 + 3_600 * (i % 2);
                (Observation::Succeeded { risk: permille(200), tier: Tier::Local }, hour)
            })
            .collect();
        // The first call is of the earlier hour, all others count to the later one.
        assert_eq!(fold(&calls).a, OBSERVATION + 200_000 + 5 * OBSERVATION);
    }

    #[test]
    fn a_risky_action_keeps_the_mass() {
        let before = Trust { a: 20 * OBSERVATION, b: 2 * OBSERVATION, ..Trust::default() };
        let after = before.after(
            Observation::Succeeded { risk: permille(0), tier: Tier::Mesh },
            Timestamp::from_secs(0),
            &Thresholds::default(),
        );
        assert_eq!(after.b, 2_200_000);
        assert_eq!(after.a, 19_800_000 + 10_000);
    }

    /// Reference values of the regularised incomplete beta function.
    #[test]
    fn the_posterior_is_the_beta_distribution() {
        let cases = [
            (1, 1, 300, 300),
            (1, 8, 300, 942),
            (1, 9, 300, 959),
            (2, 2, 500, 500),
            (10, 2, 300, 0),
        ];
        for (a, b, x, expected) in cases {
            let trust = Trust { a: a * OBSERVATION, b: b * OBSERVATION, ..Trust::default() };
            assert_eq!(trust.probability_below(permille(x)).get(), expected, "I_{x}({a},{b})");
        }
    }

    #[test]
    fn persistent_violations_end_in_quarantine() {
        let violations: Vec<_> =
            (0..8).map(|i| (Observation::Violated { risk: permille(1000) }, i)).collect();
        assert!(fold(&violations).is_critical(&Thresholds::default()));
        assert!(!fold(&violations[..4]).is_critical(&Thresholds::default()));
    }

    proptest! {
        #[test]
        fn scores_stay_in_range_and_replay_is_identical(list in observations()) {
            let trust = fold(&list);
            prop_assert!(trust.score().get() <= 1000);
            prop_assert_eq!(trust, fold(&list));
            prop_assert!(trust.a + trust.b <= MAX_MASS + OBSERVATION);
        }

        #[test]
        fn a_violation_never_raises_trust(list in observations(), risk in 0_u64..=1000) {
            let before = fold(&list);
            let after = before.after(
                Observation::Violated { risk: permille(risk) }, Timestamp::from_secs(0), &Thresholds::default());
            prop_assert!(after.score() <= before.score());
        }

        #[test]
        fn the_posterior_grows_with_evidence_against(a in 1_u64..30, b in 1_u64..30) {
            let at = |b: u64| Trust { a: a * OBSERVATION, b: b * OBSERVATION, ..Trust::default() };
            prop_assert!(at(b + 1).probability_below(permille(300)) >= at(b).probability_below(permille(300)));
        }

        #[test]
        fn delegation_never_raises_trust(t in 0_u64..=1000, rho in 0_u64..=1000) {
            let trust = TrustScore::clamped(t);
            prop_assert!(trust.delegated(permille(rho)) <= trust);
        }
    }
}
