//! `aegis-ca`: the CA of one trust domain on its own, with the Workload API on a unix socket.

use std::{fs, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use aegis_ca::{
    CaConfig, Directory, IdentityManager, Lifetimes, Registration, Selector, Unrecorded,
    WorkloadSocket, federation,
};
use aegis_core::{AgentId, Digest, Sponsor, TrustDomain};
use aegis_identity::system_clock;
use anyhow::Context as _;
use clap::Parser;
use serde::Deserialize;
use tokio::{net::TcpListener, signal::unix::SignalKind};
use tokio_util::sync::CancellationToken;

/// Issues identities to the agents of one trust domain.
#[derive(Parser)]
#[command(name = "aegis-ca", version)]
struct Options {
    /// The trust domain, such as acme.example
    #[arg(long, env = "AEGIS_TRUST_DOMAIN")]
    trust_domain: TrustDomain,
    /// Where keys and state rest; created with mode 0700
    #[arg(long, env = "AEGIS_CA_DIRECTORY")]
    directory: PathBuf,
    /// The unix socket of the SPIFFE Workload API
    #[arg(long, env = "AEGIS_WORKLOAD_SOCKET")]
    socket: PathBuf,
    /// Who may have an identity (YAML): a list of id, sponsor, and any of uid, gid, path, sha256, launcher
    #[arg(long, env = "AEGIS_CA_REGISTRATIONS")]
    registrations: PathBuf,
    /// Serve the trust bundle for federation here, over plain HTTP
    #[arg(long, env = "AEGIS_BUNDLE_ADDRESS")]
    bundle_address: Option<SocketAddr>,
    /// The life of an SVID in seconds
    #[arg(long, default_value_t = 900, value_parser = clap::value_parser!(u64).range(60..=86_400))]
    svid_ttl: u64,
}

/// One entry of the registrations file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Entry {
    id: AgentId,
    sponsor: Sponsor,
    #[serde(default)]
    capabilities: Vec<String>,
    uid: Option<u32>,
    gid: Option<u32>,
    path: Option<PathBuf>,
    sha256: Option<Digest>,
    launcher: Option<PathBuf>,
}

impl From<Entry> for Registration {
    fn from(entry: Entry) -> Self {
        let selectors = [
            entry.uid.map(Selector::Uid),
            entry.gid.map(Selector::Gid),
            entry.path.map(Selector::Path),
            entry.sha256.map(Selector::Sha256),
            entry.launcher.map(Selector::Launcher),
        ];
        Self {
            id: entry.id,
            sponsor: entry.sponsor,
            capabilities: entry.capabilities,
            selectors: selectors.into_iter().flatten().collect(),
            ttl: None,
        }
    }
}

fn read_registrations(path: &PathBuf) -> anyhow::Result<Vec<Registration>> {
    let text =
        fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let entries: Vec<Entry> = serde_yaml_ng::from_str(&text)
        .with_context(|| format!("{} is not a list of registrations", path.display()))?;
    Ok(entries.into_iter().map(Registration::from).collect())
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .json()
        .with_writer(std::io::stderr)
        .with_env_filter(
            tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into()),
        )
        .init();
    let options = Options::parse();
    let lifetimes =
        Lifetimes { svid: Duration::from_secs(options.svid_ttl), ..Lifetimes::default() };
    let config = CaConfig { trust_domain: options.trust_domain, lifetimes };
    let store = Directory::open(options.directory)?;
    let manager = IdentityManager::open(store, config, Arc::new(Unrecorded), system_clock())?;
    manager.register(read_registrations(&options.registrations)?)?;

    let socket = WorkloadSocket::bind(options.socket).await?;
    tracing::info!(endpoint = socket.endpoint(), "serving the Workload API");
    let stop = CancellationToken::new();
    tokio::spawn(manager.clone().keep_rotating());
    if let Some(address) = options.bundle_address {
        let listener = TcpListener::bind(address)
            .await
            .with_context(|| format!("cannot listen on {address}"))?;
        tracing::info!(address = %listener.local_addr()?, "serving the trust bundle");
        let (router, stopped) =
            (federation::router(manager.clone()), stop.clone().cancelled_owned());
        tokio::spawn(
            async move { axum::serve(listener, router).with_graceful_shutdown(stopped).await },
        );
    }
    stop_on_signal(stop.clone())?;
    socket.serve(manager, stop).await?;
    Ok(())
}

fn stop_on_signal(stop: CancellationToken) -> anyhow::Result<()> {
    let mut terminate = tokio::signal::unix::signal(SignalKind::terminate())?;
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
        stop.cancel();
    });
    Ok(())
}
