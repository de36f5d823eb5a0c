//! `aegis.journal.v1.Ledger`: takes the journals of a cluster, each from its owner.
//!
//! The peer's SVID must be what the source begins with. Entries are appended byte for byte, in the
//! order of their chain, and acknowledged once they are durable. A gap, a second version of an entry
//! or a foreign source is refused, counted, and recorded by the ledger itself.

use std::{collections::HashMap, pin::Pin, sync::Arc};

use aegis_api::journal::{
    MAX_ENTRIES,
    proto::{
        Acknowledgement, Shipment,
        ledger_server::{Ledger, LedgerServer},
    },
};
use aegis_audit::{Draft, Foreign, ImportError, Journal, Kind, Outcome};
use aegis_identity::{PeerIdentity, system_clock};
use parking_lot::Mutex;
use prometheus::{IntCounter, IntCounterVec, Opts, Registry};
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming};

use crate::trust::scales::Scales;

/// The largest shipment.
const MAX_MESSAGE_BYTES: usize = 4 << 20;
/// The longest name of a source.
const MAX_SOURCE_BYTES: usize = 512;
/// How many sources' last refusals are remembered, so that each is recorded once.
const MAX_TOLD: usize = 10_000;

/// What is counted about shipping.
#[derive(Clone, Debug)]
pub struct ShipMetrics {
    /// Shipments that did not continue their chain.
    pub gaps: IntCounter,
    /// Shipments refused, by reason.
    pub refused: IntCounterVec,
    /// Entries of others that were taken.
    pub imported: IntCounter,
}

impl ShipMetrics {
    /// Registers them.
    ///
    /// # Errors
    /// When their names are taken.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let gaps = IntCounter::new(
            "aegis_ledger_gaps_total",
            "Shipments that did not continue the chain of their source",
        )?;
        let refused = IntCounterVec::new(
            Opts::new("aegis_ledger_refused_shipments_total", "Shipments refused, by reason"),
            &["reason"],
        )?;
        let imported = IntCounter::new(
            "aegis_ledger_imported_entries_total",
            "Entries of other journals that were appended",
        )?;
        registry.register(Box::new(gaps.clone()))?;
        registry.register(Box::new(refused.clone()))?;
        registry.register(Box::new(imported.clone()))?;
        Ok(Self { gaps, refused, imported })
    }
}

/// The service. Each request has to carry its peer's [`PeerIdentity`].
#[derive(Clone)]
pub struct Shipping {
    journal: Journal,
    scales: Scales,
    metrics: ShipMetrics,
    /// What was recorded last of a source that is refused.
    told: Arc<Mutex<HashMap<String, String>>>,
    /// Cancelled when another sequencer has taken over.
    fenced: CancellationToken,
    stop: CancellationToken,
}

impl std::fmt::Debug for Shipping {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shipping").field("journal", &self.journal).finish_non_exhaustive()
    }
}

impl Shipping {
    /// Appends to `journal` until `stop`.
    #[must_use]
    pub fn new(journal: Journal, metrics: ShipMetrics, stop: CancellationToken) -> Self {
        let (fenced, scales) =
            (CancellationToken::new(), Scales::new(journal.clone(), system_clock()));
        Self { scales, journal, metrics, told: Arc::default(), fenced, stop }
    }

    /// Cancelled once another sequencer has taken over: then this process must start anew.
    #[must_use]
    pub const fn fenced(&self) -> &CancellationToken {
        &self.fenced
    }

    /// What says by what the evidence in the journals is weighed.
    #[must_use]
    pub const fn scales(&self) -> &Scales {
        &self.scales
    }

    /// As a gRPC service.
    #[must_use]
    pub fn into_service(self) -> LedgerServer<Self> {
        LedgerServer::new(self).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    /// Takes one shipment; the sequence up to which all is durable.
    async fn take(&self, source: &str, shipment: Shipment) -> Result<u64, ImportError> {
        let malformed = |why: &str| ImportError::Malformed {
            source_name: source.to_owned(),
            why: why.to_owned(),
        };
        let Shipment { source: _, entries, salts } = shipment;
        if entries.len() > MAX_ENTRIES {
            return Err(malformed("more entries than one shipment may hold"));
        }
        if !salts.is_empty() && salts.len() != entries.len() {
            return Err(malformed("it has salts for some of its entries only"));
        }
        let count = entries.len() as u64;
        let name = source.to_owned();
        // Parsing and hashing hundreds of entries would hold up others on this thread.
        let checked = tokio::task::spawn_blocking(move || {
            let salts = salts.into_iter().chain(std::iter::repeat_with(Vec::new));
            let pairs = entries.into_iter().zip(salts);
            pairs
                .map(|(body, salt)| Foreign::check(&name, body, &salt))
                .collect::<Result<Vec<_>, _>>()
        });
        let entries = checked.await.unwrap_or(Err(ImportError::Closed))?;
        if !entries.is_empty()
            && let Err(error) = self.scales.begin_hour().await
        {
            // What follows counts for the hour before, if it can be recorded at all.
            tracing::error!(%error, "an hour's beginning could not be recorded");
        }
        let held = self.journal.import(source, entries).await?;
        self.metrics.imported.inc_by(count);
        Ok(held)
    }

    /// Counts a refusal and records it, once as long as it stays the same.
    async fn refuse(&self, source: &str, peer: &PeerIdentity, error: &ImportError) -> Status {
        let (reason, status) = match error {
            ImportError::Gap { .. } => ("gap", Status::failed_precondition(error.to_string())),
            ImportError::Fork { .. } => ("fork", Status::failed_precondition(error.to_string())),
            ImportError::Malformed { .. } => {
                ("malformed", Status::invalid_argument(error.to_string()))
            }
            ImportError::Store(store) => {
                if matches!(**store, aegis_audit::StoreError::Fenced { .. }) {
                    self.fenced.cancel();
                }
                tracing::error!(%error, "a shipment could not be stored");
                return Status::unavailable(
                    "the ledger cannot write now; nothing was acknowledged",
                );
            }
            ImportError::Closed => return Status::unavailable("the ledger is stopping"),
        };
        self.metrics.refused.with_label_values(&[reason]).inc();
        if matches!(error, ImportError::Gap { .. } | ImportError::Fork { .. }) {
            self.metrics.gaps.inc();
        }
        tracing::warn!(source, peer = %peer.id, %error, "a shipment is refused");
        self.record(source, peer, reason, &error.to_string()).await;
        status
    }

    async fn record(&self, source: &str, peer: &PeerIdentity, reason: &'static str, why: &str) {
        {
            let mut told = self.told.lock();
            if told.get(peer.id.as_str()).is_some_and(|known| known == why) {
                return;
            }
            if told.len() >= MAX_TOLD {
                told.clear();
            }
            told.insert(peer.id.to_string(), why.to_owned());
        }
        let mut draft = Draft::new(Kind::Gap, system_clock()(), Outcome::Deny);
        draft.resource = Some(source.to_owned());
        draft.detail.insert("refusal".into(), reason.into());
        draft.detail.insert("peer".into(), peer.id.to_string().into());
        draft.detail.insert("why".into(), why.into());
        let recorded = match self.journal.append(draft).await {
            Ok(ticket) => ticket.await.map(drop),
            Err(error) => Err(error),
        };
        if let Err(error) = recorded {
            tracing::error!(%error, "a refused shipment could not be recorded");
        }
    }

    /// Serves one stream until it ends; what ends it early is its last answer.
    async fn stream(
        self,
        peer: PeerIdentity,
        mut shipments: Streaming<Shipment>,
        send: mpsc::Sender<Result<Acknowledgement, Status>>,
    ) {
        let mut source: Option<String> = None;
        loop {
            let next = tokio::select! {
                () = self.stop.cancelled() => return,
                () = self.fenced.cancelled() => return,
                next = shipments.message() => next,
            };
            let Ok(Some(shipment)) = next else { return };
            let answer = self.answer(&peer, &mut source, shipment).await;
            let failed = answer.is_err();
            if send.send(answer).await.is_err() || failed {
                return;
            }
        }
    }

    async fn answer(
        &self,
        peer: &PeerIdentity,
        source: &mut Option<String>,
        shipment: Shipment,
    ) -> Result<Acknowledgement, Status> {
        let name = source.get_or_insert_with(|| shipment.source.clone()).clone();
        let same = shipment.source.is_empty() || shipment.source == name;
        if !same || !owns(peer, &name) {
            self.metrics.refused.with_label_values(&["foreign_source"]).inc();
            let shown: String = shipment.source.chars().take(MAX_SOURCE_BYTES).collect();
            tracing::warn!(peer = %peer.id, source = shown, "a journal of somebody else is refused");
            let why = "it ships a journal that is not its own";
            self.record(&shown, peer, "foreign_source", why).await;
            return Err(Status::permission_denied(
                "a source begins with its owner's SPIFFE ID and `#`, and a stream has one",
            ));
        }
        match self.take(&name, shipment).await {
            Ok(held) => Ok(Acknowledgement { next_sequence: held + 1 }),
            Err(error) => Err(self.refuse(&name, peer, &error).await),
        }
    }
}

/// Whether a source is a journal of this peer.
fn owns(peer: &PeerIdentity, source: &str) -> bool {
    let incarnation = source.strip_prefix(peer.id.as_str()).and_then(|rest| rest.strip_prefix('#'));
    source.len() <= MAX_SOURCE_BYTES
        && incarnation.is_some_and(|name| {
            !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        })
}

#[tonic::async_trait]
impl Ledger for Shipping {
    type ShipStream = Pin<Box<dyn Stream<Item = Result<Acknowledgement, Status>> + Send>>;

    async fn ship(
        &self,
        request: Request<Streaming<Shipment>>,
    ) -> Result<Response<Self::ShipStream>, Status> {
        let peer = request.extensions().get::<PeerIdentity>().cloned();
        let peer = peer.ok_or_else(|| Status::unauthenticated("nobody has shown an SVID"))?;
        let (send, answers) = mpsc::channel(8);
        tokio::spawn(self.clone().stream(peer, request.into_inner(), send));
        Ok(Response::new(Box::pin(ReceiverStream::new(answers))))
    }
}
