//! `aegis trust`: the scores, where they come from, and the proof that they are a fold of the log.

mod adjust;
mod explain;
mod replay;
mod show;
mod tune;

use clap::Subcommand;

use crate::{Context, Outcome, cluster};

/// Show, explain, replay and adjust the trust in agents
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  aegis trust show\n  aegis trust explain buyer\n  aegis trust show --cluster"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    cluster: cluster::ClusterArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    Show(show::Args),
    Explain(explain::Args),
    Replay(replay::Args),
    Adjust(adjust::Args),
    Tune(tune::Args),
}

pub(crate) async fn run(args: Args, cx: &Context) -> anyhow::Result<Outcome> {
    if let Some(cluster) = args.cluster.connect().await? {
        return match args.command {
            Command::Show(args) => show::of(args, cluster.trust().await?, cx),
            _ => {
                anyhow::bail!("only `trust show` asks a cluster; for the others name its database")
            }
        };
    }
    match args.command {
        Command::Show(args) => show::run(args, cx).await,
        Command::Explain(args) => explain::run(args, cx).await,
        Command::Replay(args) => replay::run(args, cx).await,
        Command::Adjust(args) => adjust::run(args, cx).await,
        Command::Tune(args) => tune::run(args, cx).await,
    }
}

/// Millionths of an observation as a decimal number.
fn observations(micros: u64) -> String {
    format!("{}.{:06}", micros / 1_000_000, micros % 1_000_000)
}

#[cfg(test)]
mod tests {
    #[test]
    fn evidence_is_shown_exactly() {
        assert_eq!(super::observations(1_250_000), "1.250000");
        assert_eq!(super::observations(7), "0.000007");
    }
}
