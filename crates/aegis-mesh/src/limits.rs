//! What one caller may ask and hold, so that none starves the others.

use std::{collections::HashMap, hash::Hash, sync::Arc, time::Duration};

use parking_lot::Mutex;
use tokio::time::Instant;

/// How many users are kept track of before idle ones are forgotten.
const MAX_TRACKED: usize = 16_384;

/// A request rate per key: so many at once, then one per interval.
#[derive(Debug)]
pub struct Rate<K: Eq + Hash = u32> {
    interval: Duration,
    burst: u32,
    /// When the allowance of each key is whole again.
    whole_at: Mutex<HashMap<K, Instant>>,
}

impl<K: Eq + Hash> Rate<K> {
    /// So many per second, after so many at once.
    #[must_use]
    pub fn new(per_second: u32, burst: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self { interval, burst, whole_at: Mutex::default() }
    }

    /// Takes one request from the allowance of `key`, if there is one left.
    #[must_use]
    pub fn take(&self, key: K) -> bool {
        let now = Instant::now();
        let mut whole_at = self.whole_at.lock();
        if whole_at.len() >= MAX_TRACKED {
            whole_at.retain(|_, at| *at > now);
        }
        let at = whole_at.get(&key).map_or(now, |at| (*at).max(now));
        let allowed = at.duration_since(now) <= self.interval * self.burst.saturating_sub(1);
        if allowed {
            whole_at.insert(key, at + self.interval);
        }
        allowed
    }
}

/// A number of things that a key may hold at a time.
#[derive(Debug)]
pub struct Held<K: Eq + Hash> {
    most: usize,
    held: Arc<Mutex<HashMap<K, usize>>>,
}

/// One of them, given back when dropped.
#[derive(Debug)]
pub struct Hold<K: Eq + Hash> {
    key: K,
    held: Arc<Mutex<HashMap<K, usize>>>,
}

impl<K: Eq + Hash + Copy> Held<K> {
    /// So many for each key.
    #[must_use]
    pub fn new(most: usize) -> Self {
        Self { most, held: Arc::default() }
    }

    /// One more for `key`, if it may.
    #[must_use]
    pub fn take(&self, key: K) -> Option<Hold<K>> {
        let mut held = self.held.lock();
        let count = held.entry(key).or_default();
        if *count >= self.most {
            return None;
        }
        *count += 1;
        Some(Hold { key, held: Arc::clone(&self.held) })
    }
}

impl<K: Eq + Hash> Drop for Hold<K> {
    fn drop(&mut self) {
        let mut held = self.held.lock();
        if let Some(count) = held.get_mut(&self.key) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_rate_refills() {
        let rate = Rate::new(10, 3);
        assert_eq!((0..5).filter(|_| rate.take(1)).count(), 3);
        assert!(rate.take(2), "another user has an allowance of its own");
        tokio::time::advance(Duration::from_millis(100)).await;
        assert!(rate.take(1));
        assert!(!rate.take(1));
    }

    #[test]
    fn holds_are_given_back() {
        let held = Held::new(2);
        let first = held.take(7);
        let second = held.take(7);
        assert!(first.is_some() && second.is_some() && held.take(7).is_none());
        drop(first);
        assert!(held.take(7).is_some());
    }
}
