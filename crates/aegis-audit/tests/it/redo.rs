//! The redo log: entries that are durable and that the database does not have yet.

use std::path::{Path, PathBuf};

use aegis_audit::{Journal, Location, Reader, Trusted, verify};
use sqlx::{ConnectOptions as _, Connection as _, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::fixture::{Log, beside, draft, fill};

const REDO: [&str; 2] = [".redo0", ".redo1"];

/// Keeps SQLite's writer away, as a full disk or a slow one would.
async fn hold(path: &Path) -> SqliteConnection {
    let options = SqliteConnectOptions::new().filename(path).disable_statement_logging();
    let mut conn = options.connect().await.unwrap();
    sqlx::query("BEGIN IMMEDIATE").execute(&mut conn).await.unwrap();
    conn
}

/// What a crash at this moment would leave, or what somebody copies.
fn copy(log: &Log, name: &str, endings: &[&str]) -> PathBuf {
    let folder = log.dir.path().join(name);
    std::fs::create_dir(&folder).unwrap();
    let to = folder.join("audit.db");
    for ending in endings {
        std::fs::copy(beside(&log.path, ending), beside(&to, ending)).unwrap();
    }
    to
}

async fn size(path: &Path) -> u64 {
    let reader = Reader::open_copy(path).await.unwrap();
    let report = verify::verify(&reader, &Trusted::default(), |_, _| {}).await.unwrap();
    reader.close().await;
    report.head.size
}

#[tokio::test]
async fn what_only_the_redo_log_has_is_not_lost() {
    let log = Log::new();
    let journal = log.open().await;
    fill(&journal, 5).await;
    journal.checkpoint_now().await.unwrap();
    let held = hold(&log.path).await;
    let mut last = None;
    for i in 5..8 {
        last = Some(journal.append(draft(i)).await.unwrap().await.unwrap());
    }
    let last = last.unwrap();
    assert_eq!(last.index, 8);

    let without = copy(&log, "without", &["", "-wal"]);
    assert_eq!(size(&without).await, 6, "the database does not have them");
    let read = copy(&log, "read", &["", "-wal", REDO[0], REDO[1]]);
    assert_eq!(size(&read).await, 9, "a reader moves them");
    assert_eq!(size(&read).await, 9, "and not twice");
    let cut = copy(&log, "cut", &["", REDO[0], REDO[1]]);
    // The disk never got the write-ahead log, and no checkpoint with it.
    assert_eq!(Reader::open_copy(&cut).await.unwrap().head().await.unwrap().size, 9);
    let written = copy(&log, "written", &["", "-wal", REDO[0], REDO[1], ".checkpoint"]);
    let again = Journal::open(&Location::Sqlite(written.clone()), log.options()).await.unwrap();
    assert_eq!(again.reader().entry(8).await.unwrap().unwrap().leaf, last.leaf);
    fill(&again, 3).await;
    again.close().await.unwrap();
    assert_eq!(size(&written).await, 14, "opened, three more, closed");

    held.close().await.unwrap();
    let stored = journal.reader().entry(8).await.unwrap().unwrap();
    assert_eq!(stored.leaf, last.leaf, "what was kept away goes on");
    journal.close().await.unwrap();
    assert!(REDO.iter().all(|ending| !beside(&log.path, ending).exists()), "nothing is left");
}

#[tokio::test]
async fn a_redo_log_that_does_not_continue_the_database_is_refused() {
    let log = Log::new();
    let journal = log.open().await;
    fill(&journal, 2).await;
    journal.checkpoint_now().await.unwrap();
    let old = copy(&log, "old", &["", "-wal"]);
    fill(&journal, 400).await;
    journal.reader().head().await.unwrap();
    // Its files begin with what the database had long ago.
    let held = hold(&log.path).await;
    journal.append(draft(1)).await.unwrap().await.unwrap();
    let crashed = copy(&log, "crashed", &REDO);
    held.close().await.unwrap();
    journal.close().await.unwrap();

    // Only the last batch, as after many rounds through both files.
    let bytes = std::fs::read(beside(&crashed, REDO[0])).unwrap();
    let (header, frames) = bytes.split_at(40);
    let mut rest = frames;
    let mut last = rest;
    while let Some((length, _)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*length) as usize;
        if length == 0 {
            break;
        }
        last = &rest[..12 + length];
        rest = &rest[12 + length..];
    }
    let only = [header, last].concat();
    std::fs::write(beside(&old, REDO[0]), &only).unwrap();
    let place = Location::Sqlite(old.clone());
    for error in [
        Journal::open(&place, log.options()).await.unwrap_err(),
        Reader::open_copy(&old).await.unwrap_err(),
    ] {
        assert!(error.to_string().contains("redo log goes on with entry 403"), "{error}");
    }

    // Of another log: the same bytes under another key.
    let mut foreign = bytes;
    foreign[10] ^= 1;
    std::fs::write(beside(&old, REDO[0]), &foreign).unwrap();
    let error = Journal::open(&place, log.options()).await.unwrap_err();
    assert!(error.to_string().contains("is another log's"), "{error}");
    // Nothing of a log that has what it needs.
    std::fs::write(beside(&old, REDO[0]), b"rubbish").unwrap();
    Journal::open(&place, log.options()).await.unwrap().close().await.unwrap();
}

#[tokio::test]
async fn the_files_are_written_by_turns_and_do_not_grow() {
    let log = Log::new();
    let journal = log.open().await;
    for _ in 0..8 {
        fill(&journal, 2_000).await;
    }
    for ending in REDO {
        let length = std::fs::metadata(beside(&log.path, ending)).unwrap().len();
        assert!((1 << 20..8 << 20).contains(&length), "{ending}: {length}");
    }
    let crashed = copy(&log, "crashed", &["", "-wal", REDO[0], REDO[1]]);
    assert_eq!(size(&crashed).await, 16_001);
    journal.close().await.unwrap();
}

/// Another process of the same user, without a handle on the writer.
#[tokio::test]
async fn what_is_acknowledged_is_read_at_once() {
    let log = Log::new();
    let journal = log.open().await;
    for i in 0..20 {
        let committed = journal.append(draft(i)).await.unwrap().await.unwrap();
        assert_eq!(journal.reader().head().await.unwrap().size, committed.index + 1);
        let other = Reader::open(&log.place()).await.unwrap();
        assert!(other.entry(committed.index).await.unwrap().is_some(), "{i}");
        other.close().await;
    }
    journal.close().await.unwrap();
}

#[tokio::test]
async fn an_erased_salt_is_not_in_the_redo_log() {
    let log = Log::new();
    let journal = log.open().await;
    let draft = draft(1);
    let salt = draft.salt.unwrap();
    let index = journal.append(draft).await.unwrap().await.unwrap().index;
    let holds = || {
        REDO.iter().any(|ending| {
            let bytes = std::fs::read(beside(&log.path, ending)).unwrap();
            bytes.windows(32).any(|window| window == salt.as_bytes())
        })
    };
    assert!(holds());
    assert_eq!(journal.erase_salts(vec![index]).await.unwrap(), 1);
    assert!(!holds());
    journal.append(crate::fixture::draft(2)).await.unwrap().await.unwrap();
    journal.close().await.unwrap();
}
