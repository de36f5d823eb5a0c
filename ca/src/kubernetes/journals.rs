//! What the CA of a cluster records, on its own disk first and then in the ledger.
//!
//! Each start begins a journal of its own, under a source that was never used before, so that a disk
//! that was lost or restored cannot contradict what the ledger already has. What an earlier start
//! left behind is shipped too. A journal that the ledger has as a whole is deleted, and a long one is
//! replaced by a new one, so that the disk holds little more than what has not arrived.
//!
//! The ledger gets its own SVID from this CA, so an identity is issued once it is on this disk, and
//! does not wait for the ledger.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
};

use aegis_audit::{AppendError, Journal, Location, Options, Reader, Signer, StoreError};
use aegis_core::SpiffeId;
use aegis_identity::Clock;
use aegis_mesh::{ShipCounters, Shipper};
use futures::future::BoxFuture;
use tokio::{sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use crate::{IdentityEvent, Recorder, RecorderError};

/// How long a journal gets before a new one begins.
pub const MAX_ENTRIES: u64 = 100_000;
/// What journals are called.
const ENDING: &str = "db";

/// Why there is no journal.
#[derive(Debug, thiserror::Error)]
pub enum JournalsError {
    /// The folder.
    #[error("the journals in {} cannot be used: {cause}", path.display())]
    Folder {
        /// Which.
        path: PathBuf,
        /// What the system says.
        cause: std::io::Error,
    },
    /// A checkpoint cannot be signed.
    #[error(transparent)]
    Key(#[from] aegis_audit::note::NoteError),
    /// The journal.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A journal and where it is.
#[derive(Clone, Debug)]
struct Held {
    journal: Journal,
    path: PathBuf,
}

/// The journals of one replica.
pub struct Journals {
    folder: PathBuf,
    owner: SpiffeId,
    /// The pod, which sources name.
    pod: String,
    clock: Clock,
    /// What earlier starts have left.
    left: Vec<PathBuf>,
    current: watch::Sender<Held>,
    /// Nothing follows the current one.
    closed: CancellationToken,
}

impl fmt::Debug for Journals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Journals")
            .field("folder", &self.folder)
            .field("left", &self.left)
            .finish_non_exhaustive()
    }
}

impl Journals {
    /// Begins a new journal of `owner` in `folder`, beside what is there.
    ///
    /// # Errors
    /// When the folder cannot be used or the journal not be begun.
    pub async fn open(
        folder: &Path,
        owner: SpiffeId,
        pod: &str,
        clock: Clock,
    ) -> Result<Self, JournalsError> {
        let failed = |cause| JournalsError::Folder { path: folder.to_owned(), cause };
        std::fs::create_dir_all(folder).map_err(failed)?;
        let left = left(folder).map_err(failed)?;
        let held = begin(folder, &owner, pod).await?;
        Ok(Self {
            folder: folder.to_owned(),
            owner,
            pod: pod.to_owned(),
            clock,
            left,
            current: watch::Sender::new(held),
            closed: CancellationToken::new(),
        })
    }

    /// The journal that is written at the moment.
    #[must_use]
    pub fn current(&self) -> Journal {
        self.current.borrow().journal.clone()
    }

    /// How many journals of earlier starts there were.
    #[must_use]
    pub fn left(&self) -> usize {
        self.left.len()
    }

    /// Begins a new journal once the current one has `most` entries, and closes that one. Returns
    /// whether it did.
    ///
    /// # Errors
    /// When there is no new one; the old one is written further then.
    pub async fn begin_anew(&self, most: u64) -> Result<bool, JournalsError> {
        let old = self.current();
        if old.subscribe().borrow().size < most {
            return Ok(false);
        }
        let next = begin(&self.folder, &self.owner, &self.pod).await?;
        tracing::info!(source = next.journal.source(), "a new journal begins");
        self.current.send_replace(next);
        // What was on its way to it is told that it is closed, and goes to the new one.
        if let Err(error) = old.close().await {
            tracing::warn!(%error, "the old journal was not closed in order");
        }
        Ok(true)
    }

    /// Ends the current journal, the last one.
    pub async fn close(&self) {
        self.closed.cancel();
        if let Err(error) = self.current().close().await {
            tracing::warn!(%error, "the journal was not closed in order");
        }
    }

    /// Ships every journal until all have arrived after [`Self::close`], or until `stop`.
    pub async fn ship(
        self: Arc<Self>,
        channel: Channel,
        counters: Arc<ShipCounters>,
        stop: CancellationToken,
    ) {
        let mut tasks = JoinSet::new();
        for path in &self.left {
            tasks.spawn(ship_left(path.clone(), channel.clone(), counters.clone(), stop.clone()));
        }
        let mut current = self.current.subscribe();
        while !self.closed.is_cancelled() && !stop.is_cancelled() {
            let Held { journal, path } = current.borrow_and_update().clone();
            let shipper = Shipper::of(&journal);
            tasks.spawn(ship_one(shipper, path, channel.clone(), counters.clone(), stop.clone()));
            tokio::select! {
                () = stop.cancelled() => {}
                () = self.closed.cancelled() => {}
                _ = current.changed() => {}
            }
        }
        while tasks.join_next().await.is_some() {}
    }
}

/// The journals in a folder, the oldest first: their names begin with when they were made.
fn left(folder: &Path) -> std::io::Result<Vec<PathBuf>> {
    let mut left = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == ENDING) {
            left.push(path);
        }
    }
    left.sort();
    Ok(left)
}

async fn begin(folder: &Path, owner: &SpiffeId, pod: &str) -> Result<Held, JournalsError> {
    let incarnation = uuid::Uuid::now_v7().simple().to_string();
    let source = format!("{owner}#{pod}-{incarnation}");
    let path = folder.join(incarnation).with_extension(ENDING);
    // Nobody keeps this log: the ledger's own checkpoints cover what arrives there.
    let signer = Signer::generate("journal")?;
    let place = Location::Sqlite(path.clone());
    let journal = Journal::open(&place, Options::new(source, signer)).await?;
    Ok(Held { journal, path })
}

async fn ship_left(
    path: PathBuf,
    channel: Channel,
    counters: Arc<ShipCounters>,
    stop: CancellationToken,
) {
    let shipper = match Reader::open_copy(&path).await {
        Ok(reader) => Shipper::of_left(reader).await,
        Err(error) => Err(error),
    };
    match shipper {
        Ok(Some(shipper)) => ship_one(shipper, path, channel, counters, stop).await,
        Ok(None) => remove(&path),
        Err(error) => {
            tracing::error!(%error, path = %path.display(), "a journal that was left cannot be read; it is kept");
        }
    }
}

async fn ship_one(
    shipper: Shipper,
    path: PathBuf,
    channel: Channel,
    counters: Arc<ShipCounters>,
    stop: CancellationToken,
) {
    let source = shipper.source().to_owned();
    shipper.run(channel, counters, watch::Sender::new(0), stop.clone()).await;
    // It ends by itself only when all of a journal that no longer grows has arrived.
    if !stop.is_cancelled() {
        tracing::info!(source, "a journal has arrived in the ledger as a whole");
        remove(&path);
    }
}

/// Removes a journal and what lies beside it.
fn remove(path: &Path) {
    for ending in ["db.redo0", "db.redo1", "db", "db-wal", "db-shm", "db.lock", "db.checkpoint"] {
        let path = path.with_extension(ending);
        match std::fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                tracing::warn!(%error, path = %path.display(), "a journal that has arrived cannot be removed");
            }
            _ => {}
        }
    }
}

impl Recorder for Journals {
    fn record<'a>(&'a self, event: &'a IdentityEvent) -> BoxFuture<'a, Result<(), RecorderError>> {
        Box::pin(async move {
            let draft = event.draft((self.clock)());
            loop {
                let journal = self.current();
                let recorded = match journal.append(draft.clone()).await {
                    Ok(ticket) => ticket.await,
                    Err(error) => Err(error),
                };
                match recorded {
                    // Closed under our hands, because the next one has begun.
                    Err(AppendError::Closed) if journal.source() != self.current().source() => {}
                    Err(error) => return Err(error.into()),
                    Ok(_) => return Ok(()),
                }
            }
        })
    }
}
