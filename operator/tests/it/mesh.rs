//! The operator joins the mesh as soon as it can, and what it knows of it reaches sidecars.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use aegis_core::AgentId;
use aegis_identity::Bundle;
use aegis_operator::{
    approvals::Desk,
    book::Book,
    distribution::{Publisher, Served, Sources, keep_publishing, keep_serving},
    mesh::{Joining, Mesh, MeshConfig, Roots},
    metrics::Metrics,
    object::{Kind, Stored},
};
use aegis_policy::{Compiler, Opa};
use aegis_resources::kinds::{AgentIdentity, ClusterTrustThreshold, TrustThreshold};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::{
    reflector::{Store, store, store::Writer},
    watcher::Event,
};
use serde_json::{Value, json};
use tokio::{
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use crate::{
    approvals::Board,
    authority::Authority,
    distribution::{key, verifier},
    follower::{OPERATOR, PATIENCE, SIDECAR, Sidecar, to},
};

/// How many kinds are distributed.
const KINDS: usize = 6;

pub(crate) fn roots(authority: &Authority) -> Arc<Roots> {
    let config_map: ConfigMap =
        serde_json::from_value(json!({ "metadata": {}, "data": { "roots.pem": authority.pem } }))
            .unwrap();
    Arc::new(Roots::read(&config_map, &"acme.example".parse().unwrap()).unwrap())
}

/// An address where nobody listens.
pub(crate) async fn unused() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

/// An operator that joins by the CA at `ca`, and serves as the leader.
pub(crate) struct Operator {
    pub(crate) roots: watch::Sender<Option<Arc<Roots>>>,
    pub(crate) mesh: Mesh,
    pub(crate) publisher: Publisher,
    pub(crate) metrics: Metrics,
    pub(crate) address: SocketAddr,
    token: PathBuf,
    _folder: tempfile::TempDir,
    pub(crate) stop: CancellationToken,
    _end: DropGuard,
}

impl Operator {
    pub(crate) async fn start(ca: SocketAddr) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let token = folder.path().join("token");
        std::fs::write(&token, OPERATOR).unwrap();
        let metrics = Metrics::register().unwrap();
        let (known, roots) = watch::channel(None);
        let config = MeshConfig {
            trust_domain: "acme.example".parse().unwrap(),
            ca: ca.to_string(),
            token: token.clone(),
            patience: Duration::from_millis(300),
        };
        let (joining, mesh) = Joining::new(config, roots, metrics.clone());
        let stop = CancellationToken::new();
        tokio::spawn(joining.keep(stop.clone()));
        let sidecars = metrics.distribution.with_label_values(&["sidecars"]);
        let publisher = Publisher::new(key()).counting(sidecars);
        let address = unused().await;
        let members = mesh.member.clone();
        let desk = Desk::new(Board::default());
        let served = Served { publisher: publisher.clone(), desk };
        tokio::spawn(keep_serving(address, members, served, stop.clone()));
        Self {
            roots: known,
            mesh,
            publisher,
            metrics,
            address,
            token,
            _folder: folder,
            _end: stop.clone().drop_guard(),
            stop,
        }
    }

    pub(crate) fn gauge(&self, what: &str) -> i64 {
        self.metrics.mesh.with_label_values(&[what]).get()
    }

    /// Waits until it is somebody who believes this.
    pub(crate) async fn joined(&self, bundle: &Bundle) {
        let mut members = self.mesh.member.clone();
        let believes =
            |bundle: &Bundle, other: &Bundle| bundle.certificates().eq(other.certificates());
        let joined = members.wait_for(|member| {
            member.as_ref().is_some_and(|member| believes(&member.source.bundle(), bundle))
        });
        tokio::time::timeout(PATIENCE, joined).await.unwrap().unwrap();
    }

    /// Waits for what a gauge should be.
    pub(crate) async fn until(&self, what: impl Fn(&Self) -> bool) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while !what(self) {
            assert!(tokio::time::Instant::now() < deadline, "{}", self.metrics.text());
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// What the cluster holds, as the test says.
struct Cluster {
    identities: Writer<Stored<AgentIdentity>>,
    thresholds: Writer<Stored<TrustThreshold>>,
    cluster_thresholds: Writer<Stored<ClusterTrustThreshold>>,
    changed: watch::Sender<u64>,
    _listed: watch::Sender<usize>,
}

impl Cluster {
    /// Publishes what the cluster holds.
    fn publish(operator: &Operator) -> Self {
        fn pair<K: Kind>() -> (Store<Stored<K>>, Writer<Stored<K>>) {
            store()
        }
        let (identities, identities_in) = pair();
        let (thresholds, thresholds_in) = pair();
        let (cluster_thresholds, cluster_thresholds_in) = pair();
        let sources = Sources {
            policies: pair().0,
            cluster_policies: pair().0,
            identities,
            thresholds,
            cluster_thresholds,
            upstreams: pair().0,
            book: Arc::new(Book::new(Arc::new(Compiler::new(Opa::locate().unwrap(), None)))),
            trust_domain: "acme.example".parse().unwrap(),
            revoked: operator.mesh.revoked.clone(),
        };
        let (changed, changes) = watch::channel(0);
        let (listed, all_listed) = watch::channel(KINDS);
        let (publisher, metrics) = (operator.publisher.clone(), operator.metrics.clone());
        let stop = operator.stop.clone();
        tokio::spawn(keep_publishing(sources, publisher, 1, (changes, all_listed), metrics, stop));
        Self {
            identities: identities_in,
            thresholds: thresholds_in,
            cluster_thresholds: cluster_thresholds_in,
            changed,
            _listed: listed,
        }
    }

    fn agent(&mut self, name: &str, suspended: bool) {
        let spec = json!({
            "sponsor": "ada@acme.example", "serviceAccount": "bot", "selector": { "kubernetes": {} },
            "suspended": suspended,
        });
        self.identities.apply_watcher_event(&Event::Apply(object(name, &spec)));
        self.changed.send_modify(|count| *count += 1);
    }

    fn namespace(&mut self, spec: &Value) {
        self.thresholds.apply_watcher_event(&Event::Apply(object("own", spec)));
        self.changed.send_modify(|count| *count += 1);
    }

    fn everybody(&mut self, name: &str, spec: &Value) {
        self.cluster_thresholds.apply_watcher_event(&Event::Apply(object(name, spec)));
        self.changed.send_modify(|count| *count += 1);
    }
}

fn object<K: Kind>(name: &str, spec: &Value) -> Stored<K> {
    serde_json::from_value(
        json!({ "metadata": { "name": name, "namespace": "shop" }, "spec": spec }),
    )
    .unwrap()
}

fn agent(name: &str) -> AgentId {
    format!("spiffe://acme.example/ns/shop/sa/bot/agent/{name}").parse().unwrap()
}

#[tokio::test]
async fn it_joins_when_roots_and_ca_are_there_and_serves_agents_from_then_on() {
    let authority = Arc::new(Authority::new());
    let ca = unused().await;
    let operator = Operator::start(ca).await;
    // Whose state is it, while nobody says who is revoked? Nothing is published, and nobody listens.
    let mut cluster = Cluster::publish(&operator);
    cluster.agent("buyer", false);
    operator.roots.send_replace(Some(roots(&authority)));
    assert!(TcpStream::connect(operator.address).await.is_err());
    assert_eq!((operator.publisher.serial(), operator.gauge("ca")), (0, 0));

    let gone = "spiffe://acme.example/ns/shop/sa/bot/agent/gone";
    let ca = authority.serve_revoking(ca, &[gone, "spiffe://acme.example/aegis/x"]).await;
    operator.joined(&authority.bundle()).await;
    let source = authority.source(SIDECAR).await;
    let mut sidecar = Sidecar::follow(to(operator.address, &source), verifier());
    let state = sidecar.until(|_| true).await;
    assert_eq!(state.agents.first().map(|one| one.id.clone()), Some(agent("buyer")));
    assert_eq!(state.revoked, [agent("gone")]);
    assert_eq!(state.serial, (1 << 32) | 1, "there was none that did not know who is revoked");
    operator.until(|operator| operator.gauge("ca") == 1).await;
    let sidecars = operator.metrics.distribution.with_label_values(&["sidecars"]);
    assert_eq!(sidecars.get(), 1);
    assert!(operator.metrics.svid_expiry.get() > 0);

    // A revocation reaches sidecars, and ends the stream of who is revoked.
    let seller = authority.source("spiffe://acme.example/ns/shop/sa/bot/agent/seller").await;
    let mut seller = Sidecar::follow(to(operator.address, &seller), verifier());
    seller.state().await;
    ca.revoke(&["spiffe://acme.example/ns/shop/sa/bot/agent/seller"]);
    seller.lost().await;
    sidecar.until(|state| state.revoked == [agent("seller")]).await;
    operator.until(|_| sidecars.get() == 1).await;

    // While the CA is away, sidecars go on to be told.
    ca.end().await;
    operator.until(|operator| operator.gauge("ca") == 0).await;
    cluster.agent("another", false);
    let state = sidecar.until(|state| state.agents.len() == 2).await;
    assert_eq!(state.revoked, [agent("seller")]);
}

#[tokio::test]
async fn suspensions_reach_sidecars() {
    let authority = Arc::new(Authority::new());
    let ca = authority.serve(unused().await).await;
    let operator = Operator::start(ca.address).await;
    operator.roots.send_replace(Some(roots(&authority)));
    let mut cluster = Cluster::publish(&operator);
    cluster.agent("buyer", false);
    operator.joined(&authority.bundle()).await;
    let source = authority.source(SIDECAR).await;
    let mut sidecar = Sidecar::follow(to(operator.address, &source), verifier());
    let state = sidecar.until(|state| state.agents.len() == 1).await;
    assert!(state.quarantined.is_empty() && !state.thresholds.suspended);

    cluster.agent("buyer", true);
    let state = sidecar.until(|state| !state.quarantined.is_empty()).await;
    assert_eq!(state.quarantined, [agent("buyer")]);
    assert_eq!(state.agents.len(), 1, "who is suspended is registered still");
    cluster.agent("buyer", false);
    sidecar.until(|state| state.quarantined.is_empty()).await;

    cluster.namespace(&json!({ "suspended": true }));
    let state = sidecar.until(|state| !state.tightened.is_empty()).await;
    assert!(state.tightened.iter().all(|one| one.namespace == "shop" && one.thresholds.suspended));
    assert!(!state.thresholds.suspended);
    // What a namespace says does not lift what the cluster says, in whichever object.
    cluster.everybody("numbers", &json!({ "tMin": 990 }));
    cluster.everybody("stop", &json!({ "suspended": true }));
    cluster.namespace(&json!({ "suspended": false }));
    let state = sidecar.until(|state| state.thresholds.suspended).await;
    assert_eq!(state.thresholds.t_min.get(), 990);
    assert!(state.tightened.iter().all(|one| one.thresholds.suspended));
}

#[tokio::test]
async fn a_ca_that_has_started_over_is_joined_anew() {
    let first = Arc::new(Authority::new());
    let ca = first.serve(unused().await).await;
    let address = ca.address;
    let operator = Operator::start(address).await;
    operator.roots.send_replace(Some(roots(&first)));
    operator.joined(&first.bundle()).await;
    let _cluster = Cluster::publish(&operator);
    let source = first.source(SIDECAR).await;
    let mut sidecar = Sidecar::follow(to(operator.address, &source), verifier());
    sidecar.state().await;

    // It has lost its keys. Whoever follows on the old ones goes on until there is an SVID of the new.
    ca.end().await;
    let second = Arc::new(Authority::new());
    let _ca = second.serve(address).await;
    operator.roots.send_replace(Some(roots(&second)));
    operator.joined(&second.bundle()).await;
    sidecar.lost().await;
    let source = second.source(SIDECAR).await;
    let mut sidecar = Sidecar::follow(to(operator.address, &source), verifier());
    sidecar.state().await;
}

#[tokio::test]
async fn a_token_that_the_ca_refuses_is_tried_again() {
    let authority = Arc::new(Authority::new());
    let ca = authority.serve(unused().await).await;
    let operator = Operator::start(ca.address).await;
    std::fs::write(&operator.token, "stolen").unwrap();
    operator.roots.send_replace(Some(roots(&authority)));
    // Another CA's roots: this one is not told the token.
    operator.roots.send_replace(Some(roots(&Authority::new())));
    assert!(operator.mesh.member.borrow().is_none());
    std::fs::write(&operator.token, OPERATOR).unwrap();
    operator.roots.send_replace(Some(roots(&authority)));
    operator.joined(&authority.bundle()).await;
}
