//! What only one operator does at a time: it reconciles, keeps the webhooks' certificate, hands
//! out what sidecars enforce, and brings what waits at them before people.
//!
//! A standby does not listen for sidecars at all: whoever reaches it is refused the connection and
//! tries again, until it comes to the leader.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use aegis_core::{AgentId, TrustDomain};
use aegis_policy::Compiler;
use aegis_resources::kinds::{
    AgentIdentity, AgentPolicy, AgentUpstream, ClusterAgentPolicy, ClusterTrustThreshold,
    TrustThreshold,
};
use futures::{Stream, StreamExt as _};
use kube::{
    Client,
    runtime::{
        events::Recorder,
        reflector::{ObjectRef, Store, store, store::Writer},
    },
};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};
use tokio_stream::wrappers::{UnboundedReceiverStream, WatchStream};
use tokio_util::sync::CancellationToken;

use crate::{
    approvals::{self, Desk},
    book::Book,
    controller::{self, Shared},
    distribution::{Publisher, Served, Sources, keep_publishing, keep_serving},
    keeper::Keeper,
    lease::{Candidate, Timing},
    mesh::{Member, Revoked},
    metrics::Metrics,
    object::{Kind, Stored},
    options::{NAME, Options},
    reconcile::{
        ClusterThresholds, Identities, NamespaceThresholds, Policies, Upstreams, base, counting,
    },
    trust::{self, Pace},
};

/// How long reconciliations that run may take once a stop is asked for.
const DRAIN: Duration = Duration::from_secs(10);
/// Many revocations that come at once are looked at once.
const GATHER: Duration = Duration::from_millis(500);

/// The writing ends of the stores.
struct Writers {
    policies: Writer<Stored<AgentPolicy>>,
    cluster_policies: Writer<Stored<ClusterAgentPolicy>>,
    identities: Writer<Stored<AgentIdentity>>,
    thresholds: Writer<Stored<TrustThreshold>>,
    cluster_thresholds: Writer<Stored<ClusterTrustThreshold>>,
    upstreams: Writer<Stored<AgentUpstream>>,
}

/// The stores of the kinds that are distributed, and the writing ends of all.
fn stores(
    book: Arc<Book>,
    trust_domain: TrustDomain,
    revoked: watch::Receiver<Revoked>,
) -> (Sources, Writers) {
    fn pair<K: Kind>() -> (Store<Stored<K>>, Writer<Stored<K>>) {
        store()
    }
    let (policies, policies_in) = pair();
    let (cluster_policies, cluster_policies_in) = pair();
    let (identities, identities_in) = pair();
    let (thresholds, thresholds_in) = pair();
    let (cluster_thresholds, cluster_thresholds_in) = pair();
    let (upstreams, upstreams_in) = pair();
    let write = Writers {
        policies: policies_in,
        cluster_policies: cluster_policies_in,
        identities: identities_in,
        thresholds: thresholds_in,
        cluster_thresholds: cluster_thresholds_in,
        upstreams: upstreams_in,
    };
    let read = Sources {
        policies,
        cluster_policies,
        identities,
        thresholds,
        cluster_thresholds,
        upstreams,
        book,
        trust_domain,
        revoked,
    };
    (read, write)
}

/// What only one operator does at a time.
pub(crate) struct Leader {
    pub(crate) options: Options,
    pub(crate) client: Client,
    pub(crate) recorder: Recorder,
    pub(crate) compiler: Arc<Compiler>,
    pub(crate) metrics: Metrics,
    /// Who keeps the webhooks' certificate, where webhooks are served.
    pub(crate) keeper: Option<Keeper>,
    pub(crate) publisher: Publisher,
    /// Where sidecars are answered, and as whom.
    pub(crate) distribution: Option<(SocketAddr, watch::Receiver<Option<Member>>)>,
    /// The ledger, which computes trust.
    pub(crate) ledger: Option<String>,
    /// Whom the CA has revoked.
    pub(crate) revoked: watch::Receiver<Revoked>,
}

impl Leader {
    /// Waits to be elected, and leads until `stop`.
    pub(crate) async fn lead(self, stop: CancellationToken) -> anyhow::Result<()> {
        let identity = format!("{}_{}", self.options.instance, uuid::Uuid::now_v7());
        let leading = self.metrics.leading.with_label_values(&[NAME]);
        leading.set(0);
        let namespace = &self.options.namespace;
        let candidate =
            Candidate::new(self.client.clone(), namespace, NAME, identity, Timing::default());
        // The lease is given back only after the controllers have ended.
        let release = CancellationToken::new();
        let elected = tokio::select! {
            () = stop.cancelled() => return Ok(()),
            elected = candidate.elected(&release) => elected,
        };
        let Some((term, keeping)) = elected else { return Ok(()) };
        leading.set(1);
        tracing::info!(term = term.number, "leading");
        let ending = CancellationToken::new();
        let mut controllers = self.controllers(term.number, &ending);
        let lost = tokio::select! {
            () = stop.cancelled() => false,
            () = term.over.cancelled() => true,
            _ = controllers.join_next() => false,
        };
        ending.cancel();
        if !lost {
            let drained = async { while controllers.join_next().await.is_some() {} };
            if !aegis_runtime::drained(drained, DRAIN).await {
                tracing::warn!(seconds = DRAIN.as_secs(), "reconciliations did not end in time");
            }
        }
        controllers.shutdown().await;
        leading.set(0);
        release.cancel();
        let _ = keeping.await;
        anyhow::ensure!(!lost, "the leadership was lost; another operator may lead now");
        anyhow::ensure!(stop.is_cancelled(), "a controller ended by itself");
        Ok(())
    }

    fn controllers(&self, term: u32, stop: &CancellationToken) -> JoinSet<()> {
        let book = Arc::new(Book::new(Arc::clone(&self.compiler)));
        let trust_domain = self.options.trust_domain.clone();
        let (read, write) = stores(Arc::clone(&book), trust_domain, self.revoked.clone());
        let (changed, changes) = watch::channel(0);
        let (listed, all_listed) = watch::channel(0);
        let shared = Shared {
            client: self.client.clone(),
            recorder: self.recorder.clone(),
            metrics: self.metrics.clone(),
            changed,
            listed,
            stop: stop.clone(),
        };
        let (base, bases) = watch::channel(Base::default());
        let mut tasks = JoinSet::new();
        let (pace, moved) = Pace::new();
        if let Some(keeper) = self.keeper.clone() {
            tasks.spawn(keeper.keep(stop.clone()));
        }
        if let Some((address, members)) = self.distribution.clone() {
            let desk = Desk::new(approvals::ApiServer(self.client.clone()));
            tasks.spawn(approvals::follow(self.client.clone(), desk.clone(), stop.clone()));
            tasks.spawn(desk.clone().keep_ending(stop.clone()));
            let served = Served { publisher: self.publisher.clone(), desk };
            tasks.spawn(keep_serving(address, members.clone(), served, stop.clone()));
            if let Some(ledger) = self.ledger.clone() {
                let telling = (self.publisher.clone(), term);
                let (pace, counted) = (Arc::clone(&pace), self.metrics.clone());
                tasks.spawn(trust::follow(ledger, members, telling, pace, counted, stop.clone()));
            }
        }
        tasks.spawn(Arc::clone(&pace).keep(stop.clone()));
        tasks.spawn(follow_base(read.cluster_thresholds.clone(), base, changes.clone()));
        tasks.spawn(keep_publishing(
            read.clone(),
            self.publisher.clone(),
            term,
            (changes, all_listed),
            self.metrics.clone(),
            stop.clone(),
        ));
        self.reconcile(&mut tasks, &shared, &read, write, bases, (pace, moved));
        tasks
    }

    /// Runs the controller of each kind.
    fn reconcile(
        &self,
        tasks: &mut JoinSet<()>,
        shared: &Shared,
        read: &Sources,
        write: Writers,
        bases: watch::Receiver<Base>,
        (pace, moved): (Arc<Pace>, mpsc::UnboundedReceiver<AgentId>),
    ) {
        let policies = Policies::<AgentPolicy>::new(Arc::clone(&read.book), shared.clone());
        tasks.spawn(controller::run(policies, shared.clone(), write.policies, never()));
        let policies = Policies::<ClusterAgentPolicy>::new(Arc::clone(&read.book), shared.clone());
        tasks.spawn(controller::run(policies, shared.clone(), write.cluster_policies, never()));
        let identities = Identities {
            trust_domain: self.options.trust_domain.clone(),
            revoked: self.revoked.clone(),
            publisher: self.publisher.clone(),
            pace,
            shared: shared.clone(),
        };
        let again = WatchStream::from_changes(self.revoked.clone());
        let again = again.then(|_| tokio::time::sleep(GATHER));
        let moved = UnboundedReceiverStream::new(moved).map(|agent| {
            ObjectRef::new(agent.name()).within(agent.namespace().unwrap_or_default())
        });
        let (shared_too, identities_in) = (shared.clone(), write.identities);
        tasks.spawn(controller::run_with(identities, shared_too, identities_in, again, moved));
        let thresholds =
            ClusterThresholds { all: read.cluster_thresholds.clone(), shared: shared.clone() };
        let again = WatchStream::from_changes(bases.clone()).map(drop);
        tasks.spawn(controller::run(thresholds, shared.clone(), write.cluster_thresholds, again));
        let thresholds = NamespaceThresholds {
            cluster: read.cluster_thresholds.clone(),
            shared: shared.clone(),
        };
        let again = WatchStream::from_changes(bases).map(drop);
        tasks.spawn(controller::run(thresholds, shared.clone(), write.thresholds, again));
        let upstreams = Upstreams { shared: shared.clone() };
        tasks.spawn(controller::run(upstreams, shared.clone(), write.upstreams, never()));
    }
}

/// Which thresholds are the cluster's, in which generation, and whether everybody is suspended.
type Base = (Option<(String, i64)>, bool);

fn never() -> impl Stream<Item = ()> + Send + 'static {
    futures::stream::pending()
}

/// Tells when other thresholds have become the cluster's: then all that depend on them are looked
/// at again.
async fn follow_base(
    all: Store<Stored<ClusterTrustThreshold>>,
    told: watch::Sender<Base>,
    mut changes: watch::Receiver<u64>,
) {
    while changes.changed().await.is_ok() {
        let state = all.state();
        let first = counting(&state).map(|one| (one.uid().to_owned(), one.generation()));
        let current = (first, base(&state).suspended);
        told.send_if_modified(|known| {
            let differs = *known != current;
            *known = current;
            differs
        });
    }
}
