//! How long to wait before the next try: doubling, bounded, and not the same for everybody.

use std::time::Duration;

/// The shortest and the longest wait.
const BOUNDS: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// The waits of one who tries again.
#[derive(Debug)]
pub(crate) struct Backoff(Duration);

impl Backoff {
    pub(crate) const fn new() -> Self {
        Self(BOUNDS.0)
    }

    /// It worked: the next failure starts from the shortest wait.
    pub(crate) const fn reset(&mut self) {
        self.0 = BOUNDS.0;
    }

    /// The next wait: between half of it and all of it, so that a fleet that lost the same server
    /// does not come back as one.
    pub(crate) fn next(&mut self) -> Duration {
        let whole = self.0;
        self.0 = whole.saturating_mul(2).min(BOUNDS.1);
        whole.saturating_mul(rand::random_range(500..=1000)) / 1000
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_to_a_bound() {
        let mut backoff = Backoff::new();
        let mut whole = BOUNDS.0;
        for _ in 0..20 {
            let wait = backoff.next();
            assert!(wait >= whole / 2 && wait <= whole);
            whole = (whole * 2).min(BOUNDS.1);
        }
        assert_eq!(whole, BOUNDS.1);
        backoff.reset();
        assert!(backoff.next() <= BOUNDS.0);
    }
}
