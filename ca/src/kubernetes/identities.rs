//! The AgentIdentities of the cluster, as they are now.
//!
//! An identity that goes is revoked at once; one that comes back is reinstated. One that cannot be
//! read is none.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use aegis_core::{AgentId, TrustDomain};
use aegis_resources::{AgentIdentitySpec, kinds::AgentIdentityObjectSpec};
use futures::StreamExt as _;
use kube::{
    Api, Client,
    api::{ApiResource, DynamicObject},
    runtime::{WatchStreamExt as _, watcher},
};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;

use crate::{IdentityManager, Subject, revoke::DELETED};

/// An AgentIdentity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Known {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What it says.
    pub spec: AgentIdentitySpec,
}

type All = BTreeMap<String, BTreeMap<String, Arc<Known>>>;

/// All of them, by namespace. Clones share them.
#[derive(Clone, Debug, Default)]
pub struct Identities(Arc<RwLock<All>>);

impl Known {
    fn selects(&self, account: &str, labels: &BTreeMap<String, String>) -> bool {
        self.spec.service_account == account
            && self.spec.selector.kubernetes.as_ref().is_some_and(|selector| {
                selector.pod_labels.iter().all(|(key, value)| labels.get(key) == Some(value))
            })
    }

    /// Its SPIFFE ID.
    fn id(&self, trust_domain: &TrustDomain) -> Option<AgentId> {
        trust_domain.agent(&self.namespace, &self.spec.service_account, &self.name).ok()
    }

    fn read(object: DynamicObject) -> Option<Self> {
        let (namespace, name) = (object.metadata.namespace?, object.metadata.name?);
        match serde_json::from_value::<AgentIdentityObjectSpec>(object.data.get("spec")?.clone()) {
            Ok(spec) => Some(Self { namespace, name, spec: spec.0 }),
            Err(error) => {
                tracing::warn!(namespace, name, %error, "an AgentIdentity cannot be read; nobody gets it");
                None
            }
        }
    }
}

impl Identities {
    /// Adds or replaces one.
    pub fn apply(&self, known: Known) {
        let known = Arc::new(known);
        let mut all = self.0.write();
        all.entry(known.namespace.clone()).or_default().insert(known.name.clone(), known);
    }

    /// Removes one.
    pub fn remove(&self, namespace: &str, name: &str) {
        let mut all = self.0.write();
        if let Some(own) = all.get_mut(namespace) {
            own.remove(name);
        }
        all.retain(|_, own| !own.is_empty());
    }

    fn replace(&self, new: All) {
        *self.0.write() = new;
    }

    /// Those of a namespace that select a pod of this service account with these labels.
    #[must_use]
    pub fn selecting(
        &self,
        namespace: &str,
        account: &str,
        labels: &BTreeMap<String, String>,
    ) -> Vec<Arc<Known>> {
        let all = self.0.read();
        let own = all.get(namespace).into_iter().flat_map(BTreeMap::values);
        own.filter(|known| known.selects(account, labels)).cloned().collect()
    }

    fn ids(&self, trust_domain: &TrustDomain) -> BTreeSet<AgentId> {
        let all = self.0.read();
        all.values().flat_map(BTreeMap::values).filter_map(|known| known.id(trust_domain)).collect()
    }
}

/// Follows the cluster's AgentIdentities until `stop`. `listed` is cancelled once they are known.
pub async fn keep_following(
    client: Client,
    identities: Identities,
    manager: IdentityManager,
    listed: CancellationToken,
    stop: CancellationToken,
) {
    let resource = ApiResource::erase::<aegis_resources::kinds::AgentIdentity>(&());
    let api: Api<DynamicObject> = Api::all_with(client, &resource);
    let events = watcher(api, watcher::Config::default()).default_backoff();
    let events = events.take_until(stop.cancelled_owned());
    tokio::pin!(events);
    let mut fresh = All::new();
    while let Some(event) = events.next().await {
        let before = identities.ids(manager.trust_domain());
        match event {
            Ok(watcher::Event::Init) => {
                fresh.clear();
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                if let Some(known) = Known::read(object) {
                    let own = fresh.entry(known.namespace.clone()).or_default();
                    own.insert(known.name.clone(), Arc::new(known));
                }
                continue;
            }
            Ok(watcher::Event::InitDone) => {
                identities.replace(std::mem::take(&mut fresh));
                listed.cancel();
            }
            Ok(watcher::Event::Apply(object)) => {
                let (namespace, name) =
                    (object.metadata.namespace.clone(), object.metadata.name.clone());
                match Known::read(object) {
                    Some(known) => identities.apply(known),
                    None => {
                        identities.remove(&namespace.unwrap_or_default(), &name.unwrap_or_default())
                    }
                }
            }
            Ok(watcher::Event::Delete(object)) => identities.remove(
                object.metadata.namespace.as_deref().unwrap_or_default(),
                object.metadata.name.as_deref().unwrap_or_default(),
            ),
            Err(error) => {
                tracing::warn!(%error, "the watch of AgentIdentities was interrupted");
                continue;
            }
        }
        follow_up(&before, &identities, &manager).await;
    }
}

/// Revokes what has gone, and takes back the revocation of what has come again.
pub(crate) async fn follow_up(
    before: &BTreeSet<AgentId>,
    identities: &Identities,
    manager: &IdentityManager,
) {
    let now = identities.ids(manager.trust_domain());
    for id in before.difference(&now) {
        let subject = Subject::Id(id.spiffe_id().clone());
        tracing::info!(%id, "an AgentIdentity was deleted; its identity is revoked");
        if let Err(error) = manager.revoke(subject, DELETED).await {
            tracing::error!(%id, %error, "a deleted identity could not be revoked or recorded");
        }
    }
    for revoked in manager.revoked() {
        let Subject::Id(id) = &revoked.subject else { continue };
        let again = AgentId::try_from(id.clone()).is_ok_and(|id| now.contains(&id));
        if revoked.reason == DELETED && again {
            let back = manager.reinstate(&revoked.subject, "its AgentIdentity exists again").await;
            if let Err(error) = back {
                tracing::error!(%id, %error, "an identity could not be reinstated");
            }
        }
    }
}
