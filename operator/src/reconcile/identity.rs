//! AgentIdentity: the SPIFFE ID that its pods get.

use std::sync::Arc;

use aegis_core::{AgentId, TrustDomain};
use aegis_resources::{
    AgentIdentitySpec,
    kinds::AgentIdentity,
    status::{IdentityStatus, TrustStatus},
};
use tokio::{sync::watch, time::Instant};

use crate::{
    clock,
    controller::{Reconcile, ReconcileError, Shared},
    distribution::Publisher,
    mesh::Revoked,
    object::Stored,
    status::{Finding, conclude},
    trust::Pace,
};

/// Reconciles identities of one trust domain.
#[derive(Debug)]
pub struct Identities {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// Whom the CA has revoked.
    pub revoked: watch::Receiver<Revoked>,
    /// What sidecars are told: thresholds, and how much agents are trusted.
    pub publisher: Publisher,
    /// When a changed score is shown.
    pub pace: Arc<Pace>,
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
                self.pace.show(&self.publisher, &id, &mut status, Instant::now());
                let finding = self.standing(&object, &id, status.trust.as_ref());
                status.spiffe_id = Some(id.spiffe_id().clone());
                finding
            }
            Err(message) => {
                (status.spiffe_id, status.trust) = (None, None);
                Finding::no("Ready", "Invalid", message)
            }
        };
        conclude(&mut status.common, object.generation(), vec![finding], clock::now());
        Ok(status)
    }
}

impl Identities {
    /// How somebody who is registered stands.
    fn standing(
        &self,
        object: &Stored<AgentIdentity>,
        id: &AgentId,
        trust: Option<&TrustStatus>,
    ) -> Finding {
        let revoked = self.revoked.borrow().as_ref().is_some_and(|all| all.contains(id));
        if revoked {
            let message =
                format!("the CA has revoked {id}: nobody gets it, or is believed to be it");
            return Finding::no("Ready", "Revoked", message);
        }
        if object.spec.as_ref().is_ok_and(|spec| spec.0.suspended) {
            let message = format!("`spec.suspended` is true: every action of {id} is denied");
            return Finding::no("Ready", "Suspended", message);
        }
        if let Some(why) = trust.and_then(|trust| trust.quarantined.as_ref()) {
            let message = format!("{why}: every action of {id} is denied");
            return Finding::no("Ready", "Quarantined", message);
        }
        let account = self.account(object);
        let message = format!("pods of service account `{account}` can be {id}");
        Finding::yes("Ready", "Registered", message)
    }

    fn account<'a>(&self, object: &'a Stored<AgentIdentity>) -> &'a str {
        object.spec.as_ref().map_or("", |spec| spec.0.service_account.as_str())
    }

    fn check(
        &self,
        object: &Stored<AgentIdentity>,
        spec: &AgentIdentitySpec,
    ) -> Result<AgentId, String> {
        spec.validate()?;
        if spec.selector.kubernetes.is_none() {
            return Err("no pod can be this agent; add `spec.selector.kubernetes`".into());
        }
        self.trust_domain
            .agent(object.namespace(), &spec.service_account, object.name())
            .map_err(|error| error.to_string())
    }
}
