//! `aegis policy`: check, test, try, build and evaluate policies. Needs no daemon.

mod build;
pub(crate) mod check;
mod eval;
pub(crate) mod folder;
mod test;
mod try_out;

use clap::Subcommand;

use crate::{Context, Outcome, output};

/// Check, test, try, build and evaluate policies
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  aegis policy check aegis.d && aegis policy test aegis.d")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Check(check::Args),
    Test(test::Args),
    Try(try_out::Args),
    Build(build::Args),
    Eval(eval::Args),
    /// Print the JSON schema of the input document, for `opa check -S`
    #[command(
        after_help = "Example:\n  aegis policy schema > input.json && opa check -S -s input.json policy.rego"
    )]
    Schema,
}

pub(crate) fn run(args: Args, cx: &Context) -> anyhow::Result<Outcome> {
    match args.command {
        Command::Check(args) => check::run(&args, cx),
        Command::Test(args) => test::run(&args, cx),
        Command::Try(args) => try_out::run(&args, cx),
        Command::Build(args) => build::run(&args, cx),
        Command::Eval(args) => eval::run(&args),
        Command::Schema => {
            output::json(&aegis_policy::input_schema())?;
            Ok(Outcome::Done)
        }
    }
}
