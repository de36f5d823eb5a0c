//! Breaking the glass: a person lifts the policies for one agent, for a reason and a limited time.
//!
//! It is recorded before it counts, every action under it is recorded as that, and it ends by itself, by
//! order, or with the daemon. Who is not known, revoked or stopped is not freed.

use std::{sync::Arc, time::Duration};

use aegis_api::control::{Done, GlassOrder, MAX_GLASS_MINUTES, MIN_GLASS_REASON};
use aegis_audit::{Draft, Kind, Outcome};
use aegis_core::{AgentId, Timestamp};
use aegis_kernel::State as KernelState;
use axum::{
    Json,
    extract::{ConnectInfo, State},
    http::StatusCode,
};

use super::{Answer, Asker, Failure, Shared, people::by_hand};
use crate::up::{attest::now, daemon::Daemon, guesses::Confirms};

pub(super) async fn glass(
    State(daemon): Shared,
    ConnectInfo(asker): ConnectInfo<Asker>,
    Json(order): Json<GlassOrder>,
) -> Answer<Done> {
    check(&daemon, &order)?;
    let breaks = order.minutes > 0;
    let confirms = if breaks { Confirms::More } else { Confirms::Stop };
    let why = Some(order.reason.as_str());
    let by = by_hand(&daemon, &asker, order.totp.as_deref(), why, confirms).await?;
    let at = now();
    let until = at.plus(Duration::from_secs(u64::from(order.minutes) * 60));
    let mut draft = Draft::new(Kind::Configuration, at, Outcome::Recorded);
    draft.agent_id = Some(order.agent.to_string());
    let word = if breaks { "break_glass" } else { "end_break_glass" };
    draft.detail.insert("order".into(), word.into());
    by.describe(&mut draft);
    if !breaks {
        // An end takes effect even if its record does not get to the disk.
        let mend = |state: &mut KernelState| {
            state.glass.remove(&order.agent);
        };
        daemon.kernel.update_with(mend).await?;
        return Ok(Json(Done { index: daemon.kernel.record(draft).await? }));
    }
    draft.detail.insert("until".into(), until.to_string().into());
    let index = daemon.kernel.record(draft).await?;
    let lift = |state: &mut KernelState| {
        state.glass.insert(order.agent.clone(), until);
    };
    daemon.kernel.update_with(lift).await?;
    tracing::warn!(agent = %order.agent, %until, "the glass is broken: policies are lifted");
    tokio::spawn(end_in_time(daemon, order.agent, until));
    Ok(Json(Done { index }))
}

fn check(daemon: &Daemon, order: &GlassOrder) -> Result<(), Failure> {
    let refuse = |message: String| Err(Failure(StatusCode::BAD_REQUEST, message));
    if order.minutes > MAX_GLASS_MINUTES {
        return refuse(format!("policies are lifted for at most {MAX_GLASS_MINUTES} minutes"));
    }
    if order.minutes > 0 && order.reason.trim().chars().count() < MIN_GLASS_REASON {
        return refuse(format!(
            "say why in at least {MIN_GLASS_REASON} characters; it is recorded"
        ));
    }
    if daemon.kernel.state().registry.find(&order.agent).is_none() {
        return refuse(format!("no agent {} is registered; see `aegis agents list`", order.agent));
    }
    Ok(())
}

/// Whatever was opened under it is judged anew when its time is over.
async fn end_in_time(daemon: Arc<Daemon>, agent: AgentId, until: Timestamp) {
    tokio::select! {
        () = tokio::time::sleep(until.since(now())) => {}
        () = daemon.draining() => return,
    }
    let end = |state: &mut KernelState| {
        // Another order may have lengthened it meanwhile.
        if state.glass.get(&agent) == Some(&until) {
            state.glass.remove(&agent);
        }
    };
    if let Err(error) = daemon.kernel.update_with(end).await {
        tracing::warn!(%error, "the end of broken glass was not recorded");
    }
}
