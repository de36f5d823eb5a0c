//! What comes to the application.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use aegis_core::decision::Reason;
use aegis_identity::tls::peer_identity;
use aegis_mesh::PeerBound;
use bytes::Bytes;
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use rustls::pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::{
    Transparent, answer, attested, health, plain, server_name,
    sort::{Sorted, Speaks, sort},
    spoken::{Spoken, spoken},
    told,
};
use crate::{
    attest::Attested,
    direct::{self, Direct, MESH_PROTOCOL},
    grant,
    inbound::{Body, HEAD_BYTES, boxed, governed, serve_http},
};

/// How large the head of their requests may be. Bytes, the least that the HTTP library takes.
const SMALL_HEAD_BYTES: usize = 8 * 1024;
/// How long such a connection may take with all it asks; the kubelet opens one for each probe.
const SHORT_LIFE: Duration = Duration::from_secs(15);
/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);

pub(super) async fn connection(caught: Arc<Transparent>, stream: TcpStream) {
    let Some(destination) = caught.destination(&stream) else {
        return drop(caught.refuse_stranger(Reason::HostRefused));
    };
    let Ok(from) = stream.peer_addr() else { return };
    match spoken(&stream).await {
        Spoken::Tls => peer(caught, destination, stream).await,
        Spoken::Http => {
            let Some(_place) = caught.unproven.take(from.ip()) else {
                return drop(caught.refuse_stranger(Reason::Overloaded));
            };
            let drain = caught.shared.drain.clone();
            let answer = move |request| {
                let caught = Arc::clone(&caught);
                async move { caught.probed(destination, request).await }
            };
            let serving = serve_http(stream, SMALL_HEAD_BYTES, drain, answer);
            if tokio::time::timeout(SHORT_LIFE, serving).await.is_err() {
                tracing::debug!("who has proven nothing was connected for too long");
            }
        }
        // A probe of TCP: that somebody accepts is all it asks.
        Spoken::Closed => {}
        Spoken::Http2 if caught.ports.probes_grpc(destination.port()) => {
            let Some(_place) = caught.unproven.take(from.ip()) else {
                return drop(caught.refuse_stranger(Reason::Overloaded));
            };
            health::probe(caught, destination, stream).await;
        }
        Spoken::Http2 | Spoken::Other => drop(caught.refuse_stranger(Reason::IdentityMissing)),
    }
}

/// A connection of another sidecar.
async fn peer(caught: Arc<Transparent>, destination: SocketAddr, stream: TcpStream) {
    let acceptor = TlsAcceptor::from(Arc::clone(&caught.server));
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::info!(%error, "whoever connected is no sidecar of this trust domain");
            return drop(caught.refuse_stranger(Reason::IdentityMissing));
        }
        Err(_) => return,
    };
    let (_, session) = stream.get_ref();
    if session.alpn_protocol() != Some(MESH_PROTOCOL) {
        return drop(caught.refuse_stranger(Reason::IdentityMissing));
    }
    let Ok(peer) = peer_identity(session.peer_certificates()) else { return };
    let leaf = session.peer_certificates().and_then(<[_]>::first).cloned();
    let (Some(caller), Some(leaf)) = (attested(&peer), leaf) else {
        return drop(caught.refuse_stranger(Reason::IdentityUnknown));
    };
    let caller = Arc::new((caller, leaf));
    let revocations = caught.own.revocations.clone();
    let bound = PeerBound::new(stream, peer, revocations, caught.clock());
    let drain = caught.shared.drain.clone();
    let answer = move |request| {
        let (caught, caller) = (Arc::clone(&caught), Arc::clone(&caller));
        async move { caught.inbound(destination, &caller, request).await }
    };
    serve_http(bound, HEAD_BYTES, drain, answer).await;
}

impl Transparent {
    /// Tells another sidecar which port of the application its connection leads to.
    fn leads_to(&self, destination: SocketAddr) -> Response<Body> {
        let mut response = boxed(Response::new(Full::new(Bytes::new())));
        *response.status_mut() = StatusCode::NO_CONTENT;
        let headers = response.headers_mut();
        headers.insert(direct::PORT.clone(), destination.port().into());
        if self.speaks(destination.port()) == Speaks::A2a {
            headers.insert(direct::SPEAKS.clone(), HeaderValue::from_static(direct::A2A));
        }
        response
    }

    /// A request of another agent, whose connection has shown this leaf.
    async fn inbound(
        self: &Arc<Self>,
        destination: SocketAddr,
        (caller, leaf): &(Attested, CertificateDer<'static>),
        request: Request<Incoming>,
    ) -> Response<Body> {
        let agent = self.own.agent.clone();
        let grant = grant::shown(request.headers(), leaf, &agent, (self.clock())());
        let refuse = |reason: Reason| async move {
            let told = told(destination, "http/1");
            let name = server_name(&caller.id, &self.own.agent);
            self.refuse(caller, &name, reason, told).await
        };
        // The one question between sidecars: where this connection leads.
        if *request.method() == Method::OPTIONS && request.uri().path() == "*" {
            return self.leads_to(destination);
        }
        // Whoever approved this has approved it for a port.
        let meant = request.headers().contains_key(&direct::PORT);
        let elsewhere = meant && direct::port_in(request.headers()) != Some(destination.port());
        if request.uri().authority().is_some() || elsewhere {
            let mut refused = refuse(Reason::HostRefused).await;
            *refused.status_mut() = StatusCode::MISDIRECTED_REQUEST;
            return refused;
        }
        let speaks = self.speaks(destination.port());
        let sorted = match sort(request, speaks).await {
            Ok(sorted) => sorted,
            Err(reason) => return refuse(reason).await,
        };
        let direct = Direct::Plain(destination);
        match sorted {
            Sorted::Mcp(request) | Sorted::A2a(request) => {
                match self.route(&caller.id, &agent, destination, (&direct, speaks), &request) {
                    Ok(route) => governed(&route, caller, grant, request).await,
                    Err(reason) => refuse(reason).await,
                }
            }
            Sorted::Plain(request) => {
                let caller = (caller, grant.as_deref());
                plain::exchange(self, caller, &agent, &direct, request).await
            }
        }
    }

    /// A request of somebody who has proven nothing: what the kubelet asks is answered with the
    /// application's status and no more, everything else is refused.
    async fn probed(
        self: &Arc<Self>,
        destination: SocketAddr,
        request: Request<Incoming>,
    ) -> Response<Body> {
        let asked = request.uri().path_and_query().map(|path| path.as_str());
        let declared = self.ports.probes.iter().any(|probe| {
            probe.port == destination.port()
                && probe.path.is_some()
                && probe.path.as_deref() == asked
        });
        let asks = *request.method() == Method::GET && request.body().is_end_stream();
        if !declared || !asks || request.uri().authority().is_some() {
            return self.refuse_stranger(Reason::IdentityMissing);
        }
        match plain::probe(destination, &request).await {
            Ok(response) => response,
            Err(reason) => answer(reason),
        }
    }
}
