//! The CRDs and the operator on a real API server: `AEGIS_CLUSTER_KUBECONFIG` names its kubeconfig.
//! Without one, these tests say so and pass; `e2e/cluster/cluster.sh up` gives one.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "what sets a test up may end it; the exemption of tests does not reach these functions"
)]

#[path = "../it/authority.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod authority;
mod fixture;
#[path = "../it/follower.rs"]
#[expect(dead_code, reason = "other tests use the rest")]
mod follower;
mod mesh;
mod operator;
mod schema;
