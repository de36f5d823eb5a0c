//! The operator in the mesh: whom to believe at first, who it is itself, and which agents the CA has
//! revoked.
//!
//! The CA writes its trust bundle into a ConfigMap. Those roots are what the operator knows the CA
//! by, and what it tells each sidecar. While there are none, or the CA is away, the operator goes on
//! with everything else, says so and tries again; sidecars are not injected without roots.

mod member;
mod roots;

use std::{collections::BTreeSet, sync::Arc};

use aegis_core::AgentId;
use serde_json::{Map, Value};
use tokio::sync::watch;

pub use member::{JoinError, Joining, Member, MeshConfig};
pub use roots::{CONFIG_MAP, KEY, Roots, RootsError, follow as follow_roots};

use crate::inject::InjectConfig;

/// The agents that the CA has revoked; `None` before it has said so.
pub type Revoked = Option<Arc<BTreeSet<AgentId>>>;

/// What the rest of the operator sees of the mesh.
#[derive(Clone)]
pub struct Mesh {
    /// Whom to believe at first.
    pub roots: watch::Receiver<Option<Arc<Roots>>>,
    /// Who this operator is; `None` before it has its first SVID.
    pub member: watch::Receiver<Option<Member>>,
    /// Who is revoked.
    pub revoked: watch::Receiver<Revoked>,
}

impl std::fmt::Debug for Mesh {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Mesh").finish_non_exhaustive()
    }
}

/// Keeps up to date how pods are injected: with the roots of the moment, and not at all without.
pub async fn tell_roots(
    base: InjectConfig,
    addresses: Map<String, Value>,
    mut roots: watch::Receiver<Option<Arc<Roots>>>,
    inject: watch::Sender<Option<Arc<InjectConfig>>>,
) {
    let mut with = base;
    with.env.extend(addresses);
    loop {
        let known = roots.borrow_and_update().clone();
        inject.send_replace(known.map(|roots| {
            let mut config = with.clone();
            config.env.insert("AEGIS_CA_ROOTS".into(), (&*roots.pem).into());
            Arc::new(config)
        }));
        if roots.changed().await.is_err() {
            return;
        }
    }
}
