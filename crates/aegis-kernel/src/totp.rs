//! Time-based one-time passwords (RFC 6238): six digits, 30 s steps, HMAC-SHA-1.

use aegis_core::Timestamp;
use hmac::{Hmac, KeyInit, Mac};
use sha1::Sha1;

/// One step. Seconds.
const STEP_SECS: u64 = 30;

/// How many wrong codes are looked at in one step. A code is one of a million, and whoever reaches the
/// daemon's socket can try: at this pace, guessing takes years.
const GUESSES: u32 = 3;

/// A shared secret, and the last step it was used in: a code works once.
#[derive(Clone)]
pub struct Totp {
    secret: Vec<u8>,
    last_step: u64,
    /// The wrong codes for what permits something.
    wrong: Wrong,
    /// The wrong codes for what stops an agent: these lock nothing.
    wrong_stops: Wrong,
}

/// The step of the last wrong codes, and how many there were.
#[derive(Clone, Copy, Default)]
struct Wrong(u64, u32);

impl Wrong {
    const fn in_step(self, step: u64) -> u32 {
        if self.0 == step { self.1 } else { 0 }
    }

    fn add(&mut self, step: u64) {
        *self = Self(step, self.in_step(step).saturating_add(1));
    }
}

impl std::fmt::Debug for Totp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Totp").field("last_step", &self.last_step).finish_non_exhaustive()
    }
}

impl Totp {
    /// From a secret of at least 16 bytes (RFC 4226 §4, R6).
    #[must_use]
    pub fn new(secret: &[u8]) -> Option<Self> {
        (secret.len() >= 16).then(|| Self {
            secret: secret.to_vec(),
            last_step: 0,
            wrong: Wrong::default(),
            wrong_stops: Wrong::default(),
        })
    }

    /// The step whose code was used last; 0 where none was.
    #[must_use]
    pub const fn last_step(&self) -> u64 {
        self.last_step
    }

    /// The codes up to that step were used, as an earlier process has noted.
    #[must_use]
    pub fn used_until(mut self, step: u64) -> Self {
        self.last_step = self.last_step.max(step);
        self
    }

    /// Whether `code` is valid now, one step early or late included. Uses it up. After three wrong
    /// codes none is valid until the next step.
    pub fn verify(&mut self, code: &str, now: Timestamp) -> bool {
        let step = now.as_secs() / STEP_SECS;
        if self.wrong.in_step(step) >= GUESSES {
            return false;
        }
        let right = self.take(code, step);
        if !right {
            self.wrong.add(step);
        }
        right
    }

    /// As [`Totp::verify`], for an order that stops an agent: nobody's wrong codes keep a person
    /// from that. Whoever guesses gains a stop at most, and the code is used up. Where
    /// [`Totp::is_pressed`], the caller waits before it asks.
    pub fn verify_stop(&mut self, code: &str, now: Timestamp) -> bool {
        let step = now.as_secs() / STEP_SECS;
        let right = self.take(code, step);
        if !right {
            self.wrong_stops.add(step);
        }
        right
    }

    /// Whether somebody seems to guess at stops.
    #[must_use]
    pub const fn is_pressed(&self, now: Timestamp) -> bool {
        self.wrong_stops.in_step(now.as_secs() / STEP_SECS) >= GUESSES
    }

    /// Whether the code is valid in this step, one early or late included. Uses it up.
    fn take(&mut self, code: &str, step: u64) -> bool {
        for candidate in [step, step.saturating_sub(1), step + 1] {
            if candidate > self.last_step && constant_time_eq(&self.code(candidate), code) {
                self.last_step = candidate;
                return true;
            }
        }
        false
    }

    /// The code of one step.
    fn code(&self, step: u64) -> String {
        // HMAC takes a key of any length.
        let Ok(mut mac) = Hmac::<Sha1>::new_from_slice(&self.secret) else { return String::new() };
        mac.update(&step.to_be_bytes());
        let hash = mac.finalize().into_bytes();
        let offset = usize::from(hash.last().copied().unwrap_or_default() & 0xf);
        let word = hash.get(offset..offset + 4).and_then(|bytes| bytes.try_into().ok());
        let number = u32::from_be_bytes(word.unwrap_or_default()) & 0x7fff_ffff;
        format!("{:06}", number % 1_000_000)
    }
}

fn constant_time_eq(a: &str, b: &str) -> bool {
    a.len() == b.len() && a.bytes().zip(b.bytes()).fold(0, |diff, (x, y)| diff | (x ^ y)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    /// RFC 6238 appendix B, the last six of its eight digits.
    #[test]
    fn rfc_6238_vectors() {
        let totp = Totp::new(b"12345678901234567890").unwrap();
        for (secs, code) in [
            (59, "287082"),
            (1_111_111_109, "081804"),
            (1_234_567_890, "005924"),
            (20_000_000_000, "353130"),
        ] {
            assert_eq!(totp.code(secs / STEP_SECS), code);
        }
    }

    #[test]
    fn a_code_works_once_and_not_for_long() {
        let mut totp = Totp::new(b"12345678901234567890").unwrap();
        let at = Timestamp::from_secs;
        assert!(!totp.verify("287082", at(59 + 60)));
        assert!(totp.verify("287082", at(59 + 30)));
        assert!(!totp.verify("287082", at(59)));
        assert!(!totp.verify("", at(59)));
        assert!(Totp::new(b"short").is_none());
    }

    #[test]
    fn guesses_lock_no_stop_and_stops_lock_nothing() {
        let mut totp = Totp::new(b"12345678901234567890").unwrap();
        let at = Timestamp::from_secs(59);
        for _ in 0..GUESSES {
            assert!(!totp.is_pressed(at));
            assert!(!totp.verify("000000", at) && !totp.verify_stop("000000", at));
        }
        assert!(totp.is_pressed(at) && !totp.is_pressed(Timestamp::from_secs(60)));
        assert!(!totp.verify("287082", at), "approvals are locked");
        assert!(totp.verify_stop("287082", at), "a stop is not");
        assert!(!totp.verify_stop("287082", at), "a code works once");
        let mut totp = Totp::new(b"12345678901234567890").unwrap();
        for _ in 0..GUESSES {
            assert!(!totp.verify_stop("000000", at));
        }
        assert!(totp.verify("287082", at));
    }

    #[test]
    fn guessing_ends_until_the_next_step() {
        let mut totp = Totp::new(b"12345678901234567890").unwrap();
        let at = Timestamp::from_secs(59);
        for _ in 0..GUESSES {
            assert!(!totp.verify("000000", at));
        }
        assert!(!totp.verify("287082", at), "the right one comes too late");
        assert!(
            totp.verify("287082", Timestamp::from_secs(60)),
            "a step later it still is in time"
        );
    }
}
