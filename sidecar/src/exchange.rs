//! One open exchange: every event of an answer leaves through [`Exchange::release`].
//!
//! An exchange is opened by a permit and ends with exactly one outcome in the ledger: when the
//! answer is complete, when it is cut, or when it is dropped because somebody went away.

use std::{collections::VecDeque, sync::Arc, time::Instant};

use aegis_audit::entry::Outcome as Ended;
use aegis_core::{
    action::Action,
    decision::{Decision, Reason, Verdict},
    policy::ObligationKind,
};
use aegis_kernel::{Ending, Permit, Receipt, Record};
use aegis_protocol::{
    a2a,
    jsonrpc::{Id, Message, Outcome, RawMessage},
    mcp::{
        self, ClientMessage, ClientMethod, Era, ServerMethod, deny,
        server::{ServerError, ServerKind, ServerMessage},
    },
    sse,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue};
use regex::Regex;
use serde_json::Value;
use tokio::sync::watch;

use crate::{
    respond,
    route::{Caller, Key, Route, server_request},
    span::Failed,
};

mod agent;
mod answer;

pub(crate) use agent::Unfinished;

/// How many ids of events an exchange remembers, for streams that resume it.
const MAX_EVENT_IDS: usize = 64;

/// An exchange that awaits its answer.
pub struct Exchange {
    route: Arc<Route>,
    caller: Caller,
    receipt: Option<Receipt>,
    action: Action,
    era: Era,
    method: Option<ClientMethod>,
    id: Option<Id>,
    redactions: Vec<Regex>,
    started: Instant,
    bytes: u64,
    events: u64,
    redacted: u64,
    changes: watch::Receiver<u64>,
    approved: bool,
    answered: bool,
    /// The last events of its stream that had an id.
    event_ids: VecDeque<Bytes>,
    /// The event after which this stream resumes another.
    resumes: Option<Bytes>,
    /// The decision of the one call that is open beside a shared exchange.
    within: Option<String>,
    /// What was asked of an A2A agent, and what it has said so far; `None` for an MCP server.
    agent: Option<agent::Heard>,
}

/// What leaves after an event was looked at.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Released {
    /// What the client gets: the event's own bytes, or what replaces them.
    pub to_client: Option<Bytes>,
    /// What the server gets: the refusal of something it asked.
    pub to_server: Option<Bytes>,
}

impl std::fmt::Debug for Exchange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Exchange")
            .field("server", &self.route.name)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl Exchange {
    /// Opens an exchange and gives out the bytes to forward: those that were judged.
    #[must_use]
    pub fn open(route: Arc<Route>, caller: Caller, permit: Permit<ClientMessage>) -> (Bytes, Self) {
        let (message, receipt) = permit.into_parts();
        let (era, method, id) = (message.era(), message.method(), message.request_id().cloned());
        let (action, bytes) = message.into_parts();
        let mut exchange = Self::opened(route, caller, action, era, receipt, bytes.len());
        (exchange.method, exchange.id) = (method, id);
        (bytes, exchange)
    }

    /// An exchange for a message that goes out: what its decision redacts is redacted.
    fn opened(
        route: Arc<Route>,
        caller: Caller,
        action: Action,
        era: Era,
        receipt: Receipt,
        size: usize,
    ) -> Self {
        let redactions = receipt
            .decision
            .obligations
            .iter()
            .filter(|obligation| obligation.kind == ObligationKind::RedactResult)
            // Policies with an expression that does not compile are refused when they are loaded.
            .filter_map(|obligation| Regex::new(&obligation.target).ok())
            .collect();
        route.shared.metrics.open.inc();
        let sent = [route.name.as_str(), "to_server"];
        route.shared.metrics.bytes.with_label_values(&sent).inc_by(size as u64);
        let approved = matches!(receipt.decision.reason, Reason::Approved | Reason::Granted);
        let mut exchange = Self::new(route, caller, action, era, Some(receipt));
        (exchange.approved, exchange.redactions) = (approved, redactions);
        exchange
    }

    /// Opens an exchange that waits for no answer of its own: the legacy stream of a session.
    /// `resumes` is the event after which it continues a stream that broke off.
    #[must_use]
    pub fn listen(
        route: Arc<Route>,
        caller: Caller,
        permit: Permit<Action>,
        era: Era,
        resumes: Option<Bytes>,
    ) -> Self {
        let (action, receipt) = permit.into_parts();
        route.shared.metrics.open.inc();
        let mut exchange = Self::new(route, caller, action, era, Some(receipt));
        if let Some(event) = &resumes {
            exchange.redactions = exchange.route.redactions_after(&exchange.caller, event);
        }
        exchange.resumes = resumes;
        exchange
    }

    /// An exchange for what a server sends on a stream that all its calls share. It has no outcome
    /// of its own; what any of the `open` calls redacts is redacted, and if there is but one, what
    /// the server asks is asked within it.
    #[must_use]
    pub fn shared<'a>(
        route: Arc<Route>,
        caller: Caller,
        era: Era,
        open: impl Iterator<Item = &'a Self>,
    ) -> Self {
        let action = server_request(&route.name, "", Value::Null);
        let mut shared = Self::new(route, caller, action, era, None);
        for (before, call) in open.enumerate() {
            shared.redactions.extend_from_slice(&call.redactions);
            shared.within = call.within().filter(|_| before == 0).map(str::to_owned);
        }
        shared
    }

    fn new(
        route: Arc<Route>,
        caller: Caller,
        action: Action,
        era: Era,
        receipt: Option<Receipt>,
    ) -> Self {
        Self {
            changes: route.kernel().changes(),
            route,
            caller,
            receipt,
            action,
            era,
            method: None,
            id: None,
            redactions: Vec::new(),
            started: Instant::now(),
            bytes: 0,
            events: 0,
            redacted: 0,
            approved: false,
            answered: false,
            event_ids: VecDeque::new(),
            resumes: None,
            within: None,
            agent: None,
        }
    }

    /// The decision within which the server asks what it asks.
    fn within(&self) -> Option<&str> {
        let own = self.receipt.as_ref().map(|receipt| receipt.decision_id.as_str());
        own.or(self.within.as_deref())
    }

    /// What is kept from the client.
    #[must_use]
    pub fn redactions(&self) -> &[Regex] {
        &self.redactions
    }

    /// The headers of a message that Aegis itself sends to the server within this session.
    #[must_use]
    pub fn server_headers(&self) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let mut set = |name: &'static str, value: &str| {
            if let Ok(value) = HeaderValue::from_str(value) {
                headers.insert(name, value);
            }
        };
        set("content-type", "application/json");
        set("accept", "application/json, text/event-stream");
        set("mcp-protocol-version", self.era.version());
        if let Some(session) = &self.caller.session {
            set("mcp-session-id", session);
        }
        headers
    }

    /// The id that the answer must carry.
    #[must_use]
    pub const fn id(&self) -> Option<&Id> {
        self.id.as_ref()
    }

    /// How its client speaks.
    #[must_use]
    pub const fn era(&self) -> Era {
        self.era
    }

    /// The route.
    #[must_use]
    pub const fn route(&self) -> &Arc<Route> {
        &self.route
    }

    /// Whether somebody still waits for the answer.
    #[must_use]
    pub const fn waits(&self) -> bool {
        let awaited = match &self.agent {
            Some(heard) => heard.waits(),
            None => self.id.is_some() && !self.answered,
        };
        awaited && self.receipt.is_some()
    }

    /// Whether it may go on without end: it carries news and awaits no result.
    #[must_use]
    pub fn is_endless(&self) -> bool {
        match &self.agent {
            Some(heard) => heard.asked.operation.streams(),
            None => self.id.is_none() || self.method == Some(ClientMethod::Listen),
        }
    }

    /// The answer that tells the client why there is no other.
    #[must_use]
    pub fn failure(&self, reason: Reason) -> deny::Answer {
        match &self.agent {
            Some(heard) => a2a::deny::denied(&heard.asked.form, reason, reason.sentence()),
            None => respond::upstream_failed(self.id.as_ref(), reason),
        }
    }

    /// The last event of a stream that is cut, where its client is to be told.
    #[must_use]
    pub fn farewell(&self, reason: Reason) -> Option<Bytes> {
        match &self.agent {
            Some(_) => Some(a2a::deny::event(&self.failure(reason))),
            None => self.waits().then(|| sse::encode(&self.failure(reason).body)),
        }
    }

    /// Writes the outcome of a stream that has ended by itself.
    pub async fn finish(&mut self) {
        match &self.agent {
            Some(_) => self.end_of_stream().await,
            None => self.conclude(Ended::Success, None, None).await,
        }
    }

    /// The key under which a broken stream can be resumed: legacy sessions only, where a
    /// disconnect is no cancellation.
    #[must_use]
    pub fn key(&self) -> Option<Key> {
        let key = self.key_of(self.id.clone()?);
        (key.session.is_some() && !self.era.is_modern() && self.waits()).then_some(key)
    }

    fn key_of(&self, id: Id) -> Key {
        Key { agent: self.caller.principal.id.clone(), session: self.caller.session.clone(), id }
    }

    /// Remembers the id of an event that the client gets, from which it may resume.
    pub fn note_event(&mut self, id: &[u8]) {
        let id = Bytes::copy_from_slice(id);
        if let Some(resumes) = &self.resumes {
            self.route.resumed(&self.caller, resumes, &id);
        }
        self.remember(id);
    }

    /// Remembers one more event, in place of the oldest.
    pub(crate) fn remember(&mut self, id: Bytes) {
        if self.event_ids.len() >= MAX_EVENT_IDS {
            self.event_ids.pop_front();
        }
        self.event_ids.push_back(id);
    }

    /// Whether its stream had an event with that id.
    #[must_use]
    pub fn has_sent(&self, event: &[u8]) -> bool {
        self.event_ids.iter().any(|id| id == event)
    }

    /// Waits until something changed that could end what is open, or the caller's identity ends.
    pub async fn changed(&mut self) {
        let left = self.caller.principal.not_after.since(self.route.kernel().now());
        tokio::select! {
            changed = self.changes.changed() => if changed.is_err() {
                std::future::pending::<()>().await;
            },
            () = tokio::time::sleep(left) => {}
        }
    }

    /// Judges the open exchange anew; `Some` is the reason to cut it.
    #[must_use]
    pub fn recheck(&self) -> Option<Reason> {
        let judgement =
            self.route.kernel().evaluate(&self.route.context(&self.caller).about(&self.action));
        cut_for(&judgement.decision, self.approved)
    }

    /// Looks at one message of the server and says what leaves.
    ///
    /// # Errors
    /// The reason for which nothing of it may leave, and the exchange must end.
    pub async fn release(&mut self, bytes: Bytes) -> Result<Released, Reason> {
        self.settle().await?;
        if self.answered {
            return Err(Reason::UpstreamMalformed);
        }
        // What changed while the server was at work counts for what it answers.
        if self.receipt.is_some()
            && self.changes.has_changed().unwrap_or(true)
            && let Some(reason) = self.recheck()
        {
            return Err(reason);
        }
        self.changes.mark_unchanged();
        if self.agent.is_some() {
            return self.agent_says(bytes).await;
        }
        let limits = self.route.response_limits();
        let message =
            match mcp::server::parse_server(&self.route.name, self.era, bytes.clone(), limits) {
                Ok(message) => message,
                Err(ServerError::MethodUnknown) => return Ok(self.unknown(bytes)),
                Err(error) => return Err(error.reason()),
            };
        let ServerMessage { bytes, kind } = message;
        let released = match kind {
            ServerKind::Notification { method, params } => {
                if method == ServerMethod::ToolsListChanged {
                    self.route.forget_listed();
                }
                self.notification(bytes, &params).await?
            }
            ServerKind::Request { id, method, action } => {
                self.server_request(bytes, id, method, action).await
            }
            ServerKind::Response { id, outcome } if id == self.id && id.is_some() => {
                return self.answer(bytes, outcome).await;
            }
            ServerKind::Response { id, outcome } => self.other_answer(bytes, id, outcome).await?,
        };
        if let Some(out) = &released.to_client {
            self.note_released(out);
        }
        Ok(released)
    }

    fn note_released(&mut self, out: &Bytes) {
        self.events += 1;
        self.bytes += out.len() as u64;
    }

    /// A method that Aegis does not know stays here; a server that asked by it is told so.
    fn unknown(&self, bytes: Bytes) -> Released {
        self.route.count(Verdict::Deny, Reason::MethodUnknown);
        tracing::warn!(server = self.route.name, "the server sent a method that is unknown");
        match RawMessage::parse(bytes, self.route.response_limits()) {
            Ok(RawMessage { message: Message::Request { id, .. }, .. }) => Released {
                to_server: Some(deny::method_unknown(Some(self.era), Some(&id)).body),
                ..Released::default()
            },
            _ => Released::default(),
        }
    }

    /// In overlap mode nothing leaves before the decision is on disk.
    async fn settle(&mut self) -> Result<(), Reason> {
        let Some(receipt) = &mut self.receipt else { return Ok(()) };
        if matches!(receipt.record, Record::Pending(_)) {
            let record = std::mem::replace(&mut receipt.record, Record::Buffered);
            let index = record.settle().await.map_err(|_| Reason::RecordFailed)?;
            self.caller.span.recorded(index);
        }
        Ok(())
    }

    async fn notification(
        &mut self,
        bytes: Bytes,
        params: &serde_json::Map<String, Value>,
    ) -> Result<Released, Reason> {
        // A task's progress can carry questions to the client.
        let asked =
            mcp::server::task_input_requests(&self.route.name, params).map_err(|e| e.reason())?;
        if !self.may_ask_all(asked).await {
            return Ok(Released::default());
        }
        Ok(Released { to_client: Some(self.redacted(bytes)?), ..Released::default() })
    }

    async fn server_request(
        &self,
        bytes: Bytes,
        id: Id,
        method: ServerMethod,
        action: Action,
    ) -> Released {
        if self.may_ask(action).await {
            self.route.note_asked(self.key_of(id), method);
            Released { to_client: Some(bytes), ..Released::default() }
        } else {
            Released { to_server: Some(deny::server_request_denied(&id)), ..Released::default() }
        }
    }

    /// Decides on, and records, a question of the server to its client.
    async fn may_ask(&self, action: Action) -> bool {
        let mut context = self.route.context(&self.caller);
        context.within = Some(self.within().unwrap_or_default());
        match self.route.kernel().decide(context, action).await {
            Ok(permit) => {
                self.route.count(Verdict::Allow, permit.receipt().decision.reason);
                true
            }
            Err(refusal) => {
                self.route.count(refusal.decision.verdict, refusal.decision.reason);
                false
            }
        }
    }

    /// The answer to another request of the same session, on a stream that resumes it. It is
    /// released by the exchange that awaits it, with that one's filters.
    async fn other_answer(
        &self,
        bytes: Bytes,
        id: Option<Id>,
        outcome: Outcome,
    ) -> Result<Released, Reason> {
        let Some(id) = id else {
            // An error that answers an unreadable message has no id, and nothing to hide.
            let error = matches!(outcome, Outcome::Error { .. }) && self.id.is_some();
            let released = Released { to_client: Some(bytes), ..Released::default() };
            return error.then_some(released).ok_or(Reason::UpstreamMalformed);
        };
        let resumes = self.resumes.as_ref().ok_or(Reason::UpstreamMalformed)?;
        let parked = self.route.unpark(&self.key_of(id), resumes);
        let mut parked = parked.ok_or(Reason::UpstreamMalformed)?;
        match Box::pin(parked.release(bytes)).await {
            Ok(released) => Ok(released),
            Err(reason) => {
                parked.conclude(Ended::Failure, Some(reason), None).await;
                let told = respond::upstream_failed(parked.id(), reason).body;
                Ok(Released { to_client: Some(told), ..Released::default() })
            }
        }
    }

    /// Writes the one outcome. Later calls do nothing.
    pub async fn conclude(&mut self, result: Ended, reason: Option<Reason>, status: Option<i64>) {
        let Some(receipt) = self.receipt.take() else { return };
        self.caller.span.concluded(result, self.failed(result, reason, status));
        let ending = self.ending(result, reason, status);
        if let Err(error) = self.route.kernel().conclude(&receipt, &ending).await {
            tracing::error!(%error, "an outcome could not be recorded");
        }
    }

    /// What went wrong, as a span says it.
    fn failed(&self, result: Ended, reason: Option<Reason>, status: Option<i64>) -> Option<Failed> {
        match (reason, status) {
            (Some(reason), _) => Some(Failed::By(reason)),
            (None, Some(code))
                if result == Ended::Failure && self.agent.is_none() && self.answered =>
            {
                Some(Failed::Rpc(code))
            }
            (None, Some(code)) => (result == Ended::Failure).then_some(Failed::Status(code)),
            (None, None) if result != Ended::Failure => None,
            (None, None) if self.method == Some(ClientMethod::ToolsCall) => Some(Failed::Tool),
            (None, None) => Some(Failed::Otherwise),
        }
    }

    fn ending(&self, result: Ended, reason: Option<Reason>, status: Option<i64>) -> Ending {
        let metrics = &self.route.shared.metrics;
        metrics.open.dec();
        metrics
            .bytes
            .with_label_values(&[self.route.name.as_str(), "to_client"])
            .inc_by(self.bytes);
        Ending {
            result,
            reason: reason.map(|reason| reason.code().to_owned()),
            status,
            bytes: self.bytes,
            sent: 0,
            events: self.events,
            micros: u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX),
            redactions: self.redacted,
        }
    }
}

/// Why something open that is judged anew has to end; `approved` is whether a human agreed to it.
pub(crate) fn cut_for(decision: &Decision, approved: bool) -> Option<Reason> {
    match decision.verdict {
        Verdict::Allow => None,
        Verdict::RequireApproval if approved => None,
        Verdict::RequireApproval => Some(Reason::ApprovalByPolicy),
        // A limit counts starts: what has started under it goes on.
        Verdict::Deny if decision.reason == Reason::RateLimited => None,
        Verdict::Deny => Some(decision.reason),
    }
}

impl Drop for Exchange {
    /// Somebody went away: the outcome is unknown, and that is recorded too.
    fn drop(&mut self) {
        // The task that an agent works on goes on without its client.
        let Some(unfinished) = self.unfinished() else { return };
        match self.open_task() {
            Some(task) => self.route.tasks.await_end(&task, unfinished),
            None => drop(unfinished),
        }
    }
}
