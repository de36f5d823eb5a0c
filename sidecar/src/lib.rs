//! The sidecar: every message between an agent and a server passes here, is decided on, recorded
//! and only then forwarded.
//!
//! The walk of one exchange: [`inbound`] accepts and reads one message; [`route`] parses it, asks
//! the kernel and holds what waits for a human; [`forward`] sends what the permit owns; `relay` and
//! `stream` take the answer, every event of which leaves through [`exchange`]; [`respond`] alone turns
//! a reason into words of the protocol. For agents that speak A2A, `a2a` takes the place of [`route`]'s
//! reading and of [`respond`]; everything else is the same. [`stdio`] walks the same path for a wrapped
//! command, and [`transparent`] leads to it what a pod's redirect has caught. Beside it, [`kernel_api`]
//! answers code that asks before it acts.

mod a2a;
mod accept;
pub mod attest;
mod bounded;
mod delegation;
mod direct;
pub mod exchange;
pub mod forward;
mod grant;
pub mod inbound;
pub mod kernel_api;
pub mod listing;
mod manifest;
pub mod metrics;
pub mod names;
mod oauth;
pub mod pins;
pub mod pod;
pub mod records;
pub mod refusals;
mod relay;
mod resolve;
pub mod respond;
pub mod route;
pub mod span;
pub mod stdio;
mod stream;
pub mod transparent;

pub use attest::{Attest, Attested};
pub use inbound::serve;
pub use kernel_api::KernelApi;
pub use manifest::{BARE_MESH_PROTOCOL, MESH_PROTOCOL, ManifestMode};
pub use resolve::Reachable;
pub use route::{Route, RouteError, Shared};
