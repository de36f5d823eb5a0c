//! The kernel: one decision for every action, wherever it happens.
//!
//! [`Kernel::decide`] is the only composition of identity, risk, trust, policy, approval and
//! record, and the only maker of a [`Permit`]. [`Kernel::evaluate`] is the same without effects:
//! for lists, try-outs and explanations.
//!
//! Order: identity → facts → risk and tier → policies (which see them, and may only tighten) →
//! approvals → rate limits → record → permit. Everything that goes wrong on the way denies.

pub mod approvals;
pub mod explain;
mod grants;
mod history;
mod judge;
mod permit;
mod principal;
mod record;
mod request;
mod state;
pub mod totp;
pub mod trust_book;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aegis_audit::{
    entry::{Draft, Kind, Outcome},
    journal::{AppendError, Durability, Journal, Observer, Recorded},
    query::Filter,
    store::StoreError,
};
use aegis_core::{
    AgentId, Digest, Timestamp,
    approval::{ApprovalError, ApprovalRequest, ApprovalState, Factor, Vote},
    decision::{Decision, Reason, Verdict},
    trust::Trust,
};
use aegis_policy::PolicyEngine;
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio::sync::watch;

pub use judge::{Judgement, verdict};
pub use permit::{Approved, Permit, Receipt, Record};
pub use principal::{Principal, Registration, Registry, ShownManifest};
pub use record::Ending;
pub use request::{Context, Judged, Preview, Provenance, Refusal, Request, Shown};
pub use state::{State, Thresholding};

use crate::{
    approvals::{ApprovalBook, Case, Question},
    grants::Settled,
    trust_book::TrustBook,
};

/// Who did something by hand, how that is known, and why. Taken from the socket, never from what the
/// caller writes; but for the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ByHand {
    /// Who.
    pub who: String,
    /// What confirmed it.
    pub factor: Factor,
    /// Why.
    pub why: Option<String>,
}

impl ByHand {
    /// Says so in an entry.
    pub fn describe(&self, draft: &mut Draft) {
        draft.detail.insert("who".into(), self.who.clone().into());
        draft.detail.insert("factor".into(), json!(self.factor));
        if let Some(why) = &self.why {
            draft.detail.insert("why".into(), why.clone().into());
        }
    }
}

/// Where the time comes from; injected, so that tests own it.
pub type Clock = Arc<dyn Fn() -> Timestamp + Send + Sync>;

/// The decision point of one decision domain.
pub struct Kernel {
    journal: Journal,
    durability: Durability,
    engine: Arc<PolicyEngine>,
    state: arc_swap::ArcSwap<State>,
    trust: Arc<Mutex<TrustBook>>,
    approvals: Mutex<ApprovalBook>,
    grants: Mutex<grants::Used>,
    changed: watch::Sender<u64>,
    recent: judge::RecentActions,
    clock: Clock,
    /// The size of the ledger at the last snapshot of the trust fold.
    kept: AtomicU64,
}

/// Why a kernel did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The ledger could not be read.
    #[error("the ledger cannot be read back: {0}")]
    Ledger(#[from] StoreError),
    /// An entry of the ledger is not one.
    #[error("entry {index} of the ledger cannot be read: {message}; run `aegis audit verify`")]
    Entry {
        /// Which.
        index: u64,
        /// Why.
        message: String,
    },
    /// The ledger does not take entries.
    #[error(transparent)]
    Append(#[from] AppendError),
}

/// Why a vote was not taken.
#[derive(Debug, thiserror::Error)]
pub enum VoteError {
    /// No such approval.
    #[error("there is no approval `{0}`; list the open ones with `aegis approvals list`")]
    Unknown(String),
    /// The state machine refuses it.
    #[error(transparent)]
    Refused(#[from] ApprovalError),
    /// It could not be recorded, so it does not count.
    #[error("the answer was not recorded and does not count: {0}")]
    Record(#[from] AppendError),
}

impl std::fmt::Debug for Kernel {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Kernel").field("durability", &self.durability).finish_non_exhaustive()
    }
}

/// A trust book with the observer that keeps it current; the observer goes into the journal's
/// options before the journal is opened.
#[must_use]
pub fn trust_book() -> (Arc<Mutex<TrustBook>>, Observer) {
    let book = Arc::new(Mutex::new(TrustBook::default()));
    let fold = Arc::clone(&book);
    // Entries that commit while the history is still being read wait for it (`Kernel::start`).
    let observer: Observer =
        Box::new(move |seen| fold.lock().commit(seen.index, seen.source, seen.draft));
    (book, observer)
}

impl Kernel {
    /// Reads the ledger back and starts deciding. `trust` is from [`trust_book`], and its observer
    /// is registered with `journal`.
    ///
    /// # Errors
    /// When the ledger cannot be read back.
    pub async fn start(
        journal: Journal,
        durability: Durability,
        engine: Arc<PolicyEngine>,
        trust: Arc<Mutex<TrustBook>>,
        state: State,
        clock: Clock,
    ) -> Result<Self, StartError> {
        let approvals = history::approvals(&journal, clock()).await?;
        let kept = history::fold_trust(&journal, &trust).await?;
        let kernel = Self {
            journal,
            durability,
            engine,
            state: arc_swap::ArcSwap::from_pointee(state),
            trust,
            approvals: Mutex::new(approvals),
            grants: Mutex::new(grants::Used::since(clock())),
            changed: watch::Sender::new(0),
            recent: judge::RecentActions::default(),
            clock,
            kept: AtomicU64::new(kept),
        };
        kernel.keep_trust().await;
        kernel.record_thresholds().await?;
        Ok(kernel)
    }

    /// The thresholds that the trust fold uses must be in the ledger before they are used.
    async fn record_thresholds(&self) -> Result<(), AppendError> {
        let wanted = self.state.load().thresholds.base.clone();
        if *self.trust.lock().thresholds() != wanted || self.trust.lock().as_of() == 0 {
            let mut draft = Draft::new(Kind::Configuration, self.now(), Outcome::Recorded);
            draft.detail.insert("thresholds".into(), json!(wanted));
            self.journal.append(draft).await?.await?;
        }
        Ok(())
    }

    /// Changes what is registered, revoked and thresholded, all at once. Nothing that somebody else
    /// changes meanwhile is lost: `change` then runs once more, on the newer state.
    ///
    /// # Errors
    /// When changed thresholds could not be recorded; the new state then holds all the same.
    pub async fn update_with(&self, change: impl Fn(&mut State)) -> Result<(), AppendError> {
        self.change_state(change);
        self.changed.send_modify(|version| *version += 1);
        self.record_thresholds().await
    }

    /// Keeps a snapshot of the trust fold when the ledger has grown much since the last one, so that
    /// the next start need not read it all. Without one, a start takes longer and is no less right.
    pub async fn keep_trust(&self) {
        let (size, state) = {
            let book = self.trust.lock();
            if book.as_of() < self.kept.load(Ordering::Relaxed) + history::SNAPSHOT_AFTER {
                return;
            }
            (book.as_of(), book.to_snapshot())
        };
        match self.journal.save_snapshot(size, state).await {
            Ok(()) => self.kept.store(size, Ordering::Relaxed),
            Err(error) => tracing::warn!(%error, "no snapshot of the trust fold was kept"),
        }
    }

    /// Notes that the state was current at `at`.
    pub fn confirm(&self, at: Timestamp) {
        self.change_state(|state| state.confirmed_at = Some(at));
    }

    fn change_state(&self, change: impl Fn(&mut State)) {
        self.state.rcu(|current| {
            let mut next = State::clone(current);
            change(&mut next);
            next
        });
    }

    /// What is registered, revoked and thresholded.
    #[must_use]
    pub fn state(&self) -> Arc<State> {
        self.state.load_full()
    }

    /// The policies.
    #[must_use]
    pub const fn engine(&self) -> &Arc<PolicyEngine> {
        &self.engine
    }

    /// The journal.
    #[must_use]
    pub const fn journal(&self) -> &Journal {
        &self.journal
    }

    /// The time.
    #[must_use]
    pub fn now(&self) -> Timestamp {
        (self.clock)()
    }

    /// Counts up when policy state, registrations or approvals change: whoever holds something
    /// open judges it anew.
    #[must_use]
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    /// Tells holders of open exchanges that something changed outside [`Kernel::update`].
    pub fn announce_change(&self) {
        self.changed.send_modify(|version| *version += 1);
    }

    /// The posterior of an agent, and the ledger size it is as of.
    #[must_use]
    pub fn trust(&self, agent: &AgentId) -> (Trust, u64) {
        let book = self.trust.lock();
        (book.trust(agent), book.trust_as_of())
    }

    /// Goes by what the cluster's ledger has folded, as of its first `as_of` entries: for these
    /// agents, it replaces what this journal says of them, and what is recorded from now on is
    /// folded on top.
    pub fn told_trust(&self, as_of: u64, agents: impl IntoIterator<Item = (AgentId, Trust)>) {
        self.trust.lock().told(as_of, agents);
        self.announce_change();
    }

    /// Every agent with a history.
    #[must_use]
    pub fn trusted_agents(&self) -> Vec<(AgentId, Trust)> {
        self.trust.lock().agents().map(|(id, trust)| (id.clone(), *trust)).collect()
    }

    /// Judges without any effect: nothing is recorded, no rate is taken, no approval used.
    #[must_use]
    pub fn evaluate(&self, request: &Request<'_>) -> Judgement {
        judge::judge(self, request, self.now(), judge::Purpose::Act)
    }

    /// What [`Kernel::decide`] would say now, for whoever only wants to know. It permits nothing and
    /// has no effect: nothing is recorded, so no trust is moved; no rate is taken, and no approval is
    /// asked for or used.
    #[must_use]
    pub fn preview(&self, request: &Request<'_>) -> Preview {
        let now = self.now();
        let mut judgement = judge::judge(self, request, now, judge::Purpose::Act);
        let mut approval = None;
        if judgement.decision.verdict == Verdict::RequireApproval {
            let book = self.approvals.lock();
            let requester = &request.context.principal.id;
            let found = book.usable(requester, judgement.decision.action, judgement.policies, now);
            approval = found.map(|(id, _)| id.to_owned());
            if found.is_some_and(|(_, state)| state == ApprovalState::Approved) {
                judgement.allow(Reason::Approved);
            }
        }
        Preview { decision: judgement.decision, approval }
    }

    /// Whether an item may be named in a list: its arguments are not known yet.
    #[must_use]
    pub fn may_list(&self, request: &Request<'_>) -> bool {
        let judgement = judge::judge(self, request, self.now(), judge::Purpose::List);
        judgement.decision.verdict != Verdict::Deny
    }

    /// Decides on `message`, records the decision, and gives the permit to forward it.
    ///
    /// # Errors
    /// The refusal, recorded: a denial, or an approval that is waited for.
    pub async fn decide<M: Judged>(
        &self,
        context: Context<'_>,
        message: M,
    ) -> Result<Permit<M>, Refusal> {
        self.decide_or_return(context, message).await.map_err(|(refusal, _)| refusal)
    }

    /// As [`Kernel::decide`], for whoever still needs a refused message: to hold it, or to answer it
    /// by its id. On the way to a permit nothing is copied.
    ///
    /// # Errors
    /// The refusal, and the message that it is about.
    pub async fn decide_or_return<M: Judged>(
        &self,
        context: Context<'_>,
        message: M,
    ) -> Result<Permit<M>, (Refusal, M)> {
        match self.decide_on(&context.about(message.action())).await {
            Ok(receipt) => Ok(Permit::new(message, receipt)),
            Err(refusal) => Err((refusal, message)),
        }
    }

    async fn decide_on(&self, request: &Request<'_>) -> Result<Receipt, Refusal> {
        let now = self.now();
        self.recent.note(&request.context.principal.id, now);
        let mut judgement = judge::judge(self, request, now, judge::Purpose::Act);
        let mut settled = Settled::default();
        if judgement.decision.verdict == Verdict::RequireApproval {
            match self.settle_approval(request, &mut judgement, now).await {
                Ok(how) => settled = how,
                Err(error) => return Err(self.unrecorded(judgement.decision, &error)),
            }
        }
        let Settled { approval, approved, grant } = settled;
        if judgement.decision.verdict == Verdict::Allow && !judgement.take_rates(self, request, now)
        {
            judgement.deny(Reason::RateLimited);
        }
        let decision = Arc::new(judgement.decision);
        let decision_id = uuid::Uuid::now_v7().to_string();
        let mut draft = record::decision(request, &decision, &decision_id, now);
        draft.approval.clone_from(&approval);
        draft.detail.extend(grant.map(|grant| ("grant".to_owned(), grant)));
        let action = draft.action.clone();
        let recorded = match self.record_decision(draft, decision.verdict).await {
            Ok(recorded) => Record::from(recorded),
            Err(error) => {
                let decision = Arc::try_unwrap(decision).unwrap_or_else(|shared| (*shared).clone());
                return Err(self.unrecorded(decision, &error));
            }
        };
        if decision.verdict != Verdict::Allow {
            let index = recorded.index();
            return Err(Refusal { decision_id, decision, approval, index });
        }
        Ok(Receipt {
            decision_id,
            record: recorded,
            approved: approved.map(Arc::new),
            principal: request.context.principal.id.clone(),
            sponsor: request.context.principal.sponsor.clone(),
            action,
            decision,
        })
    }

    /// What goes on waits for as much as is asked for. What does not needs to be on this disk and no
    /// more: an agent that the ledger no longer hears is refused at once too.
    async fn record_decision(
        &self,
        draft: Draft,
        verdict: Verdict,
    ) -> Result<Recorded, AppendError> {
        match verdict {
            Verdict::Allow => self.journal.record(draft, self.durability).await,
            _ => Ok(Recorded::Durable(self.journal.append(draft).await?.await?)),
        }
    }

    /// Records the refusal of a message that could not even be judged, by a caller who is known.
    /// `detail` says what could be told of it. Returns the index of the record, unless recording
    /// failed.
    pub async fn refuse(
        &self,
        principal: &Principal,
        server: &str,
        reason: Reason,
        detail: Map<String, Value>,
    ) -> Option<u64> {
        let mut draft = self.refusal(principal, reason);
        draft.action.insert("server".into(), server.into());
        draft.action.insert("method".into(), "".into());
        draft.detail.extend(detail);
        self.record_refusal(draft).await
    }

    fn refusal(&self, principal: &Principal, reason: Reason) -> Draft {
        let now = self.now();
        let mut draft = record::of_principal(Kind::Decision, now, Outcome::Deny, principal);
        draft.reason = Some(reason.code().into());
        draft.decision_id = Some(uuid::Uuid::now_v7().to_string());
        draft
    }

    async fn record_refusal(&self, draft: Draft) -> Option<u64> {
        let recorded = self.record(draft).await;
        recorded
            .inspect_err(|error| tracing::error!(%error, "a refusal could not be recorded"))
            .ok()
    }

    /// What cannot be recorded does not happen.
    fn unrecorded(&self, decision: Decision, error: &AppendError) -> Refusal {
        tracing::error!(%error, "a decision could not be recorded; denying");
        let mut decision = decision;
        decision.verdict = Verdict::Deny;
        decision.reason = Reason::RecordFailed;
        decision.message = Reason::RecordFailed.sentence().into();
        Refusal {
            decision_id: String::new(),
            decision: Arc::new(decision),
            approval: None,
            index: None,
        }
    }

    /// Records that an action is refused whatever the policies say: before they are asked, such as
    /// for a tool that is quarantined, or after, because a human said no or nobody said yes in time.
    pub async fn refuse_action(
        &self,
        request: &Request<'_>,
        approval: Option<&str>,
        reason: Reason,
    ) -> Option<u64> {
        let decision = self.evaluate(request).decision;
        let mut draft = self.refusal(request.context.principal, reason);
        draft.approval = approval.map(Into::into);
        draft.trace = record::trace(request);
        draft.risk = Some(decision.risk.score.get().into());
        let (draft, _) = record::with_action(draft, request, &decision);
        self.record_refusal(draft).await
    }

    /// Takes the grant that came with the action, uses an approval that the action holds, or opens
    /// one, or finds the one that is open. The judgement says whether it permits. None is opened where
    /// the agent waits for too many already.
    async fn settle_approval(
        &self,
        request: &Request<'_>,
        judgement: &mut Judgement,
        now: Timestamp,
    ) -> Result<Settled, AppendError> {
        if let Some(settled) = self.settle_by_grant(request, judgement, now) {
            return Ok(settled);
        }
        let (action, policies) = (judgement.decision.action, judgement.policies);
        let found = {
            let mut book = self.approvals.lock();
            let requester = &request.context.principal.id;
            let found = book.usable(requester, action, policies, now);
            match found.map(|(id, state)| (id.to_owned(), state)) {
                Some((id, ApprovalState::Approved)) => {
                    // Marked under the lock, so one caller wins; durable before it permits.
                    let used = book.consume(&id, action, policies, now).ok();
                    let asked = book.find(&id).map(|case| case.question.action.clone());
                    used.map(|used| (id, Some((used, asked.unwrap_or_default()))))
                }
                Some((id, _)) => Some((id, None)),
                None => None,
            }
        };
        match found {
            Some((id, Some((used, asked)))) => {
                let mut draft = record::of_principal(
                    Kind::ApprovalConsumed,
                    now,
                    Outcome::Recorded,
                    request.context.principal,
                );
                draft.approval = Some(id.clone());
                draft.action = asked;
                self.journal.append(draft).await?.await?;
                self.announce_change();
                judgement.allow(Reason::Approved);
                Ok(Settled { approved: Some(used), ..Settled::waiting(id) })
            }
            Some((id, None)) => Ok(Settled::waiting(id)),
            None if !self.approvals.lock().make_room(&request.context.principal.id, now) => {
                judgement.deny(Reason::Overloaded);
                Ok(Settled::default())
            }
            None => self.open_approval(request, judgement, now).await.map(Settled::waiting),
        }
    }

    async fn open_approval(
        &self,
        request: &Request<'_>,
        judgement: &Judgement,
        now: Timestamp,
    ) -> Result<String, AppendError> {
        let decision = &judgement.decision;
        let id = short_id();
        let ttl = self
            .state
            .load()
            .thresholds
            .of(request.context.principal.id.namespace())
            .approval_ttl_secs;
        let principal = request.context.principal;
        let draft =
            record::of_principal(Kind::ApprovalRequested, now, Outcome::Recorded, principal);
        let (mut draft, action) = record::with_action(draft, request, decision);
        let asked = ApprovalRequest {
            id: id.clone(),
            action,
            policies: judgement.policies,
            requester: request.context.principal.id.clone(),
            sponsor: request.context.principal.sponsor.clone(),
            need: decision.approval.clone().unwrap_or_default(),
            requested_at: now,
            expires_at: now.plus(std::time::Duration::from_secs(ttl.into())),
        };
        let question = Question {
            action: draft.action.clone(),
            resource: draft.resource.clone(),
            // As they are recorded: redacted, and left out where they are large.
            arguments: draft.arguments.clone().unwrap_or_default(),
            // A policy's own words may quote.
            message: aegis_protocol::redact::text(&decision.message),
            reason: decision.reason.code().into(),
            risk: decision.risk.score.get().into(),
            trust: decision.trust.get().into(),
            tier: decision.tier.as_str().into(),
        };
        draft.approval = Some(id.clone());
        let mut told = json!(question);
        if let Some(members) = told.as_object_mut() {
            // They are members of the entry itself.
            members.remove("resource");
            members.insert("action".into(), json!({}));
            members.insert("arguments".into(), Value::Null);
        }
        draft.detail.insert("request".into(), json!(asked));
        draft.detail.insert("question".into(), told);
        let salt = draft.salt;
        self.journal.append(draft).await?.await?;
        let case = Case { approval: aegis_core::approval::Approval::new(asked), question, salt };
        self.approvals.lock().open(case);
        self.announce_change();
        Ok(id)
    }

    /// Answers an approval. The vote counts once it is in the ledger.
    ///
    /// # Errors
    /// When there is no such approval, the state machine refuses the vote, or it cannot be recorded.
    pub async fn vote(&self, id: &str, vote: Vote) -> Result<ApprovalState, VoteError> {
        let (action, agent) = {
            let book = self.approvals.lock();
            book.try_vote(id, vote.clone()).ok_or_else(|| VoteError::Unknown(id.into()))??;
            let case = book.find(id).ok_or_else(|| VoteError::Unknown(id.into()))?;
            (case.question.action.clone(), case.approval.request.requester.to_string())
        };
        let mut draft = Draft::new(Kind::ApprovalVote, vote.at, Outcome::Recorded);
        draft.agent_id = Some(agent);
        draft.approval = Some(id.into());
        draft.action = action;
        draft.detail.insert("vote".into(), json!(vote));
        self.journal.append(draft).await?.await?;
        let now = vote.at;
        let mut book = self.approvals.lock();
        book.vote(id, vote);
        let state = book.find(id).map_or(ApprovalState::Expired, |case| case.approval.state(now));
        drop(book);
        self.announce_change();
        Ok(state)
    }

    /// Where an approval that `requester` asked for stands now; `None` if there is no such one.
    #[must_use]
    pub fn own_approval(&self, id: &str, requester: &AgentId) -> Option<ApprovalState> {
        let now = self.now();
        let book = self.approvals.lock();
        let approval = &book.find(id)?.approval;
        (approval.request.requester == *requester).then(|| approval.state(now))
    }

    /// Where an approval stands now.
    #[must_use]
    pub fn approval_state(&self, id: &str) -> Option<ApprovalState> {
        let now = self.now();
        self.approvals.lock().find(id).map(|case| case.approval.state(now))
    }

    /// Every approval that is remembered, the newest first.
    #[must_use]
    pub fn approvals(&self) -> Vec<Case> {
        self.approvals_where(|_| true)
    }

    /// Those approvals that `wanted` is true of, the newest first.
    #[must_use]
    pub fn approvals_where(&self, wanted: impl Fn(&Case) -> bool) -> Vec<Case> {
        let book = self.approvals.lock();
        let mut cases: Vec<Case> = book.cases().filter(|case| wanted(case)).cloned().collect();
        drop(book);
        cases.sort_by_key(|case| std::cmp::Reverse(case.approval.request.requested_at));
        cases
    }

    /// Forgets approvals that ended before `before`; the ledger keeps them.
    pub fn forget_approvals(&self, before: Timestamp) {
        self.approvals.lock().forget(before);
    }

    /// Waits until the approval is decided, expires, or `patience` runs out, and says where it
    /// stands then.
    pub async fn wait_for_approval(
        &self,
        id: &str,
        patience: std::time::Duration,
    ) -> ApprovalState {
        let mut changes = self.changes();
        let deadline = tokio::time::Instant::now() + patience;
        loop {
            let state = self.approval_state(id).unwrap_or(ApprovalState::Expired);
            if state != ApprovalState::Pending {
                return state;
            }
            let expires =
                self.approvals.lock().find(id).map(|case| case.approval.request.expires_at);
            let left = expires.map_or_else(Default::default, |at| at.since(self.now()));
            let until = deadline.min(tokio::time::Instant::now() + left);
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return state },
                () = tokio::time::sleep_until(until) => {
                    return self.approval_state(id).unwrap_or(ApprovalState::Expired);
                }
            }
        }
    }

    /// Records how a permitted action ended. Waits for room in the journal, not for the disk: it is
    /// written with what somebody waits for, or a moment later.
    ///
    /// # Errors
    /// When the journal does not take it.
    pub async fn conclude(&self, receipt: &Receipt, ending: &Ending) -> Result<(), AppendError> {
        self.journal.append_later(record::outcome(receipt, ending, self.now())).await
    }

    /// Records a fact that is not a decision.
    ///
    /// # Errors
    /// When it did not become durable.
    pub async fn record(&self, draft: Draft) -> Result<u64, AppendError> {
        Ok(self.journal.append(draft).await?.await?.index)
    }

    /// Sets an agent's posterior by hand; recorded with who, how and why before it counts.
    ///
    /// # Errors
    /// When it could not be recorded.
    pub async fn adjust_trust(
        &self,
        agent: &AgentId,
        (a, b): (u64, u64),
        by: &ByHand,
    ) -> Result<u64, AppendError> {
        let mut draft = Draft::new(Kind::TrustAdjusted, self.now(), Outcome::Recorded);
        draft.agent_id = Some(agent.to_string());
        draft.detail.insert("a".into(), a.into());
        draft.detail.insert("b".into(), b.into());
        by.describe(&mut draft);
        let index = self.record(draft).await?;
        self.announce_change();
        Ok(index)
    }

    /// Finds entries; see [`Filter`].
    ///
    /// # Errors
    /// When the ledger cannot be read.
    pub async fn query(&self, filter: &Filter) -> Result<aegis_audit::query::Page, StoreError> {
        self.journal.reader().query(filter).await
    }
}

/// An id that a person can type: 50 random bits in Crockford's base 32.
fn short_id() -> String {
    const ALPHABET: &[u8; 32] = b"0123456789abcdefghjkmnpqrstvwxyz";
    let mut bits: u64 = rand::random();
    let mut id = String::with_capacity(10);
    for _ in 0..10 {
        let at = usize::try_from(bits & 31).unwrap_or_default();
        id.push(char::from(ALPHABET.get(at).copied().unwrap_or(b'0')));
        bits >>= 5;
    }
    id
}

/// The digest over the policies that spoke, which an approval is bound to.
fn policies_digest<'a>(policies: impl Iterator<Item = (&'a str, Digest)>) -> Digest {
    let mut sorted: Vec<_> = policies.collect();
    sorted.sort_unstable();
    sorted.dedup();
    let mut bytes = b"aegis.policies.v1\n".to_vec();
    for (name, digest) in sorted {
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(b'\n');
        bytes.extend_from_slice(digest.as_bytes());
    }
    Digest::of(&bytes)
}
