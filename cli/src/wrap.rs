//! `aegis wrap`: a stdio MCP server behind Aegis.
//!
//! Holds two pairs of pipes and a connection to the daemon. Whatever the client says goes to the
//! daemon; to the server goes what comes back for it, and the other way round. Standard error is
//! the server's own. If the daemon goes away, nothing passes any more.

use std::process::Stdio;

use aegis_api::{
    Client,
    control::WrapHello,
    frame::{self, Channel, Frame},
};
use aegis_protocol::stdio::{self, LineDecoder};
use anyhow::Context as _;
use clap::Args as ClapArgs;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _},
    process::{Child, Command},
    sync::mpsc,
};

/// The longest line that is passed on. Bytes; the daemon's own limit is usually smaller.
const MAX_LINE: usize = 64 << 20;
/// How long a server has to end after its input was closed, and again after SIGTERM.
const GRACE: std::time::Duration = std::time::Duration::from_secs(2);

/// Run a stdio MCP server behind Aegis.
///
/// Put this in front of the server's command in your client's configuration.
#[derive(Debug, ClapArgs)]
#[command(
    after_help = "Example:\n  aegis wrap --server files -- npx -y @modelcontextprotocol/server-filesystem /srv/data"
)]
pub(crate) struct Args {
    /// The name under which policies know this server. Default: the command's file name
    #[arg(long)]
    server: Option<String>,
    /// The server's namespace
    #[arg(long, default_value = "default")]
    namespace: String,
    /// The server's command
    #[arg(last = true, required = true, num_args = 1..)]
    command: Vec<String>,
}

/// Runs the command until it or the client ends, and returns its exit code.
pub(crate) async fn run(args: Args, client: &Client) -> anyhow::Result<i32> {
    let (program, arguments) =
        args.command.split_first().context("there is no command after `--`")?;
    let server = args.server.clone().unwrap_or_else(|| {
        std::path::Path::new(program)
            .file_name()
            .map_or_else(|| program.clone(), |name| name.to_string_lossy().into_owned())
    });
    let hello = WrapHello { server, namespace: Some(args.namespace.clone()) };
    let stream = client.wrap(&hello).await?;
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
        // The client has closed its side: the server's input closes with it.
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

async fn stop(child: &mut Child) -> anyhow::Result<i32> {
    // `pass` was dropped by the select, and with it the server's standard input.
    if let Ok(status) = tokio::time::timeout(GRACE, child.wait()).await {
        return Ok(status?.code().unwrap_or(0));
    }
    if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
        let _ = nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(pid),
            nix::sys::signal::Signal::SIGTERM,
        );
    }
    if let Ok(status) = tokio::time::timeout(GRACE, child.wait()).await {
        return Ok(status?.code().unwrap_or(143));
    }
    child.kill().await?;
    Ok(137)
}

/// Lines of one side, each a frame to the daemon.
async fn read_lines(mut from: impl AsyncRead + Unpin, channel: Channel, out: mpsc::Sender<Frame>) {
    let mut decoder = LineDecoder::new(MAX_LINE);
    let mut buffer = vec![0; 64 * 1024];
    loop {
        let read = match from.read(&mut buffer).await {
            Ok(0) | Err(_) => return,
            Ok(read) => read,
        };
        decoder.push(buffer.get(..read).unwrap_or_default());
        loop {
            match decoder.next_line() {
                Ok(Some(line)) => {
                    if line.is_empty() {
                        continue;
                    }
                    if out.send(Frame { channel, payload: line.to_vec() }).await.is_err() {
                        return;
                    }
                }
                Ok(None) => break,
                Err(error) => {
                    // It goes to the daemon as it is refused there: nothing, with a record of it.
                    tracing::warn!(%error, "a line is withheld");
                }
            }
        }
    }
}

async fn write_frames(mut to: impl AsyncWrite + Unpin, mut frames: mpsc::Receiver<Frame>) {
    while let Some(frame) = frames.recv().await {
        if frame::write(&mut to, frame.channel, &frame.payload).await.is_err() {
            return;
        }
    }
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
