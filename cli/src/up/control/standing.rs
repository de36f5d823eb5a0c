//! How the daemon stands: what is up, what is not covered, and what looks wrong.

use std::collections::{BTreeMap, BTreeSet};

use aegis_api::control::{AgentStatus, LedgerStatus, PolicyStatus, Status, UpstreamStatus};
use aegis_policy::PolicyState;
use axum::{Json, extract::State};

use super::{Answer, Failure, Shared, people::advisory, wrap::wrap_line};
use crate::{
    names::{self, Tools},
    up::daemon::{Daemon, Listening},
};

pub(super) async fn status(State(daemon): Shared) -> Answer<Status> {
    Ok(Json(read_status(&daemon).await?))
}

pub(super) async fn read_status(daemon: &Daemon) -> Result<Status, Failure> {
    let kernel = &daemon.kernel;
    let state = kernel.state();
    let upstreams: Vec<UpstreamStatus> = daemon
        .routes
        .lock()
        .iter()
        .map(|(key, listening)| upstream_status(key, listening))
        .collect();
    let now = kernel.now();
    let agents = state.registry.agents().map(|(id, registration)| {
        let (trust, _) = kernel.trust(id);
        let thresholds = state.thresholds.of(id.namespace());
        AgentStatus {
            id: id.clone(),
            sponsor: registration.sponsor.to_string(),
            trust: trust.score().get(),
            quarantined: state.is_stopped(id) || trust.is_critical(thresholds),
            revoked: state.revoked.contains(id),
            glass_broken_until: state.glass_broken_until(id, now),
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
        warnings: warnings(daemon),
    })
}

/// Names in policies that nothing here is called by.
fn warnings(daemon: &Daemon) -> Vec<String> {
    let mut servers: BTreeMap<String, Tools> = BTreeMap::new();
    for ((_, name), listening) in daemon.routes.lock().iter() {
        let known = servers.entry(name.clone()).or_default();
        let tools = listening.route.pins.tools().into_iter();
        let seen: BTreeSet<String> =
            tools.filter(|(_, tool)| tool.seen.is_some()).map(|(name, _)| name).collect();
        known.complete = !seen.is_empty();
        known.names.extend(seen);
    }
    names::warnings(&daemon.last.lock().policies, &servers)
}

fn upstream_status(key: &(String, String), listening: &Listening) -> UpstreamStatus {
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
