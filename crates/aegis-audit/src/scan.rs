//! What a verification reads: chunks of entries, each checked by itself while it is read, and tiles.
//!
//! Chunks need nothing of each other, so several are at work at once. In a SQLite file each has a
//! connection of its own and looks at a row where SQLite has it; rows of Postgres and files of an
//! exported directory are fetched first. An entry that is absent, out of place or without a known
//! source is missing, whatever follows it.

use std::ops::Range;
use std::sync::Arc;

use aegis_core::Digest;
use parking_lot::Mutex;
use rusqlite::types::ValueRef;
use rusqlite::{Connection, Row};

use crate::check::{Checked, Claims, Item, check};
use crate::export::Directory;
use crate::lists::{Tally, Times};
use crate::read::{Pool, Reader};
use crate::sqlite;
use crate::store::{Columns, Location, StoreError, signed, unsigned};
use crate::tile::{TILE_WIDTH, Tile, width_at};
use crate::verify::VerifyError;

/// All that is stored of an entry; the source is named.
const SELECT: &str = "SELECT e.idx, s.name, e.sequence, e.leaf, e.timestamp, e.kind, e.result, \
    e.agent_id, e.reason, e.server, e.tool, e.decision_id, e.body \
    FROM audit_entries e JOIN audit_sources s ON s.id = e.source \
    WHERE e.idx >= $1 AND e.idx < $2 ORDER BY e.idx";

type OwnedRow = (
    i64,
    String,
    i64,
    Vec<u8>,
    i64,
    String,
    String,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Option<String>,
    Vec<u8>,
);

/// Where entries and tiles come from; clones share it.
#[derive(Clone)]
pub(crate) enum Log {
    Sqlite(Reader, Arc<Local>),
    Postgres(Reader),
    Directory(Arc<Directory>),
}

/// What the threads that read a SQLite file share.
pub(crate) struct Local {
    idle: Mutex<Vec<Connection>>,
    tally: Option<Tally>,
}

/// Checked entries from the start of a range on, up to the first that is wrong.
#[derive(Default)]
pub(crate) struct Chunk {
    pub(crate) entries: Vec<Checked>,
    pub(crate) error: Option<VerifyError>,
}

impl Chunk {
    /// Checks the entry that should come next; whether the one after it is of interest.
    fn take(&mut self, range: &Range<u64>, item: &Item<'_>) -> bool {
        let expected = range.start + self.entries.len() as u64;
        let checked = if item.index == expected { check(item) } else { Err(missing(expected)) };
        match checked {
            Ok(entry) => self.entries.push(entry),
            Err(error) => self.error = Some(error),
        }
        self.error.is_none()
    }

    /// What is not there by the end of the range is missing.
    fn finish(mut self, range: &Range<u64>) -> Self {
        let next = range.start + self.entries.len() as u64;
        if self.error.is_none() && next < range.end {
            self.error = Some(missing(next));
        }
        self
    }

    /// Compares the entries with a stored tile of leaf hashes; ends at the first that differs.
    fn compare(&mut self, start: u64, tile: Tile, hashes: Option<&[Digest]>) {
        let first = tile.index * TILE_WIDTH;
        let at = |index: u64| usize::try_from(index - start).unwrap_or(usize::MAX);
        let entries = self.entries.get(at(first)..).unwrap_or_default();
        let Some(hashes) = hashes else {
            if !entries.is_empty() {
                self.entries.truncate(at(first));
                self.error = Some(VerifyError::Tile { level: 0, index: tile.index });
            }
            return;
        };
        let width = usize::try_from(tile.width).unwrap_or(usize::MAX);
        let mut leaves = entries.iter().take(width).map(|entry| entry.leaf).enumerate();
        // A tile that is too short differs where it ends.
        let Some((offset, _)) = leaves.find(|(at, leaf)| hashes.get(*at) != Some(leaf)) else {
            return;
        };
        let index = first + offset as u64;
        let rest = self.entries.split_off(at(index));
        let why = "its bytes do not have the leaf hash in the tile".to_owned();
        self.error = rest.into_iter().next().map(|entry| VerifyError::Entry {
            index,
            origin: entry.source,
            sequence: entry.sequence,
            why,
        });
    }
}

fn missing(index: u64) -> VerifyError {
    let why = "it is missing".to_owned();
    VerifyError::Entry { index, origin: "?".into(), sequence: 0, why }
}

impl Log {
    /// A database whose first `size` entries are looked at.
    pub(crate) fn database(reader: &Reader, size: u64) -> Self {
        match reader.pool {
            Pool::Sqlite(_) => {
                let tally = reader.lists.then(|| Tally::new(size));
                Self::Sqlite(reader.clone(), Arc::new(Local { idle: Mutex::default(), tally }))
            }
            Pool::Postgres(_) => Self::Postgres(reader.clone()),
        }
    }

    pub(crate) fn directory(directory: Directory) -> Self {
        Self::Directory(Arc::new(directory))
    }

    /// A checker that ended without an answer.
    pub(crate) fn failed(&self, error: &tokio::task::JoinError) -> StoreError {
        let place = match self {
            Self::Sqlite(reader, _) | Self::Postgres(reader) => reader.place.to_string(),
            Self::Directory(directory) => directory.to_string(),
        };
        StoreError::Unavailable { place, why: format!("its verification broke off: {error}") }
    }

    pub(crate) async fn tile(&self, tile: Tile) -> Result<Option<Vec<Digest>>, VerifyError> {
        match self {
            Self::Sqlite(reader, _) | Self::Postgres(reader) => Ok(reader.tile(tile).await?),
            Self::Directory(directory) => Ok(directory.tile(tile)?),
        }
    }

    /// Reads and checks a range of entries that starts with a tile, in a log of `size` entries.
    pub(crate) async fn chunk(&self, range: Range<u64>, size: u64) -> Result<Chunk, VerifyError> {
        let mut chunk = self.entries(range.clone()).await?;
        // A partial tile of leaves is in a database just another view of the entries.
        let whole = !matches!(self, Self::Directory(_));
        let tiles: Vec<Tile> = (range.start / TILE_WIDTH..range.end.div_ceil(TILE_WIDTH))
            .map(|index| Tile { level: 0, index, width: width_at(0, index, size) })
            .filter(|tile| !whole || tile.width == TILE_WIDTH)
            .collect();
        match self {
            Self::Sqlite(reader, _) | Self::Postgres(reader) => {
                let stored = reader.tiles(&tiles).await?;
                for tile in tiles {
                    let hashes = stored.get(&(tile.level, tile.index));
                    chunk.compare(range.start, tile, hashes.map(Vec::as_slice));
                }
            }
            Self::Directory(directory) => {
                for tile in tiles {
                    chunk.compare(range.start, tile, directory.tile(tile)?.as_deref());
                }
            }
        }
        Ok(chunk)
    }

    /// Once all of the log was read: what is wrong with the lists by which its entries are found.
    pub(crate) async fn lists(&self) -> Result<Option<String>, VerifyError> {
        let Self::Sqlite(reader, local) = self else { return Ok(None) };
        let (reader, local) = (reader.clone(), Arc::clone(local));
        let comparing = tokio::task::spawn_blocking(move || {
            let Some(tally) = &local.tally else { return Ok(None) };
            local.with(&reader, |conn| tally.settle(conn)).map_err(VerifyError::from)
        });
        comparing.await.unwrap_or_else(|error| Err(self.failed(&error).into()))
    }

    async fn entries(&self, range: Range<u64>) -> Result<Chunk, VerifyError> {
        let checking = match self {
            Self::Sqlite(reader, local) => {
                let (reader, local) = (reader.clone(), Arc::clone(local));
                tokio::task::spawn_blocking(move || {
                    let tally = local.tally.as_ref();
                    local.with(&reader, |conn| scan(conn, &range, tally)).map_err(VerifyError::from)
                })
            }
            Self::Postgres(reader) => {
                let rows = fetch(reader, &range).await?;
                tokio::task::spawn_blocking(move || Ok(check_rows(&rows, &range)))
            }
            Self::Directory(directory) => {
                let directory = Arc::clone(directory);
                tokio::task::spawn_blocking(move || check_files(&directory, &range))
            }
        };
        checking.await.unwrap_or_else(|error| Err(self.failed(&error).into()))
    }
}

impl Local {
    /// Reads on a connection that nobody else uses meanwhile.
    fn with<T>(
        &self,
        reader: &Reader,
        read: impl FnOnce(&Connection) -> rusqlite::Result<T>,
    ) -> Result<T, StoreError> {
        let failed = |error: rusqlite::Error| StoreError::sqlite(&reader.place, &error);
        let idle = self.idle.lock().pop();
        let conn = match (idle, &reader.place) {
            (Some(conn), _) => conn,
            (None, Location::Sqlite(path)) => {
                sqlite::connect_to_read(path, reader.immutable).map_err(failed)?
            }
            (None, Location::Postgres(_)) => return Err(reader.corrupt("it is no SQLite file")),
        };
        let read = read(&conn).map_err(failed)?;
        self.idle.lock().push(conn);
        Ok(read)
    }
}

/// Reads and checks rows of a SQLite file, and counts by what they should be listed.
fn scan(conn: &Connection, range: &Range<u64>, tally: Option<&Tally>) -> rusqlite::Result<Chunk> {
    let mut chunk = Chunk::default();
    let mut times = Times::default();
    let mut select = conn.prepare_cached(SELECT)?;
    let mut rows = select.query((signed(range.start), signed(range.end)))?;
    while let Some(row) = rows.next()? {
        let item = item(row)?;
        if !chunk.take(range, &item) {
            return Ok(chunk);
        }
        if let (Some(tally), Some(claims)) = (tally, &item.row) {
            tally.expect(item.index, &claims.columns, &mut times);
        }
    }
    if let Some(tally) = tally {
        tally.expect_times(&times);
    }
    Ok(chunk.finish(range))
}

/// A row where SQLite has it.
fn item<'a>(row: &'a Row<'_>) -> rusqlite::Result<Item<'a>> {
    Ok(Item {
        index: unsigned(row.get(0)?),
        body: row.get_ref(12)?.as_bytes()?,
        row: Some(Claims {
            leaf: row.get_ref(3)?.as_bytes()?,
            source: row.get_ref(1)?.as_str()?,
            sequence: unsigned(row.get(2)?),
            columns: Columns {
                timestamp: row.get(4)?,
                kind: row.get_ref(5)?.as_str()?,
                result: row.get_ref(6)?.as_str()?,
                agent_id: text(row.get_ref(7)?)?,
                reason: text(row.get_ref(8)?)?,
                server: text(row.get_ref(9)?)?,
                tool: text(row.get_ref(10)?)?,
                decision_id: text(row.get_ref(11)?)?,
            },
        }),
    })
}

fn text(value: ValueRef<'_>) -> rusqlite::Result<Option<&str>> {
    Ok(value.as_str_or_null()?)
}

async fn fetch(reader: &Reader, range: &Range<u64>) -> Result<Vec<OwnedRow>, StoreError> {
    let Pool::Postgres(pool) = &reader.pool else { return Ok(Vec::new()) };
    sqlx::query_as(SELECT)
        .bind(signed(range.start))
        .bind(signed(range.end))
        .fetch_all(pool)
        .await
        .map_err(|e| reader.failed(&e))
}

fn check_rows(rows: &[OwnedRow], range: &Range<u64>) -> Chunk {
    let mut chunk = Chunk::default();
    for row in rows {
        let columns = Columns {
            timestamp: row.4,
            kind: &row.5,
            result: &row.6,
            agent_id: row.7.as_deref(),
            reason: row.8.as_deref(),
            server: row.9.as_deref(),
            tool: row.10.as_deref(),
            decision_id: row.11.as_deref(),
        };
        let claims = Claims { leaf: &row.3, source: &row.1, sequence: unsigned(row.2), columns };
        let item = Item { index: unsigned(row.0), body: &row.12, row: Some(claims) };
        if !chunk.take(range, &item) {
            return chunk;
        }
    }
    chunk.finish(range)
}

fn check_files(directory: &Directory, range: &Range<u64>) -> Result<Chunk, VerifyError> {
    let mut chunk = Chunk::default();
    for (index, body) in directory.entries(range.start, range.end)? {
        if !chunk.take(range, &Item { index, body: &body, row: None }) {
            return Ok(chunk);
        }
    }
    Ok(chunk.finish(range))
}
