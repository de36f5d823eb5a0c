//! `/healthz`, `/readyz`, `/metrics`, and whether a nonce came through the redirect. Whoever reaches the pod reaches them: they tell nothing of
//! what was said or decided about whom.

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use aegis_identity::SvidSource;
use aegis_kernel::Kernel;
use axum::{Router, extract::State, http::StatusCode, routing::get};
use parking_lot::Mutex;
use prometheus::{IntGauge, Registry, TextEncoder};
use tokio::net::TcpListener;

use super::journal::Shipping;
use crate::transparent::Asked;

/// What the probes and metrics are told. Clones share it.
#[derive(Clone, Default)]
pub(super) struct Admin(Arc<Inner>);

#[derive(Default)]
struct Inner {
    /// Why it is not ready; empty when it is.
    missing: Mutex<Option<String>>,
    serial: AtomicU64,
    gauges: Mutex<Option<Gauges>>,
}

/// What is read when somebody asks.
struct Gauges {
    source: Arc<SvidSource>,
    kernel: Arc<Kernel>,
    shipping: Shipping,
    serial: IntGauge,
    operator: IntGauge,
    state_age: IntGauge,
    svid_expiry: IntGauge,
    ledger: IntGauge,
    unacknowledged: IntGauge,
    gaps: IntGauge,
}

#[derive(Clone)]
struct Served {
    admin: Admin,
    registry: Registry,
}

impl Admin {
    /// Serves on every address of the pod, of either family: a port that is free in one could be taken
    /// by the application, and the redirect lets this one through.
    pub(super) fn serve(&self, listeners: Vec<TcpListener>, registry: Registry, asked: &Asked) {
        self.set_state("starting");
        let router = Router::new()
            .route("/healthz", get(|| async { "ok" }))
            .route("/readyz", get(ready))
            .route("/metrics", get(metrics))
            .with_state(Served { admin: self.clone(), registry })
            .merge(asked.router());
        for listener in listeners {
            let router = router.clone();
            tokio::spawn(async move {
                if let Err(error) = axum::serve(listener, router).await {
                    tracing::error!(%error, "health is not served any more");
                }
            });
        }
    }

    /// Notes why the pod is not ready.
    pub(super) fn set_state(&self, missing: &str) {
        *self.0.missing.lock() = Some(missing.to_owned());
    }

    /// A state is in force: from now on calls are decided on.
    pub(super) fn in_force(&self, serial: u64) {
        self.0.serial.store(serial, Ordering::Relaxed);
        *self.0.missing.lock() = None;
    }

    /// Whether the operator is followed at the moment.
    pub(super) fn operator(&self, followed: bool) {
        if let Some(gauges) = &*self.0.gauges.lock() {
            gauges.operator.set(followed.into());
        }
    }

    /// Registers what is read when somebody asks.
    ///
    /// # Errors
    /// When it is registered already.
    pub(super) fn watch(
        &self,
        registry: &Registry,
        source: &Arc<SvidSource>,
        kernel: &Arc<Kernel>,
        shipping: &Shipping,
    ) -> Result<(), prometheus::Error> {
        let gauge = |name: &str, help: &str| {
            let gauge = IntGauge::new(name, help)?;
            registry.register(Box::new(gauge.clone()))?;
            Ok::<_, prometheus::Error>(gauge)
        };
        let gauges = Gauges {
            source: Arc::clone(source),
            kernel: Arc::clone(kernel),
            shipping: shipping.clone(),
            serial: gauge("aegis_sidecar_state_serial", "The serial of the state in force.")?,
            operator: gauge(
                "aegis_sidecar_operator_followed",
                "Whether the operator is followed.",
            )?,
            state_age: gauge(
                "aegis_sidecar_state_age_seconds",
                "Since when nobody has said that the state in force is the newest.",
            )?,
            svid_expiry: gauge(
                "aegis_sidecar_svid_expiry_timestamp_seconds",
                "When the SVID at hand expires.",
            )?,
            ledger: gauge("aegis_sidecar_ledger_connected", "Whether the ledger answers.")?,
            unacknowledged: gauge(
                "aegis_sidecar_unacknowledged_entries",
                "Entries of this journal that the ledger does not have yet.",
            )?,
            gaps: gauge(
                "aegis_sidecar_journal_gaps_total",
                "Times that the ledger lacked entries which the journal no longer holds.",
            )?,
        };
        *self.0.gauges.lock() = Some(gauges);
        Ok(())
    }

    fn read(&self) {
        let gauges = self.0.gauges.lock();
        let Some(gauges) = &*gauges else { return };
        let set =
            |gauge: &IntGauge, value: u64| gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
        set(&gauges.serial, self.0.serial.load(Ordering::Relaxed));
        let confirmed = gauges.kernel.state().confirmed_at;
        let age = confirmed.map_or(0, |at| gauges.kernel.now().since(at).as_secs());
        set(&gauges.state_age, age);
        let expiry = gauges.source.watch().borrow().svid.not_after().as_secs();
        set(&gauges.svid_expiry, expiry);
        let counters = &gauges.shipping.counters;
        gauges.ledger.set(counters.connected.load(Ordering::Relaxed).into());
        set(&gauges.gaps, counters.gaps.load(Ordering::Relaxed));
        let size = gauges.kernel.journal().subscribe().borrow().size;
        set(&gauges.unacknowledged, size.saturating_sub(*gauges.shipping.acknowledged.borrow()));
    }
}

async fn ready(State(served): State<Served>) -> (StatusCode, String) {
    match &*served.admin.0.missing.lock() {
        None => (StatusCode::OK, "ok".to_owned()),
        Some(missing) => (StatusCode::SERVICE_UNAVAILABLE, missing.clone()),
    }
}

async fn metrics(State(served): State<Served>) -> Result<String, StatusCode> {
    served.admin.read();
    let families = served.registry.gather();
    TextEncoder::new().encode_to_string(&families).map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)
}
