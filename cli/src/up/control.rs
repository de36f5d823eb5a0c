//! The control socket: what people and thin clients ask of the daemon, and metrics beside it.

use std::sync::Arc;

use aegis_api::control::{
    AgentOrder, Done, Order, PinRequest, Problem, Status, ToolView, TrustAdjustment, TrustView,
};
use aegis_audit::{Draft, Kind, Outcome};
use aegis_core::{AgentId, decision::Reason};
use aegis_sidecar::Attested;
use axum::{
    Json, Router,
    extract::{ConnectInfo, DefaultBodyLimit, State},
    http::{StatusCode, header},
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::{get, post},
};
use prometheus::{Encoder as _, TextEncoder};

use super::{attest::now, daemon::Daemon, guesses::Confirms};

mod approvals;
mod console;
mod events;
mod gate;
mod glass;
mod listener;
mod people;
mod question;
mod standing;
mod wrap;

pub(super) use console::{Sessions, link as console_link};
pub(super) use gate::Gates;
pub(super) use listener::serve;
pub(super) use people::{Enrolled, advisory, read_totp};
pub(super) use wrap::wrap_line;

use people::{by_hand, for_operators};
use standing::read_status;

/// Who asks: what the kernel of this machine says of the other end.
#[derive(Clone, Debug)]
pub(super) struct Asker {
    uid: Option<u32>,
    attested: Result<Attested, Reason>,
}

/// A refusal in one sentence.
struct Failure(StatusCode, String);

type Answer<T> = Result<Json<T>, Failure>;
type Shared = State<Arc<Daemon>>;

impl IntoResponse for Failure {
    fn into_response(self) -> Response {
        (self.0, Json(Problem { message: self.1 })).into_response()
    }
}

impl<E: std::fmt::Display> From<E> for Failure {
    fn from(error: E) -> Self {
        Self(StatusCode::CONFLICT, error.to_string())
    }
}

/// What the control socket answers.
fn control(daemon: &Arc<Daemon>) -> anyhow::Result<Router> {
    let ledger = aegis_ledger::Ledger::of_journal(daemon.kernel.journal().clone())?;
    Ok(Router::new()
        .route("/v1/status", get(standing::status))
        .route("/v1/approvals", get(approvals::approvals))
        .route("/v1/approvals/{id}", get(approvals::approval).post(approvals::vote))
        .route("/v1/events", get(events::events))
        .route("/v1/trust", get(trust).post(adjust_trust))
        .route("/v1/explain", post(question::explain_action))
        .route("/v1/tools", get(tools).post(pin_tool))
        .route("/v1/agents", post(order))
        .route("/v1/glass", post(glass::glass))
        .route("/v1/reload", post(reload))
        .route("/v1/console", post(console::make_link))
        .with_state(Arc::clone(daemon))
        .merge(aegis_ledger::router(ledger))
        .layer(from_fn_with_state(Arc::clone(daemon), for_operators))
        .merge(Router::new().route("/v1/wrap", post(wrap::wrap)).with_state(Arc::clone(daemon)))
        .layer(DefaultBodyLimit::max(4 << 20)))
}

/// What the admin port answers.
fn health(daemon: &Arc<Daemon>) -> anyhow::Result<Router> {
    Ok(Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(Arc::clone(daemon))
        .merge(console::console(daemon)?))
}

async fn metrics(State(daemon): Shared) -> Response {
    let mut text = Vec::new();
    let families = daemon.metrics.gather();
    if let Err(error) = TextEncoder::new().encode(&families, &mut text) {
        return (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response();
    }
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], text).into_response()
}

async fn ready(State(daemon): Shared) -> (StatusCode, &'static str) {
    if daemon.kernel.engine().version() > 0 {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "no policies loaded yet\n")
    }
}

fn trust_view(daemon: &Daemon, agent: &AgentId) -> TrustView {
    let (trust, as_of) = daemon.kernel.trust(agent);
    let state = daemon.kernel.state();
    let thresholds = state.thresholds.of(agent.namespace());
    let mut view = TrustView::of(agent.clone(), &trust, thresholds, as_of);
    view.quarantined |= state.is_stopped(agent);
    view
}

async fn trust(State(daemon): Shared) -> Json<Vec<TrustView>> {
    let mut agents: Vec<AgentId> =
        daemon.kernel.state().registry.agents().map(|(id, _)| id.clone()).collect();
    agents.extend(daemon.kernel.trusted_agents().into_iter().map(|(id, _)| id));
    agents.sort();
    agents.dedup();
    Json(agents.iter().map(|agent| trust_view(&daemon, agent)).collect())
}

async fn adjust_trust(
    State(daemon): Shared,
    ConnectInfo(asker): ConnectInfo<Asker>,
    Json(adjustment): Json<TrustAdjustment>,
) -> Answer<TrustView> {
    let (code, why) = (adjustment.totp.as_deref(), Some(adjustment.reason.as_str()));
    let by = by_hand(&daemon, &asker, code, why, Confirms::More).await?;
    let posterior = (adjustment.a, adjustment.b);
    daemon.kernel.adjust_trust(&adjustment.agent, posterior, &by).await?;
    Ok(Json(trust_view(&daemon, &adjustment.agent)))
}

async fn tools(State(daemon): Shared) -> Json<Vec<ToolView>> {
    let mut views = Vec::new();
    for ((_, server), listening) in daemon.routes.lock().iter() {
        for (tool, known) in listening.route.pins.tools() {
            let Some(seen) = known.seen.or(known.pinned) else { continue };
            views.push(ToolView {
                server: server.clone(),
                tool,
                pinned: known.pinned,
                seen,
                quarantined: known.is_quarantined(),
                warnings: known.warnings,
            });
        }
    }
    Json(views)
}

async fn pin_tool(
    State(daemon): Shared,
    ConnectInfo(asker): ConnectInfo<Asker>,
    Json(request): Json<PinRequest>,
) -> Answer<Done> {
    let by = by_hand(&daemon, &asker, request.totp.as_deref(), None, Confirms::More).await?;
    let route = daemon
        .routes
        .lock()
        .iter()
        .find(|(key, _)| key.1 == request.server)
        .map(|(_, l)| Arc::clone(&l.route));
    let Some(route) = route else {
        return Err(Failure(
            StatusCode::NOT_FOUND,
            format!("there is no upstream `{}`", request.server),
        ));
    };
    let mut draft = route
        .pins
        .agree(&request.tool, request.digest, now())
        .map_err(|message| Failure(StatusCode::CONFLICT, message))?;
    by.describe(&mut draft);
    let index = daemon.kernel.record(draft).await?;
    route.pins.put(&request.tool, request.digest);
    daemon.kernel.announce_change();
    Ok(Json(Done { index }))
}

async fn order(
    State(daemon): Shared,
    ConnectInfo(asker): ConnectInfo<Asker>,
    Json(order): Json<AgentOrder>,
) -> Answer<Done> {
    let (kind, word, confirms) = match order.order {
        Order::Quarantine => (Kind::Configuration, "quarantine", Confirms::Stop),
        Order::Release => (Kind::Configuration, "release", Confirms::More),
        Order::Revoke => (Kind::IdentityRevoked, "revoke", Confirms::Stop),
    };
    let why = Some(order.reason.as_str());
    let by = by_hand(&daemon, &asker, order.totp.as_deref(), why, confirms).await?;
    let change = |state: &mut aegis_kernel::State| {
        let agent = order.agent.clone();
        let _ = match order.order {
            Order::Quarantine => state.quarantined.insert(agent),
            Order::Release => state.quarantined.remove(&agent),
            Order::Revoke => state.revoked.insert(agent),
        };
    };
    // A stop takes effect even if its record does not get to the disk.
    daemon.kernel.update_with(change).await?;
    if order.order == Order::Revoke {
        let subject = aegis_ca::Subject::Id(order.agent.spiffe_id().clone());
        daemon.authority.revoke(subject, &order.reason).await?;
    }
    let mut draft = Draft::new(kind, now(), Outcome::Recorded);
    draft.agent_id = Some(order.agent.to_string());
    draft.detail.insert("order".into(), word.into());
    by.describe(&mut draft);
    Ok(Json(Done { index: daemon.kernel.record(draft).await? }))
}

async fn reload(State(daemon): Shared) -> Answer<Status> {
    daemon.reload().await.map_err(|error| Failure(StatusCode::CONFLICT, format!("{error:#}")))?;
    Ok(Json(read_status(&daemon).await?))
}
