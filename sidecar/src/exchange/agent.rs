//! What an A2A agent answers: its tasks are noted as the caller's, its lists show the caller's alone,
//! and a message's outcome is that of the task it began, which may come long after the answer.

use std::{sync::Arc, time::Instant};

use aegis_audit::entry::Outcome as Ended;
use aegis_core::decision::Reason;
use aegis_kernel::{Ending, Kernel, Permit, Receipt};
use aegis_protocol::{
    a2a::{
        self, Asked, Binding, ClientRequest, MEDIA_TYPE, Operation,
        answer::{Phase, Said, Spoken},
    },
    mcp::Era,
    redact,
};
use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;

use super::{Exchange, Released};
use crate::route::{Caller, Route};

/// What was asked of an agent, and what it has said so far.
#[derive(Debug)]
pub(super) struct Heard {
    pub(super) asked: Asked,
    /// Whether it has said anything.
    spoke: bool,
    /// Whether its HTTP status says that it failed.
    failed: bool,
    /// Whether it answers by a stream.
    streams: bool,
    /// What it said last of a task.
    last: Option<Spoken>,
}

impl Heard {
    /// Whether nothing has come yet.
    pub(super) const fn waits(&self) -> bool {
        !self.spoke
    }

    /// Whether it begins or continues a task, whose end is its outcome.
    const fn sends(&self) -> bool {
        matches!(self.asked.operation, Operation::SendMessage | Operation::SendStreamingMessage)
    }
}

/// A decision whose outcome is not known yet. Dropped, it stays unknown, and that is recorded.
pub(crate) struct Unfinished {
    kernel: Arc<Kernel>,
    receipt: Option<Receipt>,
    ending: Ending,
    started: Instant,
}

impl std::fmt::Debug for Unfinished {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Unfinished").finish_non_exhaustive()
    }
}

impl Unfinished {
    /// Writes the outcome.
    pub(crate) async fn conclude(mut self, result: Ended) {
        let Some(receipt) = self.receipt.take() else { return };
        self.ending.result = result;
        self.ending.micros = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        if let Err(error) = self.kernel.conclude(&receipt, &self.ending).await {
            tracing::error!(%error, "an outcome could not be recorded");
        }
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let Some(receipt) = self.receipt.take() else { return };
        let (kernel, ending) = (Arc::clone(&self.kernel), self.ending.clone());
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                if let Err(error) = kernel.conclude(&receipt, &ending).await {
                    tracing::error!(%error, "an outcome could not be recorded");
                }
            });
        }
    }
}

/// The outcome of a message whose task is so; none while it goes on.
const fn outcome(phase: Option<Phase>) -> Option<Ended> {
    match phase {
        // A task that waits for its client has had its turn.
        Some(Phase::Completed | Phase::Interrupted) => Some(Ended::Success),
        Some(Phase::Failed) => Some(Ended::Failure),
        Some(Phase::Open) | None => None,
    }
}

impl Exchange {
    /// Opens an exchange with an A2A agent and gives out the bytes to forward: those that were judged.
    #[must_use]
    pub(crate) fn open_request(
        route: Arc<Route>,
        caller: Caller,
        permit: Permit<ClientRequest>,
    ) -> (Bytes, Self) {
        let (request, receipt) = permit.into_parts();
        let (asked, action, bytes) = request.into_parts();
        // The era is MCP's; what has none of its sessions is never resumed.
        let mut exchange = Self::opened(route, caller, action, Era::Modern, receipt, bytes.len());
        exchange.id.clone_from(&asked.form.id);
        exchange.agent =
            Some(Heard { asked, spoke: false, failed: false, streams: false, last: None });
        (bytes, exchange)
    }

    /// Whether it is with an A2A agent.
    #[must_use]
    pub(crate) const fn is_of_agent(&self) -> bool {
        self.agent.is_some()
    }

    /// Notes how the answer begins; answers whether it may be a stream.
    pub(crate) fn note_answer(&mut self, status: StatusCode, streams: bool) -> bool {
        let Some(heard) = &mut self.agent else { return true };
        heard.failed = !status.is_success();
        heard.streams = streams && !heard.failed && heard.asked.operation.streams();
        heard.asked.operation.streams()
    }

    /// Whether an answer may be of this type.
    #[must_use]
    pub(crate) fn takes(&self, kind: &str) -> bool {
        kind == "application/json" || (self.is_of_agent() && kind == MEDIA_TYPE)
    }

    /// Whether the answer is a card, which the client may have already.
    #[must_use]
    pub(crate) fn awaits_card(&self) -> bool {
        self.agent.as_ref().is_some_and(|heard| heard.asked.operation.is_card())
    }

    /// Whether an empty answer is one.
    #[must_use]
    pub(crate) fn may_be_empty(&self) -> bool {
        let deletes = |heard: &Heard| heard.asked.operation == Operation::DeletePushConfig;
        self.agent.as_ref().is_some_and(deletes)
    }

    /// Looks at an answer, or one event of it, and says what leaves.
    pub(super) async fn agent_says(&mut self, bytes: Bytes) -> Result<Released, Reason> {
        let heard = self.agent.as_ref().ok_or(Reason::UpstreamMalformed)?;
        let (asked, failed, streams) = (heard.asked.clone(), heard.failed, heard.streams);
        let limits = self.route.response_limits();
        let said = a2a::answer::read(&asked, &bytes, limits, failed).map_err(|error| {
            tracing::warn!(server = self.route.name, %error, "an answer is withheld");
            Reason::UpstreamMalformed
        })?;
        let mut out = bytes;
        match &said {
            Said::Result(spoken) => {
                for one in spoken {
                    self.hear(one).await?;
                }
            }
            Said::Tasks => {
                let (tasks, agent) = (&self.route.tasks, &self.caller.principal.id);
                let own = |task: &str| tasks.owns(agent, task);
                out = a2a::tasks::filter(&asked, &out, tasks.count(agent), own)
                    .map_err(|_| Reason::UpstreamMalformed)?;
            }
            Said::Error(_) => {}
        }
        let redacted = match asked.form.binding {
            Binding::JsonRpc => self.redacted(out.clone())?,
            Binding::HttpJson => self.redacted_whole(out.clone())?,
        };
        // A card may be signed: it is released as it is, or not at all.
        if asked.operation.is_card() && redacted != out {
            return Err(Reason::ObligationUnmet);
        }
        out = redacted;
        self.note_released(&out);
        if let Some(heard) = &mut self.agent {
            heard.spoke = true;
        }
        match said {
            Said::Error(code) => {
                self.answered = true;
                self.conclude(Ended::Failure, None, Some(code)).await;
            }
            Said::Result(_) | Said::Tasks if streams => {}
            Said::Result(_) | Said::Tasks => {
                self.answered = true;
                self.end_of_stream().await;
            }
        }
        Ok(Released { to_client: Some(out), ..Released::default() })
    }

    /// Notes what is said of a task and a context: they are the caller's, and if it has ended, so has what began it.
    async fn hear(&mut self, spoken: &Spoken) -> Result<(), Reason> {
        if !self.route.tasks.claim(&self.caller.principal.id, spoken) {
            tracing::warn!(
                server = self.route.name,
                "the agent speaks of a task of another caller"
            );
            return Err(Reason::UpstreamMalformed);
        }
        // A message that belongs to no task ends none.
        let Some(task) = &spoken.task else { return Ok(()) };
        if let Some(result) = outcome(spoken.phase) {
            for unfinished in self.route.tasks.ended(task) {
                unfinished.conclude(result).await;
            }
        }
        if let Some(heard) = &mut self.agent {
            heard.last = Some(spoken.clone());
        }
        Ok(())
    }

    /// Writes the outcome, or leaves it to the task's end.
    pub(super) async fn end_of_stream(&mut self) {
        let last = self.agent.as_ref().filter(|heard| heard.sends());
        let last = last.and_then(|heard| heard.last.as_ref());
        let ended = last.map_or(Some(Ended::Success), |spoken| outcome(spoken.phase));
        match (ended, self.open_task()) {
            (Some(result), _) => self.conclude(result, None, None).await,
            (None, Some(task)) => {
                if let Some(unfinished) = self.unfinished() {
                    self.route.tasks.await_end(&task, unfinished);
                }
            }
            (None, None) => self.conclude(Ended::Unknown, None, None).await,
        }
    }

    /// The task that the exchange has begun or continued and that still goes on.
    pub(super) fn open_task(&self) -> Option<String> {
        let heard = self.agent.as_ref().filter(|heard| heard.sends())?;
        let last = heard.last.as_ref().filter(|last| outcome(last.phase).is_none())?;
        last.task.clone()
    }

    /// What is left to record, for an outcome that comes later.
    pub(super) fn unfinished(&mut self) -> Option<Unfinished> {
        let receipt = self.receipt.take()?;
        let ending = self.ending(Ended::Unknown, None, None);
        let kernel = Arc::clone(self.route.kernel());
        Some(Unfinished { kernel, receipt: Some(receipt), ending, started: self.started })
    }

    fn redacted_whole(&mut self, bytes: Bytes) -> Result<Bytes, Reason> {
        if self.redactions.is_empty() {
            return Ok(bytes);
        }
        let mut whole: Value =
            serde_json::from_slice(&bytes).map_err(|_| Reason::UpstreamMalformed)?;
        let count = redact::result(&mut whole, &self.redactions);
        if count == 0 {
            return Ok(bytes);
        }
        self.redacted += count as u64;
        serde_json::to_vec(&whole).map(Bytes::from).map_err(|_| Reason::UpstreamMalformed)
    }
}
