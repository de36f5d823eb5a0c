//! From a folder of resources to what the parts of the daemon take.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use aegis_ca::{Registration as CaRegistration, Selector};
use aegis_core::{AgentId, TrustDomain};
use aegis_kernel::{Registration, Registry, State, Thresholding};
use aegis_policy::{Policy, PolicyId};
use aegis_resources::{AgentIdentitySpec, AgentUpstreamSpec, Resource, Resources, load_folder};

/// What a folder says, ready for use.
#[derive(Debug, Default)]
pub(super) struct Configuration {
    /// The policies.
    pub policies: Vec<Policy>,
    /// Registrations and thresholds.
    pub state: State,
    /// How processes are recognised.
    pub registrations: Vec<CaRegistration>,
    /// The upstreams, by namespace and name.
    pub upstreams: BTreeMap<(String, String), AgentUpstreamSpec>,
    /// What could not be read, one sentence each.
    pub problems: Vec<String>,
}

impl Configuration {
    /// Reads `folder`. A broken document is a problem to be told; it never hides the others.
    pub(super) fn read(folder: &Path, trust_domain: &TrustDomain) -> anyhow::Result<Self> {
        let (resources, errors) = load_folder(folder)?;
        let mut read = Self { problems: errors.iter().map(ToString::to_string).collect(), ..Self::default() };
        read.take(resources, trust_domain);
        Ok(read)
    }

    fn take(&mut self, resources: Resources, trust_domain: &TrustDomain) {
        for policy in resources.policies {
            let id = PolicyId::namespaced(policy.namespace(), policy.metadata.name.clone());
            self.policies.push(Policy { id, spec: policy.spec });
        }
        for policy in resources.cluster_policies {
            let id = PolicyId::cluster(policy.metadata.name.clone());
            self.policies.push(Policy { id, spec: policy.spec });
        }
        self.state.thresholds = self.thresholds(&resources.cluster_thresholds, &resources.thresholds);
        let mut registry = Registry::default();
        for identity in &resources.identities {
            match agent_id(identity, trust_domain) {
                Ok(id) => {
                    registry.insert(id.clone(), registration(&identity.spec));
                    self.registrations.push(ca_registration(id, &identity.spec));
                }
                Err(problem) => self.problems.push(problem),
            }
        }
        self.state.registry = registry;
        for upstream in resources.upstreams {
            let key = (upstream.namespace().to_owned(), upstream.metadata.name.clone());
            self.upstreams.insert(key, upstream.spec);
        }
    }

    fn thresholds(
        &mut self,
        cluster: &[Resource<aegis_core::thresholds::Thresholds>],
        namespaced: &[Resource<aegis_core::thresholds::Thresholds>],
    ) -> Thresholding {
        if let [_, second, ..] = cluster {
            self.problems.push(format!(
                "ClusterTrustThreshold `{}` is a second one and is ignored; keep one",
                second.metadata.name
            ));
        }
        let base = cluster.first().map(|one| one.spec.clone()).unwrap_or_default();
        let mut thresholding = Thresholding::new(base);
        for own in namespaced {
            thresholding.tighten(own.namespace(), &own.spec);
        }
        thresholding
    }
}

fn agent_id(identity: &Resource<AgentIdentitySpec>, trust_domain: &TrustDomain) -> Result<AgentId, String> {
    trust_domain
        .agent(identity.namespace(), &identity.spec.service_account, &identity.metadata.name)
        .map_err(|error| format!("AgentIdentity `{}`: {error}", identity.metadata.name))
}

fn registration(spec: &AgentIdentitySpec) -> Registration {
    Registration { sponsor: spec.sponsor.clone(), capabilities: Arc::from(spec.capabilities.clone()) }
}

fn ca_registration(id: AgentId, spec: &AgentIdentitySpec) -> CaRegistration {
    let unix = spec.selector.unix.clone().unwrap_or_default();
    let selectors = [
        unix.uid.map(Selector::Uid),
        unix.gid.map(Selector::Gid),
        unix.executable.map(|path| Selector::Path(path.into())),
        unix.executable_digest.map(Selector::Sha256),
        unix.launcher.map(|path| Selector::Launcher(path.into())),
    ];
    CaRegistration {
        id,
        sponsor: spec.sponsor.clone(),
        capabilities: spec.capabilities.iter().map(ToString::to_string).collect(),
        selectors: selectors.into_iter().flatten().collect(),
        ttl: Some(std::time::Duration::from_secs(spec.svid_ttl_seconds.into())),
    }
}
