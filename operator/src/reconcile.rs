//! What each kind comes to.

mod identity;
mod policy;
mod threshold;
mod upstream;

pub use identity::Identities;
pub use policy::{Policies, PolicyObject};
pub use threshold::{ClusterThresholds, NamespaceThresholds, base, counting, tightened};
pub use upstream::{Upstreams, of_cluster};
