//! The application of one pod, whose SVIDs come from the CA together with the pod's own.
//!
//! Who sees the socket is in the pod, and the pod is the agent: there is nobody to tell apart. A
//! revoked agent gets nothing. JWT-SVIDs are kept for half of their life and asked for slowly, so that
//! an application cannot use up what the CA grants the pod.

use std::{
    collections::HashMap,
    error::Error,
    fmt,
    sync::{
        Arc,
        atomic::{AtomicI64, Ordering},
    },
};

use aegis_core::{AgentId, SpiffeId, Timestamp};
use aegis_identity::{Bundle, Clock, JwtClaims, JwtError, Revocations, X509Svid, jwt::verify_jwt};
use parking_lot::Mutex;
use tokio::{net::UnixStream, sync::watch};
use tonic::{Code, Status};

use super::{Changes, Source, no_identity};
use crate::{Authority, AuthorityError, limits::Rate};

/// JWT-SVIDs that are asked for: at once, and then per second. The CA grants a pod more.
const JWT_BURST: u32 = 5;
const JWTS_PER_SECOND: u32 = 1;
/// How many JWT-SVIDs are kept.
const MAX_KEPT: usize = 64;
/// The most audiences of a JWT-SVID, and the longest; the CA refuses others too.
const MAX_AUDIENCES: (usize, usize) = (8, 255);

/// A JWT-SVID, and until when it is given out.
struct Kept {
    token: String,
    until: Timestamp,
}

/// The application of this pod.
pub struct Application {
    authority: Authority,
    agent: AgentId,
    clock: Clock,
    connections: AtomicI64,
    jwts: Mutex<HashMap<Vec<String>, Kept>>,
    asking: Rate<()>,
}

/// A connection from within the pod.
#[derive(Debug)]
pub struct InPod {
    user: u32,
    number: i64,
}

/// What the CA says.
#[derive(Debug)]
pub struct Told {
    bundle: watch::Receiver<Bundle>,
    revocations: watch::Receiver<Arc<Revocations>>,
    application: watch::Receiver<Option<X509Svid>>,
}

impl Application {
    /// The application of `agent`, which `authority` was told to ask for.
    #[must_use]
    pub fn new(authority: Authority, agent: AgentId, clock: Clock) -> Self {
        Self {
            authority,
            agent,
            clock,
            connections: AtomicI64::default(),
            jwts: Mutex::default(),
            asking: Rate::new(JWTS_PER_SECOND, JWT_BURST),
        }
    }

    fn kept(&self, audience: &[String]) -> Option<String> {
        let now = (self.clock)();
        let mut jwts = self.jwts.lock();
        jwts.retain(|_, kept| now < kept.until);
        jwts.get(audience).map(|kept| kept.token.clone())
    }

    fn keep(&self, audience: &[String], token: String, expires: Timestamp) {
        let now = (self.clock)();
        let mut jwts = self.jwts.lock();
        if jwts.len() < MAX_KEPT {
            let until = now.plus(expires.since(now) / 2);
            jwts.insert(audience.to_vec(), Kept { token, until });
        }
    }
}

/// What the application is told of the CA's refusal.
fn refused(error: &AuthorityError) -> Status {
    tracing::warn!(%error, "the application gets no JWT-SVID");
    match error {
        AuthorityError::Refused { status, .. } => match status.code() {
            Code::PermissionDenied | Code::Unauthenticated => no_identity(),
            Code::InvalidArgument => Status::invalid_argument(status.message()),
            Code::ResourceExhausted => Status::resource_exhausted(status.message()),
            _ => Status::unavailable("the CA does not issue now"),
        },
        _ => Status::unavailable("the CA does not issue now"),
    }
}

impl Source for Application {
    type Peer = InPod;
    type Agent = ();
    type Changes = Told;

    fn connected(&self, stream: &UnixStream) -> Result<InPod, Box<dyn Error + Send + Sync>> {
        let user = stream.peer_cred()?.uid();
        Ok(InPod { user, number: self.connections.fetch_add(1, Ordering::Relaxed) })
    }

    fn user(peer: &InPod) -> u32 {
        peer.user
    }

    // Processes of other containers have no number here.
    fn holder(peer: &InPod) -> i64 {
        peer.number
    }

    async fn recognise(&self, _: &Arc<InPod>) -> Result<(), Status> {
        match self.authority.revocations().borrow().covers_id(self.agent.spiffe_id()) {
            true => Err(no_identity()),
            false => Ok(()),
        }
    }

    fn id(&self, (): &()) -> SpiffeId {
        self.agent.workload()
    }

    async fn svid(&self, (): &()) -> Result<(X509Svid, Bundle, Timestamp), Status> {
        let none = || Status::unavailable("there is no SVID now");
        let svid = self.authority.application().borrow().clone().ok_or_else(none)?;
        let revocations = self.authority.revocations();
        let revoked = revocations.borrow().covers(svid.id(), svid.serial());
        if *svid.id() != self.agent.workload() || revoked || svid.not_after() <= (self.clock)() {
            return Err(none());
        }
        let again_at = svid.not_after();
        Ok((svid, self.bundle(), again_at))
    }

    async fn jwt(&self, (): &(), audience: &[String]) -> Result<String, Status> {
        let (most, longest) = MAX_AUDIENCES;
        let fits = |one: &String| (1..=longest).contains(&one.len());
        if !(1..=most).contains(&audience.len()) || !audience.iter().all(fits) {
            return Err(Status::invalid_argument(JwtError::Audiences.to_string()));
        }
        if let Some(token) = self.kept(audience) {
            return Ok(token);
        }
        if !self.asking.take(()) {
            return Err(Status::resource_exhausted("too many JWT-SVIDs; try again in a second"));
        }
        let issued = self.authority.issue_jwt(audience.to_vec()).await;
        let (token, expires) = issued.map_err(|error| refused(&error))?;
        self.keep(audience, token.clone(), expires);
        Ok(token)
    }

    fn verify_jwt(&self, token: &str, audience: &str) -> Result<JwtClaims, JwtError> {
        let claims = verify_jwt(token, audience, &self.bundle(), (self.clock)())?;
        match self.authority.revocations().borrow().covers_id(&claims.id) {
            true => Err(JwtError::Revoked(claims.id)),
            false => Ok(claims),
        }
    }

    fn bundle(&self) -> Bundle {
        self.authority.bundle().borrow().clone()
    }

    fn clock(&self) -> Clock {
        Arc::clone(&self.clock)
    }

    fn changes(&self) -> Told {
        Told {
            bundle: self.authority.bundle(),
            revocations: self.authority.revocations(),
            application: self.authority.application(),
        }
    }
}

impl Changes for Told {
    fn mark_seen(&mut self) {
        self.bundle.mark_unchanged();
        self.revocations.mark_unchanged();
        self.application.mark_unchanged();
    }

    async fn changed(&mut self) {
        tokio::select! {
            _ = self.bundle.changed() => {}
            _ = self.revocations.changed() => {}
            _ = self.application.changed() => {}
        }
    }
}

impl fmt::Debug for Application {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Application").field("agent", &self.agent).finish_non_exhaustive()
    }
}
