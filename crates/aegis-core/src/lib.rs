//! The domain of Aegis: its nouns, its numbers and its decisions.
//!
//! Pure. No clock, no randomness, no I/O, no framework: time and chance come in as arguments, so
//! that a decision can be computed again from its record by anybody. No floats in anything hashed
//! or compared.

mod text;

pub mod action;
pub mod address;
pub mod approval;
pub mod canonical;
pub mod capability;
pub mod cost;
pub mod decision;
pub mod delegation;
pub mod digest;
pub mod grant;
pub mod identity;
pub mod input;
pub mod intent;
pub mod manifest;
pub mod policy;
pub mod risk;
pub mod thresholds;
pub mod tier;
pub mod timestamp;
pub mod trust;

pub use digest::Digest;
pub use identity::{AgentId, SpiffeId, Sponsor, TrustDomain};
pub use timestamp::Timestamp;
