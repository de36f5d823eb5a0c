//! The operator: Aegis' resources in a Kubernetes cluster.
//!
//! It compiles policies, says in each object's status how it stands, refuses what a schema cannot
//! refuse, puts a sidecar into pods of enrolled namespaces, and hands sidecars what they enforce.
//! It removes no protection on its own: what is broken keeps its last good version.

pub mod admission;
pub mod approvals;
pub mod book;
pub mod certificate;
pub mod clock;
pub mod cluster;
pub mod controller;
pub mod distribution;
pub mod health;
pub mod inject;
pub mod keeper;
mod leader;
pub mod lease;
pub mod mesh;
pub mod metrics;
pub mod node;
pub mod object;
pub mod options;
pub mod reconcile;
pub mod refusals;
pub mod run;
pub mod status;
pub mod trust;
pub mod webhook;
