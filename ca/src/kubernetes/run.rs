//! The CA of a cluster as a process: its state in a Secret, its service over TLS, its bundle in a
//! ConfigMap, its journal on the way to the ledger.
//!
//! Any number of replicas serve; the Secret decides between them. Requests are taken only once the
//! state is open, all AgentIdentities are known and there is a certificate to show.

use std::{collections::BTreeMap, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use aegis_core::TrustDomain;
use aegis_identity::{SvidSource, source::random_jitter, system_clock, tls::open_server_config};
use aegis_mesh::{ShipCounters, channel, component, serve_tls};
use anyhow::Context as _;
use kube::{Client, Config};
use tokio::{net::TcpListener, task::JoinSet};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::{
    ApiServer, AuthorityService, Health, Identities, Journals, Metrics, Rotation, SecretStore,
    TokenAttestor,
    bundle::keep_published,
    identities::keep_following,
    journals::MAX_ENTRIES,
    watch::{keep_forgetting, keep_reloading},
};
use crate::{
    CaConfig, CaError, IdentityManager, Lifetimes, Recorder, RevokeError, RotateError, StoreError,
};

/// The Secret with keys and state.
const STATE: &str = "aegis-ca-state";
/// Service accounts of Aegis' own components, in the CA's namespace, and their names.
const COMPONENTS: [(&str, &str); 2] = [("aegis-operator", "operator"), ("aegis-ledger", "ledger")];
/// How long open requests may take once a stop is asked for.
const DRAIN: Duration = Duration::from_secs(5);
/// How long the journal's end may take to reach the ledger.
const SHIP: Duration = Duration::from_secs(5);
/// How often refusals are recorded.
const EVERY: Duration = Duration::from_secs(1);

/// How the CA of a cluster is run.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The trust domain, such as acme.example
    #[arg(long, env = "AEGIS_TRUST_DOMAIN")]
    pub trust_domain: TrustDomain,
    /// Where SVIDs are asked for, over TLS
    #[arg(long, env = "AEGIS_CA_LISTEN", default_value = "0.0.0.0:9442")]
    pub listen: SocketAddr,
    /// Where health and metrics are served
    #[arg(long, env = "AEGIS_ADMIN_ADDRESS", default_value = "0.0.0.0:9491")]
    pub admin: SocketAddr,
    /// The folder of the journal, until the ledger has it
    #[arg(long, env = "AEGIS_CA_JOURNAL")]
    pub journal: PathBuf,
    /// The life of an SVID in seconds, where an AgentIdentity does not say
    #[arg(long, default_value_t = 900, value_parser = clap::value_parser!(u64).range(60..=86_400))]
    pub svid_ttl: u64,
    /// The ledger that takes the journal (host:port)
    #[arg(long, env = "AEGIS_LEDGER_ADDRESS")]
    pub ledger: Option<String>,
    /// The CA's own namespace
    #[arg(long, env = "POD_NAMESPACE", default_value = "aegis-system")]
    pub namespace: String,
    /// The name of this replica
    #[arg(long, env = "POD_NAME", default_value = "aegis-ca")]
    pub instance: String,
}

/// Serves until `stop`.
///
/// # Errors
/// When the cluster cannot be reached, the state is corrupt, an address is taken, or a part ends by
/// itself: then the process must start anew.
pub async fn run(options: Options, stop: CancellationToken) -> anyhow::Result<()> {
    let config = Config::infer()
        .await
        .context("there is no cluster to talk to; set KUBECONFIG or run in a pod")?;
    let (metrics, counters) = (Metrics::register()?, Arc::<ShipCounters>::default());
    let health = Health::new(metrics.clone(), Arc::clone(&counters));
    let admin = bind(options.admin, "--admin").await?;
    let mut serving = JoinSet::new();
    // The probes are answered until the very end.
    let router = health.clone().router();
    serving.spawn(
        async move { axum::serve(admin, router).await.context("the admin port has failed") },
    );

    let owner = component(&options.trust_domain, "ca")?;
    let journals =
        Journals::open(&options.journal, owner, &options.instance, system_clock()).await?;
    let journals = Arc::new(journals);
    let recorder: Arc<dyn Recorder> = journals.clone();
    let Some(state) = open_state(&options, &config, recorder, &stop).await? else {
        return Ok(());
    };
    let replica = Replica { options, client: Client::try_from(config)?, state, journals, metrics };
    let source = replica.certificate().await?;
    let Some(attestor) = replica.follow(&mut serving, &stop).await else { return Ok(()) };
    let shipped = CancellationToken::new();
    let shipping = replica.ship(&source, counters, &shipped)?;
    let taking = replica.take(&source, attestor, &mut serving, &stop).await?;
    health.serve(source);
    let result = until_stopped(&mut serving, &stop).await;
    health.drain();
    let _ = taking.await;
    replica.metrics.record_refusals(&replica.journals.current(), system_clock()()).await;
    replica.journals.close().await;
    if let Some(shipping) = shipping
        && !aegis_runtime::drained(async { drop(shipping.await) }, SHIP).await
    {
        tracing::warn!("the ledger does not have the end of the journal; it is kept");
    }
    shipped.cancel();
    result
}

async fn bind(address: SocketAddr, option: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address)
        .await
        .with_context(|| format!("cannot listen on {address}; choose another with {option}"))
}

/// Waits for the stop. A part that ends before it ends the process.
async fn until_stopped(
    serving: &mut JoinSet<anyhow::Result<()>>,
    stop: &CancellationToken,
) -> anyhow::Result<()> {
    let ended = tokio::select! {
        () = stop.cancelled() => return Ok(()),
        ended = serving.join_next() => ended,
    };
    let stopped = stop.is_cancelled();
    stop.cancel();
    match ended {
        Some(Ok(Err(error))) => Err(error),
        Some(Err(error)) => Err(error).context("a part of the CA ended unexpectedly"),
        Some(Ok(Ok(()))) | None if stopped => Ok(()),
        Some(Ok(Ok(()))) | None => anyhow::bail!("a part of the CA ended by itself"),
    }
}

/// The CA's state.
struct State {
    store: SecretStore,
    manager: IdentityManager,
}

/// Whether opening may succeed the next time: another replica was faster, or the API server is away.
fn passes(error: &CaError) -> bool {
    let (CaError::Rotate(RotateError::Store(store)) | CaError::Revoke(RevokeError::Store(store))) =
        error
    else {
        return false;
    };
    matches!(store, StoreError::Conflict(_) | StoreError::Cluster { .. })
}

/// Opens the Secret, or makes it. `None` when a stop is asked for meanwhile.
async fn open_state(
    options: &Options,
    config: &Config,
    recorder: Arc<dyn Recorder>,
    stop: &CancellationToken,
) -> anyhow::Result<Option<State>> {
    let lifetimes =
        Lifetimes { svid: Duration::from_secs(options.svid_ttl), ..Lifetimes::default() };
    let ca = CaConfig { trust_domain: options.trust_domain.clone(), lifetimes };
    loop {
        let (config, namespace) = (config.clone(), options.namespace.clone());
        let (ca, recorder) = (ca.clone(), Arc::clone(&recorder));
        // The store waits for the API server.
        let opened = tokio::task::spawn_blocking(move || {
            let store = SecretStore::open(config, &namespace, STATE).map_err(RotateError::from)?;
            let manager = IdentityManager::open(store.clone(), ca, recorder, system_clock())?;
            Ok::<_, CaError>(State { store, manager })
        });
        match opened.await? {
            Ok(state) => return Ok(Some(state)),
            Err(error) if passes(&error) => {
                tracing::warn!(%error, "the CA's state is not open yet; it is tried again");
            }
            Err(error) => return Err(error).context("the CA's state cannot be used"),
        }
        tokio::select! {
            () = stop.cancelled() => return Ok(None),
            () = tokio::time::sleep(EVERY) => {}
        }
    }
}

/// One replica, its state open.
struct Replica {
    options: Options,
    client: Client,
    state: State,
    journals: Arc<Journals>,
    metrics: Metrics,
}

impl Replica {
    /// The certificate that clients see, from this CA itself and renewed in time.
    async fn certificate(&self) -> anyhow::Result<Arc<SvidSource>> {
        let own = Arc::new(self.state.manager.svids_of_component("ca"));
        let source = SvidSource::start(own, system_clock(), random_jitter()).await;
        Ok(Arc::new(source.context("the CA cannot issue its own certificate")?))
    }

    /// Follows the cluster. Returns who recognises tokens, once all AgentIdentities are known; `None`
    /// when a stop is asked for before.
    async fn follow(
        &self,
        serving: &mut JoinSet<anyhow::Result<()>>,
        stop: &CancellationToken,
    ) -> Option<Arc<TokenAttestor>> {
        let (client, manager) = (self.client.clone(), self.state.manager.clone());
        let (identities, listed) = (Identities::default(), CancellationToken::new());
        let following = keep_following(
            client.clone(),
            identities.clone(),
            manager.clone(),
            listed.clone(),
            stop.clone(),
        );
        serving.spawn(always(following));
        serving.spawn(always(manager.clone().keep_rotating()));
        let (namespace, store) = (self.options.namespace.clone(), self.state.store.clone());
        let (watching, told, stopping) = (client.clone(), manager.clone(), stop.clone());
        let rotation = Rotation::new(client.clone(), &self.options.instance);
        serving.spawn(always(async move {
            keep_reloading(watching, (&namespace, STATE), store, told, rotation, stopping).await;
        }));
        let (namespace, stopping) = (self.options.namespace.clone(), stop.clone());
        let publishing = client.clone();
        serving.spawn(always(async move {
            keep_published(publishing, &namespace, manager, stopping).await;
        }));
        let attestor = Arc::new(TokenAttestor::new(
            Arc::new(ApiServer(client.clone())),
            identities,
            self.options.trust_domain.clone(),
            components(&self.options.namespace),
            system_clock(),
        ));
        serving.spawn(always(keep_forgetting(client, Arc::clone(&attestor), stop.clone())));
        tokio::select! {
            () = stop.cancelled() => None,
            () = listed.cancelled() => Some(attestor),
        }
    }

    /// Ships the journal, where there is a ledger, until it is closed and has arrived or `stop`.
    fn ship(
        &self,
        source: &Arc<SvidSource>,
        counters: Arc<ShipCounters>,
        stop: &CancellationToken,
    ) -> anyhow::Result<Option<tokio::task::JoinHandle<()>>> {
        let Some(ledger) = &self.options.ledger else { return Ok(None) };
        let channel = channel(ledger, "ledger", source, self.state.manager.revocations())?;
        let shipping = Arc::clone(&self.journals).ship(channel, counters, stop.clone());
        Ok(Some(tokio::spawn(shipping)))
    }

    /// Takes requests until `stop`.
    async fn take(
        &self,
        source: &Arc<SvidSource>,
        attestor: Arc<TokenAttestor>,
        serving: &mut JoinSet<anyhow::Result<()>>,
        stop: &CancellationToken,
    ) -> anyhow::Result<tokio::task::JoinHandle<()>> {
        serving.spawn(always(self.count(stop.clone())));
        let mut tls = open_server_config(source)?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let listener = bind(self.options.listen, "--listen").await?;
        tracing::info!(
            version = env!("CARGO_PKG_VERSION"),
            trust_domain = %self.options.trust_domain,
            listen = %listener.local_addr()?,
            journal = self.journals.current().source(),
            left = self.journals.left(),
            "the CA is up"
        );
        let manager = self.state.manager.clone();
        let service = AuthorityService::new(manager, attestor, self.metrics.clone(), stop.clone());
        let routes = Routes::new(service.into_service()).prepare();
        Ok(tokio::spawn(serve_tls(listener, tls, None, routes, DRAIN, stop.clone())))
    }

    /// Records refusals and counts revocations, every second until `stop`.
    fn count(&self, stop: CancellationToken) -> impl Future<Output = ()> + Send + use<> {
        let (metrics, journals) = (self.metrics.clone(), Arc::clone(&self.journals));
        let (revocations, ships) =
            (self.state.manager.revocations(), self.options.ledger.is_some());
        async move {
            let mut every = tokio::time::interval(EVERY);
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    _ = every.tick() => {}
                }
                let revoked = {
                    let revocations = revocations.borrow();
                    revocations.serials.len() + revocations.ids.len()
                };
                metrics.revoked.set(i64::try_from(revoked).unwrap_or(i64::MAX));
                metrics.record_refusals(&journals.current(), system_clock()()).await;
                // Without a ledger, nothing of it could be deleted.
                if ships && let Err(error) = journals.begin_anew(MAX_ENTRIES).await {
                    tracing::warn!(%error, "no new journal begins; the old one goes on");
                }
            }
        }
    }
}

/// Runs what only a stop ends.
async fn always(part: impl Future<Output = ()>) -> anyhow::Result<()> {
    part.await;
    Ok(())
}

fn components(namespace: &str) -> BTreeMap<(String, String), String> {
    let named = |(account, name): (&str, &str)| {
        ((namespace.to_owned(), account.to_owned()), name.to_owned())
    };
    COMPONENTS.into_iter().map(named).collect()
}
