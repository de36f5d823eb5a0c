//! Transparent mode: what nftables redirects within a pod. The application connects as if nobody
//! were between; each connection is taken to where it was going, or nowhere.
//!
//! Going out ([`serve_outbound`]), the pod's own agent asks. Its request goes to an AgentUpstream of
//! its namespace if the `Host` names one, and otherwise to the sidecar of the pod at the original
//! destination, which has to prove which agent it is. Coming in ([`serve_inbound`]), the agent is the
//! peer of the mutual TLS, and the server is the pod's own agent. Only what the kubelet was declared
//! to ask comes in without an SVID.
//!
//! What is MCP or A2A ([`sort`]) takes the walk of every such message; other HTTP is decided request by
//! request ([`plain`]). TLS of the application's own goes out to hosts that a policy names for it
//! ([`tls`]). Whatever else cannot be looked into ends here and is recorded.

mod awaited;
mod health;
mod hello;
mod inbound;
mod original;
mod outbound;
mod plain;
mod routes;
mod sort;
mod spoken;
mod tls;
mod unproven;

use std::{
    collections::BTreeSet,
    fmt, io,
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::{Duration, Instant},
};

use aegis_core::{AgentId, Timestamp, decision::Reason};
use aegis_identity::{
    Clock, PeerRule, Revocations, SvidSource, TlsError,
    tls::{client_config, server_config},
};
use aegis_kernel::Principal;
use arc_swap::ArcSwap;
use http::Response;
use parking_lot::Mutex;
use rustls::{ClientConfig, ServerConfig};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use tokio::{net::TcpStream, sync::watch};

use crate::{
    Route, Shared,
    attest::Attested,
    delegation::Delegations,
    direct::Mesh,
    inbound::{Body, boxed},
    manifest::{ManifestMode, Manifests, Unfit},
    names::Names,
    respond,
};

pub use awaited::{Asked, NotRedirected, await_redirect};
pub use original::original_destination;
use routes::{Peers, Routes};
use sort::Speaks;
use unproven::Unproven;

/// How many connections each direction has at most.
const MAX_CONNECTIONS: usize = 10_000;
/// The largest request and answer that is read as a whole. Bytes.
const MAX_BODY_BYTES: usize = 4 << 20;

/// Tells where a redirected connection was going.
pub type Destination = Arc<dyn Fn(&TcpStream) -> io::Result<SocketAddr> + Send + Sync>;

/// What a pod declares about its ports.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ports {
    /// Those that speak MCP and nothing else.
    pub mcp: BTreeSet<u16>,
    /// Those that speak A2A.
    pub a2a: BTreeSet<u16>,
    /// What the kubelet asks.
    pub probes: Vec<Probe>,
    /// The sidecar's own, where nobody is led.
    pub own: BTreeSet<u16>,
}

impl Ports {
    /// Whether the kubelet asks for health by gRPC at this port.
    fn probes_grpc(&self, port: u16) -> bool {
        self.probes.iter().any(|probe| probe.port == port && probe.grpc.is_some())
    }
}

/// One thing that the kubelet asks the application: it has no SVID.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct Probe {
    /// The port.
    pub port: u16,
    /// For HTTP, the path with its query. Without this and the next it is TCP, where connecting is
    /// all.
    #[serde(default)]
    pub path: Option<String>,
    /// For gRPC, the service whose health is asked for.
    #[serde(default)]
    pub grpc: Option<String>,
}

/// Whose pod it is, and how it proves that.
pub struct Own {
    /// The agent.
    pub agent: AgentId,
    /// Its SVID.
    pub source: Arc<SvidSource>,
    /// Who is revoked.
    pub revocations: watch::Receiver<Arc<Revocations>>,
    /// What becomes of a peer without a manifest that holds.
    pub manifests: ManifestMode,
}

/// What both directions share.
pub struct Transparent {
    shared: Arc<Shared>,
    own: Own,
    ports: Ports,
    destination: Destination,
    names: Names,
    server: ServerConfig,
    manifests: Arc<Manifests>,
    delegations: Delegations,
    upstreams: ArcSwap<Vec<Arc<Route>>>,
    routes: Routes,
    peers: Peers,
    singly: Singly,
    unproven: Unproven,
    asked: Asked,
}

/// How many refusals are recorded one by one in a second.
const MAX_SINGLY: u32 = 20;

/// Which refusals are recorded one by one: so many in each second.
#[derive(Debug)]
struct Singly(Mutex<(Instant, u32)>);

impl Singly {
    fn new() -> Self {
        Self(Mutex::new((Instant::now(), 0)))
    }

    fn take(&self) -> bool {
        let mut taken = self.0.lock();
        if taken.0.elapsed() >= Duration::from_secs(1) {
            *taken = (Instant::now(), 0);
        }
        taken.1 = taken.1.saturating_add(1);
        taken.1 <= MAX_SINGLY
    }
}

impl fmt::Debug for Transparent {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Transparent").field("agent", &self.own.agent).finish_non_exhaustive()
    }
}

impl fmt::Debug for Own {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Own").field("agent", &self.agent).finish_non_exhaustive()
    }
}

impl Transparent {
    /// Of one pod.
    ///
    /// # Errors
    /// When TLS cannot be configured.
    pub fn new(
        shared: Arc<Shared>,
        own: Own,
        ports: Ports,
        destination: Destination,
    ) -> Result<Self, TlsError> {
        let domain = own.agent.trust_domain();
        let rule = PeerRule::agents_of(domain.clone());
        let mut server = server_config(&own.source, own.revocations.clone(), rule.clone())?;
        let (kernel, clock) = (Arc::clone(&shared.kernel), own.source.clock());
        let manifests = Arc::new(Manifests::new(kernel, own.agent.clone(), clock, own.manifests));
        server.alpn_protocols = manifests.protocols();
        let (kernel, source) = (Arc::clone(&shared.kernel), Arc::clone(&own.source));
        let revocations = own.revocations.clone();
        let delegations = Delegations::new(kernel, own.agent.clone(), source, revocations);
        let anybody = mesh(&own, &manifests, rule, None, false)?;
        Ok(Self {
            shared,
            own,
            ports,
            destination,
            names: Arc::new(|_| {
                Box::pin(async { Err(io::Error::other("nobody is asked for names")) })
            }),
            server,
            manifests,
            delegations,
            upstreams: ArcSwap::default(),
            routes: Routes::default(),
            peers: Peers::new(anybody),
            singly: Singly::new(),
            unproven: Unproven::default(),
            asked: Asked::default(),
        })
    }

    /// Asks for the addresses of names there. Until then they lead nowhere.
    #[must_use]
    pub fn with_names(mut self, names: Names) -> Self {
        self.names = names;
        self
    }

    /// Keeps room for the probes of the node, which has these addresses.
    #[must_use]
    pub fn with_node(mut self, node: &[IpAddr]) -> Self {
        self.unproven = Unproven::keeping_room_for(node);
        self
    }

    /// Notes there what is asked through the redirect.
    #[must_use]
    pub fn with_asked(mut self, asked: Asked) -> Self {
        self.asked = asked;
        self
    }

    /// What all routes share.
    #[must_use]
    pub const fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// The AgentUpstreams of the pod's namespace, from now on.
    pub fn set_upstreams(&self, upstreams: Vec<Arc<Route>>) {
        self.upstreams.store(Arc::new(upstreams));
    }

    /// The AgentUpstreams in force.
    #[must_use]
    pub fn upstreams(&self) -> Arc<Vec<Arc<Route>>> {
        self.upstreams.load_full()
    }

    /// The pod's agent, as long as its SVID lasts.
    fn own(&self) -> Result<Attested, Reason> {
        let identity = self.own.source.current().map_err(|_| Reason::IdentityExpired)?;
        Ok(Attested { id: self.own.agent.clone(), not_after: identity.svid.not_after() })
    }

    /// What is registered about somebody who has proven who it is.
    fn principal(&self, attested: &Attested) -> Result<Principal, Reason> {
        let state = self.shared.kernel.state();
        let principal = state.registry.principal(&attested.id, attested.not_after);
        principal.ok_or(Reason::IdentityUnknown)
    }

    /// Where a redirected connection was going; `None` if nobody is led there.
    fn destination(&self, stream: &TcpStream) -> Option<SocketAddr> {
        let destination = (self.destination)(stream).ok()?;
        (!self.ports.own.contains(&destination.port())).then_some(destination)
    }

    /// What a port of this pod is declared to speak.
    fn speaks(&self, port: u16) -> Speaks {
        if self.ports.a2a.contains(&port) {
            Speaks::A2a
        } else if self.ports.mcp.contains(&port) {
            Speaks::Mcp
        } else {
            Speaks::Http
        }
    }

    fn clock(&self) -> Clock {
        self.own.source.clock()
    }

    /// Records that something was refused before it could be judged, and answers it.
    async fn refuse(
        &self,
        attested: &Attested,
        server: &str,
        reason: Reason,
        told: Map<String, Value>,
    ) -> Response<Body> {
        match self.principal(attested) {
            // A flood of them cannot flood the ledger: they are counted, as strangers' are.
            Ok(_) if !self.singly.take() => self.refuse_stranger(reason),
            Ok(principal) => {
                self.shared.kernel.refuse(&principal, server, reason, told).await;
                answer(reason)
            }
            Err(unknown) => self.refuse_stranger(unknown),
        }
    }

    /// Records that a request was refused for what was shown with it, and answers it.
    async fn refuse_unfit(
        &self,
        attested: &Attested,
        server: &str,
        destination: SocketAddr,
        Unfit { reason, problem }: Unfit,
    ) -> Response<Body> {
        let mut told = told(destination, "http/1");
        if let Some((what, problem)) = problem {
            told.insert(what.into(), json!({ "problem": problem }));
        }
        self.refuse(attested, server, reason, told).await
    }

    /// Counts the refusal of somebody who is nobody, and answers it.
    fn refuse_stranger(&self, reason: Reason) -> Response<Body> {
        self.shared.refusals.count(self.own.agent.name(), reason);
        answer(reason)
    }
}

fn answer(reason: Reason) -> Response<Body> {
    boxed(respond::http(respond::plain(respond::status_of(reason), reason)))
}

/// How other sidecars are reached that `rule` accepts: those of one agent at a port of its application,
/// or anybody's.
fn mesh(
    own: &Own,
    manifests: &Arc<Manifests>,
    rule: PeerRule,
    only: Option<(AgentId, u16)>,
    a2a: bool,
) -> Result<Arc<Mesh>, TlsError> {
    let mut config: ClientConfig = client_config(&own.source, own.revocations.clone(), rule)?;
    config.alpn_protocols = manifests.protocols();
    let (audience, port) = only.unzip();
    Ok(Arc::new(Mesh {
        config,
        manifests: Arc::clone(manifests),
        revocations: own.revocations.clone(),
        source: Arc::clone(&own.source),
        audience,
        port,
        a2a,
    }))
}

/// Serves what the application sends, until the process drains.
pub async fn serve_outbound(caught: Arc<Transparent>, listener: tokio::net::TcpListener) {
    let drain = caught.shared.drain.clone();
    let full = || caught.shared.refusals.count(caught.own.agent.name(), Reason::Overloaded);
    let serve = |stream, _| outbound::connection(Arc::clone(&caught), stream);
    crate::accept::accept(listener, &drain, MAX_CONNECTIONS, full, serve).await;
}

/// Serves what comes to the application, until the process drains.
pub async fn serve_inbound(caught: Arc<Transparent>, listener: tokio::net::TcpListener) {
    let drain = caught.shared.drain.clone();
    let full = || caught.shared.refusals.count(caught.own.agent.name(), Reason::Overloaded);
    let serve = |stream, _| inbound::connection(Arc::clone(&caught), stream);
    crate::accept::accept(listener, &drain, MAX_CONNECTIONS, full, serve).await;
}

/// What is recorded of where something was going.
fn told(destination: SocketAddr, what: &str) -> Map<String, Value> {
    let mut told = Map::new();
    told.insert("destination".into(), destination.to_string().into());
    told.insert("spoken".into(), what.into());
    told
}

/// Which of a server's ports and paths something is for.
fn endpoint(port: u16, path: &str) -> String {
    format!("{port}{path}")
}

/// What policies and records of `caller` call the server of `agent`: its name within the caller's own
/// namespace, and elsewhere `namespace/name`. Another namespace's agent of the same name is another
/// server.
fn server_name(caller: &AgentId, agent: &AgentId) -> String {
    match agent.namespace() {
        Some(namespace) if caller.namespace() != Some(namespace) => {
            format!("{namespace}/{}", agent.name())
        }
        _ => agent.name().to_owned(),
    }
}

/// An SVID that has been shown on this connection.
fn attested(peer: &aegis_identity::PeerIdentity) -> Option<Attested> {
    let not_after: Timestamp = peer.not_after;
    Some(Attested { id: AgentId::try_from(peer.id.clone()).ok()?, not_after })
}
