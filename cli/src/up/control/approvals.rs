//! Approvals: what waits for a human, and the answers.

use aegis_api::control::{ApprovalView, VoteRequest, VoteView};
use aegis_core::approval::{Factor, Vote};
use aegis_kernel::approvals::Case;
use axum::{
    Json,
    extract::{ConnectInfo, Path as UrlPath, State},
    http::StatusCode,
};
use serde_json::Value;

use super::{
    Answer, Asker, Failure, Shared,
    people::{approver, factor, refuse_agents, want_code},
};
use crate::up::{attest::now, daemon::Daemon, guesses::Confirms};

pub(super) async fn approvals(State(daemon): Shared) -> Json<Vec<ApprovalView>> {
    let now = now();
    Json(daemon.kernel.approvals().iter().map(|case| view(case, now)).collect())
}

pub(super) async fn approval(
    State(daemon): Shared,
    UrlPath(id): UrlPath<String>,
) -> Answer<ApprovalView> {
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
        resource: question.resource.clone(),
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

pub(super) async fn vote(
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
    let confirms = if request.approve { Confirms::More } else { Confirms::Stop };
    let factor = factor(&daemon, &asker, request.totp.as_deref(), confirms).await?;
    let (approver, at) = (approver(&asker)?, now());
    let vote = Vote { approver, approve: request.approve, factor, comment: request.comment, at };
    daemon.kernel.vote(&id, vote).await?;
    find(&daemon, &id).map(Json)
}
