//! What waits for a person in this pod is told to the operator, which shows it and tells the answers.
//!
//! The kernel stays the one that decides: an answer is a vote under the name that the API server has
//! authenticated, and the kernel's rules on quorum, second answers, expiry and single use hold. Where
//! the operator is away, nobody is asked, and what waits expires. Connected again, every open case is
//! told anew, and every answer comes anew; neither counts twice.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use aegis_api::approvals::proto::{
    self, Answer, Reply, State, approvals_client::ApprovalsClient, reply::What,
};
use aegis_core::approval::{ApprovalState, Factor, Vote};
use aegis_kernel::{Kernel, VoteError, approvals::Case};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

/// The shortest and the longest wait before connecting again.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));
/// How many cases may be on their way.
const WINDOW: usize = 64;

/// Asks people through the operator, until `stop`.
pub async fn ask(operator: Channel, kernel: Arc<Kernel>, stop: CancellationToken) {
    let (shortest, longest) = BACKOFF;
    let mut wait = shortest;
    loop {
        let ended = tokio::select! {
            () = stop.cancelled() => return,
            ended = one_stream(operator.clone(), &kernel, &mut wait) => ended,
        };
        tracing::info!(why = ended, "the operator asks nobody for this pod; trying again");
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        wait = wait.saturating_mul(2).min(longest);
    }
}

/// Asks over one stream; returns why it ended.
async fn one_stream(operator: Channel, kernel: &Kernel, wait: &mut Duration) -> String {
    let (tell, told) = mpsc::channel(WINDOW);
    let mut client = ApprovalsClient::new(operator);
    let mut replies = match client.ask(ReceiverStream::new(told)).await {
        Ok(response) => response.into_inner(),
        Err(status) => return format!("the operator does not answer: {}", status.message()),
    };
    let mut changes = kernel.changes();
    changes.mark_changed();
    let mut telling = Telling::default();
    loop {
        tokio::select! {
            // Replies are read while cases wait to be sent: neither side holds the other up.
            room = tell.reserve(), if !telling.waiting.is_empty() => match (room, telling.next()) {
                (Ok(room), Some(case)) => room.send(case),
                (Err(_), _) => return "the stream broke".to_owned(),
                (Ok(_), None) => {}
            },
            changed = changes.changed() => match changed {
                Ok(()) => telling.look(kernel),
                Err(_) => return "this pod ends".to_owned(),
            },
            reply = replies.message() => match reply {
                Ok(Some(Reply { what: Some(What::Answer(answer)) })) => {
                    *wait = BACKOFF.0;
                    if let Err(why) = cast(kernel, answer).await {
                        return why;
                    }
                }
                Ok(Some(Reply { what: Some(What::Refused(refused)) })) => {
                    tracing::warn!(id = refused.id, why = refused.why, "nobody is asked for an approval");
                }
                Ok(Some(Reply { what: None })) => {}
                Ok(None) => return "the operator has ended the stream".to_owned(),
                Err(status) => return format!("the stream broke: {}", status.message()),
            },
        }
    }
}

/// What the operator is told over one stream.
#[derive(Default)]
struct Telling {
    /// How each case was told last.
    told: HashMap<String, ApprovalState>,
    /// What is to be told, the oldest first.
    waiting: VecDeque<proto::Case>,
}

impl Telling {
    fn next(&mut self) -> Option<proto::Case> {
        self.waiting.pop_front()
    }

    /// Finds what is to be told. What could not be used any more anyway is told by its time.
    fn look(&mut self, kernel: &Kernel) {
        let now = kernel.now();
        let mut cases = kernel.approvals_where(|case| case.approval.request.expires_at > now);
        cases.reverse();
        let mut told = HashMap::with_capacity(cases.len());
        for case in &cases {
            let (id, state) = (&case.approval.request.id, case.approval.state(now));
            if self.told.get(id) != Some(&state) {
                self.waiting.push_back(shown(case, state));
            }
            told.insert(id.clone(), state);
        }
        self.told = told;
    }
}

/// A case as people are shown it: without arguments.
fn shown(case: &Case, state: ApprovalState) -> proto::Case {
    let (request, question) = (&case.approval.request, &case.question);
    let member = |name: &str| {
        question.action.get(name).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned()
    };
    let state = match state {
        ApprovalState::Pending => State::Pending,
        ApprovalState::Approved => State::Approved,
        ApprovalState::Denied => State::Denied,
        ApprovalState::Expired => State::Expired,
        ApprovalState::Consumed => State::Used,
    };
    proto::Case {
        id: request.id.clone(),
        requester: request.requester.to_string(),
        sponsor: request.sponsor.as_ref().map(ToString::to_string).unwrap_or_default(),
        action: request.action.to_string(),
        server: member("server"),
        method: member("method"),
        tool: member("tool"),
        reason: question.message.clone(),
        risk: u32::try_from(question.risk).unwrap_or(u32::MAX),
        tier: question.tier.clone(),
        quorum: request.need.quorum.max(1).into(),
        mfa: request.need.mfa,
        expires_at: request.expires_at.as_secs(),
        state: state.into(),
    }
}

/// Casts a person's vote. What the kernel refuses changes nothing; what it cannot record has to come
/// again.
async fn cast(kernel: &Kernel, answer: Answer) -> Result<(), String> {
    let vote = Vote {
        approver: answer.approver,
        approve: answer.approve,
        // The API server knows the approver by other means than the agent has.
        factor: Factor::Account,
        comment: None,
        at: kernel.now(),
    };
    match kernel.vote(&answer.id, vote).await {
        Ok(state) => {
            tracing::info!(id = answer.id, state = state.as_str(), "an approval was answered");
            Ok(())
        }
        Err(error @ (VoteError::Unknown(_) | VoteError::Refused(_))) => {
            tracing::debug!(%error, "an answer changes nothing");
            Ok(())
        }
        Err(error @ VoteError::Record(_)) => Err(error.to_string()),
    }
}
