//! What keeps a log from being rolled back: checkpoints remembered outside the database.
//!
//! The journal writes each checkpoint it signs to a file beside the database (replaced atomically,
//! synced with its folder) before anybody else sees it. At the next start the log must contain what
//! that file says. Copies in other places, of another machine or owner, are compared the same way.

use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use crate::checkpoint;
use crate::file::{beside, sync_folder};
use crate::note::Verifier;
use crate::read::Reader;
use crate::store::StoreError;

/// Reads a remembered checkpoint; `None` when there is no such file.
pub(crate) fn read(path: &Path) -> Result<Option<String>, StoreError> {
    match std::fs::read_to_string(path) {
        Ok(note) => Ok(Some(note)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(StoreError::file(path, &e)),
    }
}

/// Replaces a remembered checkpoint: after a crash the file holds the old one or the new one.
pub(crate) fn save(path: &Path, note: &str) -> Result<(), StoreError> {
    let failed = |e: io::Error| StoreError::file(path, &e);
    let next = beside(path, ".next");
    let mut file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(&next)
        .map_err(failed)?;
    file.write_all(note.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
    std::fs::rename(&next, path).map_err(failed)?;
    sync_folder(path).map_err(failed)
}

/// Checks that the log contains what a checkpoint says, and returns the checkpoint's size.
pub(crate) async fn check(
    reader: &Reader,
    verifier: &Verifier,
    note: &str,
    whence: &str,
) -> Result<u64, StoreError> {
    let place = reader.place.to_string();
    let rollback = |why: String| StoreError::Rollback { place: place.clone(), why };
    let known = checkpoint::open(verifier, note)
        .map_err(|e| rollback(format!("the checkpoint in {whence} is refused ({e})")))?
        .head;
    let head = reader.head().await?;
    if known.size > head.size {
        return Err(rollback(format!(
            "the checkpoint in {whence} covers {} entries and the log has {}",
            known.size, head.size
        )));
    }
    let root = reader.root_at(known.size).await?;
    if root == known.root {
        return Ok(known.size);
    }
    Err(rollback(format!(
        "its first {} entries are not those that the checkpoint in {whence} covers",
        known.size
    )))
}
