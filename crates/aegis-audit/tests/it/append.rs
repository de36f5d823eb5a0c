//! Appending: order, chains, durability, observers, gaps, and what stays after a restart.

use std::sync::{Arc, Mutex};

use aegis_audit::{
    AppendError, AuditLog, Draft, Durability, Filter, Journal, Kind, Outcome, Recorded, Stored,
    Trusted, checkpoint, tree, verify,
};
use aegis_core::{Digest, Timestamp};
use sqlx::Connection as _;

use crate::fixture::{Log, draft, fill};

#[tokio::test]
async fn appended_entries_are_chained_proven_and_verified() {
    let log = Log::new();
    let journal = log.open().await;
    fill(&journal, 700).await;
    let note = journal.checkpoint_now().await.unwrap();
    let head = checkpoint::open(journal.verifier(), &note).unwrap().head;
    assert_eq!(head.size, 701, "journal_opened comes first");
    let reader = journal.reader();
    for index in [0, 1, 255, 256, 257, 511, 512, 700] {
        let stored = reader.entry(index).await.unwrap().unwrap();
        let proof = reader.prove(index, false).await.unwrap().unwrap();
        let text = proof.to_text();
        let again = aegis_audit::TlogProof::parse(&text).unwrap();
        assert_eq!(again.verify(journal.verifier(), &stored.body).unwrap().head, head);
        assert_eq!(again.extra, None, "a salt is disclosed only when asked for");
    }
    for old in [1, 2, 255, 256, 300, 512, 700, 701] {
        let proof = reader.consistency(old, head.size).await.unwrap();
        let root = reader.root_at(old).await.unwrap();
        tree::verify_consistency(old, &root, head.size, &head.root, &proof).unwrap();
    }
    assert!(reader.prove(701, false).await.unwrap().is_none());
    journal.close().await.unwrap();
    let trusted = Trusted { verifier: Some(log.signer.verifier().clone()), checkpoint: Some(note) };
    let report = verify::verify(&log.reader().await, &trusted, |_, _| {}).await.unwrap();
    assert_eq!((report.head.size, report.signed), (702, 702));
    assert_eq!(report.sources["test"], 702);
    assert_eq!((report.gaps, report.warnings), (vec![], vec![]));
}

#[tokio::test]
async fn a_salt_is_disclosed_with_a_proof_and_can_be_erased() {
    let log = Log::new();
    let journal = log.open().await;
    let at = journal.append(draft(1)).await.unwrap().await.unwrap().index;
    journal.checkpoint_now().await.unwrap();
    let reader = journal.reader();
    let proof = reader.prove(at, true).await.unwrap().unwrap();
    let salt: [u8; 32] = proof.extra.unwrap().try_into().unwrap();
    let entry = reader.entry(at).await.unwrap().unwrap().entry().unwrap();
    let disclosed = aegis_audit::Salt::from_bytes(salt).digest(b"{\"path\":\"/tmp/x\"}");
    assert_eq!(entry.arguments_digest, Some(disclosed));
    assert_eq!(journal.erase_salts(vec![at, 99]).await.unwrap(), 1);
    assert_eq!(reader.prove(at, true).await.unwrap().unwrap().extra, None);
    for file in [&log.path, &crate::fixture::beside(&log.path, "-wal")] {
        let bytes = std::fs::read(file).unwrap_or_default();
        assert!(!bytes.windows(32).any(|window| window == salt), "{}", file.display());
    }
    journal.close().await.unwrap();
    verify::verify(&log.reader().await, &Trusted::default(), |_, _| {}).await.unwrap();
}

#[tokio::test]
async fn each_durability_says_how_far_the_record_is() {
    let log = Log::new();
    let journal = log.open().await;
    let Recorded::Durable(strict) = journal.record(draft(1), Durability::Strict).await.unwrap()
    else {
        panic!("strict waits");
    };
    assert!(journal.reader().entry(strict.index).await.unwrap().is_some());
    let Recorded::Pending(ticket) = journal.record(draft(2), Durability::Overlap).await.unwrap()
    else {
        panic!("overlap gives a ticket");
    };
    assert_eq!(ticket.await.unwrap().index, strict.index + 1);
    assert!(matches!(
        journal.record(draft(3), Durability::Buffered).await.unwrap(),
        Recorded::Buffered
    ));
    journal.close().await.unwrap();
    assert!(log.reader().await.entry(strict.index + 2).await.unwrap().is_some());
    assert!(matches!(journal.append(draft(4)).await, Err(AppendError::Closed)));
}

#[test]
fn a_thread_can_wait_for_its_entry() {
    let log = Log::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let journal = runtime.block_on(log.open());
    let first = journal.append_blocking(draft(1)).unwrap().wait().unwrap();
    let second = journal.try_append(draft(2)).unwrap().wait().unwrap();
    assert_eq!((first.index, second.index), (1, 2));
    runtime.block_on(journal.close()).unwrap();
}

/// The observer holds what comes after the disk, so everything fills up and what does not fit is lost, counted, and
/// told about.
#[tokio::test(flavor = "multi_thread")]
async fn buffered_losses_are_recorded_as_a_gap() {
    let log = Log::new();
    let (release, held) = std::sync::mpsc::channel::<()>();
    let (at, reached) = std::sync::mpsc::channel::<()>();
    let mut options = log.options();
    options.queue = 4;
    options.observers.push(Box::new(move |seen| {
        if seen.draft.kind == Kind::Outcome {
            at.send(()).unwrap();
            held.recv().unwrap();
        }
    }));
    let journal = Journal::open(&log.place(), options).await.unwrap();
    let blocker = Draft::new(Kind::Outcome, Timestamp::from_secs(1), Outcome::Success);
    let ticket = journal.append(blocker).await.unwrap();
    tokio::task::spawn_blocking(move || reached.recv().unwrap()).await.unwrap();
    let mut sent = 0;
    while journal.statistics().dropped < 6 {
        journal.record(draft(sent), Durability::Buffered).await.unwrap();
        sent += 1;
        assert!(sent < 100_000, "nothing ever filled up");
    }
    release.send(()).unwrap();
    ticket.await.unwrap();
    journal.close().await.unwrap();
    let filter = Filter { kind: Some(Kind::Gap), ..Filter::default() };
    let reader = log.reader().await;
    let page = reader.query(&filter).await.unwrap();
    let told = |stored: &Stored| stored.entry().unwrap().detail["lost"].as_u64().unwrap();
    assert_eq!(page.entries.iter().map(told).sum::<u64>(), 6);
    let report = verify::verify(&reader, &Trusted::default(), |_, _| {}).await.unwrap();
    let mut gaps: Vec<u64> = page.entries.iter().map(|stored| stored.index).collect();
    gaps.sort_unstable();
    assert_eq!(report.gaps, gaps);
    assert_eq!(report.head.size, 1 + 1 + (sent - 6) + gaps.len() as u64 + 1);
}

#[tokio::test]
async fn observers_see_every_entry_once_and_in_order() {
    let log = Log::new();
    let seen = Arc::new(Mutex::new(Vec::new()));
    let mut options = log.options();
    let into = Arc::clone(&seen);
    options.observers.push(Box::new(move |observed| {
        into.lock().unwrap().push((observed.index, observed.sequence, observed.leaf));
    }));
    let journal = Journal::open(&log.place(), options).await.unwrap();
    fill(&journal, 300).await;
    journal.close().await.unwrap();
    let seen = seen.lock().unwrap().clone();
    assert_eq!(seen.len(), 302);
    let reader = log.reader().await;
    for (stored, (index, sequence, leaf)) in reader.entries(0..400).await.unwrap().iter().zip(&seen)
    {
        assert_eq!((stored.index, stored.sequence, stored.leaf), (*index, *sequence, *leaf));
    }
}

#[tokio::test]
async fn a_restart_goes_on_where_the_log_ended() {
    let log = Log::with_entries(300).await;
    let journal = log.open().await;
    let opened = journal.reader().entry(302).await.unwrap().unwrap().entry().unwrap();
    assert_eq!((opened.kind, opened.sequence), (Kind::JournalOpened, 303));
    assert!(opened.detail.get("gap").is_none(), "it had been closed in order");
    fill(&journal, 250).await;
    // The task that held the journal is gone without a word: a crash, as far as the log can tell.
    drop(journal);
    let journal = loop {
        match Journal::open(&log.place(), log.options()).await {
            Ok(journal) => break journal,
            Err(aegis_audit::StoreError::Locked { .. }) => tokio::task::yield_now().await,
            Err(error) => panic!("{error}"),
        }
    };
    let opened = journal.reader().entry(553).await.unwrap().unwrap().entry().unwrap();
    assert_eq!(opened.detail["gap"], "the journal had not been closed");
    journal.close().await.unwrap();
    let report = verify::verify(&log.reader().await, &Trusted::default(), |_, _| {}).await.unwrap();
    assert_eq!((report.head.size, report.gaps), (555, vec![553]));
    assert!(report.warnings[0].contains("key"), "{:?}", report.warnings);
}

#[tokio::test]
async fn two_sources_have_a_chain_each() {
    let log = Log::with_entries(3).await;
    let mut options = log.options();
    options.source = "spiffe://acme.example/ns/a/sa/b/agent/c".into();
    let journal = Journal::open(&log.place(), options).await.unwrap();
    let first = journal.reader().entry(5).await.unwrap().unwrap().entry().unwrap();
    assert_eq!((first.sequence, first.parent_hash), (1, Digest::from_bytes([0; 32])));
    journal.close().await.unwrap();
    let report = verify::verify(&log.reader().await, &Trusted::default(), |_, _| {}).await.unwrap();
    assert_eq!(report.sources.into_values().collect::<Vec<_>>(), [2, 5]);
}

#[tokio::test]
async fn followers_miss_nothing() {
    let log = Log::new();
    let journal = log.open().await;
    let mut heads = journal.subscribe();
    let reader = journal.reader().clone();
    let follower = tokio::spawn(async move {
        let mut next = 0;
        while next < 501 {
            let size = heads.wait_for(|head| head.size > next).await.unwrap().size;
            for stored in reader.entries(next..size).await.unwrap() {
                assert_eq!(stored.index, next);
                next += 1;
            }
        }
    });
    fill(&journal, 500).await;
    follower.await.unwrap();
    journal.close().await.unwrap();
}

#[tokio::test]
async fn checkpoints_are_signed_while_the_log_grows() {
    let log = Log::new();
    let mut options = log.options();
    options.checkpoint_interval = std::time::Duration::from_millis(5);
    let journal = Journal::open(&log.place(), options).await.unwrap();
    fill(&journal, 10).await;
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(10);
    loop {
        let signed = checkpoint::open(journal.verifier(), &journal.checkpoint()).unwrap();
        if signed.head.size == 11 {
            break;
        }
        assert!(tokio::time::Instant::now() < deadline, "no checkpoint of 11 entries");
        tokio::time::sleep(std::time::Duration::from_millis(2)).await;
    }
    assert_eq!(std::fs::read_to_string(log.saved_checkpoint()).unwrap(), *journal.checkpoint());
    journal.close().await.unwrap();
}

#[tokio::test]
async fn the_facade_appends_verifies_and_queries() {
    let log = Log::new();
    let audit = AuditLog::open(&log.place(), log.options()).await.unwrap();
    let at = audit.append(draft(5)).await.unwrap();
    assert_eq!(audit.verify_integrity().await.unwrap().head.size, 2);
    let filter = Filter { result: Some(Outcome::Deny), ..Filter::default() };
    assert_eq!(audit.query(&filter).await.unwrap().entries[0].index, at.index);
    audit.journal().close().await.unwrap();
}

#[tokio::test]
async fn what_a_ledger_has_takes_no_room() {
    let log = Log::new();
    let journal = log.open().await;
    for _ in 0..8 {
        crate::fixture::fill(&journal, 600).await;
        let last = journal.append(draft(1)).await.unwrap().await.unwrap().index;
        journal.forget(last + 1).await.unwrap();
        // Whoever asks for a checkpoint waits for what was sent before.
        journal.checkpoint_now().await.unwrap();
        assert!(journal.reader().entry(0).await.unwrap().is_none());
        assert!(journal.reader().entry(last - 257).await.unwrap().is_none());
        assert!(journal.reader().entry(last).await.unwrap().is_some(), "the chain's end stays");
    }
    journal.close().await.unwrap();
    // Neither do the lists by which they were found.
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&log.path);
    let mut conn = sqlx::sqlite::SqliteConnection::connect_with(&options).await.unwrap();
    let sql =
        "SELECT (SELECT count(*) FROM audit_times), (SELECT count(DISTINCT idx) FROM audit_lookup)";
    let left: (i64, i64) = sqlx::query_as(sql).fetch_one(&mut conn).await.unwrap();
    assert!(left.0 <= 2 && left.1 <= 512, "{left:?}");
    conn.close().await.unwrap();
    let whole = Log::with_entries(8 * 600).await;
    let size = |log: &Log| std::fs::metadata(&log.path).unwrap().len();
    assert!(size(&log) * 3 < size(&whole), "{} of {}", size(&log), size(&whole));
    // The chain goes on where it ended.
    let journal = log.open().await;
    let next = journal.append(draft(1)).await.unwrap().await.unwrap();
    let chained = journal.reader().entry(next.index).await.unwrap().unwrap();
    assert_eq!(chained.sequence, next.index + 1);
    journal.close().await.unwrap();
}
