//! The one accept loop of those who answer over TLS.
//!
//! Handshakes are bounded in time, accepting goes on after an error, and a stop lets open requests
//! end for a while. A peer with an SVID is told to the service, and its connection ends with it.

use std::{convert::Infallible, error::Error, fmt, sync::Arc, time::Duration};

use aegis_identity::{Clock, PeerIdentity, Revocations, tls::peer_identity};
use http::{Request, Response};
use hyper::body::{Body, Incoming};
use hyper_util::{
    rt::{TokioExecutor, TokioIo, TokioTimer},
    server::conn::auto,
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, TcpStream},
    sync::watch,
};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::PeerBound;

/// How long a handshake, and the head of a request, may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// The wait after a connection could not be accepted, which is mostly for want of descriptors.
const RETRY: Duration = Duration::from_millis(50);

/// What ends the connections of peers that show an SVID.
#[derive(Clone)]
pub struct Peers {
    /// Who is revoked.
    pub revocations: watch::Receiver<Arc<Revocations>>,
    /// Tells when SVIDs expire.
    pub clock: Clock,
}

impl fmt::Debug for Peers {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Peers")
    }
}

/// Serves HTTP/1.1 and HTTP/2 over TLS until `stop`; then lets open requests end for `drain`. Where
/// `config` names `h2` alone as its protocol, whoever negotiates none gets HTTP/2 too.
///
/// With `peers`, `config` has to verify its clients: each request carries its peer's
/// [`PeerIdentity`] as an extension, and a connection ends with its peer's SVID.
pub async fn serve_tls<S, B>(
    listener: TcpListener,
    config: ServerConfig,
    peers: Option<Peers>,
    service: S,
    drain: Duration,
    stop: CancellationToken,
) where
    S: tower::Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let (acceptor, peers) = (acceptor.clone(), peers.clone());
                tasks.spawn(connection(stream, acceptor, peers, service.clone(), stop.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(RETRY).await;
            }
        }
    }
    tasks.close();
    // Whatever has not ended by then ends with the process.
    let _ = tokio::time::timeout(drain, tasks.wait()).await;
}

async fn connection<S, B>(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    peers: Option<Peers>,
    service: S,
    stop: CancellationToken,
) where
    S: tower::Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(PATIENCE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::info!(%error, "a client was turned away in its TLS handshake");
            return;
        }
        Err(_) => return,
    };
    let http2_only = acceptor.config().alpn_protocols == [b"h2"];
    let Some(Peers { revocations, clock }) = peers else {
        return answer(stream, None, http2_only, service, stop).await;
    };
    match peer_identity(stream.get_ref().1.peer_certificates()) {
        Ok(peer) => {
            let bound = PeerBound::new(stream, peer.clone(), revocations, clock);
            answer(bound, Some(peer), http2_only, service, stop).await;
        }
        Err(error) => tracing::warn!(%error, "a client without an SVID was turned away"),
    }
}

async fn answer<T, S, B>(
    stream: T,
    peer: Option<PeerIdentity>,
    http2_only: bool,
    service: S,
    stop: CancellationToken,
) where
    T: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    S: tower::Service<Request<Incoming>, Response = Response<B>, Error = Infallible>
        + Clone
        + Send
        + 'static,
    S::Future: Send,
    B: Body<Data: Send, Error: Into<Box<dyn Error + Send + Sync>>> + Send + 'static,
{
    let service = tower::service_fn(move |mut request: Request<Incoming>| {
        if let Some(peer) = &peer {
            request.extensions_mut().insert(peer.clone());
        }
        tower::ServiceExt::oneshot(service.clone(), request)
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(PATIENCE);
    builder.http2().timer(TokioTimer::new()).keep_alive_interval(PATIENCE);
    let builder = if http2_only { builder.http2_only() } else { builder };
    let serving = builder.serve_connection(TokioIo::new(stream), TowerToHyperService::new(service));
    tokio::pin!(serving);
    tokio::select! {
        _ = serving.as_mut() => return,
        () = stop.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    let _ = serving.await;
}
