//! The contract between Aegis' processes: what the daemon answers on its control socket, and the
//! client that asks.
//!
//! When changing this: adding an optional member is compatible; renaming or removing one is not
//! and needs a new path under `/v2`.

pub mod approvals;
pub mod authority;
pub mod client;
pub mod control;
pub mod distribution;
pub mod frame;
pub mod journal;
pub mod kernel;
pub mod trust;
pub mod workload;

pub use client::{Client, ClientError};
