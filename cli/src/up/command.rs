//! Servers that the daemon itself starts: those whose command an AgentUpstream registers.
//!
//! The command, its environment and its secrets are the daemon's. Whoever asks for the server gets
//! its lines and cannot choose another. The process gets nothing of the daemon's environment but
//! where programs and a home are, and ends with its client.

use std::{process::Stdio, sync::Arc};

use aegis_api::frame::{self, Channel, Frame};
use aegis_protocol::stdio::encode;
use aegis_resources::upstream::UpstreamCommand;
use aegis_sidecar::{Route, route::Caller};
use anyhow::Context as _;
use nix::unistd::User;
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt as _},
    process::{Child, ChildStdin, ChildStdout, Command},
    sync::mpsc,
};

use crate::child::{GRACE, read_lines, stop, write_frames};

/// What a server gets of the daemon's own environment.
const INHERITED: [&str; 5] = ["PATH", "HOME", "LANG", "TMPDIR", "TZ"];

/// A server that has started.
pub(super) struct Started {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
}

/// Starts the server.
pub(super) fn start(spec: &UpstreamCommand) -> anyhow::Result<Started> {
    let mut command = Command::new(&spec.program);
    command.args(&spec.args).env_clear();
    for name in INHERITED {
        if let Some(value) = std::env::var_os(name) {
            command.env(name, value);
        }
    }
    if let Some(user) = &spec.user {
        become_user(&mut command, user)?;
    }
    command.envs(&spec.env);
    if let Some(directory) = &spec.directory {
        command.current_dir(directory);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).kill_on_drop(true);
    let mut child = command.spawn().with_context(|| format!("cannot start `{}`", spec.program))?;
    let input = child.stdin.take().context("the server has no standard input")?;
    let output = child.stdout.take().context("the server has no standard output")?;
    Ok(Started { child, input, output })
}

/// Starts it as another user, with that user's group and home and no other groups.
fn become_user(command: &mut Command, named: &str) -> anyhow::Result<()> {
    anyhow::ensure!(
        nix::unistd::geteuid().is_root(),
        "`spec.command.user` is `{named}`, and only a daemon that runs as root can start a server as another user; remove it, or give the server a process of its own and register its URL"
    );
    let user = match named.parse::<u32>() {
        Ok(uid) => User::from_uid(uid.into()),
        Err(_) => User::from_name(named),
    };
    let user = user.with_context(|| format!("cannot look up user `{named}`"))?;
    let user = user.with_context(|| format!("there is no user `{named}` on this machine"))?;
    // The standard library gives up all other groups with the user.
    command.uid(user.uid.as_raw()).gid(user.gid.as_raw()).env("HOME", &user.dir);
    Ok(())
}

/// Serves one client of a server that has started, until either ends.
pub(super) async fn serve(
    route: Arc<Route>,
    caller: Caller,
    client: impl AsyncRead + AsyncWrite + Send + 'static,
    server: Started,
) {
    let Started { mut child, input, output } = server;
    let (near, far) = tokio::io::duplex(1 << 16);
    let (judged, judging) = tokio::io::split(near);
    let (from_client, to_client) = tokio::io::split(client);
    let (out, frames) = mpsc::channel(256);
    let deciding = tokio::spawn(aegis_sidecar::stdio::serve(route, caller, far));
    let writing = tokio::spawn(write_frames(judging, frames));
    let reading = tokio::spawn(read_lines(output, Channel::Server, out.clone()));
    tokio::select! {
        () = take_client(from_client, out) => {}
        () = pass(judged, to_client, input) => {}
        // What it still said is on its way, and its client sees the end.
        _ = child.wait() => {
            let _ = tokio::time::timeout(GRACE, reading).await;
        }
    }
    for task in [deciding, writing] {
        task.abort();
    }
    if let Err(error) = stop(&mut child).await {
        tracing::warn!(%error, "a server could not be stopped");
    }
}

/// The client's frames. One that claims to be the server's is somebody who wants to speak for it.
async fn take_client(mut client: impl AsyncRead + Unpin, out: mpsc::Sender<Frame>) {
    loop {
        match frame::read(&mut client).await {
            Ok(Some(frame)) if frame.channel == Channel::Client => {
                if out.send(frame).await.is_err() {
                    return;
                }
            }
            Ok(Some(Frame { channel: Channel::ClientClosed, .. }) | None) => return,
            Ok(Some(_)) => {
                tracing::warn!("a wrapper spoke for a server that is not its own");
                return;
            }
            Err(error) => {
                tracing::warn!(%error, "a wrapper sent something else than frames");
                return;
            }
        }
    }
}

/// What was decided goes where it belongs.
async fn pass(
    mut judged: impl AsyncRead + Unpin,
    mut client: impl AsyncWrite + Unpin,
    mut server: ChildStdin,
) {
    while let Ok(Some(Frame { channel, payload })) = frame::read(&mut judged).await {
        let passed = match channel {
            Channel::Client => frame::write(&mut client, channel, &payload).await,
            Channel::Server => match server.write_all(&encode(&payload)).await {
                Ok(()) => server.flush().await,
                error => error,
            },
            Channel::ClientClosed | Channel::ServerClosed => return,
        };
        if passed.is_err() {
            return;
        }
    }
}
