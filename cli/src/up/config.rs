//! From a folder of resources to what the parts of the daemon take.

use std::{collections::BTreeMap, path::Path, sync::Arc};

use aegis_ca::{Registration as CaRegistration, Selector};
use aegis_core::{AgentId, TrustDomain};
use aegis_kernel::{Registration, Registry, State, Thresholding};
use aegis_policy::{Policy, PolicyId, PolicyState, PolicyStatus};
use aegis_resources::{
    AgentIdentitySpec, AgentUpstreamSpec, LoadError, Place, Resource, Resources,
    identity::UnixSelector, load_folder,
};

/// What a folder says, ready for use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Configuration {
    /// The policies.
    pub policies: Vec<Policy>,
    /// Registrations and thresholds.
    pub state: State,
    /// How processes are recognised.
    pub registrations: Vec<CaRegistration>,
    /// The upstreams, by namespace and name.
    pub upstreams: BTreeMap<(String, String), AgentUpstreamSpec>,
    /// Where the policies stand.
    places: BTreeMap<PolicyId, Place>,
    /// The policies whose document cannot be read: why, and that an older version holds.
    kept: BTreeMap<PolicyId, String>,
    /// What could not be read.
    errors: Vec<LoadError>,
    /// What is wrong, one sentence each.
    pub problems: Vec<String>,
    /// Whether there are documents that could not be read: what they said before still holds.
    pub incomplete: bool,
    /// Whether it sets thresholds of its own.
    pub has_thresholds: bool,
}

impl Configuration {
    /// Reads `folder`. A broken document is a problem to be told; it never hides the others.
    pub(crate) fn read(folder: &Path, trust_domain: &TrustDomain) -> anyhow::Result<Self> {
        let (resources, errors) = load_folder(folder)?;
        let problems = errors.iter().map(ToString::to_string).collect();
        let incomplete = !errors.is_empty();
        let mut read = Self { problems, incomplete, errors, ..Self::default() };
        read.take(resources, trust_domain);
        Ok(read)
    }

    /// While a document cannot be read, nobody knows what it is about: whatever was in force and is
    /// missing now stays in force. A slip of the pen never removes protection.
    pub(super) fn keep_missing(&mut self, before: &Self) {
        if !self.incomplete {
            return;
        }
        for policy in &before.policies {
            if !self.policies.iter().any(|known| known.id == policy.id) {
                let place = before.places.get(&policy.id).cloned().unwrap_or_default();
                self.kept.insert(policy.id.clone(), self.why_missing(&place));
                self.places.insert(policy.id.clone(), place);
                self.policies.push(policy.clone());
            }
        }
        for (id, registration) in before.state.registry.agents() {
            if self.state.registry.find(id).is_none() {
                self.state.registry.insert(id.clone(), registration.clone());
                if before.state.suspended.contains(id) {
                    self.state.suspended.insert(id.clone());
                }
            }
        }
        for registration in &before.registrations {
            if !self.registrations.iter().any(|known| known.id == registration.id) {
                self.registrations.push(registration.clone());
            }
        }
        for (key, spec) in &before.upstreams {
            self.upstreams.entry(key.clone()).or_insert_with(|| spec.clone());
        }
        if !self.has_thresholds {
            self.state.thresholds = before.state.thresholds.clone();
            self.has_thresholds = before.has_thresholds;
        }
    }

    /// Why a policy that was at `place` is not there any more.
    fn why_missing(&self, place: &Place) -> String {
        let within = format!("{}:", place.file);
        let fault =
            self.errors.iter().find(|error| format!("{}:", error.place).starts_with(&within));
        let why = match fault {
            Some(error) => error.to_string(),
            None => {
                format!("it is no longer in {}, and other documents cannot be read", place.file)
            }
        };
        format!("{why}; its last good version stays in force")
    }

    /// Says of a policy that is not in force as it is written where that is, and what holds instead.
    pub(super) fn place(&self, status: &mut PolicyStatus) {
        if let Some(why) = self.kept.get(&status.policy) {
            (status.state, status.message) = (PolicyState::LastGood, why.clone());
            return;
        }
        let holds = match status.state {
            PolicyState::Ready => return,
            PolicyState::LastGood => "its last good version stays in force",
            PolicyState::Failed => "it has no good version yet, so nothing of it is in force",
        };
        let place = self.places.get(&status.policy).cloned().unwrap_or_default();
        let at = place.in_rego(status.line);
        status.message = format!("{at}: {}; {holds}", status.message);
    }

    fn take(&mut self, resources: Resources, trust_domain: &TrustDomain) {
        for policy in resources.policies {
            let id = PolicyId::namespaced(policy.namespace(), policy.metadata.name.clone());
            self.places.insert(id.clone(), policy.place);
            self.policies.push(Policy { id, spec: policy.spec });
        }
        for policy in resources.cluster_policies {
            let id = PolicyId::cluster(policy.metadata.name.clone());
            self.places.insert(id.clone(), policy.place);
            self.policies.push(Policy { id, spec: policy.spec });
        }
        self.has_thresholds =
            !resources.cluster_thresholds.is_empty() || !resources.thresholds.is_empty();
        self.state.thresholds =
            self.thresholds(&resources.cluster_thresholds, &resources.thresholds);
        let mut registry = Registry::default();
        for identity in &resources.identities {
            match agent_id(identity, trust_domain) {
                Ok(id) => {
                    if identity.spec.suspended {
                        self.state.suspended.insert(id.clone());
                    }
                    registry.insert(id.clone(), registration(&identity.spec));
                    // An identity of pods only: no process of this machine is it.
                    if let Some(unix) = identity.spec.selector.unix.clone() {
                        self.registrations.push(ca_registration(id, &identity.spec, unix));
                    }
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
        let mut base = cluster.first().map(|one| one.spec.clone()).unwrap_or_default();
        // The kill switch is not lost by standing in the wrong document.
        base.suspended = cluster.iter().any(|one| one.spec.suspended);
        let mut thresholding = Thresholding::new(base);
        for own in namespaced {
            thresholding.tighten(own.namespace(), &own.spec);
        }
        thresholding
    }
}

fn agent_id(
    identity: &Resource<AgentIdentitySpec>,
    trust_domain: &TrustDomain,
) -> Result<AgentId, String> {
    trust_domain
        .agent(identity.namespace(), &identity.spec.service_account, &identity.metadata.name)
        .map_err(|error| format!("AgentIdentity `{}`: {error}", identity.metadata.name))
}

fn registration(spec: &AgentIdentitySpec) -> Registration {
    Registration {
        sponsor: spec.sponsor.clone(),
        capabilities: Arc::from(spec.capabilities.clone()),
    }
}

fn ca_registration(id: AgentId, spec: &AgentIdentitySpec, unix: UnixSelector) -> CaRegistration {
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

#[cfg(test)]
mod tests {
    use super::*;

    const DENY: &str = "apiVersion: aegis.dev/v1alpha1\nkind: AgentPolicy\nmetadata: {name: never}\nspec: {rules: [{name: no, effect: deny}]}\n";
    const IDENTITY: &str = "apiVersion: aegis.dev/v1alpha1\nkind: AgentIdentity\nmetadata: {name: a}\nspec: {sponsor: ada@acme.example, selector: {unix: {uid: 1}}}\n";
    const UPSTREAM: &str = "apiVersion: aegis.dev/v1alpha1\nkind: AgentUpstream\nmetadata: {name: u}\nspec: {url: 'http://127.0.0.1:1/'}\n";
    const STRICT: &str = "apiVersion: aegis.dev/v1alpha1\nkind: ClusterTrustThreshold\nmetadata: {name: t}\nspec: {tMin: 990}\n";

    fn read(files: &[(&str, &str)]) -> Configuration {
        let folder = tempfile::tempdir().unwrap();
        for (name, text) in files {
            std::fs::write(folder.path().join(name), text).unwrap();
        }
        Configuration::read(folder.path(), &"acme.example".parse().unwrap()).unwrap()
    }

    #[test]
    fn a_document_that_cannot_be_read_removes_nothing() {
        let before = read(&[
            ("p.yaml", DENY),
            ("i.yaml", IDENTITY),
            ("t.yaml", STRICT),
            ("u.yaml", UPSTREAM),
        ]);
        let broken = DENY.replace("effect", "efect");
        let mut after = read(&[("p.yaml", &broken), ("i.yaml", "nonsense"), ("t.yaml", "a: [")]);
        assert!(after.policies.is_empty() && after.registrations.is_empty());
        after.keep_missing(&before);
        assert_eq!(after.policies, before.policies);
        assert_eq!(after.registrations, before.registrations);
        assert_eq!(after.state.registry.agents().count(), 1);
        assert_eq!(after.state.thresholds.base.t_min.get(), 990);
        assert_eq!(after.upstreams, before.upstreams);
    }

    #[test]
    fn what_is_kept_says_which_line_is_wrong() {
        let folder = tempfile::tempdir().unwrap();
        let read = |text: &str| {
            std::fs::write(folder.path().join("p.yaml"), text).unwrap();
            Configuration::read(folder.path(), &"acme.example".parse().unwrap()).unwrap()
        };
        let before = read(DENY);
        let mut after = read(&DENY.replace("effect: deny", "effect: denny"));
        after.keep_missing(&before);
        let mut status = PolicyStatus {
            policy: after.policies[0].id.clone(),
            state: PolicyState::Ready,
            message: String::new(),
            line: None,
        };
        after.place(&mut status);
        assert_eq!(status.state, PolicyState::LastGood);
        for part in ["p.yaml:4:", "unknown value `denny`", "its last good version stays in force"] {
            assert!(status.message.contains(part), "{}", status.message);
        }
        // A version that reads well ends that.
        let mut mended = read(DENY);
        mended.keep_missing(&after);
        let mut status =
            PolicyStatus { state: PolicyState::Ready, message: String::new(), ..status };
        mended.place(&mut status);
        assert_eq!((status.state, status.message.as_str()), (PolicyState::Ready, ""));
        // What does not compile is told by the line of the file.
        let rego = DENY.replace(
            "{rules: [{name: no, effect: deny}]}",
            "\n  rego: |\n    package x\n    nonsense",
        );
        let mut status = PolicyStatus { state: PolicyState::Failed, line: Some(2), ..status };
        read(&rego).place(&mut status);
        assert!(status.message.contains("p.yaml:7: "), "{}", status.message);
    }

    #[test]
    fn an_identity_of_pods_matches_no_process() {
        let pods = IDENTITY.replace("unix: {uid: 1}", "kubernetes: {podLabels: {app: bot}}");
        let read = read(&[("i.yaml", &pods)]);
        assert!(read.problems.is_empty(), "{:?}", read.problems);
        assert!(read.registrations.is_empty());
        assert_eq!(read.state.registry.agents().count(), 1);
    }

    #[test]
    fn a_suspended_agent_stays_so_while_its_document_is_broken() {
        let suspended = IDENTITY.replace("{sponsor", "{suspended: true, sponsor");
        let before = read(&[("i.yaml", &suspended)]);
        assert_eq!(before.state.suspended.len(), 1, "{:?}", before.problems);
        let mut after = read(&[("i.yaml", "nonsense")]);
        after.keep_missing(&before);
        assert_eq!(after.state.suspended, before.state.suspended);
        let mut lifted = read(&[("i.yaml", IDENTITY)]);
        lifted.keep_missing(&before);
        assert!(lifted.state.suspended.is_empty());
    }

    #[test]
    fn a_suspension_in_an_ignored_document_counts() {
        let second = STRICT.replace("name: t", "name: u").replace("tMin: 990", "suspended: true");
        let read = read(&[("a.yaml", STRICT), ("b.yaml", &second)]);
        assert!(read.state.thresholds.of(Some("shop")).suspended);
        assert_eq!(read.state.thresholds.base.t_min.get(), 990);
    }

    #[test]
    fn what_is_taken_away_in_order_is_gone() {
        let before = read(&[("p.yaml", DENY), ("i.yaml", IDENTITY)]);
        let mut after = read(&[("i.yaml", IDENTITY)]);
        after.keep_missing(&before);
        assert!(after.policies.is_empty());
        assert_eq!(after.registrations.len(), 1);
    }
}
