//! The same log in a real Postgres: appends, proofs, queries, fencing, recovery.

use aegis_audit::{
    AppendError, Draft, Durability, Journal, Kind, Options, Outcome, Reader, Recorded, StoreError,
    Tenure, Trusted, checkpoint, export, verify,
};
use aegis_core::Timestamp;

use crate::fixture::{Log, draft, fill};
use crate::server::{Cluster, cluster};

fn options(log: &Log) -> Options {
    let mut options = log.options();
    options.saved_checkpoint = Some(log.dir.path().join("checkpoint"));
    options
}

#[tokio::test]
async fn a_log_in_postgres() {
    let Some(cluster) = cluster() else { return };
    appends_proofs_and_queries(&cluster).await;
    an_overtaken_sequencer_stops(&cluster).await;
    let ledger = Log::new();
    crate::import::holds_other_journals(&cluster.database("others"), &ledger).await;
    rollbacks_are_noticed(&cluster).await;
    one_at_a_time_has_the_turn(&cluster).await;
    a_crash_of_the_server_is_survived(&cluster).await;
}

async fn one_at_a_time_has_the_turn(cluster: &Cluster) {
    let place = cluster.database("turn");
    let mut first = Tenure::take(&place).await.unwrap().unwrap();
    assert!(Tenure::take(&place).await.unwrap().is_none());
    // Another log of the same server is another matter.
    let other = cluster.database("another_turn");
    let elsewhere = Tenure::take(&other).await.unwrap().unwrap();
    elsewhere.give_back().await;
    // The server ends the session of the first, and the second is faster.
    cluster.query(
        "turn",
        "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'",
    );
    let second = loop {
        if let Some(second) = Tenure::take(&place).await.unwrap() {
            break second;
        }
    };
    tokio::time::timeout(std::time::Duration::from_secs(30), first.lost()).await.unwrap();
    second.give_back().await;
    assert!(Tenure::take(&place).await.unwrap().is_some());
}

async fn appends_proofs_and_queries(cluster: &Cluster) {
    let log = Log::new();
    let place = cluster.database("plain");
    let journal = Journal::open(&place, options(&log)).await.unwrap();
    fill(&journal, 40).await;
    journal.close().await.unwrap();
    let reader = Reader::open(&place).await.unwrap();
    crate::query::every_condition(&reader).await;
    crate::query::pages_cover_everything(&reader).await;
    let journal = Journal::open(&place, options(&log)).await.unwrap();
    fill(&journal, 600).await;
    let at = journal.append(draft(1)).await.unwrap().await.unwrap().index;
    let note = journal.checkpoint_now().await.unwrap();
    let proof = reader.prove(at, true).await.unwrap().unwrap();
    let stored = reader.entry(at).await.unwrap().unwrap();
    proof.verify(journal.verifier(), &stored.body).unwrap();
    assert!(proof.extra.is_some());
    assert_eq!(journal.erase_salts(vec![at]).await.unwrap(), 1);
    assert!(reader.prove(at, true).await.unwrap().unwrap().extra.is_none());
    journal.close().await.unwrap();
    let trusted = Trusted { verifier: Some(log.signer.verifier().clone()), checkpoint: Some(note) };
    let report = verify::verify(&reader, &trusted, |_, _| {}).await.unwrap();
    assert_eq!((report.head.size, report.warnings), (42 + 603, vec![]));
    let dir = log.dir.path().join("export");
    export::write_directory(&reader, &dir).await.unwrap();
    let report = verify::verify_directory(&dir, log.signer.verifier().clone(), None, |_, _| {})
        .await
        .unwrap();
    assert_eq!(report.head.size, 645);
}

async fn an_overtaken_sequencer_stops(cluster: &Cluster) {
    let log = Log::new();
    let place = cluster.database("fenced");
    let first = Journal::open(&place, log.options()).await.unwrap();
    fill(&first, 3).await;
    let second = Journal::open(&place, log.options()).await.unwrap();
    let fenced = |result: Result<_, AppendError>| match result {
        Err(AppendError::Store(error)) => {
            assert!(matches!(*error, StoreError::Fenced { .. }), "{error}");
        }
        other => panic!("{other:?}"),
    };
    fenced(first.append(draft(1)).await.unwrap().await.map(drop));
    fenced(first.append(draft(2)).await.unwrap().await.map(drop));
    fenced(first.checkpoint_now().await.map(drop));
    fill(&second, 3).await;
    second.checkpoint_now().await.unwrap();
    let report = verify::verify(second.reader(), &Trusted::default(), |_, _| {}).await.unwrap();
    assert_eq!(report.head.size, 4 + 4);
    assert!(first.close().await.is_err());
    second.close().await.unwrap();
}

async fn rollbacks_are_noticed(cluster: &Cluster) {
    let log = Log::new();
    let place = cluster.database("rolled");
    let journal = Journal::open(&place, options(&log)).await.unwrap();
    fill(&journal, 10).await;
    journal.close().await.unwrap();
    let empty = cluster.database("replaced");
    let error = Journal::open(&empty, options(&log)).await.unwrap_err();
    assert!(matches!(error, StoreError::Rollback { .. }), "{error}");
}

async fn a_crash_of_the_server_is_survived(cluster: &Cluster) {
    let log = Log::new();
    let place = cluster.database("crashed");
    let journal = Journal::open(&place, options(&log)).await.unwrap();
    fill(&journal, 20).await;
    cluster.crash();
    assert!(journal.append(draft(1)).await.unwrap().await.is_err());
    let lost = Draft::new(Kind::Outcome, Timestamp::from_secs(1), Outcome::Unknown);
    let buffered = journal.record(lost, Durability::Buffered).await.unwrap();
    assert!(matches!(buffered, Recorded::Buffered));
    assert!(journal.append(draft(1)).await.unwrap().await.is_err());
    cluster.up();
    let at = journal.append(draft(2)).await.unwrap().await.unwrap();
    assert_eq!(at.index, 22, "20 entries, the opening one, and a gap entry before it");
    let note = journal.checkpoint_now().await.unwrap();
    assert_eq!(checkpoint::open(journal.verifier(), &note).unwrap().head.size, 23);
    let report = verify::verify(journal.reader(), &Trusted::default(), |_, _| {}).await.unwrap();
    assert_eq!(report.gaps, vec![21]);
    journal.close().await.unwrap();
}
