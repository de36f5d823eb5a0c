//! The ledger's metrics, `aegis_ledger_<noun>_<unit>`. No label comes from the wire.

use aegis_audit::Statistics;
use prometheus::{
    Encoder as _, Histogram, HistogramOpts, IntCounter, IntGauge, Registry, TextEncoder,
    exponential_buckets,
};

#[derive(Debug)]
pub(crate) struct Metrics {
    registry: Registry,
    entries: IntGauge,
    signed: IntGauge,
    writing: IntGauge,
    journal: Journal,
}

/// What only the process that appends can tell.
#[derive(Debug)]
struct Journal {
    appended: IntCounter,
    batches: IntCounter,
    failed: IntCounter,
    dropped: IntCounter,
    queued: IntGauge,
    committing: Histogram,
}

impl Metrics {
    pub(crate) fn new() -> anyhow::Result<Self> {
        let registry = Registry::new();
        let counter = |name: &str, help: &str| -> anyhow::Result<IntCounter> {
            let counter = IntCounter::new(name, help)?;
            registry.register(Box::new(counter.clone()))?;
            Ok(counter)
        };
        let gauge = |name: &str, help: &str| -> anyhow::Result<IntGauge> {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok(gauge)
        };
        // From a tenth of a millisecond to three seconds.
        let buckets = exponential_buckets(0.0001, 2.0, 16)?;
        let committing = Histogram::with_opts(
            HistogramOpts::new("aegis_ledger_commit_seconds", "Time of committing a batch")
                .buckets(buckets),
        )?;
        registry.register(Box::new(committing.clone()))?;
        Ok(Self {
            entries: gauge("aegis_ledger_entries", "Entries in the log")?,
            signed: gauge(
                "aegis_ledger_signed_entries",
                "Entries that the latest checkpoint covers",
            )?,
            writing: gauge("aegis_ledger_writing", "Whether this process appends to the log")?,
            journal: Journal {
                appended: counter(
                    "aegis_ledger_appended_entries_total",
                    "Entries this process committed",
                )?,
                batches: counter("aegis_ledger_batches_total", "Transactions those took")?,
                failed: counter(
                    "aegis_ledger_failed_entries_total",
                    "Entries that could not be committed",
                )?,
                dropped: counter(
                    "aegis_ledger_dropped_entries_total",
                    "Buffered entries that were lost",
                )?,
                queued: gauge("aegis_ledger_queued_entries", "Entries waiting for the writer")?,
                committing,
            },
            registry,
        })
    }

    /// Where each commit of this process' journal is told.
    pub(crate) fn commits(&self) -> Histogram {
        self.journal.committing.clone()
    }

    pub(crate) const fn registry(&self) -> &Registry {
        &self.registry
    }

    pub(crate) fn render(
        &self,
        entries: u64,
        signed: u64,
        statistics: Option<Statistics>,
    ) -> anyhow::Result<String> {
        let number = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        self.entries.set(number(entries));
        self.signed.set(number(signed));
        self.writing.set(i64::from(statistics.is_some()));
        if let Some(now) = statistics {
            let journal = &self.journal;
            journal.queued.set(number(now.queued));
            for (counter, value) in [
                (&journal.appended, now.committed),
                (&journal.batches, now.batches),
                (&journal.failed, now.failed),
                (&journal.dropped, now.dropped),
            ] {
                counter.inc_by(value.saturating_sub(counter.get()));
            }
        }
        let mut out = Vec::new();
        TextEncoder::new().encode(&self.registry.gather(), &mut out)?;
        Ok(String::from_utf8(out)?)
    }
}
