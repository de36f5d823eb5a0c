//! `aegis completions`: what a shell needs to complete this command.

use clap::CommandFactory as _;
use clap_complete::Shell;

use crate::{Cli, Outcome, output};

/// Print a script that makes a shell complete this command
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  aegis completions bash > ~/.local/share/bash-completion/completions/aegis"
)]
pub(crate) struct Args {
    /// The shell
    shell: Shell,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "aegis", &mut script);
    output::emit(&String::from_utf8_lossy(&script))?;
    Ok(Outcome::Done)
}
