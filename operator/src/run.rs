//! The operator as a process: what is built, what runs always, and what only the leader does.

use std::{
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use aegis_core::TrustDomain;
use aegis_policy::{Compiler, ModuleCache, Opa};
use aegis_resources::kinds::{
    AgentIdentity, AgentPolicy, AgentUpstream, ClusterAgentPolicy, ClusterTrustThreshold,
    TrustThreshold,
};
use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures::{Stream, StreamExt as _};
use kube::{
    Client,
    runtime::{
        events::{Recorder, Reporter},
        reflector::{Store, store, store::Writer},
    },
};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;

use crate::{
    book::Book,
    cluster::ApiServer,
    controller::{self, Shared},
    distribution::{Publisher, Sources, keep_publishing, key},
    health::Health,
    inject::InjectConfig,
    keeper::Keeper,
    lease::{Candidate, Timing},
    metrics::Metrics,
    object::{Kind, Stored},
    reconcile::{
        ClusterThresholds, Identities, NamespaceThresholds, Policies, Upstreams, counting,
    },
    webhook::{self, Served, Webhooks},
};

/// The name of the Lease, and of the operator in Events.
const NAME: &str = "aegis-operator";
/// How long reconciliations that run may take once a stop is asked for.
const DRAIN: Duration = Duration::from_secs(10);

/// How the operator is run.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "aegis-operator", version)]
pub struct Options {
    /// The trust domain of the agents, such as acme.example
    #[arg(long, env = "AEGIS_TRUST_DOMAIN")]
    pub trust_domain: TrustDomain,
    /// The operator's own namespace, where its Lease and its Secrets are
    #[arg(long, env = "POD_NAMESPACE", default_value = "aegis-system")]
    pub namespace: String,
    /// The name of this replica
    #[arg(long, env = "POD_NAME", default_value = NAME)]
    pub instance: String,
    /// Where health and metrics are served
    #[arg(long, env = "AEGIS_ADMIN_ADDRESS", default_value = "0.0.0.0:9490")]
    pub admin: SocketAddr,
    /// Where compiled policies are kept between restarts; none if absent
    #[arg(long, env = "AEGIS_CACHE_DIRECTORY")]
    pub cache: Option<PathBuf>,
    /// How pods are injected (JSON); without it, webhooks are not served
    #[arg(long, env = "AEGIS_INJECT_CONFIG")]
    pub inject_config: Option<PathBuf>,
    /// Where the webhooks are served
    #[arg(long, env = "AEGIS_WEBHOOK_ADDRESS", default_value = "0.0.0.0:9443")]
    pub webhook: SocketAddr,
    /// The Service in front of the webhooks
    #[arg(long, env = "AEGIS_WEBHOOK_SERVICE", default_value = NAME)]
    pub service: String,
    /// What the API server puts before e-mail addresses in user names, such as oidc:
    #[arg(long, env = "AEGIS_USER_PREFIX", default_value = "")]
    pub user_prefix: String,
}

/// The operator, bound and connected; nothing is served yet.
pub struct Operator {
    options: Options,
    client: Client,
    compiler: Arc<Compiler>,
    metrics: Metrics,
    health: Health,
    admin: TcpListener,
    webhook: Option<Webhook>,
    publisher: Publisher,
}

/// The webhooks, bound.
#[derive(Debug)]
struct Webhook {
    listener: TcpListener,
    served: Served,
    inject: InjectConfig,
}

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
fn stores(book: Arc<Book>, trust_domain: TrustDomain) -> (Sources, Writers) {
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
    };
    (read, write)
}

impl std::fmt::Debug for Operator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Operator").field("options", &self.options).finish_non_exhaustive()
    }
}

impl Operator {
    /// Connects and binds everything.
    ///
    /// # Errors
    /// When the cluster cannot be reached, `opa` is missing or an address is taken.
    pub async fn build(options: Options, client: Client) -> anyhow::Result<Self> {
        let cache = options.cache.clone().map(ModuleCache::open).transpose()?;
        let compiler = Arc::new(Compiler::new(Opa::locate()?, cache));
        let metrics = Metrics::register()?;
        let key = key::load_or_create(client.clone(), &options.namespace).await?;
        let mut webhook = match &options.inject_config {
            Some(path) => Some(Webhook::bind(path, options.webhook).await?),
            None => None,
        };
        if let Some(webhook) = &mut webhook {
            let public = STANDARD.encode(key.verifying_key().as_bytes());
            webhook.inject.env.insert("AEGIS_OPERATOR_KEY".into(), public.into());
        }
        let publisher = Publisher::new(key);
        let served = webhook.as_ref().map(|webhook| webhook.served.clone());
        let health = Health::new(metrics.clone(), served);
        let admin = TcpListener::bind(options.admin).await.with_context(|| {
            format!(
                "cannot listen on {} for health and metrics; choose another with --admin",
                options.admin
            )
        })?;
        Ok(Self { options, client, compiler, metrics, health, admin, webhook, publisher })
    }

    /// Where health and metrics are served.
    ///
    /// # Errors
    /// When the socket has none.
    pub fn admin_address(&self) -> std::io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// Where webhooks are served, if they are.
    #[must_use]
    pub fn webhook_address(&self) -> Option<SocketAddr> {
        self.webhook.as_ref().and_then(|webhook| webhook.listener.local_addr().ok())
    }

    /// Who signs what sidecars enforce; `distribution::serve` hands it out.
    #[must_use]
    pub const fn publisher(&self) -> &Publisher {
        &self.publisher
    }

    /// Says where everything is.
    pub fn announce(&self) {
        let admin = self.admin_address().map(|address| address.to_string()).unwrap_or_default();
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            trust_domain = %self.options.trust_domain,
            admin,
            webhook = ?self.webhook_address(),
            opa = self.compiler.opa().version(),
            "the operator is up"
        );
    }

    /// Serves until `stop`, and leads when elected.
    ///
    /// # Errors
    /// When a part ends by itself, or the leadership is lost: then the process must start anew.
    pub async fn run(self, stop: CancellationToken) -> anyhow::Result<()> {
        let admin = axum::serve(self.admin, self.health.clone().router())
            .with_graceful_shutdown(stop.clone().cancelled_owned());
        let mut serving = JoinSet::new();
        serving.spawn(async move { admin.await.context("the admin port has failed") });
        self.health.set_ready(true);

        let keeper =
            Keeper::new(self.client.clone(), &self.options.namespace, &self.options.service);
        let serves_webhooks = self.webhook.is_some();
        if let Some(Webhook { listener, served, inject }) = self.webhook {
            let hooks = Webhooks {
                inject,
                user_prefix: self.options.user_prefix.clone(),
                cluster: ApiServer(self.client.clone()),
                metrics: self.metrics.clone(),
            };
            let following = keeper.clone().follow(served.clone(), stop.clone());
            serving.spawn(async move {
                following.await;
                Ok(())
            });
            let stopping = stop.clone();
            serving.spawn(async move {
                let serving = webhook::serve(listener, &served, hooks.router(), stopping);
                serving.await.context("the webhooks have failed")
            });
        }

        let leader = Leader {
            options: self.options,
            client: self.client,
            compiler: self.compiler,
            metrics: self.metrics,
            keeper: serves_webhooks.then_some(keeper),
            publisher: self.publisher,
        };
        let stopping = stop.clone();
        serving.spawn(async move { leader.lead(stopping).await });
        let mut result = Ok(());
        while let Some(ended) = serving.join_next().await {
            let ended = ended.context("a part of the operator ended unexpectedly").flatten();
            if !stop.is_cancelled() {
                result = ended.and(result);
                self.health.set_ready(false);
                stop.cancel();
            }
        }
        result
    }
}

/// What only one operator does at a time.
struct Leader {
    options: Options,
    client: Client,
    compiler: Arc<Compiler>,
    metrics: Metrics,
    /// Who keeps the webhooks' certificate, where webhooks are served.
    keeper: Option<Keeper>,
    publisher: Publisher,
}

impl Webhook {
    async fn bind(config: &Path, address: SocketAddr) -> anyhow::Result<Self> {
        let text = std::fs::read(config).with_context(|| {
            format!("cannot read how pods are injected from {}", config.display())
        })?;
        let inject = serde_json::from_slice(&text)
            .with_context(|| format!("{} does not say how pods are injected", config.display()))?;
        let listener = TcpListener::bind(address).await.with_context(|| {
            format!("cannot listen on {address} for webhooks; choose another with --webhook")
        })?;
        Ok(Self { listener, served: Served::default(), inject })
    }
}

impl Leader {
    async fn lead(self, stop: CancellationToken) -> anyhow::Result<()> {
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
        let (read, write) = stores(Arc::clone(&book), self.options.trust_domain.clone());
        let reporter =
            Reporter { controller: NAME.into(), instance: Some(self.options.instance.clone()) };
        let (changed, changes) = watch::channel(0);
        let (listed, all_listed) = watch::channel(0);
        let shared = Shared {
            client: self.client.clone(),
            recorder: Recorder::new(self.client.clone(), reporter),
            metrics: self.metrics.clone(),
            changed,
            listed,
            stop: stop.clone(),
        };
        let (base, bases) = watch::channel(None);
        let mut tasks = JoinSet::new();
        if let Some(keeper) = self.keeper.clone() {
            tasks.spawn(keeper.keep(stop.clone()));
        }
        tasks.spawn(follow_base(read.cluster_thresholds.clone(), base, changes.clone()));
        tasks.spawn(keep_publishing(
            read.clone(),
            self.publisher.clone(),
            term,
            (changes, all_listed),
            self.metrics.clone(),
            stop.clone(),
        ));
        let policies = Policies::<AgentPolicy>::new(Arc::clone(&book), shared.clone());
        tasks.spawn(controller::run(policies, shared.clone(), write.policies, never()));
        let policies = Policies::<ClusterAgentPolicy>::new(book, shared.clone());
        tasks.spawn(controller::run(policies, shared.clone(), write.cluster_policies, never()));
        let identities =
            Identities { trust_domain: self.options.trust_domain.clone(), shared: shared.clone() };
        tasks.spawn(controller::run(identities, shared.clone(), write.identities, never()));
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
        tasks.spawn(controller::run(upstreams, shared, write.upstreams, never()));
        tasks
    }
}

fn never() -> impl Stream<Item = ()> + Send + 'static {
    futures::stream::pending()
}

/// Tells when other thresholds have become the cluster's: then all that depend on them are looked
/// at again.
async fn follow_base(
    all: Store<Stored<ClusterTrustThreshold>>,
    base: watch::Sender<Option<(String, i64)>>,
    mut changes: watch::Receiver<u64>,
) {
    while changes.changed().await.is_ok() {
        let state = all.state();
        let current = counting(&state).map(|one| (one.uid().to_owned(), one.generation()));
        base.send_if_modified(|known| {
            let differs = *known != current;
            *known = current;
            differs
        });
    }
}
