//! `aegis-ledger`: serves an audit log over HTTP.

use aegis_audit::{Location, Reader};
use aegis_ledger::{Ledger, router};
use anyhow::Context as _;
use clap::Parser;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

/// Serves an audit log: checkpoint, tiles, proofs, queries, metrics.
#[derive(Parser)]
#[command(version)]
struct Arguments {
    /// The log: a SQLite file, or a postgres:// URL.
    #[arg(long, env = "AEGIS_LEDGER_STORE", hide_env_values = true)]
    store: Location,
    /// Where to listen.
    #[arg(long, env = "AEGIS_LEDGER_LISTEN", default_value = "127.0.0.1:9480")]
    listen: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt().json().with_env_filter(filter).with_writer(std::io::stderr).init();
    let arguments = Arguments::parse();
    let reader = Reader::open(&arguments.store).await?;
    let listener = TcpListener::bind(&arguments.listen).await.with_context(|| {
        format!("cannot listen on {}; free it or choose another with --listen", arguments.listen)
    })?;
    tracing::info!(address = %listener.local_addr()?, store = %arguments.store, "ledger listening");
    let mut terminate = signal(SignalKind::terminate())?;
    let stop = async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = tokio::signal::ctrl_c() => {}
        }
    };
    let ledger = Ledger::of_reader(reader.clone())?;
    axum::serve(listener, router(ledger)).with_graceful_shutdown(stop).await?;
    reader.close().await;
    Ok(())
}
