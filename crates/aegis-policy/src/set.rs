//! Compiled policies, loaded and indexed; immutable.

use std::{collections::HashMap, sync::Arc};

use aegis_core::{
    AgentId, Digest,
    policy::{Effect, Mode, Obligation, RateLimit, Rule},
};

use crate::{
    compile::{Bundle, BundlePolicy, PolicyFailure},
    host::{Host, LoadError, Module},
    policy::PolicyId,
    projection::Projection,
    select::Index,
};

/// A rule as findings tell of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RuleInfo {
    /// Its policy.
    pub policy: Arc<PolicyId>,
    /// The digest of that policy.
    pub policy_digest: Digest,
    /// Its name; `rego` for raw Rego.
    pub name: String,
    /// What it does. An `allow` that requires a second factor is a `require_approval`.
    pub effect: Effect,
    /// Whether it binds.
    pub mode: Mode,
    /// The sentence for who is refused or asked.
    pub reason: Option<String>,
    /// Whether an approval needs a second factor.
    pub require_mfa: bool,
    /// How many approvers must agree; 0 where nobody is asked.
    pub approvals: u8,
    /// What must be done to an allowed message.
    pub obligations: Vec<Obligation>,
    /// How often it allows.
    pub rate_limit: Option<RateLimit>,
}

/// A policy in force.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loaded<'a> {
    /// Its name.
    pub id: &'a PolicyId,
    /// The digest of this version of it.
    pub digest: Digest,
    /// Whether it binds.
    pub mode: Mode,
    /// What it consists of; raw Rego is one of them.
    pub rules: Vec<&'a Arc<RuleInfo>>,
}

/// A module with the digest of its code.
#[derive(Debug)]
pub(crate) struct LoadedModule {
    pub(crate) digest: Digest,
    pub(crate) module: Module,
}

#[derive(Debug)]
pub(crate) struct LoadedUnit {
    pub(crate) module: usize,
    pub(crate) raw: bool,
    pub(crate) verdict: i32,
    pub(crate) visible: Option<i32>,
    pub(crate) projection: Projection,
}

#[derive(Debug)]
pub(crate) struct LoadedPolicy {
    pub(crate) id: Arc<PolicyId>,
    pub(crate) mode: Mode,
    pub(crate) has_paths: bool,
    /// Whether it lists a protocol that cannot be looked into.
    pub(crate) names_opaque: bool,
    /// Whether it can allow anything.
    pub(crate) may_allow: bool,
    pub(crate) units: Vec<LoadedUnit>,
    pub(crate) rules: Vec<Arc<RuleInfo>>,
    /// What stands for raw Rego and for failures.
    pub(crate) whole: Arc<RuleInfo>,
}

/// Compiled policies, loaded and indexed.
#[derive(Debug)]
pub struct PolicySet {
    pub(crate) digest: Digest,
    pub(crate) modules: Vec<Arc<LoadedModule>>,
    pub(crate) policies: Vec<LoadedPolicy>,
    pub(crate) index: Index,
}

impl PolicySet {
    /// No policies: everything is denied.
    #[must_use]
    pub fn empty() -> Self {
        Self {
            digest: Bundle::default().digest(),
            modules: Vec::new(),
            policies: Vec::new(),
            index: Index::default(),
        }
    }

    /// The digest of the bundle.
    #[must_use]
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// The policies' names with their digests, in order.
    pub fn policies(&self) -> impl Iterator<Item = (&PolicyId, Digest)> {
        self.policies.iter().map(|policy| (policy.id.as_ref(), policy.whole.policy_digest))
    }

    /// The policies that can speak about what this agent does, of its own namespace and of all, in order.
    pub fn of_agent(&self, agent: &AgentId) -> impl Iterator<Item = Loaded<'_>> {
        let concerns = |at: usize, policy: &LoadedPolicy| {
            let namespace = policy.id.namespace.as_deref();
            namespace.is_none_or(|namespace| agent.namespace() == Some(namespace))
                && u32::try_from(at).is_ok_and(|at| self.index.concerns(at, agent))
        };
        let policies = self.policies.iter().enumerate();
        let found = policies.filter(move |(at, policy)| concerns(*at, policy));
        found.map(|(_, policy)| {
            let raw = policy.units.iter().any(|unit| unit.raw).then_some(&policy.whole);
            Loaded {
                id: &policy.id,
                digest: policy.whole.policy_digest,
                mode: policy.mode,
                rules: policy.rules.iter().chain(raw).collect(),
            }
        })
    }

    /// Loads a bundle; modules that `before` holds too are taken from there. Policies whose module
    /// cannot be used are left out and named.
    pub(crate) fn load(
        bundle: &Bundle,
        host: &Host,
        before: Option<&Self>,
    ) -> (Self, Vec<PolicyFailure>) {
        let mut known: HashMap<Digest, Arc<LoadedModule>> = HashMap::new();
        for module in before.into_iter().flat_map(|set| &set.modules) {
            known.insert(module.digest, Arc::clone(module));
        }
        let loaded: Vec<Result<Arc<LoadedModule>, LoadError>> = bundle
            .modules
            .iter()
            .map(|module| {
                let digest = Digest::of(&module.wasm);
                match known.get(&digest) {
                    Some(module) => Ok(Arc::clone(module)),
                    None => host
                        .load(&module.wasm)
                        .map(|module| Arc::new(LoadedModule { digest, module })),
                }
            })
            .collect();
        let mut failures = Vec::new();
        let mut policies = Vec::new();
        let mut specs = Vec::new();
        for bundled in &bundle.policies {
            match load_policy(bundled, &loaded) {
                Ok(policy) => {
                    policies.push(policy);
                    specs.push((bundled.policy.id.namespace.as_deref(), &bundled.policy.spec));
                }
                Err(message) => failures.push(PolicyFailure {
                    policy: bundled.policy.id.clone(),
                    message,
                    line: None,
                }),
            }
        }
        let index = Index::new(specs.into_iter());
        let modules: Vec<_> = loaded.into_iter().filter_map(Result::ok).collect();
        // Places in `policies` refer to `bundle.modules`; dropping a broken one would move them.
        let complete = modules.len() == bundle.modules.len();
        match index {
            Ok(index) if complete => {
                (Self { digest: bundle.digest(), modules, policies, index }, failures)
            }
            Ok(_) => {
                let mut rest = bundle.clone();
                rest.drop_policies(&failures);
                if rest.policies.len() == bundle.policies.len() {
                    return (Self::empty(), failures);
                }
                let (set, more) = Self::load(&rest, host, before);
                failures.extend(more);
                (set, failures)
            }
            Err(message) => {
                let all = bundle.policies.iter().map(|bundled| PolicyFailure {
                    policy: bundled.policy.id.clone(),
                    message: message.clone(),
                    line: None,
                });
                failures.extend(all);
                (Self::empty(), failures)
            }
        }
    }
}

impl Bundle {
    /// Removes policies, and the modules that nothing needs then.
    fn drop_policies(&mut self, failures: &[PolicyFailure]) {
        self.policies
            .retain(|bundled| !failures.iter().any(|failure| failure.policy == bundled.policy.id));
        let mut places = HashMap::new();
        let mut kept = Vec::new();
        for unit in self.policies.iter_mut().flat_map(|policy| policy.units.iter_mut()) {
            let Some(module) = self.modules.get(unit.module) else { continue };
            unit.module = *places.entry(unit.module).or_insert_with(|| {
                kept.push(module.clone());
                kept.len() - 1
            });
        }
        self.modules = kept;
    }
}

fn load_policy(
    bundled: &BundlePolicy,
    modules: &[Result<Arc<LoadedModule>, LoadError>],
) -> Result<LoadedPolicy, String> {
    let spec = &bundled.policy.spec;
    let id = Arc::new(bundled.policy.id.clone());
    let digest = bundled.policy.digest().map_err(|error| error.to_string())?;
    let mut units = Vec::new();
    for unit in &bundled.units {
        let module = match modules.get(unit.module) {
            Some(Ok(module)) => module,
            Some(Err(error)) => return Err(error.to_string()),
            None => return Err("the bundle does not hold its module".to_owned()),
        };
        let entrypoint = |name: &String| {
            let found = module.module.entrypoints().get(name).copied();
            found.ok_or_else(|| format!("its module has no entry point `{name}`"))
        };
        units.push(LoadedUnit {
            module: unit.module,
            raw: unit.raw,
            verdict: entrypoint(&unit.verdict)?,
            visible: unit.visible.as_ref().map(entrypoint).transpose()?,
            projection: unit.projection.clone(),
        });
    }
    let rules: Vec<_> =
        spec.rules.iter().map(|rule| Arc::new(rule_info(rule, &id, digest, spec.mode))).collect();
    let whole = RuleInfo {
        policy: Arc::clone(&id),
        policy_digest: digest,
        name: "rego".to_owned(),
        effect: Effect::Deny,
        mode: spec.mode,
        reason: None,
        require_mfa: false,
        approvals: 1,
        obligations: Vec::new(),
        rate_limit: None,
    };
    Ok(LoadedPolicy {
        id,
        mode: spec.mode,
        has_paths: !spec.matches.paths.is_empty(),
        names_opaque: spec.matches.protocols.iter().any(|protocol| protocol.is_opaque()),
        may_allow: spec.rego.is_some() || spec.rules.iter().any(|rule| rule.effect != Effect::Deny),
        units,
        rules,
        whole: Arc::new(whole),
    })
}

fn rule_info(rule: &Rule, policy: &Arc<PolicyId>, digest: Digest, mode: Mode) -> RuleInfo {
    let effect = match rule.effect {
        Effect::Allow if rule.require_mfa => Effect::RequireApproval,
        other => other,
    };
    RuleInfo {
        policy: Arc::clone(policy),
        policy_digest: digest,
        name: rule.name.clone(),
        effect,
        mode,
        reason: rule.reason.clone(),
        require_mfa: rule.require_mfa,
        approvals: if effect == Effect::RequireApproval { rule.approvals.unwrap_or(1) } else { 0 },
        obligations: rule.obligations.clone(),
        rate_limit: rule.rate_limit.clone(),
    }
}
