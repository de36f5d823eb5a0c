//! Who asks: an authenticated agent with what is registered about it.

use std::{collections::HashMap, sync::Arc};

use aegis_core::{
    AgentId, Digest, Sponsor, Timestamp,
    capability::{Capability, narrowed},
    manifest::ManifestError,
};

/// An authenticated principal. Enforcement points make one from attestation or a peer's SVID,
/// never from anything a caller says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Principal {
    /// The agent.
    pub id: AgentId,
    /// The human who answers for it.
    pub sponsor: Option<Sponsor>,
    /// What it may ever do; empty means whatever policies allow.
    pub capabilities: Arc<[Capability]>,
    /// The principals it acts for, the first delegator first.
    pub delegation: Arc<[AgentId]>,
    /// The manifest that its sidecar has shown, where sidecars show them; or why it is none, where that
    /// is only recorded.
    pub manifest: Option<Result<ShownManifest, ManifestError>>,
    /// When its identity ends.
    pub not_after: Timestamp,
}

/// How records name a manifest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ShownManifest {
    /// The digest of the manifest.
    pub digest: Digest,
    /// The digest of the policies that the caller's sidecar decides by.
    pub policies: Digest,
}

impl Principal {
    /// The same principal, acting on a delegation: for those, with no more than `capabilities`, and until
    /// then; `None` if that leaves nothing.
    #[must_use]
    pub fn acting_for(
        self,
        delegators: Arc<[AgentId]>,
        capabilities: &[Capability],
        until: Timestamp,
    ) -> Option<Self> {
        let not_after = self.not_after.min(until);
        Some(Self { delegation: delegators, not_after, ..self.within(capabilities)? })
    }

    /// The same principal, holding no more than `capabilities` besides; `None` if that leaves nothing.
    #[must_use]
    pub fn within(mut self, capabilities: &[Capability]) -> Option<Self> {
        if *self.capabilities != *capabilities {
            self.capabilities = narrowed(&self.capabilities, capabilities)?.into();
        }
        Some(self)
    }
}

/// What is registered about agents. Replaced as a whole when an AgentIdentity changes.
#[derive(Clone, Debug, Default)]
pub struct Registry {
    agents: HashMap<AgentId, Registration>,
}

/// What is registered about one agent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Registration {
    /// The human who answers for it.
    pub sponsor: Sponsor,
    /// What it may ever do.
    pub capabilities: Arc<[Capability]>,
}

impl Registry {
    /// Registers an agent, replacing what was registered before.
    pub fn insert(&mut self, id: AgentId, registration: Registration) {
        self.agents.insert(id, registration);
    }

    /// What is registered about `id`.
    #[must_use]
    pub fn find(&self, id: &AgentId) -> Option<&Registration> {
        self.agents.get(id)
    }

    /// The principal for an identity that has been proven and ends at `not_after`; `None` if it is
    /// not registered.
    #[must_use]
    pub fn principal(&self, id: &AgentId, not_after: Timestamp) -> Option<Principal> {
        let registration = self.agents.get(id)?;
        Some(Principal {
            id: id.clone(),
            sponsor: Some(registration.sponsor.clone()),
            capabilities: Arc::clone(&registration.capabilities),
            delegation: Arc::from([]),
            manifest: None,
            not_after,
        })
    }

    /// Every agent, in no order.
    pub fn agents(&self) -> impl Iterator<Item = (&AgentId, &Registration)> {
        self.agents.iter()
    }
}
