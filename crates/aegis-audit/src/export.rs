//! A log as a directory of files: `checkpoint`, `tile/…` and `tile/entries/…`, named as
//! c2sp.org/tlog-tiles serves them, so that any web server can publish it and any tool verify it.
//!
//! Salts are not part of it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use aegis_core::Digest;

use crate::checkpoint;
use crate::read::Reader;
use crate::store::StoreError;
use crate::tile::{self, Resource, TILE_WIDTH, Tile, width_at};

/// Writes the log up to its latest checkpoint into a directory, which is created if need be, and
/// returns how many entries that are; `None` when there is no checkpoint yet. Files of full tiles
/// that are already there are kept.
///
/// # Errors
/// When the log cannot be read or a file not be written.
pub async fn write_directory(reader: &Reader, path: &Path) -> Result<Option<u64>, StoreError> {
    let Some(note) = reader.checkpoint().await? else { return Ok(None) };
    let size = checkpoint::parse(&note)
        .map_err(|e| reader.corrupt(format!("its checkpoint is refused: {e}")))?
        .head
        .size;
    for tile in Tile::all(size) {
        let gone = || reader.corrupt(format!("tile {}/{} is missing", tile.level, tile.index));
        let file = path.join(Resource::Tile(tile).to_string());
        if tile.width < TILE_WIDTH || !file.exists() {
            let hashes = reader.tile(tile).await?.ok_or_else(gone)?;
            write(&file, &tile::join(&hashes))?;
        }
        if tile.level > 0 {
            continue;
        }
        let file = path.join(Resource::Entries(tile.index, tile.width).to_string());
        if tile.width < TILE_WIDTH || !file.exists() {
            let bundle = reader.bundle(tile.index, tile.width).await?.ok_or_else(gone)?;
            write(&file, &bundle)?;
        }
    }
    // Last: a reader of the directory finds whatever the checkpoint promises.
    write(&path.join("checkpoint"), note.as_bytes())?;
    Ok(Some(size))
}

fn write(path: &Path, bytes: &[u8]) -> Result<(), StoreError> {
    let failed = |e: io::Error| StoreError::file(path, &e);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    let next = crate::file::beside(path, ".next");
    fs::write(&next, bytes).and_then(|()| fs::rename(&next, path)).map_err(failed)
}

/// An exported log, to be verified.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    size: u64,
}

impl std::fmt::Display for Directory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.path.display().fmt(f)
    }
}

impl Directory {
    pub(crate) fn open(path: &Path) -> Result<Self, StoreError> {
        let mut directory = Self { path: path.to_owned(), size: 0 };
        let note = directory.checkpoint()?;
        // The signature is verified before anything is believed; the size only names files here.
        let parsed = checkpoint::parse(&note)
            .map_err(|e| directory.corrupt(format!("its checkpoint is refused: {e}")))?;
        directory.size = parsed.head.size;
        Ok(directory)
    }

    fn corrupt(&self, why: String) -> StoreError {
        StoreError::Corrupt { place: self.path.display().to_string(), why }
    }

    pub(crate) fn checkpoint(&self) -> Result<String, StoreError> {
        let path = self.path.join("checkpoint");
        fs::read_to_string(&path).map_err(|e| match e.kind() {
            io::ErrorKind::NotFound => StoreError::Missing { path: path.display().to_string() },
            _ => StoreError::file(&path, &e),
        })
    }

    fn read(&self, resource: Resource) -> Result<Option<Vec<u8>>, StoreError> {
        let path = self.path.join(resource.to_string());
        match fs::read(&path) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(StoreError::file(&path, &e)),
        }
    }

    pub(crate) fn tile(&self, tile: Tile) -> Result<Option<Vec<Digest>>, StoreError> {
        Ok(self.read(Resource::Tile(tile))?.and_then(|bytes| tile::split(&bytes)))
    }

    /// The entries of whole bundles from `start`, a multiple of a bundle's width.
    pub(crate) fn entries(&self, start: u64, end: u64) -> Result<Vec<(u64, Vec<u8>)>, StoreError> {
        let mut entries = Vec::new();
        for bundle in start / TILE_WIDTH..end.div_ceil(TILE_WIDTH) {
            let width = width_at(0, bundle, self.size);
            let Some(bytes) = self.read(Resource::Entries(bundle, width))? else { break };
            let mut rest = bytes.as_slice();
            let mut index = bundle * TILE_WIDTH;
            while let Some((length, after)) = rest.split_first_chunk::<2>() {
                let length = usize::from(u16::from_be_bytes(*length));
                let Some((body, after)) = after.split_at_checked(length) else {
                    return Err(self.corrupt(format!("entry bundle {bundle} ends within an entry")));
                };
                entries.push((index, body.to_vec()));
                index += 1;
                rest = after;
            }
        }
        Ok(entries)
    }
}
