//! The pod's record: a journal of its own for each start, on its way to the cluster's ledger.
//!
//! Each journal file is an incarnation: `<SPIFFE ID>#<pod UID>-<UUID>`. The file's number does not name it:
//! what an earlier start has left is shipped too, and removed once the ledger has all of it, and the
//! number is free again.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use aegis_audit::{
    Acknowledged, Journal, Location, Observer, Options as JournalOptions, Reader, Signer,
};
use aegis_core::AgentId;
use aegis_identity::SvidSource;
use aegis_mesh::{Authority, ShipCounters, Shipper, channel};
use anyhow::Context as _;
use tokio::sync::watch;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::transport::Channel;

use super::Options;

/// How long the ledger may take to acknowledge an entry that something waits for: longer than its
/// restart, and shorter than clients wait.
const PATIENCE: Duration = Duration::from_secs(15);

/// How many entries that the ledger has are held at least before they are let go.
const FORGET: u64 = 512;

/// The journal of this start, and how its entries reach the ledger.
pub(super) struct Ledger {
    pub(super) journal: Journal,
    path: PathBuf,
    left: Vec<PathBuf>,
    channel: Option<Channel>,
    acknowledged: watch::Sender<u64>,
}

/// Shipping that goes on.
#[derive(Clone)]
pub(super) struct Shipping {
    pub(super) counters: Arc<ShipCounters>,
    pub(super) acknowledged: watch::Receiver<u64>,
    path: PathBuf,
    channel: Option<Channel>,
}

impl Ledger {
    /// Opens the journal of this start.
    ///
    /// # Errors
    /// When the folder cannot be written, or the ledger's address cannot be used.
    pub(super) async fn open(
        options: &Options,
        agent: &AgentId,
        source: &Arc<SvidSource>,
        authority: &Authority,
        observers: Vec<Observer>,
    ) -> anyhow::Result<Self> {
        let left = journals(&options.state)?;
        let number = left.iter().filter_map(|path| number_of(path)).max().unwrap_or(0) + 1;
        let path = options.state.join(format!("journal-{number}.db"));
        let name = format!("{agent}#{}-{}", options.pod_uid, uuid::Uuid::now_v7());
        let signer = Signer::load_or_create(&options.state.join("journal.key"), agent.as_str())?;
        let (acknowledged, size) = watch::channel(0);
        let mut opening = JournalOptions::new(name, signer);
        opening.observers.extend(observers);
        let channel = match &options.ledger {
            Some(address) => {
                opening.acknowledged = Some(Acknowledged { size, patience: PATIENCE });
                Some(channel(address, "ledger", source, authority.revocations())?)
            }
            None => None,
        };
        let journal = Journal::open(&Location::Sqlite(path.clone()), opening)
            .await
            .with_context(|| format!("the journal {} cannot be opened", path.display()))?;
        Ok(Self { journal, path, left, channel, acknowledged })
    }

    /// Ships this journal and those that were left, until `stop`.
    pub(super) fn ship(self, tasks: &TaskTracker, stop: &CancellationToken) -> Shipping {
        let counters = Arc::new(ShipCounters::default());
        let told = self.acknowledged.subscribe();
        if let Some(channel) = &self.channel {
            let shipper = Shipper::of(&self.journal);
            tasks.spawn(forget(self.journal.clone(), self.acknowledged.subscribe(), stop.clone()));
            let (counted, until) = (Arc::clone(&counters), stop.clone());
            tasks.spawn(shipper.run(channel.clone(), counted, self.acknowledged, until));
            for path in self.left {
                let (channel, counted) = (channel.clone(), Arc::clone(&counters));
                let until = stop.clone();
                tasks.spawn(async move {
                    if let Err(error) = ship_left(&path, channel, counted, until).await {
                        tracing::warn!(%error, journal = %path.display(), "a journal that was left is not shipped; it is kept");
                    }
                });
            }
        }
        Shipping { counters, acknowledged: told, path: self.path, channel: self.channel }
    }
}

impl Shipping {
    /// Ships what is left of the closed journal.
    pub(super) async fn finish(&self) {
        let Some(channel) = self.channel.clone() else { return };
        let (counters, never) = (Arc::clone(&self.counters), CancellationToken::new());
        if let Err(error) = ship_left(&self.path, channel, counters, never).await {
            tracing::warn!(%error, "the journal's end is not shipped; a restart ships it");
        }
    }
}

/// Lets go of what the ledger has: the journal lies in memory that the pod pays for.
async fn forget(journal: Journal, mut told: watch::Receiver<u64>, stop: CancellationToken) {
    let mut forgotten = 0;
    loop {
        let arrived = tokio::select! {
            () = stop.cancelled() => return,
            arrived = told.wait_for(|size| *size >= forgotten + FORGET) => match arrived {
                Ok(size) => *size,
                Err(_) => return,
            },
        };
        if journal.forget(arrived).await.is_err() {
            return;
        }
        forgotten = arrived;
    }
}

/// Ships a journal that nobody writes any more, and removes it once the ledger has all of it.
async fn ship_left(
    path: &Path,
    channel: Channel,
    counters: Arc<ShipCounters>,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let reader = Reader::open(&Location::Sqlite(path.to_owned())).await?;
    let size = reader.head().await?.size;
    let shipper = Shipper::of_left(reader.clone()).await?;
    let (acknowledged, told) = watch::channel(0);
    if let Some(shipper) = shipper {
        shipper.run(channel, counters, acknowledged, stop).await;
    }
    reader.close().await;
    if *told.borrow() < size {
        return Ok(());
    }
    for suffix in [".redo0", ".redo1", "", "-wal", "-shm", ".lock", ".checkpoint"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        let _ = fs::remove_file(PathBuf::from(name));
    }
    Ok(())
}

/// The journals in a folder.
fn journals(folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let unreadable = || format!("the state folder {} cannot be read", folder.display());
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(unreadable)? {
        let path = entry.with_context(unreadable)?.path();
        if number_of(&path).is_some() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn number_of(path: &Path) -> Option<u64> {
    path.file_name()?.to_str()?.strip_prefix("journal-")?.strip_suffix(".db")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn journals_are_told_by_their_names() {
        let folder = tempfile::tempdir().unwrap();
        for name in
            ["journal-1.db", "journal-12.db", "journal-1.db-wal", "journal.key", "journal-x.db"]
        {
            fs::write(folder.path().join(name), "").unwrap();
        }
        let found = journals(folder.path()).unwrap();
        let numbers: Vec<_> = found.iter().filter_map(|path| number_of(path)).collect();
        assert_eq!(numbers, [1, 12]);
        assert!(journals(&folder.path().join("none")).is_err());
    }
}
