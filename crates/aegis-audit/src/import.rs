//! Entries of other journals, appended byte for byte: how one ledger holds the records of a cluster.
//!
//! A foreign entry keeps its source, its sequence and its parent hash, so whoever verifies the ledger
//! verifies each journal in it too. It is taken only in canonical form and only as the next one of
//! its chain: what is there already is acknowledged again, a gap or a second version of an entry is
//! refused. Observers of the journal see its own entries only; to follow all, read the log.

use std::sync::Arc;

use aegis_core::{Digest, canonical};
use tokio::sync::oneshot;

use crate::entry::{Entry, MAX_ENTRY_BYTES};
use crate::journal::{Command, Journal};
use crate::read::{Pool, Reader, on};
use crate::salt::Salt;
use crate::store::{Columns, StoreError, micros, signed, unsigned};
use crate::tree;

/// Why a foreign entry is not appended.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ImportError {
    /// Not an entry in canonical form, or of another source.
    #[error("an entry of {source_name} is refused: {why}")]
    Malformed {
        /// Whose entry it should be.
        source_name: String,
        /// What is wrong with it.
        why: String,
    },
    /// Entries between what is held and what is offered are missing.
    #[error(
        "{source_name} offers entry {offered} and {held} are held; what lies between is missing"
    )]
    Gap {
        /// Whose entries.
        source_name: String,
        /// The last sequence that is held; 0 for none.
        held: u64,
        /// The sequence that was offered.
        offered: u64,
    },
    /// Another entry with this sequence is held, or the entry follows another one than is held.
    #[error("{source_name} offers another entry {sequence} than its chain has here")]
    Fork {
        /// Whose entry.
        source_name: String,
        /// Its sequence.
        sequence: u64,
    },
    /// The store did not take it. Nothing of it was written.
    #[error("foreign entries were not recorded: {0}")]
    Store(Arc<StoreError>),
    /// The journal has been closed.
    #[error("the audit journal is closed")]
    Closed,
}

/// An entry of another journal that has been checked by itself.
#[derive(Debug)]
pub struct Foreign {
    pub(crate) entry: Entry,
    pub(crate) body: Vec<u8>,
    pub(crate) leaf: Digest,
    pub(crate) salt: Option<Salt>,
}

impl Foreign {
    /// Checks an entry by itself: its size, its canonical form and its source.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub fn check(source: &str, body: Vec<u8>, salt: &[u8]) -> Result<Self, ImportError> {
        let malformed =
            |why: String| ImportError::Malformed { source_name: source.to_owned(), why };
        if body.len() > MAX_ENTRY_BYTES {
            return Err(malformed(format!("it takes {} bytes", body.len())));
        }
        let entry = Entry::parse(&body).map_err(|error| malformed(error.to_string()))?;
        // Another spelling of the same entry would have another hash.
        let canonical = canonical::to_vec(&entry).map_err(|error| malformed(error.to_string()))?;
        if canonical != body {
            return Err(malformed("it is not in canonical form".into()));
        }
        if entry.source != source {
            return Err(malformed(format!("it says that it is of {}", entry.source)));
        }
        let salt = match salt {
            [] => None,
            bytes => {
                let bytes =
                    bytes.try_into().map_err(|_| malformed("its salt is not 32 bytes".into()))?;
                Some(Salt::from_bytes(bytes))
            }
        };
        Ok(Self { leaf: tree::leaf_hash(&body), entry, body, salt })
    }

    /// What it says.
    #[must_use]
    pub const fn entry(&self) -> &Entry {
        &self.entry
    }
}

impl<'a> From<&'a Entry> for Columns<'a> {
    fn from(entry: &'a Entry) -> Self {
        Self {
            timestamp: micros(entry.timestamp),
            kind: entry.kind.as_str(),
            result: entry.result.as_str(),
            agent_id: entry.agent_id.as_deref(),
            reason: entry.reason.as_deref(),
            server: entry.action_text("server"),
            tool: entry.action_text("tool"),
            decision_id: entry.decision_id.as_deref(),
        }
    }
}

/// Entries of one source on their way.
pub(crate) struct Import {
    pub(crate) source: Arc<str>,
    pub(crate) entries: Vec<Foreign>,
    pub(crate) reply: oneshot::Sender<Result<u64, ImportError>>,
}

impl Journal {
    /// Appends entries of another journal, in the order of their sequence, and returns the last
    /// sequence that is durable here. Without entries it only says so. Of a refused shipment nothing
    /// is appended.
    ///
    /// # Errors
    /// When they do not continue the chain that is held, or the store does not take them.
    pub async fn import(&self, source: &str, entries: Vec<Foreign>) -> Result<u64, ImportError> {
        let (reply, answer) = oneshot::channel();
        let import = Import { source: source.into(), entries, reply };
        self.send(Command::Import(import)).await.map_err(|_| ImportError::Closed)?;
        answer.await.unwrap_or(Err(ImportError::Closed))
    }
}

impl Reader {
    /// The leaf hashes of a source from one sequence to another, both included.
    pub(crate) async fn chain(
        &self,
        source: &str,
        from: u64,
        to: u64,
    ) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let sql = "SELECT sequence, leaf FROM audit_entries \
                   WHERE source = (SELECT id FROM audit_sources WHERE name = $1) \
                   AND sequence >= $2 AND sequence <= $3 ORDER BY sequence";
        let rows: Vec<(i64, Vec<u8>)> = on!(self.current().await?, pool => {
            sqlx::query_as(sql)
                .bind(source.to_owned())
                .bind(signed(from))
                .bind(signed(to))
                .fetch_all(pool)
                .await
        })
        .map_err(|e| self.failed(&e))?;
        Ok(rows.into_iter().map(|(sequence, leaf)| (unsigned(sequence), leaf)).collect())
    }
}
