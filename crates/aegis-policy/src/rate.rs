//! Rate limits: the generic cell rate algorithm (GCRA) in whole microseconds.
//!
//! One number a limit: the theoretical arrival time of the next action. The table is bounded; where
//! it is full of live entries, a new limit is refused rather than forgotten. The time comes in as
//! an argument; a clock that is set back makes a limit at most as strict as one full burst.

use std::{collections::HashMap, time::Duration};

use aegis_core::{Timestamp, policy::RateLimit};
use serde::Serialize;

/// The most limits that are kept.
const MAX_ENTRIES: usize = 65_536;

/// What a limit says now.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RateObservation {
    /// How many actions the limit still allows at once.
    pub remaining: u32,
    /// After how many microseconds the next one is allowed; 0 where one is now.
    pub retry_after_micros: u64,
}

impl RateObservation {
    /// Whether an action is allowed now.
    #[must_use]
    pub const fn allows(&self) -> bool {
        self.remaining > 0
    }
}

/// The limits' state.
#[derive(Debug)]
pub struct RateTable {
    /// Theoretical arrival times in microseconds since the epoch.
    arrivals: HashMap<String, u64>,
    max_entries: usize,
    /// When the table was last searched for dead entries.
    swept: u64,
}

impl Default for RateTable {
    fn default() -> Self {
        Self::with_capacity(MAX_ENTRIES)
    }
}

/// The emission interval and the tolerance of a limit.
fn interval(limit: &RateLimit) -> (u64, u64) {
    let requests = u64::from(limit.requests.max(1));
    // Rounded up: never more than was allowed.
    let interval = limit.per.micros().div_ceil(requests).max(1);
    let burst = u64::from(limit.burst.unwrap_or(limit.requests).max(1));
    (interval, interval.saturating_mul(burst))
}

impl RateTable {
    /// A table of at most this many limits.
    #[must_use]
    pub fn with_capacity(max_entries: usize) -> Self {
        Self { arrivals: HashMap::new(), max_entries, swept: 0 }
    }

    /// What the limit says about an action now, without counting it.
    #[must_use]
    pub fn peek(&self, key: &str, limit: &RateLimit, now: Timestamp) -> RateObservation {
        let (interval, tolerance) = interval(limit);
        let now = now.as_micros();
        let arrival =
            self.arrivals.get(key).copied().unwrap_or(0).clamp(now, now.saturating_add(tolerance));
        let used = arrival - now;
        let remaining = (tolerance - used) / interval;
        let remaining = u32::try_from(remaining).unwrap_or(u32::MAX);
        if remaining > 0 {
            return RateObservation { remaining, retry_after_micros: 0 };
        }
        let retry_after_micros = (used + interval).saturating_sub(tolerance);
        RateObservation { remaining: 0, retry_after_micros }
    }

    /// Counts an action, if the limit allows it. `false`: it does not, or the table is full.
    #[must_use]
    pub fn take(&mut self, key: &str, limit: &RateLimit, now: Timestamp) -> bool {
        self.take_all(&[(key, limit)], now)
    }

    /// Counts one action under several limits: all of them, or none.
    #[must_use]
    pub fn take_all(&mut self, limits: &[(&str, &RateLimit)], now: Timestamp) -> bool {
        if limits.iter().any(|(key, limit)| !self.peek(key, limit, now).allows()) {
            return false;
        }
        let new = limits.iter().filter(|(key, _)| !self.arrivals.contains_key(*key)).count();
        if !self.make_room(new, now.as_micros()) {
            return false;
        }
        for (key, limit) in limits {
            let (interval, tolerance) = interval(limit);
            let now = now.as_micros();
            let arrival = self.arrivals.get(*key).copied().unwrap_or(0);
            let next = arrival.clamp(now, now.saturating_add(tolerance)).saturating_add(interval);
            self.arrivals.insert((*key).to_owned(), next);
        }
        true
    }

    fn make_room(&mut self, new: usize, now: u64) -> bool {
        if self.arrivals.len() + new <= self.max_entries {
            return true;
        }
        // Once a second at most, so that a flood of names does not cost a search each.
        let due = now.abs_diff(self.swept) >= Duration::from_secs(1).as_micros() as u64;
        if due {
            self.swept = now;
            // An arrival that has passed says the same as none.
            self.arrivals.retain(|_, arrival| *arrival > now);
        }
        self.arrivals.len() + new <= self.max_entries
    }
}

#[cfg(test)]
mod tests {
    use aegis_core::policy::{RatePeriod, RateScope};
    use proptest::prelude::*;

    use super::*;

    fn limit(requests: u32, burst: Option<u32>) -> RateLimit {
        RateLimit { requests, per: RatePeriod::Minute, burst, scope: RateScope::Agent }
    }

    const START: u64 = 1_000_000_000;

    #[test]
    fn a_burst_then_the_rate() {
        let mut table = RateTable::default();
        let limit = limit(60, Some(3));
        let now = Timestamp::from_secs(START);
        for _ in 0..3 {
            assert!(table.take("a", &limit, now));
        }
        assert!(!table.take("a", &limit, now));
        assert_eq!(table.peek("a", &limit, now).retry_after_micros, 1_000_000);
        assert!(table.take("b", &limit, now), "each key has its own");
        let later = Timestamp::from_secs(START + 1);
        assert!(table.take("a", &limit, later) && !table.take("a", &limit, later));
    }

    #[test]
    fn a_full_table_refuses_and_forgets_only_the_dead() {
        let mut table = RateTable::with_capacity(2);
        let limit = limit(1, None);
        let now = Timestamp::from_secs(START);
        assert!(table.take("a", &limit, now) && table.take("b", &limit, now));
        assert!(!table.take("c", &limit, now), "no room for c");
        assert!(!table.take("a", &limit, now), "a is still known");
        let later = Timestamp::from_secs(START + 61);
        assert!(table.take("c", &limit, later));
    }

    #[test]
    fn several_limits_are_taken_together_or_not_at_all() {
        let mut table = RateTable::default();
        let (one, two) = (limit(1, None), limit(2, None));
        let now = Timestamp::from_secs(START);
        assert!(table.take_all(&[("one", &one), ("two", &two)], now));
        assert!(!table.take_all(&[("one", &one), ("two", &two)], now));
        assert_eq!(table.peek("two", &two, now).remaining, 1);
    }

    proptest! {
        /// In no window of one period are more than burst + requests actions allowed, whatever the
        /// order of times; and peek always says what take then does.
        #[test]
        fn never_more_than_the_limit(
            requests in 1_u32..50,
            burst in prop::option::of(1_u32..50),
            steps in prop::collection::vec(0_u64..5_000_000, 1..300),
        ) {
            let limit = limit(requests, burst);
            let mut table = RateTable::default();
            let mut now = START * 1_000_000;
            let mut taken = Vec::new();
            for step in steps {
                now += step;
                let at = Timestamp::from_micros(now);
                let peeked = table.peek("k", &limit, at);
                let allowed = table.take("k", &limit, at);
                prop_assert_eq!(peeked.allows(), allowed);
                if !allowed {
                    let then = Timestamp::from_micros(now + peeked.retry_after_micros);
                    prop_assert!(table.peek("k", &limit, then).allows());
                    let before = Timestamp::from_micros(now + peeked.retry_after_micros - 1);
                    prop_assert!(!table.peek("k", &limit, before).allows());
                } else {
                    taken.push(now);
                }
            }
            let most = usize::try_from(requests + burst.unwrap_or(requests)).unwrap();
            for (i, start) in taken.iter().enumerate() {
                let inside = taken[i..].iter().take_while(|t| **t < start + 60_000_000).count();
                prop_assert!(inside <= most, "{} > {}", inside, most);
            }
        }

        /// A clock that goes backwards blocks for at most one full burst.
        #[test]
        fn a_clock_set_back_does_not_lock_out(requests in 1_u32..50, back in 0_u64..100_000_000_000) {
            let limit = limit(requests, None);
            let mut table = RateTable::default();
            let now = START * 1_000_000 + 200_000_000_000;
            prop_assert!(table.take("k", &limit, Timestamp::from_micros(now)));
            let earlier = now - back;
            let wait = table.peek("k", &limit, Timestamp::from_micros(earlier)).retry_after_micros;
            prop_assert!(wait <= 60_000_000);
        }
    }
}
