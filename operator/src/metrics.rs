//! Metrics under the names that dashboards for controllers know (controller-runtime's).
//!
//! Labels come from the operator itself: controller, result, webhook and reason; never from an
//! object or a request.

use prometheus::{
    Encoder as _, HistogramOpts, HistogramVec, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};

/// What the operator counts.
#[derive(Clone, Debug)]
pub struct Metrics {
    registry: Registry,
    /// Reconciliations, by controller and result.
    pub reconciles: IntCounterVec,
    /// Reconciliations that failed, by controller.
    pub reconcile_errors: IntCounterVec,
    /// How long they took, by controller.
    pub reconcile_seconds: HistogramVec,
    /// How many run, by controller.
    pub active_workers: IntGaugeVec,
    /// How many wait or run, by controller.
    pub queue_depth: IntGaugeVec,
    /// How many were added, by controller.
    pub queue_adds: IntCounterVec,
    /// How many were tried again after an error, by controller.
    pub queue_retries: IntCounterVec,
    /// Whether this process leads, by lease.
    pub leading: IntGaugeVec,
    /// Admission requests, by webhook and code.
    pub webhook_requests: IntCounterVec,
    /// How long admission took, by webhook.
    pub webhook_seconds: HistogramVec,
    /// Pods injected, skipped or refused, by reason.
    pub injections: IntCounterVec,
    /// Writes of a status, by controller.
    pub status_writes: IntCounterVec,
    /// What is distributed: `serial` and `sidecars`.
    pub distribution: IntGaugeVec,
    /// What the operator has of the mesh: `roots`, and `ca` and `ledger` while they are followed.
    pub mesh: IntGaugeVec,
    /// When the operator's own SVID expires; 0 without one.
    pub svid_expiry: IntGauge,
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// Never for a fresh registry.
    pub fn register() -> Result<Self, prometheus::Error> {
        let registry = Registry::new();
        let (counter, gauge, histogram) =
            (counters(&registry), gauges(&registry), histograms(&registry));
        Ok(Self {
            reconciles: counter(
                "controller_runtime_reconcile_total",
                "Reconciliations by controller and result",
                &["controller", "result"],
            )?,
            reconcile_errors: counter(
                "controller_runtime_reconcile_errors_total",
                "Failed reconciliations",
                &["controller"],
            )?,
            reconcile_seconds: histogram(
                "controller_runtime_reconcile_time_seconds",
                "Time of a reconciliation",
                &["controller"],
            )?,
            active_workers: gauge(
                "controller_runtime_active_workers",
                "Running reconciliations",
                &["controller"],
            )?,
            queue_depth: gauge("workqueue_depth", "Objects that wait or are worked on", &["name"])?,
            queue_adds: counter("workqueue_adds_total", "Objects added", &["name"])?,
            queue_retries: counter("workqueue_retries_total", "Objects tried again", &["name"])?,
            leading: gauge(
                "leader_election_master_status",
                "1 in the process that leads",
                &["name"],
            )?,
            webhook_requests: counter(
                "controller_runtime_webhook_requests_total",
                "Admission requests",
                &["webhook", "code"],
            )?,
            webhook_seconds: histogram(
                "controller_runtime_webhook_latency_seconds",
                "Time of an admission request",
                &["webhook"],
            )?,
            injections: counter(
                "aegis_operator_injections_total",
                "Pods by what injection did, and why",
                &["result", "reason"],
            )?,
            status_writes: counter(
                "aegis_operator_status_writes_total",
                "Writes of a status",
                &["controller"],
            )?,
            distribution: gauge(
                "aegis_operator_distribution",
                "The serial in force, and how many sidecars are connected",
                &["what"],
            )?,
            mesh: gauge(
                "aegis_operator_mesh",
                "1 for what the operator has of the mesh: the roots of the CA, the CA and the ledger",
                &["what"],
            )?,
            svid_expiry: svid_expiry(&registry)?,
            registry: registry.clone(),
        })
    }

    /// The exposition format.
    #[must_use]
    pub fn text(&self) -> String {
        text_of(&self.registry)
    }
}

/// A registry in the exposition format.
pub(crate) fn text_of(registry: &Registry) -> String {
    let mut buffer = Vec::new();
    let _ = TextEncoder::new().encode(&registry.gather(), &mut buffer);
    String::from_utf8(buffer).unwrap_or_default()
}

fn svid_expiry(registry: &Registry) -> Result<IntGauge, prometheus::Error> {
    let gauge = IntGauge::new(
        "aegis_operator_svid_expiry_timestamp_seconds",
        "When the operator's own SVID expires; 0 without one",
    )?;
    registry.register(Box::new(gauge.clone()))?;
    Ok(gauge)
}

fn counters(
    registry: &Registry,
) -> impl Fn(&str, &str, &[&str]) -> Result<IntCounterVec, prometheus::Error> {
    move |name, help, labels| {
        let counter = IntCounterVec::new(Opts::new(name, help), labels)?;
        registry.register(Box::new(counter.clone()))?;
        Ok(counter)
    }
}

fn gauges(
    registry: &Registry,
) -> impl Fn(&str, &str, &[&str]) -> Result<IntGaugeVec, prometheus::Error> {
    move |name, help, labels| {
        let gauge = IntGaugeVec::new(Opts::new(name, help), labels)?;
        registry.register(Box::new(gauge.clone()))?;
        Ok(gauge)
    }
}

fn histograms(
    registry: &Registry,
) -> impl Fn(&str, &str, &[&str]) -> Result<HistogramVec, prometheus::Error> {
    move |name, help, labels| {
        let buckets = prometheus::exponential_buckets(0.0005, 2.0, 16)?;
        let histogram = HistogramVec::new(HistogramOpts::new(name, help).buckets(buckets), labels)?;
        registry.register(Box::new(histogram.clone()))?;
        Ok(histogram)
    }
}
