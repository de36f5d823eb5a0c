//! What a ledger that serves a cluster answers over HTTP, from its first moment on: the log as soon
//! as it can be read, and whether the process is ready.
//!
//! A replica that stands by is ready too: it serves the log, and an update of the replicas, one after
//! another, has to go on past it. It takes no journals, because it does not listen for them; who
//! reaches it through the Service is refused at once and reaches the writer on the next try.

use std::{convert::Infallible, sync::Arc, time::Duration};

use aegis_identity::SvidSource;
use axum::{
    Json, Router,
    extract::{Request, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use parking_lot::RwLock;
use serde_json::json;
use tower::ServiceExt as _;

use crate::{Ledger, router};

/// How long the store may take to say that it is there.
const PATIENCE: Duration = Duration::from_secs(2);

/// What a replica does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Role {
    /// Nothing yet, or nothing any more.
    None,
    /// It serves the log while another writes it.
    StandsBy,
    /// It takes journals.
    Writes,
}

impl Role {
    const fn as_str(self) -> &'static str {
        match self {
            Self::None => "starting or stopping",
            Self::StandsBy => "standing by",
            Self::Writes => "writing",
        }
    }
}

struct Shown {
    ledger: Option<(Ledger, Router)>,
    source: Option<Arc<SvidSource>>,
    role: Role,
}

/// The answers. Clones share them.
#[derive(Clone)]
pub(crate) struct Front(Arc<RwLock<Shown>>);

impl Front {
    /// Nothing is there yet.
    pub(crate) fn new() -> Self {
        Self(Arc::new(RwLock::new(Shown { ledger: None, source: None, role: Role::None })))
    }

    /// Shows this log from now on.
    pub(crate) fn show(&self, ledger: Ledger) {
        let routes = router(ledger.clone());
        self.0.write().ledger = Some((ledger, routes));
    }

    /// Whether a log is shown.
    pub(crate) fn shows(&self) -> bool {
        self.0.read().ledger.is_some()
    }

    /// The SVID without which this process is not ready.
    pub(crate) fn identify(&self, source: Arc<SvidSource>) {
        self.0.write().source = Some(source);
    }

    /// What it does from now on.
    pub(crate) fn act(&self, role: Role) {
        self.0.write().role = role;
    }

    /// The routes: its own, and the log's.
    pub(crate) fn routes(self) -> Router {
        Router::new().route("/readyz", get(ready)).fallback(forward).with_state(self)
    }

    async fn ready(&self) -> (bool, Role) {
        let (ledger, identified, role) = {
            let shown = self.0.read();
            let identified = shown.source.as_ref().is_some_and(|source| source.current().is_ok());
            (shown.ledger.as_ref().map(|(ledger, _)| ledger.clone()), identified, shown.role)
        };
        let answers = match ledger {
            Some(ledger) => tokio::time::timeout(PATIENCE, ledger.answers()).await.unwrap_or(false),
            None => false,
        };
        (answers && identified && role != Role::None, role)
    }
}

async fn ready(State(front): State<Front>) -> Response {
    let (ready, role) = front.ready().await;
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": ready, "role": role.as_str() }))).into_response()
}

async fn forward(State(front): State<Front>, request: Request) -> Result<Response, Infallible> {
    let routes = front.0.read().ledger.as_ref().map(|(_, routes)| routes.clone());
    match routes {
        Some(routes) => routes.oneshot(request).await,
        None => {
            let why = json!({ "error": "the log is not open yet" });
            Ok((StatusCode::SERVICE_UNAVAILABLE, Json(why)).into_response())
        }
    }
}
