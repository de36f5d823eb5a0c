//! `mcp-fixture [PORT]`: an MCP server to put behind Aegis in tests.
//!
//! It prints its URL on one line and serves until SIGTERM or Ctrl-C; with `--stdio` it serves its
//! standard streams instead and prints nothing of its own there.

use std::{
    io::{IsTerminal, Write},
    path::PathBuf,
};

use aegis_e2e::fixture::{Fixture, Options};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// An MCP server for tests: conforming, counting, and misbehaving on request.
#[derive(Debug, Parser)]
struct Arguments {
    /// The port on 127.0.0.1; 0 takes a free one.
    #[arg(default_value_t = 0)]
    port: u16,
    /// Serve the standard streams instead of a port.
    #[arg(long, conflicts_with = "port")]
    stdio: bool,
    /// Offer the `misconduct_*` tools.
    #[arg(long)]
    misconduct: bool,
    /// Offer `fixture_shifting`, whose definition changes after N lists.
    #[arg(long, value_name = "N")]
    shift_after: Option<u64>,
    /// Put at most N tools on one page of a list.
    #[arg(long, value_name = "N")]
    page_size: Option<usize>,
    /// Add a line per call of a tool to this file.
    #[arg(long, value_name = "FILE")]
    journal: Option<PathBuf>,
}

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::from_default_env())
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .init();
    let arguments = Arguments::parse();
    let fixture = Fixture::new(Options {
        misconduct: arguments.misconduct,
        shift_after: arguments.shift_after,
        page_size: arguments.page_size,
        journal: arguments.journal,
    })?;
    if arguments.stdio {
        return Ok(fixture.serve_stdio().await?);
    }
    let bound = fixture.bind(arguments.port).await?;
    writeln!(std::io::stdout(), "{}", bound.url())?;
    let stop = CancellationToken::new();
    let (mut terminate, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stopped = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        stopped.cancel();
    });
    Ok(bound.serve(stop).await?)
}
