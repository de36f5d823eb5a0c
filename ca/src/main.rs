//! `aegis-ca`: the CA of one trust domain on its own, with the Workload API on a unix socket, or
//! with `kubernetes` that of a cluster.

use std::{fs, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use aegis_ca::{
    Applications, CaConfig, Directory, IdentityManager, Lifetimes, Registration, Selector,
    Unrecorded, WorkloadSocket, federation, kubernetes,
};
use aegis_core::{AgentId, Digest, Sponsor, TrustDomain};
use aegis_identity::system_clock;
use aegis_runtime::LogFormat;
use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use serde::Deserialize;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Issues identities to the agents of one trust domain.
#[derive(Parser)]
#[command(
    name = "aegis-ca",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    machine: Option<Machine>,
}

#[derive(Subcommand)]
enum Command {
    /// Issues to the pods of a Kubernetes cluster, by their tokens
    Kubernetes(kubernetes::Options),
}

/// On one machine.
#[derive(Args)]
struct Machine {
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

// Several threads: the state of a cluster's CA is written by whoever changes it, and waits for the
// API server.
#[tokio::main(flavor = "multi_thread", worker_threads = 4)]
async fn main() -> anyhow::Result<()> {
    aegis_runtime::init_logs(LogFormat::Json);
    let arguments = Arguments::parse();
    let stop = aegis_runtime::shutdown_signal()?;
    match (arguments.command, arguments.machine) {
        (Some(Command::Kubernetes(options)), _) => kubernetes::run(options, stop).await,
        (None, Some(machine)) => serve_machine(machine, stop).await,
        (None, None) => anyhow::bail!("say what to do; `aegis-ca --help` tells what there is"),
    }
}

async fn serve_machine(options: Machine, stop: CancellationToken) -> anyhow::Result<()> {
    let lifetimes =
        Lifetimes { svid: Duration::from_secs(options.svid_ttl), ..Lifetimes::default() };
    let config = CaConfig { trust_domain: options.trust_domain, lifetimes };
    let store = Directory::open(options.directory)?;
    let manager = IdentityManager::open(store, config, Arc::new(Unrecorded), system_clock())?;
    manager.register(read_registrations(&options.registrations)?)?;

    let socket = WorkloadSocket::bind(options.socket).await?;
    tracing::info!(endpoint = socket.endpoint(), "serving the Workload API");
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
    socket.serve(Applications::new(manager), stop).await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(std::iter::once("aegis-ca").chain(arguments.iter().copied()))
    }

    #[test]
    fn one_machine_needs_no_command_and_a_cluster_has_one() {
        let machine =
            ["--trust-domain=acme.example", "--directory=/d", "--socket=/s", "--registrations=/r"];
        let one = parsed(&machine).unwrap();
        assert!(one.command.is_none());
        assert_eq!(one.machine.unwrap().svid_ttl, 900);
        assert!(parsed(&machine[..3]).is_err(), "registrations are missing");

        let chart = [
            "kubernetes",
            "--trust-domain=acme.example",
            "--listen=0.0.0.0:9442",
            "--admin=0.0.0.0:9491",
            "--journal=/var/lib/aegis-ca",
            "--svid-ttl=900",
            "--ledger=aegis-ledger.aegis-system.svc:9445",
        ];
        let Some(Command::Kubernetes(options)) = parsed(&chart).unwrap().command else {
            panic!("a cluster")
        };
        assert_eq!(options.ledger.unwrap(), "aegis-ledger.aegis-system.svc:9445");
        assert!(parsed(&["kubernetes", "--trust-domain=acme.example"]).is_err(), "no journal");
        assert!(
            parsed(&["kubernetes", "--trust-domain=a.b", "--journal=/j", "--svid-ttl=5"]).is_err()
        );
    }
}
