//! The sidecar as a client and a server see it: each test is named after the rule it holds.
#![expect(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "what is missing fails the test, as it should"
)]

mod agents;
mod approvals;
mod asking;
mod caught_agents;
mod delegation;
mod egress;
mod forwarding;
mod grants;
mod hooks;
mod kernel_api;
mod ledger;
mod limits;
mod listing;
mod lists;
mod manifests;
mod mesh;
mod network;
mod oauth;
mod probes;
mod refusals;
mod server_requests;
mod stdio;
mod streams;
mod tls;
mod upstream;
mod upstream_faults;
mod world;
