//! Membership in the mesh: what every process of a cluster needs to be somebody there.
//!
//! An [`Authority`] asks the CA for the process's SVID and follows what is to be believed; a
//! [`channel()`] reaches another component over mutual TLS; [`serve_tls`] is the one accept loop of
//! those who answer; a [`Shipper`] brings a journal's entries to the ledger; a [`WorkloadSocket`]
//! serves applications the SPIFFE Workload API.
//!
//! It refuses whoever cannot show the SVID that is expected, and ends connections with the peer's
//! SVID. It decides nothing about actions.

pub mod authority;
mod backoff;
pub mod channel;
pub mod limits;
pub mod peer_bound;
pub mod serve;
pub mod ship;
pub mod workload;

pub use authority::{Authority, AuthorityConfig, AuthorityError};
pub use channel::channel;
pub use peer_bound::PeerBound;
pub use serve::{Peers, serve_tls};
pub use ship::{ShipCounters, Shipper};
pub use workload::{ListenError, WorkloadSocket};

use aegis_core::{SpiffeId, TrustDomain, identity::InvalidIdentity};

/// The SPIFFE ID of one of Aegis' own components: `ca`, `operator`, `ledger`.
///
/// # Errors
/// When `name` is not a path segment.
pub fn component(trust_domain: &TrustDomain, name: &str) -> Result<SpiffeId, InvalidIdentity> {
    format!("{}/aegis/{name}", trust_domain.uri()).parse()
}
