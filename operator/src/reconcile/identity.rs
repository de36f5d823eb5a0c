//! AgentIdentity: the SPIFFE ID that its pods get.

use std::sync::Arc;

use aegis_core::TrustDomain;
use aegis_resources::{AgentIdentitySpec, kinds::AgentIdentity, status::IdentityStatus};

use crate::{
    clock,
    controller::{Reconcile, ReconcileError, Shared},
    object::Stored,
    status::{Finding, conclude},
};

/// Reconciles identities of one trust domain.
#[derive(Debug)]
pub struct Identities {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// What controllers share.
    pub shared: Shared,
}

impl Reconcile for Identities {
    type Kind = AgentIdentity;
    const CONTROLLER: &'static str = "agentidentity";

    async fn status(
        &self,
        object: Arc<Stored<AgentIdentity>>,
    ) -> Result<IdentityStatus, ReconcileError> {
        self.shared.touch();
        let mut status = object.status.clone().unwrap_or_default();
        let spec = object.spec.as_ref().map(|spec| &spec.0).map_err(Clone::clone);
        let finding = match spec.and_then(|spec| self.check(&object, spec)) {
            Ok(id) => {
                let message =
                    format!("pods of service account `{}` can be {id}", self.account(&object));
                status.spiffe_id = Some(id);
                Finding::yes("Ready", "Registered", message)
            }
            Err(message) => {
                status.spiffe_id = None;
                Finding::no("Ready", "Invalid", message)
            }
        };
        conclude(&mut status.common, object.generation(), vec![finding], clock::now());
        Ok(status)
    }
}

impl Identities {
    fn account<'a>(&self, object: &'a Stored<AgentIdentity>) -> &'a str {
        object.spec.as_ref().map_or("", |spec| spec.0.service_account.as_str())
    }

    fn check(
        &self,
        object: &Stored<AgentIdentity>,
        spec: &AgentIdentitySpec,
    ) -> Result<aegis_core::SpiffeId, String> {
        spec.validate()?;
        if spec.selector.kubernetes.is_none() {
            return Err("no pod can be this agent; add `spec.selector.kubernetes`".into());
        }
        self.trust_domain
            .agent(object.namespace(), &spec.service_account, object.name())
            .map(|id| id.spiffe_id().clone())
            .map_err(|error| error.to_string())
    }
}
