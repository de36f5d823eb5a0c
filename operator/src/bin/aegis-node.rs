//! `aegis-node`: redirects the traffic of injected pods on its node.

use aegis_operator::node::{Options, run};
use aegis_runtime::LogFormat;
use anyhow::Context as _;
use clap::Parser as _;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    aegis_runtime::init_logs(LogFormat::Json);
    let options = Options::parse();
    let client = kube::Client::try_default()
        .await
        .context("there is no cluster to talk to; set KUBECONFIG or run in a pod")?;
    run(options, client, aegis_runtime::shutdown_signal()?).await
}
