//! Refusals of callers who have not proven who they are: counted, and recorded once a second, so
//! that a flood of them cannot flood the ledger.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use aegis_audit::entry::{Draft, Kind, Outcome};
use aegis_core::decision::Reason;
use aegis_kernel::Kernel;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// Counts refusals by server and reason.
#[derive(Debug, Default)]
pub struct Refusals {
    counts: Mutex<BTreeMap<(String, Reason), u64>>,
}

impl Refusals {
    /// Counts one.
    pub fn count(&self, server: &str, reason: Reason) {
        *self.counts.lock().entry((server.to_owned(), reason)).or_default() += 1;
    }

    /// Records what has been counted.
    pub async fn flush(&self, kernel: &Kernel) {
        let counted = std::mem::take(&mut *self.counts.lock());
        for ((server, reason), count) in counted {
            let mut draft = Draft::new(Kind::Refusals, kernel.now(), Outcome::Deny);
            draft.reason = Some(reason.code().into());
            draft.action.insert("server".into(), server.into());
            draft.detail.insert("count".into(), count.into());
            if let Err(error) = kernel.record(draft).await {
                tracing::error!(%error, count, "refusals could not be recorded");
            }
        }
    }

    /// Flushes every second until `stop`, and once more then.
    pub async fn keep_flushing(self: Arc<Self>, kernel: Arc<Kernel>, stop: CancellationToken) {
        let mut every = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                _ = every.tick() => self.flush(&kernel).await,
                () = stop.cancelled() => return self.flush(&kernel).await,
            }
        }
    }
}
