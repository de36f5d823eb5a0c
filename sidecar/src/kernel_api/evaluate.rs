//! Deciding on questions: the caller's own subject, one approval for one action, one record each.

use std::{sync::Arc, time::Duration};

use aegis_api::kernel::{DecisionContext, Evaluation};
use aegis_audit::entry::Outcome;
use aegis_core::{
    action::{Action, Protocol},
    approval::ApprovalState,
    decision::{Reason, Verdict},
    policy::Scope,
};
use aegis_kernel::{Context, Principal, Record, Refusal};
use aegis_protocol::kernel::{Question, QuestionError, Semantic};
use serde_json::Map;

use super::{KernelApi, NAME};

/// A caller who is known, and how it wants to be answered.
#[derive(Clone)]
pub(super) struct Caller {
    pub(super) principal: Principal,
    pub(super) connection: u64,
    /// W3C `traceparent`.
    pub(super) trace: Option<String>,
    /// How long a question may be held for a human.
    pub(super) wait: Duration,
}

impl KernelApi {
    /// Decides on a batch: each question for itself, in order.
    pub(super) async fn evaluate_all(
        self: &Arc<Self>,
        caller: &Caller,
        semantic: Semantic,
        questions: Vec<Result<Question, QuestionError>>,
    ) -> Vec<Evaluation> {
        let mut answers = Vec::with_capacity(questions.len());
        for question in questions {
            let answer = match question {
                Ok(question) => self.evaluate(caller, question).await,
                Err(error) => {
                    self.refuse(&caller.principal, error.reason(), error.to_string()).await
                }
            };
            let last = match semantic {
                Semantic::ExecuteAll => false,
                Semantic::DenyOnFirstDeny => !answer.decision,
                Semantic::PermitOnFirstPermit => answer.decision,
            };
            answers.push(answer);
            if last {
                break;
            }
        }
        answers
    }

    /// Decides on actions of which all happen or none: the first that may not decides for all, and
    /// those that were allowed before it end with nothing known of them.
    pub(super) async fn evaluate_whole(
        self: &Arc<Self>,
        caller: &Caller,
        actions: Vec<Action>,
    ) -> Evaluation {
        let reason = Reason::MalformedMessage;
        let mut answer = Evaluation {
            decision: false,
            context: explained(Verdict::Deny, reason, reason.sentence().into()),
        };
        let mut allowed: Vec<String> = Vec::new();
        for action in actions {
            let question = Question { subject: None, action, namespace: None, approval: None };
            answer = self.evaluate(caller, question).await;
            if !answer.decision {
                let (kernel, agent) = (&self.shared.kernel, &caller.principal.id);
                for id in &allowed {
                    self.open.report(kernel, agent, id, Outcome::Unknown).await;
                }
                break;
            }
            allowed.extend(answer.context.decision_id.clone());
        }
        answer
    }

    /// Refuses and records what cannot be judged.
    pub(super) async fn refuse(
        &self,
        principal: &Principal,
        reason: Reason,
        message: String,
    ) -> Evaluation {
        self.count(Verdict::Deny, reason);
        let index = self.shared.kernel.refuse(principal, NAME, reason, Map::new()).await;
        let context = DecisionContext { index, ..explained(Verdict::Deny, reason, message) };
        Evaluation { decision: false, context }
    }

    /// Decides on one question, and waits for a human as long as the caller wants to.
    pub(super) async fn evaluate(
        self: &Arc<Self>,
        caller: &Caller,
        question: Question,
    ) -> Evaluation {
        if let Some(reason) = self.refuses_outright(caller, &question) {
            return self
                .refuse_action(caller, &question, question.approval.as_deref(), reason)
                .await;
        }
        let question = Arc::new(question);
        let first = self.decide(caller, &question).await;
        let waits = first.context.approval.clone().filter(|_| !caller.wait.is_zero());
        let Some(approval) = waits else { return first };
        self.shared.metrics.held.inc();
        let state = tokio::select! {
            state = self.shared.kernel.wait_for_approval(&approval, caller.wait) => state,
            // It stays open; whoever comes back finds it.
            () = self.shared.drain.cancelled() => ApprovalState::Pending,
        };
        self.shared.metrics.held.dec();
        let reason = match state {
            ApprovalState::Pending => return first,
            // Used up meanwhile by the same action on another connection: this one is judged anew.
            ApprovalState::Approved | ApprovalState::Consumed => {
                return self.decide(caller, &question).await;
            }
            ApprovalState::Denied => Reason::ApprovalDenied,
            ApprovalState::Expired => Reason::ApprovalExpired,
        };
        self.refuse_action(caller, &question, Some(&approval), reason).await
    }

    /// What refuses before the policies are asked: another's name, and an approval that has ended.
    pub(super) fn refuses_outright(&self, caller: &Caller, question: &Question) -> Option<Reason> {
        let own = &caller.principal.id;
        if question.subject.as_ref().is_some_and(|named| named != own.as_str()) {
            return Some(Reason::SubjectMismatch);
        }
        match self.shared.kernel.own_approval(question.approval.as_deref()?, own) {
            Some(ApprovalState::Denied) => Some(Reason::ApprovalDenied),
            None | Some(ApprovalState::Expired) => Some(Reason::ApprovalExpired),
            Some(_) => None,
        }
    }

    /// Records what the caller's own enforcement point refuses, whatever the policies say.
    pub(super) async fn refuse_own(
        &self,
        caller: &Caller,
        question: &Question,
        reason: Reason,
    ) -> Evaluation {
        let reason = self.refuses_outright(caller, question).unwrap_or(reason);
        self.refuse_action(caller, question, question.approval.as_deref(), reason).await
    }

    async fn refuse_action(
        &self,
        caller: &Caller,
        question: &Question,
        approval: Option<&str>,
        reason: Reason,
    ) -> Evaluation {
        self.count(Verdict::Deny, reason);
        let request = context(caller, question).about(&question.action);
        let index = self.shared.kernel.refuse_action(&request, approval, reason).await;
        let mut context = explained(Verdict::Deny, reason, reason.sentence().into());
        (context.index, context.approval) = (index, approval.map(Into::into));
        Evaluation { decision: false, context }
    }

    /// Decides once. A caller who goes away meanwhile changes nothing: what is recorded as allowed is
    /// kept for its outcome.
    async fn decide(self: &Arc<Self>, caller: &Caller, question: &Arc<Question>) -> Evaluation {
        let (api, caller, question) = (Arc::clone(self), caller.clone(), Arc::clone(question));
        let decided = tokio::spawn(async move { api.decide_and_keep(&caller, &question).await });
        let failed = || {
            let reason = Reason::EvaluationFailed;
            let context = explained(Verdict::Deny, reason, reason.sentence().into());
            Evaluation { decision: false, context }
        };
        decided.await.unwrap_or_else(|_| failed())
    }

    async fn decide_and_keep(&self, caller: &Caller, question: &Question) -> Evaluation {
        let kernel = &self.shared.kernel;
        let started = std::time::Instant::now();
        let asked: &Action = &question.action;
        let decided = kernel.decide(context(caller, question), asked.clone()).await;
        self.shared.metrics.decision_seconds.observe(started.elapsed().as_secs_f64());
        let permit = match decided {
            Ok(permit) => permit,
            Err(refusal) => {
                self.count(refusal.decision.verdict, refusal.decision.reason);
                return refused(refusal);
            }
        };
        let (_, mut receipt) = permit.into_parts();
        // Nothing comes back here that could be withheld: the record is on disk before the answer.
        let record = std::mem::replace(&mut receipt.record, Record::Buffered);
        let settled = record.settle().await;
        let (id, decision) = (receipt.decision_id.clone(), Arc::clone(&receipt.decision));
        self.open.put(kernel, &caller.principal.id, caller.connection, receipt).await;
        let Ok(index) = settled else {
            self.open.report(kernel, &caller.principal.id, &id, Outcome::Failure).await;
            let reason = Reason::RecordFailed;
            self.count(Verdict::Deny, reason);
            let context = explained(Verdict::Deny, reason, reason.sentence().into());
            return Evaluation { decision: false, context };
        };
        self.count(Verdict::Allow, decision.reason);
        let mut context = explained(Verdict::Allow, decision.reason, decision.message.clone());
        (context.decision_id, context.index) = (Some(id), index);
        Evaluation { decision: true, context }
    }

    fn count(&self, verdict: Verdict, reason: Reason) {
        let labels = [NAME, verdict.as_str(), reason.code()];
        self.shared.metrics.decisions.with_label_values(&labels).inc();
    }
}

/// The circumstances: the agent's own namespace, unless its server is in another.
pub(super) fn context<'a>(caller: &'a Caller, question: &'a Question) -> Context<'a> {
    let own = caller.principal.id.namespace();
    let namespace = question.namespace.as_deref().or(own).unwrap_or("default");
    let scope = match question.action.protocol {
        Protocol::Ide => Scope::Ide,
        _ => Scope::Kernel,
    };
    let mut context = Context::new(&caller.principal, scope, namespace);
    context.trace = caller.trace.as_deref();
    context
}

fn refused(refusal: Refusal) -> Evaluation {
    let Refusal { decision_id, decision, approval, index } = refusal;
    let mut context = explained(decision.verdict, decision.reason, decision.message.clone());
    context.decision_id = Some(decision_id).filter(|id| !id.is_empty());
    (context.approval, context.index) = (approval, index);
    Evaluation { decision: false, context }
}

fn explained(verdict: Verdict, reason: Reason, message: String) -> DecisionContext {
    DecisionContext {
        verdict: verdict.as_str().into(),
        reason: reason.code().into(),
        message,
        decision_id: None,
        approval: None,
        index: None,
    }
}
