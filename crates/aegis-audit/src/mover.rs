//! Moves batches from the redo log into the database, off the append path.
//!
//! One transaction holds all that has come within [`WINDOW`]. What cannot be moved, because the disk is full, is tried
//! again until it can; it is durable meanwhile, and only when too much waits are appends refused.

use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use crate::redo::{Redo, Turn, Waiting};
use crate::sqlite::Tables;
use crate::store::{Batch, StoreError};

/// For how long batches are gathered after the last ones were moved. The first one after a quiet time is moved at once.
pub(crate) const WINDOW: Duration = Duration::from_millis(20);
/// After how long a failed attempt is made again.
const AGAIN: Duration = Duration::from_millis(100);

/// The thread that moves.
#[derive(Debug)]
pub(crate) struct Mover {
    redo: Arc<Redo>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Mover {
    pub(crate) fn start(redo: Arc<Redo>, tables: Arc<Mutex<Tables>>) -> std::io::Result<Self> {
        let theirs = Arc::clone(&redo);
        let thread = std::thread::Builder::new()
            .name("audit-move".into())
            .spawn(move || run(&theirs, &tables))?;
        Ok(Self { redo, thread: Some(thread) })
    }

    pub(crate) fn stop(&mut self) {
        self.redo.end();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Mover {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Tells when the thread ends, also by a panic.
struct Running<'r>(&'r Redo);

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.is_over();
    }
}

fn run(redo: &Redo, tables: &Mutex<Tables>) {
    let _running = Running(redo);
    let mut due = Instant::now();
    while let Turn::Move(waiting) = redo.turn(due) {
        while let Err(mut error) = transfer(&waiting, tables) {
            tracing::error!(%error, "audit entries stay in the redo log for now");
            // The connection itself may be what is wrong.
            if let Err(fenced @ StoreError::Fenced { .. }) = tables.lock().reconnect() {
                error = fenced;
            }
            if redo.failed(error, AGAIN) {
                return;
            }
        }
        if redo.moved(&waiting) {
            match tables.lock().sync() {
                Ok(()) => redo.synced(),
                Err(error) => tracing::error!(%error, "the redo log cannot be begun anew for now"),
            }
        }
        due = Instant::now() + WINDOW;
    }
}

fn transfer(waiting: &[Waiting], tables: &Mutex<Tables>) -> Result<(), StoreError> {
    let batches: Option<Vec<Batch<'_>>> = waiting.iter().map(Waiting::batch).collect();
    let mut tables = tables.lock();
    let unreadable = || StoreError::Corrupt {
        place: tables.place().to_string(),
        why: "a batch in memory is not what was written".to_owned(),
    };
    let batches = batches.ok_or_else(unreadable)?;
    tables.commit(&batches)
}
