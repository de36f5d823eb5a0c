//! What comes to the application.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use aegis_core::decision::Reason;
use aegis_identity::tls::{peer_identity, showing};
use aegis_kernel::Principal;
use aegis_mesh::PeerBound;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::{Body as _, Incoming};
use rustls::pki_types::CertificateDer;
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;

use super::{
    Transparent, answer, attested, health, plain, server_name,
    sort::{Sorted, Speaks, sort},
    spoken::{Spoken, spoken},
};
use crate::{
    attest::Attested,
    delegation::Carried,
    direct::{self, Direct},
    grant,
    inbound::{Body, HEAD_BYTES, boxed, governed, serve_http},
    manifest::{Met, Unfit},
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

/// Who has connected: another sidecar.
struct Peer {
    attested: Attested,
    /// What it has shown.
    leaf: CertificateDer<'static>,
    met: Met,
}

/// The caller of a request with what came along, or why it is refused.
type Standing = Result<(Principal, Arc<Carried>), Unfit>;

/// A connection of another sidecar.
async fn peer(caught: Arc<Transparent>, destination: SocketAddr, stream: TcpStream) {
    let Ok(own) = caught.own.source.current() else {
        return drop(caught.refuse_stranger(Reason::IdentityExpired));
    };
    // What signs the manifest is what the connection shows.
    let acceptor = TlsAcceptor::from(Arc::new(showing(&caught.server, &own)));
    let mut stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::info!(%error, "whoever connected is no sidecar of this trust domain");
            return drop(caught.refuse_stranger(Reason::IdentityMissing));
        }
        Err(_) => return,
    };
    let (_, session) = stream.get_ref();
    if !caught.manifests.speaks(session.alpn_protocol()) {
        return drop(caught.refuse_stranger(Reason::IdentityMissing));
    }
    let Ok(peer) = peer_identity(session.peer_certificates()) else { return };
    let leaf = session.peer_certificates().and_then(<[_]>::first).cloned();
    let (Some(attested), Some(leaf)) = (attested(&peer), leaf) else {
        return drop(caught.refuse_stranger(Reason::IdentityUnknown));
    };
    let welcoming = caught.manifests.welcome(&mut stream, &own.svid);
    let met = match tokio::time::timeout(HANDSHAKE, welcoming).await {
        Ok(Ok(met)) => met,
        Ok(Err(problem)) => {
            tracing::warn!(peer = %attested.id, %problem, "a peer is refused");
            return drop(caught.refuse_peer(&attested, destination, problem.into()).await);
        }
        Err(_) => return,
    };
    let caller = Arc::new(Peer { attested, leaf, met });
    let revocations = caught.own.revocations.clone();
    let bound = PeerBound::new(stream, peer, revocations, caught.clock());
    let drain = caught.shared.drain.clone();
    let answer = move |request| {
        let (caught, caller) = (Arc::clone(&caught), Arc::clone(&caller));
        async move {
            let response = caught.inbound(destination, &caller, request).await;
            // What is shown now is shown on the next connection.
            if caught.manifests.is_current(&caller.met) { response } else { closing(response) }
        }
    };
    serve_http(bound, HEAD_BYTES, drain, answer).await;
}

/// The last answer on its connection.
fn closing(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    response
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

    /// Who a peer's request is judged as, by what it has shown with the connection and the request; or why
    /// it is nobody.
    fn standing(&self, peer: &Peer, headers: &HeaderMap) -> Result<Standing, Reason> {
        let principal = self.principal(&peer.attested)?;
        let shown = self.manifests.standing(&peer.met, principal);
        Ok(shown.and_then(|principal| self.delegations.coming_in(headers, principal)))
    }

    /// A request of another agent, whose connection has shown this leaf.
    async fn inbound(
        self: &Arc<Self>,
        destination: SocketAddr,
        peer: &Peer,
        request: Request<Incoming>,
    ) -> Response<Body> {
        let caller = &peer.attested;
        let agent = self.own.agent.clone();
        let grant = grant::shown(request.headers(), &peer.leaf, &agent, (self.clock())());
        let refuse =
            |reason: Reason| self.refuse_peer(caller, destination, Unfit { reason, problem: None });
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
        let (principal, carried) = match self.standing(peer, request.headers()) {
            Ok(Ok((principal, carried))) => (Ok(principal), carried),
            Ok(Err(unfit)) => {
                let refused = self.refuse_peer(caller, destination, unfit).await;
                // It is asked for another manifest on its next connection.
                let anew = unfit.reason == Reason::ManifestRefused;
                return if anew { closing(refused) } else { refused };
            }
            Err(unknown) => (Err(unknown), Arc::default()),
        };
        let speaks = self.speaks(destination.port());
        let sorted = match sort(request, speaks).await {
            Ok(sorted) => sorted,
            Err(reason) => return refuse(reason).await,
        };
        let direct = Direct::Plain(destination);
        match sorted {
            Sorted::Mcp(request) | Sorted::A2a(request) => {
                match self.route(&caller.id, &agent, destination, (&direct, speaks), &request) {
                    Ok(route) => governed(&route, principal, (grant, carried), request).await,
                    Err(reason) => refuse(reason).await,
                }
            }
            Sorted::Plain(request) => {
                let told = (grant.as_deref(), &carried);
                match principal {
                    Ok(caller) => {
                        plain::exchange(self, caller, told, &agent, &direct, request).await
                    }
                    Err(reason) => self.refuse_stranger(reason),
                }
            }
        }
    }

    /// Records that a request of a peer was refused before it was judged, and answers it.
    async fn refuse_peer(
        &self,
        peer: &Attested,
        destination: SocketAddr,
        unfit: Unfit,
    ) -> Response<Body> {
        let name = server_name(&peer.id, &self.own.agent);
        self.refuse_unfit(peer, &name, destination, unfit).await
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
