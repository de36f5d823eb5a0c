//! `aegis-ledger`: serves an audit log over HTTP, or with `serve` writes the log of a cluster too.

use aegis_audit::{Location, Reader};
use aegis_ledger::{Ledger, router, serve, verify};
use aegis_runtime::LogFormat;
use anyhow::Context as _;
use clap::{Args, Parser, Subcommand};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Serves an audit log: checkpoint, tiles, proofs, queries, metrics.
#[derive(Parser)]
#[command(
    name = "aegis-ledger",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Arguments {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    read: Option<Read>,
}

#[derive(Subcommand)]
enum Command {
    /// Takes the journals of a Kubernetes cluster, one replica at a time, and serves the log
    Serve(serve::Options),
    /// Verifies a whole log and ends: with success only if nothing in it is wrong
    Verify(verify::Options),
}

/// A log that somebody else writes.
#[derive(Args)]
struct Read {
    /// The log: a SQLite file, or a postgres:// URL.
    #[arg(long, env = "AEGIS_LEDGER_STORE", hide_env_values = true)]
    store: Location,
    /// Where to listen.
    #[arg(long, env = "AEGIS_LEDGER_LISTEN", default_value = "127.0.0.1:9480")]
    listen: String,
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    aegis_runtime::init_logs(LogFormat::Json);
    let arguments = Arguments::parse();
    let stop = aegis_runtime::shutdown_signal()?;
    match (arguments.command, arguments.read) {
        (Some(Command::Serve(options)), _) => serve::run(options, stop).await,
        (Some(Command::Verify(options)), _) => verify::run(&options).await,
        (None, Some(read)) => serve_read(read, stop).await,
        (None, None) => anyhow::bail!("say which log to serve with --store"),
    }
}

async fn serve_read(arguments: Read, stop: CancellationToken) -> anyhow::Result<()> {
    let reader = Reader::open(&arguments.store).await?;
    let listener = TcpListener::bind(&arguments.listen).await.with_context(|| {
        format!("cannot listen on {}; free it or choose another with --listen", arguments.listen)
    })?;
    tracing::info!(address = %listener.local_addr()?, store = %arguments.store, "ledger listening");
    let ledger = Ledger::of_reader(reader.clone())?;
    axum::serve(listener, router(ledger)).with_graceful_shutdown(stop.cancelled_owned()).await?;
    reader.close().await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(arguments: &[&str]) -> Result<Arguments, clap::Error> {
        Arguments::try_parse_from(std::iter::once("aegis-ledger").chain(arguments.iter().copied()))
    }

    #[test]
    fn reading_needs_no_command_and_a_cluster_has_one() {
        let read = parsed(&["--store=/log.db", "--listen=0.0.0.0:9480"]).unwrap();
        assert!(read.command.is_none());
        assert_eq!(read.read.unwrap().listen, "0.0.0.0:9480");
        assert!(parsed(&["--listen=0.0.0.0:9480"]).is_err(), "no log is named");

        let chart = [
            "serve",
            "--trust-domain=acme.example",
            "--ship-listen=0.0.0.0:9445",
            "--state=/var/lib/aegis-ledger",
            "--key=/var/lib/aegis-ledger/seed",
            "--ca=aegis-ca.aegis-system.svc:9442",
            "--ca-roots=/etc/aegis/trust/roots.pem",
            "--token=/var/run/secrets/aegis/token",
            "--listen=0.0.0.0:9480",
            "--store=/var/lib/aegis-ledger/ledger.db",
        ];
        let Some(Command::Serve(options)) = parsed(&chart).unwrap().command else {
            panic!("a cluster")
        };
        assert_eq!(options.store, Location::Sqlite("/var/lib/aegis-ledger/ledger.db".into()));
        assert!(parsed(&chart[..9]).is_err(), "no log is named");

        let verify = ["verify", "--ledger=aegis-ledger:9480", "--kept=/var/lib/aegis/checkpoint"];
        assert!(matches!(parsed(&verify).unwrap().command, Some(Command::Verify(_))));
        assert!(parsed(&["verify", "--kept=x"]).is_err(), "no log is named");
        assert!(parsed(&["verify", "--ledger=a:1", "--store=b.db"]).is_err(), "two logs are named");
    }
}
