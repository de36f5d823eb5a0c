//! How the operator hears from the ledger what agents are trusted.

use std::collections::BTreeMap;

use aegis_core::{AgentId, identity::InvalidIdentity, thresholds::Thresholds, trust::Trust};

/// The generated messages and the service.
#[expect(
    missing_docs,
    clippy::allow_attributes,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
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

/// By what thresholds agents' evidence is weighed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Weighing {
    /// The cluster's.
    pub cluster: Thresholds,
    /// Those of namespaces that have their own.
    pub namespaces: BTreeMap<String, Thresholds>,
}

impl proto::Weighing {
    /// In the form that is sent.
    ///
    /// # Errors
    /// Never: thresholds have a JSON form.
    pub fn of(weighing: &Weighing) -> Result<Self, serde_json::Error> {
        let namespaces = weighing.namespaces.iter();
        let namespaces = namespaces
            .map(|(name, own)| Ok((name.clone(), serde_json::to_string(own)?)))
            .collect::<Result<_, serde_json::Error>>()?;
        Ok(Self { cluster: serde_json::to_string(&weighing.cluster)?, namespaces })
    }

    /// What it says.
    ///
    /// # Errors
    /// When something of it is no thresholds.
    pub fn read(&self) -> Result<Weighing, serde_json::Error> {
        let namespaces = self.namespaces.iter();
        let namespaces = namespaces
            .map(|(name, own)| Ok((name.clone(), serde_json::from_str(own)?)))
            .collect::<Result<_, serde_json::Error>>()?;
        Ok(Weighing { cluster: serde_json::from_str(&self.cluster)?, namespaces })
    }
}
