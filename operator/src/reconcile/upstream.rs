//! AgentUpstream: whether agents can be sent there.

use std::sync::Arc;

use aegis_resources::{kinds::AgentUpstream, status::UpstreamStatus};

use crate::{
    clock,
    controller::{Reconcile, ReconcileError, Shared},
    object::Stored,
    status::{Finding, conclude},
};

/// Reconciles upstreams.
#[derive(Debug)]
pub struct Upstreams {
    /// What controllers share.
    pub shared: Shared,
}

impl Reconcile for Upstreams {
    type Kind = AgentUpstream;
    const CONTROLLER: &'static str = "agentupstream";

    async fn status(
        &self,
        object: Arc<Stored<AgentUpstream>>,
    ) -> Result<UpstreamStatus, ReconcileError> {
        self.shared.touch();
        let mut status = object.status.clone().unwrap_or_default();
        let spec = object.spec.as_ref().map_err(Clone::clone);
        let finding = match spec.and_then(|spec| spec.0.validate()) {
            Ok(()) => Finding::yes("Ready", "Valid", "it can be distributed to sidecars"),
            Err(message) => Finding::no("Ready", "Invalid", message),
        };
        conclude(&mut status.common, object.generation(), vec![finding], clock::now());
        Ok(status)
    }
}
