//! Holds the SVID and the bundle of this process and renews them in time.
//!
//! Renewal comes at half of the remaining life, give or take a tenth, so that a fleet that started
//! together does not renew together. While renewal fails, the SVID at hand stays in use until it
//! expires; from then on there is none, and whoever needs one is refused.

use std::{error::Error, fmt, sync::Arc, time::Duration};

use aegis_core::Timestamp;
use futures::future::BoxFuture;
use rustls::sign::CertifiedKey;
use tokio::{sync::watch, task::AbortHandle};

use crate::{Bundle, Clock, SvidError, X509Svid};

/// The first pause after a failed renewal; it doubles from there.
const FIRST_BACKOFF: Duration = Duration::from_secs(1);
/// The longest pause between two tries.
const LONGEST_BACKOFF: Duration = Duration::from_secs(60);
/// Not even an SVID that is about to expire is asked for more often than this.
const SHORTEST_WAIT: Duration = Duration::from_secs(1);

/// An SVID and the bundle that came with it.
#[derive(Debug, Clone)]
pub struct Fetched {
    /// The SVID.
    pub svid: X509Svid,
    /// The trust domain's bundle.
    pub bundle: Bundle,
}

/// Where SVIDs come from: the CA in this process, or one behind a connection.
pub trait SvidFetcher: Send + Sync + 'static {
    /// Asks for a new SVID.
    fn fetch(&self) -> BoxFuture<'_, Result<Fetched, Box<dyn Error + Send + Sync>>>;

    /// Resolves when the authorities have changed since the last [`fetch`](Self::fetch) began, so
    /// that renewal is due now. A source that cannot tell never resolves.
    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(std::future::pending())
    }
}

/// A deviation in per mille, −100 to 100.
pub type Jitter = Arc<dyn Fn() -> i32 + Send + Sync>;

/// The usual [`Jitter`].
#[must_use]
pub fn random_jitter() -> Jitter {
    Arc::new(|| rand::random_range(-100..=100))
}

/// What this process is at the moment.
#[derive(Clone)]
pub struct Identity {
    /// The SVID.
    pub svid: X509Svid,
    /// The trust domain's bundle.
    pub bundle: Bundle,
    /// The SVID as rustls presents it.
    pub(crate) certified: Arc<CertifiedKey>,
}

/// Why there is no usable SVID.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The first SVID could not be had.
    #[error("no SVID could be had: {0}")]
    Fetch(Box<dyn Error + Send + Sync>),
    /// What was fetched cannot be used.
    #[error(transparent)]
    Svid(#[from] SvidError),
    /// Renewal has failed for too long.
    #[error("the SVID of {id} expired at {at} and could not be renewed")]
    Expired {
        /// Whose SVID.
        id: String,
        /// When.
        at: Timestamp,
    },
}

/// The SVID of this process, kept current by a task that ends with the source.
pub struct SvidSource {
    current: watch::Sender<Arc<Identity>>,
    clock: Clock,
    renewal: AbortHandle,
}

impl Identity {
    fn new(fetched: Fetched) -> Result<Self, SvidError> {
        let certified = Arc::new(fetched.svid.certified_key()?);
        Ok(Self { svid: fetched.svid, bundle: fetched.bundle, certified })
    }
}

impl SvidSource {
    /// Fetches the first SVID and starts to renew it.
    ///
    /// # Errors
    /// When the first SVID cannot be had.
    pub async fn start(
        fetcher: Arc<dyn SvidFetcher>,
        clock: Clock,
        jitter: Jitter,
    ) -> Result<Self, SourceError> {
        let first = fetcher.fetch().await.map_err(SourceError::Fetch)?;
        let current = watch::Sender::new(Arc::new(Identity::new(first)?));
        let task = tokio::spawn(renew(fetcher, current.clone(), Arc::clone(&clock), jitter));
        Ok(Self { current, clock, renewal: task.abort_handle() })
    }

    /// The SVID at hand.
    ///
    /// # Errors
    /// When it has expired.
    pub fn current(&self) -> Result<Arc<Identity>, SourceError> {
        let identity = Arc::clone(&self.current.borrow());
        let at = identity.svid.not_after();
        if (self.clock)() >= at {
            return Err(SourceError::Expired { id: identity.svid.id().to_string(), at });
        }
        Ok(identity)
    }

    /// The bundle at hand; it outlives the SVID.
    #[must_use]
    pub fn bundle(&self) -> Bundle {
        self.current.borrow().bundle.clone()
    }

    /// Tells of every new SVID and bundle.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<Arc<Identity>> {
        self.current.subscribe()
    }

    /// Believes another bundle from now on, without waiting for the next renewal.
    pub fn believe(&self, bundle: Bundle) {
        self.current.send_if_modified(|current| {
            let changed = current.bundle != bundle;
            if changed {
                *current = Arc::new(Identity { bundle, ..(**current).clone() });
            }
            changed
        });
    }

    /// The clock that this source goes by.
    #[must_use]
    pub fn clock(&self) -> Clock {
        Arc::clone(&self.clock)
    }
}

impl Drop for SvidSource {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

impl fmt::Debug for SvidSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SvidSource")
            .field("svid", &self.current.borrow().svid)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity").field("svid", &self.svid).finish_non_exhaustive()
    }
}

/// When to renew an SVID that is at hand at `now`: half of its remaining life, jittered.
#[must_use]
pub fn renewal_wait(not_after: Timestamp, now: Timestamp, jitter: i32) -> Duration {
    jittered(not_after.since(now) / 2, jitter).max(SHORTEST_WAIT)
}

fn jittered(duration: Duration, jitter: i32) -> Duration {
    let per_mille = 1000_i32.saturating_add(jitter.clamp(-100, 100)).unsigned_abs();
    duration.saturating_mul(per_mille) / 1000
}

async fn renew(
    fetcher: Arc<dyn SvidFetcher>,
    publish: watch::Sender<Arc<Identity>>,
    clock: Clock,
    jitter: Jitter,
) {
    loop {
        let not_after = publish.borrow().svid.not_after();
        tokio::select! {
            () = tokio::time::sleep(renewal_wait(not_after, clock(), jitter())) => {}
            () = fetcher.changed() => {}
        }
        let mut backoff = FIRST_BACKOFF;
        let next = loop {
            let attempt = match fetcher.fetch().await {
                Ok(fetched) => Identity::new(fetched).map_err(SourceError::from),
                Err(error) => Err(SourceError::Fetch(error)),
            };
            match attempt {
                Ok(identity) => break identity,
                Err(error) => {
                    let expires = publish.borrow().svid.not_after();
                    tracing::warn!(%error, %expires, "the SVID could not be renewed; it stays in use until it expires");
                }
            }
            tokio::time::sleep(jittered(backoff, jitter())).await;
            backoff = backoff.saturating_mul(2).min(LONGEST_BACKOFF);
        };
        publish.send_modify(|current| {
            let mut next = next;
            // A change of the authorities may have overtaken the answer.
            if current.bundle.sequence() > next.bundle.sequence() {
                next.bundle = current.bundle.clone();
            }
            *current = Arc::new(next);
        });
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn renewal_comes_near_half_life(life in 60_u64..86_400, jitter in -500_i32..500) {
            let now = Timestamp::from_secs(1_000_000);
            let wait = renewal_wait(now.plus(Duration::from_secs(life)), now, jitter);
            let half = Duration::from_secs(life) / 2;
            prop_assert!(wait >= half * 9 / 10 && wait <= half * 11 / 10);
        }
    }

    #[test]
    fn an_expired_svid_is_asked_for_at_a_bounded_rate() {
        assert_eq!(
            renewal_wait(Timestamp::from_secs(5), Timestamp::from_secs(9), -100),
            SHORTEST_WAIT
        );
    }
}
