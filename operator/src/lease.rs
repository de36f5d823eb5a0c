//! Leader election by a Lease: one operator reconciles and distributes at a time.
//!
//! A candidate takes a lease that nobody has renewed for its whole duration, judged by the
//! candidate's own clock since it last saw a change; clocks of others do not count. A leader that
//! could not renew in time stops before anybody else can start. Each term has a number that only
//! grows, which what is distributed carries: an old leader's word does not count after a new one's.

use std::time::Duration;

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta},
    jiff,
};
use kube::{Api, Client, api::PostParams};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How an election goes.
#[derive(Clone, Copy, Debug)]
pub struct Timing {
    /// How long a term lasts without being renewed.
    pub duration: Duration,
    /// How long a leader tries to renew before it stops; shorter than `duration`.
    pub deadline: Duration,
    /// How long to wait between tries.
    pub retry: Duration,
}

impl Default for Timing {
    /// As client-go has them.
    fn default() -> Self {
        Self {
            duration: Duration::from_secs(15),
            deadline: Duration::from_secs(10),
            retry: Duration::from_secs(2),
        }
    }
}

/// A candidate.
#[derive(Clone, Debug)]
pub struct Candidate {
    api: Api<Lease>,
    name: String,
    identity: String,
    timing: Timing,
}

/// A term of office.
#[derive(Clone, Debug)]
pub struct Term {
    /// Its number; the next leader's is larger.
    pub number: u32,
    /// Cancelled once the term is over, whether or not its holder wanted that.
    pub over: CancellationToken,
}

/// What a candidate knows of the lease: what it looked like, and since when.
struct Seen {
    spec: LeaseSpec,
    at: Instant,
}

impl Candidate {
    /// A candidate for the lease `name` in `namespace`. `identity` must be unique to the process.
    #[must_use]
    pub fn new(
        client: Client,
        namespace: &str,
        name: &str,
        identity: String,
        timing: Timing,
    ) -> Self {
        Self { api: Api::namespaced(client, namespace), name: name.to_owned(), identity, timing }
    }

    /// Waits to be elected; then renews in the background until `stop`, and lets go of the lease.
    /// `None` when stopped first.
    pub async fn elected(
        self,
        stop: &CancellationToken,
    ) -> Option<(Term, tokio::task::JoinHandle<()>)> {
        let mut seen = None;
        loop {
            let attempt = tokio::select! {
                () = stop.cancelled() => return None,
                attempt = self.attempt(&mut seen) => attempt,
            };
            match attempt {
                Ok(Some(lease)) => {
                    let term = Term { number: transitions(&lease), over: CancellationToken::new() };
                    let (over, stop) = (term.over.clone(), stop.clone());
                    let keeping = tokio::spawn(async move { self.keep(lease, over, stop).await });
                    return Some((term, keeping));
                }
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(lease = self.name, %error, "the lease cannot be read or written")
                }
            }
            tokio::select! {
                () = stop.cancelled() => return None,
                () = tokio::time::sleep(self.timing.retry) => {}
            }
        }
    }

    /// One try. `None`: somebody else leads.
    async fn attempt(&self, seen: &mut Option<Seen>) -> Result<Option<Lease>, kube::Error> {
        let Some(lease) = self.api.get_opt(&self.name).await? else {
            let metadata = ObjectMeta { name: Some(self.name.clone()), ..ObjectMeta::default() };
            let lease = Lease { metadata, spec: Some(self.spec(1, now())) };
            return won(self.api.create(&PostParams::default(), &lease).await);
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let vacant = spec.holder_identity.as_deref().unwrap_or_default().is_empty();
        if !vacant {
            let unchanged = seen.as_ref().filter(|seen| {
                seen.spec.renew_time == spec.renew_time
                    && seen.spec.holder_identity == spec.holder_identity
            });
            let Some(unchanged) = unchanged else {
                *seen = Some(Seen { spec, at: Instant::now() });
                return Ok(None);
            };
            let term = unchanged.spec.lease_duration_seconds.unwrap_or(0);
            let term = Duration::from_secs(u64::try_from(term).unwrap_or(0));
            if unchanged.at.elapsed() < term.max(self.timing.duration) {
                return Ok(None);
            }
        }
        // The resource version decides between candidates that try at once.
        let next = i32::try_from(transitions(&lease)).unwrap_or(i32::MAX).saturating_add(1);
        let taken = Lease { spec: Some(self.spec(next, now())), ..lease };
        won(self.api.replace(&self.name, &PostParams::default(), &taken).await)
    }

    fn spec(&self, transitions: i32, acquired: MicroTime) -> LeaseSpec {
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.timing.duration.as_secs().max(1)).ok(),
            acquire_time: Some(acquired.clone()),
            renew_time: Some(acquired),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    async fn keep(self, mut lease: Lease, over: CancellationToken, stop: CancellationToken) {
        let mut renewed = Instant::now();
        loop {
            tokio::select! {
                () = stop.cancelled() => break,
                () = tokio::time::sleep(self.timing.retry) => {}
            }
            let remaining = self.timing.deadline.saturating_sub(renewed.elapsed());
            match tokio::time::timeout(remaining, self.renew(&lease)).await {
                Ok(Ok(fresh)) => {
                    lease = fresh;
                    renewed = Instant::now();
                }
                Ok(Err(kube::Error::Api(status)))
                    if status.is_conflict() || status.is_not_found() =>
                {
                    tracing::error!(lease = self.name, "somebody else has taken the lease");
                    over.cancel();
                    return;
                }
                Ok(Err(error)) => {
                    tracing::warn!(lease = self.name, %error, "the lease could not be renewed")
                }
                Err(_) => {}
            }
            if renewed.elapsed() >= self.timing.deadline {
                tracing::error!(lease = self.name, "the lease could not be renewed in time");
                over.cancel();
                return;
            }
        }
        over.cancel();
        let mut spec = lease.spec.clone().unwrap_or_default();
        spec.holder_identity = Some(String::new());
        let vacated = Lease { spec: Some(spec), ..lease };
        if let Err(error) = self.api.replace(&self.name, &PostParams::default(), &vacated).await {
            tracing::warn!(lease = self.name, %error, "the lease could not be given back; it runs out by itself");
        }
    }

    async fn renew(&self, lease: &Lease) -> Result<Lease, kube::Error> {
        let mut spec = lease.spec.clone().unwrap_or_default();
        spec.renew_time = Some(now());
        let renewed = Lease { spec: Some(spec), ..lease.clone() };
        self.api.replace(&self.name, &PostParams::default(), &renewed).await
    }
}

fn won(written: Result<Lease, kube::Error>) -> Result<Option<Lease>, kube::Error> {
    match written {
        Ok(lease) => Ok(Some(lease)),
        Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

fn transitions(lease: &Lease) -> u32 {
    let count = lease.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or(0);
    u32::try_from(count).unwrap_or(0)
}

fn now() -> MicroTime {
    MicroTime(jiff::Timestamp::now())
}
