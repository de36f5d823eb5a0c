//! How the operator hears from the ledger what agents are trusted.

use aegis_core::{AgentId, identity::InvalidIdentity, trust::Trust};

/// The generated messages and the service.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    reason = "generated code"
)]
pub mod proto {
    tonic::include_proto!("aegis.trust.v1");
}

/// The most agents of one message.
pub const MAX_AGENTS: usize = 1_000;

impl proto::Posterior {
    /// Of an agent.
    #[must_use]
    pub fn of(agent: &AgentId, trust: &Trust) -> Self {
        let Trust { a, b, window, window_gain } = *trust;
        Self { agent: agent.to_string(), a, b, window, window_gain }
    }

    /// Whose, and what.
    ///
    /// # Errors
    /// When it is nobody's.
    pub fn read(&self) -> Result<(AgentId, Trust), InvalidIdentity> {
        let Self { a, b, window, window_gain, .. } = *self;
        Ok((self.agent.parse()?, Trust { a, b, window, window_gain }))
    }
}
