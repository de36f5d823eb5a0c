//! The ledger of a cluster: one replica writes the log and takes journals over mutual TLS, the others
//! stand by and serve what it writes.
//!
//! Who ships is told by his SVID: agents' sidecars and Aegis' own components, nobody else. The log
//! can be read before there is an SVID, and while the CA is away. A replica that was overtaken ends,
//! to stand by in its next life.

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use aegis_audit::{Head, Journal, Location, Reader, Signer, StoreError, Tenure};
use aegis_core::TrustDomain;
use aegis_identity::{
    PeerRule, SvidSource, source::random_jitter, system_clock, tls::server_config,
};
use aegis_mesh::{Authority, AuthorityConfig, Peers, authority::first_roots, component, serve_tls};
use anyhow::Context as _;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use crate::{
    Ledger,
    front::{Front, Role},
    seed,
    ship::{ShipMetrics, Shipping},
    trust::{Kept, Trusted, feed::Feed},
};

/// How often a replica looks whether it is its turn, and what failed is tried again.
const EVERY: Duration = Duration::from_millis(500);
/// The longest wait before the CA is asked again.
const LONGEST: Duration = Duration::from_secs(4);
/// How long open streams may take once a stop is asked for.
const DRAIN: Duration = Duration::from_secs(3);
/// The components that keep journals.
const COMPONENTS: [&str; 2] = ["ca", "operator"];

/// How the ledger of a cluster is run.
#[derive(Clone, Debug, clap::Args)]
pub struct Options {
    /// The log: a SQLite file, or a postgres:// URL
    #[arg(long, env = "AEGIS_LEDGER_STORE", hide_env_values = true)]
    pub store: Location,
    /// Where the log is served
    #[arg(long, env = "AEGIS_LEDGER_LISTEN", default_value = "127.0.0.1:9480")]
    pub listen: SocketAddr,
    /// The trust domain, such as acme.example
    #[arg(long, env = "AEGIS_TRUST_DOMAIN")]
    pub trust_domain: TrustDomain,
    /// Where journals are taken
    #[arg(long, env = "AEGIS_SHIP_LISTEN", default_value = "0.0.0.0:9445")]
    pub ship_listen: SocketAddr,
    /// The folder that remembers the last checkpoint
    #[arg(long, env = "AEGIS_LEDGER_STATE")]
    pub state: PathBuf,
    /// The file with the seed of the key that signs checkpoints; made if the log is in SQLite and there is none
    #[arg(long, env = "AEGIS_LEDGER_KEY")]
    pub key: PathBuf,
    /// The CA (host:port)
    #[arg(long, env = "AEGIS_CA_ADDRESS")]
    pub ca: String,
    /// The file with the roots by which the CA is known, PEM or a SPIFFE bundle
    #[arg(long)]
    pub ca_roots: PathBuf,
    /// The file with the token that says to the CA who this is
    #[arg(long)]
    pub token: PathBuf,
}

/// Serves until `stop`.
///
/// # Errors
/// When an address is taken, the key or the log cannot be used, or another replica has taken over:
/// then the process must start anew.
pub async fn run(options: Options, stop: CancellationToken) -> anyhow::Result<()> {
    let listener = bind(options.listen, "--listen").await?;
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        trust_domain = %options.trust_domain,
        listen = %listener.local_addr()?,
        store = %options.store,
        "the ledger is up"
    );
    let origin = format!("{}/ledger", options.trust_domain);
    let signer = match options.store {
        Location::Sqlite(_) => seed::read_or_make(&options.key, &origin)?,
        // Replicas share a key, so none of them may make one.
        Location::Postgres(_) => seed::read(&options.key, &origin)?,
    };
    let trusted = Trusted::new()?;
    let front = Front::new(trusted.clone());
    let closed = CancellationToken::new();
    let serving = axum::serve(listener, front.clone().routes())
        .with_graceful_shutdown(closed.clone().cancelled_owned());
    let serving = tokio::spawn(serving.into_future());
    let kept = Kept { path: options.state.join("trust.snapshot"), signer: signer.clone() };
    let folding = CancellationToken::new();
    let keeping = tokio::spawn({
        let (trusted, place, stop) = (trusted.clone(), options.store.clone(), folding.clone());
        async move { trusted.keep(place, kept, stop).await }
    });
    let replica = Replica { options, signer, front, trusted };
    let result = replica.live(&stop).await;
    replica.front.act(Role::None);
    stop.cancel();
    closed.cancel();
    folding.cancel();
    if !aegis_runtime::drained(async { drop(keeping.await) }, DRAIN).await {
        tracing::warn!("no snapshot of the trust fold was kept in time");
    }
    if !aegis_runtime::drained(async { drop(serving.await) }, DRAIN).await {
        tracing::warn!("readers of the log did not end in time");
    }
    result
}

async fn bind(address: SocketAddr, option: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address}; free it or choose another with {option}")
    })
}

/// Has trust folded as soon as the log has grown.
async fn wake(trusted: Trusted, mut head: watch::Receiver<Head>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            changed = head.changed() => if changed.is_err() { return },
        }
        trusted.wake();
    }
}

/// Who this process is in the mesh.
struct Member {
    authority: Authority,
    source: Arc<SvidSource>,
}

/// The log, held for writing.
struct Held {
    journal: Journal,
    tenure: Tenure,
}

struct Replica {
    options: Options,
    signer: Signer,
    front: Front,
    trusted: Trusted,
}

impl Replica {
    /// One life: join the mesh, wait for the turn, write.
    async fn live(&self, stop: &CancellationToken) -> anyhow::Result<()> {
        let Some(member) = self.join(stop).await else { return Ok(()) };
        self.front.identify(Arc::clone(&member.source));
        let following = (member.authority.clone(), Arc::clone(&member.source), stop.clone());
        tokio::spawn(async move {
            let (authority, source, stop) = following;
            authority.follow(&source, stop).await;
        });
        let Some(held) = self.stand_by(stop).await? else { return Ok(()) };
        self.write(&member, held, stop).await
    }

    /// Gets an SVID, as often as it takes; what can be read is served meanwhile.
    async fn join(&self, stop: &CancellationToken) -> Option<Member> {
        let mut wait = EVERY;
        loop {
            match self.try_to_join().await {
                Ok(member) => return Some(member),
                Err(error) => tracing::warn!(error = format!("{error:#}"), "no SVID yet"),
            }
            self.try_to_show().await;
            tokio::select! {
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(wait) => {}
            }
            wait = wait.saturating_mul(2).min(LONGEST);
        }
    }

    async fn try_to_join(&self) -> anyhow::Result<Member> {
        let options = &self.options;
        // Read anew each time: the CA may have other roots by now.
        let roots = tokio::fs::read_to_string(&options.ca_roots).await.with_context(|| {
            format!("cannot read the CA's roots in {}", options.ca_roots.display())
        })?;
        let authority = Authority::new(AuthorityConfig {
            trust_domain: options.trust_domain.clone(),
            address: options.ca.clone(),
            roots: first_roots(&options.trust_domain, &roots)?,
            token: options.token.clone(),
            application: false,
            clock: system_clock(),
        })?;
        let fetcher = Arc::new(authority.clone());
        let source = SvidSource::start(fetcher, system_clock(), random_jitter()).await?;
        tracing::info!(id = %source.current()?.svid.id(), "joined the mesh");
        Ok(Member { authority, source: Arc::new(source) })
    }

    /// Serves what others write, if it is not served yet.
    async fn try_to_show(&self) {
        if self.front.shows() {
            return;
        }
        match Reader::open(&self.options.store).await {
            Ok(reader) => match Ledger::of_reader(reader) {
                Ok(ledger) => self.front.show(ledger),
                Err(error) => tracing::error!(%error, "the log cannot be shown"),
            },
            Err(error) => tracing::debug!(%error, "there is no log to read yet"),
        }
    }

    /// Waits until it is this replica's turn and opens the log.
    async fn stand_by(&self, stop: &CancellationToken) -> anyhow::Result<Option<Held>> {
        let mut told = false;
        loop {
            match self.try_to_hold().await {
                Ok(Some(held)) => return Ok(Some(held)),
                Ok(None) => {
                    self.front.act(Role::StandsBy);
                    self.try_to_show().await;
                    if !std::mem::replace(&mut told, true) {
                        tracing::info!("another replica writes the log; standing by");
                    }
                }
                Err(StoreError::Unavailable { place, why }) => {
                    tracing::warn!(place, why, "the log cannot be opened; it is tried again");
                }
                Err(error) => return Err(error).context("the log cannot be used"),
            }
            tokio::select! {
                () = stop.cancelled() => return Ok(None),
                () = tokio::time::sleep(EVERY) => {}
            }
        }
    }

    async fn try_to_hold(&self) -> Result<Option<Held>, StoreError> {
        let Some(tenure) = Tenure::take(&self.options.store).await? else { return Ok(None) };
        let source = format!("{}/aegis/ledger", self.options.trust_domain.uri());
        let mut options = aegis_audit::Options::new(source, self.signer.clone());
        options.saved_checkpoint = Some(self.options.state.join("checkpoint"));
        match Journal::open(&self.options.store, options).await {
            Ok(journal) => Ok(Some(Held { journal, tenure })),
            Err(StoreError::Locked { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Takes journals until `stop`, or until another replica has taken over.
    async fn write(
        &self,
        member: &Member,
        held: Held,
        stop: &CancellationToken,
    ) -> anyhow::Result<()> {
        let Held { journal, mut tenure } = held;
        let ledger = Ledger::of_journal(journal.clone())?;
        let metrics = ShipMetrics::register(ledger.registry())?;
        let serving = stop.child_token();
        let shipping = Shipping::new(journal.clone(), metrics, serving.clone());
        let fenced = shipping.fenced().clone();
        let revocations = member.authority.revocations();
        let mut tls = server_config(&member.source, revocations.clone(), self.peers()?)?;
        tls.alpn_protocols = vec![b"h2".to_vec()];
        let peers = Some(Peers { revocations, clock: system_clock() });
        let listener = bind(self.options.ship_listen, "--ship-listen").await?;
        tracing::info!(ship_listen = %listener.local_addr()?, "writing the log; journals are taken");
        let operator = component(&self.options.trust_domain, "operator")?;
        let (trusted, scales) = (self.trusted.clone(), shipping.scales().clone());
        let feed = Feed::new(trusted, scales, operator, serving.clone());
        let routes =
            Routes::new(shipping.into_service()).add_service(feed.into_service()).prepare();
        tokio::spawn(wake(self.trusted.clone(), journal.subscribe(), serving.clone()));
        let taking = tokio::spawn(serve_tls(listener, tls, peers, routes, DRAIN, serving.clone()));
        self.front.show(ledger);
        self.front.act(Role::Writes);
        let overtaken = tokio::select! {
            () = stop.cancelled() => false,
            () = fenced.cancelled() => true,
            () = tenure.lost() => true,
        };
        self.front.act(Role::None);
        serving.cancel();
        let _ = taking.await;
        anyhow::ensure!(!overtaken, "another replica writes the log now; this one starts anew");
        if let Err(error) = journal.close().await {
            tracing::error!(%error, "the log was not closed in order");
        }
        tenure.give_back().await;
        Ok(())
    }

    /// Who may ship journals.
    fn peers(&self) -> anyhow::Result<PeerRule> {
        let agents = PeerRule::agents_of(self.options.trust_domain.clone());
        let mut components = Vec::new();
        for name in COMPONENTS {
            components.push(component(&self.options.trust_domain, name)?);
        }
        Ok(PeerRule::new(move |id| agents.accepts(id) || components.contains(id)))
    }
}
