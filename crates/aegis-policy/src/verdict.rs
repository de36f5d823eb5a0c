//! What policies say about one action, and how their findings combine.
//!
//! Deny overrides require_approval overrides allow; no allow is a deny. A rate limit that is used
//! up denies, so that a second allow cannot step around it. A policy of mode `audit` is told
//! beside, and counts for nothing.

use std::sync::Arc;

use aegis_core::policy::{Effect, Mode, Obligation, ObligationKind};

use crate::{host::EvalError, policy::PolicyId, rate::RateObservation, set::RuleInfo};

/// One rule that spoke.
#[derive(Clone, Debug, PartialEq)]
pub struct Finding {
    /// The rule.
    pub rule: Arc<RuleInfo>,
    /// What it says here: its own effect, or a deny where its limit is used up or it failed.
    pub effect: Effect,
    /// A reason that raw Rego gave; else see the rule's.
    pub reason: Option<String>,
    /// Obligations that raw Rego gave; else see the rule's.
    pub obligations: Vec<Obligation>,
    /// What the rule's rate limit said.
    pub rate: Option<RateObservation>,
    /// Why the policy could not be evaluated.
    pub error: Option<EvalError>,
}

/// What all policies that match say about one action.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Evaluation {
    /// Every rule that spoke, in the policies' order.
    pub findings: Vec<Finding>,
    /// What the enforcing policies say together; `None` where none allows, which denies.
    pub effect: Option<Effect>,
    /// The same if policies of mode `audit` enforced.
    pub audited: Option<Effect>,
}

/// On whose behalf a policy speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Side {
    /// The whole cluster.
    Cluster,
    /// The namespace of the agent.
    Agent,
    /// The namespace of the server, where it is another.
    Server,
}

/// Combines findings as they come.
#[derive(Debug)]
pub(crate) struct Combine {
    deny: bool,
    ask: bool,
    allowed: [bool; 3],
    spoken_for: [bool; 3],
    two_sided: bool,
}

impl Side {
    const fn index(self) -> usize {
        match self {
            Self::Cluster => 0,
            Self::Agent => 1,
            Self::Server => 2,
        }
    }
}

impl Combine {
    pub(crate) const fn new(two_sided: bool) -> Self {
        Self { deny: false, ask: false, allowed: [false; 3], spoken_for: [false; 3], two_sided }
    }

    /// A policy of this side matches.
    pub(crate) fn selected(&mut self, side: Side) {
        if let Some(slot) = self.spoken_for.get_mut(side.index()) {
            *slot = true;
        }
    }

    /// A rule of this side speaks. One that does not permit only denies and asks.
    pub(crate) fn add(&mut self, side: Side, effect: Effect, permits: bool) {
        match effect {
            Effect::Deny => self.deny = true,
            Effect::RequireApproval => self.ask = true,
            Effect::Allow => {}
        }
        // Who asks would allow once answered.
        if effect != Effect::Deny
            && permits
            && let Some(slot) = self.allowed.get_mut(side.index())
        {
            *slot = true;
        }
    }

    /// The combined effect. Between two namespaces both must allow; one without a policy of its
    /// own for the call leaves it to the cluster's.
    pub(crate) fn effect(&self) -> Option<Effect> {
        let [cluster, agent, server] = self.allowed;
        let [_, agent_speaks, server_speaks] = self.spoken_for;
        let allowed = if self.two_sided {
            (agent || (cluster && !agent_speaks)) && (server || (cluster && !server_speaks))
        } else {
            cluster || agent
        };
        match (self.deny, allowed, self.ask) {
            (true, ..) => Some(Effect::Deny),
            (false, false, _) => None,
            (false, true, true) => Some(Effect::RequireApproval),
            (false, true, false) => Some(Effect::Allow),
        }
    }
}

// === impl Finding ===

impl Finding {
    pub(crate) fn of(rule: &Arc<RuleInfo>, effect: Effect) -> Self {
        Self {
            rule: Arc::clone(rule),
            effect,
            reason: None,
            obligations: Vec::new(),
            rate: None,
            error: None,
        }
    }

    /// The policy.
    #[must_use]
    pub fn policy(&self) -> &PolicyId {
        &self.rule.policy
    }

    /// The sentence for who is refused or asked.
    #[must_use]
    pub fn reason(&self) -> Option<&str> {
        self.reason.as_deref().or(self.rule.reason.as_deref())
    }

    /// Whether it binds.
    #[must_use]
    pub fn enforces(&self) -> bool {
        self.rule.mode == Mode::Enforce
    }

    /// Whether it denies because its rate limit is used up.
    #[must_use]
    pub fn is_rate_limited(&self) -> bool {
        self.rate.is_some_and(|rate| !rate.allows())
    }
}

// === impl Evaluation ===

impl Evaluation {
    /// The findings that determined the effect: binding, and of the effect that won.
    pub fn determining(&self) -> impl Iterator<Item = &Finding> {
        let effect = self.effect;
        self.findings.iter().filter(move |f| f.enforces() && Some(f.effect) == effect)
    }

    /// How many approvers must agree: the most that a binding rule wants.
    #[must_use]
    pub fn approvals(&self) -> u8 {
        self.asking().map(|finding| finding.rule.approvals).max().unwrap_or(0)
    }

    /// Whether an approval needs a second factor.
    #[must_use]
    pub fn require_mfa(&self) -> bool {
        self.asking().any(|finding| finding.rule.require_mfa)
    }

    /// What must be done: to the message if it is allowed, what any binding rule wants. What is to be
    /// kept out of the record is so whatever comes out, also for a rule that denies or only audits:
    /// what has been recorded cannot be taken back.
    pub fn obligations(&self) -> impl Iterator<Item = &Obligation> {
        self.findings.iter().flat_map(|finding| {
            let binds = finding.enforces() && finding.effect != Effect::Deny;
            let wanted = finding.rule.obligations.iter().chain(&finding.obligations);
            wanted.filter(move |one| binds || one.kind == ObligationKind::RedactArgument)
        })
    }

    /// Whether a policy that might have said what is to be kept out of the record could not speak.
    #[must_use]
    pub fn has_failures(&self) -> bool {
        self.findings.iter().any(|finding| finding.error.is_some())
    }

    fn asking(&self) -> impl Iterator<Item = &Finding> {
        self.findings.iter().filter(|f| f.enforces() && f.effect == Effect::RequireApproval)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn combined(two_sided: bool, selected: &[Side], effects: &[(Side, Effect)]) -> Option<Effect> {
        let mut combine = Combine::new(two_sided);
        selected.iter().for_each(|side| combine.selected(*side));
        effects.iter().for_each(|(side, effect)| combine.add(*side, *effect, true));
        combine.effect()
    }

    #[test]
    fn deny_overrides_asking_overrides_allow() {
        use Effect::{Allow, Deny, RequireApproval};
        let here = |effects: &[Effect]| {
            let all: Vec<_> = effects.iter().map(|effect| (Side::Cluster, *effect)).collect();
            combined(false, &[Side::Cluster], &all)
        };
        assert_eq!(here(&[]), None);
        assert_eq!(here(&[Allow]), Some(Allow));
        assert_eq!(here(&[Allow, RequireApproval]), Some(RequireApproval));
        assert_eq!(here(&[RequireApproval, Deny, Allow]), Some(Deny));
    }

    #[test]
    fn what_does_not_permit_only_denies_and_asks() {
        use Effect::{Allow, Deny, RequireApproval};
        let said = |named: Option<Effect>, unnamed: Effect| {
            let mut combine = Combine::new(false);
            combine.add(Side::Agent, unnamed, false);
            named.into_iter().for_each(|effect| combine.add(Side::Agent, effect, true));
            combine.effect()
        };
        assert_eq!(said(None, Allow), None);
        assert_eq!(said(None, RequireApproval), None);
        assert_eq!(said(None, Deny), Some(Deny));
        assert_eq!(said(Some(Allow), Allow), Some(Allow));
        assert_eq!(said(Some(Allow), RequireApproval), Some(RequireApproval));
    }

    #[test]
    fn two_namespaces_must_both_allow() {
        use Effect::Allow;
        use Side::{Agent, Cluster, Server};
        type Case<'a> = (&'a [Side], &'a [(Side, Effect)], Option<Effect>);
        let cases: [Case<'_>; 5] = [
            (&[Agent], &[(Agent, Allow)], None),
            (&[Agent, Server], &[(Agent, Allow), (Server, Allow)], Some(Allow)),
            (&[Cluster], &[(Cluster, Allow)], Some(Allow)),
            (&[Cluster, Server], &[(Cluster, Allow)], None),
            (&[Cluster, Agent], &[(Cluster, Allow), (Agent, Allow)], Some(Allow)),
        ];
        for (selected, effects, expected) in cases {
            assert_eq!(combined(true, selected, effects), expected, "{selected:?} {effects:?}");
        }
    }
}
