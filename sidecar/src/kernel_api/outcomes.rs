//! Allowed actions that await their outcome. Each gets exactly one: what its agent reports, or
//! `unknown` after a deadline, a while after its connection ended, or when the process does.

use std::{
    collections::HashMap,
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
    agent: AgentId,
    connection: u64,
    since: Instant,
    due: Instant,
}

/// All of them, by the decision's id.
#[derive(Default)]
pub(super) struct OpenDecisions {
    open: Mutex<HashMap<String, Open>>,
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
        let open =
            Open { receipt, agent: agent.clone(), connection, since: now, due: now + DEADLINE };
        let forgotten = {
            let mut all = self.open.lock();
            let own = all.iter().filter(|(_, open)| open.agent == *agent);
            let oldest = match own.clone().count() {
                0..MAX_OPEN => None,
                _ => own.min_by_key(|(_, open)| open.since).map(|(id, _)| id.clone()),
            };
            let forgotten = oldest.and_then(|id| all.remove(&id));
            all.insert(id, open);
            forgotten
        };
        if let Some(forgotten) = forgotten {
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
        let taken = {
            let mut all = self.open.lock();
            let own = all.get(decision).is_some_and(|open| open.agent == *agent);
            own.then(|| all.remove(decision)).flatten()
        };
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
        for open in self.open.lock().values_mut().filter(|open| open.connection == connection) {
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
        let over: Vec<Open> =
            self.open.lock().extract_if(|_, open| ended(open)).map(|(_, open)| open).collect();
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
            events: 0,
            micros: u64::try_from(self.since.elapsed().as_micros()).unwrap_or(u64::MAX),
            redactions: 0,
        };
        if let Err(error) = kernel.conclude(&self.receipt, &ending).await {
            tracing::error!(%error, "an outcome could not be recorded");
        }
    }
}
