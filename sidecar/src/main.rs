//! `aegis-sidecar`: the enforcement point of one pod.

use aegis_runtime::LogFormat;
use aegis_sidecar::pod::{Options, run};
use clap::Parser as _;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() -> anyhow::Result<()> {
    aegis_runtime::init_logs(LogFormat::Json);
    run(Options::parse(), aegis_runtime::shutdown_signal()?).await
}
