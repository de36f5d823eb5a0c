//! What the operator says is put in force: policies, thresholds, who is who, and where agents may
//! be sent.

use std::{collections::HashSet, sync::Arc};

use aegis_api::distribution::{Distributed, Followed, Statement};
use aegis_core::AgentId;
use aegis_kernel::{Kernel, Registration, State, Thresholding};
use aegis_policy::Bundle;
use aegis_resources::AgentUpstreamSpec;

use super::admin::Admin;
use crate::{Route, transparent::Transparent};

/// What is in force in this pod.
pub(super) struct InForce {
    kernel: Arc<Kernel>,
    caught: Arc<Transparent>,
    agent: AgentId,
    admin: Admin,
    /// Policies as they came last, so that the same ones are not loaded again.
    policies: String,
}

impl InForce {
    pub(super) const fn new(
        kernel: Arc<Kernel>,
        caught: Arc<Transparent>,
        agent: AgentId,
        admin: Admin,
    ) -> Self {
        Self { kernel, caught, agent, admin, policies: String::new() }
    }

    fn put_state(&mut self, said: &Distributed) -> Result<(), String> {
        if self.policies != said.policies.get() {
            let bundle: Bundle =
                serde_json::from_str(said.policies.get()).map_err(|error| error.to_string())?;
            self.kernel.engine().load(&bundle).map_err(|failures| {
                let told: Vec<String> =
                    failures.iter().map(|f| format!("{}: {}", f.policy, f.message)).collect();
                told.join("; ")
            })?;
            said.policies.get().clone_into(&mut self.policies);
        }
        let upstreams = self.upstreams(said)?;
        self.caught.set_upstreams(upstreams);
        let state = state_of(said);
        let updating = self.kernel.update_with(|current| current.clone_from(&state));
        // Records of thresholds wait for the disk.
        let recorded = tokio::runtime::Handle::current().block_on(updating);
        recorded.map_err(|error| error.to_string())
    }

    /// Those of the pod's namespace. What is known of a server's tools stays while the server does.
    fn upstreams(&self, said: &Distributed) -> Result<Vec<Arc<Route>>, String> {
        let before = self.caught.upstreams();
        let own =
            said.upstreams.iter().filter(|one| Some(&*one.namespace) == self.agent.namespace());
        let mut routes = Vec::new();
        for one in own {
            let spec: AgentUpstreamSpec = serde_json::from_str(one.spec.get())
                .map_err(|error| format!("AgentUpstream {}: {error}", one.name))?;
            let route = match before.iter().find(|route| route.name == one.name) {
                Some(known) if known.spec == spec => Ok(Arc::clone(known)),
                Some(known) => Route::succeeding(known, spec).map(Arc::new),
                None => {
                    let shared = Arc::clone(self.caught.shared());
                    Route::new(shared, &one.namespace, &one.name, spec).map(Arc::new)
                }
            };
            match route {
                Ok(route) => routes.push(route),
                // The others are no worse for it.
                Err(error) => tracing::error!(%error, "an upstream cannot be used"),
            }
        }
        Ok(routes)
    }
}

fn state_of(said: &Distributed) -> State {
    let mut state = State {
        revoked: said.revoked.iter().cloned().collect::<HashSet<_>>(),
        quarantined: said.quarantined.iter().cloned().collect(),
        thresholds: Thresholding::new(said.thresholds.clone()),
        serial: said.serial,
        confirmed_at: Some(said.issued_at),
        ..State::default()
    };
    for own in &said.tightened {
        state.thresholds.tighten(&own.namespace, &own.thresholds);
    }
    for agent in &said.agents {
        let registration = Registration {
            sponsor: agent.sponsor.clone(),
            capabilities: agent.capabilities.clone().into(),
        };
        state.registry.insert(agent.id.clone(), registration);
    }
    state
}

impl Followed for InForce {
    fn put(&mut self, statement: &Statement) -> Result<(), String> {
        match statement {
            Statement::State(said) => {
                tokio::task::block_in_place(|| self.put_state(said))?;
                tracing::info!(serial = said.serial, "a new state is in force");
                self.admin.in_force(said.serial);
            }
            Statement::Confirmation(said) => self.kernel.confirm(said.issued_at),
            Statement::Trust(said) => {
                let agents = said.agents.iter().map(|one| (one.id.clone(), one.trust));
                self.kernel.told_trust(said.as_of, agents);
            }
        }
        self.admin.operator(true);
        Ok(())
    }

    fn lost(&mut self, why: &str) {
        tracing::warn!(why, "the operator is not followed; what it said last stays in force");
        self.admin.operator(false);
    }
}
