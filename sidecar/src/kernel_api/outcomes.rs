//! Allowed actions that await their outcome. Each gets exactly one: what its agent reports, or
//! `unknown` after a deadline, a while after its connection ended, or when the process does.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use aegis_audit::entry::Outcome;
use aegis_core::AgentId;
use aegis_kernel::{Ending, Kernel, Receipt};
use parking_lot::Mutex;
use tokio::time::Instant;

/// How long an action may take while its caller stays connected.
pub(super) const DEADLINE: Duration = Duration::from_secs(60 * 60);
/// How long an outcome is awaited of a caller that has gone: one that connects anew for each
/// question tells it on another connection.
const AFTERWARDS: Duration = Duration::from_secs(30);
/// How many actions of one agent may be open. Beyond, the oldest is concluded as `unknown`.
const MAX_OPEN: usize = 1_024;
/// How often deadlines are looked at.
const TICK: Duration = Duration::from_secs(1);

/// One of them.
struct Open {
    receipt: Receipt,
    connection: u64,
    since: Instant,
    due: Instant,
}

/// Those of one agent by the decision's id, which sorts by time.
type OfAgent = BTreeMap<String, Open>;

/// All of them.
#[derive(Default)]
pub(super) struct OpenDecisions {
    open: Mutex<HashMap<AgentId, OfAgent>>,
    connections: AtomicU64,
}

impl OpenDecisions {
    /// A number for a new connection.
    pub(super) fn next_connection(&self) -> u64 {
        self.connections.fetch_add(1, Ordering::Relaxed)
    }

    /// Keeps a receipt until its outcome is known.
    pub(super) async fn put(
        &self,
        kernel: &Kernel,
        agent: &AgentId,
        connection: u64,
        receipt: Receipt,
    ) {
        let now = Instant::now();
        let id = receipt.decision_id.clone();
        let open = Open { receipt, connection, since: now, due: now + DEADLINE };
        let forgotten = {
            let mut all = self.open.lock();
            let own = all.entry(agent.clone()).or_default();
            own.insert(id, open);
            if own.len() > MAX_OPEN { own.pop_first() } else { None }
        };
        if let Some((_, forgotten)) = forgotten {
            forgotten.conclude(kernel, Outcome::Unknown).await;
        }
    }

    /// Records what an agent says of its own action; `false` if none of its actions with that id
    /// awaits an outcome.
    pub(super) async fn report(
        &self,
        kernel: &Kernel,
        agent: &AgentId,
        decision: &str,
        result: Outcome,
    ) -> bool {
        // Another's is not found: there is no asking for it.
        let taken = self.open.lock().get_mut(agent).and_then(|own| own.remove(decision));
        match taken {
            Some(open) => {
                open.conclude(kernel, result).await;
                true
            }
            None => false,
        }
    }

    /// The caller has gone: what it was allowed is awaited for a while longer.
    pub(super) fn disconnected(&self, connection: u64) {
        let until = Instant::now() + AFTERWARDS;
        let mut all = self.open.lock();
        let open = all.values_mut().flat_map(BTreeMap::values_mut);
        for open in open.filter(|open| open.connection == connection) {
            open.due = open.due.min(until);
        }
    }

    /// Concludes what is overdue, for ever.
    pub(super) async fn keep_concluding(&self, kernel: &Kernel) -> Infallible {
        let mut every = tokio::time::interval(TICK);
        loop {
            every.tick().await;
            let now = Instant::now();
            self.conclude_where(kernel, |open| open.due <= now).await;
        }
    }

    /// Concludes everything.
    pub(super) async fn conclude_all(&self, kernel: &Kernel) {
        self.conclude_where(kernel, |_| true).await;
    }

    async fn conclude_where(&self, kernel: &Kernel, ended: impl Fn(&Open) -> bool) {
        let mut over = Vec::new();
        self.open.lock().retain(|_, own| {
            over.extend(own.extract_if(.., |_, open| ended(open)).map(|(_, open)| open));
            !own.is_empty()
        });
        for open in over {
            open.conclude(kernel, Outcome::Unknown).await;
        }
    }
}

impl Open {
    async fn conclude(self, kernel: &Kernel, result: Outcome) {
        let ending = Ending {
            result,
            reason: None,
            status: None,
            bytes: 0,
            sent: 0,
            events: 0,
            micros: u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX),
            redactions: 0,
        };
        if let Err(error) = kernel.conclude(&self.receipt, &ending).await {
            tracing::error!(%error, "an outcome could not be recorded");
        }
    }
}
