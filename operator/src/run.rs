//! The operator as a process: what is built, and what every operator does; `leader` has the rest.

use std::{net::SocketAddr, path::Path, sync::Arc, time::Duration};

use aegis_policy::{Compiler, ModuleCache, Opa};
use anyhow::Context as _;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use kube::{
    Client,
    runtime::events::{Recorder, Reporter},
};
use tokio::{net::TcpListener, sync::watch, task::JoinSet};
use tokio_util::sync::CancellationToken;

use crate::{
    cluster::ApiServer,
    distribution::{Publisher, key},
    health::Health,
    inject::InjectConfig,
    keeper::Keeper,
    leader::Leader,
    mesh::{self, Joining, Mesh, MeshConfig, Revoked},
    metrics::Metrics,
    options::{MeshOptions, NAME, Options},
    refusals,
    webhook::{self, Served, Webhooks},
};

/// How long the CA may be away before other roots mean that it is another one.
const PATIENCE: Duration = Duration::from_secs(15);

/// What runs, and how it ended.
type Parts = JoinSet<anyhow::Result<()>>;

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
        let sidecars = metrics.distribution.with_label_values(&["sidecars"]);
        let publisher = Publisher::new(key).counting(sidecars);
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
        let mut parts = Parts::new();
        let admin = axum::serve(self.admin, self.health.clone().router())
            .with_graceful_shutdown(stop.clone().cancelled_owned());
        parts.spawn(async move { admin.await.context("the admin port has failed") });
        self.health.set_ready(true);

        let reporter =
            Reporter { controller: NAME.into(), instance: Some(self.options.instance.clone()) };
        let recorder = Recorder::new(self.client.clone(), reporter);
        let joined = self.options.mesh.clone().map(|flags| {
            let mesh = join(&self.options, &flags, &self.client, &self.metrics, &mut parts, &stop);
            (flags, mesh)
        });
        let keeper =
            Keeper::new(self.client.clone(), &self.options.namespace, &self.options.service);
        let serves_webhooks = self.webhook.is_some();
        if let Some(webhook) = self.webhook {
            let (refused, refusals) = refusals::channel();
            going(&mut parts, refusals::tell(refusals, recorder.clone(), stop.clone()));
            let hooks = Webhooks {
                inject: injection(
                    webhook.inject,
                    joined.as_ref(),
                    &self.options,
                    &mut parts,
                    &stop,
                ),
                user_prefix: self.options.user_prefix.clone(),
                cluster: ApiServer(self.client.clone()),
                metrics: self.metrics.clone(),
                refused: Some(refused),
            };
            going(&mut parts, keeper.clone().follow(webhook.served.clone(), stop.clone()));
            let stopping = stop.clone();
            parts.spawn(async move {
                let (listener, served) = (webhook.listener, webhook.served);
                let serving = webhook::serve(listener, &served, hooks.router(), stopping);
                serving.await.context("the webhooks have failed")
            });
        }

        // Without a CA, nobody is revoked.
        let (_nobody, nobody_revoked) = watch::channel(Revoked::Some(Arc::default()));
        let leader = Leader {
            client: self.client,
            recorder,
            compiler: self.compiler,
            metrics: self.metrics,
            keeper: serves_webhooks.then_some(keeper),
            publisher: self.publisher,
            revoked: joined.as_ref().map_or(nobody_revoked, |(_, mesh)| mesh.revoked.clone()),
            ledger: joined.as_ref().and_then(|(flags, _)| flags.ledger.clone()),
            distribution: joined.map(|(flags, mesh)| (flags.distribution, mesh.member)),
            options: self.options,
        };
        let stopping = stop.clone();
        parts.spawn(async move { leader.lead(stopping).await });
        let mut result = Ok(());
        while let Some(ended) = parts.join_next().await {
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

/// Spawns what cannot fail.
fn going(parts: &mut Parts, part: impl Future<Output = ()> + Send + 'static) {
    parts.spawn(async move {
        part.await;
        Ok(())
    });
}

/// Has every operator join the mesh, so that a standby that is elected is somebody already.
fn join(
    options: &Options,
    flags: &MeshOptions,
    client: &Client,
    metrics: &Metrics,
    parts: &mut Parts,
    stop: &CancellationToken,
) -> Mesh {
    let (known, roots) = watch::channel(None);
    let (client, namespace) = (client.clone(), options.namespace.clone());
    let (trust_domain, counted, stopping) =
        (options.trust_domain.clone(), metrics.clone(), stop.clone());
    going(parts, async move {
        mesh::follow_roots(client, &namespace, trust_domain, known, counted, stopping).await;
    });
    let config = MeshConfig {
        trust_domain: options.trust_domain.clone(),
        ca: flags.ca.clone(),
        token: flags.token.clone(),
        patience: PATIENCE,
    };
    let (joining, mesh) = Joining::new(config, roots, metrics.clone());
    going(parts, joining.keep(stop.clone()));
    mesh
}

/// How pods are injected: always the same without a mesh; in one, with the roots of the moment.
fn injection(
    base: InjectConfig,
    joined: Option<&(MeshOptions, Mesh)>,
    options: &Options,
    parts: &mut Parts,
    stop: &CancellationToken,
) -> watch::Receiver<Option<Arc<InjectConfig>>> {
    let Some((flags, mesh)) = joined else {
        return watch::channel(Some(Arc::new(base))).1;
    };
    let (told, inject) = watch::channel(None);
    let addresses = flags.addresses(&options.trust_domain);
    let telling = mesh::tell_roots(base, addresses, mesh.roots.clone(), told);
    let stopping = stop.clone();
    going(parts, async move {
        tokio::select! {
            () = stopping.cancelled() => {}
            () = telling => stopping.cancelled().await,
        }
    });
    inject
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
