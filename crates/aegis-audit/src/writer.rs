//! The writer thread: takes what is queued, chains and hashes it, writes it as one batch.
//!
//! The tree in memory moves only when the store has taken the batch: Postgres in a transaction, SQLite's log in its
//! redo log ([`crate::redo`]). Callers hear of it once it is durable ([`durable`]). After a failure the connection is
//! opened anew and the tree is read back, because a batch whose sync failed may still have been written.

mod durable;
mod import;

use std::borrow::Cow;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant, SystemTime};

use aegis_core::Timestamp;
use serde_json::{Map, Value, json};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::MissedTickBehavior;

use crate::checkpoint::{self, Head};
use crate::entry::{Draft, Kind, Outcome};
use crate::file::beside;
use crate::journal::{AppendError, Command, Committed, Counters, Options, Pending};
use crate::note::Signer;
use crate::postgres::PostgresStore;
use crate::read::Reader;
use crate::sqlite::SqliteStore;
use crate::store::{Batch, Location, Row, SourceHead, StoreError, Tree};
use crate::writer::durable::{Announcer, Durable, Written};
use crate::{tile, tree, witness};

/// The most entries in one transaction.
const MAX_BATCH: usize = 1_024;
/// How long entries that nobody waits for are gathered: a commit costs the same for one as for many.
const GATHER: Duration = Duration::from_millis(50);

/// Either store. SQLite is called on this thread, which has nothing else to do meanwhile.
enum Store {
    Sqlite(Box<SqliteStore>),
    Postgres(Box<PostgresStore>),
}

impl Store {
    async fn commit(&mut self, batch: &Batch<'_>) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(store) => store.redo().write(batch),
            Self::Postgres(store) => store.commit(batch).await,
        }
    }

    async fn reconnect(&mut self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(store) => store.reconnect(),
            Self::Postgres(store) => store.reconnect().await,
        }
    }

    /// Makes durable what was committed.
    fn sync(&mut self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(store) => store.redo().sync(),
            Self::Postgres(_) => Ok(()),
        }
    }

    /// Waits until the tables have what is durable.
    fn drain(&self) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(store) => store.redo().drain(),
            Self::Postgres(_) => Ok(()),
        }
    }

    async fn save_checkpoint(&mut self, size: u64, note: &str) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(store) => store.save_checkpoint(size, note),
            Self::Postgres(store) => store.save_checkpoint(size, note).await,
        }
    }

    async fn erase_salts(&mut self, indices: &[u64]) -> Result<u64, StoreError> {
        match self {
            Self::Sqlite(store) => store.erase_salts(indices),
            Self::Postgres(store) => store.erase_salts(indices).await,
        }
    }

    /// A ledger's own log is never pruned, and only SQLite's is a journal on its way.
    fn forget(&mut self, below: u64) -> Result<(), StoreError> {
        match self {
            Self::Sqlite(store) => store.forget(below),
            Self::Postgres(_) => Ok(()),
        }
    }

    async fn close(self) {
        match self {
            Self::Sqlite(store) => store.close(),
            Self::Postgres(store) => store.close().await,
        }
    }
}

/// What [`start`] gives back.
pub(crate) struct Started {
    pub(crate) head: watch::Receiver<Head>,
    pub(crate) checkpoint: watch::Receiver<Arc<str>>,
    pub(crate) thread: std::thread::JoinHandle<()>,
}

/// Starts the writer thread and waits until it has recorded `journal_opened`.
pub(crate) async fn start(
    place: Location,
    options: Options,
    queue: mpsc::Receiver<Command>,
    counters: Arc<Counters>,
) -> Result<Started, StoreError> {
    let (ready, opened) = oneshot::channel();
    let shown = place.to_string();
    let failed = |why: String| StoreError::Unavailable { place: shown.clone(), why };
    let thread = std::thread::Builder::new()
        .name("audit-writer".into())
        .spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            match runtime {
                Ok(runtime) => runtime.block_on(main(place, options, queue, counters, ready)),
                Err(error) => {
                    let why = format!("cannot start its writer: {error}");
                    let place = place.to_string();
                    let _ = ready.send(Err(StoreError::Unavailable { place, why }));
                }
            }
        })
        .map_err(|error| failed(format!("cannot start its writer thread: {error}")))?;
    let ended = || failed("its writer ended while starting".into());
    let (head, checkpoint) = opened.await.map_err(|_| ended())??;
    Ok(Started { head, checkpoint, thread })
}

/// What its callers see of a log.
type Seen = (watch::Receiver<Head>, watch::Receiver<Arc<str>>);
type Ready = oneshot::Sender<Result<Seen, StoreError>>;

async fn main(
    place: Location,
    options: Options,
    mut queue: mpsc::Receiver<Command>,
    counters: Arc<Counters>,
    ready: Ready,
) {
    let interval = options.checkpoint_interval;
    let mut writer = match Writer::open(place, options, counters).await {
        Ok((writer, seen)) => {
            let _ = ready.send(Ok(seen));
            writer
        }
        Err(error) => {
            let _ = ready.send(Err(error));
            return;
        }
    };
    let interval = interval.max(Duration::from_millis(1));
    // Not at once: opening has signed a checkpoint.
    let mut ticks = tokio::time::interval_at(tokio::time::Instant::now() + interval, interval);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut commands = Vec::with_capacity(MAX_BATCH);
    loop {
        tokio::select! {
            taken = queue.recv_many(&mut commands, MAX_BATCH) => {
                if taken == 0 {
                    break;
                }
                gather(&mut queue, &mut commands).await;
                if writer.run(&mut commands).await {
                    break;
                }
            }
            _ = ticks.tick() => writer.tick().await,
        }
    }
    // Nobody gets an answer that was not given: later appends see a closed journal.
    queue.close();
    writer.store.close().await;
    writer.reader.close().await;
}

/// Takes more from the queue until somebody waits, the batch is full, or [`GATHER`] is over.
async fn gather(queue: &mut mpsc::Receiver<Command>, commands: &mut Vec<Command>) {
    let until = tokio::time::Instant::now() + GATHER;
    let mut looked_at = 0;
    loop {
        if commands.iter().skip(looked_at).any(Command::is_awaited) {
            return;
        }
        looked_at = commands.len();
        let room = MAX_BATCH.saturating_sub(looked_at);
        if room == 0 {
            return;
        }
        match tokio::time::timeout_at(until, queue.recv_many(commands, room)).await {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
    }
}

struct Writer {
    store: Store,
    reader: Reader,
    place: Location,
    source: String,
    signer: Signer,
    saved: Option<PathBuf>,
    tree: Tree,
    chain: SourceHead,
    chains: import::Chains,
    signed: u64,
    /// The state in memory may not be the store's.
    stale: bool,
    /// Set once another sequencer has taken over.
    fenced: bool,
    durable: Durable,
    counters: Arc<Counters>,
    head: Arc<watch::Sender<Head>>,
    checkpoint: watch::Sender<Arc<str>>,
}

fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    Timestamp::from_micros(u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

impl Writer {
    async fn open(
        place: Location,
        options: Options,
        counters: Arc<Counters>,
    ) -> Result<(Self, Seen), StoreError> {
        let verifier = options.signer.verifier().to_string();
        let (store, saved) = match &place {
            Location::Sqlite(path) => {
                let saved = options.saved_checkpoint.unwrap_or_else(|| beside(path, ".checkpoint"));
                let store = SqliteStore::open(path, &verifier, &options.source)?;
                (Store::Sqlite(Box::new(store)), Some(saved))
            }
            Location::Postgres(url) => {
                let store = PostgresStore::open(url, &verifier, &options.source).await?;
                (Store::Postgres(Box::new(store)), options.saved_checkpoint)
            }
        };
        let reader = Reader::open(&place).await?;
        let tree = reader.tree().await?;
        let chain = reader.source(&options.source).await?;
        let signed =
            check_remembered(&reader, &options.signer, saved.as_ref(), &options.witnesses).await?;
        let (head, head_seen) = watch::channel(tree.head());
        let head = Arc::new(head);
        let announcer = Announcer {
            source: options.source.clone(),
            head: Arc::clone(&head),
            observers: options.observers,
            counters: Arc::clone(&counters),
        };
        let durable = match &store {
            Store::Postgres(_) => Durable::Here(announcer),
            Store::Sqlite(store) => {
                let redo = Arc::clone(store.redo());
                Durable::synced(announcer, Box::new(move || redo.sync())).map_err(|error| {
                    let why = format!("cannot start the thread that syncs it: {error}");
                    StoreError::Unavailable { place: place.to_string(), why }
                })?
            }
        };
        let note = reader.checkpoint().await?.unwrap_or_default();
        let (checkpoint, checkpoint_seen) = watch::channel(note.into());
        let mut writer = Self {
            store,
            reader,
            place,
            source: options.source,
            signer: options.signer,
            saved,
            tree,
            chain,
            chains: import::Chains::new(),
            signed,
            stale: false,
            fenced: false,
            durable,
            counters,
            head,
            checkpoint,
        };
        writer.opened().await?;
        Ok((writer, (head_seen, checkpoint_seen)))
    }

    /// Records that the journal was opened, and whether it had been closed in order.
    async fn opened(&mut self) -> Result<(), StoreError> {
        let mut detail = Map::new();
        detail.insert("entries".into(), json!(self.tree.frontier.size()));
        detail.insert("previous_sequence".into(), json!(self.chain.sequence));
        if !self.chain.closed {
            detail.insert("gap".into(), json!("the journal had not been closed"));
        }
        self.commit_own(Kind::JournalOpened, detail).await.map_err(|error| match error {
            AppendError::Store(error) => Arc::unwrap_or_clone(error),
            error => {
                StoreError::Unavailable { place: self.place.to_string(), why: error.to_string() }
            }
        })?;
        let _ = self.sign().await?;
        Ok(())
    }

    fn own(&self, kind: Kind, detail: Map<String, Value>) -> Result<Pending, AppendError> {
        let mut draft = Draft::new(kind, now(), Outcome::Recorded);
        draft.detail = detail;
        let rendered = draft.render(&self.source)?;
        Ok(Pending { draft, rendered, reply: None })
    }

    async fn commit_own(
        &mut self,
        kind: Kind,
        detail: Map<String, Value>,
    ) -> Result<(), AppendError> {
        let own = self.own(kind, detail)?;
        self.commit(vec![own]).await?;
        self.durable.settle().map_err(AppendError::Store)
    }

    /// Carries out what was taken from the queue; whether the journal is to end.
    async fn run(&mut self, commands: &mut Vec<Command>) -> bool {
        let mut batch = Vec::with_capacity(commands.len());
        let (mut imports, mut closing) = (Vec::new(), Vec::new());
        for command in commands.drain(..) {
            match command {
                Command::Append(pending) => batch.push(*pending),
                Command::Import(import) => imports.push(import),
                Command::Checkpoint(reply) => {
                    let _ = self.commit(std::mem::take(&mut batch)).await;
                    let signed = self.sign().await;
                    let _ = reply.send(signed.map_err(|e| AppendError::Store(Arc::new(e))));
                }
                Command::EraseSalts(indices, reply) => {
                    let _ = self.commit(std::mem::take(&mut batch)).await;
                    let _ = reply.send(self.erase_salts(&indices).await);
                }
                Command::Forget(below) => {
                    if let Err(error) = self.store.forget(below) {
                        tracing::warn!(%error, "entries that are held elsewhere stay here too");
                    }
                }
                Command::Close(reply) => closing.push(reply),
            }
        }
        let _ = self.commit(batch).await;
        self.import(imports).await;
        if closing.is_empty() {
            return false;
        }
        let closed = self.finish().await;
        for reply in closing {
            let _ = reply.send(closed.clone());
        }
        true
    }

    async fn erase_salts(&mut self, indices: &[u64]) -> Result<u64, AppendError> {
        self.settle().map_err(AppendError::Store)?;
        let erased = self.store.erase_salts(indices).await;
        erased.inspect_err(|error| self.failed(error)).map_err(|e| AppendError::Store(Arc::new(e)))
    }

    async fn finish(&mut self) -> Result<(), AppendError> {
        let mut detail = Map::new();
        let lost = self.counters.unrecorded_gap.load(Ordering::Relaxed);
        if lost > 0 {
            detail.insert("lost".into(), json!(lost));
        }
        self.commit_own(Kind::JournalClosed, detail).await?;
        self.sign().await.map(drop).map_err(|e| AppendError::Store(Arc::new(e)))
    }

    /// Signs a checkpoint if the log has grown since the last one.
    async fn tick(&mut self) {
        if self.tree.frontier.size() > self.signed
            && !self.stale
            && let Err(error) = self.sign().await
        {
            tracing::warn!(%error, "no audit checkpoint was signed");
        }
    }

    /// Signs the durable head. The note is remembered outside the database before anybody sees
    /// it; a head below the last one that was remembered is never signed.
    async fn sign(&mut self) -> Result<String, StoreError> {
        self.refresh().await?;
        self.settle().map_err(Arc::unwrap_or_clone)?;
        // A checkpoint covers what a copy of the database would have.
        if let Err(error) = self.store.drain() {
            // Appends go on: what is durable is not lost.
            self.fenced |= matches!(error, StoreError::Fenced { .. });
            return Err(error);
        }
        let head = self.tree.head();
        let place = self.place.to_string();
        if head.size < self.signed {
            let why = format!("{} entries had been signed and it has {}", self.signed, head.size);
            return Err(StoreError::Rollback { place, why });
        }
        let note = checkpoint::sign(&self.signer, &head);
        if let Some(path) = &self.saved {
            witness::save(path, &note)?;
        }
        if let Err(error) = self.store.save_checkpoint(head.size, &note).await {
            self.failed(&error);
            return Err(error);
        }
        self.signed = head.size;
        self.checkpoint.send_replace(note.as_str().into());
        Ok(note)
    }

    fn failed(&mut self, error: &StoreError) {
        self.stale = true;
        self.fenced |= matches!(error, StoreError::Fenced { .. });
    }

    /// Waits until all that was committed is durable.
    fn settle(&mut self) -> Result<(), Arc<StoreError>> {
        self.durable.settle().inspect_err(|error| self.failed(error))
    }

    /// Commits a batch; its callers are answered once it is durable, or told at once that it will not be.
    async fn commit(&mut self, mut batch: Vec<Pending>) -> Result<(), AppendError> {
        if batch.is_empty() {
            return Ok(());
        }
        let lost = self.counters.unrecorded_gap.swap(0, Ordering::Relaxed);
        if lost > 0 {
            let mut detail = Map::new();
            detail.insert("lost".into(), json!(lost));
            match self.own(Kind::Gap, detail) {
                Ok(gap) => batch.insert(0, gap),
                Err(error) => tracing::error!(%error, lost, "cannot record a gap"),
            }
        }
        let started = Instant::now();
        let sequence = self.chain.sequence + 1;
        match self.write(&batch).await {
            Ok(places) => {
                let head = self.tree.head();
                self.durable.take(Written { batch, places, sequence, head, lost, started });
                Ok(())
            }
            Err(error) => {
                let error = Arc::new(error);
                durable::refuse(&self.counters, batch, lost, &error);
                Err(AppendError::Store(error))
            }
        }
    }

    /// After a failure: a fresh connection, and the tree as the store has it.
    async fn refresh(&mut self) -> Result<(), StoreError> {
        if self.fenced {
            return Err(StoreError::Fenced { place: self.place.to_string() });
        }
        if self.durable.is_broken() {
            // Whoever waited has been told.
            let _ = self.settle();
        }
        if !self.stale {
            return Ok(());
        }
        // What is on its way arrives, or is refused.
        let _ = self.settle();
        if let Err(error) = self.store.reconnect().await {
            self.failed(&error);
            return Err(error);
        }
        self.tree = self.reader.tree().await?;
        self.chain = self.reader.source(&self.source).await?;
        self.chains.clear();
        self.head.send_replace(self.tree.head());
        self.stale = false;
        Ok(())
    }

    /// Chains, hashes and commits; the state in memory moves only on success.
    async fn write(&mut self, batch: &[Pending]) -> Result<Vec<Committed>, StoreError> {
        self.refresh().await?;
        let (mut tree, mut chain) = (self.tree.clone(), self.chain.clone());
        let from = tree.frontier.size();
        let mut rows = Vec::with_capacity(batch.len());
        let (mut tiles, mut salts) = (Vec::new(), Vec::new());
        let mut committed = Vec::with_capacity(batch.len());
        for pending in batch {
            let index = tree.frontier.size();
            let sequence = chain.sequence + 1;
            let body = pending.rendered.finish(sequence, chain.leaf);
            let leaf = tree::leaf_hash(&body);
            tree.frontier.push(leaf);
            tree.edge.push(leaf, &mut |tile, hashes| tiles.push((tile, tile::join(hashes))));
            let closed = pending.draft.kind == Kind::JournalClosed;
            chain = SourceHead { sequence, leaf, closed };
            if let Some(salt) = pending.draft.salt {
                salts.push((index, salt));
            }
            let columns = (&pending.draft).into();
            let body = Cow::Owned(body);
            rows.push(Row { index, source: None, sequence, leaf, body, columns });
            committed.push(Committed { index, leaf });
        }
        let head = tree.head();
        let write = Batch { from, head, rows, tiles, salts };
        if let Err(error) = self.store.commit(&write).await {
            self.failed(&error);
            return Err(error);
        }
        (self.tree, self.chain) = (tree, chain);
        Ok(committed)
    }
}

/// Compares the log with every remembered checkpoint; the largest size that was signed.
async fn check_remembered(
    reader: &Reader,
    signer: &Signer,
    saved: Option<&PathBuf>,
    witnesses: &[PathBuf],
) -> Result<u64, StoreError> {
    let verifier = signer.verifier();
    let mut signed = 0;
    if let Some(note) = reader.checkpoint().await? {
        signed = witness::check(reader, verifier, &note, "the database").await?;
    }
    for path in saved.into_iter().chain(witnesses) {
        match witness::read(path)? {
            Some(note) => {
                let whence = path.display().to_string();
                signed = signed.max(witness::check(reader, verifier, &note, &whence).await?);
            }
            None if signed > 0 => {
                tracing::warn!(path = %path.display(), "no remembered audit checkpoint; a rollback before this start would not be noticed");
            }
            None => {}
        }
    }
    Ok(signed)
}
