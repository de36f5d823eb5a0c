//! `aegis up`: everything on one machine, in one process.

mod attest;
mod command;
mod config;
mod control;
mod daemon;
mod guesses;
mod identity;
mod kernel;
mod notices;
mod operators;
mod service;

use std::{net::SocketAddr, path::PathBuf};

use aegis_core::TrustDomain;
use aegis_runtime::{LogFormat, telemetry::Telemetry};
use anyhow::Context as _;
use clap::{Args as ClapArgs, ValueEnum};

use crate::mcp::fetch::Reach;
use daemon::Daemon;
use notices::Notices;

pub(crate) use attest::now;
pub(crate) use config::Configuration;

/// Start Aegis on this machine: decide, forward, record.
///
/// Reads resources from a folder (write one with `aegis init`), listens for each AgentUpstream, and
/// stays up until Ctrl-C. Changed policies take effect by themselves.
#[derive(Debug, ClapArgs)]
#[command(after_help = "Example:\n  aegis init aegis.d && aegis up --config aegis.d")]
pub(crate) struct Args {
    /// The folder with the resources (YAML)
    #[arg(long, env = "AEGIS_CONFIG", default_value = "aegis.d")]
    config: PathBuf,
    /// Where the ledger, keys and sockets rest; created with mode 0700
    #[arg(long, env = "AEGIS_STATE", default_value_os_t = crate::default_state())]
    state: PathBuf,
    /// Where the control socket and the Workload API's socket are, for a daemon under a user of its
    /// own: a folder that others can traverse. Default: in the state folder, which only its owner can
    #[arg(long, env = "AEGIS_SOCKETS")]
    sockets: Option<PathBuf>,
    /// Who may ask and order something over the control socket besides the daemon's own user and root:
    /// names or numbers of users. Agents' users need a second factor for every order
    #[arg(long = "operator", env = "AEGIS_OPERATORS", value_delimiter = ',', value_name = "USER")]
    operators: Vec<String>,
    /// Print a systemd unit that runs the daemon under a user of its own, with what is to be done once,
    /// and end
    #[arg(long)]
    as_service: bool,
    /// The trust domain of the agents here
    #[arg(long, env = "AEGIS_TRUST_DOMAIN", default_value = "aegis.local")]
    trust_domain: TrustDomain,
    /// When a call may go on: once its decision is on disk; when its answer is about to leave; or at
    /// once, with gaps recorded
    #[arg(long, env = "AEGIS_AUDIT", value_enum, default_value_t = AuditMode::Strict)]
    audit: AuditMode,
    /// The ledger: a SQLite file, or a postgres:// URL. Default: ledger.db in the state folder
    #[arg(long, env = "AEGIS_LEDGER")]
    ledger: Option<String>,
    /// Where /metrics, /healthz and /readyz are served, and the console if that is an address of
    /// loopback; port 0 picks one
    #[arg(long, env = "AEGIS_ADMIN", default_value = "127.0.0.1:7100")]
    admin: SocketAddr,
    /// Where the kernel API is served besides kernel.sock: an address of loopback. Who asks there is
    /// attested as on the socket, and has to know the token in the file kernel.token of the state folder
    #[arg(long, env = "AEGIS_KERNEL_ADDRESS", value_name = "ADDRESS")]
    kernel_address: Option<SocketAddr>,
    /// How long one evaluation of a policy may take before it denies. Milliseconds of wall time
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..=60_000))]
    policy_budget_ms: u64,
    /// Tell by webhook which approvals wait and how they end: a file with an https:// address a line, of Slack or
    /// of what takes the same JSON. For its owner alone, because such an address is a secret
    #[arg(long, env = "AEGIS_NOTIFY", value_name = "FILE")]
    notify: Option<PathBuf>,
    /// A host that notices may go to wherever it leads, and without TLS
    #[arg(long, value_name = "HOST:PORT", requires = "notify")]
    notify_reach: Vec<Reach>,
    /// How log lines look
    #[arg(long, env = "AEGIS_LOG_FORMAT", value_enum, default_value_t = Logs::Text)]
    log_format: Logs,
    /// How long open exchanges may take to end after Ctrl-C. Seconds
    #[arg(long, default_value_t = 20)]
    drain_seconds: u64,
}

/// How far a record is before its action.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum AuditMode {
    /// On disk before the action.
    Strict,
    /// On disk before the answer.
    Overlap,
    /// Queued; what is lost is counted and recorded as a gap.
    Buffered,
}

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Logs {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Runs the daemon until it is told to end.
pub(crate) async fn run(args: Args) -> anyhow::Result<()> {
    if args.as_service {
        return service::print(&args);
    }
    // What a unit gives the daemon to look at other users' processes is not for the servers that it
    // starts. No other thread runs yet.
    let _ = rustix::thread::clear_ambient_capability_set();
    aegis_runtime::init_logs(match args.log_format {
        Logs::Text => LogFormat::Text,
        Logs::Json => LogFormat::Json,
    });
    let shutdown = aegis_runtime::shutdown_signal().context("cannot install signal handlers")?;
    let telemetry = Telemetry::from_env("aegis");
    let notices = Notices::read(args.notify.as_deref(), &args.notify_reach)?;
    let daemon = Daemon::build(&args, &telemetry, shutdown.clone()).await?;
    daemon.announce();
    daemon.tell_by(notices);
    let ended = daemon.run(shutdown, std::time::Duration::from_secs(args.drain_seconds)).await;
    telemetry.end().await;
    ended
}
