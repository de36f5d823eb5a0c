//! `aegis-operator`: Aegis' resources in a Kubernetes cluster.

use aegis_operator::{options::Options, run::Operator};
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
    let operator = Operator::build(options, client).await?;
    operator.announce();
    operator.run(aegis_runtime::shutdown_signal()?).await
}
