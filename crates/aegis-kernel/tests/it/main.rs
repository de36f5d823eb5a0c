//! The kernel with real policies and a real ledger.

mod approvals;
mod decisions;
mod domain;
