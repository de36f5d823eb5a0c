//! `aegis compliance`: which controls of a framework the ledger holds evidence for.
//!
//! It counts what is recorded and links it to proofs. It never says that a control is met: that
//! takes a person, and evidence from elsewhere.

mod framework;
mod html;
mod list;
mod report;
mod tally;

use clap::Subcommand;

use crate::{Context, Outcome};

/// Report which controls the ledger holds evidence for, and which nothing here can show
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  aegis compliance report --framework soc2 -O soc2.html\n  aegis compliance controls --framework eu-ai-act"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Report(Box<report::Args>),
    Controls(list::Args),
}

pub(crate) async fn run(args: Args, cx: &Context) -> anyhow::Result<Outcome> {
    match args.command {
        Command::Report(args) => report::run(*args, cx).await,
        Command::Controls(args) => list::run(&args, cx),
    }
}
