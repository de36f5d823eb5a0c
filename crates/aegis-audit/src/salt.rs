//! Salted digests of arguments: a commitment that reveals nothing until its salt is disclosed.
//!
//! Arguments are often short and guessable; a plain digest in the log would let a reader try
//! candidates. The salt is per entry, stored outside the log, and can be erased: what remains is a
//! digest of something nobody can find any more, and a log that still verifies.

use std::fmt;

use aegis_core::Digest;

/// 32 random bytes that keep a digest from being guessed. Its `Debug` form hides them.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Salt([u8; 32]);

impl Salt {
    /// A fresh salt.
    #[must_use]
    pub fn random() -> Self {
        Self(rand::random())
    }

    /// A salt that was stored or disclosed.
    #[must_use]
    pub const fn from_bytes(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// The bytes, to be stored or disclosed.
    #[must_use]
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// SHA-256(salt ‖ `canonical`), the value of an entry's `arguments_digest`.
    #[must_use]
    pub fn digest(&self, canonical: &[u8]) -> Digest {
        Digest::of_parts(&[&self.0, canonical])
    }
}

impl fmt::Debug for Salt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Salt(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn equal_arguments_do_not_look_equal() {
        let (a, b) = (Salt::random(), Salt::random());
        assert_ne!(a.digest(b"{}"), b.digest(b"{}"));
        assert_eq!(a.digest(b"{}"), Salt::from_bytes(*a.as_bytes()).digest(b"{}"));
        assert!(!format!("{a:?}").contains(&hex::encode(a.as_bytes())));
    }
}
