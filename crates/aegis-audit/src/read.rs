//! Reading a log: entries, tiles, proofs, checkpoints, salts. The same queries on both databases.
//!
//! Everything a proof needs is immutable once written, so readers take no snapshot and no lock; a
//! tile that has grown since is cut to the width it had in the tree that was asked about. Whatever was acknowledged
//! before a reader is opened, or before it is asked where it reads what this process writes, is there: it waits for
//! the redo log ([`crate::redo`]) to be moved.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use aegis_core::Digest;
use sqlx::postgres::{PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool, SqlitePoolOptions};
use sqlx::{AssertSqlSafe, ConnectOptions as _};

use crate::checkpoint::Head;
use crate::entry::Entry;
use crate::file::{beside, check_file, followed};
use crate::note::Verifier;
use crate::proof::TlogProof;
use crate::salt::Salt;
use crate::store::{Location, SCHEMA_VERSION, SourceHead, StoreError, Tree, signed, unsigned};
use crate::tile::{self, Edge, TILE_WIDTH, Tile};
use crate::tree::{self, Frontier, Node};

/// "AegA": `file` and SQLite show whose database it is.
pub(crate) const APPLICATION_ID: i32 = 0x4165_6741;

#[derive(Clone, Debug)]
pub(crate) enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// Runs the same expression on either pool.
macro_rules! on {
    ($pool:expr, $it:ident => $body:expr) => {
        match $pool {
            Pool::Sqlite($it) => $body,
            Pool::Postgres($it) => $body,
        }
    };
}
pub(crate) use on;

/// Tiles by level and index.
pub(crate) type Tiles = HashMap<(u32, u64), Vec<Digest>>;

/// A reader of a log; cheap to clone.
#[derive(Clone, Debug)]
pub struct Reader {
    pub(crate) pool: Pool,
    pub(crate) place: Location,
    /// A SQLite file that nobody writes.
    pub(crate) immutable: bool,
    /// A SQLite file with lists: one of version 1 that no writer has opened since has none.
    pub(crate) lists: bool,
}

/// An entry as it is stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stored {
    /// Its place in the tree.
    pub index: u64,
    /// Whose chain it is in.
    pub source: String,
    /// Its place in that chain.
    pub sequence: u64,
    /// Its leaf hash, as stored.
    pub leaf: Digest,
    /// Its canonical bytes.
    pub body: Vec<u8>,
}

impl Stored {
    /// The entry that the bytes say.
    ///
    /// # Errors
    /// When they are not an entry.
    pub fn entry(&self) -> Result<Entry, crate::entry::EntryError> {
        Entry::parse(&self.body)
    }
}

/// Index, source, sequence, leaf, body.
pub(crate) type StoredRow = (i64, String, i64, Vec<u8>, Vec<u8>);

/// The columns of [`StoredRow`].
macro_rules! select_entries {
    ($rest:literal) => {
        concat!(
            "SELECT e.idx, s.name, e.sequence, e.leaf, e.body ",
            "FROM audit_entries e JOIN audit_sources s ON s.id = e.source ",
            $rest
        )
    };
}
pub(crate) use select_entries;

/// The SQLite options of everybody who only reads.
fn sqlite_options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new()
        .filename(path)
        .read_only(true)
        .busy_timeout(std::time::Duration::from_secs(10))
        .disable_statement_logging()
}

impl Reader {
    /// Opens a log for reading; a writer may be at work on it.
    ///
    /// # Errors
    /// When it is missing, is not a log, is damaged, or was written by a newer Aegis.
    pub async fn open(place: &Location) -> Result<Self, StoreError> {
        match place {
            Location::Sqlite(path) => Self::open_sqlite(path, false).await,
            Location::Postgres(url) => {
                let pool = PgPoolOptions::new().max_connections(4).connect(url).await;
                let pool = pool.map_err(|error| StoreError::database(place, &error))?;
                Self::checked(Pool::Postgres(pool), place.clone(), false).await
            }
        }
    }

    /// Opens a copied SQLite database that nobody writes. One without a write-ahead log may lie on
    /// read-only media, and nothing is created beside it.
    ///
    /// # Errors
    /// As [`Reader::open`].
    pub async fn open_copy(path: &Path) -> Result<Self, StoreError> {
        Self::open_sqlite(path, true).await
    }

    async fn open_sqlite(path: &Path, copy: bool) -> Result<Self, StoreError> {
        check_file(path)?;
        let place = Location::Sqlite(path.to_owned());
        if followed(path).is_none() {
            let file = path.to_owned();
            let caught_up = tokio::task::spawn_blocking(move || crate::sqlite::catch_up(&file));
            caught_up.await.unwrap_or_else(|error| {
                Err(StoreError::Unavailable { place: place.to_string(), why: error.to_string() })
            })?;
        }
        let immutable = copy && !beside(path, "-wal").exists();
        let pool = SqlitePoolOptions::new()
            .max_connections(4)
            .test_before_acquire(false)
            .connect_with(sqlite_options(path).immutable(immutable))
            .await;
        let pool = pool.map_err(|error| StoreError::database(&place, &error))?;
        Self::checked(Pool::Sqlite(pool), place, immutable).await
    }

    async fn checked(pool: Pool, place: Location, immutable: bool) -> Result<Self, StoreError> {
        let mut reader = Self { pool, place, immutable, lists: false };
        let schema = reader.schema().await?;
        reader.lists = schema >= 2 && matches!(reader.pool, Pool::Sqlite(_));
        Ok(reader)
    }

    /// The tables once they have everything that was acknowledged before.
    pub(crate) async fn current(&self) -> Result<&Pool, StoreError> {
        self.with(u64::MAX).await
    }

    /// The tables once they have the first `size` entries, if those were acknowledged before.
    async fn with(&self, size: u64) -> Result<&Pool, StoreError> {
        if let Location::Sqlite(path) = &self.place
            && let Some(redo) = followed(path)
        {
            redo.caught_up(size).await?;
        }
        Ok(&self.pool)
    }

    /// The version of its tables, one that this program knows.
    async fn schema(&self) -> Result<i64, StoreError> {
        let sql = "SELECT schema FROM audit_head WHERE id = 1";
        let found: Result<Option<i64>, sqlx::Error> =
            on!(self.current().await?, pool => sqlx::query_scalar(sql).fetch_optional(pool).await);
        let place = self.place.to_string();
        match found {
            Ok(Some(found @ 1..=SCHEMA_VERSION)) => Ok(found),
            Ok(Some(found)) if found > SCHEMA_VERSION => {
                Err(StoreError::NewerSchema { place, found })
            }
            Ok(_) => Err(StoreError::Corrupt { place, why: "its head row is missing".into() }),
            Err(sqlx::Error::Database(e))
                if e.message().contains("no such table")
                    || e.code().as_deref() == Some("42P01") =>
            {
                Err(StoreError::NotALog { path: place, why: "it has no audit tables".into() })
            }
            Err(error) => Err(self.failed(&error)),
        }
    }

    pub(crate) fn failed(&self, error: &sqlx::Error) -> StoreError {
        StoreError::database(&self.place, error)
    }

    pub(crate) fn corrupt(&self, why: impl Into<String>) -> StoreError {
        StoreError::Corrupt { place: self.place.to_string(), why: why.into() }
    }

    fn hash(&self, bytes: &[u8]) -> Result<Digest, StoreError> {
        let bytes = bytes.try_into().map_err(|_| self.corrupt("a stored hash is not 32 bytes"))?;
        Ok(Digest::from_bytes(bytes))
    }

    /// Size and root of what is committed. Not signed: see [`Reader::checkpoint`].
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn head(&self) -> Result<Head, StoreError> {
        let sql = "SELECT size, root FROM audit_head WHERE id = 1";
        let (size, root): (i64, Vec<u8>) =
            on!(self.current().await?, pool => sqlx::query_as(sql).fetch_one(pool).await)
                .map_err(|e| self.failed(&e))?;
        Ok(Head { size: unsigned(size), root: self.hash(&root)? })
    }

    /// The index of a row that the head does not cover, if there is one: no writer put it there.
    pub(crate) async fn uncovered(&self) -> Result<Option<i64>, StoreError> {
        let sql = "SELECT idx FROM audit_entries \
                   WHERE idx < 0 OR idx >= (SELECT size FROM audit_head WHERE id = 1) LIMIT 1";
        on!(self.current().await?, pool => sqlx::query_scalar(sql).fetch_optional(pool).await)
            .map_err(|e| self.failed(&e))
    }

    /// The log's verifier key, as the database names it. Whoever could alter the database could
    /// alter this too: a verifier should be given the key from elsewhere.
    ///
    /// # Errors
    /// When the store cannot be read or holds no key.
    pub async fn verifier(&self) -> Result<Verifier, StoreError> {
        let sql = "SELECT verifier FROM audit_head WHERE id = 1";
        let text: String =
            on!(self.current().await?, pool => sqlx::query_scalar(sql).fetch_one(pool).await)
                .map_err(|e| self.failed(&e))?;
        text.parse().map_err(|e| self.corrupt(format!("its verifier key is refused: {e}")))
    }

    /// The latest signed checkpoint, a note.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn checkpoint(&self) -> Result<Option<String>, StoreError> {
        let sql = "SELECT note FROM audit_checkpoints ORDER BY size DESC LIMIT 1";
        on!(self.current().await?, pool => sqlx::query_scalar(sql).fetch_optional(pool).await)
            .map_err(|e| self.failed(&e))
    }

    /// One entry.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn entry(&self, index: u64) -> Result<Option<Stored>, StoreError> {
        Ok(self.entries(index..index.saturating_add(1)).await?.pop())
    }

    /// A range of entries in index order; those beyond the end are left out. Ask for pages.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn entries(&self, range: Range<u64>) -> Result<Vec<Stored>, StoreError> {
        let sql = select_entries!("WHERE e.idx >= $1 AND e.idx < $2 ORDER BY e.idx");
        let (start, end) = (signed(range.start), signed(range.end));
        let rows: Vec<StoredRow> = on!(self.with(range.end).await?, pool => {
            sqlx::query_as(sql).bind(start).bind(end).fetch_all(pool).await
        })
        .map_err(|e| self.failed(&e))?;
        rows.into_iter().map(|row| self.stored(row)).collect()
    }

    pub(crate) fn stored(&self, row: StoredRow) -> Result<Stored, StoreError> {
        let (index, source, sequence, leaf, body) = row;
        Ok(Stored {
            index: unsigned(index),
            source,
            sequence: unsigned(sequence),
            leaf: self.hash(&leaf)?,
            body,
        })
    }

    /// The hashes of a tile; `None` when the log is not that long.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn tile(&self, tile: Tile) -> Result<Option<Vec<Digest>>, StoreError> {
        Ok(self.tiles(&[tile]).await?.remove(&(tile.level, tile.index)))
    }

    /// The hashes of those tiles that the log is long enough for, in one trip to the database, and
    /// one more when the partial tile of leaves at the right edge is among them.
    pub(crate) async fn tiles(&self, wanted: &[Tile]) -> Result<Tiles, StoreError> {
        let is_stored = |tile: &&Tile| tile.level > 0 || tile.width == TILE_WIDTH;
        let (stored, edges): (Vec<&Tile>, Vec<&Tile>) = wanted.iter().partition(is_stored);
        let mut tiles = self.stored_tiles(&stored).await?;
        for edge in edges {
            if let Some(hashes) = self.leaves(edge).await? {
                tiles.insert((edge.level, edge.index), hashes);
            }
        }
        Ok(tiles)
    }

    async fn stored_tiles(&self, wanted: &[&Tile]) -> Result<Tiles, StoreError> {
        if wanted.is_empty() {
            return Ok(Tiles::new());
        }
        let places: Vec<String> =
            (0..wanted.len()).map(|i| format!("(${}, ${})", 2 * i + 1, 2 * i + 2)).collect();
        let sql = format!(
            "WITH wanted (level, idx) AS (VALUES {}) SELECT t.level, t.idx, t.hashes \
             FROM wanted w JOIN audit_tiles t ON t.level = w.level AND t.idx = w.idx",
            places.join(", ")
        );
        let rows: Result<Vec<(i64, i64, Vec<u8>)>, sqlx::Error> = on!(self.current().await?, pool => {
            let mut query = sqlx::query_as(AssertSqlSafe(sql));
            for tile in wanted {
                query = query.bind(i64::from(tile.level)).bind(signed(tile.index));
            }
            query.fetch_all(pool).await
        });
        let mut tiles = Tiles::new();
        for (level, index, bytes) in rows.map_err(|e| self.failed(&e))? {
            let mut hashes =
                tile::split(&bytes).ok_or_else(|| self.corrupt("a tile is not whole hashes"))?;
            let found =
                |tile: &&&Tile| (i64::from(tile.level), signed(tile.index)) == (level, index);
            let Some(tile) = wanted.iter().find(found) else { continue };
            let width = usize::try_from(tile.width).unwrap_or(0);
            hashes.truncate(width);
            if hashes.len() == width {
                tiles.insert((tile.level, tile.index), hashes);
            }
        }
        Ok(tiles)
    }

    /// A tile of leaf hashes that is not full, and therefore not stored.
    async fn leaves(&self, tile: &Tile) -> Result<Option<Vec<Digest>>, StoreError> {
        let sql = "SELECT leaf FROM audit_entries WHERE idx >= $1 AND idx < $2 ORDER BY idx";
        let start = tile.index.saturating_mul(TILE_WIDTH);
        let (start, end) = (signed(start), signed(start.saturating_add(tile.width)));
        let rows: Vec<Vec<u8>> = on!(self.with(unsigned(end)).await?, pool => {
            sqlx::query_scalar(sql).bind(start).bind(end).fetch_all(pool).await
        })
        .map_err(|e| self.failed(&e))?;
        if rows.len() as u64 != tile.width {
            return Ok(None);
        }
        rows.iter().map(|row| self.hash(row)).collect::<Result<Vec<_>, _>>().map(Some)
    }

    /// An entry bundle: `width` entries from `index * 256`, each after its length in 16 bits.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn bundle(&self, index: u64, width: u64) -> Result<Option<Vec<u8>>, StoreError> {
        let start = index.saturating_mul(TILE_WIDTH);
        let entries = self.entries(start..start.saturating_add(width)).await?;
        if entries.len() as u64 != width {
            return Ok(None);
        }
        let mut out = Vec::new();
        for entry in entries {
            let length = u16::try_from(entry.body.len())
                .map_err(|_| self.corrupt("an entry is longer than 65,535 bytes"))?;
            out.extend_from_slice(&length.to_be_bytes());
            out.extend_from_slice(&entry.body);
        }
        Ok(Some(out))
    }

    /// The salt of an entry's arguments digest, unless there is none or it was erased.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn salt(&self, index: u64) -> Result<Option<Salt>, StoreError> {
        let sql = "SELECT salt FROM audit_salts WHERE idx = $1";
        let bytes: Option<Vec<u8>> = on!(self.with(index.saturating_add(1)).await?, pool => {
            sqlx::query_scalar(sql).bind(signed(index)).fetch_optional(pool).await
        })
        .map_err(|e| self.failed(&e))?;
        let Some(bytes) = bytes else { return Ok(None) };
        let bytes = bytes.try_into().map_err(|_| self.corrupt("a salt is not 32 bytes"))?;
        Ok(Some(Salt::from_bytes(bytes)))
    }

    /// The hashes of ranges of leaves in the tree of `size` leaves, from its tiles.
    async fn hashes(&self, ranges: &[Range<u64>], size: u64) -> Result<Vec<Digest>, StoreError> {
        let tiles = self.tiles(&tile::tiles_of(ranges, size)).await?;
        let found = |tile: Tile| tiles.get(&(tile.level, tile.index)).map(Vec::as_slice);
        let root = |range| {
            tile::range_root(range, size, found).map_err(|Tile { level, index, .. }| {
                self.corrupt(format!("tile {level}/{index} is missing or too narrow"))
            })
        };
        ranges.iter().map(root).collect()
    }

    /// The root of the tree of the first `size` entries.
    ///
    /// # Errors
    /// When the log is shorter or cannot be read.
    pub async fn root_at(&self, size: u64) -> Result<Digest, StoreError> {
        let hashes = self.hashes(std::slice::from_ref(&(0..size)), size).await?;
        Ok(hashes.first().copied().unwrap_or_else(tree::empty_root))
    }

    /// The path that proves entry `index` in the tree of `size` entries.
    ///
    /// # Errors
    /// When the index or size is beyond the log, or it cannot be read.
    pub async fn inclusion(&self, index: u64, size: u64) -> Result<Vec<Digest>, StoreError> {
        let ranges =
            tree::inclusion_ranges(index, size).ok_or_else(|| StoreError::Unavailable {
                place: self.place.to_string(),
                why: format!("entry {index} is not among its first {size}"),
            })?;
        self.hashes(&ranges, size).await
    }

    /// The hashes that prove the tree of `old` entries a prefix of that of `new`.
    ///
    /// # Errors
    /// When the sizes are impossible, or the log cannot be read.
    pub async fn consistency(&self, old: u64, new: u64) -> Result<Vec<Digest>, StoreError> {
        let ranges = tree::consistency_ranges(old, new).ok_or_else(|| StoreError::Unavailable {
            place: self.place.to_string(),
            why: format!("there is no consistency proof from size {old} to {new}"),
        })?;
        self.hashes(&ranges, new).await
    }

    /// A `.tlog-proof` of an entry against the latest checkpoint; `None` while no checkpoint covers
    /// it. With `disclose`, its extra data is the salt of the arguments digest.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn prove(&self, index: u64, disclose: bool) -> Result<Option<TlogProof>, StoreError> {
        let Some(checkpoint) = self.checkpoint().await? else { return Ok(None) };
        let size = crate::checkpoint::parse(&checkpoint)
            .map_err(|e| self.corrupt(format!("its checkpoint is refused: {e}")))?
            .head
            .size;
        if index >= size {
            return Ok(None);
        }
        let path = self.inclusion(index, size).await?;
        let salt = if disclose { self.salt(index).await? } else { None };
        let extra = salt.map(|salt| salt.as_bytes().to_vec());
        Ok(Some(TlogProof { extra, index, path, checkpoint }))
    }

    /// What the sequencer needs to go on, checked against the head row.
    pub(crate) async fn tree(&self) -> Result<Tree, StoreError> {
        let head = self.head().await?;
        let peaks = tree::subtrees(&(0..head.size));
        let peaks: Vec<Range<u64>> = peaks.into_iter().map(Node::leaves).collect();
        let peaks = self.hashes(&peaks, head.size).await?;
        let mut levels = Vec::new();
        for level in 0..Edge::height(head.size) {
            let hashes = head.size >> (8 * level);
            let width = hashes % TILE_WIDTH;
            let index = hashes / TILE_WIDTH;
            let hashes = match width {
                0 => Vec::new(),
                width => {
                    let wanted = Tile { level, index, width };
                    self.tile(wanted).await?.ok_or_else(|| self.corrupt("a tile is missing"))?
                }
            };
            levels.push(hashes);
        }
        let broken = || self.corrupt("its tiles do not fit its size");
        let tree = Tree {
            frontier: Frontier::from_peaks(head.size, peaks).ok_or_else(broken)?,
            edge: Edge::from_levels(head.size, levels).ok_or_else(broken)?,
        };
        if tree.head() == head {
            Ok(tree)
        } else {
            Err(self.corrupt("its tiles do not lead to its root hash"))
        }
    }

    /// Where a source's chain stands.
    pub(crate) async fn source(&self, name: &str) -> Result<SourceHead, StoreError> {
        let sql = "SELECT e.sequence, e.leaf, e.kind FROM audit_entries e \
                   WHERE e.source = (SELECT id FROM audit_sources WHERE name = $1) \
                   ORDER BY e.sequence DESC LIMIT 1";
        let row: Option<(i64, Vec<u8>, String)> = on!(self.current().await?, pool => {
            sqlx::query_as(sql).bind(name.to_owned()).fetch_optional(pool).await
        })
        .map_err(|e| self.failed(&e))?;
        let Some((sequence, leaf, kind)) = row else { return Ok(SourceHead::default()) };
        Ok(SourceHead {
            sequence: unsigned(sequence),
            leaf: self.hash(&leaf)?,
            closed: kind == crate::entry::Kind::JournalClosed.as_str(),
        })
    }

    /// Closes the connections.
    pub async fn close(&self) {
        on!(&self.pool, pool => pool.close().await);
    }
}
