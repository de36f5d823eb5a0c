//! What an agent is told without asking: changes of the policies, and entries of the ledger that are
//! about itself. No agent hears of others; who may read the ledger can listen to all of it.

use std::{convert::Infallible, sync::Arc, time::Duration};

use aegis_api::kernel::{EntryEvent, PolicyEvent};
use aegis_audit::{
    entry::{Draft, Kind},
    journal::Observer,
};
use aegis_core::Timestamp;
use aegis_kernel::{Kernel, Principal};
use bytes::Bytes;
use futures::StreamExt as _;
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use serde::Serialize;
use tokio::sync::{broadcast, mpsc};
use tokio_stream::wrappers::ReceiverStream;

use super::KernelApi;
use crate::inbound::Body;

/// How many entries a slow reader may be behind before it is told that some are lost.
const BEHIND: usize = 1_024;
/// How often an idle stream gives a sign of life.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// One entry that is about one agent.
#[derive(Clone, Debug)]
pub struct Told {
    /// The agent.
    pub agent: String,
    /// The entry's kind.
    pub kind: &'static str,
    /// What is told of it.
    pub event: EntryEvent,
}

/// What the journal has committed, for those whom it concerns.
#[derive(Clone, Debug)]
pub struct Feed(broadcast::Sender<Arc<Told>>);

impl Feed {
    /// Everything from now on, about all agents: for whoever may read the whole ledger.
    #[must_use]
    pub fn listen(&self) -> broadcast::Receiver<Arc<Told>> {
        self.0.subscribe()
    }
}

/// A feed with the observer that fills it; the observer goes into the journal's options before the
/// journal is opened.
#[must_use]
pub fn feed() -> (Feed, Observer) {
    let (sender, _) = broadcast::channel(BEHIND);
    let feed = Feed(sender.clone());
    let observer: Observer = Box::new(move |observed| {
        // On the writer's thread: without listeners there is nothing to do.
        if sender.receiver_count() > 0
            && let Some(told) = told(observed.index, observed.draft)
        {
            let _ = sender.send(Arc::new(told));
        }
    });
    (feed, observer)
}

/// What an agent may know of an entry about it: never arguments, nor who voted how.
fn told(index: u64, draft: &Draft) -> Option<Told> {
    let shown = matches!(
        draft.kind,
        Kind::Decision
            | Kind::ServerRequest
            | Kind::Outcome
            | Kind::ApprovalRequested
            | Kind::ApprovalVote
            | Kind::ApprovalConsumed
    );
    let agent = draft.agent_id.clone().filter(|_| shown)?;
    let event = EntryEvent {
        index,
        result: draft.result.as_str().into(),
        action: draft.action.clone(),
        reason: draft.reason.clone(),
        decision_id: draft.decision_id.clone(),
        approval: draft.approval.clone(),
    };
    Some(Told { agent, kind: draft.kind.as_str(), event })
}

impl KernelApi {
    /// A stream of events for `principal`, until it or the process ends.
    pub(super) fn events(self: &Arc<Self>, principal: Principal) -> Body {
        let (send, events) = mpsc::channel(64);
        // Before the first event: nothing that is recorded from now on is missed.
        let entries = self.feed.listen();
        let api = Arc::clone(self);
        tokio::spawn(async move {
            tokio::select! {
                () = api.tell(&principal, entries, &send) => {}
                () = api.shared.drain.cancelled() => {}
                () = send.closed() => {}
            }
        });
        let frames =
            ReceiverStream::new(events).map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)));
        StreamBody::new(frames).boxed_unsync()
    }

    async fn tell(
        &self,
        principal: &Principal,
        mut entries: broadcast::Receiver<Arc<Told>>,
        send: &mpsc::Sender<Bytes>,
    ) {
        let kernel = &self.shared.kernel;
        let mut changes = kernel.changes();
        let mut version = None;
        while is_known(kernel, principal, kernel.now()) {
            let policies = kernel.engine().version();
            if version.replace(policies) != Some(policies) {
                let digest = kernel.engine().policies().digest().to_string();
                let event = PolicyEvent { version: policies, digest };
                if send.send(message("policy", None, &event)).await.is_err() {
                    return;
                }
            }
            let bytes = tokio::select! {
                changed = changes.changed() => match changed {
                    Ok(()) => continue,
                    Err(_) => return,
                },
                entry = entries.recv() => match entry {
                    Ok(told) if told.agent != principal.id.as_str() => continue,
                    Ok(told) => message(told.kind, Some(told.event.index), &told.event),
                    Err(broadcast::error::RecvError::Lagged(lost)) => {
                        message("lost", None, &serde_json::json!({ "entries": lost }))
                    }
                    Err(broadcast::error::RecvError::Closed) => return,
                },
                () = tokio::time::sleep(KEEP_ALIVE) => Bytes::from_static(b":\n\n"),
            };
            if send.send(bytes).await.is_err() {
                return;
            }
        }
    }
}

/// Whether somebody is still who it was when the stream began.
fn is_known(kernel: &Kernel, principal: &Principal, now: Timestamp) -> bool {
    let state = kernel.state();
    principal.not_after > now
        && state.registry.find(&principal.id).is_some()
        && !state.revoked.contains(&principal.id)
}

/// One event; JSON has no line breaks, so one line of data.
fn message(event: &str, id: Option<u64>, data: &impl Serialize) -> Bytes {
    let data = serde_json::to_string(data).unwrap_or_default();
    let id = id.map(|id| format!("id: {id}\n")).unwrap_or_default();
    Bytes::from(format!("event: {event}\n{id}data: {data}\n\n"))
}
