//! What the kernel knows besides policies and the ledger, replaced as a whole.

use std::collections::{HashMap, HashSet};

use aegis_core::{AgentId, Timestamp, thresholds::Thresholds};

use crate::principal::Registry;

/// Registrations, revocations, thresholds and the kill switch.
#[derive(Clone, Debug, Default)]
pub struct State {
    /// Who is registered.
    pub registry: Registry,
    /// Whose identity is revoked.
    pub revoked: HashSet<AgentId>,
    /// Who is quarantined by hand; the trust book quarantines besides.
    pub quarantined: HashSet<AgentId>,
    /// Whom the configuration suspends, one by one; `thresholds` suspend namespaces and everybody.
    pub suspended: HashSet<AgentId>,
    /// Whom a human has freed from the policies, and until when. Kept nowhere: a restart ends it.
    pub glass: HashMap<AgentId, Timestamp>,
    /// The thresholds.
    pub thresholds: Thresholding,
    /// The serial of the operator's state that this is; 0 on one machine.
    pub serial: u64,
    /// When this was last known to be current; `None` means it is by construction.
    pub confirmed_at: Option<Timestamp>,
}

impl State {
    /// Until when the policies are lifted for an agent, if they are.
    #[must_use]
    pub fn glass_broken_until(&self, agent: &AgentId, now: Timestamp) -> Option<Timestamp> {
        self.glass.get(agent).copied().filter(|until| *until > now)
    }

    /// Whether an agent is stopped: by hand, or by the configuration, alone or with others.
    #[must_use]
    pub fn is_stopped(&self, agent: &AgentId) -> bool {
        self.quarantined.contains(agent)
            || self.suspended.contains(agent)
            || self.thresholds.of(agent.namespace()).suspended
    }
}

/// The thresholds of the whole, and of namespaces that tighten them.
#[derive(Clone, Debug, Default)]
pub struct Thresholding {
    /// For everybody, and for the trust fold.
    pub base: Thresholds,
    tightened: HashMap<String, Thresholds>,
}

impl Thresholding {
    /// The thresholds of the whole; namespaces may tighten them.
    #[must_use]
    pub fn new(base: Thresholds) -> Self {
        Self { base, tightened: HashMap::new() }
    }

    /// Adds a namespace's thresholds: each field counts only where it is stricter than the base.
    pub fn tighten(&mut self, namespace: &str, own: &Thresholds) {
        let base = self.tightened.get(namespace).unwrap_or(&self.base);
        let tightened = Thresholds {
            t_min: base.t_min.max(own.t_min),
            tau: base.tau.min(own.tau),
            sensitive_at: base.sensitive_at.min(own.sensitive_at),
            cost_limit_micros: base.cost_limit_micros.min(own.cost_limit_micros),
            file_limit: base.file_limit.min(own.file_limit),
            approvals_at_l3: base.approvals_at_l3.max(own.approvals_at_l3),
            max_staleness_secs: base.max_staleness_secs.min(own.max_staleness_secs),
            approval_ttl_secs: base.approval_ttl_secs.min(own.approval_ttl_secs),
            critical_score: base.critical_score.max(own.critical_score),
            critical_confidence: base.critical_confidence.min(own.critical_confidence),
            suspended: base.suspended || own.suspended,
            // Weights and the fold's parameters are the whole's: no single direction is stricter.
            ..base.clone()
        };
        self.tightened.insert(namespace.into(), tightened);
    }

    /// The thresholds that hold in a namespace.
    #[must_use]
    pub fn of(&self, namespace: Option<&str>) -> &Thresholds {
        namespace.and_then(|name| self.tightened.get(name)).unwrap_or(&self.base)
    }
}

#[cfg(test)]
mod tests {
    use aegis_core::risk::PerMille;

    use super::*;

    #[test]
    fn a_namespace_can_only_tighten() {
        let mut thresholding = Thresholding::default();
        let loose = Thresholds {
            t_min: PerMille::clamped(1),
            tau: PerMille::clamped(1000),
            file_limit: 10_000,
            approvals_at_l3: 1,
            ..Thresholds::default()
        };
        thresholding.tighten("shop", &loose);
        assert_eq!(*thresholding.of(Some("shop")), Thresholds::default());
        let strict = Thresholds { t_min: PerMille::clamped(950), file_limit: 3, ..loose };
        thresholding.tighten("shop", &strict);
        assert_eq!(thresholding.of(Some("shop")).t_min.get(), 950);
        assert_eq!(thresholding.of(Some("shop")).file_limit, 3);
        assert_eq!(thresholding.of(Some("other")).file_limit, 10);
    }

    #[test]
    fn a_suspension_is_not_lifted_below() {
        let suspended = Thresholds { suspended: true, ..Thresholds::default() };
        let mut thresholding = Thresholding::default();
        thresholding.tighten("shop", &suspended);
        thresholding.tighten("shop", &Thresholds::default());
        assert!(thresholding.of(Some("shop")).suspended && !thresholding.of(None).suspended);
        let mut thresholding = Thresholding::new(suspended);
        thresholding.tighten("shop", &Thresholds::default());
        assert!(thresholding.of(Some("shop")).suspended);
    }

    /// What an author is told to be looser is what does not count, field by field.
    #[test]
    fn what_counts_is_what_does_not_loosen() {
        let base = serde_json::to_value(Thresholds::default()).unwrap();
        for (field, value) in base.as_object().unwrap() {
            let Some(number) = value.as_u64() else { continue };
            for changed in [number - 1, number + 1] {
                let mut own = base.clone();
                own[field] = changed.into();
                let Ok(own) = serde_json::from_value::<Thresholds>(own) else { continue };
                let mut thresholding = Thresholding::default();
                thresholding.tighten("shop", &own);
                let counts = *thresholding.of(Some("shop")) == own;
                let told: Vec<_> =
                    own.loosenings(&Thresholds::default()).into_iter().map(|l| l.field).collect();
                assert_eq!(counts, told.is_empty(), "{field} = {changed}: {told:?}");
                assert!(told.is_empty() || told == [field.as_str()], "{field}: {told:?}");
            }
        }
    }
}
