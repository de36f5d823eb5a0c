//! Policies into a bundle of WebAssembly modules.
//!
//! A module's runtime is far larger than a policy, so declarative policies share modules, one
//! package each; raw Rego gets a module of its own. A policy that cannot be compiled is left out
//! and named; it never stops the others.

use std::{collections::BTreeMap, thread};

use aegis_core::Digest;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::{
    cache::ModuleCache,
    opa::{Opa, OpaError},
    policy::{Policy, PolicyId},
    projection::Projection,
    raw, translate,
};

/// The most declarative policies in one module.
const SHARD: usize = 64;
/// Changes when what is built from the same policies changes.
const FORMAT: &str = "aegis-policy-1";

/// Compiled policies: what an engine loads, and a cluster distributes.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Bundle {
    /// The modules.
    pub modules: Vec<BundleModule>,
    /// The policies.
    pub policies: Vec<BundlePolicy>,
}

/// One module.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BundleModule {
    /// The WebAssembly.
    #[serde(serialize_with = "to_base64", deserialize_with = "from_base64")]
    pub wasm: Vec<u8>,
    /// The Rego it was built from, for people.
    pub rego: Vec<String>,
}

/// One policy: what it says and where it was compiled to.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BundlePolicy {
    /// The policy.
    pub policy: Policy,
    /// Its declarative rules and its raw Rego, as far as it has them.
    pub units: Vec<Unit>,
}

/// A compiled part of a policy.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Unit {
    /// The index of its module.
    pub module: usize,
    /// Whether it is raw Rego.
    pub raw: bool,
    /// The entry point for a verdict.
    pub verdict: String,
    /// The entry point for a list, where it has one of its own.
    pub visible: Option<String>,
    /// What it reads.
    pub projection: Projection,
}

/// Why a policy could not be compiled.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyFailure {
    /// The policy.
    pub policy: PolicyId,
    /// What is wrong, and what to do.
    pub message: String,
    /// The line of its Rego, if it is about one.
    pub line: Option<u32>,
}

/// What a compilation gives.
#[derive(Clone, Debug, Default)]
pub struct Compiled {
    /// The policies that compiled.
    pub bundle: Bundle,
    /// The others.
    pub failures: Vec<PolicyFailure>,
}

/// Compiles policies with `opa`.
#[derive(Debug)]
pub struct Compiler {
    opa: Opa,
    cache: Option<ModuleCache>,
}

/// A module to be built.
#[derive(Debug)]
struct Job {
    rego: Vec<String>,
    entrypoints: Vec<String>,
    /// A module to be checked strictly first.
    check: Option<String>,
}

fn to_base64<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(&STANDARD.encode(bytes))
}

fn from_base64<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
    let text = String::deserialize(deserializer)?;
    STANDARD.decode(text).map_err(serde::de::Error::custom)
}

// === impl Bundle ===

impl Bundle {
    /// The digest of all it holds.
    #[must_use]
    pub fn digest(&self) -> Digest {
        let mut parts: Vec<Vec<u8>> = vec![FORMAT.as_bytes().to_vec()];
        parts.extend(self.modules.iter().map(|module| module.wasm.clone()));
        parts.extend(
            self.policies.iter().map(|policy| serde_json::to_vec(policy).unwrap_or_default()),
        );
        Digest::of_parts(&parts.iter().map(Vec::as_slice).collect::<Vec<_>>())
    }
}

// === impl Compiler ===

impl Compiler {
    /// A compiler; compiled modules are kept in `cache`, if one is given.
    #[must_use]
    pub const fn new(opa: Opa, cache: Option<ModuleCache>) -> Self {
        Self { opa, cache }
    }

    /// The `opa` it uses.
    #[must_use]
    pub const fn opa(&self) -> &Opa {
        &self.opa
    }

    /// Compiles policies.
    ///
    /// # Errors
    /// When `opa` itself is of no use. A policy that is wrong is a [`PolicyFailure`].
    pub fn compile(&self, policies: &[Policy]) -> Result<Compiled, OpaError> {
        let mut plan = Plan::default();
        for policy in policies {
            match self.plan(policy, &mut plan) {
                Ok(units) => plan.planned.push(BundlePolicy { policy: policy.clone(), units }),
                Err(Problem::Policy(failure)) => plan.failures.push(failure),
                Err(Problem::Opa(error)) => return Err(error),
            }
        }
        plan.shard();
        let built = self.build_all(&plan.jobs);
        plan.finish(built)
    }

    fn plan(&self, policy: &Policy, plan: &mut Plan) -> Result<Vec<Unit>, Problem> {
        let failure = |message: String, line| {
            Problem::Policy(PolicyFailure { policy: policy.id.clone(), message, line })
        };
        if policy.id.namespace.is_some() && !policy.spec.selector.namespaces.is_empty() {
            let message = "`selector.namespaces` belongs in a ClusterAgentPolicy; an AgentPolicy speaks for its own namespace";
            return Err(failure(message.to_owned(), None));
        }
        let translation =
            translate::translate(&policy.spec).map_err(|error| failure(error.to_string(), None))?;
        let mut units = Vec::new();
        if !policy.spec.rules.is_empty() {
            let package = plan.declarative(&translation.body);
            units.push(Unit {
                module: usize::MAX,
                raw: false,
                verdict: format!("aegis/{package}/verdict"),
                visible: translation.has_visible.then(|| format!("aegis/{package}/visible")),
                projection: translation.projection,
            });
        }
        if let Some(rego) = &policy.spec.rego {
            let refused = |error| match error {
                OpaError::Refused(errors) => {
                    let line = errors.first().and_then(|error| error.line);
                    failure(OpaError::Refused(errors).to_string(), line)
                }
                other => Problem::Opa(other),
            };
            let ast = self.opa.parse(rego).map_err(refused)?;
            let raw = raw::analyse(rego, &ast).map_err(|message| failure(message, None))?;
            let mut entrypoints = vec!["aegis/wrapper/verdict".to_owned()];
            entrypoints.extend(raw.has_visible.then(|| "aegis/wrapper/visible".to_owned()));
            units.push(Unit {
                module: plan.jobs.len(),
                raw: true,
                verdict: "aegis/wrapper/verdict".to_owned(),
                visible: entrypoints.get(1).cloned(),
                projection: raw.projection,
            });
            plan.jobs.push(Job {
                rego: vec![raw.module, raw.wrapper],
                entrypoints,
                check: Some(rego.clone()),
            });
        }
        Ok(units)
    }

    fn build_all(&self, jobs: &[Job]) -> Vec<Result<Vec<u8>, OpaError>> {
        let threads = thread::available_parallelism().map_or(1, usize::from).min(jobs.len().max(1));
        let mut built: Vec<_> = jobs.iter().map(|_| None).collect();
        let size = jobs.len().div_ceil(threads).max(1);
        thread::scope(|scope| {
            for (jobs, slots) in jobs.chunks(size).zip(built.chunks_mut(size)) {
                scope.spawn(move || {
                    for (job, slot) in jobs.iter().zip(slots) {
                        *slot = Some(self.build(job));
                    }
                });
            }
        });
        built.into_iter().map(|slot| slot.unwrap_or(Err(OpaError::Missing))).collect()
    }

    fn build(&self, job: &Job) -> Result<Vec<u8>, OpaError> {
        let capabilities = self.opa.capabilities()?.to_string();
        let mut parts = vec![FORMAT, self.opa.version(), capabilities.as_str()];
        parts.extend(job.rego.iter().map(String::as_str));
        parts.push("entry points");
        parts.extend(job.entrypoints.iter().map(String::as_str));
        parts.extend(job.check.as_deref());
        let parts: Vec<&[u8]> = parts.into_iter().map(str::as_bytes).collect();
        let key = Digest::of_parts(&parts);
        if let Some(wasm) = self.cache.as_ref().and_then(|cache| cache.get(&key)) {
            return Ok(wasm);
        }
        if let Some(rego) = &job.check {
            self.opa.check(rego)?;
        }
        let wasm = self.opa.build(&job.rego, &job.entrypoints)?;
        if let Some(cache) = &self.cache {
            cache.put(&key, &wasm);
        }
        Ok(wasm)
    }
}

/// Why a policy is not planned.
enum Problem {
    Policy(PolicyFailure),
    Opa(OpaError),
}

/// What is to be built.
#[derive(Default)]
struct Plan {
    planned: Vec<BundlePolicy>,
    failures: Vec<PolicyFailure>,
    jobs: Vec<Job>,
    /// Declarative bodies by package; equal rules share one.
    bodies: BTreeMap<String, String>,
}

impl Plan {
    /// The package for rules in Rego, named by their digest.
    fn declarative(&mut self, body: &str) -> String {
        let digest = Digest::of(body.as_bytes()).to_hex();
        let package = format!("p{}", digest.get(..20).unwrap_or(&digest));
        self.bodies.entry(package.clone()).or_insert_with(|| body.to_owned());
        package
    }

    /// Divides the declarative bodies by their names, so that a changed policy leaves most modules
    /// as they were.
    fn shard(&mut self) {
        let shards = self.bodies.len().div_ceil(SHARD / 2).next_power_of_two() / 2;
        let shards = shards.max(1);
        let mut divided: Vec<Vec<(&String, &String)>> = vec![Vec::new(); shards];
        for (package, body) in &self.bodies {
            let number = package.get(1..9).and_then(|hex| u32::from_str_radix(hex, 16).ok());
            let shard = usize::try_from(number.unwrap_or(0)).unwrap_or(0) % shards;
            if let Some(list) = divided.get_mut(shard) {
                list.push((package, body));
            }
        }
        let mut place = BTreeMap::new();
        for members in divided.into_iter().filter(|members| !members.is_empty()) {
            let mut job = Job { rego: Vec::new(), entrypoints: Vec::new(), check: None };
            for (package, body) in members {
                place.insert(package.clone(), self.jobs.len());
                job.rego.push(format!("package aegis.{package}\n\n{body}\n"));
                job.entrypoints.push(format!("aegis/{package}/verdict"));
                if body.contains("\nvisible ") {
                    job.entrypoints.push(format!("aegis/{package}/visible"));
                }
            }
            self.jobs.push(job);
        }
        for unit in self.planned.iter_mut().flat_map(|policy| policy.units.iter_mut()) {
            let package = unit.verdict.split('/').nth(1).unwrap_or_default();
            if let Some(module) = place.get(package) {
                unit.module = *module;
            }
        }
    }

    /// Leaves out the policies whose modules did not build.
    fn finish(mut self, built: Vec<Result<Vec<u8>, OpaError>>) -> Result<Compiled, OpaError> {
        let mut refused: BTreeMap<usize, (String, Option<u32>)> = BTreeMap::new();
        let mut modules = Vec::new();
        let mut places = Vec::new();
        for (i, (result, job)) in built.into_iter().zip(self.jobs).enumerate() {
            places.push(modules.len());
            match result {
                Ok(wasm) => modules.push(BundleModule { wasm, rego: job.rego }),
                Err(OpaError::Refused(errors)) => {
                    let line = errors.first().and_then(|error| error.line);
                    refused.insert(i, (OpaError::Refused(errors).to_string(), line));
                }
                Err(other) => return Err(other),
            }
        }
        let mut policies = Vec::new();
        for mut planned in self.planned {
            let problem = planned.units.iter().find_map(|unit| refused.get(&unit.module));
            if let Some((message, line)) = problem {
                self.failures.push(PolicyFailure {
                    policy: planned.policy.id,
                    message: message.clone(),
                    line: *line,
                });
                continue;
            }
            for unit in &mut planned.units {
                unit.module = places.get(unit.module).copied().unwrap_or(usize::MAX);
            }
            policies.push(planned);
        }
        Ok(Compiled { bundle: Bundle { modules, policies }, failures: self.failures })
    }
}
