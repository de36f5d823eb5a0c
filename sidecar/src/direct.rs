//! Connections to an address that was caught, rather than to a URL: within the pod in the clear, to
//! another pod over mutual TLS.
//!
//! Whoever answers elsewhere has to show the SVID that is expected, and to speak to sidecars: what
//! it says is said by its sidecar. A connection ends with the peer's SVID, in the middle of a call if
//! there is one; so it is given no new call for some time before.

use std::{
    io,
    net::SocketAddr,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll},
    time::Duration,
};

use aegis_core::AgentId;
use aegis_identity::{
    Identity, PeerIdentity, Revocations, SvidSource,
    tls::{peer_identity, presenting},
};
use aegis_mesh::PeerBound;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, Uri, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::{
    client::legacy::{
        Client, Error,
        connect::{Connected, Connection, capture_connection},
    },
    rt::TokioIo,
};
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::TcpStream,
    sync::watch,
    time::Instant,
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use crate::{
    delegation::Carried,
    grant::{self, Told},
    manifest::{Manifests, Met},
};

/// Which port of the application a connection leads to: told by whose sidecar is asked `OPTIONS *`, and
/// said with each request, so that none is taken at another. A Service may have another number for it.
pub(crate) static PORT: HeaderName = HeaderName::from_static("x-aegis-port");
/// Told with it: what the port is declared to speak, where that is A2A.
pub(crate) static SPEAKS: HeaderName = HeaderName::from_static("x-aegis-speaks");
/// The one word of that.
pub(crate) const A2A: &str = "a2a";
/// How long a connection may take, TLS included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How an address is reached.
#[derive(Clone)]
pub(crate) enum Direct {
    /// Within this pod.
    Plain(SocketAddr),
    /// Through the sidecar of another pod.
    Mesh(SocketAddr, Arc<Mesh>),
}

/// How other sidecars are recognised.
pub(crate) struct Mesh {
    /// Whom this connection accepts; its protocols are those between sidecars alone.
    pub(crate) config: ClientConfig,
    /// What is shown there first.
    pub(crate) manifests: Arc<Manifests>,
    /// Who is revoked.
    pub(crate) revocations: watch::Receiver<Arc<Revocations>>,
    /// Whose SVIDs are shown, and so sign; and the time.
    pub(crate) source: Arc<SvidSource>,
    /// The one agent that is accepted, if it is one: grants are for nobody else.
    pub(crate) audience: Option<AgentId>,
    /// The port of that agent's application to which the connections lead.
    pub(crate) port: Option<u16>,
    /// Whether A2A is declared there.
    pub(crate) a2a: bool,
}

/// What the sidecar of another pod says of where a connection leads.
pub(crate) struct Answered {
    pub(crate) peer: Option<PeerIdentity>,
    /// The port of its application.
    pub(crate) port: u16,
    /// Whether that is declared to speak A2A.
    pub(crate) a2a: bool,
}

/// An established connection.
pub(crate) enum DirectStream {
    /// In the clear.
    Plain(TcpStream),
    /// To a peer.
    Mesh(Box<PeerBound<TlsStream<TcpStream>>>, Retirement),
}

/// When a connection is given no further call.
#[derive(Clone)]
pub(crate) struct Retirement {
    at: Instant,
    shown: Arc<(Arc<Manifests>, Met)>,
    awaited: Arc<AtomicBool>,
}

impl Retirement {
    /// After three quarters of what is left. The last quarter is for calls under way: a renewal at half
    /// of a lifetime leaves them an eighth of it.
    fn after(left: Duration, manifests: Arc<Manifests>, met: Met) -> Self {
        let shown = Arc::new((manifests, met));
        Self { at: Instant::now() + left / 4 * 3, shown, awaited: Arc::default() }
    }

    /// Resolves then, or once this side has another manifest to show.
    async fn is_due(&self) {
        let (manifests, met) = &*self.shown;
        tokio::select! {
            () = tokio::time::sleep_until(self.at) => {}
            () = manifests.outdated(met) => {}
        }
    }
}

impl Direct {
    /// Connects. The peer is who answered, where that had to be proven.
    pub(crate) async fn connect(&self) -> io::Result<(DirectStream, Option<PeerIdentity>)> {
        self.connect_as(None).await
    }

    /// Connects, showing this very SVID if one is given.
    async fn connect_as(
        &self,
        identity: Option<&Identity>,
    ) -> io::Result<(DirectStream, Option<PeerIdentity>)> {
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "connecting took too long");
        tokio::time::timeout(CONNECT_TIMEOUT, self.connecting(identity)).await.map_err(late)?
    }

    /// Connects, and asks the sidecar there which port of its application that leads to. One that does
    /// not say is taken by its word with each request.
    pub(crate) async fn meet(&self) -> io::Result<Answered> {
        let (Self::Plain(address) | Self::Mesh(address, _)) = self;
        let asking = async {
            let (stream, peer) = self.connecting(None).await?;
            let mut request = Request::new(Full::new(Bytes::new()));
            *request.method_mut() = Method::OPTIONS;
            *request.uri_mut() = Uri::from_static("*");
            request.headers_mut().insert(header::HOST, HeaderValue::from_static("aegis"));
            let response = send_on(stream, request).await?;
            let headers = response.headers();
            let port = port_in(headers).unwrap_or(address.port());
            let a2a = headers.get(&SPEAKS).is_some_and(|speaks| speaks == A2A);
            Ok(Answered { peer, port, a2a })
        };
        let late = |_| io::Error::new(io::ErrorKind::TimedOut, "the sidecar there is too slow");
        tokio::time::timeout(CONNECT_TIMEOUT, asking).await.map_err(late)?
    }

    /// The port of the application that it leads to.
    pub(crate) fn port(&self) -> u16 {
        match self {
            Self::Plain(address) => address.port(),
            Self::Mesh(address, mesh) => mesh.port.unwrap_or(address.port()),
        }
    }

    /// Says in a request which port it is for.
    pub(crate) fn address(&self, headers: &mut HeaderMap) {
        if let Self::Mesh(_, mesh) = self
            && let Some(port) = mesh.port
        {
            headers.insert(PORT.clone(), port.into());
        }
    }

    /// Tells whoever gets a request on whose behalf it is sent, and what is lent with it.
    ///
    /// # Errors
    /// When that cannot be told: the request would be another one.
    pub(crate) fn tell(&self, headers: &mut HeaderMap, carried: &Carried) -> io::Result<()> {
        match self {
            Self::Plain(_) => carried.tell_application(headers),
            Self::Mesh(_, mesh) if carried.is_for_peers() => {
                let callee = mesh.audience.as_ref();
                let callee = callee.ok_or_else(|| io::Error::other("nobody is called"))?;
                let own = mesh.source.current().map_err(io::Error::other)?;
                carried.tell_peer(headers, &own, callee, (mesh.source.clock())())
            }
            Self::Mesh(..) => Ok(()),
        }
    }

    /// Sends one request on a connection of its own, telling the other sidecar of the approval that
    /// was used for it.
    pub(crate) async fn send(
        &self,
        mut request: Request<Full<Bytes>>,
        told: &Told,
    ) -> io::Result<Response<Incoming>> {
        let mut identity = None;
        self.tell(request.headers_mut(), &told.carried)?;
        if let Self::Mesh(_, mesh) = self
            && let Some(audience) = mesh.audience.as_ref().filter(|_| told.is_granted())
        {
            let own = mesh.source.current().map_err(io::Error::other)?;
            if let Some(header) = told.header(&own, audience, (mesh.source.clock())()) {
                request.headers_mut().insert(grant::HEADER.clone(), header);
            }
            identity = Some(own);
        }
        self.address(request.headers_mut());
        let (stream, _) = self.connect_as(identity.as_deref()).await?;
        send_on(stream, request).await
    }

    async fn connecting(
        &self,
        identity: Option<&Identity>,
    ) -> io::Result<(DirectStream, Option<PeerIdentity>)> {
        let (Self::Plain(address) | Self::Mesh(address, _)) = self;
        let stream = TcpStream::connect(address).await?;
        stream.set_nodelay(true)?;
        let Self::Mesh(_, mesh) = self else { return Ok((DirectStream::Plain(stream), None)) };
        // The verifier looks at the SPIFFE ID; SNI is off.
        let name = ServerName::try_from("aegis").map_err(io::Error::other)?;
        let current = mesh.source.current().map_err(io::Error::other)?;
        // What signs the manifest is what the connection shows.
        let own = identity.unwrap_or(&current);
        let config = Arc::new(presenting(&mesh.config, own));
        let mut stream = TlsConnector::from(config).connect(name, stream).await?;
        if !mesh.manifests.speaks(stream.get_ref().1.alpn_protocol()) {
            return Err(io::Error::other("who answers has an SVID and is no sidecar"));
        }
        let met = mesh.manifests.greet(&mut stream, &own.svid).await?;
        let peer =
            peer_identity(stream.get_ref().1.peer_certificates()).map_err(io::Error::other)?;
        let clock = mesh.source.clock();
        let until = own.svid.not_after().min(peer.not_after).min(met.until());
        let manifests = Arc::clone(&mesh.manifests);
        let retirement = Retirement::after(until.since(clock()), manifests, met);
        let bound = PeerBound::new(stream, peer.clone(), mesh.revocations.clone(), clock);
        Ok((DirectStream::Mesh(Box::new(bound), retirement), Some(peer)))
    }
}

/// Sends one request on a connection, and nothing after it.
async fn send_on(
    stream: DirectStream,
    request: Request<Full<Bytes>>,
) -> io::Result<Response<Incoming>> {
    let connecting = hyper::client::conn::http1::handshake(TokioIo::new(stream));
    let (mut sender, connection) = connecting.await.map_err(io::Error::other)?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "a connection ended early");
        }
    });
    sender.send_request(request).await.map_err(io::Error::other)
}

/// The port that a header names.
pub(crate) fn port_in(headers: &HeaderMap) -> Option<u16> {
    headers.get(&PORT)?.to_str().ok()?.parse().ok()
}

/// Sends `request` on a connection that is kept, or on a new one, and sees to it that the connection is
/// given no call after its retirement.
///
/// # Errors
/// Why there is no answer.
pub(crate) async fn ask(
    client: &Client<Direct, Full<Bytes>>,
    mut request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, Error> {
    let connection = capture_connection(&mut request);
    let mut response = client.request(request).await?;
    if let Some(retirement) = response.extensions_mut().remove::<Retirement>()
        && !retirement.awaited.swap(true, Ordering::Relaxed)
    {
        tokio::spawn(async move {
            retirement.is_due().await;
            if let Some(connected) = connection.connection_metadata().as_ref() {
                connected.poison();
            }
        });
    }
    Ok(response)
}

impl tower::Service<Uri> for Direct {
    type Response = TokioIo<DirectStream>;
    type Error = io::Error;
    type Future = futures::future::BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let direct = self.clone();
        Box::pin(async move { Ok(TokioIo::new(direct.connect().await?.0)) })
    }
}

impl Connection for DirectStream {
    fn connected(&self) -> Connected {
        match self {
            Self::Plain(_) => Connected::new(),
            Self::Mesh(_, retirement) => Connected::new().extra(retirement.clone()),
        }
    }
}

impl AsyncRead for DirectStream {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(cx, buffer),
            Self::Mesh(stream, _) => Pin::new(stream).poll_read(cx, buffer),
        }
    }
}

impl AsyncWrite for DirectStream {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(cx, bytes),
            Self::Mesh(stream, _) => Pin::new(stream).poll_write(cx, bytes),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write_vectored(cx, bytes),
            Self::Mesh(stream, _) => Pin::new(stream).poll_write_vectored(cx, bytes),
        }
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(cx),
            Self::Mesh(stream, _) => Pin::new(stream).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Mesh(stream, _) => Pin::new(stream).poll_shutdown(cx),
        }
    }
}
