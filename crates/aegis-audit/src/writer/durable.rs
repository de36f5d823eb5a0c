//! From written to durable: a batch is written, the disk gets it, and only then does anybody hear of it.
//!
//! One `fdatasync` of the redo log makes everything durable that was written before it, in order, so it can run on a
//! thread of its own while the writer chains, hashes and writes what has come in meanwhile. What is announced here is
//! announced in the order of the log.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use tokio::sync::watch;

use crate::checkpoint::Head;
use crate::entry::Kind;
use crate::journal::{AppendError, Committed, Counters, Observed, Observer, Pending};
use crate::store::StoreError;

/// Batches that wait for the disk. More would only keep their callers waiting elsewhere.
const MAX_WAITING: usize = 2;

/// A batch that the store has taken.
pub(super) struct Written {
    pub(super) batch: Vec<Pending>,
    /// Where each of its entries went.
    pub(super) places: Vec<Committed>,
    /// The first one's place in its chain.
    pub(super) sequence: u64,
    /// The log with it.
    pub(super) head: Head,
    /// Entries whose loss it records.
    pub(super) lost: u64,
    pub(super) started: Instant,
}

/// Who hears what has become of entries.
pub(super) struct Announcer {
    pub(super) source: String,
    pub(super) head: Arc<watch::Sender<Head>>,
    pub(super) observers: Vec<Observer>,
    pub(super) counters: Arc<Counters>,
}

impl Announcer {
    fn durable(&mut self, written: Written) {
        self.head.send_replace(written.head);
        let entries = written.batch.iter().zip(&written.places);
        for ((pending, place), sequence) in entries.zip(written.sequence..) {
            let Committed { index, leaf } = *place;
            let (source, draft) = (self.source.as_str(), &pending.draft);
            let seen = Observed { index, leaf, source, sequence, draft };
            for observer in &mut self.observers {
                observer(&seen);
            }
        }
        self.counters.batch(written.places.len() as u64, written.started.elapsed());
        for (pending, place) in written.batch.into_iter().zip(written.places) {
            if let Some(reply) = pending.reply {
                let _ = reply.send(Ok(place));
            }
        }
    }
}

/// Tells the callers of a batch that it was not recorded, and counts what nobody waits for; `lost` are the entries
/// whose loss it would have recorded.
pub(super) fn refuse(counters: &Counters, batch: Vec<Pending>, lost: u64, error: &Arc<StoreError>) {
    tracing::error!(%error, entries = batch.len(), "audit entries were not recorded");
    counters.unrecorded_gap.fetch_add(lost, Ordering::Relaxed);
    counters.failed.fetch_add(batch.len() as u64, Ordering::Relaxed);
    for pending in batch {
        match pending.reply {
            Some(reply) => drop(reply.send(Err(AppendError::Store(Arc::clone(error))))),
            None if pending.draft.kind == Kind::Gap => {}
            None => counters.lost(1),
        }
    }
}

/// Makes durable what was written before.
pub(super) type Sync = Box<dyn FnMut() -> Result<(), StoreError> + Send>;

/// Takes batches that were written, and announces them once they are durable.
pub(super) enum Durable {
    /// The store's commit is durable already.
    Here(Announcer),
    /// A thread syncs.
    Synced(Syncer),
}

impl Durable {
    pub(super) fn synced(announcer: Announcer, sync: Sync) -> std::io::Result<Self> {
        Syncer::start(announcer, sync).map(Self::Synced)
    }

    /// Takes a batch, waiting for room.
    pub(super) fn take(&mut self, written: Written) {
        match self {
            Self::Here(announcer) => announcer.durable(written),
            Self::Synced(syncer) => syncer.take(written),
        }
    }

    /// Waits until all that was taken is announced.
    ///
    /// # Errors
    /// What went wrong since it was asked for the last time; since then nothing was made durable.
    pub(super) fn settle(&mut self) -> Result<(), Arc<StoreError>> {
        match self {
            Self::Here(_) => Ok(()),
            Self::Synced(syncer) => syncer.settle(),
        }
    }

    /// Whether something has gone wrong that [`Durable::settle`] has not told yet.
    pub(super) fn is_broken(&self) -> bool {
        match self {
            Self::Here(_) => false,
            Self::Synced(syncer) => syncer.shared.state.lock().failed.is_some(),
        }
    }
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Written>,
    /// What was taken out of `waiting` has not been announced yet.
    busy: bool,
    failed: Option<Arc<StoreError>>,
    ended: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

pub(super) struct Syncer {
    shared: Arc<Shared>,
    thread: Option<std::thread::JoinHandle<()>>,
}

impl Syncer {
    fn start(announcer: Announcer, sync: Sync) -> std::io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new()
            .name("audit-sync".into())
            .spawn(move || theirs.run(announcer, sync))?;
        Ok(Self { shared, thread: Some(thread) })
    }

    fn take(&self, written: Written) {
        let mut state = self.shared.state.lock();
        while state.waiting.len() >= MAX_WAITING {
            self.shared.changed.wait(&mut state);
        }
        state.waiting.push_back(written);
        self.shared.changed.notify_all();
    }

    fn settle(&self) -> Result<(), Arc<StoreError>> {
        let mut state = self.shared.state.lock();
        while state.busy || !state.waiting.is_empty() {
            self.shared.changed.wait(&mut state);
        }
        state.failed.take().map_or(Ok(()), Err)
    }
}

impl Drop for Syncer {
    fn drop(&mut self) {
        self.shared.state.lock().ended = true;
        self.shared.changed.notify_all();
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Shared {
    fn run(&self, mut announcer: Announcer, mut sync: Sync) {
        loop {
            let mut state = self.state.lock();
            while state.waiting.is_empty() {
                if state.ended {
                    return;
                }
                self.changed.wait(&mut state);
            }
            let batches = std::mem::take(&mut state.waiting);
            state.busy = true;
            let mut failed = state.failed.clone();
            self.changed.notify_all();
            drop(state);
            // What follows a failure may rest on what was lost with it: refused until the writer has looked.
            if failed.is_none() {
                failed = sync().err().map(Arc::new);
            }
            for written in batches {
                match &failed {
                    None => announcer.durable(written),
                    Some(error) => {
                        refuse(&announcer.counters, written.batch, written.lost, error);
                    }
                }
            }
            let mut state = self.state.lock();
            state.busy = false;
            state.failed = failed;
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicUsize;
    use std::sync::mpsc;

    use aegis_core::{Digest, Timestamp};
    use tokio::sync::oneshot;

    use super::*;
    use crate::entry::{Draft, Outcome};
    use crate::tree::empty_root;

    type Reply = oneshot::Receiver<Result<Committed, AppendError>>;

    fn written(index: u64) -> (Written, Reply) {
        let draft = Draft::new(
            Kind::Decision,
            Timestamp::from_micros(1_700_000_000_000_000),
            Outcome::Allow,
        );
        let (reply, answer) = oneshot::channel();
        let written = Written {
            batch: vec![Pending {
                rendered: draft.render("test").unwrap(),
                draft,
                reply: Some(reply),
            }],
            places: vec![Committed { index, leaf: Digest::of(&index.to_be_bytes()) }],
            sequence: index + 1,
            head: Head { size: index + 1, root: empty_root() },
            lost: 0,
            started: Instant::now(),
        };
        (written, answer)
    }

    /// Each sync waits until the test says how it ends.
    fn durable() -> (Durable, mpsc::SyncSender<bool>, watch::Receiver<Head>, Arc<AtomicUsize>) {
        let (end, ends) = mpsc::sync_channel::<bool>(0);
        let (head, seen) = watch::channel(Head { size: 0, root: empty_root() });
        let observed = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&observed);
        let announcer = Announcer {
            source: "test".into(),
            head: Arc::new(head),
            observers: vec![Box::new(move |_| {
                let _ = count.fetch_add(1, Ordering::Relaxed);
            })],
            counters: Arc::default(),
        };
        let sync = move || match ends.recv() {
            Ok(true) => Ok(()),
            _ => Err(StoreError::DiskFull { place: "test".into() }),
        };
        (Durable::synced(announcer, Box::new(sync)).unwrap(), end, seen, observed)
    }

    #[test]
    fn nobody_hears_of_an_entry_before_it_is_durable() {
        let (mut durable, end, head, observed) = durable();
        let (first, mut answer) = written(0);
        durable.take(first);
        assert!(answer.try_recv().is_err());
        assert_eq!((head.borrow().size, observed.load(Ordering::Relaxed)), (0, 0));
        end.send(true).unwrap();
        durable.settle().unwrap();
        assert_eq!(answer.try_recv().unwrap().unwrap().index, 0);
        assert_eq!((head.borrow().size, observed.load(Ordering::Relaxed)), (1, 1));
    }

    #[test]
    fn after_a_sync_that_failed_nothing_counts_until_the_writer_has_looked() {
        let (mut durable, end, head, _) = durable();
        let (first, mut refused) = written(0);
        durable.take(first);
        end.send(false).unwrap();
        // Taken while the first was under way or after it had failed: refused without a sync, which could succeed.
        let (second, mut refused_too) = written(1);
        durable.take(second);
        assert!(durable.settle().is_err());
        assert!(refused.try_recv().unwrap().is_err());
        assert!(refused_too.try_recv().unwrap().is_err());
        assert_eq!(head.borrow().size, 0);
        assert!(!durable.is_broken(), "what went wrong is told once");
        let (third, mut answer) = written(2);
        durable.take(third);
        end.send(true).unwrap();
        durable.settle().unwrap();
        assert!(answer.try_recv().unwrap().is_ok());
    }
}
