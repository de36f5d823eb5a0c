//! `aegis mcp`: an MCP server whose tools are governed: files, commands, the web, and a memory.
//!
//! It acts for an agent and holds no power of its own. Every call becomes the one action that it comes to, under the
//! same names that hooks use; the daemon decides on it before anything happens, and hears how it ended. Without a
//! permission nothing happens. What no policy is asked about, because these tools themselves refuse it, is
//! recorded as well.

mod answer;
mod catalogue;
mod command;
pub(crate) mod daemon;
pub(crate) mod fetch;
mod files;
mod policies;
mod server;
mod shell;
mod tree;

use std::{path::PathBuf, sync::Arc};

use aegis_api::kernel::MAX_WAIT_SECS;
use anyhow::Context as _;
use rmcp::ServiceExt as _;
use tokio::signal::unix::{SignalKind, signal};

use self::{
    command::Environment,
    daemon::Daemon,
    fetch::Reach,
    server::{Server, Setup},
    tree::{Place, Root},
};

/// Offer governed tools to an agent, as an MCP server on standard streams.
///
/// Files, commands, HTTP requests and a memory: each call is decided by the daemon before it happens, and
/// recorded. Put this into your agent's MCP servers.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  aegis mcp --root ~/src/shop\n  claude mcp add aegis -- aegis mcp --root ~/src/shop"
)]
pub(crate) struct Args {
    /// The folder that the agent works in, which it sees as /workspace
    #[arg(long, default_value = ".", value_name = "FOLDER")]
    root: PathBuf,
    /// The name under which policies know these tools
    #[arg(long, default_value = "aegis", value_name = "NAME")]
    server: String,
    /// How long a call waits for a person's approval. Seconds
    #[arg(long, default_value_t = 0, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(..=MAX_WAIT_SECS))]
    wait: u64,
    /// Let commands have this variable of the environment, too
    #[arg(long, value_name = "NAME")]
    env: Vec<String>,
    /// Let HTTP requests go to this host and port, wherever it is
    #[arg(long, value_name = "HOST:PORT")]
    reach: Vec<Reach>,
    /// Where agents' memories are kept. Default: memory in the state folder
    #[arg(long, value_name = "FOLDER")]
    memory: Option<PathBuf>,
    /// The daemon's kernel socket. Default: kernel.sock beside the control socket
    #[arg(long, env = "AEGIS_KERNEL_SOCKET", hide_env_values = true, value_name = "PATH")]
    kernel_socket: Option<PathBuf>,
}

/// Serves until the client has gone, or the process is told to end.
pub(crate) async fn run(args: Args, control: PathBuf) -> anyhow::Result<()> {
    let socket = args.kernel_socket.unwrap_or_else(|| control.with_file_name("kernel.sock"));
    let root = || format!("the folder {} cannot be used", args.root.display());
    let workspace = Root::open(&args.root, None).with_context(root)?;
    let at = workspace.at().with_context(root)?;
    anyhow::ensure!(at != "/", "the whole machine is no folder to work in; name one by --root");
    for name in [Place::Memory.as_str(), Place::Policy.as_str()] {
        // Policies would take one for the other.
        anyhow::ensure!(
            at != name && !at.starts_with(&format!("{name}/")),
            "a folder beneath {name} cannot be worked in: policies see something else under that name; use another"
        );
    }
    let server = Server::new(Setup {
        daemon: Daemon::new(&socket, &args.server, args.wait),
        workspace: Arc::new(workspace),
        memory: args.memory.unwrap_or_else(|| crate::default_state().join("memory")),
        environment: Environment::new(&args.env),
        reach: args.reach,
    });
    // Ended in order, it ends the commands that it runs.
    let (mut term, mut interrupt) =
        (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let serving = async {
        let running = server.serve(rmcp::transport::stdio()).await?;
        running.waiting().await?;
        anyhow::Ok(())
    };
    tokio::select! {
        served = serving => served.context("the MCP client spoke no MCP"),
        _ = term.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    }
}
