//! `aegis audit`: read, prove, verify and export the log.

mod check_proof;
mod export;
mod ocsf;
mod prove;
mod query;
mod replay;
mod verify;

use aegis_audit::Location;
use clap::Subcommand;

pub(crate) use prove::beside;

use crate::{Context, Outcome, cluster};

/// Read, prove, verify and export the audit log
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  aegis audit tail -f\n  aegis audit query --cluster --result deny\n  aegis audit verify --database ledger.db --key \"$(cat log.key)\""
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    cluster: cluster::ClusterArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    Tail(query::TailArgs),
    Query(query::QueryArgs),
    Prove(prove::Args),
    CheckProof(check_proof::Args),
    Verify(verify::Args),
    Export(export::Args),
    Replay(replay::Args),
}

/// Which log.
#[derive(Debug, clap::Args)]
pub(crate) struct Source {
    /// Read this database (a SQLite file, also a copy, or a postgres:// URL) instead of asking the
    /// daemon
    #[arg(long, value_name = "FILE")]
    pub(crate) database: Option<Location>,
}

pub(crate) async fn run(args: Args, cx: &Context) -> anyhow::Result<Outcome> {
    let cluster = args.cluster.connect().await?;
    let of_cluster = cluster.map(|cluster| Context { client: cluster.ledger(), format: cx.format });
    let cx = of_cluster.as_ref().unwrap_or(cx);
    match args.command {
        Command::Tail(args) => query::tail(args, cx).await,
        Command::Query(args) => query::query(args, cx).await,
        Command::Prove(args) => prove::run(args, cx).await,
        Command::CheckProof(args) => check_proof::run(&args, cx),
        Command::Verify(args) => verify::run(args, cx).await,
        Command::Export(args) => export::run(args, cx).await,
        Command::Replay(args) => replay::run(args, cx).await,
    }
}
