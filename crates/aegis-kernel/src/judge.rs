//! The judgement: everything of a decision but its effects.

use std::collections::{HashMap, VecDeque};

use aegis_core::{
    AgentId, Digest, Timestamp,
    action::Action,
    capability::Capability,
    cost::Cost,
    decision::{ApprovalNeed, Decision, Finding, RateObservation, Reason, Verdict},
    input::{ActionInput, ContextInput, Input, PrincipalInput, ProvenanceInput},
    policy::{Effect, Obligation, ObligationKind, Scope},
    risk::{Facts, Risk},
    thresholds::Thresholds,
    tier::Tier,
    trust::TrustScore,
};
use aegis_policy::Evaluation;
use parking_lot::Mutex;

use crate::{Kernel, policies_digest, request::Request, state::State};

/// What the judgement is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The action itself.
    Act,
    /// Naming it in a list.
    List,
}

/// A decision before it is settled and recorded.
#[derive(Debug)]
pub struct Judgement {
    /// The decision so far.
    pub decision: Decision,
    /// The digest over the policies that spoke.
    pub policies: Digest,
    /// The facts that risk was computed from.
    pub facts: Facts,
    evaluation: Evaluation,
}

/// How many actions each agent started in the last minute. Bounded: past the bound, nobody new is
/// counted and everybody new reads as busy.
#[derive(Debug, Default)]
pub(crate) struct RecentActions {
    by_agent: Mutex<HashMap<AgentId, VecDeque<u64>>>,
}

/// The most starts that are remembered of one agent.
const MAX_RECENT: usize = 10_000;
/// The most agents that are remembered.
const MAX_AGENTS: usize = 10_000;
/// The window of `context.rate`. Seconds.
const RATE_WINDOW_SECS: u64 = 60;

impl RecentActions {
    pub(crate) fn note(&self, agent: &AgentId, now: Timestamp) {
        let mut agents = self.by_agent.lock();
        if !agents.contains_key(agent) {
            if agents.len() >= MAX_AGENTS {
                return;
            }
            agents.insert(agent.clone(), VecDeque::new());
        }
        if let Some(starts) = agents.get_mut(agent) {
            let oldest = now.as_secs().saturating_sub(RATE_WINDOW_SECS);
            while starts.front().is_some_and(|&start| start <= oldest) || starts.len() >= MAX_RECENT
            {
                starts.pop_front();
            }
            starts.push_back(now.as_secs());
        }
    }

    fn count(&self, agent: &AgentId, now: Timestamp) -> u32 {
        let agents = self.by_agent.lock();
        let oldest = now.as_secs().saturating_sub(RATE_WINDOW_SECS);
        match agents.get(agent) {
            Some(starts) => {
                let expired = starts.partition_point(|&start| start <= oldest);
                u32::try_from(starts.len() - expired).unwrap_or(u32::MAX)
            }
            None if agents.len() >= MAX_AGENTS => u32::MAX,
            None => 0,
        }
    }
}

/// Judges `request` at `now`.
pub(crate) fn judge(
    kernel: &Kernel,
    request: &Request<'_>,
    now: Timestamp,
    purpose: Purpose,
) -> Judgement {
    let state = kernel.state();
    let thresholds = state.thresholds.of(request.context.principal.id.namespace());
    let (trust, critical, trust_as_of) = {
        let mut book = kernel.trust.lock();
        let principal = request.context.principal;
        (
            book.effective(&principal.id, &principal.delegation),
            book.is_critical(&principal.id, thresholds),
            book.trust_as_of(),
        )
    };
    let facts = Facts::of(request.action);
    let risk = Risk::compute(&facts, trust, thresholds);
    let delegated = !request.context.principal.delegation.is_empty();
    let (tier, escalations) =
        Tier::of(&risk, &facts, trust, Cost::NotApplicable, delegated, thresholds);
    let principal = &request.context.principal.id;
    let digest = request.action.digest(principal, request.context.endpoint);
    let mut judgement = Judgement {
        decision: Decision {
            verdict: Verdict::Deny,
            reason: Reason::NoPolicyAllows,
            message: Reason::NoPolicyAllows.sentence().into(),
            action: digest.as_ref().map_or_else(|_| Digest::of(b""), |digest| *digest),
            findings: Vec::new(),
            obligations: Vec::new(),
            rates: Vec::new(),
            risk,
            tier,
            escalations,
            trust,
            trust_as_of,
            approval: None,
        },
        policies: policies_digest(std::iter::empty()),
        facts,
        evaluation: Evaluation::default(),
    };
    let refused = match digest {
        Err(_) => Some(Reason::InexactNumber),
        Ok(_) => refused_outright(request, &state, critical, thresholds, &risk, now),
    };
    if let Some(reason) = refused {
        judgement.deny(reason);
        return judgement;
    }
    let input = judgement.input(kernel, request, trust, now);
    let engine = &kernel.engine;
    let namespace = Some(request.context.server_namespace);
    let evaluation = if request.action.kind.is_preparatory() {
        engine.may_prepare(&input, namespace)
    } else if purpose == Purpose::List {
        engine.may_allow(&input, namespace)
    } else {
        engine.evaluate(&input, namespace)
    };
    judgement.combine(request, evaluation, thresholds, purpose);
    if state.glass_broken_until(&request.context.principal.id, now).is_some() {
        judgement.lift();
    }
    // Nothing comes back through the kernel API or a hook that could be redacted there.
    let unmet = |obligation: &Obligation| obligation.kind == ObligationKind::RedactResult;
    if matches!(request.context.scope, Scope::Kernel | Scope::Ide)
        && judgement.decision.verdict != Verdict::Deny
        && judgement.decision.obligations.iter().any(unmet)
    {
        judgement.deny(Reason::ObligationUnmet);
    }
    judgement
}

/// What refuses whatever the policies say.
fn refused_outright(
    request: &Request<'_>,
    state: &State,
    critical: bool,
    thresholds: &Thresholds,
    risk: &Risk,
    now: Timestamp,
) -> Option<Reason> {
    let principal = request.context.principal;
    let Some(registered) = state.registry.find(&principal.id) else {
        return Some(Reason::IdentityUnknown);
    };
    if state.revoked.contains(&principal.id) {
        return Some(Reason::IdentityRevoked);
    }
    if principal.not_after <= now {
        return Some(Reason::IdentityExpired);
    }
    if critical || state.is_stopped(&principal.id) {
        return Some(Reason::AgentQuarantined);
    }
    let ended = |one: &AgentId| {
        state.registry.find(one).is_none() || state.revoked.contains(one) || state.is_stopped(one)
    };
    if principal.delegation.iter().any(ended) {
        return Some(Reason::DelegationEnded);
    }
    let stale = state.confirmed_at.is_some_and(|confirmed| {
        now.since(confirmed).as_secs() > u64::from(thresholds.max_staleness_secs)
    });
    if stale && risk.sensitivity >= thresholds.sensitive_at {
        return Some(Reason::StateStale);
    }
    // What was registered when an exchange was opened may have been narrowed since.
    let holds = |held: &[Capability]| held.is_empty() || covers(held, request.action);
    if !holds(&registered.capabilities) {
        return Some(Reason::CapabilityMissing);
    }
    if !holds(&principal.capabilities) {
        // Who lends something of no use must not harm the trust of who takes it.
        let lent = !principal.delegation.is_empty();
        return Some(if lent { Reason::DelegationInsufficient } else { Reason::CapabilityMissing });
    }
    None
}

/// Whether one of these capabilities is for the action. To prepare takes none.
fn covers(held: &[Capability], action: &Action) -> bool {
    let (verb, segments) = (action.kind.capability_verb(), action.capability_segments());
    action.kind.is_preparatory() || held.iter().any(|one| one.covers(verb, &segments))
}

impl Judgement {
    pub(crate) fn deny(&mut self, reason: Reason) {
        self.decision.verdict = Verdict::Deny;
        self.decision.reason = reason;
        self.decision.message = reason.sentence().into();
        self.decision.approval = None;
    }

    pub(crate) fn allow(&mut self, reason: Reason) {
        self.decision.verdict = Verdict::Allow;
        self.decision.reason = reason;
        self.decision.message = reason.sentence().into();
    }

    /// Lets pass what policies alone hold back. Who is not known, or is stopped, or lacks the capability
    /// stays refused; so does what a policy could not be asked about, and what is too often.
    fn lift(&mut self) {
        let by_policies = matches!(
            self.decision.reason,
            Reason::PolicyDenied
                | Reason::NoPolicyAllows
                | Reason::ApprovalByPolicy
                | Reason::ApprovalByTier
        );
        if !by_policies {
            return;
        }
        // A rule that forbids as well must not hide that the limit is used up.
        if self.evaluation.determining().any(|finding| finding.is_rate_limited()) {
            self.deny(Reason::RateLimited);
        } else {
            self.allow(Reason::GlassBroken);
            self.decision.approval = None;
        }
    }

    /// Counts the action under the rate limits that spoke; `false` where one is used up.
    pub(crate) fn take_rates(
        &self,
        kernel: &Kernel,
        request: &Request<'_>,
        now: Timestamp,
    ) -> bool {
        let input = self.input(kernel, request, self.decision.trust, now);
        kernel.engine.take(&self.evaluation, &input)
    }

    fn input<'a>(
        &self,
        kernel: &Kernel,
        request: &Request<'a>,
        trust: TrustScore,
        now: Timestamp,
    ) -> Input<'a> {
        let (action, principal) = (request.action, request.context.principal);
        Input {
            action: ActionInput::of(action, request.context.endpoint, self.decision.action),
            principal: PrincipalInput {
                id: &principal.id,
                name: principal.id.name(),
                namespace: principal.id.namespace().unwrap_or_default(),
                sponsor: principal.sponsor.as_ref().map_or("", |sponsor| sponsor.as_str()),
                capabilities: &principal.capabilities,
                delegation: &principal.delegation,
                trust,
            },
            provenance: request.context.provenance.map(|provenance| ProvenanceInput {
                signer: provenance.signer,
                trust: provenance.trust,
                signed: provenance.signed,
            }),
            context: ContextInput {
                scope: request.context.scope,
                intent: request.context.provenance.and_then(|provenance| provenance.intent),
                session: request.context.session,
                approvals: 0,
                mfa: false,
                rate: kernel.recent.count(&principal.id, now),
                tier: self.decision.tier,
                risk: self.decision.risk,
                now,
                now_secs: now.as_secs(),
            },
        }
    }

    fn combine(
        &mut self,
        request: &Request<'_>,
        evaluation: Evaluation,
        thresholds: &Thresholds,
        purpose: Purpose,
    ) {
        let decision = &mut self.decision;
        decision.findings = findings(&evaluation);
        decision.obligations = evaluation.obligations().cloned().collect();
        if evaluation.has_failures() {
            // What it would have kept out of the record is not known.
            let (kind, target) = (ObligationKind::RedactArgument, "$".to_owned());
            decision.obligations.push(Obligation { kind, target });
        }
        decision.rates = rates(&evaluation);
        self.policies = policies_digest(
            decision.findings.iter().map(|finding| (finding.policy.as_str(), finding.digest)),
        );
        let said = evaluation.determining().find_map(|finding| finding.reason().map(str::to_owned));
        // Who lists is not asked.
        let tier = if purpose == Purpose::Act { decision.tier } else { Tier::Local };
        let preparatory = request.action.kind.is_preparatory();
        let (verdict, reason) =
            verdict(evaluation.effect, || denial(&evaluation), tier, preparatory);
        decision.verdict = verdict;
        decision.reason = reason;
        let own_words = matches!(reason, Reason::PolicyDenied | Reason::ApprovalByPolicy);
        decision.message =
            said.filter(|_| own_words).unwrap_or_else(|| reason.sentence().to_owned());
        if verdict == Verdict::RequireApproval {
            let by_tier = if tier == Tier::Mesh { thresholds.approvals_at_l3 } else { 0 };
            decision.approval = Some(ApprovalNeed {
                quorum: evaluation.approvals().max(by_tier).max(1),
                mfa: evaluation.require_mfa(),
            });
        }
        self.evaluation = evaluation;
    }
}

/// What the policies' word comes to at a tier. `denial` says why they deny.
#[must_use]
pub fn verdict(
    effect: Option<Effect>,
    denial: impl FnOnce() -> Reason,
    tier: Tier,
    preparatory: bool,
) -> (Verdict, Reason) {
    match effect {
        None => (Verdict::Deny, Reason::NoPolicyAllows),
        Some(Effect::Deny) => (Verdict::Deny, denial()),
        Some(Effect::RequireApproval) => (Verdict::RequireApproval, Reason::ApprovalByPolicy),
        Some(Effect::Allow) if tier == Tier::Mesh => {
            (Verdict::RequireApproval, Reason::ApprovalByTier)
        }
        Some(Effect::Allow) if preparatory => (Verdict::Allow, Reason::SessionAllowed),
        Some(Effect::Allow) => (Verdict::Allow, Reason::PolicyAllowed),
    }
}

/// Why the policies deny: what failed before what forbids, and the limit only if nothing forbids.
fn denial(evaluation: &Evaluation) -> Reason {
    let mut reason = Reason::RateLimited;
    for finding in evaluation.determining() {
        if let Some(error) = &finding.error {
            let timeout = matches!(error, aegis_policy::EvalError::Deadline);
            return if timeout { Reason::EvaluationTimeout } else { Reason::EvaluationFailed };
        }
        if !finding.is_rate_limited() {
            reason = Reason::PolicyDenied;
        }
    }
    reason
}

/// The findings for the record, the determining ones first.
fn findings(evaluation: &Evaluation) -> Vec<Finding> {
    let effect = evaluation.effect;
    let mut list: Vec<Finding> = evaluation
        .findings
        .iter()
        .map(|finding| Finding {
            policy: finding.policy().to_string(),
            rule: finding.rule.name.clone(),
            effect: finding.effect,
            mode: finding.rule.mode,
            digest: finding.rule.policy_digest,
            message: finding.reason().map(str::to_owned),
        })
        .collect();
    list.sort_by_key(|finding| {
        finding.mode == aegis_core::policy::Mode::Audit || Some(finding.effect) != effect
    });
    list
}

fn rates(evaluation: &Evaluation) -> Vec<RateObservation> {
    let limited = evaluation.findings.iter().filter_map(|finding| {
        let (rate, limit) = (finding.rate?, finding.rule.rate_limit.as_ref()?);
        Some(RateObservation {
            limit: format!("{}#{}", finding.policy(), finding.rule.name),
            scope: limit.scope,
            remaining: rate.remaining,
        })
    });
    limited.collect()
}
