//! From what is in force in the cluster to what sidecars enforce.

use std::{sync::Arc, time::Duration};

use aegis_api::distribution::{Registered, Tightened, Upstream};
use aegis_core::TrustDomain;
use aegis_policy::Policy;
use aegis_resources::kinds::{
    AgentIdentity, AgentPolicy, AgentUpstream, ClusterAgentPolicy, ClusterTrustThreshold,
    TrustThreshold,
};
use kube::runtime::reflector::Store;
use serde_json::value::to_raw_value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Content, Publisher};
use crate::{
    book::Book,
    mesh::Revoked,
    metrics::Metrics,
    object::{Kind, Stored},
    reconcile::{PolicyObject, base, of_cluster, tightened},
};

/// How long to wait for the rest of a change, such as of `kubectl apply` with several objects.
const SETTLE: Duration = Duration::from_millis(20);
/// How many kinds are watched; a state of fewer would be half a state.
const KINDS: usize = 6;
/// The wait after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// Where the state comes from.
#[derive(Clone, Debug)]
pub struct Sources {
    /// AgentPolicies.
    pub policies: Store<Stored<AgentPolicy>>,
    /// ClusterAgentPolicies.
    pub cluster_policies: Store<Stored<ClusterAgentPolicy>>,
    /// AgentIdentities.
    pub identities: Store<Stored<AgentIdentity>>,
    /// TrustThresholds.
    pub thresholds: Store<Stored<TrustThreshold>>,
    /// ClusterTrustThresholds.
    pub cluster_thresholds: Store<Stored<ClusterTrustThreshold>>,
    /// AgentUpstreams.
    pub upstreams: Store<Stored<AgentUpstream>>,
    /// The policies in force.
    pub book: Arc<Book>,
    /// The agents' trust domain.
    pub trust_domain: TrustDomain,
    /// Whom the CA has revoked.
    pub revoked: watch::Receiver<Revoked>,
}

/// Publishes whatever comes into force, until `stop`.
pub async fn keep_publishing(
    sources: Sources,
    publisher: Publisher,
    term: u32,
    (mut changes, mut listed): (watch::Receiver<u64>, watch::Receiver<usize>),
    metrics: Metrics,
    stop: CancellationToken,
) {
    let mut revoked = sources.revoked.clone();
    // Half a state would remove protection: of what is listed, and of who is revoked.
    let whole = async {
        listed.wait_for(|count| *count >= KINDS).await.is_ok()
            && revoked.wait_for(Option::is_some).await.is_ok()
    };
    let whole = tokio::select! {
        () = stop.cancelled() => false,
        whole = whole => whole,
    };
    if !whole {
        return;
    }
    loop {
        changes.mark_unchanged();
        revoked.mark_unchanged();
        let (composing, compose_from) = (publisher.clone(), sources.clone());
        let composed = tokio::task::spawn_blocking(move || {
            compose(&compose_from).map(|content| composing.publish(term, content))
        });
        let failed = match composed.await {
            Ok(Ok(new)) => {
                if new {
                    tracing::info!(serial = publisher.serial(), "a new state is distributed");
                }
                false
            }
            Ok(Err(error)) => {
                tracing::error!(
                    %error,
                    "the state cannot be put together; the last one stays in force"
                );
                true
            }
            Err(error) => {
                tracing::error!(%error, "putting the state together ended unexpectedly");
                true
            }
        };
        let serial = i64::try_from(publisher.serial()).unwrap_or(i64::MAX);
        metrics.distribution.with_label_values(&["serial"]).set(serial);
        tokio::select! {
            () = stop.cancelled() => return,
            changed = changes.changed() => match changed {
                Ok(()) => tokio::time::sleep(SETTLE).await,
                Err(_) => return,
            },
            Ok(()) = revoked.changed() => {}
            () = tokio::time::sleep(RETRY), if failed => {}
        }
    }
}

/// What is in force now.
///
/// # Errors
/// When it cannot be compiled: then nothing may replace the state before.
pub fn compose(sources: &Sources) -> Result<Content, String> {
    let mut policies = in_force(&sources.policies, &sources.book);
    policies.extend(in_force(&sources.cluster_policies, &sources.book));
    policies.sort_by(|a, b| a.id.cmp(&b.id));
    sources.book.keep_only(|id| policies.binary_search_by(|policy| policy.id.cmp(id)).is_ok());
    let compiled = sources.book.compile_all(&policies).map_err(|error| error.to_string())?;
    if let Some(failure) = compiled.failures.first() {
        return Err(format!("policy {}: {}", failure.policy, failure.message));
    }
    let mut content =
        Content::with_policies(&compiled.bundle).map_err(|error| error.to_string())?;
    let all = sources.cluster_thresholds.state();
    content.thresholds = base(&all);
    for own in ordered(&sources.thresholds) {
        let Ok(spec) = &own.spec else { continue };
        let earlier = content.tightened.iter_mut().find(|one| one.namespace == own.namespace());
        let base = earlier.as_ref().map_or(&content.thresholds, |one| &one.thresholds);
        let thresholds = tightened(&spec.0, base);
        match earlier {
            Some(one) => one.thresholds = thresholds,
            None => {
                let namespace = own.namespace().to_owned();
                content.tightened.push(Tightened { namespace, thresholds });
            }
        }
    }
    for identity in ordered(&sources.identities) {
        let Ok(spec) = identity.spec.as_ref().map(|spec| &spec.0) else { continue };
        let id = sources.trust_domain.agent(
            identity.namespace(),
            &spec.service_account,
            identity.name(),
        );
        if let (Ok(id), Ok(())) = (id, spec.validate()) {
            if spec.suspended {
                content.quarantined.push(id.clone());
            }
            content.agents.push(Registered {
                id,
                sponsor: spec.sponsor.clone(),
                capabilities: spec.capabilities.clone(),
            });
        }
    }
    for upstream in ordered(&sources.upstreams) {
        let Ok(spec) = upstream.spec.as_ref().map(|spec| &spec.0) else { continue };
        if of_cluster(spec).is_err() {
            continue;
        }
        content.upstreams.push(Upstream {
            namespace: upstream.namespace().to_owned(),
            name: upstream.name().to_owned(),
            spec: to_raw_value(spec).map_err(|error| error.to_string())?,
        });
    }
    let revoked = sources.revoked.borrow().clone();
    content.revoked = revoked.iter().flat_map(|all| all.iter().cloned()).collect();
    Ok(content)
}

/// The objects in an order that does not depend on when they came.
fn ordered<K: Kind>(store: &Store<Stored<K>>) -> Vec<Arc<Stored<K>>> {
    let mut all = store.state();
    all.sort_by(|a, b| (a.namespace(), a.name()).cmp(&(b.namespace(), b.name())));
    all
}

fn in_force<K: PolicyObject>(store: &Store<Stored<K>>, book: &Book) -> Vec<Policy> {
    let state = store.state();
    let policies = state.iter().filter_map(|object| {
        let id = K::id(object);
        let known = book.in_force(&id, object.uid(), object.known_in_force())?;
        Some(Policy { id, spec: known.spec })
    });
    policies.collect()
}
