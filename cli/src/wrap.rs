//! `aegis wrap`: a stdio MCP server behind Aegis.
//!
//! A server whose command an AgentUpstream registers is started by the daemon, and its client needs
//! no command; any other is started here. This holds the pipes and a connection to the daemon. Whatever the client says goes to the
//! daemon; to the server goes what comes back for it, and the other way round. Standard error is
//! the server's own. If the daemon goes away, nothing passes any more.

use std::process::Stdio;

use aegis_api::{
    Client,
    client::Wrapped,
    control::WrapHello,
    frame::{self, Channel},
};
use aegis_protocol::stdio;
use anyhow::Context as _;
use clap::Args as ClapArgs;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    process::Command,
    sync::mpsc,
};

use crate::child::{GRACE, read_lines, stop, write_frames};

/// Run a stdio MCP server behind Aegis.
///
/// Put this in front of the server's command in your client's configuration, or in its place where an
/// AgentUpstream registers the command.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Example:\n  aegis wrap --server files -- npx -y @modelcontextprotocol/server-filesystem /srv/data\n  aegis wrap --server files   # as its AgentUpstream says"
)]
pub(crate) struct Args {
    /// The name under which policies know this server. Default: the command's file name
    #[arg(long)]
    server: Option<String>,
    /// The server's namespace
    #[arg(long, default_value = "default")]
    namespace: String,
    /// The server's command; not needed where an AgentUpstream registers it, and refused if it is another
    #[arg(last = true, num_args = 1..)]
    command: Vec<String>,
}

/// Runs until the server or the client ends, and returns the server's exit code.
pub(crate) async fn run(args: Args, client: &Client) -> anyhow::Result<i32> {
    let server = match (&args.server, args.command.first()) {
        (Some(name), _) => name.clone(),
        (None, Some(program)) => std::path::Path::new(program)
            .file_name()
            .map_or_else(|| program.clone(), |name| name.to_string_lossy().into_owned()),
        (None, None) => anyhow::bail!(
            "name the server: `--server NAME` of an AgentUpstream that registers a command, or a command after `--`"
        ),
    };
    let namespace = Some(args.namespace.clone());
    let hello = WrapHello { server, namespace, command: args.command.clone() };
    let Wrapped { stream, by_daemon } = client.wrap(&hello).await?;
    if by_daemon { relay(stream).await } else { start(&args.command, stream).await }
}

/// The server is the daemon's: only the client's lines pass here.
async fn relay(stream: impl AsyncRead + AsyncWrite + Send + 'static) -> anyhow::Result<i32> {
    let (reader, writer) = tokio::io::split(stream);
    let (out, frames) = mpsc::channel(256);
    let mut writing = tokio::spawn(write_frames(writer, frames));
    let from_client = tokio::spawn(read_lines(tokio::io::stdin(), Channel::Client, out));
    tokio::select! {
        _ = from_client => {
            // What the client has still said is on its way; the closed side ends the server.
            let _ = tokio::time::timeout(GRACE, &mut writing).await;
            Ok(0)
        }
        result = pass(reader, tokio::io::sink()) => {
            result.context("the connection to the Aegis daemon broke off")?;
            anyhow::bail!("the server has ended, or the Aegis daemon ended the session");
        }
    }
}

/// The server is a child of this process.
async fn start(
    command: &[String],
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
) -> anyhow::Result<i32> {
    let (program, arguments) = command.split_first().context("there is no command after `--`")?;
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .with_context(|| format!("cannot start `{program}`"))?;
    let input = child.stdin.take().context("the server has no standard input")?;
    let output = child.stdout.take().context("the server has no standard output")?;
    let (reader, writer) = tokio::io::split(stream);
    let (out, frames) = mpsc::channel(256);
    let writing = tokio::spawn(write_frames(writer, frames));
    let from_server = tokio::spawn(read_lines(output, Channel::Server, out.clone()));
    let from_client = tokio::spawn(read_lines(tokio::io::stdin(), Channel::Client, out));
    let passing = pass(reader, input);
    let ended = tokio::select! {
        // The client has closed its side: the server's input closes with it, as `pass` is dropped.
        _ = from_client => None,
        status = child.wait() => Some(status?),
        result = passing => {
            // Without the daemon nothing is decided, so nothing passes.
            result.context("the connection to the Aegis daemon broke off")?;
            anyhow::bail!("the Aegis daemon ended the session");
        }
    };
    let code = match ended {
        Some(status) => {
            // What it still said is on its way to the client.
            let _ = tokio::time::timeout(GRACE, from_server).await;
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            status.code().unwrap_or(1)
        }
        None => stop(&mut child).await?,
    };
    writing.abort();
    Ok(code)
}

/// What the daemon released goes where it belongs.
async fn pass(
    mut from: impl AsyncRead + Unpin,
    mut server: impl AsyncWrite + Unpin,
) -> std::io::Result<()> {
    let mut client = tokio::io::stdout();
    while let Some(frame) = frame::read(&mut from).await? {
        let line = stdio::encode(&frame.payload);
        match frame.channel {
            Channel::Client => {
                client.write_all(&line).await?;
                client.flush().await?;
            }
            Channel::Server => {
                server.write_all(&line).await?;
                server.flush().await?;
            }
            Channel::ClientClosed | Channel::ServerClosed => return Ok(()),
        }
    }
    Ok(())
}
