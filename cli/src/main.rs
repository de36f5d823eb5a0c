//! `aegis`: one command for people and scripts, one file per subcommand.
//!
//! Most subcommands ask the daemon (`aegis up`) over its control socket; those that judge evidence
//! (`audit verify`, `audit check-proof`, `trust replay`) and those that read policies work without
//! one. Exit codes: 0 done, 1 refused or a check that failed, 2 wrong usage, or not judged (`check`).
//! Failures are one sentence on standard error.

mod agents;
mod approvals;
mod audit;
mod check;
mod child;
mod cluster;
mod completions;
mod compliance;
mod console;
mod explain;
mod hook;
mod import;
mod init;
mod integrate;
mod log;
mod mcp;
mod names;
mod output;
mod policy;
mod reasons;
mod recorded;
mod reference;
mod status;
mod tools;
mod trust;
mod up;
mod wrap;

use std::{
    env,
    io::{self, Write as _},
    path::PathBuf,
    process::ExitCode,
};

use aegis_api::Client;
use clap::{Parser, Subcommand};

/// Govern AI agents: decide, approve, record and prove what they do.
#[derive(Debug, Parser)]
#[command(
    name = "aegis",
    version,
    propagate_version = true,
    after_help = "Example:\n  aegis init aegis.d && aegis up --config aegis.d\n\nExit codes: 0 done, 1 refused or a check that failed, 2 wrong usage."
)]
struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

/// What every subcommand takes.
#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Global options")]
struct Global {
    /// The daemon's control socket. Default: control.sock in $AEGIS_STATE, or in aegis under
    /// $XDG_STATE_HOME or ~/.local/state; if there is none, /run/aegis/control.sock
    #[arg(long, global = true, env = "AEGIS_SOCKET", hide_env_values = true, value_name = "PATH")]
    socket: Option<PathBuf>,
    /// How results are printed
    #[arg(short, long, global = true, value_enum, default_value_t = output::Wanted::Text)]
    output: output::Wanted,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(up::Args),
    Wrap(wrap::Args),
    Mcp(mcp::Args),
    Hook(hook::Args),
    Integrate(integrate::Args),
    Check(check::Args),
    Init(init::Args),
    Status(status::Args),
    Console(console::Args),
    Approvals(approvals::Args),
    Audit(audit::Args),
    Trust(trust::Args),
    Explain(explain::Args),
    Tools(tools::Args),
    Agents(agents::Args),
    Policy(policy::Args),
    Import(import::Args),
    Compliance(compliance::Args),
    Reasons(reasons::Args),
    Completions(completions::Args),
    Reference(reference::Args),
}

/// What a subcommand came to; an error is told apart from a check that did not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Exit code 0.
    Done,
    /// Exit code 1; what did not hold has been printed.
    Failed,
    /// The exit code of the command that was wrapped.
    Exit(i32),
}

/// What a subcommand works with.
#[derive(Debug)]
pub(crate) struct Context {
    /// Asks the daemon.
    pub(crate) client: Client,
    /// How results are printed.
    pub(crate) format: output::Format,
}

/// Where the daemon's state rests unless told otherwise.
pub(crate) fn default_state() -> PathBuf {
    let named = |name: &str| env::var_os(name).filter(|text| !text.is_empty()).map(PathBuf::from);
    named("AEGIS_STATE").unwrap_or_else(|| {
        let base = named("XDG_STATE_HOME")
            .or_else(|| named("HOME").map(|home| home.join(".local/state")))
            .unwrap_or_else(|| PathBuf::from("."));
        base.join("aegis")
    })
}

/// The control socket of a daemon under a user of its own (`aegis up --as-service`).
const SERVICE_SOCKET: &str = "/run/aegis/control.sock";

/// The control socket unless told otherwise: that of one's own daemon, or of the machine's.
fn default_socket() -> PathBuf {
    let own = default_state().join("control.sock");
    let service = PathBuf::from(SERVICE_SOCKET);
    if !own.exists() && service.exists() { service } else { own }
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    let done = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(anyhow::Error::from)
        .and_then(|runtime| {
            let done = runtime.block_on(run(cli));
            // A thread that still reads standard input must not keep the process.
            runtime.shutdown_background();
            done
        });
    match done {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::FAILURE,
        Ok(Outcome::Exit(code)) => ExitCode::from(u8::try_from(code).unwrap_or(1)),
        // Whoever reads has seen enough, as in `aegis audit query | head`.
        Err(error) if reader_left(&error) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

async fn run(cli: Cli) -> anyhow::Result<Outcome> {
    let socket = cli.global.socket.unwrap_or_else(default_socket);
    let format = match (cli.global.output, &cli.command) {
        (output::Wanted::Sarif, Command::Check(_)) | (output::Wanted::Text, _) => {
            output::Format::Text
        }
        (output::Wanted::Json, _) => output::Format::Json,
        (output::Wanted::Sarif, _) => anyhow::bail!("`-o sarif` is for `aegis check` alone"),
    };
    let cx = Context { client: Client::new(socket), format };
    match cli.command {
        Command::Up(args) => up::run(args).await.map(|()| Outcome::Done),
        Command::Wrap(args) => wrap::run(args, &cx.client).await.map(Outcome::Exit),
        Command::Mcp(args) => {
            mcp::run(args, cx.client.socket().to_owned()).await.map(|()| Outcome::Done)
        }
        // Blocking, and the last thing that this process does.
        Command::Hook(args) => Ok(Outcome::Exit(hook::run(args, cx.client.socket().to_owned()))),
        Command::Integrate(args) => integrate::run(&args, cx.client.socket()),
        Command::Check(args) => Ok(check::run(args, cli.global.output, cx.client.socket()).await),
        Command::Init(args) => init::run(&args),
        Command::Status(args) => status::run(args, &cx).await,
        Command::Console(args) => console::run(args, &cx).await.map(|()| Outcome::Done),
        Command::Approvals(args) => approvals::run(args, &cx).await,
        Command::Audit(args) => audit::run(args, &cx).await,
        Command::Trust(args) => trust::run(args, &cx).await,
        Command::Explain(args) => explain::run(args, &cx).await,
        Command::Tools(args) => tools::run(args, &cx).await,
        Command::Agents(args) => agents::run(args, &cx).await,
        Command::Policy(args) => policy::run(args, &cx),
        Command::Import(args) => import::run(&args, &cx),
        Command::Compliance(args) => compliance::run(args, &cx).await,
        Command::Reasons(args) => reasons::run(&args, &cx),
        Command::Completions(args) => completions::run(&args),
        Command::Reference(args) => reference::run(&args),
    }
}

/// One sentence; where several things are wrong, a line for each.
fn complain(error: &anyhow::Error) {
    let mut out = io::stderr().lock();
    let Some(output::Several { problems, advice }) = error.downcast_ref() else {
        let _ = writeln!(out, "aegis: {}", output::clean(&sentence(error)));
        return;
    };
    for problem in problems {
        let _ = writeln!(out, "aegis: {}", output::clean(problem));
    }
    let _ = writeln!(out, "aegis: {}", output::clean(advice));
}

fn reader_left(error: &anyhow::Error) -> bool {
    let pipe = |cause: &io::Error| cause.kind() == io::ErrorKind::BrokenPipe;
    error.downcast_ref::<io::Error>().is_some_and(pipe)
}

/// The whole chain as one sentence; a cause that is already told is not repeated.
fn sentence(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if !text.contains(&cause) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause);
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_help_has_an_example() {
        fn check(command: &clap::Command, path: &str) {
            let help = command.get_after_help().map(ToString::to_string).unwrap_or_default();
            assert!(help.contains("Example"), "`{path} --help` has no example");
            assert!(command.get_about().is_some(), "`{path}` says nothing of itself");
            for inner in command.get_subcommands().filter(|c| c.get_name() != "help") {
                check(inner, &format!("{path} {}", inner.get_name()));
            }
        }
        check(&Cli::command(), "aegis");
    }

    #[test]
    fn a_cause_is_told_once() {
        let inner = io::Error::other("disk on fire");
        let error = anyhow::Error::from(inner).context("cannot write x: disk on fire");
        assert_eq!(sentence(&error), "cannot write x: disk on fire");
        let error = anyhow::Error::msg("b").context("a");
        assert_eq!(sentence(&error), "a: b");
    }
}
