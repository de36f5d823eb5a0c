//! Wrong one-time codes: counted by who gave them and for what, and recorded once a second, so that
//! guessing leaves a trace and cannot flood the ledger.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use aegis_audit::{Draft, Kind, Outcome};
use aegis_kernel::Kernel;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// What a code was to confirm.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Confirms {
    /// Something that permits more: an approval, a release, a pin, a score.
    More,
    /// Something that stops an agent: a quarantine, a revocation.
    Stop,
}

/// Wrong codes that are not recorded yet.
#[derive(Debug, Default)]
pub(super) struct Guesses(Mutex<BTreeMap<(String, Confirms), u64>>);

impl Guesses {
    /// Counts one.
    pub(super) fn count(&self, who: String, confirms: Confirms) {
        *self.0.lock().entry((who, confirms)).or_default() += 1;
    }

    fn take(&self, kernel: &Kernel) -> Vec<Draft> {
        let counted = std::mem::take(&mut *self.0.lock());
        let draft = |((who, confirms), count): ((String, Confirms), u64)| {
            let mut draft = Draft::new(Kind::Refusals, kernel.now(), Outcome::Deny);
            draft.detail.insert("what".into(), "one_time_code".into());
            draft.detail.insert("who".into(), who.into());
            let confirms = if confirms == Confirms::Stop { "stop" } else { "permit" };
            draft.detail.insert("to".into(), confirms.into());
            draft.detail.insert("count".into(), count.into());
            draft
        };
        counted.into_iter().map(draft).collect()
    }

    async fn record(&self, kernel: &Kernel) {
        for draft in self.take(kernel) {
            if let Err(error) = kernel.record(draft).await {
                tracing::error!(%error, "wrong one-time codes could not be recorded");
            }
        }
    }

    /// Records every second until `stop`, and once more then.
    pub(super) async fn keep_recording(
        self: Arc<Self>,
        kernel: Arc<Kernel>,
        stop: CancellationToken,
    ) {
        let mut every = tokio::time::interval(Duration::from_secs(1));
        loop {
            tokio::select! {
                _ = every.tick() => self.record(&kernel).await,
                () = stop.cancelled() => return self.record(&kernel).await,
            }
        }
    }
}
