//! What sidecars enforce: put together from what is in force, signed, and handed out as it changes.
//!
//! Only the leader signs. A serial is made of the leader's term and a count within it, so that a
//! leader that does not know yet that it is none cannot say anything that counts after its successor
//! has spoken.

mod compose;
pub mod key;
mod serve;
mod trust;

use std::{pin::Pin, sync::Arc, time::Duration};

use aegis_api::distribution::{
    Confirmation, Distributed, Registered, Statement, Tightened, Upstream,
    proto::{
        FollowRequest, Signed,
        distribution_server::{Distribution, DistributionServer},
    },
    sign,
};
use aegis_api::trust::Weighing;
use aegis_core::{AgentId, Digest, Timestamp, thresholds::Thresholds, trust::Trust};
use ed25519_dalek::SigningKey;
use futures::Stream;
use parking_lot::Mutex;
use prometheus::IntGauge;
use serde_json::value::{RawValue, to_raw_value};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use crate::clock;

pub use compose::{Sources, compose, keep_publishing};
pub use serve::{Served, keep_serving, serve};
pub use trust::Known;

use trust::Posteriors;

/// How long a signed state counts, if nothing newer comes. It bounds what a sidecar that starts
/// anew could be played.
const STATE_LIFE: Duration = Duration::from_secs(600);
/// How often a sidecar hears that what it has is the newest; well below `maxStalenessSecs`.
const CONFIRM: Duration = Duration::from_secs(10);
/// How long signed trust is handed to others too.
const FRESH: Duration = Duration::from_secs(5);
/// How long a confirmation counts.
const CONFIRMATION_LIFE: Duration = Duration::from_secs(30);

/// What is to be enforced, without serial and times.
#[derive(Clone, Debug, Default)]
pub struct Content {
    /// The compiled policies.
    pub policies: Option<Box<RawValue>>,
    /// The cluster's thresholds.
    pub thresholds: Thresholds,
    /// What namespaces tighten.
    pub tightened: Vec<Tightened>,
    /// Who is registered.
    pub agents: Vec<Registered>,
    /// The servers outside the mesh.
    pub upstreams: Vec<Upstream>,
    /// Whom the CA has revoked.
    pub revoked: Vec<AgentId>,
    /// Who is suspended, one by one; `thresholds` and `tightened` suspend more.
    pub quarantined: Vec<AgentId>,
}

impl Content {
    /// With these policies.
    ///
    /// # Errors
    /// When they have no JSON form.
    pub fn with_policies(bundle: &aegis_policy::Bundle) -> Result<Self, serde_json::Error> {
        Ok(Self { policies: Some(to_raw_value(bundle)?), ..Self::default() })
    }

    fn weighing(&self) -> Weighing {
        let own = self.tightened.iter();
        let own = own.map(|one| (one.namespace.clone(), one.thresholds.clone()));
        Weighing { cluster: self.thresholds.clone(), namespaces: own.collect() }
    }

    fn digest(&self) -> Digest {
        let policies = self.policies.as_ref().map_or("", |policies| policies.get());
        let rest = serde_json::to_vec(&(
            (&self.thresholds, &self.tightened, &self.agents, &self.upstreams),
            (&self.revoked, &self.quarantined),
        ));
        Digest::of_parts(&[policies.as_bytes(), &rest.unwrap_or_default()])
    }
}

/// A state under a serial.
#[derive(Debug)]
struct State {
    serial: u64,
    content: Content,
    digest: Digest,
    /// Signed last, and until when that counts.
    signed: Mutex<Option<(Signed, Timestamp)>>,
}

/// Signs states and hands them out.
#[derive(Clone)]
pub struct Publisher {
    key: Arc<SigningKey>,
    current: watch::Sender<Option<Arc<State>>>,
    trust: watch::Sender<Posteriors>,
    /// By what evidence is weighed; none before the first state.
    weighing: watch::Sender<Option<Weighing>>,
    /// The trust that was signed last: which changes, and until when that counts.
    signed_trust: Arc<Mutex<Option<SignedTrust>>>,
    sidecars: Option<IntGauge>,
}

/// Signed changes of trust: since which number, up to which, and when.
type SignedTrust = ((u64, u64), Timestamp, Signed);

/// A sidecar that follows, as a gauge counts it.
struct Counted(Option<IntGauge>);

impl Counted {
    fn new(gauge: Option<IntGauge>) -> Self {
        gauge.iter().for_each(IntGauge::inc);
        Self(gauge)
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.iter().for_each(IntGauge::dec);
    }
}

impl std::fmt::Debug for Publisher {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Publisher").field("serial", &self.serial()).finish_non_exhaustive()
    }
}

impl Publisher {
    /// Signs with `key`; hands nothing out yet.
    #[must_use]
    pub fn new(key: SigningKey) -> Self {
        Self {
            key: Arc::new(key),
            current: watch::channel(None).0,
            trust: watch::Sender::new(Posteriors::default()),
            weighing: watch::Sender::new(None),
            signed_trust: Arc::default(),
            sidecars: None,
        }
    }

    /// Counts who follows.
    #[must_use]
    pub fn counting(self, sidecars: IntGauge) -> Self {
        Self { sidecars: Some(sidecars), ..self }
    }

    /// The serial in force; 0 before the first.
    #[must_use]
    pub fn serial(&self) -> u64 {
        self.current.borrow().as_ref().map_or(0, |state| state.serial)
    }

    /// Puts a state in force, in this term. The same content again changes nothing. Returns whether
    /// it was new.
    pub fn publish(&self, term: u32, content: Content) -> bool {
        let digest = content.digest();
        let weighing = content.weighing();
        self.weighing.send_if_modified(|known| {
            let news = known.as_ref() != Some(&weighing);
            *known = Some(weighing);
            news
        });
        self.current.send_if_modified(|current| {
            if current.as_ref().is_some_and(|state| state.digest == digest) {
                return false;
            }
            let first = (u64::from(term) << 32) | 1;
            let serial = current.as_ref().map_or(first, |state| first.max(state.serial + 1));
            *current = Some(Arc::new(State { serial, content, digest, signed: Mutex::new(None) }));
            true
        })
    }

    /// Tells sidecars how much agents are trusted, by what the ledger has folded from its first
    /// `as_of` entries; `all` if nobody else has a history. Returns whose trust is another now.
    pub fn tell_trust(
        &self,
        term: u32,
        as_of: u64,
        told: Vec<(AgentId, Trust)>,
        all: bool,
    ) -> Vec<AgentId> {
        let mut changed = Vec::new();
        self.trust.send_if_modified(|posteriors| {
            changed = posteriors.change(term, as_of, told, all);
            !changed.is_empty()
        });
        changed
    }

    /// How much an agent is trusted; `None` for one whose history nobody has told.
    #[must_use]
    pub fn trust_of(&self, agent: &AgentId) -> Option<Known> {
        self.trust.borrow().of(agent)
    }

    /// By what the ledger is to weigh agents' evidence, whenever that changes.
    #[must_use]
    pub fn weighing(&self) -> watch::Receiver<Option<Weighing>> {
        self.weighing.subscribe()
    }

    /// The thresholds that are in force for a namespace.
    #[must_use]
    pub fn thresholds_of(&self, namespace: &str) -> Thresholds {
        self.current.borrow().as_ref().map_or_else(Thresholds::default, |state| {
            let content = &state.content;
            let own = content.tightened.iter().find(|one| one.namespace == namespace);
            own.map_or(&content.thresholds, |one| &one.thresholds).clone()
        })
    }

    /// What has changed since `since`; the number up to which it tells.
    fn sign_trust(&self, since: u64, now: Timestamp) -> Result<(u64, Signed), serde_json::Error> {
        let posteriors = self.trust.borrow();
        let which = (since, posteriors.number());
        let mut known = self.signed_trust.lock();
        // Most sidecars were told the same before.
        if let Some((signed_which, at, signed)) = &*known
            && *signed_which == which
            && now.since(*at) < FRESH
        {
            return Ok((which.1, signed.clone()));
        }
        let signed = sign(&posteriors.since(since, now), &self.key)?;
        *known = Some((which, now, signed.clone()));
        Ok((which.1, signed))
    }

    fn sign_state(&self, state: &State, now: Timestamp) -> Result<Signed, serde_json::Error> {
        let mut known = state.signed.lock();
        // Whoever gets it has half of its life left.
        if let Some((signed, expires_at)) = &*known
            && *expires_at > now.plus(STATE_LIFE / 2)
        {
            return Ok(signed.clone());
        }
        let expires_at = now.plus(STATE_LIFE);
        let content = state.content.clone();
        let statement = Statement::State(Box::new(Distributed {
            serial: state.serial,
            issued_at: now,
            expires_at,
            policies: match content.policies {
                Some(policies) => policies,
                None => to_raw_value(&aegis_policy::Bundle::default())?,
            },
            thresholds: content.thresholds,
            tightened: content.tightened,
            agents: content.agents,
            upstreams: content.upstreams,
            revoked: content.revoked,
            quarantined: content.quarantined,
        }));
        let signed = sign(&statement, &self.key)?;
        *known = Some((signed.clone(), expires_at));
        Ok(signed)
    }

    fn confirm(&self, serial: u64, now: Timestamp) -> Result<Signed, serde_json::Error> {
        let expires_at = now.plus(CONFIRMATION_LIFE);
        let said = Confirmation { serial, issued_at: now, expires_at };
        sign(&Statement::Confirmation(said), &self.key)
    }

    /// As a gRPC service, until `stop`.
    #[must_use]
    pub fn service(self, stop: CancellationToken) -> DistributionServer<Service> {
        DistributionServer::new(Service { publisher: self, stop })
    }

    /// Tells one sidecar what is in force, from what it has on.
    async fn tell(
        self,
        held: FollowRequest,
        tell: mpsc::Sender<Result<Signed, Status>>,
        stop: CancellationToken,
    ) {
        let _counted = Counted::new(self.sidecars.clone());
        let (mut changes, mut trust) = (self.current.subscribe(), self.trust.subscribe());
        let FollowRequest { serial: mut told, trust: mut told_trust } = held;
        let mut ticks = tokio::time::interval(CONFIRM);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let state = changes.borrow_and_update().clone();
            let Some(state) = state else { return };
            let number = trust.borrow_and_update().number();
            let signed = match told_trust {
                _ if state.serial != told => {
                    ticks.reset();
                    told = state.serial;
                    self.sign_state(&state, clock::now())
                }
                Some(since) if since < number => {
                    self.sign_trust(since, clock::now()).map(|(number, signed)| {
                        told_trust = Some(number);
                        signed
                    })
                }
                _ => tokio::select! {
                    () = stop.cancelled() => return,
                    () = tell.closed() => return,
                    changed = changes.changed() => match changed {
                        Ok(()) => continue,
                        Err(_) => return,
                    },
                    Ok(()) = trust.changed() => continue,
                    _ = ticks.tick() => self.confirm(state.serial, clock::now()),
                },
            };
            let signed = signed.map_err(|error| Status::internal(error.to_string()));
            let failed = signed.is_err();
            // A sidecar that does not read is told the newest state once it reads again.
            if tell.send(signed).await.is_err() || failed {
                return;
            }
        }
    }
}

/// The gRPC service.
#[derive(Debug)]
pub struct Service {
    publisher: Publisher,
    stop: CancellationToken,
}

#[tonic::async_trait]
impl Distribution for Service {
    type FollowStream = Pin<Box<dyn Stream<Item = Result<Signed, Status>> + Send>>;

    async fn follow(
        &self,
        request: Request<FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        if self.publisher.serial() == 0 {
            return Err(Status::unavailable(
                "this operator does not lead, or has just started; try again",
            ));
        }
        let held = request.into_inner();
        // One waits while another is sent: what comes in between is passed over.
        let (tell, told) = mpsc::channel(1);
        tokio::spawn(self.publisher.clone().tell(held, tell, self.stop.clone()));
        Ok(Response::new(Box::pin(ReceiverStream::new(told))))
    }
}
