//! The CA's metrics, `aegis_ca_<noun>_<unit>`, and its refusals by reason. No label comes from the wire.

use std::{
    collections::BTreeMap,
    sync::{Arc, atomic::Ordering},
};

use aegis_audit::{Draft, Journal, Kind, Outcome};
use aegis_core::Timestamp;
use aegis_mesh::ShipCounters;
use parking_lot::Mutex;
use prometheus::{Encoder as _, IntCounter, IntCounterVec, IntGauge, Opts, Registry, TextEncoder};

/// What is counted. Clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    /// SVIDs by kind.
    pub issued: IntCounterVec,
    refused: IntCounterVec,
    /// Sidecars and components that follow what is to be believed.
    pub followers: IntGauge,
    /// Identities and certificates that are revoked.
    pub revoked: IntGauge,
    /// Entries that went to the ledger.
    sent: IntCounter,
    /// Whether the ledger answers.
    connected: IntGauge,
    /// Refusals that are not recorded yet.
    unrecorded: Arc<Mutex<BTreeMap<&'static str, u64>>>,
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// Never for a fresh registry.
    pub fn register() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str, label: &str| {
            let counter = IntCounterVec::new(Opts::new(name, help), &[label])?;
            registry.register(Box::new(counter.clone())).map(|()| counter)
        };
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone())).map(|()| gauge)
        };
        let sent = IntCounter::new("aegis_ca_sent_entries_total", "Entries sent to the ledger")?;
        registry.register(Box::new(sent.clone()))?;
        Ok(Self {
            sent,
            connected: gauge("aegis_ca_ledger_connected", "Whether the ledger takes the journal")?,
            issued: counter("aegis_ca_issued_svids_total", "SVIDs issued, by kind", "kind")?,
            refused: counter(
                "aegis_ca_refused_requests_total",
                "Requests refused, by reason",
                "reason",
            )?,
            followers: gauge("aegis_ca_followers", "Streams that are told what to believe")?,
            revoked: gauge("aegis_ca_revocations", "Revoked identities and certificates")?,
            unrecorded: Arc::default(),
            registry,
        })
    }

    /// Counts a refusal.
    pub fn refuse(&self, reason: &'static str) {
        self.refused.with_label_values(&[reason]).inc();
        *self.unrecorded.lock().entry(reason).or_default() += 1;
    }

    /// Records the refusals since the last time, one entry for each reason.
    pub async fn record_refusals(&self, journal: &Journal, now: Timestamp) {
        let counted = std::mem::take(&mut *self.unrecorded.lock());
        for (reason, count) in counted {
            let mut draft = Draft::new(Kind::Refusals, now, Outcome::Deny);
            draft.action.insert("method".into(), "issue".into());
            draft.detail.insert("refusal".into(), reason.into());
            draft.detail.insert("count".into(), count.into());
            let recorded = match journal.append(draft).await {
                Ok(ticket) => ticket.await.map(drop),
                Err(error) => Err(error),
            };
            if let Err(error) = recorded {
                tracing::error!(%error, reason, count, "refusals could not be recorded");
                *self.unrecorded.lock().entry(reason).or_default() += count;
            }
        }
    }

    /// Takes over what was counted about shipping the journal.
    pub fn shipped(&self, counters: &ShipCounters) {
        let sent = counters.sent.load(Ordering::Relaxed);
        self.sent.inc_by(sent.saturating_sub(self.sent.get()));
        self.connected.set(i64::from(counters.connected.load(Ordering::Relaxed)));
    }

    /// The exposition format.
    #[must_use]
    pub fn text(&self) -> String {
        let mut buffer = Vec::new();
        let _ = TextEncoder::new().encode(&self.registry.gather(), &mut buffer);
        String::from_utf8(buffer).unwrap_or_default()
    }
}
