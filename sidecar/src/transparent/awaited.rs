//! Whether the pod's traffic is redirected, asked from within the pod.
//!
//! Where a node agent redirects, the pod is there before its redirect. A container of Aegis' own waits
//! between the sidecar and everything of the author's. It sends a nonce to addresses that are nobody's,
//! and asks the sidecar on the pod's loopback whether that came: it comes there only by the redirect.
//! Whoever has such an address routed to himself reads the nonce, and has no way to bring it to the
//! sidecar. What he answers is not listened to.

use std::{
    collections::VecDeque,
    io,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Router,
    extract::{Path, State},
    http::StatusCode,
    routing::get,
};
use parking_lot::Mutex;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::Instant,
};

/// Addresses for documentation (RFC 5737, RFC 3849), one of each version: a pod may have only one.
const NOBODY: [SocketAddr; 2] = [
    SocketAddr::new(IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1)), PORT),
    SocketAddr::new(IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1)), PORT),
];
/// That of `discard` (RFC 863): never one of the sidecar's own, to which nobody is led.
const PORT: u16 = 9;
/// How long a nonce is. Bytes, as hexadecimal digits.
const NONCE_BYTES: usize = 32;
/// How many nonces are remembered: only one is asked for.
const MAX_HEARD: usize = 16;
/// How long one connection is waited for, and how long between two.
const TRY: Duration = Duration::from_secs(1);
const PAUSE: Duration = Duration::from_millis(200);

/// Nothing redirects.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error(
    "nothing redirects what this pod sends into its sidecar, after {} s; is Aegis' node agent running on this node? The pod goes on once it does",
    .0.as_secs()
)]
pub struct NotRedirected(Duration);

/// What came to the sidecar by the redirect, of whoever waits for that. Clones share it.
#[derive(Clone, Debug, Default)]
pub struct Asked(Arc<Mutex<VecDeque<String>>>);

/// Whether a connection was going where nobody is.
pub(super) fn is_asked(destination: SocketAddr) -> bool {
    NOBODY.contains(&destination)
}

impl Asked {
    /// Takes a nonce from a connection that was led here.
    pub(super) async fn hear(&self, mut stream: TcpStream) {
        let mut nonce = [0; NONCE_BYTES];
        let read = tokio::time::timeout(TRY, stream.read_exact(&mut nonce)).await;
        if matches!(read, Ok(Ok(_)))
            && let Ok(nonce) = str::from_utf8(&nonce)
        {
            let mut heard = self.0.lock();
            heard.truncate(MAX_HEARD - 1);
            heard.push_front(nonce.to_owned());
        }
        // Closing tells that it was heard.
    }

    /// Whether a nonce came.
    #[must_use]
    pub fn came(&self, nonce: &str) -> bool {
        self.0.lock().iter().any(|heard| heard == nonce)
    }

    /// Tells whether a nonce came.
    pub(crate) fn router<S: Clone + Send + Sync + 'static>(&self) -> Router<S> {
        Router::new().route("/redirected/{nonce}", get(redirected)).with_state(self.clone())
    }
}

async fn redirected(State(asked): State<Asked>, Path(nonce): Path<String>) -> StatusCode {
    if asked.came(&nonce) { StatusCode::NO_CONTENT } else { StatusCode::NOT_FOUND }
}

/// Waits until what this pod sends is redirected to the sidecar that serves health at this port.
///
/// # Errors
/// When it is not within `patience`.
pub async fn await_redirect(health_port: u16, patience: Duration) -> Result<(), NotRedirected> {
    let sidecar = SocketAddr::from((Ipv4Addr::LOCALHOST, health_port));
    is_redirected(&NOBODY, sidecar, patience).await
}

async fn is_redirected(
    nobody: &[SocketAddr],
    sidecar: SocketAddr,
    patience: Duration,
) -> Result<(), NotRedirected> {
    let deadline = Instant::now() + patience;
    loop {
        for address in nobody {
            let tried = tokio::time::timeout(TRY, came_through(*address, sidecar)).await;
            if matches!(tried, Ok(Ok(true))) {
                return Ok(());
            }
        }
        if Instant::now() >= deadline {
            return Err(NotRedirected(patience));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// Whether what is sent to an address comes to the sidecar.
async fn came_through(address: SocketAddr, sidecar: SocketAddr) -> io::Result<bool> {
    let nonce = uuid::Uuid::new_v4().simple().to_string();
    let mut stream = TcpStream::connect(address).await?;
    stream.write_all(nonce.as_bytes()).await?;
    // Until it is closed: then it was heard, if it was.
    let mut nothing = [0];
    let _ = stream.read(&mut nothing).await?;
    let mut asking = TcpStream::connect(sidecar).await?;
    let question =
        format!("GET /redirected/{nonce} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    asking.write_all(question.as_bytes()).await?;
    let mut status = [0; b"HTTP/1.1 204".len()];
    asking.read_exact(&mut status).await?;
    Ok(status == *b"HTTP/1.1 204")
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;

    async fn listening() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    /// The part of a sidecar that answers on loopback.
    async fn sidecar() -> (Asked, SocketAddr) {
        let ((listener, address), asked) = (listening().await, Asked::default());
        let router = asked.router();
        tokio::spawn(async move { axum::serve(listener, router).await });
        (asked, address)
    }

    #[tokio::test]
    async fn what_comes_through_the_redirect_ends_the_waiting() {
        let ((asked, sidecar), (listener, address)) = (sidecar().await, listening().await);
        tokio::spawn(async move { asked.hear(listener.accept().await.unwrap().0).await });
        is_redirected(&[address], sidecar, Duration::from_secs(20)).await.unwrap();
    }

    /// Whoever has the address knows the nonce and the words.
    #[tokio::test]
    async fn somebody_elses_answer_does_not() {
        let ((_, sidecar), (listener, address)) = (sidecar().await, listening().await);
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut nonce = [0; NONCE_BYTES];
                let _ = stream.read_exact(&mut nonce).await;
                let _ = stream.write_all(&nonce).await;
                let _ = stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await;
            }
        });
        let error = is_redirected(&[address], sidecar, Duration::ZERO).await.unwrap_err();
        assert!(error.to_string().contains("node agent"), "{error}");
    }

    #[tokio::test]
    async fn only_so_many_nonces_are_remembered() {
        let (asked, (listener, address)) = (Asked::default(), listening().await);
        for number in 0..MAX_HEARD + 2 {
            let mut stream = TcpStream::connect(address).await.unwrap();
            stream.write_all(format!("{number:032}").as_bytes()).await.unwrap();
            asked.hear(listener.accept().await.unwrap().0).await;
        }
        let heard = asked.0.lock();
        assert_eq!(
            (heard.len(), heard[0].as_str()),
            (MAX_HEARD, &*format!("{:032}", MAX_HEARD + 1))
        );
    }
}
