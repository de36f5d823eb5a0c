//! Copying SQLite's write-ahead log into the database, off the append path.
//!
//! SQLite calls this a checkpoint; it is what makes the tail of commit times when it runs within
//! them. Here it runs on a thread and connection of its own, and only if that cannot keep up does
//! the writer finish the copy between two commits, so that the file does not grow without end.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use rusqlite::Connection;

use crate::sqlite::connect;

/// WAL bytes after which it is copied into the database: seldom enough that pages which every commit
/// writes again, the last ones of the indexes, are copied once for many commits.
const FLUSH_AFTER: u64 = 16 << 20;

/// What a commit writes beside its rows: the page in which each table and index ends.
const COMMIT_BYTES: u64 = 8 * 4_096;

/// WAL bytes after which the writer itself finishes the copy, so that the file can start again.
pub(crate) const FLUSH_BY_FORCE: u64 = 64 << 20;

/// Copies the write-ahead log into the database, on a thread and connection of its own.
#[derive(Debug)]
pub(crate) struct Flusher {
    pending: Arc<AtomicU64>,
    wake: Option<SyncSender<()>>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Flusher {
    pub(crate) fn new(path: PathBuf) -> Self {
        let pending = Arc::new(AtomicU64::new(0));
        let (wake, woken) = sync_channel(1);
        let shared = Arc::clone(&pending);
        let thread = std::thread::Builder::new()
            .name("audit-flush".into())
            .spawn(move || flush_loop(&path, &woken, &shared))
            .inspect_err(|error| tracing::warn!(%error, "the writer will flush the log itself"))
            .ok();
        Self { pending, wake: Some(wake), thread }
    }

    pub(crate) fn pending(&self) -> u64 {
        self.pending.load(Ordering::Relaxed)
    }

    /// Counts a commit of rows of that many bytes.
    pub(crate) fn written(&self, rows: u64) {
        let bytes = rows + COMMIT_BYTES;
        let pending = self.pending.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if pending > FLUSH_AFTER
            && let Some(wake) = &self.wake
        {
            // A full channel means that a flush is about to run anyway.
            let _ = wake.try_send(());
        }
    }

    /// Finishes the copy from the writer's own connection, between two commits.
    pub(crate) fn flush_on(&self, conn: &Connection) {
        let before = self.pending();
        if let Err(error) = passive(conn) {
            tracing::warn!(%error, "cannot copy the write-ahead log into the database");
        }
        // Also after a failure: otherwise each commit would try again.
        self.pending.fetch_sub(before, Ordering::Relaxed);
    }

    pub(crate) fn stop(&mut self) {
        self.wake = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

fn passive(conn: &Connection) -> rusqlite::Result<()> {
    conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |_| Ok(()))
}

fn flush_loop(path: &Path, woken: &Receiver<()>, pending: &AtomicU64) {
    let mut conn = None;
    while woken.recv().is_ok() {
        if conn.is_none() {
            conn = connect(path).ok();
        }
        let Some(open) = &conn else { continue };
        let before = pending.load(Ordering::Relaxed);
        match passive(open) {
            // What was written meanwhile stays to be copied; a share of what was copied is kept
            // on the account, so that under steady load the writer gets to restart the file.
            Ok(()) => {
                pending.fetch_sub(before - before / 4, Ordering::Relaxed);
            }
            Err(error) => {
                tracing::warn!(%error, "cannot copy the write-ahead log into the database");
                conn = None;
            }
        }
    }
}
