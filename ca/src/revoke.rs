//! What has been revoked: kept on disk, and published to every verifier that subscribes.

use std::{fmt, sync::Arc};

use aegis_core::{SpiffeId, Timestamp};
use aegis_identity::{CLOCK_SKEW, Revocations, Serial};
use serde::{Deserialize, Serialize};
use tokio::sync::watch;

use crate::{Store, StoreError, issue::MAX_SVID_TTL};

const FILE: &str = "revocations.json";
/// Why an identity is revoked whose AgentIdentity is gone. It is taken back when that comes again.
pub(crate) const DELETED: &str = "its AgentIdentity was deleted";
/// The longest reason that is kept.
const MAX_REASON_CHARS: usize = 500;

/// What is revoked.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Subject {
    /// One certificate.
    Serial(Serial),
    /// An identity, with all its certificates, and no new ones.
    Id(SpiffeId),
}

/// One revocation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Revoked {
    /// What.
    pub subject: Subject,
    /// When.
    pub at: Timestamp,
    /// Why.
    pub reason: String,
}

/// Why a revocation is not in force.
#[derive(Debug, thiserror::Error)]
pub enum RevokeError {
    /// It cannot be written.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The file is not one that the CA wrote.
    #[error(
        "revocations.json is corrupt: {0}; restore it from a backup, since starting without it would trust what was revoked"
    )]
    Corrupt(serde_json::Error),
}

/// All revocations.
pub(crate) struct RevocationList {
    store: Arc<dyn Store>,
    entries: Vec<Revoked>,
    publish: watch::Sender<Arc<Revocations>>,
}

impl RevocationList {
    pub(crate) fn open(store: Arc<dyn Store>) -> Result<Self, RevokeError> {
        let entries = read(&*store)?;
        let publish = watch::Sender::new(Arc::new(snapshot(&entries)));
        Ok(Self { store, entries, publish })
    }

    /// Reads again what another replica may have changed.
    pub(crate) fn reload(&mut self) -> Result<(), RevokeError> {
        let entries = read(&*self.store)?;
        if entries != self.entries {
            self.publish.send_replace(Arc::new(snapshot(&entries)));
            self.entries = entries;
        }
        Ok(())
    }

    pub(crate) fn entries(&self) -> &[Revoked] {
        &self.entries
    }

    pub(crate) fn subscribe(&self) -> watch::Receiver<Arc<Revocations>> {
        self.publish.subscribe()
    }

    pub(crate) fn revoke(
        &mut self,
        subject: Subject,
        reason: &str,
        now: Timestamp,
    ) -> Result<(), RevokeError> {
        let mut entries = self.entries.clone();
        // A certificate that has expired needs no revocation any more, and what has no AgentIdentity
        // gets no new one; any other identity keeps its own.
        let gone = |at: Timestamp| at.plus(MAX_SVID_TTL + CLOCK_SKEW) < now;
        entries.retain(|e| {
            let ends = matches!(e.subject, Subject::Serial(_)) || e.reason == DELETED;
            e.subject != subject && !(ends && gone(e.at))
        });
        let reason = reason.chars().take(MAX_REASON_CHARS).collect();
        entries.push(Revoked { subject, at: now, reason });
        self.commit(entries)
    }

    /// Whether there was such a revocation.
    pub(crate) fn reinstate(&mut self, subject: &Subject) -> Result<bool, RevokeError> {
        let mut entries = self.entries.clone();
        entries.retain(|entry| entry.subject != *subject);
        let found = entries.len() < self.entries.len();
        self.commit(entries)?;
        Ok(found)
    }

    fn commit(&mut self, entries: Vec<Revoked>) -> Result<(), RevokeError> {
        let bytes = serde_json::to_vec_pretty(&entries).map_err(RevokeError::Corrupt)?;
        self.store.write(FILE, &bytes)?;
        self.publish.send_replace(Arc::new(snapshot(&entries)));
        self.entries = entries;
        Ok(())
    }
}

fn read(store: &dyn Store) -> Result<Vec<Revoked>, RevokeError> {
    match store.read(FILE)? {
        Some(bytes) => serde_json::from_slice(&bytes).map_err(RevokeError::Corrupt),
        None => Ok(Vec::new()),
    }
}

fn snapshot(entries: &[Revoked]) -> Revocations {
    let mut revocations = Revocations::default();
    for entry in entries {
        match &entry.subject {
            Subject::Serial(serial) => revocations.serials.insert(serial.clone()),
            Subject::Id(id) => revocations.ids.insert(id.clone()),
        };
    }
    revocations
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Serial(serial) => write!(f, "serial {serial}"),
            Self::Id(id) => write!(f, "{id}"),
        }
    }
}
