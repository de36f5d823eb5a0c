//! A connection that ends with its peer's SVID.

use std::{
    fmt, io,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
};

use aegis_identity::{Clock, PeerIdentity, Revocations, VerifyError, tls::peer_ended};
use futures::future::BoxFuture;
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    sync::watch,
};

/// A stream that fails as soon as its peer is revoked or its peer's SVID has expired: in the middle
/// of a message, and while nothing is sent.
pub struct PeerBound<S> {
    stream: S,
    ended: BoxFuture<'static, VerifyError>,
    why: Option<VerifyError>,
}

impl<S> fmt::Debug for PeerBound<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PeerBound").field("why", &self.why).finish_non_exhaustive()
    }
}

impl<S> PeerBound<S> {
    /// Binds an established stream to its peer.
    pub fn new(
        stream: S,
        peer: PeerIdentity,
        revocations: watch::Receiver<Arc<Revocations>>,
        clock: Clock,
    ) -> Self {
        let ended = Box::pin(async move { peer_ended(&peer, revocations, clock).await });
        Self { stream, ended, why: None }
    }

    /// The stream itself.
    pub const fn get_ref(&self) -> &S {
        &self.stream
    }

    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.why.is_none()
            && let Poll::Ready(why) = self.ended.as_mut().poll(cx)
        {
            tracing::info!(%why, "a connection ends with its peer's SVID");
            self.why = Some(why);
        }
        match &self.why {
            None => Ok(()),
            Some(why) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, why.clone())),
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for PeerBound<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for PeerBound<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        // A stream whose peer has ended may still be closed.
        ready!(Pin::new(&mut self.stream).poll_shutdown(cx))?;
        Poll::Ready(Ok(()))
    }
}
