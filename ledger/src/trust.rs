//! The trust in agents, computed from all entries of the log in its order.
//!
//! Every replica folds what is committed, whether it writes or stands by, so whoever takes over knows
//! it already. A signed snapshot spares reading the log from its first entry at the next start; one
//! that is missing or refused costs time and changes nothing. Until all entries that were there at the
//! start are folded, and while an entry cannot be, nothing is told: half a history is another trust.

pub mod feed;
pub mod scales;

use std::{
    collections::{BTreeSet, HashMap},
    ops::Bound,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use aegis_api::control::TrustView;
use aegis_audit::{Location, Reader, Signer, StoreError};
use aegis_core::{AgentId, trust::Trust};
use aegis_kernel::trust_book::TrustBook;
use parking_lot::RwLock;
use prometheus::{IntGauge, Registry};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// How often the log is looked at where nobody says that it has grown, and what failed is tried again.
const EVERY: Duration = Duration::from_secs(1);
/// Entries that are committed within this time are read at once.
const GATHER: Duration = Duration::from_millis(50);
/// How many entries are read at once.
const PAGE: u64 = 256;
/// Entries after which a snapshot is worth a new one.
const SNAPSHOT_AFTER: u64 = 10_000;

/// Why the trust of the moment is not known.
#[derive(Debug, thiserror::Error)]
pub enum TrustError {
    /// The start is not over.
    #[error("trust is still being folded from the log: {folded} entries so far; ask again")]
    Folding {
        /// How many entries.
        folded: u64,
    },
    /// An entry is not one.
    #[error("entry {index} of the log cannot be read: {why}; run `aegis audit verify`")]
    Entry {
        /// Which.
        index: u64,
        /// Why.
        why: String,
    },
    /// The log has lost entries.
    #[error("the log has {size} entries and {folded} were folded; run `aegis audit verify`")]
    Shorter {
        /// How many it has.
        size: u64,
        /// How many it had.
        folded: u64,
    },
    /// The log cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Where a snapshot is kept, and the key that vouches for it.
#[derive(Debug)]
pub struct Kept {
    /// The file.
    pub path: PathBuf,
    /// The log's key.
    pub signer: Signer,
}

/// A part of the agents, by name.
#[derive(Debug)]
pub struct Page {
    /// From how many entries.
    pub as_of: u64,
    /// The agents.
    pub agents: Vec<TrustView>,
    /// The last of them, if there are more.
    pub next: Option<AgentId>,
}

/// The trust in agents. Clones share it.
#[derive(Clone, Debug)]
pub struct Trusted(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    folded: RwLock<Folded>,
    /// From how many entries the trust that changed last is; `None` before all is folded.
    moved: watch::Sender<Option<u64>>,
    wake: Notify,
    as_of: IntGauge,
    agents: IntGauge,
}

#[derive(Debug, Default)]
struct Folded {
    book: TrustBook,
    /// From how many entries each agent's trust is as it is.
    changed: HashMap<AgentId, u64>,
    /// Somebody's trust has changed since this was last told.
    moved: bool,
    /// What cannot be folded.
    failed: Option<TrustError>,
}

/// The agents whose trust has changed, and from how many entries that is.
type Changes = (u64, Vec<(AgentId, Trust)>);

impl Trusted {
    /// Nothing is folded yet.
    ///
    /// # Errors
    /// Never: the names of its gauges are right.
    pub fn new() -> Result<Self, prometheus::Error> {
        Ok(Self(Arc::new(Shared {
            folded: RwLock::default(),
            moved: watch::Sender::new(None),
            wake: Notify::new(),
            as_of: IntGauge::new(
                "aegis_ledger_trust_as_of_entries",
                "Entries that trust has been folded from",
            )?,
            agents: IntGauge::new("aegis_ledger_trust_agents", "Agents whose trust has a history")?,
        })))
    }

    /// Counts in `registry` too.
    ///
    /// # Errors
    /// When the names are taken.
    pub fn register(&self, registry: &Registry) -> Result<(), prometheus::Error> {
        registry.register(Box::new(self.0.as_of.clone()))?;
        registry.register(Box::new(self.0.agents.clone()))
    }

    /// Has the log looked at soon: it has grown.
    pub fn wake(&self) {
        self.0.wake.notify_one();
    }

    /// Folds the log at `place`, and what is added to it, until `stop`.
    pub async fn keep(&self, place: Location, kept: Kept, stop: CancellationToken) {
        let opened = tokio::select! {
            () = stop.cancelled() => return,
            reader = opened(&place) => reader,
        };
        let mut saved = self.restore(&opened, &kept).await;
        loop {
            let caught_up = tokio::select! {
                () = stop.cancelled() => break,
                caught_up = self.catch_up(&opened) => caught_up,
            };
            if let Err(error) = caught_up {
                tracing::warn!(%error, "trust stays as it is");
                self.0.folded.write().failed = match error {
                    // The log will be back, and as it was.
                    TrustError::Store(_) => None,
                    error => Some(error),
                };
            }
            if self.as_of() >= saved + SNAPSHOT_AFTER {
                saved = self.save(&opened, &kept, saved).await;
            }
            tokio::select! {
                () = stop.cancelled() => break,
                () = self.0.wake.notified() => tokio::time::sleep(GATHER).await,
                () = tokio::time::sleep(EVERY) => {}
            }
        }
        if self.as_of() > saved {
            self.save(&opened, &kept, saved).await;
        }
        opened.close().await;
    }

    /// Takes the snapshot that was kept; how many entries it covers.
    async fn restore(&self, reader: &Reader, kept: &Kept) -> u64 {
        match reader.snapshot(&kept.path, kept.signer.verifier()).await {
            Ok(Some(found)) => {
                let mut folded = self.0.folded.write();
                if !folded.book.restore(found.size, &found.state) {
                    return 0;
                }
                let agents: Vec<AgentId> = folded.book.agents().map(|(id, _)| id.clone()).collect();
                folded.changed = agents.into_iter().map(|agent| (agent, found.size)).collect();
                found.size
            }
            Ok(None) => 0,
            Err(error) => {
                tracing::warn!(%error, "folding trust over the whole log");
                0
            }
        }
    }

    /// Keeps a snapshot; how many entries the latest covers.
    async fn save(&self, reader: &Reader, kept: &Kept, before: u64) -> u64 {
        let (size, state) = {
            let folded = self.0.folded.read();
            (folded.book.as_of(), folded.book.to_snapshot())
        };
        match reader.save_snapshot(&kept.path, &kept.signer, size, state).await {
            Ok(()) => size,
            Err(error) => {
                tracing::warn!(%error, "no snapshot of the trust fold was kept");
                before
            }
        }
    }

    /// Folds what is committed and not folded yet.
    async fn catch_up(&self, reader: &Reader) -> Result<(), TrustError> {
        let size = reader.head().await?.size;
        let mut at = self.as_of();
        if size < at {
            return Err(TrustError::Shorter { size, folded: at });
        }
        while at < size {
            let stored = reader.entries(at..size.min(at + PAGE)).await?;
            let mut folded = self.0.folded.write();
            let Some(last) = stored.last().map(|one| one.index) else { break };
            for one in &stored {
                let wrong = |e: aegis_audit::entry::EntryError| TrustError::Entry {
                    index: one.index,
                    why: e.to_string(),
                };
                let entry = one.entry().map_err(wrong)?;
                if let Some(agent) = folded.book.replay(one.index, &entry) {
                    folded.changed.insert(agent, one.index + 1);
                    folded.moved = true;
                }
            }
            at = last + 1;
        }
        let (as_of, agents, moved) = {
            let mut folded = self.0.folded.write();
            folded.failed = None;
            let moved = std::mem::take(&mut folded.moved);
            (folded.book.as_of(), folded.changed.len(), moved)
        };
        self.0.as_of.set(i64::try_from(as_of).unwrap_or(i64::MAX));
        self.0.agents.set(i64::try_from(agents).unwrap_or(i64::MAX));
        self.0.moved.send_if_modified(|known| {
            let news = moved || known.is_none();
            if news {
                *known = Some(as_of);
            }
            news
        });
        Ok(())
    }

    /// How many entries are folded.
    fn as_of(&self) -> u64 {
        self.0.folded.read().book.as_of()
    }

    /// A part of the agents, by name, after `after`.
    ///
    /// # Errors
    /// While the trust of the moment is not known.
    pub fn page(&self, after: Option<&AgentId>, limit: usize) -> Result<Page, TrustError> {
        let folded = self.0.folded.read();
        self.known(&folded)?;
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        let names: BTreeSet<&AgentId> = folded.changed.keys().collect();
        let mut rest = names.range::<AgentId, _>((from, Bound::Unbounded)).copied();
        let shown: Vec<&AgentId> = rest.by_ref().take(limit).collect();
        let next = shown.last().filter(|_| rest.next().is_some()).map(|last| (*last).clone());
        let agents = shown.into_iter().map(|agent| view(&folded.book, agent)).collect();
        Ok(Page { as_of: folded.book.as_of(), agents, next })
    }

    /// The trust in one agent; nothing for one without a history.
    ///
    /// # Errors
    /// While the trust of the moment is not known.
    pub fn of(&self, agent: &AgentId) -> Result<Page, TrustError> {
        let folded = self.0.folded.read();
        self.known(&folded)?;
        let agents = folded.changed.contains_key(agent).then(|| view(&folded.book, agent));
        let agents = agents.into_iter().collect();
        Ok(Page { as_of: folded.book.as_of(), agents, next: None })
    }

    /// Fails while what is folded is not the trust of the moment.
    fn known(&self, folded: &Folded) -> Result<(), TrustError> {
        match &folded.failed {
            Some(TrustError::Entry { index, why }) => {
                Err(TrustError::Entry { index: *index, why: why.clone() })
            }
            Some(TrustError::Shorter { size, folded }) => {
                Err(TrustError::Shorter { size: *size, folded: *folded })
            }
            _ if self.0.moved.borrow().is_none() => {
                Err(TrustError::Folding { folded: folded.book.as_of() })
            }
            _ => Ok(()),
        }
    }

    /// Whose trust has changed after the first `told` entries.
    fn since(&self, told: u64) -> Changes {
        let folded = self.0.folded.read();
        let changed = folded.changed.iter().filter(|(_, at)| **at > told);
        let agents = changed.map(|(agent, _)| (agent.clone(), folded.book.trust(agent)));
        (folded.book.as_of(), agents.collect())
    }
}

/// With the thresholds that its evidence is weighed by.
fn view(book: &TrustBook, agent: &AgentId) -> TrustView {
    TrustView::of(agent.clone(), &book.trust(agent), book.thresholds_of(agent), book.as_of())
}

/// The log, as soon as it can be read.
async fn opened(place: &Location) -> Reader {
    loop {
        match Reader::open(place).await {
            Ok(reader) => return reader,
            Err(error) => tracing::debug!(%error, "there is no log to fold trust from yet"),
        }
        tokio::time::sleep(EVERY).await;
    }
}

#[cfg(test)]
#[path = "trust/tests.rs"]
mod tests;
