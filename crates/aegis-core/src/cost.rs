//! What a task costs in each tier, and how many agents a wanted reliability needs.
//!
//! `C1 = c_llm`, `C2 = n·c_llm + m·c_msg + o`, `C3 = C2 + c_net + m·log2(N)·c_sig + c_audit`;
//! n independent agents that each fail with probability ε all fail with ε^n.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::risk::PerMille;

/// What is known of a cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Cost {
    /// A single call: nobody pays for it by the task.
    NotApplicable,
    /// Told or measured, in micro-dollars.
    Micros(u64),
    /// Nobody knows; counts as over the limit.
    Unknown,
}

/// The unit costs of a task, in micro-dollars, and its shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quantities {
    /// n: agents.
    pub agents: u32,
    /// m: messages between them.
    pub messages: u32,
    /// N: entries in the log.
    pub log_size: u64,
    /// c_llm: one agent's model calls.
    pub llm: u64,
    /// c_msg: one message.
    pub message: u64,
    /// o: orchestration.
    pub orchestration: u64,
    /// c_net: the network.
    pub network: u64,
    /// c_sig: one signature in a proof.
    pub signature: u64,
    /// c_audit: keeping the record.
    pub audit: u64,
}

impl Cost {
    /// Whether the cost is above `limit` micro-dollars. Unknown is.
    #[must_use]
    pub const fn exceeds(self, limit: u64) -> bool {
        match self {
            Self::NotApplicable => false,
            Self::Micros(micros) => micros > limit,
            Self::Unknown => true,
        }
    }
}

impl Quantities {
    /// `C1`, one agent here. Micro-dollars.
    #[must_use]
    pub const fn local(&self) -> u64 {
        self.llm
    }

    /// `C2 = n·c_llm + m·c_msg + o`. Micro-dollars.
    #[must_use]
    pub fn team(&self) -> u64 {
        u64::from(self.agents)
            .saturating_mul(self.llm)
            .saturating_add(u64::from(self.messages).saturating_mul(self.message))
            .saturating_add(self.orchestration)
    }

    /// `C3 = C2 + c_net + m·log2(N)·c_sig + c_audit`. Micro-dollars.
    #[must_use]
    pub fn mesh(&self) -> u64 {
        let signatures = u128::from(self.messages)
            .saturating_mul(u128::from(log2_milli(self.log_size)))
            .saturating_mul(u128::from(self.signature))
            / 1000;
        self.team()
            .saturating_add(self.network)
            .saturating_add(u64::try_from(signatures).unwrap_or(u64::MAX))
            .saturating_add(self.audit)
    }
}

/// `log2(n)` in thousandths, rounded down; 0 for n < 2. By repeated squaring in 2^-32 fixed point.
#[must_use]
pub fn log2_milli(n: u64) -> u64 {
    let Some(whole) = n.checked_ilog2() else { return 0 };
    let mut mantissa = (u128::from(n) << 32) >> whole;
    let mut fraction: u64 = 0;
    for _ in 0..20 {
        mantissa = (mantissa * mantissa) >> 32;
        fraction <<= 1;
        if mantissa >= 2 << 32 {
            fraction |= 1;
            mantissa >>= 1;
        }
    }
    u64::from(whole) * 1000 + ((fraction * 1000) >> 20)
}

/// ε^n in parts per billion, rounded up: the bound on n independent agents all failing.
#[must_use]
pub fn failure_bound(epsilon: PerMille, agents: u32) -> u64 {
    let mut bound: u64 = 1_000_000_000;
    for _ in 0..agents.min(64) {
        bound = (bound * u64::from(epsilon.get())).div_ceil(1000);
    }
    bound
}

/// The least n with `ε^n ≤ 1 − reliability`, at most 16; `None` if no such n exists.
/// `failure` is `1 − reliability` in parts per billion.
#[must_use]
pub fn agents_for(epsilon: PerMille, failure: u64) -> Option<u32> {
    (1..=16).find(|&n| failure_bound(epsilon, n) <= failure)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn formulas_match_worked_examples() {
        let q = Quantities {
            agents: 3,
            messages: 10,
            log_size: 1024,
            llm: 20_000,
            message: 100,
            orchestration: 500,
            network: 50,
            signature: 7,
            audit: 30,
        };
        assert_eq!(q.local(), 20_000);
        assert_eq!(q.team(), 61_500);
        assert_eq!(q.mesh(), 61_500 + 50 + 700 + 30);
        assert_eq!(failure_bound(PerMille::clamped(100), 3), 1_000_000);
        assert_eq!(agents_for(PerMille::clamped(100), 1_000_000), Some(3));
        assert_eq!(agents_for(PerMille::ONE, 1), None);
        assert_eq!(
            (log2_milli(0), log2_milli(1), log2_milli(8), log2_milli(10)),
            (0, 0, 3000, 3321)
        );
    }

    proptest! {
        #[test]
        fn more_agents_never_fail_more(epsilon in 0_u64..=1000, n in 0_u32..20) {
            let epsilon = PerMille::clamped(epsilon);
            prop_assert!(failure_bound(epsilon, n + 1) <= failure_bound(epsilon, n));
        }

        #[test]
        fn log2_is_monotone(n in 1_u64..u64::MAX) {
            prop_assert!(log2_milli(n + 1) >= log2_milli(n));
        }
    }
}
