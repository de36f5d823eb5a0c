//! The control socket: what people and thin clients ask of the daemon, and metrics beside it.

use std::sync::Arc;

use aegis_api::control::{
    ActionQuestion, AgentOrder, AgentStatus, ApprovalView, Done, Explanation, LedgerStatus, Order,
    PinRequest, PolicyStatus, Problem, Status, ToolView, TrustAdjustment, TrustView,
    UpstreamStatus, VoteRequest, VoteView,
};
use aegis_audit::{Draft, Kind, Outcome};
use aegis_core::{
    AgentId,
    action::{Action, ActionKind, Protocol},
    approval::{Factor, Vote},
    decision::Reason,
    policy::Scope,
};
use aegis_kernel::{Context, approvals::Case, explain::explain};
use aegis_policy::PolicyState;
use aegis_sidecar::{Attest as _, Attested};
use anyhow::Context as _;
use axum::{
    Json, Router,
    extract::{ConnectInfo, DefaultBodyLimit, Path as UrlPath, State, connect_info::Connected},
    http::{StatusCode, header},
    middleware::from_fn_with_state,
    response::{IntoResponse, Response},
    routing::{get, post},
    serve::IncomingStream,
};
use prometheus::{Encoder as _, TextEncoder};
use serde_json::{Value, json};
use tokio::net::{TcpListener, UnixListener};

use super::{attest::now, daemon::Daemon};

mod people;
mod wrap;

pub(super) use people::read_totp;
pub(super) use wrap::wrap_line;

use people::{advisory, approver, by_hand, factor, for_operators, refuse_agents, want_code};

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

/// The listener with the attestation that each connection gets.
struct Attesting {
    listener: UnixListener,
    daemon: Arc<Daemon>,
}

impl axum::serve::Listener for Attesting {
    type Io = tokio::net::UnixStream;
    type Addr = Asker;

    async fn accept(&mut self) -> (Self::Io, Self::Addr) {
        loop {
            match self.listener.accept().await {
                Ok((stream, _)) => {
                    let uid = stream.peer_cred().ok().map(|credentials| credentials.uid());
                    let attested = self.daemon.attest.unix(&stream);
                    return (stream, Asker { uid, attested });
                }
                Err(error) => {
                    tracing::warn!(%error, "the control socket cannot accept");
                    tokio::time::sleep(std::time::Duration::from_millis(50)).await;
                }
            }
        }
    }

    fn local_addr(&self) -> std::io::Result<Self::Addr> {
        Ok(Asker { uid: None, attested: Err(Reason::IdentityMissing) })
    }
}

impl Connected<IncomingStream<'_, Attesting>> for Asker {
    fn connect_info(stream: IncomingStream<'_, Attesting>) -> Self {
        stream.remote_addr().clone()
    }
}

/// Serves the control socket and the admin port; ends only on an error.
pub(super) fn serve(
    daemon: Arc<Daemon>,
    control: &UnixListener,
    admin: &TcpListener,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + use<>> {
    let ledger = aegis_ledger::Ledger::of_journal(daemon.kernel.journal().clone())?;
    let listener = UnixListener::from_std(rustix_clone(control)?)?;
    let admin = TcpListener::from_std(clone_tcp(admin)?)?;
    let app = Router::new()
        .route("/v1/status", get(status))
        .route("/v1/approvals", get(approvals))
        .route("/v1/approvals/{id}", get(approval).post(vote))
        .route("/v1/trust", get(trust).post(adjust_trust))
        .route("/v1/explain", post(explain_action))
        .route("/v1/tools", get(tools).post(pin_tool))
        .route("/v1/agents", post(order))
        .route("/v1/reload", post(reload))
        .with_state(Arc::clone(&daemon))
        .merge(aegis_ledger::router(ledger))
        .layer(from_fn_with_state(Arc::clone(&daemon), for_operators))
        .merge(Router::new().route("/v1/wrap", post(wrap::wrap)).with_state(Arc::clone(&daemon)))
        .layer(DefaultBodyLimit::max(4 << 20));
    let health = Router::new()
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(Arc::clone(&daemon));
    let attesting = Attesting { listener, daemon };
    Ok(async move {
        let control = axum::serve(attesting, app.into_make_service_with_connect_info::<Asker>());
        let admin = axum::serve(admin, health);
        tokio::select! {
            ended = control.into_future() => ended.context("the control socket has stopped"),
            ended = admin.into_future() => ended.context("the admin port has stopped"),
        }
    })
}

fn rustix_clone(listener: &UnixListener) -> std::io::Result<std::os::unix::net::UnixListener> {
    use std::os::fd::AsFd as _;
    Ok(listener.as_fd().try_clone_to_owned()?.into())
}

fn clone_tcp(listener: &TcpListener) -> std::io::Result<std::net::TcpListener> {
    use std::os::fd::AsFd as _;
    Ok(listener.as_fd().try_clone_to_owned()?.into())
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

async fn status(State(daemon): Shared) -> Answer<Status> {
    Ok(Json(read_status(&daemon).await?))
}

async fn read_status(daemon: &Daemon) -> Result<Status, Failure> {
    let kernel = &daemon.kernel;
    let state = kernel.state();
    let upstreams: Vec<UpstreamStatus> = daemon
        .routes
        .lock()
        .iter()
        .map(|(key, listening)| upstream_status(key, listening))
        .collect();
    let agents = state.registry.agents().map(|(id, registration)| {
        let (trust, _) = kernel.trust(id);
        let thresholds = state.thresholds.of(id.namespace());
        AgentStatus {
            id: id.clone(),
            sponsor: registration.sponsor.to_string(),
            trust: trust.score().get(),
            quarantined: state.quarantined.contains(id) || trust.is_critical(thresholds),
            revoked: state.revoked.contains(id),
        }
    });
    let agents: Vec<AgentStatus> = agents.collect();
    let journal = kernel.journal();
    let size = journal.reader().head().await?.size;
    Ok(Status {
        version: env!("CARGO_PKG_VERSION").into(),
        pid: std::process::id(),
        started_at: daemon.started_at,
        trust_domain: daemon.trust_domain.to_string(),
        config: daemon.config.display().to_string(),
        audit: format!("{:?}", daemon.audit).to_lowercase(),
        advisory: advisory(daemon),
        not_covered: not_covered(daemon, &upstreams),
        upstreams,
        policies: daemon.policies.lock().iter().map(policy_status).collect(),
        agents,
        ledger: LedgerStatus {
            place: daemon.location.to_string(),
            origin: journal.verifier().name().to_owned(),
            size,
            verifier_key: journal.verifier().to_string(),
        },
        problems: daemon.problems.lock().clone(),
    })
}

fn upstream_status(key: &(String, String), listening: &super::daemon::Listening) -> UpstreamStatus {
    let tools = listening.route.pins.tools();
    let target = listening.route.target.as_ref();
    UpstreamStatus {
        name: key.1.clone(),
        namespace: key.0.clone(),
        address: match (listening.address, target) {
            (Some(address), Some(target)) => format!("http://{address}{}", target.path()),
            _ => wrap_line(&listening.route),
        },
        target: match (target, &listening.route.spec.command) {
            (Some(target), _) => target.url(),
            (None, Some(command)) => format!("`{}`, started by the daemon", command.program),
            (None, None) => "a command of its client".into(),
        },
        pinned: tools.iter().filter(|(_, tool)| !tool.is_quarantined()).count(),
        quarantined: tools.iter().filter(|(_, tool)| tool.is_quarantined()).count(),
    }
}

fn policy_status(status: &aegis_policy::PolicyStatus) -> PolicyStatus {
    PolicyStatus {
        name: status.policy.to_string(),
        state: match status.state {
            PolicyState::Ready => "ready",
            PolicyState::LastGood => "last_good",
            PolicyState::Failed => "failed",
        }
        .into(),
        message: status.message.clone(),
    }
}

/// What is configured and still not governed.
fn not_covered(daemon: &Daemon, upstreams: &[UpstreamStatus]) -> Vec<String> {
    let mut gaps = vec![
        "servers that an agent starts or reaches without Aegis: on one machine nothing forces its traffic through here".to_owned(),
    ];
    if upstreams.is_empty() {
        gaps.push(format!("no AgentUpstream is configured in {}", daemon.config.display()));
    }
    gaps
}

async fn approvals(State(daemon): Shared) -> Json<Vec<ApprovalView>> {
    let now = now();
    Json(daemon.kernel.approvals().iter().map(|case| view(case, now)).collect())
}

async fn approval(State(daemon): Shared, UrlPath(id): UrlPath<String>) -> Answer<ApprovalView> {
    find(&daemon, &id).map(Json)
}

fn find(daemon: &Daemon, id: &str) -> Result<ApprovalView, Failure> {
    let case = daemon.kernel.approvals().into_iter().find(|case| case.approval.request.id == id);
    let missing = || {
        let message = format!("there is no approval `{id}`; list them with `aegis approvals list`");
        Failure(StatusCode::NOT_FOUND, message)
    };
    case.map(|case| view(&case, now())).ok_or_else(missing)
}

fn view(case: &Case, now: aegis_core::Timestamp) -> ApprovalView {
    let (request, question) = (&case.approval.request, &case.question);
    let text = |name: &str| question.action.get(name).and_then(Value::as_str).map(str::to_owned);
    ApprovalView {
        id: request.id.clone(),
        state: case.approval.state(now).as_str().into(),
        agent: request.requester.clone(),
        sponsor: request.sponsor.as_ref().map(ToString::to_string),
        server: text("server").unwrap_or_default(),
        method: text("method").unwrap_or_default(),
        tool: text("tool"),
        arguments: question.arguments.clone(),
        digest: request.action,
        message: question.message.clone(),
        reason: question.reason.clone(),
        risk: question.risk,
        trust: question.trust,
        tier: question.tier.clone(),
        quorum: request.need.quorum,
        mfa: request.need.mfa,
        votes: case.approval.votes.iter().map(vote_view).collect(),
        requested_at: request.requested_at,
        expires_at: request.expires_at,
    }
}

fn vote_view(vote: &Vote) -> VoteView {
    VoteView {
        approver: vote.approver.clone(),
        approve: vote.approve,
        factor: match vote.factor {
            Factor::None => "none",
            Factor::Account => "account",
            Factor::Totp => "totp",
        }
        .into(),
        comment: vote.comment.clone(),
    }
}

async fn vote(
    State(daemon): Shared,
    ConnectInfo(asker): ConnectInfo<Asker>,
    UrlPath(id): UrlPath<String>,
    Json(request): Json<VoteRequest>,
) -> Answer<ApprovalView> {
    find(&daemon, &id)?;
    refuse_agents(&daemon, &asker)?;
    if request.approve {
        want_code(&daemon, request.totp.as_deref())?;
    }
    let factor = factor(&daemon, &asker, request.totp.as_deref())?;
    let (approver, at) = (approver(&asker)?, now());
    let vote = Vote { approver, approve: request.approve, factor, comment: request.comment, at };
    daemon.kernel.vote(&id, vote).await?;
    find(&daemon, &id).map(Json)
}

fn trust_view(daemon: &Daemon, agent: &AgentId) -> TrustView {
    let (trust, as_of) = daemon.kernel.trust(agent);
    let state = daemon.kernel.state();
    let thresholds = state.thresholds.of(agent.namespace());
    let name = |value: Value| value.as_str().unwrap_or_default().to_owned();
    TrustView {
        agent: agent.clone(),
        score: trust.score().get(),
        standing: name(json!(trust.score().standing())),
        stage: name(json!(trust.score().stage())),
        a: trust.a,
        b: trust.b,
        below_critical: trust.probability_below(thresholds.critical_score).get(),
        quarantined: trust.is_critical(thresholds) || state.quarantined.contains(agent),
        as_of,
    }
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
    let by = by_hand(&daemon, &asker, code, why)?;
    let posterior = (adjustment.a, adjustment.b);
    daemon.kernel.adjust_trust(&adjustment.agent, posterior, &by).await?;
    Ok(Json(trust_view(&daemon, &adjustment.agent)))
}

async fn explain_action(
    State(daemon): Shared,
    Json(question): Json<ActionQuestion>,
) -> Answer<Explanation> {
    let state = daemon.kernel.state();
    let agent = match question.agent {
        Some(agent) => agent,
        None => {
            let mut agents = state.registry.agents();
            match (agents.next(), agents.next()) {
                (Some((only, _)), None) => only.clone(),
                _ => {
                    return Err(Failure(
                        StatusCode::BAD_REQUEST,
                        "there is not exactly one agent; name one with --agent".into(),
                    ));
                }
            }
        }
    };
    let not_after = now().plus(std::time::Duration::from_secs(60));
    let Some(principal) = state.registry.principal(&agent, not_after) else {
        return Err(Failure(
            StatusCode::NOT_FOUND,
            format!("no AgentIdentity is registered for {agent}"),
        ));
    };
    let method = question.method.unwrap_or_else(|| "tools/call".into());
    let known = aegis_protocol::mcp::ClientMethod::from_name(&method);
    let kind = known.map_or(ActionKind::ServerRequest, aegis_protocol::mcp::ClientMethod::kind);
    let route = daemon.routes.lock().iter().find(|(key, _)| key.1 == question.server).map(
        |(key, listening)| {
            (
                key.0.clone(),
                question.tool.as_deref().and_then(|tool| listening.route.pins.pin(tool)),
            )
        },
    );
    let (namespace, pin) = route.unwrap_or_else(|| ("default".into(), None));
    let action = Action {
        kind,
        protocol: Protocol::Mcp,
        method,
        server: question.server,
        tool: question.tool,
        tool_pin: pin,
        resource: question.resource,
        arguments: question.arguments,
    };
    let request = Context::new(&principal, Scope::Mesh, &namespace).about(&action);
    let judgement = daemon.kernel.evaluate(&request);
    Ok(Json(explain(&request, &judgement, state.thresholds.of(agent.namespace()))))
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
    let by = by_hand(&daemon, &asker, request.totp.as_deref(), None)?;
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
    let by = by_hand(&daemon, &asker, order.totp.as_deref(), Some(&order.reason))?;
    let mut state = (*daemon.kernel.state()).clone();
    let (kind, word) = match order.order {
        Order::Quarantine => (Kind::Configuration, "quarantine"),
        Order::Release => (Kind::Configuration, "release"),
        Order::Revoke => (Kind::IdentityRevoked, "revoke"),
    };
    match order.order {
        Order::Quarantine => drop(state.quarantined.insert(order.agent.clone())),
        Order::Release => drop(state.quarantined.remove(&order.agent)),
        Order::Revoke => drop(state.revoked.insert(order.agent.clone())),
    }
    // A stop takes effect even if its record does not get to the disk.
    daemon.kernel.update(state).await?;
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
