//! Whether the pod's traffic is redirected, asked from within the pod.
//!
//! Where a node agent redirects, the pod is there before its redirect. A container of Aegis' own waits
//! between the sidecar and everything of the author's: it connects to addresses that are nobody's, and
//! ends once the sidecar answers, which it does only if the connection was led to it.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    time::Duration,
};

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
/// What the sidecar says there.
const ANSWER: &[u8] = b"aegis\n";
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

/// Whether a connection was going where nobody is.
pub(super) fn is_asked(destination: SocketAddr) -> bool {
    NOBODY.contains(&destination)
}

/// Tells who waits that it was led here.
pub(super) async fn answer(mut stream: TcpStream) {
    // Whoever has gone need not be told.
    let _ = tokio::time::timeout(TRY, async {
        stream.write_all(ANSWER).await?;
        stream.shutdown().await
    })
    .await;
}

/// Waits until what this pod sends is redirected.
///
/// # Errors
/// When it is not within `patience`.
pub async fn await_redirect(patience: Duration) -> Result<(), NotRedirected> {
    redirected(&NOBODY, patience).await
}

async fn redirected(nobody: &[SocketAddr], patience: Duration) -> Result<(), NotRedirected> {
    let deadline = Instant::now() + patience;
    loop {
        for address in nobody {
            if matches!(tokio::time::timeout(TRY, said(*address)).await, Ok(Ok(said)) if said == ANSWER)
            {
                return Ok(());
            }
        }
        if Instant::now() >= deadline {
            return Err(NotRedirected(patience));
        }
        tokio::time::sleep(PAUSE).await;
    }
}

/// What is said at an address, as far as it matters.
async fn said(address: SocketAddr) -> std::io::Result<Vec<u8>> {
    let stream = TcpStream::connect(address).await?;
    let (mut said, most) = (Vec::new(), ANSWER.len() as u64 + 1);
    stream.take(most).read_to_end(&mut said).await?;
    Ok(said)
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

    #[tokio::test]
    async fn the_sidecars_answer_ends_the_waiting() {
        let (listener, address) = listening().await;
        tokio::spawn(async move { answer(listener.accept().await.unwrap().0).await });
        redirected(&[address], Duration::from_secs(20)).await.unwrap();
    }

    #[tokio::test]
    async fn somebody_elses_answer_does_not() {
        let (listener, address) = listening().await;
        tokio::spawn(async move {
            while let Ok((mut stream, _)) = listener.accept().await {
                let _ = stream.write_all(b"aegis\nand more").await;
            }
        });
        let error = redirected(&[address], Duration::ZERO).await.unwrap_err();
        assert!(error.to_string().contains("node agent"), "{error}");
    }
}
