//! What the sidecar counts. Labels never come from the wire: servers are named by configuration,
//! verdicts and reasons are closed sets.

use prometheus::{Histogram, HistogramOpts, IntCounter, IntCounterVec, IntGauge, Opts, Registry};

/// The sidecar's metrics.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// `aegis_sidecar_decisions_total{server,verdict,reason}`
    pub decisions: IntCounterVec,
    /// `aegis_sidecar_previews_total{verdict}`
    pub previews: IntCounterVec,
    /// `aegis_sidecar_exchanges_open`
    pub open: IntGauge,
    /// `aegis_sidecar_held_calls`
    pub held: IntGauge,
    /// `aegis_sidecar_decision_duration_seconds`
    pub decision_seconds: Histogram,
    /// `aegis_sidecar_bytes_total{server,direction}`
    pub bytes: IntCounterVec,
    /// `aegis_sidecar_uncovered_connections_total`
    pub uncovered: IntCounter,
}

impl Metrics {
    /// Makes them and registers them.
    ///
    /// # Errors
    /// When they are registered already.
    pub fn register(registry: &Registry) -> Result<Self, prometheus::Error> {
        let buckets =
            vec![0.000_05, 0.000_1, 0.000_25, 0.000_5, 0.001, 0.0025, 0.005, 0.01, 0.05, 0.25, 1.0];
        let metrics = Self {
            decisions: IntCounterVec::new(
                Opts::new("aegis_sidecar_decisions_total", "Decisions by verdict and reason."),
                &["server", "verdict", "reason"],
            )?,
            previews: IntCounterVec::new(
                Opts::new("aegis_sidecar_previews_total", "What would be decided, by verdict."),
                &["verdict"],
            )?,
            open: IntGauge::new("aegis_sidecar_exchanges_open", "Exchanges that await an answer.")?,
            held: IntGauge::new("aegis_sidecar_held_calls", "Calls that wait for a human.")?,
            decision_seconds: Histogram::with_opts(
                HistogramOpts::new(
                    "aegis_sidecar_decision_duration_seconds",
                    "From a parsed message to its recorded decision.",
                )
                .buckets(buckets),
            )?,
            bytes: IntCounterVec::new(
                Opts::new("aegis_sidecar_bytes_total", "Bytes of messages forwarded and released."),
                &["server", "direction"],
            )?,
            uncovered: IntCounter::new(
                "aegis_sidecar_uncovered_connections_total",
                "Connections let through that cannot be looked into: what they carry is not covered.",
            )?,
        };
        registry.register(Box::new(metrics.uncovered.clone()))?;
        registry.register(Box::new(metrics.decisions.clone()))?;
        registry.register(Box::new(metrics.previews.clone()))?;
        registry.register(Box::new(metrics.open.clone()))?;
        registry.register(Box::new(metrics.held.clone()))?;
        registry.register(Box::new(metrics.decision_seconds.clone()))?;
        registry.register(Box::new(metrics.bytes.clone()))?;
        Ok(metrics)
    }
}
