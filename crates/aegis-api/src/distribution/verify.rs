//! Signing statements, and what a sidecar takes of them.

use std::time::Duration;

use aegis_core::Timestamp;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};

use super::{Confirmation, MAX_STATEMENT_BYTES, Statement, proto};

/// What is signed before the statement: a signature for something else is none for this.
const CONTEXT: &[u8] = b"aegis-distribution-v1\0";
/// How far clocks may differ.
const SKEW: Duration = Duration::from_secs(60);

/// Why a statement was not taken. What was in force stays.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// Too large.
    #[error("the statement is {0} bytes; at most {MAX_STATEMENT_BYTES} are taken")]
    TooLarge(usize),
    /// Not signed by the operator.
    #[error(
        "the statement is not signed by the operator; check that the sidecar has the operator's current key"
    )]
    Signature,
    /// Signed, but not a statement.
    #[error(
        "the signed statement cannot be read ({0}); operator and sidecar may be of versions that do not fit"
    )]
    Unreadable(String),
    /// Expired.
    #[error("the statement expired at {0}; check the clocks of the operator and this node")]
    Expired(Timestamp),
    /// From the future.
    #[error(
        "the statement is of {0}, which is still to come; check the clocks of the operator and this node"
    )]
    Early(Timestamp),
    /// Older than what is in force.
    #[error(
        "the statement has serial {offered}, and {held} is in force: an older state is never taken"
    )]
    Rollback {
        /// Its serial.
        offered: u64,
        /// The serial in force.
        held: u64,
    },
    /// A confirmation of something else.
    #[error("serial {offered} was confirmed, and {held} is in force")]
    Other {
        /// The serial that was confirmed.
        offered: u64,
        /// The serial in force.
        held: u64,
    },
    /// Older trust than is known.
    #[error(
        "trust under number {offered} was told, and {held} is known: older trust is never taken"
    )]
    OlderTrust {
        /// Its number.
        offered: u64,
        /// The number that is known.
        held: u64,
    },
    /// Something between what is known and what was told is missing.
    #[error(
        "what has changed since number {since} was told, and {held} is known; all is asked for again"
    )]
    MissedTrust {
        /// What it continues.
        since: u64,
        /// The number that is known.
        held: u64,
    },
}

/// Takes statements of an operator whose keys are known.
#[derive(Clone, Debug)]
pub struct Verifier {
    keys: Vec<VerifyingKey>,
    serial: u64,
    trust: u64,
    confirmed_at: Option<Timestamp>,
}

/// Signs a statement.
///
/// # Errors
/// When it has no JSON form.
pub fn sign(statement: &Statement, key: &SigningKey) -> Result<proto::Signed, serde_json::Error> {
    let statement = serde_json::to_vec(statement)?;
    let signature = key.sign(&[CONTEXT, &statement].concat()).to_bytes().to_vec();
    Ok(proto::Signed { statement, signature })
}

impl Verifier {
    /// A sidecar that has nothing in force. While a key is exchanged, both are known.
    #[must_use]
    pub const fn new(keys: Vec<VerifyingKey>) -> Self {
        Self { keys, serial: 0, trust: 0, confirmed_at: None }
    }

    /// The serial in force; 0 for none.
    #[must_use]
    pub const fn serial(&self) -> u64 {
        self.serial
    }

    /// The number of what was told of agents' trust last; 0 for nothing.
    #[must_use]
    pub const fn trust(&self) -> u64 {
        self.trust
    }

    /// When the operator last said that what is in force is the newest.
    #[must_use]
    pub const fn confirmed_at(&self) -> Option<Timestamp> {
        self.confirmed_at
    }

    /// Checks a statement. A state that passes has to be put in force and then [`taken`](Self::take).
    ///
    /// # Errors
    /// When it must not count.
    pub fn check(&self, signed: &proto::Signed, now: Timestamp) -> Result<Statement, Refused> {
        let size = signed.statement.len();
        if size > MAX_STATEMENT_BYTES {
            return Err(Refused::TooLarge(size));
        }
        let signature = Signature::from_slice(&signed.signature).map_err(|_| Refused::Signature)?;
        let message = [CONTEXT, &signed.statement].concat();
        if !self.keys.iter().any(|key| key.verify_strict(&message, &signature).is_ok()) {
            return Err(Refused::Signature);
        }
        let statement: Statement = serde_json::from_slice(&signed.statement)
            .map_err(|error| Refused::Unreadable(error.to_string()))?;
        let (issued_at, expires_at) = match &statement {
            Statement::State(state) => (state.issued_at, state.expires_at),
            Statement::Confirmation(said) => (said.issued_at, said.expires_at),
            Statement::Trust(said) => (said.issued_at, said.expires_at),
        };
        if expires_at <= now {
            return Err(Refused::Expired(expires_at));
        }
        if issued_at > now.plus(SKEW) {
            return Err(Refused::Early(issued_at));
        }
        match &statement {
            Statement::State(state) if state.serial <= self.serial => {
                Err(Refused::Rollback { offered: state.serial, held: self.serial })
            }
            Statement::Confirmation(Confirmation { serial, .. }) if *serial != self.serial => {
                Err(Refused::Other { offered: *serial, held: self.serial })
            }
            Statement::Trust(told) if told.number <= self.trust => {
                Err(Refused::OlderTrust { offered: told.number, held: self.trust })
            }
            Statement::Trust(told) if told.since > self.trust => {
                Err(Refused::MissedTrust { since: told.since, held: self.trust })
            }
            _ => Ok(statement),
        }
    }

    /// Remembers a statement that was checked and, if it is a state, put in force.
    pub fn take(&mut self, statement: &Statement) {
        let issued_at = match statement {
            Statement::State(state) => {
                self.serial = state.serial;
                state.issued_at
            }
            Statement::Confirmation(said) => said.issued_at,
            Statement::Trust(told) => {
                self.trust = told.number;
                // It says nothing of the state.
                return;
            }
        };
        self.confirmed_at = self.confirmed_at.max(Some(issued_at));
    }
}

#[cfg(test)]
mod tests {
    use aegis_core::thresholds::Thresholds;
    use serde_json::value::RawValue;

    use super::{
        super::{Distributed, ToldTrust},
        *,
    };

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);

    fn key(seed: u8) -> SigningKey {
        SigningKey::from_bytes(&[seed; 32])
    }

    fn state(serial: u64, issued_at: Timestamp, life: u64) -> Statement {
        Statement::State(Box::new(Distributed {
            serial,
            issued_at,
            expires_at: issued_at.plus(Duration::from_secs(life)),
            policies: RawValue::from_string("{}".into()).unwrap(),
            thresholds: Thresholds::default(),
            tightened: vec![],
            agents: vec![],
            upstreams: Vec::new(),
            revoked: vec![],
            quarantined: vec![],
        }))
    }

    fn confirmation(serial: u64) -> Statement {
        let expires_at = NOW.plus(Duration::from_secs(60));
        Statement::Confirmation(Confirmation { serial, issued_at: NOW, expires_at })
    }

    fn offer(verifier: &mut Verifier, statement: &Statement, signer: u8) -> Result<(), Refused> {
        let signed = sign(statement, &key(signer)).unwrap();
        let checked = verifier.check(&signed, NOW)?;
        verifier.take(&checked);
        Ok(())
    }

    #[test]
    fn an_older_state_is_never_taken() {
        let mut verifier = Verifier::new(vec![key(1).verifying_key()]);
        assert_eq!(offer(&mut verifier, &state(5, NOW, 60), 1), Ok(()));
        for serial in [0, 4, 5] {
            let refused = Refused::Rollback { offered: serial, held: 5 };
            assert_eq!(offer(&mut verifier, &state(serial, NOW, 60), 1), Err(refused));
        }
        assert_eq!(offer(&mut verifier, &state(6, NOW, 60), 1), Ok(()));
        assert_eq!(verifier.serial(), 6);
    }

    #[test]
    fn only_the_operator_speaks() {
        let mut verifier = Verifier::new(vec![key(1).verifying_key(), key(2).verifying_key()]);
        assert_eq!(offer(&mut verifier, &state(1, NOW, 60), 3), Err(Refused::Signature));
        assert_eq!(offer(&mut verifier, &state(1, NOW, 60), 2), Ok(()));
        let mut signed = sign(&state(2, NOW, 60), &key(1)).unwrap();
        *signed.statement.last_mut().unwrap() ^= 1;
        assert_eq!(verifier.check(&signed, NOW).unwrap_err(), Refused::Signature);
        // The same key over the same bytes, signed for another purpose.
        let statement = serde_json::to_vec(&state(2, NOW, 60)).unwrap();
        let signature = key(1).sign(&statement).to_bytes().to_vec();
        let other = proto::Signed { statement, signature };
        assert_eq!(verifier.check(&other, NOW).unwrap_err(), Refused::Signature);
    }

    #[test]
    fn time_bounds_hold() {
        let mut verifier = Verifier::new(vec![key(1).verifying_key()]);
        let old = state(1, NOW.minus(Duration::from_secs(60)), 60);
        assert_eq!(offer(&mut verifier, &old, 1), Err(Refused::Expired(NOW)));
        let early = NOW.plus(Duration::from_secs(61));
        assert_eq!(offer(&mut verifier, &state(1, early, 60), 1), Err(Refused::Early(early)));
        assert_eq!(verifier.serial(), 0);
    }

    #[test]
    fn a_confirmation_is_of_what_is_in_force() {
        let mut verifier = Verifier::new(vec![key(1).verifying_key()]);
        let earlier = NOW.minus(Duration::from_secs(10));
        offer(&mut verifier, &state(3, earlier, 600), 1).unwrap();
        assert_eq!(verifier.confirmed_at(), Some(earlier));
        assert!(matches!(offer(&mut verifier, &confirmation(2), 1), Err(Refused::Other { .. })));
        assert_eq!(verifier.confirmed_at(), Some(earlier));
        offer(&mut verifier, &confirmation(3), 1).unwrap();
        assert_eq!(verifier.confirmed_at(), Some(NOW));
    }

    #[test]
    fn older_trust_is_never_taken_and_none_is_missed() {
        let mut verifier = Verifier::new(vec![key(1).verifying_key()]);
        let told = |since: u64, number: u64| {
            let expires_at = NOW.plus(Duration::from_secs(60));
            let (issued_at, agents) = (NOW, vec![]);
            Statement::Trust(ToldTrust { number, since, as_of: 9, issued_at, expires_at, agents })
        };
        assert!(matches!(
            offer(&mut verifier, &told(1, 2), 1),
            Err(Refused::MissedTrust { since: 1, held: 0 })
        ));
        assert_eq!(offer(&mut verifier, &told(0, 5), 1), Ok(()));
        for number in [1, 4, 5] {
            let refused = Refused::OlderTrust { offered: number, held: 5 };
            assert_eq!(offer(&mut verifier, &told(0, number), 1), Err(refused));
        }
        assert_eq!(offer(&mut verifier, &told(5, 6), 1), Ok(()));
        assert_eq!(offer(&mut verifier, &told(6, 7), 2), Err(Refused::Signature));
        assert_eq!((verifier.trust(), verifier.serial(), verifier.confirmed_at()), (6, 0, None));
    }
}
