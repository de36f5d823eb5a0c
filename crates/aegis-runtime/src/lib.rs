//! Process plumbing that every Aegis process shares: logs, telemetry, signals and an orderly end.

pub mod telemetry;

use std::{io::IsTerminal as _, time::Duration};

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing_subscriber::{EnvFilter, fmt};

/// How log lines look.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line, for collectors.
    Json,
}

/// Starts logging to standard error. `AEGIS_LOG` filters as `RUST_LOG` does elsewhere; the default
/// is `info`. Colours only where a terminal shows them and NO_COLOR is not set. A second call does
/// nothing.
pub fn init_logs(format: LogFormat) {
    let filter = EnvFilter::try_from_env("AEGIS_LOG").unwrap_or_else(|_| EnvFilter::new("info"));
    let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
    let colours = std::io::stderr().is_terminal() && !refused;
    let builder = fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours);
    let _ = match format {
        LogFormat::Text => builder.with_target(false).try_init(),
        LogFormat::Json => builder.json().flatten_event(true).try_init(),
    };
}

/// Cancelled by SIGTERM, SIGINT or SIGHUP's closing of the terminal; a second signal ends the
/// process at once.
///
/// # Errors
/// When the handlers cannot be installed.
pub fn shutdown_signal() -> std::io::Result<CancellationToken> {
    let token = CancellationToken::new();
    let (mut term, mut int, mut hup) = (
        signal(SignalKind::terminate())?,
        signal(SignalKind::interrupt())?,
        signal(SignalKind::hangup())?,
    );
    let asked = token.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = term.recv() => {}
                _ = int.recv() => {}
                _ = hup.recv() => {}
            }
        };
        next().await;
        asked.cancel();
        next().await;
        std::process::exit(130);
    });
    Ok(token)
}

/// Waits for `ending`, but not longer than `deadline`. Returns whether it ended by itself.
pub async fn drained(ending: impl Future<Output = ()>, deadline: Duration) -> bool {
    tokio::time::timeout(deadline, ending).await.is_ok()
}
