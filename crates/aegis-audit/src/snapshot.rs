//! Snapshots: what somebody computed from a log so far, kept so that it need not be computed again.
//!
//! A snapshot says which entries it was computed from, by the size and root of their tree, and is
//! signed with the log's key. It is refused when the log does not begin with those entries, when its
//! bytes are others than were signed, or when another key signed it; its owner then computes anew
//! from the entries, which are the truth. A journal's lies beside a SQLite database as
//! `<database>.snapshot`; beside Postgres there is none. Whoever only reads a log names the file.

use std::path::{Path, PathBuf};

use aegis_core::Digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::{Deserialize, Serialize};

use crate::checkpoint::Head;
use crate::file::beside;
use crate::journal::Journal;
use crate::note::{NoteError, Signer, Verifier};
use crate::read::Reader;
use crate::store::{Location, StoreError};
use crate::witness;

/// The first line of what is signed. No checkpoint begins like this, so neither passes for the other.
const MAGIC: &str = "aegis.dev/audit-snapshot/v1";

/// Why a snapshot is not used.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The log or the file cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// It is not signed by the log's key.
    #[error("the snapshot {path} is refused: {error}; it will be computed anew")]
    Signature {
        /// Which file.
        path: String,
        /// Why.
        error: NoteError,
    },
    /// It is something else, or of another log.
    #[error("the snapshot {path} is refused: {why}; it will be computed anew")]
    Refused {
        /// Which file.
        path: String,
        /// Why.
        why: &'static str,
    },
}

/// What was computed from the first entries of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Snapshot {
    /// From how many entries.
    pub size: u64,
    /// What it was, in its owner's own form.
    pub state: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    note: String,
    state: String,
}

fn text(head: &Head, state: &str) -> String {
    let root = BASE64.encode(head.root.as_bytes());
    format!("{MAGIC}\n{}\n{root}\n{}\n", head.size, Digest::of(state.as_bytes()))
}

/// The size that a snapshot claims; all else is compared with what it should be.
fn claimed_size(text: &str) -> Option<u64> {
    text.strip_prefix(MAGIC)?.strip_prefix('\n')?.split('\n').next()?.parse().ok()
}

fn path(place: &Location) -> Option<PathBuf> {
    match place {
        Location::Sqlite(path) => Some(beside(path, ".snapshot")),
        Location::Postgres(_) => None,
    }
}

impl Journal {
    /// Keeps what was computed from the first `size` entries, in place of an earlier snapshot.
    ///
    /// # Errors
    /// When the log is shorter or the file cannot be written.
    pub async fn save_snapshot(&self, size: u64, state: String) -> Result<(), StoreError> {
        match path(&self.reader().place) {
            Some(path) => self.reader().save_snapshot(&path, self.signer(), size, state).await,
            None => Ok(()),
        }
    }

    /// The snapshot that was kept, if there is one and it fits this log.
    ///
    /// # Errors
    /// When there is one that is not to be used, and why.
    pub async fn snapshot(&self) -> Result<Option<Snapshot>, SnapshotError> {
        match path(&self.reader().place) {
            Some(path) => self.reader().snapshot(&path, self.verifier()).await,
            None => Ok(None),
        }
    }
}

impl Reader {
    /// Keeps in a file what was computed from the first `size` entries, signed with the log's key.
    ///
    /// # Errors
    /// When the log is shorter or the file cannot be written.
    pub async fn save_snapshot(
        &self,
        path: &Path,
        signer: &Signer,
        size: u64,
        state: String,
    ) -> Result<(), StoreError> {
        let head = Head { size, root: self.root_at(size).await? };
        let note = signer.sign(&text(&head, &state));
        let file = serde_json::to_string(&File { note, state }).map_err(|e| {
            StoreError::Unavailable { place: path.display().to_string(), why: e.to_string() }
        })?;
        witness::save(path, &file)
    }

    /// The snapshot in a file, if there is one, this key signed it and it fits this log.
    ///
    /// # Errors
    /// When there is one that is not to be used, and why.
    pub async fn snapshot(
        &self,
        path: &Path,
        verifier: &Verifier,
    ) -> Result<Option<Snapshot>, SnapshotError> {
        let Some(file) = witness::read(path)? else { return Ok(None) };
        let shown = path.display().to_string();
        let refused = |why| SnapshotError::Refused { path: shown.clone(), why };
        let File { note, state } =
            serde_json::from_str(&file).map_err(|_| refused("it is not a snapshot"))?;
        let signed = verifier
            .open(&note)
            .map_err(|error| SnapshotError::Signature { path: shown.clone(), error })?;
        let size = claimed_size(signed).ok_or_else(|| refused("it is not a snapshot"))?;
        if size > self.head().await?.size {
            return Err(refused("it covers more entries than the log has"));
        }
        let head = Head { size, root: self.root_at(size).await? };
        if signed != text(&head, &state) {
            return Err(refused("it is of other entries, or was altered"));
        }
        Ok(Some(Snapshot { size, state }))
    }
}

#[cfg(test)]
mod tests {
    use aegis_core::Timestamp;

    use super::*;
    use crate::journal::Options;
    use crate::{Draft, Kind, Outcome};

    async fn open(place: &Location, seed: u8) -> Journal {
        let signer = Signer::from_seed("acme.example/audit", &[seed; 32]).unwrap();
        Journal::open(place, Options::new("test", signer)).await.unwrap()
    }

    fn draft(second: u64) -> Draft {
        Draft::new(Kind::Configuration, Timestamp::from_secs(second), Outcome::Recorded)
    }

    #[tokio::test]
    async fn a_snapshot_is_used_only_with_the_entries_it_was_computed_from() {
        let dir = tempfile::tempdir().unwrap();
        let place = Location::Sqlite(dir.path().join("a.db"));
        let file = dir.path().join("a.db.snapshot");
        let journal = open(&place, 1).await;
        assert_eq!(journal.snapshot().await.unwrap(), None);
        for second in 0..300 {
            journal.append(draft(second)).await.unwrap().await.unwrap();
        }
        assert!(journal.save_snapshot(999, "x".into()).await.is_err(), "of entries not there");
        journal.save_snapshot(200, "state".into()).await.unwrap();
        let kept = Some(Snapshot { size: 200, state: "state".into() });
        assert_eq!(journal.snapshot().await.unwrap(), kept);
        let whole = std::fs::read_to_string(&file).unwrap();

        std::fs::write(&file, whole.replace("\"state\"}", "\"other\"}")).unwrap();
        assert!(matches!(journal.snapshot().await, Err(SnapshotError::Refused { .. })));
        std::fs::write(&file, whole.replacen("\\n200\\n", "\\n201\\n", 1)).unwrap();
        assert!(matches!(journal.snapshot().await, Err(SnapshotError::Signature { .. })));
        let note = journal.checkpoint_now().await.unwrap();
        let checkpoint = serde_json::to_string(&File { note, state: "state".into() }).unwrap();
        std::fs::write(&file, checkpoint).unwrap();
        assert!(matches!(journal.snapshot().await, Err(SnapshotError::Refused { .. })));
        journal.close().await.unwrap();

        // Other entries, or another key.
        for (name, seed, entries) in [("b", 1, 300), ("c", 1, 100), ("d", 2, 300)] {
            let place = Location::Sqlite(dir.path().join(format!("{name}.db")));
            std::fs::write(dir.path().join(format!("{name}.db.snapshot")), &whole).unwrap();
            let other = open(&place, seed).await;
            for second in 0..entries {
                other.append(draft(second + 7)).await.unwrap().await.unwrap();
            }
            assert!(other.snapshot().await.is_err(), "{name}");
            other.close().await.unwrap();
        }
    }
}
