//! `/healthz`, `/readyz` and `/metrics`, on a port of their own.

use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

use axum::{Router, extract::State, routing::get};
use http::StatusCode;

use crate::{metrics::Metrics, webhook::Served};

/// What the probes are told.
#[derive(Clone, Debug)]
pub struct Health {
    ready: Arc<AtomicBool>,
    /// Where webhooks are served, they need a certificate first.
    certificate: Option<Served>,
    metrics: Metrics,
}

impl Health {
    /// Not ready yet.
    #[must_use]
    pub fn new(metrics: Metrics, certificate: Option<Served>) -> Self {
        Self { ready: Arc::default(), certificate, metrics }
    }

    /// Whether requests may come: for a webhook, not for leading.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Release);
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
    let certified = health.certificate.as_ref().is_none_or(Served::is_set);
    if certified && health.ready.load(Ordering::Acquire) {
        (StatusCode::OK, "ok")
    } else {
        (
            StatusCode::SERVICE_UNAVAILABLE,
            "starting, draining, or without a certificate for the webhooks",
        )
    }
}

async fn metrics(State(health): State<Health>) -> String {
    health.metrics.text()
}
