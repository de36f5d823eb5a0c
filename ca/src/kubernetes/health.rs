//! `/healthz`, `/readyz` and `/metrics`, on a port of their own.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use aegis_identity::SvidSource;
use aegis_mesh::ShipCounters;
use axum::{Router, extract::State, http::StatusCode, routing::get};
use parking_lot::RwLock;

use super::Metrics;

/// What the probes are told. Clones share it.
#[derive(Clone, Debug)]
pub struct Health {
    serving: Arc<AtomicBool>,
    /// The CA's own certificate, once it has one.
    source: Arc<RwLock<Option<Arc<SvidSource>>>>,
    metrics: Metrics,
    counters: Arc<ShipCounters>,
}

impl Health {
    /// Not ready yet.
    #[must_use]
    pub fn new(metrics: Metrics, counters: Arc<ShipCounters>) -> Self {
        Self { serving: Arc::default(), source: Arc::default(), metrics, counters }
    }

    /// Requests may come, as long as `source` has an SVID.
    pub fn serve(&self, source: Arc<SvidSource>) {
        *self.source.write() = Some(source);
        self.serving.store(true, Ordering::Release);
    }

    /// No more requests.
    pub fn drain(&self) {
        self.serving.store(false, Ordering::Release);
    }

    /// Whether requests may come.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        let certified = self.source.read().as_ref().is_some_and(|source| source.current().is_ok());
        certified && self.serving.load(Ordering::Acquire)
    }

    /// The routes.
    pub fn router(self) -> Router {
        Router::new()
            .route("/healthz", get(|| async { "ok" }))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .with_state(self)
    }
}

async fn ready(State(health): State<Health>) -> (StatusCode, &'static str) {
    if health.is_ready() {
        return (StatusCode::OK, "ok");
    }
    let why =
        "starting, draining, without its state or the AgentIdentities, or without a certificate";
    (StatusCode::SERVICE_UNAVAILABLE, why)
}

async fn metrics(State(health): State<Health>) -> String {
    health.metrics.shipped(&health.counters);
    health.metrics.text()
}
