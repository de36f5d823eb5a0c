//! By what agents' evidence is weighed: recorded by the ledger itself, before what it counts for.
//!
//! How much evidence an agent can gather in an hour is capped. So neither the cap nor the hour may be
//! its own word: the operator tells the one, and the ledger's own entries are the other. It writes one at
//! the beginning of each hour in which somebody ships.

use std::{sync::Arc, time::Duration};

use aegis_api::trust::Weighing;
use aegis_audit::{AppendError, Draft, Journal, Kind, Outcome};
use aegis_core::thresholds::Thresholds;
use aegis_identity::Clock;
use serde_json::{Value, json};
use tokio::sync::Mutex;

/// An hour.
const HOUR: Duration = Duration::from_secs(3_600);

/// Writes them into the log. Clones share what was written.
#[derive(Clone)]
pub struct Scales {
    journal: Journal,
    clock: Clock,
    written: Arc<Mutex<Written>>,
}

#[derive(Debug, Default)]
struct Written {
    /// Since the epoch.
    hour: u64,
    /// What was told last.
    told: Option<Weighing>,
}

impl std::fmt::Debug for Scales {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Scales").field("journal", &self.journal).finish_non_exhaustive()
    }
}

impl Scales {
    /// Of the log that `journal` is the ledger's own of.
    #[must_use]
    pub fn new(journal: Journal, clock: Clock) -> Self {
        Self { journal, clock, written: Arc::default() }
    }

    /// What follows in the log is of this hour.
    ///
    /// # Errors
    /// When that cannot be recorded.
    pub async fn begin_hour(&self) -> Result<(), AppendError> {
        let hour = (self.clock)().as_secs() / HOUR.as_secs();
        let mut written = self.written.lock().await;
        if hour > written.hour {
            self.record(None, None).await?;
            written.hour = hour;
        }
        Ok(())
    }

    /// What follows in the log is weighed so. The same again is not recorded again.
    ///
    /// # Errors
    /// When it cannot be recorded; then it is not in force either, or not all of it.
    pub async fn weigh(&self, weighing: Weighing) -> Result<(), AppendError> {
        let mut written = self.written.lock().await;
        let known = written.told.take();
        if known.as_ref().is_none_or(|known| known.cluster != weighing.cluster) {
            self.record(None, Some(&weighing.cluster)).await?;
        }
        let before = known.map(|known| known.namespaces).unwrap_or_default();
        for (namespace, own) in &weighing.namespaces {
            if before.get(namespace) != Some(own) {
                self.record(Some(namespace), Some(own)).await?;
            }
        }
        for namespace in before.keys().filter(|name| !weighing.namespaces.contains_key(*name)) {
            self.record(Some(namespace), None).await?;
        }
        written.told = Some(weighing);
        Ok(())
    }

    async fn record(
        &self,
        namespace: Option<&str>,
        thresholds: Option<&Thresholds>,
    ) -> Result<(), AppendError> {
        let mut draft = Draft::new(Kind::Configuration, (self.clock)(), Outcome::Recorded);
        if let Some(namespace) = namespace {
            draft.detail.insert("namespace".into(), namespace.into());
        }
        if namespace.is_some() || thresholds.is_some() {
            let thresholds = thresholds.map_or(Value::Null, |thresholds| json!(thresholds));
            draft.detail.insert("thresholds".into(), thresholds);
        }
        self.journal.append(draft).await?.await?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use aegis_audit::{Location, Options, Signer};
    use aegis_core::Timestamp;

    use super::*;

    async fn details(journal: &Journal) -> Vec<Value> {
        let stored = journal.reader().entries(0..99).await.unwrap();
        let entries = stored.iter().map(|one| one.entry().unwrap());
        let own = entries.filter(|entry| entry.kind == Kind::Configuration);
        own.map(|entry| Value::Object(entry.detail)).collect()
    }

    #[tokio::test]
    async fn what_changes_is_recorded_once_and_each_hour_has_its_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let place = Location::Sqlite(folder.path().join("ledger.db"));
        let signer = Signer::from_seed("acme.example/ledger", &[3; 32]).unwrap();
        let options = Options::new("spiffe://acme.example/aegis/ledger", signer);
        let journal = Journal::open(&place, options).await.unwrap();
        let now = Arc::new(AtomicU64::new(7_200));
        let clock = Arc::clone(&now);
        let clock = Arc::new(move || Timestamp::from_secs(clock.load(Ordering::Relaxed)));
        let scales = Scales::new(journal.clone(), clock);
        for seconds in [7_200, 7_300, 10_799, 10_800, 7_200, 10_900] {
            now.store(seconds, Ordering::Relaxed);
            scales.begin_hour().await.unwrap();
        }
        assert_eq!(details(&journal).await, [json!({}), json!({})]);

        let strict = Thresholds { evidence_cap: 1, ..Thresholds::default() };
        let mut weighing = Weighing::default();
        weighing.namespaces.insert("shop".into(), strict.clone());
        for _ in 0..2 {
            scales.weigh(weighing.clone()).await.unwrap();
        }
        weighing.namespaces.clear();
        scales.weigh(weighing.clone()).await.unwrap();
        weighing.cluster = strict.clone();
        scales.weigh(weighing).await.unwrap();
        assert_eq!(
            details(&journal).await[2..],
            [
                json!({ "thresholds": Thresholds::default() }),
                json!({ "namespace": "shop", "thresholds": strict }),
                json!({ "namespace": "shop", "thresholds": null }),
                json!({ "thresholds": strict }),
            ]
        );
    }
}
