//! What the application sends.

use std::{net::SocketAddr, sync::Arc};

use aegis_core::{AgentId, decision::Reason};
use aegis_protocol::a2a::{CARD_PATH, base_of};
use aegis_resources::{AgentUpstreamSpec, upstream::UpstreamProtocol};
use http::{HeaderValue, Request, Response, StatusCode, Uri, header};
use hyper::body::Incoming;
use tokio::net::TcpStream;

use super::{
    Transparent, awaited, endpoint, plain,
    routes::Key,
    server_name,
    sort::{Sorted, Speaks, sort},
    spoken::{Spoken, spoken},
    tls, told,
};
use crate::{
    Route,
    direct::Direct,
    forward::Target,
    inbound::{Body, HEAD_BYTES, governed, one, serve_http},
};

/// Where a request goes.
enum Server {
    /// To an AgentUpstream.
    Upstream(Arc<Route>),
    /// To another agent, which speaks so there.
    Agent(AgentId, Direct, Speaks),
}

pub(super) async fn connection(caught: Arc<Transparent>, stream: TcpStream) {
    let Some(destination) = caught.destination(&stream) else {
        // To the port itself: nothing goes anywhere from there.
        return drop(caught.refuse_stranger(Reason::HostRefused));
    };
    if awaited::is_asked(destination) {
        return caught.asked.hear(stream).await;
    }
    match spoken(&stream).await {
        Spoken::Http => {
            let drain = caught.shared.drain.clone();
            let answer = move |request| {
                let caught = Arc::clone(&caught);
                async move { caught.outbound(destination, request).await }
            };
            serve_http(stream, HEAD_BYTES, drain, answer).await;
        }
        Spoken::Tls => tls::tunnel(&caught, destination, stream).await,
        Spoken::Closed => {}
        other => {
            if let Ok(own) = caught.own() {
                let told = told(destination, other.name());
                caught.refuse(&own, "", Reason::ServerUnknown, told).await;
            }
        }
    }
}

impl Transparent {
    async fn outbound(
        self: &Arc<Self>,
        destination: SocketAddr,
        request: Request<Incoming>,
    ) -> Response<Body> {
        let own = match self.own() {
            Ok(own) => own,
            Err(reason) => return self.refuse_stranger(reason),
        };
        let found = self.server(destination, &request).await;
        let refuse = |server: String, reason: Reason| {
            let (own, told) = (own.clone(), told(destination, "http/1"));
            async move { self.refuse(&own, &server, reason, told).await }
        };
        let server = match found {
            Ok(server) => server,
            Err(reason) => return refuse(String::new(), reason).await,
        };
        let name = server.name(&self.own.agent);
        let going = match self.principal(&own) {
            Ok(own) => self.delegations.going_out(request.headers(), own, server.callee()),
            Err(reason) => return self.refuse_stranger(reason),
        };
        let (mut principal, carried) = match going {
            Ok(going) => going,
            Err(unfit) => return self.refuse_unfit(&own, &name, destination, unfit).await,
        };
        let sorted = match sort(request, server.speaks()).await {
            Ok(sorted) => sorted,
            Err(reason) => return refuse(name, reason).await,
        };
        // Reading may have taken until after a renewal.
        match self.own() {
            Ok(own) => principal.not_after = own.not_after.min(carried.until()),
            Err(reason) => return self.refuse_stranger(reason),
        }
        let response = match (sorted, &server) {
            (Sorted::Mcp(request) | Sorted::A2a(request), Server::Upstream(route)) => {
                governed(route, Ok(principal), (None, carried), request).await
            }
            (Sorted::Mcp(request) | Sorted::A2a(request), Server::Agent(agent, direct, _)) => {
                let to = (direct, server.speaks());
                match self.route(&self.own.agent, agent, destination, to, &request) {
                    Ok(route) => governed(&route, Ok(principal), (None, carried), request).await,
                    Err(reason) => return refuse(name, reason).await,
                }
            }
            (Sorted::Plain(request), Server::Agent(agent, direct, _)) => {
                plain::exchange(self, principal, (None, &carried), agent, direct, request).await
            }
            (Sorted::Plain(_), Server::Upstream(_)) => {
                return refuse(name, Reason::ProtocolUnsupported).await;
            }
        };
        if [StatusCode::BAD_GATEWAY, StatusCode::MISDIRECTED_REQUEST].contains(&response.status()) {
            // Another pod may have the address now.
            self.peers.forget(destination);
        }
        response
    }

    /// Where a request goes: by its `Host` if an AgentUpstream has that name, and otherwise to where
    /// the connection was going.
    async fn server(
        &self,
        destination: SocketAddr,
        request: &Request<Incoming>,
    ) -> Result<Server, Reason> {
        // A whole URL in the request line would be another address than the connection's.
        if request.uri().authority().is_some() {
            return Err(Reason::HostRefused);
        }
        let host = one(request.headers(), "host").ok().flatten().ok_or(Reason::HostRefused)?;
        let upstreams = self.upstreams.load();
        let serving = upstreams.iter().filter(|route| serves(route, host, request.uri()));
        let base = |route: &&Arc<Route>| route.target.as_ref().map_or(0, |to| to.path().len());
        if let Some(route) = serving.max_by_key(base) {
            return Ok(Server::Upstream(Arc::clone(route)));
        }
        // Within the pod only declared ports are redirected; the server there is the agent's own.
        let port = destination.port();
        let speaks = self.speaks(port);
        if destination.ip().is_loopback() && speaks != Speaks::Http {
            return Ok(Server::Agent(self.own.agent.clone(), Direct::Plain(destination), speaks));
        }
        let (agent, mesh) = self.peers.at(destination, &self.own, &self.manifests).await?;
        let speaks = if mesh.a2a { Speaks::A2a } else { Speaks::Unknown };
        Ok(Server::Agent(agent, Direct::Mesh(destination, mesh), speaks))
    }

    /// The route to another agent's server.
    pub(super) fn route<B>(
        &self,
        caller: &AgentId,
        agent: &AgentId,
        destination: SocketAddr,
        (direct, speaks): (&Direct, Speaks),
        request: &Request<B>,
    ) -> Result<Arc<Route>, Reason> {
        let a2a = speaks == Speaks::A2a;
        // A query could name another server behind the same path. A2A's are read by its own walk.
        if request.uri().query().is_some() && !a2a {
            return Err(Reason::MalformedMessage);
        }
        let host = request.headers().get(header::HOST).cloned();
        let host = host.unwrap_or_else(|| HeaderValue::from_static("direct"));
        let path = request.uri().path();
        let path = if a2a { base_of(path) } else { path }.to_owned();
        let name = server_name(caller, agent);
        let port = direct.port();
        let key = Key { name, agent: agent.clone(), destination, port, host, path, a2a };
        self.routes.get(&key, |pins| {
            let target = Target::direct(direct.clone(), key.host.clone(), &key.path)?;
            let namespace = agent.namespace().unwrap_or_default();
            let protocol = if a2a { UpstreamProtocol::A2a } else { UpstreamProtocol::Mcp };
            let spec = AgentUpstreamSpec { protocol, ..AgentUpstreamSpec::default() };
            let shared = Arc::clone(&self.shared);
            let route = Route::with_target(shared, namespace, &key.name, spec, Some(target), pins);
            let route = route.at(endpoint(key.port, &key.path));
            Ok(if a2a { route.sharing(self.routes.tasks(&key)?) } else { route })
        })
    }
}

impl Server {
    /// The agent in another pod that is called, if it is one.
    const fn callee(&self) -> Option<&AgentId> {
        match self {
            Self::Agent(agent, Direct::Mesh(..), _) => Some(agent),
            Self::Agent(..) | Self::Upstream(_) => None,
        }
    }

    fn name(&self, caller: &AgentId) -> String {
        match self {
            Self::Upstream(route) => route.name.clone(),
            Self::Agent(agent, ..) => server_name(caller, agent),
        }
    }

    /// An AgentUpstream speaks one protocol, at one path and what is below it.
    fn speaks(&self) -> Speaks {
        match self {
            Self::Upstream(route) if route.spec.protocol == UpstreamProtocol::A2a => Speaks::A2a,
            Self::Upstream(_) => Speaks::Mcp,
            Self::Agent(_, _, speaks) => *speaks,
        }
    }
}

/// Whether a request with this `Host` is for the upstream. The application speaks HTTP to whom
/// Aegis speaks HTTPS, so the port counts only where it is not the scheme's own.
fn serves(route: &Route, host: &str, uri: &Uri) -> bool {
    let (Some(target), Ok(host)) = (&route.target, host.parse::<http::uri::Authority>()) else {
        return false;
    };
    let Ok(url) = target.url().parse::<Uri>() else { return false };
    let port = |port: Option<u16>| port.filter(|port| ![80, 443].contains(port));
    let same_host = url.host().is_some_and(|own| own.eq_ignore_ascii_case(host.host()));
    same_host
        && !host.as_str().contains('@')
        && port(url.port_u16()) == port(host.port_u16())
        && is_of(route.spec.protocol, target.path(), uri.path())
}

/// Whether a path is one of the upstream's: MCP has one, A2A those below its base and the card's.
fn is_of(protocol: UpstreamProtocol, own: &str, path: &str) -> bool {
    if protocol == UpstreamProtocol::Mcp {
        return path == own;
    }
    let below = path.strip_prefix(own.trim_end_matches('/'));
    path == CARD_PATH || below.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_upstream_has_its_own_paths() {
        use UpstreamProtocol::{A2a, Mcp};
        for (protocol, own, path, expected) in [
            (Mcp, "/mcp", "/mcp", true),
            (Mcp, "/mcp", "/mcp/", false),
            (Mcp, "/mcp", "/mcp/x", false),
            (A2a, "/a2a", "/a2a", true),
            (A2a, "/a2a", "/a2a/message:send", true),
            (A2a, "/a2a/", "/a2a", true),
            (A2a, "/a2a", "/a2ab", false),
            (A2a, "/a2a", "/", false),
            (A2a, "/", "/tasks", true),
            (A2a, "/a2a", "/.well-known/agent-card.json", true),
        ] {
            assert_eq!(is_of(protocol, own, path), expected, "{own} {path}");
        }
    }
}
