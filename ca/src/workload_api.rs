//! Applications of this machine, as the Workload API serves them.
//!
//! Who asks is settled by attestation. Strangers are refused; before the registrations are loaded the
//! answer is "unavailable".

use std::{collections::HashMap, error::Error, fmt, sync::Arc, time::Duration};

use aegis_core::{SpiffeId, Timestamp};
use aegis_identity::{
    Bundle, Clock, JwtClaims, JwtError, Revocations, X509Svid, source::renewal_wait,
};
use aegis_mesh::workload::{Changes, Source, no_identity};
use tokio::{
    net::UnixStream,
    sync::{Mutex, watch},
};
use tonic::Status;

use crate::{
    CaError, IdentityManager, IssueError, Registration,
    attest::{Attestor, Registrations},
    manager::Issuing,
    peer::Peer,
};

/// What the Workload API serves of a CA.
pub struct Applications {
    manager: IdentityManager,
    attestor: Arc<Attestor>,
    svids: Mutex<HashMap<SpiffeId, Cached>>,
}

/// One SVID per application, whoever of its processes asks.
struct Cached {
    svid: X509Svid,
    /// The bundle's sequence when it was issued.
    sequence: u64,
    renew_at: Timestamp,
    ttl: Option<Duration>,
}

fn refused(error: &CaError) -> Status {
    match error {
        CaError::Revoked(_) => no_identity(),
        CaError::Issue(IssueError::Jwt(cause)) => Status::invalid_argument(cause.to_string()),
        error => {
            tracing::error!(%error, "an SVID could not be issued");
            Status::unavailable("no SVID can be issued now")
        }
    }
}

impl Applications {
    /// The applications that are registered with `manager`.
    #[must_use]
    pub fn new(manager: IdentityManager) -> Self {
        Self { manager, attestor: Arc::default(), svids: Mutex::default() }
    }
}

impl Source for Applications {
    type Peer = Peer;
    type Agent = Registration;
    type Changes = Told;

    fn connected(&self, stream: &UnixStream) -> Result<Peer, Box<dyn Error + Send + Sync>> {
        Ok(Peer::of(stream)?)
    }

    fn user(peer: &Peer) -> u32 {
        peer.uid()
    }

    fn holder(peer: &Peer) -> i64 {
        peer.pid().into()
    }

    async fn recognise(&self, peer: &Arc<Peer>) -> Result<Registration, Status> {
        let registrations = self.manager.watch_registrations().borrow().clone();
        let registrations = registrations
            .ok_or_else(|| Status::unavailable("the registrations are not loaded yet"))?;
        let (attestor, peer) = (Arc::clone(&self.attestor), Arc::clone(peer));
        let attested =
            tokio::task::spawn_blocking(move || attestor.attest(&peer, &registrations)).await;
        let registration = match attested {
            Ok(Ok(registration)) => registration,
            Ok(Err(error)) => {
                // The stranger learns nothing of what would have been recognised.
                tracing::info!(%error, "the Workload API refused a process");
                return Err(no_identity());
            }
            Err(error) => {
                tracing::error!(%error, "attestation failed");
                return Err(no_identity());
            }
        };
        if self.manager.revocations().borrow().covers_id(registration.id.spiffe_id()) {
            return Err(no_identity());
        }
        Ok(registration)
    }

    fn id(&self, to: &Registration) -> SpiffeId {
        to.id.workload()
    }

    /// The SVID of an application: the one at hand, or a new one when that is due.
    async fn svid(&self, to: &Registration) -> Result<(X509Svid, Bundle, Timestamp), Status> {
        let manager = &self.manager;
        let mut svids = self.svids.lock().await;
        let bundle = manager.bundle();
        let now = manager.clock()();
        let id = to.id.workload();
        let usable = svids.get(&id).filter(|cached| {
            let revoked = manager.revocations().borrow().covers(&id, cached.svid.serial());
            cached.sequence == bundle.sequence()
                && now < cached.renew_at
                && cached.ttl == to.ttl
                && !revoked
        });
        if let Some(cached) = usable {
            return Ok((cached.svid.clone(), bundle, cached.renew_at));
        }
        let svid = manager.issue_workload(to).await.map_err(|error| refused(&error))?;
        let jitter = (aegis_identity::source::random_jitter())();
        let renew_at = now.plus(renewal_wait(svid.not_after(), now, jitter));
        svids.retain(|_, cached| now < cached.svid.not_after());
        let cached =
            Cached { svid: svid.clone(), sequence: bundle.sequence(), renew_at, ttl: to.ttl };
        svids.insert(id, cached);
        Ok((svid, bundle, renew_at))
    }

    async fn jwt(&self, to: &Registration, audience: &[String]) -> Result<String, Status> {
        let issued = self.manager.issue_jwt(to, audience).await;
        Ok(issued.map_err(|error| refused(&error))?.token)
    }

    fn verify_jwt(&self, token: &str, audience: &str) -> Result<JwtClaims, JwtError> {
        self.manager.verify_jwt(token, audience)
    }

    fn bundle(&self) -> Bundle {
        self.manager.bundle()
    }

    fn clock(&self) -> Clock {
        self.manager.clock()
    }

    fn changes(&self) -> Told {
        Told {
            issuing: self.manager.watch_issuing(),
            registrations: self.manager.watch_registrations(),
            revocations: self.manager.revocations(),
        }
    }
}

/// What may become another.
#[derive(Debug)]
pub struct Told {
    issuing: watch::Receiver<Arc<Issuing>>,
    registrations: watch::Receiver<Option<Registrations>>,
    revocations: watch::Receiver<Arc<Revocations>>,
}

impl Changes for Told {
    fn mark_seen(&mut self) {
        self.issuing.mark_unchanged();
        self.registrations.mark_unchanged();
        self.revocations.mark_unchanged();
    }

    async fn changed(&mut self) {
        tokio::select! {
            _ = self.issuing.changed() => {}
            _ = self.registrations.changed() => {}
            _ = self.revocations.changed() => {}
        }
    }
}

impl fmt::Debug for Applications {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Applications")
    }
}
