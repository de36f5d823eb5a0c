//! The policy engine of one process: the last good policies, and their evaluation.

use std::{
    cell::RefCell,
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use aegis_core::{
    Timestamp,
    input::Input,
    policy::{Effect, Mode, RateScope},
};
use arc_swap::ArcSwap;

use crate::{
    compile::{Bundle, Compiler, PolicyFailure},
    evaluator::{Evaluator, Look},
    host::{Host, Limits, LoadError},
    opa::OpaError,
    policy::{Policy, PolicyId},
    rate::RateTable,
    set::PolicySet,
    verdict::{Evaluation, Finding},
};

/// How a policy stands after a reload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PolicyState {
    /// As it was written last.
    Ready,
    /// Broken now; what it said before still holds.
    LastGood,
    /// Broken, and there is no version before.
    Failed,
}

/// How one policy stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyStatus {
    /// The policy.
    pub policy: PolicyId,
    /// How it stands.
    pub state: PolicyState,
    /// What is wrong; empty where nothing is.
    pub message: String,
    /// The line of its Rego, if it is about one.
    pub line: Option<u32>,
}

/// The policy engine.
pub struct PolicyEngine {
    id: u64,
    host: Arc<Host>,
    set: ArcSwap<PolicySet>,
    version: AtomicU64,
    rates: Mutex<RateTable>,
    /// Serialises reloads, and holds the last good version of each policy.
    good: Mutex<BTreeMap<PolicyId, Policy>>,
}

static NEXT_ENGINE: AtomicU64 = AtomicU64::new(0);
/// The most engines that one thread keeps evaluators for: more than one exists only in tests.
const MAX_EVALUATORS: usize = 8;

thread_local! {
    static EVALUATORS: RefCell<Vec<(u64, Evaluator)>> = const { RefCell::new(Vec::new()) };
}

impl std::fmt::Debug for PolicyEngine {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PolicyEngine").field("version", &self.version()).finish_non_exhaustive()
    }
}

impl PolicyEngine {
    /// An engine without policies, which denies everything.
    #[must_use]
    pub fn new(host: Arc<Host>) -> Self {
        Self {
            id: NEXT_ENGINE.fetch_add(1, Ordering::Relaxed),
            host,
            set: ArcSwap::from_pointee(PolicySet::empty()),
            version: AtomicU64::new(0),
            rates: Mutex::default(),
            good: Mutex::default(),
        }
    }

    /// An engine with the default limits and no cache.
    ///
    /// # Errors
    /// As [`Host::new`].
    pub fn with_defaults() -> Result<Self, LoadError> {
        Ok(Self::new(Arc::new(Host::new(Limits::default(), None)?)))
    }

    /// Counts up with each change of policies.
    #[must_use]
    pub fn version(&self) -> u64 {
        self.version.load(Ordering::Acquire)
    }

    /// The policies in force.
    #[must_use]
    pub fn policies(&self) -> Arc<PolicySet> {
        self.set.load_full()
    }

    /// Compiles `policies` and puts them in force, all at once. One that is broken keeps its last
    /// good version; one that is no longer there is gone.
    ///
    /// # Errors
    /// When `opa` itself is of no use; then nothing changes.
    pub fn reload(
        &self,
        compiler: &Compiler,
        policies: &[Policy],
    ) -> Result<Vec<PolicyStatus>, OpaError> {
        let mut good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        let mut broken: HashMap<PolicyId, PolicyFailure> = HashMap::new();
        // Twice at most: the second time with the last good versions in place of the broken.
        let mut wanted: Vec<Policy> = policies.to_vec();
        let set = loop {
            let compiled = compiler.compile(&wanted)?;
            let before = self.set.load();
            let (set, mut failures) = PolicySet::load(&compiled.bundle, &self.host, Some(&before));
            failures.extend(compiled.failures);
            let fresh: Vec<_> =
                failures.into_iter().filter(|f| !broken.contains_key(&f.policy)).collect();
            if fresh.is_empty() {
                break set;
            }
            for failure in fresh {
                wanted.retain(|policy| policy.id != failure.policy);
                wanted.extend(good.get(&failure.policy).cloned());
                broken.insert(failure.policy.clone(), failure);
            }
        };
        *good = wanted.into_iter().map(|policy| (policy.id.clone(), policy)).collect();
        good.retain(|id, _| set.policies().any(|(known, _)| known == id));
        self.install(set);
        Ok(policies.iter().map(|policy| status(&policy.id, &broken, &good)).collect())
    }

    /// Puts a bundle that was compiled elsewhere in force; all of it, or nothing.
    ///
    /// # Errors
    /// The policies that cannot be loaded; then nothing changes.
    pub fn load(&self, bundle: &Bundle) -> Result<(), Vec<PolicyFailure>> {
        let mut good = self.good.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.set.load();
        let (set, failures) = PolicySet::load(bundle, &self.host, Some(&before));
        if !failures.is_empty() {
            return Err(failures);
        }
        let policies = bundle.policies.iter().map(|bundled| bundled.policy.clone());
        *good = policies.map(|policy| (policy.id.clone(), policy)).collect();
        self.install(set);
        Ok(())
    }

    fn install(&self, set: PolicySet) {
        self.set.store(Arc::new(set));
        self.version.fetch_add(1, Ordering::AcqRel);
    }

    /// What the policies say about an action. `server_namespace` is the namespace of the upstream,
    /// where it has one; if it is another than the agent's, both must allow.
    ///
    /// Rate limits are looked at and not counted: see [`PolicyEngine::take`].
    #[must_use]
    pub fn evaluate(&self, input: &Input<'_>, server_namespace: Option<&str>) -> Evaluation {
        self.look(input, server_namespace, Look::Act)
    }

    /// What the policies say about naming something in a list: the action's arguments are not
    /// known, so conditions on them count as met for `allow` and unmet for the others.
    #[must_use]
    pub fn may_allow(&self, input: &Input<'_>, server_namespace: Option<&str>) -> Evaluation {
        self.look(input, server_namespace, Look::List)
    }

    /// What the policies say about an action that only prepares others (opening a session, asking
    /// for a list): allowed where this agent could be allowed anything on this server, unless a
    /// rule denies it or asks.
    #[must_use]
    pub fn may_prepare(&self, input: &Input<'_>, server_namespace: Option<&str>) -> Evaluation {
        let mut evaluation = self.look(input, server_namespace, Look::List);
        let reachable =
            self.with_evaluator(|evaluator| evaluator.may_reach(input, server_namespace));
        if reachable {
            let asked = |findings: &[Finding], enforced: bool| {
                let asks = |f: &Finding| {
                    f.effect == Effect::RequireApproval && (!enforced || f.enforces())
                };
                if findings.iter().any(asks) { Effect::RequireApproval } else { Effect::Allow }
            };
            let (enforced, audited) =
                (asked(&evaluation.findings, true), asked(&evaluation.findings, false));
            evaluation.effect = evaluation.effect.or(Some(enforced));
            evaluation.audited = evaluation.audited.or(Some(audited));
        }
        evaluation
    }

    /// Counts an action that is finally allowed under every rate limit that spoke; `false` where
    /// one has been used up meanwhile, which denies.
    #[must_use]
    pub fn take(&self, evaluation: &Evaluation, input: &Input<'_>) -> bool {
        let limited: Vec<_> = evaluation
            .findings
            .iter()
            .filter(|finding| finding.rate.is_some() && finding.effect != Effect::Deny)
            .collect();
        if limited.is_empty() {
            return true;
        }
        let mut rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        let keyed = |mode: Mode| {
            limited
                .iter()
                .filter(|finding| finding.rule.mode == mode)
                .map(|finding| (rate_key(finding, input), finding.rule.rate_limit.as_ref()))
                .collect::<Vec<_>>()
        };
        let mut taken = true;
        for mode in [Mode::Enforce, Mode::Audit] {
            let keys = keyed(mode);
            let limits: Vec<_> =
                keys.iter().filter_map(|(key, limit)| limit.map(|l| (key.as_str(), l))).collect();
            let all = rates.take_all(&limits, input.context.now);
            if mode == Mode::Enforce {
                taken = all;
                if !taken {
                    break;
                }
            }
        }
        taken
    }

    fn look(&self, input: &Input<'_>, server_namespace: Option<&str>, look: Look) -> Evaluation {
        let now = input.context.now;
        self.with_evaluator(|evaluator| {
            evaluator.evaluate(input, server_namespace, look, &|finding| {
                self.observe(finding, input, now);
            })
        })
    }

    fn observe(&self, finding: &mut Finding, input: &Input<'_>, now: Timestamp) {
        let Some(limit) = finding.rule.rate_limit.as_ref() else { return };
        let rates = self.rates.lock().unwrap_or_else(PoisonError::into_inner);
        let observation = rates.peek(&rate_key(finding, input), limit, now);
        if !observation.allows() {
            finding.effect = Effect::Deny;
        }
        finding.rate = Some(observation);
    }

    /// Runs with this thread's evaluator, brought up to date.
    fn with_evaluator<T>(&self, run: impl FnOnce(&mut Evaluator) -> T) -> T {
        let set = self.set.load();
        EVALUATORS.with_borrow_mut(|evaluators| {
            let known = evaluators.iter_mut().find(|(id, _)| *id == self.id);
            if let Some((_, evaluator)) = known {
                if !Arc::ptr_eq(&evaluator.set, &set) {
                    evaluator.renew(Arc::clone(&set));
                }
                return run(evaluator);
            }
            if evaluators.len() >= MAX_EVALUATORS {
                evaluators.remove(0);
            }
            let mut evaluator = Evaluator::new(Arc::clone(&self.host), Arc::clone(&set));
            let result = run(&mut evaluator);
            evaluators.push((self.id, evaluator));
            result
        })
    }
}

fn status(
    id: &PolicyId,
    broken: &HashMap<PolicyId, PolicyFailure>,
    good: &BTreeMap<PolicyId, Policy>,
) -> PolicyStatus {
    let Some(failure) = broken.get(id) else {
        return PolicyStatus {
            policy: id.clone(),
            state: PolicyState::Ready,
            message: String::new(),
            line: None,
        };
    };
    let state = if good.contains_key(id) { PolicyState::LastGood } else { PolicyState::Failed };
    PolicyStatus { policy: id.clone(), state, message: failure.message.clone(), line: failure.line }
}

/// Whose allowance it is: the rule's, for one agent or for all.
fn rate_key(finding: &Finding, input: &Input<'_>) -> String {
    let rule = &finding.rule;
    let scope = rule.rate_limit.as_ref().map(|limit| limit.scope).unwrap_or_default();
    let agent = match scope {
        RateScope::Agent => input.principal.id.as_str(),
        RateScope::Instance => "",
    };
    format!("{:?} {} {}\n{agent}", rule.policy.kind, rule.policy, rule.name)
}
