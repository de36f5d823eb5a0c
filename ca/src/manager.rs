//! The identity manager: issue, verify, revoke, with every issue on record.

mod asked;

use std::{collections::VecDeque, error::Error, fmt, sync::Arc, time::Duration};

use aegis_core::{AgentId, SpiffeId, Sponsor, TrustDomain, identity::InvalidIdentity};
use aegis_identity::{
    Bundle, Clock, Fetched, JwtClaims, JwtError, JwtSvid, PeerIdentity, Revocations, SvidFetcher,
    VerifyError, X509Svid, jwt::verify_jwt, verify_chain,
};
use futures::future::BoxFuture;
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use tokio::sync::watch;

use crate::{
    AuthorityInfo, IdentityEvent, IssueError, Kind, Lifetimes, Recorder, RecorderError,
    Registration, RegistrationError, RevokeError, Revoked, RotateError, Signer, Store, StoreError,
    Subject, attest::Registrations, issue::serial_of, registration, revoke::RevocationList,
    rotate::Authorities,
};

pub use asked::Asked;

/// How often the authorities are looked at.
const ROTATION_INTERVAL: Duration = Duration::from_secs(10);

/// How often a change is tried on what another replica has just written.
const MAX_CONFLICTS: u32 = 5;

/// What a CA is.
#[derive(Debug, Clone)]
pub struct CaConfig {
    /// Whose identities it issues.
    pub trust_domain: TrustDomain,
    /// How long things live.
    pub lifetimes: Lifetimes,
}

/// Why the CA does not do what it is asked to.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// The authorities.
    #[error(transparent)]
    Rotate(#[from] RotateError),
    /// Signing.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The revocations.
    #[error(transparent)]
    Revoke(#[from] RevokeError),
    /// Not a name.
    #[error(transparent)]
    Name(#[from] InvalidIdentity),
    /// Nobody of that name.
    #[error("{0} is not registered; add an AgentIdentity for it")]
    NotRegistered(AgentId),
    /// Somebody else answers for that agent.
    #[error("the sponsor of {id} is {registered}, not {claimed}")]
    OtherSponsor {
        /// The agent.
        id: AgentId,
        /// Who answers for it.
        registered: Sponsor,
        /// Who was named.
        claimed: Sponsor,
    },
    /// Revoked, so nothing is issued.
    #[error("{0} was revoked; reinstate it first")]
    Revoked(SpiffeId),
    /// The audit log does not take the entry.
    #[error("the audit log did not record it: {0}")]
    Unrecorded(RecorderError),
}

/// What is signed with and believed at the moment.
#[derive(Debug)]
pub(crate) struct Issuing {
    pub(crate) signer: Signer,
    pub(crate) bundle: Bundle,
}

/// The CA of one trust domain. Cheap to clone; every clone is the same CA.
#[derive(Clone)]
pub struct IdentityManager(Arc<Inner>);

struct Inner {
    trust_domain: TrustDomain,
    lifetimes: Lifetimes,
    clock: Clock,
    recorder: Arc<dyn Recorder>,
    store: Arc<dyn Store>,
    authorities: Mutex<Authorities>,
    /// Changes of authorities that are in force and not recorded yet, the oldest first.
    changes: Mutex<VecDeque<IdentityEvent>>,
    /// Held while they are recorded.
    recording: tokio::sync::Mutex<()>,
    issuing: watch::Sender<Arc<Issuing>>,
    /// `None` until they have been loaded for the first time.
    registrations: watch::Sender<Option<Registrations>>,
    revoked: Mutex<RevocationList>,
    revocations: watch::Receiver<Arc<Revocations>>,
}

impl IdentityManager {
    /// Opens a CA, or makes a new one where `store` is empty.
    ///
    /// # Errors
    /// When the stored state is corrupt, foreign, or cannot be brought up to date.
    pub fn open(
        store: impl Store,
        config: CaConfig,
        recorder: Arc<dyn Recorder>,
        clock: Clock,
    ) -> Result<Self, CaError> {
        let store: Arc<dyn Store> = Arc::new(store);
        let revoked = RevocationList::open(Arc::clone(&store))?;
        let authorities =
            Authorities::open(Arc::clone(&store), &config.trust_domain, config.lifetimes, clock())?;
        let issuing = Issuing { signer: authorities.signer()?, bundle: authorities.bundle()? };
        Ok(Self(Arc::new(Inner {
            trust_domain: config.trust_domain,
            lifetimes: config.lifetimes,
            clock,
            recorder,
            store,
            authorities: Mutex::new(authorities),
            changes: Mutex::default(),
            recording: tokio::sync::Mutex::default(),
            issuing: watch::Sender::new(Arc::new(issuing)),
            registrations: watch::Sender::new(None),
            revocations: revoked.subscribe(),
            revoked: Mutex::new(revoked),
        })))
    }

    /// Replaces all registrations. Until the first call the Workload API answers "unavailable".
    ///
    /// # Errors
    /// When the set contradicts itself; the old one stays in force then.
    pub fn register(&self, registrations: Vec<Registration>) -> Result<(), RegistrationError> {
        registration::check(&registrations, &self.0.trust_domain)?;
        self.0.registrations.send_replace(Some(registrations.into()));
        Ok(())
    }

    /// The registration of an agent.
    #[must_use]
    pub fn registration(&self, id: &AgentId) -> Option<Registration> {
        let registrations = self.0.registrations.borrow().clone()?;
        registrations.iter().find(|registration| registration.id == *id).cloned()
    }

    /// Issues an X.509-SVID to the agent `name`, for whom `sponsor` answers: the identity with
    /// which governed traffic is sent. It is never given to the application.
    ///
    /// # Errors
    /// When the agent is not registered, has another sponsor, was revoked, or the audit log does
    /// not record it.
    pub async fn issue(&self, name: &AgentId, sponsor: &Sponsor) -> Result<X509Svid, CaError> {
        let registration = self.sponsored(name, sponsor)?;
        self.issue_as(name.spiffe_id(), &registration).await
    }

    /// As [`Self::issue`], for a key that stays with the sender of a PKCS#10 request. Returns the
    /// chain, leaf first.
    ///
    /// # Errors
    /// As [`Self::issue`], and when the request is anything but a key.
    pub async fn sign_request(
        &self,
        name: &AgentId,
        sponsor: &Sponsor,
        request: &[u8],
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        let registration = self.sponsored(name, sponsor)?;
        self.sign_registered(name.spiffe_id(), &registration, request).await
    }

    /// Signs the key of a request for an agent that was recognised, or for its application.
    pub(crate) async fn sign_registered(
        &self,
        id: &SpiffeId,
        to: &Registration,
        request: &[u8],
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        self.sign_key(id, Some(to.sponsor.clone()), request, self.ttl(to)).await
    }

    /// Signs the key of a request for a part of Aegis itself.
    pub(crate) async fn sign_component(
        &self,
        name: &str,
        request: &[u8],
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        let id = self.component(name)?;
        self.sign_key(&id, None, request, self.0.lifetimes.svid).await
    }

    async fn sign_key(
        &self,
        id: &SpiffeId,
        sponsor: Option<Sponsor>,
        request: &[u8],
        ttl: Duration,
    ) -> Result<Vec<CertificateDer<'static>>, CaError> {
        self.refuse_revoked(id)?;
        let now = (self.0.clock)();
        let chain = self.issuing().signer.sign_request(id, request, ttl, now)?;
        let leaf = chain.first().ok_or(IssueError::Randomness)?;
        let event = IdentityEvent::X509Issued {
            id: id.clone(),
            sponsor,
            serial: serial_of(leaf)?,
            not_after: now.plus(ttl),
        };
        self.record(&event).await?;
        Ok(chain)
    }

    fn component(&self, name: &str) -> Result<SpiffeId, InvalidIdentity> {
        format!("{}/aegis/{name}", self.0.trust_domain.uri()).parse()
    }

    /// Issues the application's own SVID, `…/workload`.
    pub(crate) async fn issue_workload(&self, to: &Registration) -> Result<X509Svid, CaError> {
        self.issue_as(&to.id.workload(), to).await
    }

    /// Issues an SVID to a part of Aegis itself: `spiffe://<trust domain>/aegis/<name>`.
    ///
    /// # Errors
    /// When `name` is not a path segment, or the audit log does not record it.
    pub async fn issue_component(&self, name: &str) -> Result<X509Svid, CaError> {
        let id = self.component(name)?;
        self.issue_recorded(&id, None, self.0.lifetimes.svid).await
    }

    /// Issues a JWT-SVID to the application of an agent.
    pub(crate) async fn issue_jwt(
        &self,
        to: &Registration,
        audience: &[String],
    ) -> Result<JwtSvid, CaError> {
        let id = to.id.workload();
        self.refuse_revoked(&id)?;
        let svid = self.issuing().signer.issue_jwt(&id, audience, (self.0.clock)())?;
        let event = IdentityEvent::JwtIssued {
            id,
            sponsor: Some(to.sponsor.clone()),
            audience: audience.to_vec(),
            not_after: svid.expires,
        };
        self.record(&event).await?;
        Ok(svid)
    }

    /// Verifies an X.509-SVID (leaf first) against the bundle and the revocations.
    ///
    /// # Errors
    /// The first reason to refuse it.
    pub fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<PeerIdentity, VerifyError> {
        let revocations = Arc::clone(&self.0.revocations.borrow());
        verify_chain(chain, &self.issuing().bundle, &revocations, (self.0.clock)())
    }

    /// Verifies a JWT-SVID for an audience against the bundle and the revoked identities.
    ///
    /// # Errors
    /// The first reason to refuse it.
    pub fn verify_jwt(&self, token: &str, audience: &str) -> Result<JwtClaims, JwtError> {
        let claims = verify_jwt(token, audience, &self.issuing().bundle, (self.0.clock)())?;
        if self.0.revocations.borrow().covers_id(&claims.id) {
            return Err(JwtError::Revoked(claims.id));
        }
        Ok(claims)
    }

    /// Revokes a certificate or an identity. In force, on disk and published before this records
    /// it: a log that cannot be written must not keep a stolen key alive.
    ///
    /// # Errors
    /// When it cannot be written to disk (it is not in force then), or not be recorded (it is).
    pub async fn revoke(&self, subject: Subject, reason: &str) -> Result<(), CaError> {
        self.on_newest(|revoked| revoked.revoke(subject.clone(), reason, (self.0.clock)()))?;
        self.record(&IdentityEvent::Revoked { subject, reason: reason.to_owned() }).await
    }

    /// Takes a revocation back, recorded first. Returns whether there was one.
    ///
    /// # Errors
    /// When it cannot be recorded or written to disk; the revocation stays in force then.
    pub async fn reinstate(&self, subject: &Subject, reason: &str) -> Result<bool, CaError> {
        if !self.0.revoked.lock().entries().iter().any(|entry| entry.subject == *subject) {
            return Ok(false);
        }
        let event =
            IdentityEvent::Reinstated { subject: subject.clone(), reason: reason.to_owned() };
        self.record(&event).await?;
        self.on_newest(|revoked| revoked.reinstate(subject))
    }

    /// Changes the revocations. Where another replica was faster, they are read again first.
    fn on_newest<T>(
        &self,
        mut change: impl FnMut(&mut RevocationList) -> Result<T, RevokeError>,
    ) -> Result<T, CaError> {
        let mut tries = 0;
        loop {
            let changed = change(&mut self.0.revoked.lock());
            match changed {
                Err(RevokeError::Store(StoreError::Conflict(_))) if tries < MAX_CONFLICTS => {
                    tries += 1;
                    self.reload()?;
                }
                changed => return Ok(changed?),
            }
        }
    }

    /// All revocations.
    #[must_use]
    pub fn revoked(&self) -> Vec<Revoked> {
        self.0.revoked.lock().entries().to_vec()
    }

    /// Tells of every change of the revocations.
    #[must_use]
    pub fn revocations(&self) -> watch::Receiver<Arc<Revocations>> {
        self.0.revocations.clone()
    }

    /// The trust bundle.
    #[must_use]
    pub fn bundle(&self) -> Bundle {
        self.issuing().bundle.clone()
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.0.trust_domain
    }

    /// All authorities.
    #[must_use]
    pub fn authorities(&self) -> Vec<AuthorityInfo> {
        self.0.authorities.lock().info()
    }

    /// Lets a new authority sign at once. SVID sources and Workload API streams renew at once.
    ///
    /// # Errors
    /// When it cannot be written; the old one goes on signing then.
    pub fn rotate(&self, kind: Kind) -> Result<(), CaError> {
        self.change(|authorities| authorities.force(kind, false, (self.0.clock)()))
    }

    /// Distrusts a retired authority; everything is renewed at once.
    ///
    /// # Errors
    /// When it still signs, or the change cannot be written.
    pub fn taint(&self, authority: &str) -> Result<(), CaError> {
        self.change(|authorities| authorities.taint(authority, (self.0.clock)()))
    }

    /// Takes a retired authority out of the bundle, which ends all that it signed.
    ///
    /// # Errors
    /// When it still signs; when what it signed may be in use, unless `at_once`; when the change
    /// cannot be written.
    pub fn revoke_authority(&self, authority: &str, at_once: bool) -> Result<(), CaError> {
        self.change(|authorities| authorities.revoke(authority, at_once, (self.0.clock)()))
    }

    /// Does what rotation is due.
    ///
    /// # Errors
    /// When it cannot be written; the old authorities go on signing then.
    pub fn tick(&self) -> Result<(), CaError> {
        self.change(|authorities| authorities.tick((self.0.clock)()).map(|_| ()))
    }

    /// Takes over what another replica with the same store has changed.
    ///
    /// # Errors
    /// When it cannot be read; what is known stays in force then.
    pub fn reload(&self) -> Result<(), CaError> {
        self.0.store.reload().map_err(RotateError::from)?;
        self.0.revoked.lock().reload()?;
        self.change(|authorities| authorities.reopen((self.0.clock)()))
    }

    /// Rotates when it is due, for as long as this runs.
    pub async fn keep_rotating(self) {
        loop {
            tokio::time::sleep(ROTATION_INTERVAL).await;
            if let Err(error) = self.tick() {
                tracing::error!(%error, "the authorities could not be rotated; the old ones go on signing until they end");
            }
            if let Err(error) = self.record_changes().await {
                tracing::error!(%error, "a change of authorities could not be recorded; nothing is issued until it is");
            }
        }
    }

    /// A source of SVIDs for an agent in this process, for `SvidSource::start`.
    #[must_use]
    pub fn svids_of(&self, name: AgentId, sponsor: Sponsor) -> AgentSvids {
        let seen = Mutex::new(self.0.issuing.subscribe());
        AgentSvids { manager: self.clone(), name, sponsor, seen }
    }

    /// A source of SVIDs for a part of Aegis itself in this process.
    #[must_use]
    pub fn svids_of_component(&self, name: &str) -> ComponentSvids {
        let seen = Mutex::new(self.0.issuing.subscribe());
        ComponentSvids { manager: self.clone(), name: name.to_owned(), seen }
    }

    pub(crate) fn watch_issuing(&self) -> watch::Receiver<Arc<Issuing>> {
        self.0.issuing.subscribe()
    }

    pub(crate) fn watch_registrations(&self) -> watch::Receiver<Option<Registrations>> {
        self.0.registrations.subscribe()
    }

    pub(crate) fn clock(&self) -> Clock {
        Arc::clone(&self.0.clock)
    }

    fn issuing(&self) -> Arc<Issuing> {
        Arc::clone(&self.0.issuing.borrow())
    }

    fn ttl(&self, registration: &Registration) -> Duration {
        registration.ttl.unwrap_or(self.0.lifetimes.svid)
    }

    fn sponsored(&self, name: &AgentId, sponsor: &Sponsor) -> Result<Registration, CaError> {
        let registration =
            self.registration(name).ok_or_else(|| CaError::NotRegistered(name.clone()))?;
        if registration.sponsor == *sponsor {
            return Ok(registration);
        }
        let (id, claimed) = (name.clone(), sponsor.clone());
        Err(CaError::OtherSponsor { id, registered: registration.sponsor, claimed })
    }

    fn refuse_revoked(&self, id: &SpiffeId) -> Result<(), CaError> {
        match self.0.revocations.borrow().covers_id(id) {
            true => Err(CaError::Revoked(id.clone())),
            false => Ok(()),
        }
    }

    async fn issue_as(&self, id: &SpiffeId, to: &Registration) -> Result<X509Svid, CaError> {
        self.issue_recorded(id, Some(to.sponsor.clone()), self.ttl(to)).await
    }

    async fn issue_recorded(
        &self,
        id: &SpiffeId,
        sponsor: Option<Sponsor>,
        ttl: Duration,
    ) -> Result<X509Svid, CaError> {
        self.refuse_revoked(id)?;
        let svid = self.issuing().signer.issue(id, ttl, (self.0.clock)())?;
        let event = IdentityEvent::X509Issued {
            id: id.clone(),
            sponsor,
            serial: svid.serial().clone(),
            not_after: svid.not_after(),
        };
        self.record(&event).await?;
        Ok(svid)
    }

    /// Records what has happened to authorities since the last time, in its order. Issuing does so
    /// first, so that no identity is older in the log than the authority that signed it.
    ///
    /// # Errors
    /// When it cannot be recorded; it is tried again the next time.
    pub async fn record_changes(&self) -> Result<(), CaError> {
        // One at a time: an event leaves the queue once it is recorded.
        let _turn = self.0.recording.lock().await;
        loop {
            let Some(event) = self.0.changes.lock().front().cloned() else { return Ok(()) };
            self.0.recorder.record(&event).await.map_err(CaError::Unrecorded)?;
            self.0.changes.lock().pop_front();
        }
    }

    async fn record(&self, event: &IdentityEvent) -> Result<(), CaError> {
        self.record_changes().await?;
        self.0.recorder.record(event).await.map_err(CaError::Unrecorded)
    }

    /// Changes the authorities and publishes them if they are others now.
    fn change(
        &self,
        change: impl FnOnce(&mut Authorities) -> Result<(), RotateError>,
    ) -> Result<(), CaError> {
        let mut authorities = self.0.authorities.lock();
        let before = authorities.info();
        let changed = change(&mut authorities);
        self.0.changes.lock().extend(differences(&before, &authorities.info()));
        // Published even after an error: a change of two steps may have taken the first.
        let bundle = authorities.bundle()?;
        if bundle.sequence() != self.0.issuing.borrow().bundle.sequence() {
            let issuing = Issuing { signer: authorities.signer()?, bundle };
            self.0.issuing.send_replace(Arc::new(issuing));
        }
        Ok(changed?)
    }
}

/// What has become of each authority.
fn differences(before: &[AuthorityInfo], after: &[AuthorityInfo]) -> Vec<IdentityEvent> {
    let event = |authority: &AuthorityInfo, status| IdentityEvent::AuthorityChanged {
        authority: authority.id.clone(),
        kind: authority.kind,
        status,
        not_after: authority.not_after,
    };
    let changed = after.iter().filter(|now| !before.contains(now));
    let gone = before.iter().filter(|old| !after.iter().any(|now| now.id == old.id));
    let changed = changed.map(|now| event(now, Some(now.status)));
    changed.chain(gone.map(|old| event(old, None))).collect()
}

impl fmt::Debug for IdentityManager {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentityManager")
            .field("trust_domain", &self.0.trust_domain.as_str())
            .finish_non_exhaustive()
    }
}

/// SVIDs of one agent, straight from the CA in this process.
#[derive(Debug)]
pub struct AgentSvids {
    manager: IdentityManager,
    name: AgentId,
    sponsor: Sponsor,
    seen: Mutex<watch::Receiver<Arc<Issuing>>>,
}

impl SvidFetcher for AgentSvids {
    fn fetch(&self) -> BoxFuture<'_, Result<Fetched, Box<dyn Error + Send + Sync>>> {
        Box::pin(async move {
            let bundle = self.seen.lock().borrow_and_update().bundle.clone();
            let svid = self.manager.issue(&self.name, &self.sponsor).await?;
            Ok(Fetched { svid, bundle })
        })
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        changed(&self.seen)
    }
}

/// SVIDs of a part of Aegis, straight from the CA in this process.
#[derive(Debug)]
pub struct ComponentSvids {
    manager: IdentityManager,
    name: String,
    seen: Mutex<watch::Receiver<Arc<Issuing>>>,
}

impl SvidFetcher for ComponentSvids {
    fn fetch(&self) -> BoxFuture<'_, Result<Fetched, Box<dyn Error + Send + Sync>>> {
        Box::pin(async move {
            let bundle = self.seen.lock().borrow_and_update().bundle.clone();
            let svid = self.manager.issue_component(&self.name).await?;
            Ok(Fetched { svid, bundle })
        })
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        changed(&self.seen)
    }
}

fn changed(seen: &Mutex<watch::Receiver<Arc<Issuing>>>) -> BoxFuture<'_, ()> {
    // A clone has seen what this has seen.
    let mut seen = seen.lock().clone();
    Box::pin(async move {
        if seen.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    })
}
