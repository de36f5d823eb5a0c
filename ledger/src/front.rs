//! What a ledger that serves a cluster answers over HTTP, from its first moment on: the log as soon
//! as it can be read, and whether the process is ready.
//!
//! A replica that stands by is ready too: it serves the log, and an update of the replicas, one after
//! another, has to go on past it. It takes no journals, because it does not listen for them; who
//! reaches it through the Service is refused at once and reaches the writer on the next try.

use std::{convert::Infallible, sync::Arc, time::Duration};

use aegis_core::AgentId;
use aegis_identity::SvidSource;
use axum::{
    Json, Router,
    extract::{Query, Request, State, rejection::QueryRejection},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use parking_lot::RwLock;
use serde::Deserialize;
use serde_json::json;
use tower::ServiceExt as _;

use crate::{
    Ledger, router,
    trust::{TrustError, Trusted},
};

/// How long the store may take to say that it is there.
const PATIENCE: Duration = Duration::from_secs(2);
/// The most agents on a page, and how many there are where nobody says.
const AGENTS: (usize, usize) = (1_000, 100);

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
pub(crate) struct Front {
    shown: Arc<RwLock<Shown>>,
    trusted: Trusted,
}

impl Front {
    /// Nothing is there yet.
    pub(crate) fn new(trusted: Trusted) -> Self {
        let shown = Shown { ledger: None, source: None, role: Role::None };
        Self { shown: Arc::new(RwLock::new(shown)), trusted }
    }

    /// Shows this log from now on.
    pub(crate) fn show(&self, ledger: Ledger) {
        let routes = router(ledger.clone());
        if let Err(error) = self.trusted.register(ledger.registry()) {
            tracing::error!(%error, "the fold of trust is not counted");
        }
        self.shown.write().ledger = Some((ledger, routes));
    }

    /// Whether a log is shown.
    pub(crate) fn shows(&self) -> bool {
        self.shown.read().ledger.is_some()
    }

    /// The SVID without which this process is not ready.
    pub(crate) fn identify(&self, source: Arc<SvidSource>) {
        self.shown.write().source = Some(source);
    }

    /// What it does from now on.
    pub(crate) fn act(&self, role: Role) {
        self.shown.write().role = role;
    }

    /// The routes: its own, and the log's.
    pub(crate) fn routes(self) -> Router {
        Router::new()
            .route("/readyz", get(ready))
            .route("/v1/trust", get(trust))
            .fallback(forward)
            .with_state(self)
    }

    async fn ready(&self) -> (bool, Role) {
        let (ledger, identified, role) = {
            let shown = self.shown.read();
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

/// Which agents are asked for. A misspelt parameter is an error and not a wider answer.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    agent: Option<String>,
    after: Option<String>,
    limit: Option<usize>,
}

/// The trust in agents, as a replica that writes or stands by has folded it; `as_of` and `role` say
/// how far, and which.
async fn trust(
    State(front): State<Front>,
    wanted: Result<Query<Wanted>, QueryRejection>,
) -> Response {
    let problem = |status, why: String| (status, Json(json!({ "error": why }))).into_response();
    let wanted = match wanted {
        Ok(Query(wanted)) => wanted,
        Err(error) => return problem(StatusCode::BAD_REQUEST, error.body_text()),
    };
    let (most, usual) = AGENTS;
    let limit = wanted.limit.unwrap_or(usual);
    if !(1..=most).contains(&limit) {
        return problem(StatusCode::BAD_REQUEST, format!("limit is 1 to {most}"));
    }
    let named = |name: Option<String>| name.map(|name| name.parse::<AgentId>()).transpose();
    let (agent, after) = match (named(wanted.agent), named(wanted.after)) {
        (Ok(agent), Ok(after)) => (agent, after),
        (Err(error), _) | (_, Err(error)) => {
            return problem(StatusCode::BAD_REQUEST, error.to_string());
        }
    };
    let role = front.shown.read().role.as_str();
    let page = match agent {
        Some(agent) => front.trusted.of(&agent),
        None => front.trusted.page(after.as_ref(), limit),
    };
    match page {
        Ok(page) => Json(json!({
            "as_of": page.as_of, "role": role, "agents": page.agents, "next": page.next,
        }))
        .into_response(),
        Err(TrustError::Store(error)) => {
            tracing::error!(%error, "trust cannot be told");
            problem(StatusCode::SERVICE_UNAVAILABLE, "the log cannot be read now".to_owned())
        }
        Err(error) => problem(StatusCode::SERVICE_UNAVAILABLE, error.to_string()),
    }
}

async fn forward(State(front): State<Front>, request: Request) -> Result<Response, Infallible> {
    let routes = front.shown.read().ledger.as_ref().map(|(_, routes)| routes.clone());
    match routes {
        Some(routes) => routes.oneshot(request).await,
        None => {
            let why = json!({ "error": "the log is not open yet" });
            Ok((StatusCode::SERVICE_UNAVAILABLE, Json(why)).into_response())
        }
    }
}
