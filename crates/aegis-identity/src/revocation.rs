//! What has been revoked, as a value that every verifier looks at on every connection.

use std::collections::BTreeSet;

use aegis_core::SpiffeId;

use crate::Serial;

/// A snapshot of the revoked serial numbers and SPIFFE IDs.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Revocations {
    /// Single certificates.
    pub serials: BTreeSet<Serial>,
    /// Whole identities, whatever certificate they show. Revoking an agent also revokes the
    /// application's own `…/workload` identity.
    pub ids: BTreeSet<SpiffeId>,
}

impl Revocations {
    /// Whether this identity, or this certificate of it, has been revoked.
    #[must_use]
    pub fn covers(&self, id: &SpiffeId, serial: &Serial) -> bool {
        self.serials.contains(serial) || self.covers_id(id)
    }

    /// Whether this identity, or the agent it belongs to, has been revoked.
    #[must_use]
    pub fn covers_id(&self, id: &SpiffeId) -> bool {
        if self.ids.contains(id) {
            return true;
        }
        let agent = id.as_str().strip_suffix("/workload").map(str::parse);
        matches!(agent, Some(Ok(agent)) if self.ids.contains(&agent))
    }
}
