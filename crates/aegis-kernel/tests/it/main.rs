//! The kernel with real policies and a real ledger.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "what sets a test up may end it; the exemption of tests does not reach these functions"
)]

mod approvals;
mod decisions;
mod domain;
mod hidden;
