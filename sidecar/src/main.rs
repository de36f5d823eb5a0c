//! `aegis-sidecar`: the enforcement point of one pod.

use std::time::Duration;

use aegis_runtime::LogFormat;
use aegis_sidecar::{
    pod::{Options, run},
    transparent::await_redirect,
};
use anyhow::Context as _;
use clap::Parser as _;

#[derive(clap::Parser)]
#[command(name = "aegis-sidecar", version, about = "The enforcement point of one pod")]
#[command(args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
struct Program {
    #[command(subcommand)]
    what: Option<What>,
    #[command(flatten)]
    options: Option<Options>,
}

#[derive(clap::Subcommand)]
enum What {
    /// Wait until what this pod sends is redirected into its sidecar
    AwaitRedirect {
        /// How long to wait, in seconds
        #[arg(long, default_value_t = 60)]
        patience: u64,
        /// Where the sidecar serves health, on this pod's loopback
        #[arg(long, default_value_t = 15021)]
        health_port: u16,
    },
}

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    let program = Program::parse();
    if let Some(What::AwaitRedirect { patience, health_port }) = program.what {
        return Ok(await_redirect(health_port, Duration::from_secs(patience)).await?);
    }
    aegis_runtime::init_logs(LogFormat::Json);
    let options = program.options.context("a sidecar is told who it is; see --help")?;
    run(options, aegis_runtime::shutdown_signal()?).await
}
