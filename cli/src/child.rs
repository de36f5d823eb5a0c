//! The process of an MCP server on standard streams: its lines as frames, and its orderly end.

use aegis_api::frame::{self, Channel, Frame};
use aegis_protocol::stdio::LineDecoder;
use tokio::{
    io::{AsyncRead, AsyncReadExt as _, AsyncWrite},
    process::Child,
    sync::mpsc,
};

/// The longest line that is passed on. Bytes; the daemon's own limit is usually smaller.
const MAX_LINE: usize = 64 << 20;
/// How long a server has to end after its input was closed, and again after SIGTERM.
pub(crate) const GRACE: std::time::Duration = std::time::Duration::from_secs(2);

/// Ends a server whose standard input is closed, and gives its exit code.
pub(crate) async fn stop(child: &mut Child) -> anyhow::Result<i32> {
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

/// Lines of one side, each a frame.
pub(crate) async fn read_lines(
    mut from: impl AsyncRead + Unpin,
    channel: Channel,
    out: mpsc::Sender<Frame>,
) {
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

/// Frames to one side, for as long as it takes them.
pub(crate) async fn write_frames(
    mut to: impl AsyncWrite + Unpin,
    mut frames: mpsc::Receiver<Frame>,
) {
    while let Some(frame) = frames.recv().await {
        if frame::write(&mut to, frame.channel, &frame.payload).await.is_err() {
            return;
        }
    }
}
