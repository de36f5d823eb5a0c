//! The operator from outside.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "what sets a test up may end it; the exemption of tests does not reach these functions"
)]

mod approvals;
mod authority;
mod distribution;
mod follower;
mod inject;
mod mesh;
mod trust;
