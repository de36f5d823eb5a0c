//! The CA of a cluster: pods prove by a token who they are, and an AgentIdentity says what they may be.
//!
//! A name comes from the API server's review of the token, the pod that it was made for, and the one
//! AgentIdentity that selects this pod; nothing in a request has a say. It refuses tokens for anybody
//! else, pods that are gone or not where the token says, and pods that none or several identities
//! select. What cannot be recorded is not issued.

pub mod api;
pub mod attest;
pub mod bundle;
pub mod health;
pub mod identities;
pub mod journals;
pub mod metrics;
pub mod rotation;
pub mod run;
pub mod service;
pub mod store;
pub mod watch;

pub use api::{ApiServer, Cluster, LookupError};
pub use attest::{Attested, Refused, TokenAttestor};
pub use health::Health;
pub use identities::{Identities, Known};
pub use journals::Journals;
pub use metrics::Metrics;
pub use rotation::Rotation;
pub use run::{Options, run};
pub use service::AuthorityService;
pub use store::SecretStore;
