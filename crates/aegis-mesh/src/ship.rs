//! Brings a journal's entries to the ledger of the cluster, in order, each once.
//!
//! The ledger says at the start of every stream how much it has, so nothing is lost or repeated by a
//! broken connection. What it has acknowledged is durable there; how much that is can be awaited.
//! A ledger that has more than the journal, or lacks what the journal no longer holds, is counted
//! and told about: then nothing is acknowledged until somebody looks.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use aegis_api::journal::{
    MAX_ENTRIES,
    proto::{Acknowledgement, Shipment, ledger_client::LedgerClient},
};
use aegis_audit::{Head, Journal, Reader, StoreError};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming, transport::Channel};

use crate::backoff::Backoff;

/// How many bytes of entries go into one shipment; gRPC servers take 4 MiB.
const MAX_BYTES: usize = 1 << 20;
/// How many shipments may be on their way.
const WINDOW: usize = 8;

/// What is counted about shipping.
#[derive(Debug, Default)]
pub struct ShipCounters {
    /// Entries that were sent.
    pub sent: AtomicU64,
    /// Streams that broke or were refused.
    pub broken: AtomicU64,
    /// Times that the ledger lacked entries which the journal no longer holds.
    pub gaps: AtomicU64,
    /// Times that the ledger had more than the journal, which must have been rolled back.
    pub rollbacks: AtomicU64,
    /// Whether the ledger answers at the moment.
    pub connected: AtomicBool,
}

/// Why a stream to the ledger ended.
#[derive(Debug, thiserror::Error)]
enum ShipError {
    #[error("the ledger does not answer: {}", .0.message())]
    Status(Box<Status>),
    #[error("the ledger has ended the stream")]
    Ended,
    #[error("the journal cannot be read: {0}")]
    Journal(#[from] StoreError),
    #[error(
        "the ledger lacks entry {wanted} of {source_name}, which the journal no longer holds; entries are lost"
    )]
    Gap { source_name: String, wanted: u64 },
    #[error(
        "the ledger has {theirs} entries of {source_name} and the journal {ours}: it was rolled back or replaced"
    )]
    Rollback { source_name: String, theirs: u64, ours: u64 },
}

impl From<Status> for ShipError {
    fn from(status: Status) -> Self {
        Self::Status(Box::new(status))
    }
}

/// A journal on its way to the ledger. It has to be of one source alone.
pub struct Shipper {
    reader: Reader,
    source: String,
    /// How long the journal is; closed when nobody writes to it any more.
    head: watch::Receiver<Head>,
}

impl fmt::Debug for Shipper {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shipper").field("source", &self.source).finish_non_exhaustive()
    }
}

impl Shipper {
    /// Of a journal that is being written.
    #[must_use]
    pub fn of(journal: &Journal) -> Self {
        Self {
            reader: journal.reader().clone(),
            source: journal.source().to_owned(),
            head: journal.subscribe(),
        }
    }

    /// Of a journal that an earlier process has left behind.
    ///
    /// # Errors
    /// When it cannot be read, or is empty.
    pub async fn of_left(reader: Reader) -> Result<Option<Self>, StoreError> {
        let head = reader.head().await?;
        let Some(last) = head.size.checked_sub(1) else { return Ok(None) };
        let Some(last) = reader.entry(last).await? else { return Ok(None) };
        // The sender is gone at once: this journal does not grow.
        Ok(Some(Self { reader, source: last.source, head: watch::channel(head).1 }))
    }

    /// Whose journal it is.
    #[must_use]
    pub fn source(&self) -> &str {
        &self.source
    }

    /// Ships until `stop`, or until a journal that does not grow has arrived as a whole.
    /// `acknowledged` tells how many of its entries the ledger has.
    pub async fn run(
        mut self,
        channel: Channel,
        counters: Arc<ShipCounters>,
        acknowledged: watch::Sender<u64>,
        stop: CancellationToken,
    ) {
        let mut backoff = Backoff::new();
        loop {
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = self.one_stream(&channel, &counters, &acknowledged, &mut backoff) => ended,
            };
            counters.connected.store(false, Ordering::Relaxed);
            let Err(error) = ended else { return };
            counters.broken.fetch_add(1, Ordering::Relaxed);
            match &error {
                ShipError::Gap { .. } => counters.gaps.fetch_add(1, Ordering::Relaxed),
                ShipError::Rollback { .. } => counters.rollbacks.fetch_add(1, Ordering::Relaxed),
                ShipError::Status(status) if status.code() == Code::FailedPrecondition => {
                    counters.gaps.fetch_add(1, Ordering::Relaxed)
                }
                _ => 0,
            };
            tracing::warn!(%error, source = self.source, "the journal is not shipped; it is kept");
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(backoff.next()) => {}
            }
        }
    }

    async fn one_stream(
        &mut self,
        channel: &Channel,
        counters: &ShipCounters,
        acknowledged: &watch::Sender<u64>,
        backoff: &mut Backoff,
    ) -> Result<(), ShipError> {
        let (outgoing, shipments) = mpsc::channel(WINDOW);
        let hello =
            Shipment { source: self.source.clone(), entries: Vec::new(), salts: Vec::new() };
        outgoing.send(hello).await.map_err(|_| ShipError::Ended)?;
        let mut client = LedgerClient::new(channel.clone());
        let mut answers = client.ship(ReceiverStream::new(shipments)).await?.into_inner();
        let mut arrived = self.heard(&mut answers).await?;
        acknowledged.send_replace(arrived);
        counters.connected.store(true, Ordering::Relaxed);
        backoff.reset();
        let mut sent = arrived;
        let mut grows = true;
        loop {
            let size = self.head.borrow_and_update().size;
            if !grows && arrived == size {
                return Ok(());
            }
            tokio::select! {
                answer = self.heard(&mut answers) => {
                    arrived = answer?;
                    acknowledged.send_replace(arrived);
                }
                room = outgoing.reserve(), if sent < size => {
                    let shipment = self.shipment(sent, size).await?;
                    let count = shipment.entries.len() as u64;
                    room.map_err(|_| ShipError::Ended)?.send(shipment);
                    sent += count;
                    counters.sent.fetch_add(count, Ordering::Relaxed);
                }
                changed = grown(&self.head), if grows && sent == size => grows = changed,
            }
        }
    }

    /// The next acknowledgement: how many entries the ledger has.
    async fn heard(&self, answers: &mut Streaming<Acknowledgement>) -> Result<u64, ShipError> {
        let answer = answers.message().await?.ok_or(ShipError::Ended)?;
        // Sequences count from 1.
        let theirs = answer.next_sequence.saturating_sub(1);
        let ours = self.head.borrow().size;
        if theirs > ours {
            return Err(ShipError::Rollback { source_name: self.source.clone(), theirs, ours });
        }
        Ok(theirs)
    }

    /// The entries from index `from` on, as many as go into one shipment.
    async fn shipment(&self, from: u64, size: u64) -> Result<Shipment, ShipError> {
        let end = size.min(from.saturating_add(MAX_ENTRIES as u64));
        let stored = self.reader.entries(from..end).await?;
        let mut shipment =
            Shipment { source: self.source.clone(), entries: Vec::new(), salts: Vec::new() };
        let mut bytes = 0;
        for (entry, index) in stored.into_iter().zip(from..) {
            bytes += entry.body.len();
            let next = entry.index == index && entry.sequence == index + 1;
            if !next || entry.source != self.source || bytes > MAX_BYTES {
                break;
            }
            let salt = self.reader.salt(index).await?;
            shipment.salts.push(salt.map(|s| s.as_bytes().to_vec()).unwrap_or_default());
            shipment.entries.push(entry.body);
        }
        if shipment.entries.is_empty() {
            let wanted = from + 1;
            return Err(ShipError::Gap { source_name: self.source.clone(), wanted });
        }
        Ok(shipment)
    }
}

/// Waits for the journal to grow; false when nobody writes to it any more.
async fn grown(head: &watch::Receiver<Head>) -> bool {
    head.clone().changed().await.is_ok()
}
