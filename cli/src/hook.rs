//! `aegis hook`: what a coding agent runs before it acts. `aegis-hook` is the same as a program of its own,
//! which starts faster.

pub(crate) mod ask;

use std::path::PathBuf;

use aegis_api::kernel::MAX_WAIT_SECS;
use aegis_protocol::hooks::Agent;
use clap::{builder::PossibleValuesParser, builder::TypedValueParser as _};

/// Answer a coding agent's hook: its payload on standard input, its own form of answer on output.
///
/// `aegis integrate` writes this command into the agent's configuration. Without a daemon everything is
/// refused.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  aegis hook --agent claude-code <payload.json\n\nExit codes: 0 no objection, 2 refused; the agent's form of both is on standard output."
)]
pub(crate) struct Args {
    /// Whose hook this is
    #[arg(long, value_parser = agents())]
    agent: Agent,
    /// The daemon's kernel socket. Default: kernel.sock beside the control socket
    #[arg(long, env = "AEGIS_KERNEL_SOCKET", hide_env_values = true, value_name = "PATH")]
    kernel_socket: Option<PathBuf>,
    /// How long an action waits for a person's approval. Seconds
    #[arg(long, default_value_t = 0, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=MAX_WAIT_SECS))]
    wait: u64,
}

/// The names of agents.
pub(crate) fn agents() -> impl clap::builder::TypedValueParser<Value = Agent> {
    PossibleValuesParser::new(Agent::ALL.map(Agent::as_str))
        .try_map(|name| Agent::named(&name).ok_or("there is no such agent"))
}

/// Answers, and returns the exit code.
pub(crate) fn run(args: Args, control: PathBuf) -> i32 {
    let socket = args.kernel_socket.unwrap_or_else(|| control.with_file_name("kernel.sock"));
    i32::from(ask::run(ask::Ask { agent: args.agent, socket, wait: args.wait }))
}
