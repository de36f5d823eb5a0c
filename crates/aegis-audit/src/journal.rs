//! The appender: many callers, one writer thread, one `fsync` for whatever has queued up.
//!
//! Nobody who waits is delayed by a timer. The writer takes what is there, commits it, and wakes the
//! callers; under load batches grow by themselves, and an idle journal answers after a single sync. Only
//! entries that nobody waits for are gathered for a moment: they go with the next that somebody does
//! wait for, in its sync.
//! A caller chooses how far its record must be before it goes on ([`Durability`]). The queue is
//! bounded: callers wait for room, except buffered ones, whose loss is counted and recorded as a
//! `gap` entry.
//!
//! While the store cannot be written, appends fail; nothing is half written, and the next append
//! after the cause is gone succeeds.

use std::fmt;
use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use aegis_core::Digest;
use parking_lot::Mutex;
use tokio::sync::{mpsc, oneshot, watch};

use crate::checkpoint::Head;
use crate::entry::{Draft, EntryError, Rendered};
use crate::import::Import;
use crate::note::{Signer, Verifier};
use crate::read::Reader;
use crate::store::{Location, StoreError};
use crate::writer;

/// Where an entry ended up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// Its place in the tree.
    pub index: u64,
    /// Its leaf hash.
    pub leaf: Digest,
}

/// How far a record must be before its caller goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Durability {
    /// It is on disk.
    Strict,
    /// It is queued; the caller awaits the ticket before it answers.
    Overlap,
    /// It is queued, or lost and counted.
    Buffered,
}

/// How far a record is.
#[derive(Debug)]
pub enum Recorded {
    /// On disk.
    Durable(Committed),
    /// Queued.
    Pending(Ticket),
    /// Queued or counted as lost; nobody waits.
    Buffered,
}

/// Why an entry was not recorded.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// The entry itself cannot be recorded.
    #[error(transparent)]
    Entry(#[from] EntryError),
    /// The queue has no room now.
    #[error("the audit journal's queue is full; the disk does not keep up")]
    Full,
    /// The journal has been closed.
    #[error("the audit journal is closed")]
    Closed,
    /// It is on disk here, and the ledger of the cluster has not said that it has it.
    #[error(
        "the ledger has not acknowledged the audit entry within {0:?}; check that it is reached"
    )]
    Unacknowledged(Duration),
    /// The store did not take it. Nothing of it was written.
    #[error("the audit entry was not recorded: {0}")]
    Store(Arc<StoreError>),
}

/// An entry as observers see it, right after its commit and before its caller does.
#[derive(Debug)]
#[non_exhaustive]
pub struct Observed<'a> {
    /// Its place in the tree.
    pub index: u64,
    /// Its leaf hash.
    pub leaf: Digest,
    /// Whose journal it is of.
    pub source: &'a str,
    /// Its place in its source's chain.
    pub sequence: u64,
    /// What was recorded.
    pub draft: &'a Draft,
}

/// Sees every durable entry, in order, on a thread of the journal: keep it short.
pub type Observer = Box<dyn FnMut(&Observed<'_>) + Send>;

/// A ledger elsewhere that has to have an entry before it counts as recorded: this journal's disk
/// may go with its pod.
#[derive(Clone, Debug)]
pub struct Acknowledged {
    /// How many of the journal's entries the ledger has.
    pub size: watch::Receiver<u64>,
    /// How long it may take to say so.
    pub patience: Duration,
}

impl Acknowledged {
    async fn covers(&self, index: u64) -> Result<(), AppendError> {
        let mut size = self.size.clone();
        let arrived = tokio::time::timeout(self.patience, size.wait_for(|size| *size > index));
        // When nobody ships any more, nobody will say so either.
        match arrived.await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(AppendError::Unacknowledged(self.patience)),
        }
    }
}

/// How a journal is opened.
pub struct Options {
    /// Whose journal this is: a SPIFFE ID or a name.
    pub source: String,
    /// Signs checkpoints; its name is the log's origin.
    pub signer: Signer,
    /// How many entries may wait for the writer.
    pub queue: usize,
    /// How often a checkpoint is signed while the log grows.
    pub checkpoint_interval: Duration,
    /// Where the latest checkpoint is remembered. For SQLite by default `<database>.checkpoint`.
    pub saved_checkpoint: Option<PathBuf>,
    /// Checkpoints that others remember, compared at the start.
    pub witnesses: Vec<PathBuf>,
    /// See every committed entry.
    pub observers: Vec<Observer>,
    /// Who has to have what [`Durability::Strict`] records, besides this journal's disk.
    pub acknowledged: Option<Acknowledged>,
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("source", &self.source)
            .field("signer", &self.signer)
            .field("queue", &self.queue)
            .field("checkpoint_interval", &self.checkpoint_interval)
            .field("saved_checkpoint", &self.saved_checkpoint)
            .field("witnesses", &self.witnesses)
            .field("acknowledged", &self.acknowledged)
            .finish_non_exhaustive()
    }
}

impl Options {
    /// The defaults: a queue of 4,096 entries and a checkpoint every second.
    #[must_use]
    pub fn new(source: impl Into<String>, signer: Signer) -> Self {
        Self {
            source: source.into(),
            signer,
            queue: 4_096,
            checkpoint_interval: Duration::from_secs(1),
            saved_checkpoint: None,
            witnesses: Vec::new(),
            observers: Vec::new(),
            acknowledged: None,
        }
    }
}

/// What the writer is asked to do.
pub(crate) enum Command {
    Append(Box<Pending>),
    Import(Import),
    Checkpoint(oneshot::Sender<Result<String, AppendError>>),
    EraseSalts(Vec<u64>, oneshot::Sender<Result<u64, AppendError>>),
    Forget(u64),
    Close(oneshot::Sender<Result<(), AppendError>>),
}

impl Command {
    /// Whether somebody waits until this is done.
    pub(crate) fn is_awaited(&self) -> bool {
        match self {
            Self::Append(pending) => pending.reply.is_some(),
            Self::Forget(_) => false,
            Self::Import(_) | Self::Checkpoint(_) | Self::EraseSalts(..) | Self::Close(_) => true,
        }
    }
}

/// An entry on its way. Without a reply nobody waits for it, and its loss is counted.
pub(crate) struct Pending {
    pub(crate) draft: Draft,
    pub(crate) rendered: Rendered,
    pub(crate) reply: Option<Reply>,
}

/// Where the writer tells what has become of an entry.
type Reply = oneshot::Sender<Result<Committed, AppendError>>;

/// Hears how long each commit took, on the writer's thread.
type Timed = Box<dyn Fn(Duration) + Send + Sync>;

/// What is counted about a journal.
#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) committed: AtomicU64,
    pub(crate) batches: AtomicU64,
    pub(crate) failed: AtomicU64,
    pub(crate) dropped: AtomicU64,
    /// Buffered entries lost since the last `gap` entry.
    pub(crate) unrecorded_gap: AtomicU64,
    pub(crate) commit_nanos: AtomicU64,
    pub(crate) timed: OnceLock<Timed>,
}

impl fmt::Debug for Counters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Counters").finish_non_exhaustive()
    }
}

impl Counters {
    /// A batch of so many entries was committed.
    pub(crate) fn batch(&self, entries: u64, took: Duration) {
        let nanos = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        self.commit_nanos.fetch_add(nanos, Ordering::Relaxed);
        self.batches.fetch_add(1, Ordering::Relaxed);
        self.committed.fetch_add(entries, Ordering::Relaxed);
        if let Some(timed) = self.timed.get() {
            timed(took);
        }
    }

    pub(crate) fn lost(&self, entries: u64) {
        self.dropped.fetch_add(entries, Ordering::Relaxed);
        self.unrecorded_gap.fetch_add(entries, Ordering::Relaxed);
    }
}

/// A reading of a journal's counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Statistics {
    /// Entries committed since the start.
    pub committed: u64,
    /// Transactions they took.
    pub batches: u64,
    /// Entries that failed.
    pub failed: u64,
    /// Buffered entries that were lost.
    pub dropped: u64,
    /// Entries waiting for the writer.
    pub queued: u64,
    /// Time spent in committing.
    pub committing: Duration,
}

/// A journal; clones share one writer.
#[derive(Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

struct Inner {
    source: Arc<str>,
    signer: Signer,
    commands: mpsc::Sender<Command>,
    head: watch::Receiver<Head>,
    checkpoint: watch::Receiver<Arc<str>>,
    counters: Arc<Counters>,
    reader: Reader,
    acknowledged: Option<Acknowledged>,
    thread: Mutex<Option<std::thread::JoinHandle<()>>>,
}

impl fmt::Debug for Journal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journal")
            .field("source", &self.inner.source)
            .field("place", &self.inner.reader.place)
            .finish_non_exhaustive()
    }
}

/// What will become of an appended entry. Await it, or [`Ticket::wait`] on a thread.
#[derive(Debug)]
pub struct Ticket {
    reply: oneshot::Receiver<Result<Committed, AppendError>>,
}

impl Future for Ticket {
    type Output = Result<Committed, AppendError>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        // A writer that ended without an answer has not committed.
        Pin::new(&mut self.reply).poll(cx).map(|reply| reply.unwrap_or(Err(AppendError::Closed)))
    }
}

impl Ticket {
    /// Blocks this thread until the entry is durable. Not for use within an async runtime.
    ///
    /// # Errors
    /// When the entry was not recorded.
    pub fn wait(self) -> Result<Committed, AppendError> {
        self.reply.blocking_recv().unwrap_or(Err(AppendError::Closed))
    }
}

impl Journal {
    /// Opens a log for appending, creates it if need be, checks it against the remembered
    /// checkpoints, and records `journal_opened`.
    ///
    /// # Errors
    /// When another writer holds the log, it is damaged, foreign or rolled back, or cannot be
    /// written.
    pub async fn open(place: &Location, options: Options) -> Result<Self, StoreError> {
        let (commands, queue) = mpsc::channel(options.queue.max(1));
        let counters = Arc::new(Counters::default());
        let source: Arc<str> = options.source.as_str().into();
        let signer = options.signer.clone();
        let acknowledged = options.acknowledged.clone();
        let started = writer::start(place.clone(), options, queue, Arc::clone(&counters)).await?;
        Ok(Self {
            inner: Arc::new(Inner {
                source,
                signer,
                commands,
                head: started.head,
                checkpoint: started.checkpoint,
                counters,
                reader: Reader::open(place).await?,
                acknowledged,
                thread: Mutex::new(Some(started.thread)),
            }),
        })
    }

    fn awaited(&self, draft: Draft) -> Result<(Command, Ticket), AppendError> {
        let (reply, ticket) = oneshot::channel();
        Ok((self.rendered(draft, Some(reply))?, Ticket { reply: ticket }))
    }

    fn rendered(&self, draft: Draft, reply: Option<Reply>) -> Result<Command, AppendError> {
        let rendered = draft.render(&self.inner.source)?;
        Ok(Command::Append(Box::new(Pending { draft, rendered, reply })))
    }

    /// Queues an entry, waiting for room. Entries of one caller keep their order.
    ///
    /// # Errors
    /// When the entry has no canonical form or the journal is closed.
    pub async fn append(&self, draft: Draft) -> Result<Ticket, AppendError> {
        let (append, ticket) = self.awaited(draft)?;
        self.send(append).await?;
        Ok(ticket)
    }

    /// Queues an entry that nobody waits for, waiting for room. Should it not become durable, it is
    /// counted as lost, and the loss is recorded as a `gap`.
    ///
    /// # Errors
    /// As [`Journal::append`].
    pub async fn append_later(&self, draft: Draft) -> Result<(), AppendError> {
        self.send(self.rendered(draft, None)?).await
    }

    /// Queues an entry if there is room now.
    ///
    /// # Errors
    /// As [`Journal::append`], or when the queue is full.
    pub fn try_append(&self, draft: Draft) -> Result<Ticket, AppendError> {
        let (append, ticket) = self.awaited(draft)?;
        self.inner.commands.try_send(append).map_err(|e| match e {
            mpsc::error::TrySendError::Full(_) => AppendError::Full,
            mpsc::error::TrySendError::Closed(_) => AppendError::Closed,
        })?;
        Ok(ticket)
    }

    /// Queues an entry from a thread outside any async runtime, waiting for room.
    ///
    /// # Errors
    /// As [`Journal::append`].
    pub fn append_blocking(&self, draft: Draft) -> Result<Ticket, AppendError> {
        let (append, ticket) = self.awaited(draft)?;
        self.inner.commands.blocking_send(append).map_err(|_| AppendError::Closed)?;
        Ok(ticket)
    }

    /// Records an entry as far as the caller needs it to be.
    ///
    /// # Errors
    /// When the entry has no canonical form or the journal is closed; in strict mode also when it
    /// did not become durable, or was not acknowledged where [`Options::acknowledged`] asks for it.
    pub async fn record(
        &self,
        draft: Draft,
        durability: Durability,
    ) -> Result<Recorded, AppendError> {
        match durability {
            Durability::Strict => {
                let committed = self.append(draft).await?.await?;
                if let Some(acknowledged) = &self.inner.acknowledged {
                    acknowledged.covers(committed.index).await?;
                }
                Ok(Recorded::Durable(committed))
            }
            Durability::Overlap => Ok(Recorded::Pending(self.append(draft).await?)),
            Durability::Buffered => {
                match self.inner.commands.try_send(self.rendered(draft, None)?) {
                    Ok(()) => {}
                    Err(mpsc::error::TrySendError::Full(_)) => self.inner.counters.lost(1),
                    Err(mpsc::error::TrySendError::Closed(_)) => return Err(AppendError::Closed),
                }
                Ok(Recorded::Buffered)
            }
        }
    }

    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, AppendError>>) -> Command,
    ) -> Result<T, AppendError> {
        let (reply, answer) = oneshot::channel();
        self.send(command(reply)).await?;
        answer.await.unwrap_or(Err(AppendError::Closed))
    }

    /// Brings a command to the writer, waiting for room.
    pub(crate) async fn send(&self, command: Command) -> Result<(), AppendError> {
        self.inner.commands.send(command).await.map_err(|_| AppendError::Closed)
    }

    /// Signs a checkpoint over everything committed so far and returns it.
    ///
    /// # Errors
    /// When it cannot be remembered, in which case it is not given out either.
    pub async fn checkpoint_now(&self) -> Result<String, AppendError> {
        self.ask(Command::Checkpoint).await
    }

    /// Erases the salts of entries for good; their arguments can then not be proven, nor guessed.
    /// Returns how many there were.
    ///
    /// # Errors
    /// When the store cannot be written, or a reader keeps old pages alive.
    pub async fn erase_salts(&self, indices: Vec<u64>) -> Result<u64, AppendError> {
        self.ask(|reply| Command::EraseSalts(indices, reply)).await
    }

    /// Forgets the entries with an index below `below`, which somebody else has for good: a journal on
    /// its way to a ledger need not hold what has arrived. The tree goes on, and its last entries (up to 256) stay.
    /// Only what SQLite holds is ever forgotten. Should it fail, they stay, and the log says so.
    ///
    /// # Errors
    /// When the journal is closed.
    pub async fn forget(&self, below: u64) -> Result<(), AppendError> {
        self.send(Command::Forget(below)).await
    }

    /// Records `journal_closed`, signs a last checkpoint and ends the writer. Entries queued before
    /// are written first; later appends fail.
    ///
    /// # Errors
    /// When the last entry or checkpoint could not be written.
    pub async fn close(&self) -> Result<(), AppendError> {
        let closed = self.ask(Command::Close).await;
        let thread = self.inner.thread.lock().take();
        if let Some(thread) = thread {
            let _ = tokio::task::spawn_blocking(move || thread.join()).await;
        }
        self.inner.reader.close().await;
        closed
    }

    /// Size and root after the latest commit; changes can be awaited. Together with
    /// [`Reader::entries`] this follows the log without missing an entry.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<Head> {
        self.inner.head.clone()
    }

    /// The latest signed checkpoint.
    #[must_use]
    pub fn checkpoint(&self) -> Arc<str> {
        self.inner.checkpoint.borrow().clone()
    }

    /// The key that checkpoints are signed with.
    #[must_use]
    pub fn verifier(&self) -> &Verifier {
        self.inner.signer.verifier()
    }

    pub(crate) fn signer(&self) -> &Signer {
        &self.inner.signer
    }

    /// Whose journal this is.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.inner.source
    }

    /// Reads the log.
    #[must_use]
    pub fn reader(&self) -> &Reader {
        &self.inner.reader
    }

    /// Tells how long each commit takes from now on, on the writer's thread. The first who asks is
    /// told; whether that is this one.
    pub fn time_commits(&self, told: impl Fn(Duration) + Send + Sync + 'static) -> bool {
        self.inner.counters.timed.set(Box::new(told)).is_ok()
    }

    /// The counters.
    #[must_use]
    pub fn statistics(&self) -> Statistics {
        let counters = &self.inner.counters;
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let commands = &self.inner.commands;
        Statistics {
            committed: get(&counters.committed),
            batches: get(&counters.batches),
            failed: get(&counters.failed),
            dropped: get(&counters.dropped),
            queued: (commands.max_capacity() - commands.capacity()) as u64,
            committing: Duration::from_nanos(get(&counters.commit_nanos)),
        }
    }
}
