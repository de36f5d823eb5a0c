//! The CRDs and the operator on a real API server: `AEGIS_CLUSTER_KUBECONFIG` names its kubeconfig.
//! Without one, these tests say so and pass; `e2e/cluster/cluster.sh up` gives one.

#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "what sets a test up may end it; the exemption of tests does not reach these functions"
)]

mod fixture;
mod operator;
mod schema;
