//! Accepting connections: one loop for every listener.

use std::{net::SocketAddr, time::Duration};

use tokio::net::{TcpListener, TcpStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

/// The wait after a failure to accept: out of descriptors, most likely. Whoever is connected goes on.
const RETRY: Duration = Duration::from_millis(50);

/// Gives each connection to `serve` until `drain`, and returns when all of them have ended. Beyond
/// `room` open ones, `full` is told and the connection closed.
pub(crate) async fn accept<F>(
    listener: TcpListener,
    drain: &CancellationToken,
    room: usize,
    full: impl Fn(),
    serve: impl Fn(TcpStream, SocketAddr) -> F,
) where
    F: Future<Output = ()> + Send + 'static,
{
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = drain.cancelled() => break,
        };
        match accepted {
            Ok((stream, remote)) if connections.len() < room => {
                let _ = stream.set_nodelay(true);
                connections.spawn(serve(stream, remote));
            }
            Ok(_) => full(),
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}
