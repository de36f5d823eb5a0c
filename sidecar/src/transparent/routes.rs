//! The routes that were made on the way, and who was met where.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use aegis_core::{AgentId, decision::Reason};
use aegis_identity::PeerRule;
use aegis_resources::upstream::ToolPins;
use http::HeaderValue;
use parking_lot::Mutex;

use super::{Own, mesh};
use crate::{
    Route,
    a2a::Tasks,
    direct::{self, Direct, Mesh},
    forward::{is_tls, refuses_manifest},
    manifest::Manifests,
    pins::Pins,
};

/// How many routes there are at most; one that nobody uses makes room for another.
const MAX_ROUTES: usize = 512;
/// How many servers' tools are remembered. They are never forgotten for others, so that no caller can
/// make Aegis forget what was agreed to.
const MAX_PINNED: usize = 512;
/// The longest path and the longest `Host`.
const MAX_NAME_BYTES: usize = 1024;
/// How long it is believed who answers at an address. Every connection proves it again.
const BELIEVED: Duration = Duration::from_secs(30);
/// How many addresses are remembered.
const MAX_PEERS: usize = 1024;

/// Which server, and by which name and path.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) struct Key {
    /// What the caller's policies call it.
    pub(super) name: String,
    pub(super) agent: AgentId,
    pub(super) destination: SocketAddr,
    /// The port of the application there.
    pub(super) port: u16,
    pub(super) host: HeaderValue,
    /// Of an A2A agent, its base.
    pub(super) path: String,
    pub(super) a2a: bool,
}

/// Routes by what they lead to, and the definitions of tools by whose they are: they hold at every
/// address of the agent and under every `Host`.
#[derive(Default)]
pub(super) struct Routes {
    made: Mutex<HashMap<Key, Arc<Route>>>,
    pinned: Mutex<HashMap<(AgentId, String), Arc<Pins>>>,
    /// Whose the tasks are of each A2A agent at each of its ports and paths.
    tasks: Mutex<HashMap<(AgentId, u16, String), Arc<Tasks>>>,
}

impl Routes {
    /// The route, made if there is none.
    ///
    /// # Errors
    /// When names are too long, or there are too many routes.
    pub(super) fn get(
        &self,
        key: &Key,
        make: impl FnOnce(Arc<Pins>) -> Result<Route, Reason>,
    ) -> Result<Arc<Route>, Reason> {
        let mut routes = self.made.lock();
        if let Some(route) = routes.get(key) {
            return Ok(Arc::clone(route));
        }
        if key.path.len() > MAX_NAME_BYTES || key.host.len() > MAX_NAME_BYTES {
            return Err(Reason::NameTooLong);
        }
        if routes.len() >= MAX_ROUTES {
            routes.retain(|_, route| Arc::strong_count(route) > 1);
            if routes.len() >= MAX_ROUTES {
                return Err(Reason::Overloaded);
            }
        }
        let route = Arc::new(make(self.pins(key)?)?);
        routes.insert(key.clone(), Arc::clone(&route));
        Ok(route)
    }

    /// The tasks of an A2A agent, whatever address and `Host` it is reached by.
    ///
    /// # Errors
    /// When there are too many agents: their tasks are not forgotten for others.
    pub(super) fn tasks(&self, key: &Key) -> Result<Arc<Tasks>, Reason> {
        let mut tasks = self.tasks.lock();
        let of = (key.agent.clone(), key.port, key.path.trim_end_matches('/').to_owned());
        if !tasks.contains_key(&of) && tasks.len() >= MAX_PINNED {
            return Err(Reason::Overloaded);
        }
        Ok(Arc::clone(tasks.entry(of).or_default()))
    }

    fn pins(&self, key: &Key) -> Result<Arc<Pins>, Reason> {
        let mut pinned = self.pinned.lock();
        let of = (key.agent.clone(), key.path.clone());
        if let Some(pins) = pinned.get(&of) {
            return Ok(Arc::clone(pins));
        }
        if pinned.len() >= MAX_PINNED {
            pinned.retain(|_, pins| Arc::strong_count(pins) > 1 || !pins.is_empty());
            if pinned.len() >= MAX_PINNED {
                return Err(Reason::Overloaded);
            }
        }
        let namespace = key.agent.namespace().unwrap_or_default();
        let pins = Arc::new(Pins::new(namespace, &key.name, &ToolPins::default()));
        pinned.insert(of, Arc::clone(&pins));
        Ok(pins)
    }
}

/// Somebody who was met.
struct Met {
    agent: AgentId,
    /// Accepts that agent and nobody else.
    mesh: Arc<Mesh>,
    at: Instant,
}

/// Who answers where.
pub(super) struct Peers {
    anybody: Arc<Mesh>,
    known: Mutex<HashMap<SocketAddr, Met>>,
}

impl Peers {
    /// `anybody` accepts every agent of the trust domain.
    pub(super) fn new(anybody: Arc<Mesh>) -> Self {
        Self { anybody, known: Mutex::default() }
    }

    /// Which agent's sidecar answers at `destination`, and how to reach that one alone.
    ///
    /// # Errors
    /// When nobody does, or it cannot prove that it is an agent's.
    pub(super) async fn at(
        &self,
        destination: SocketAddr,
        own: &Own,
        manifests: &Arc<Manifests>,
    ) -> Result<(AgentId, Arc<Mesh>), Reason> {
        let now = Instant::now();
        if let Some(met) = self.known.lock().get(&destination)
            && now.saturating_duration_since(met.at) < BELIEVED
        {
            return Ok((met.agent.clone(), Arc::clone(&met.mesh)));
        }
        let direct = Direct::Mesh(destination, Arc::clone(&self.anybody));
        let direct::Answered { peer, port, a2a } = direct.meet().await.map_err(|error| {
            tracing::info!(%destination, %error, "no sidecar answers there");
            if refuses_manifest(&error) {
                return Reason::ManifestRefused;
            }
            // Whoever answers in the clear, or with another certificate, is nobody of the mesh.
            if is_tls(&error) || error.kind() != std::io::ErrorKind::ConnectionRefused {
                Reason::ServerUnknown
            } else {
                Reason::UpstreamUnavailable
            }
        })?;
        let peer = peer.ok_or(Reason::ServerUnknown)?;
        let rule = PeerRule::exactly(peer.id.clone());
        let agent = AgentId::try_from(peer.id).map_err(|_| Reason::ServerUnknown)?;
        let only = Some((agent.clone(), port));
        let mesh = mesh(own, manifests, rule, only, a2a).map_err(|_| Reason::UpstreamUnverified)?;
        let mut known = self.known.lock();
        if known.len() >= MAX_PEERS {
            known.retain(|_, met| now.saturating_duration_since(met.at) < BELIEVED);
        }
        if known.len() < MAX_PEERS {
            let met = Met { agent: agent.clone(), mesh: Arc::clone(&mesh), at: now };
            known.insert(destination, met);
        }
        Ok((agent, mesh))
    }

    /// Somebody else answers there now.
    pub(super) fn forget(&self, destination: SocketAddr) {
        self.known.lock().remove(&destination);
    }
}
