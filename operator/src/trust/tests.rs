//! When a status shows what agents are trusted.

use aegis_core::trust::{OBSERVATION, Standing};
use ed25519_dalek::SigningKey;

use super::*;

fn agent() -> AgentId {
    "spiffe://acme.example/ns/shop/sa/bot/agent/buyer".parse().unwrap()
}

fn told(publisher: &Publisher, as_of: u64, (a, b): (u64, u64)) {
    let (a, b) = (a * OBSERVATION, b * OBSERVATION);
    publisher.tell_trust(1, as_of, vec![(agent(), Trust { a, b, ..Trust::default() })], false);
}

fn score(status: &IdentityStatus) -> (u16, u64) {
    status.trust.as_ref().map_or((0, 0), |trust| (trust.score, trust.as_of))
}

#[tokio::test]
async fn a_status_is_not_written_for_every_call() {
    let (pace, mut due) = Pace::new();
    let publisher = Publisher::new(SigningKey::from_bytes(&[7; 32]));
    let (mut status, start) = (IdentityStatus::default(), Instant::now());
    pace.show(&publisher, &agent(), &mut status, start);
    assert_eq!(status.trust, None, "the ledger has said nothing");

    told(&publisher, 10, (11, 9));
    pace.moved(&publisher, vec![agent()]);
    assert_eq!(due.try_recv().unwrap(), agent(), "what was never shown is shown at once");
    pace.show(&publisher, &agent(), &mut status, start);
    assert_eq!(score(&status), (550, 10));

    // A hundred calls later, within the same standing: nothing is written, and it waits.
    for calls in 0..100 {
        told(&publisher, 11 + calls, (12 + calls, 9 + calls));
        pace.moved(&publisher, vec![agent()]);
        pace.show(&publisher, &agent(), &mut status, start);
    }
    assert_eq!(score(&status), (550, 10));
    assert!(due.try_recv().is_err());
    assert_eq!(pace.waiting.lock().len(), 1);
    // When it is time, one write has all of them.
    let later = start + EVERY.0;
    pace.show(&publisher, &agent(), &mut status, later);
    assert_eq!(score(&status), (506, 110));

    // Another standing is shown at once, and so is a quarantine, with its reason.
    told(&publisher, 200, (4, 6));
    pace.moved(&publisher, vec![agent()]);
    assert_eq!(due.try_recv().unwrap(), agent());
    pace.show(&publisher, &agent(), &mut status, later);
    assert_eq!(status.trust.as_ref().unwrap().standing, Standing::Probationary);
    told(&publisher, 300, (1, 12));
    pace.moved(&publisher, vec![agent()]);
    assert_eq!(due.try_recv().unwrap(), agent());
    pace.show(&publisher, &agent(), &mut status, later);
    let shown = status.trust.clone().unwrap();
    assert!(shown.quarantined.unwrap().contains("below the critical score 300"));
    assert_eq!(shown.as_of, 300);
}
