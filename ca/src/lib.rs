//! The certificate authority: attest, then authorise, then issue; rotate and revoke.
//!
//! A subject's name comes from its registration and its attestation, never from what it asks for.
//! Nothing is issued that cannot be recorded, nothing is signed with a key that others can read,
//! and every change of the authorities is on disk before it is used.

pub mod attest;
pub mod federation;
pub mod issue;
pub mod keystore;
pub mod kubernetes;
pub mod manager;
pub mod peer;
pub mod record;
pub mod registration;
pub mod revoke;
pub mod rotate;
mod state;
pub mod workload_api;

pub use aegis_mesh::{ListenError, WorkloadSocket};
pub use attest::{AttestError, Attestor};
pub use issue::{IssueError, Lifetimes, Signer};
pub use keystore::{Directory, Store, StoreError};
pub use manager::{AgentSvids, Asked, CaConfig, CaError, ComponentSvids, IdentityManager};
pub use peer::{Peer, PeerError};
pub use record::{IdentityEvent, JournalRecorder, Recorder, RecorderError, Unrecorded};
pub use registration::{Registration, RegistrationError, Selector};
pub use revoke::{RevokeError, Revoked, Subject};
pub use rotate::{AuthorityInfo, RotateError};
pub use state::{Kind, Status};
pub use workload_api::Applications;
