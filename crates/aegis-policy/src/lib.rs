//! Policies: from what people write to a verdict.
//!
//! `PolicySpec` → Rego ([`translate`]) → WebAssembly by `opa` ([`Compiler`]) → a synchronous host on
//! wasmtime ([`host`]) → findings ([`PolicyEngine::evaluate`]). The host selects the policies that can
//! match, hands each only the part of the input document that it reads, and answers every test on
//! strings itself.
//!
//! Everything fails closed: what cannot be compiled keeps its last good version, what cannot be
//! evaluated denies, what is not allowed is denied. Only deterministic builtins exist: no network,
//! no clock, no chance.

mod builtins;
mod cache;
mod compile;
mod condition;
mod engine;
mod eval;
mod evaluator;
pub mod host;
pub mod json_path;
mod memory;
mod opa;
mod policy;
mod predicate;
mod projection;
mod rate;
mod raw;
mod regex_dialect;
pub mod sandbox;
mod select;
mod set;
mod ticker;
pub mod translate;
mod value;
mod verdict;

pub use cache::{CacheError, ModuleCache};
pub use compile::{Bundle, BundleModule, BundlePolicy, Compiled, Compiler, PolicyFailure, Unit};
pub use engine::{PolicyEngine, PolicyState, PolicyStatus};
pub use eval::{ModuleError, eval_module};
pub use host::{EvalError, Host, Limits, LoadError};
pub use opa::{Opa, OpaError, RegoError};
pub use policy::{Policy, PolicyId, PolicyKind};
pub use projection::Projection;
pub use rate::{RateObservation, RateTable};
pub use set::{Loaded, PolicySet, RuleInfo};
pub use verdict::{Evaluation, Finding};

/// The JSON schema of the input document, for `opa check -S`.
#[must_use]
pub fn input_schema() -> serde_json::Value {
    schemars::schema_for!(aegis_core::input::Input<'static>).to_value()
}
