//! The verifier as a job: it succeeds with a whole log, and fails with one that was touched.

use std::process::{Command, Output};

use aegis_audit::Location;

use crate::{
    ca::{World, fill},
    process::Process,
};

fn verify(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aegis-ledger"));
    command.env_clear().arg("verify").args(arguments).output().unwrap()
}

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_was_touched_fails_the_job() {
    let world = World::new().await;
    let database = world.path("ledger.db");
    let place = Location::Sqlite(database.clone());
    let mut ledger = Process::start(&world, "state", &place, &world.address);
    ledger.writes().await;
    // Over HTTP, while the ledger writes.
    let address = ledger.told("the ledger is up", "listen").await;
    let kept = world.path("kept");
    let keep = format!("--kept={}", kept.display());
    let served = format!("--ledger={address}");
    let over_http: [&str; 2] = [&served, &keep];
    let first = verify(&over_http);
    assert!(first.status.success(), "{}", told(&first));
    assert!(told(&first).contains("the log is whole and unaltered"));
    let note = std::fs::read_to_string(&kept).unwrap();
    assert!(verify(&over_http).status.success(), "it still holds what was kept");
    ledger.signal(nix::sys::signal::Signal::SIGTERM);
    assert!(ledger.ended().await.success());
    assert!(!verify(&over_http).status.success(), "nobody answers");

    // On the database itself.
    let store = format!("--store={}", database.display());
    assert!(verify(&[&store, &keep]).status.success());
    let other = "--key=other+00000000+AAAA";
    assert!(!verify(&[&store, other]).status.success(), "a key that is none");
    // A log that does not hold what an earlier run has seen.
    let elsewhere = World::new().await;
    let journal = elsewhere.journal(3).await;
    fill(&journal, 1).await;
    journal.close().await.unwrap();
    let strange = format!("--store={}", elsewhere.path("journal.db").display());
    std::fs::write(&kept, &note).unwrap();
    let rolled_back = verify(&[&strange, &keep]);
    assert!(!rolled_back.status.success(), "another log");
    assert_eq!(std::fs::read_to_string(&kept).unwrap(), note, "a failure replaces nothing");
    // One bit of an entry.
    let mut bytes = std::fs::read(&database).unwrap();
    let needle = br#""kind":"journal_closed""#;
    let at = bytes.windows(needle.len()).rposition(|window| window == needle).unwrap();
    bytes[at + 9] ^= 1;
    std::fs::write(&database, bytes).unwrap();
    let altered = verify(&[&store]);
    assert!(!altered.status.success());
    assert!(told(&altered).contains("does not verify"), "{}", told(&altered));
}
