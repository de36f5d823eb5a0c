//! The log in a SQLite file: WAL, mode 0600, one writer ([`crate::file`]).
//!
//! A batch is durable in the redo log ([`crate::redo`]) before [`Tables`] has it, so SQLite need not sync each
//! transaction (`synchronous=NORMAL`, sqlite.org/pragma.html): its write-ahead log is synced before the redo log
//! is begun anew ([`Tables::sync`]). Prepared statements and borrowed values leave SQLite's own work. Copying
//! the write-ahead log into the database (SQLite's own "checkpoint") runs on another connection ([`crate::flush`]),
//! because it is what makes the tail of commit times.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rusqlite::{
    Connection, ErrorCode, OpenFlags, OptionalExtension as _, Transaction, TransactionBehavior,
    params,
};

use crate::file::{Held, beside, check_file, lock, sync_folder};
use crate::flush::{FLUSH_BY_FORCE, Flusher};
use crate::lists;
use crate::mover::Mover;
use crate::read::APPLICATION_ID;
use crate::redo::{self, Redo};
use crate::store::{Batch, Location, SCHEMA_VERSION, StoreError, signed, unsigned};

/// Opened by its path and never created: only [`create`] makes a log. One thread at a time uses a
/// connection, so it needs no lock of its own.
const WRITING: OpenFlags = OpenFlags::SQLITE_OPEN_READ_WRITE.union(OpenFlags::SQLITE_OPEN_NO_MUTEX);

/// How many sources' ids are remembered.
const MAX_SOURCES: usize = 65_536;

/// How long a reader of another process waits for a writer to have moved what it has acknowledged.
const CATCH_UP: Duration = Duration::from_secs(5);

/// The one index is for the chains of sources. By what else entries are found, see [`lists`].
const SCHEMA: &str = "
CREATE TABLE audit_head (
  id INTEGER PRIMARY KEY CHECK (id = 1), schema INTEGER NOT NULL, size INTEGER NOT NULL,
  root BLOB NOT NULL, epoch INTEGER NOT NULL, verifier TEXT NOT NULL) STRICT;
CREATE TABLE audit_sources (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE) STRICT;
CREATE TABLE audit_entries (
  idx INTEGER PRIMARY KEY, source INTEGER NOT NULL REFERENCES audit_sources (id),
  sequence INTEGER NOT NULL, leaf BLOB NOT NULL, timestamp INTEGER NOT NULL, kind TEXT NOT NULL,
  result TEXT NOT NULL, agent_id TEXT, reason TEXT, server TEXT, tool TEXT, decision_id TEXT,
  body BLOB NOT NULL) STRICT;
CREATE UNIQUE INDEX audit_by_chain ON audit_entries (source, sequence);
CREATE TABLE audit_tiles (
  level INTEGER NOT NULL, idx INTEGER NOT NULL, hashes BLOB NOT NULL,
  PRIMARY KEY (level, idx)) STRICT, WITHOUT ROWID;
CREATE TABLE audit_checkpoints (size INTEGER PRIMARY KEY, note TEXT NOT NULL) STRICT;
CREATE TABLE audit_salts (idx INTEGER PRIMARY KEY, salt BLOB NOT NULL) STRICT;
";

/// Moves the head only from the size and epoch that this writer knows.
const MOVE_HEAD: &str =
    "UPDATE audit_head SET size = ?, root = ? WHERE id = 1 AND epoch = ? AND size = ?";

const INSERT_ENTRY: &str = "INSERT INTO audit_entries (idx, source, sequence, leaf, timestamp, kind, \
    result, agent_id, reason, server, tool, decision_id, body) \
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)";

const INSERT_SALT: &str = "INSERT INTO audit_salts (idx, salt) VALUES (?, ?)";

/// The leaves of the last, partial tile stay with their entries: the tree is read back from them.
const FORGETTABLE: &str =
    "SELECT min(? / 256, (size - 1) / 256) * 256 FROM audit_head WHERE id = 1";
const FORGET_CHECKPOINTS: &str =
    "DELETE FROM audit_checkpoints WHERE size < (SELECT max(size) FROM audit_checkpoints)";

const PUT_TILE: &str = "INSERT INTO audit_tiles (level, idx, hashes) VALUES (?, ?, ?) \
    ON CONFLICT (level, idx) DO UPDATE SET hashes = excluded.hashes";

/// Makes sure that there is a log at `path`, with mode 0600, which SQLite gives its `-wal` and `-shm`
/// too. A new one is built beside it and renamed, so that a crash leaves no half-made database.
fn prepare_file(path: &Path, verifier: &str) -> Result<(), StoreError> {
    let failed = |e: &io::Error| StoreError::file(path, e);
    match std::fs::metadata(path) {
        Ok(meta) if meta.len() == 0 => create(path, verifier),
        Ok(meta) => {
            if meta.permissions().mode() & 0o077 != 0 {
                let private = std::fs::Permissions::from_mode(0o600);
                std::fs::set_permissions(path, private).map_err(|e| failed(&e))?;
            }
            check_file(path)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => create(path, verifier),
        Err(e) => Err(failed(&e)),
    }
}

fn create(path: &Path, verifier: &str) -> Result<(), StoreError> {
    let next = beside(path, ".new");
    let io_failed = |e: io::Error| StoreError::file(path, &e);
    match std::fs::remove_file(&next) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_failed(e)),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&next).map_err(io_failed)?;
    let place = Location::Sqlite(path.to_owned());
    let failed = |e: rusqlite::Error| StoreError::sqlite(&place, &e);
    let mut conn = Connection::open_with_flags(&next, WRITING).map_err(failed)?;
    conn.execute_batch("PRAGMA journal_mode = DELETE; PRAGMA synchronous = FULL")
        .map_err(failed)?;
    fill(&mut conn, verifier).map_err(failed)?;
    conn.close().map_err(|(_, error)| failed(error))?;
    std::fs::rename(&next, path).map_err(io_failed)?;
    sync_folder(path).map_err(io_failed)
}

/// The tables of a new log and its head row, all at once.
fn fill(conn: &mut Connection, verifier: &str) -> rusqlite::Result<()> {
    let tx = conn.transaction()?;
    tx.pragma_update(None, "application_id", APPLICATION_ID)?;
    tx.pragma_update(None, "user_version", SCHEMA_VERSION)?;
    tx.execute_batch(SCHEMA)?;
    tx.execute_batch(lists::TABLES)?;
    tx.execute(
        "INSERT INTO audit_head (id, schema, size, root, epoch, verifier) VALUES (1, ?, 0, ?, 0, ?)",
        (SCHEMA_VERSION, crate::tree::empty_root().as_bytes(), verifier),
    )?;
    tx.commit()
}

/// The write-ahead log, as far as it has to be synced.
#[derive(Debug)]
struct Wal {
    path: PathBuf,
    file: File,
    /// A sync failed: the disk may lack what was committed, and a later sync that succeeds would not say so.
    unsure: bool,
}

impl Wal {
    /// SQLite has it open already; this one is only synced. It makes it durable that the file is there, too.
    fn open(database: &Path) -> Result<Self, StoreError> {
        let path = beside(database, "-wal");
        let file = File::open(&path).map_err(|e| StoreError::file(&path, &e))?;
        sync_folder(&path).map_err(|e| StoreError::file(&path, &e))?;
        Ok(Self { path, file, unsure: false })
    }
}

/// The tables, and whoever holds the lock on the log fills them.
#[derive(Debug)]
pub(crate) struct Tables {
    path: PathBuf,
    place: Location,
    conn: Connection,
    epoch: i64,
    sources: HashMap<String, i64>,
    wal: Wal,
    flusher: Flusher,
}

impl Tables {
    /// The tables of a log whose head has this epoch.
    fn new(path: &Path, conn: Connection, epoch: i64) -> Result<Self, StoreError> {
        Ok(Self {
            path: path.to_owned(),
            place: Location::Sqlite(path.to_owned()),
            conn,
            epoch,
            sources: HashMap::new(),
            wal: Wal::open(path)?,
            flusher: Flusher::new(path.to_owned()),
        })
    }

    pub(crate) const fn place(&self) -> &Location {
        &self.place
    }

    fn failed(&self, error: &rusqlite::Error) -> StoreError {
        StoreError::sqlite(&self.place, error)
    }

    fn fenced(&self) -> StoreError {
        StoreError::Fenced { place: self.place.to_string() }
    }

    /// Writes batches that follow one another in one transaction, or nothing. They are in the database's files
    /// durably after [`Tables::sync`].
    pub(crate) fn commit(&mut self, batches: &[Batch<'_>]) -> Result<(), StoreError> {
        if self.flusher.pending() > FLUSH_BY_FORCE {
            self.flusher.flush_on(&self.conn);
        }
        let mut written = self.write(batches);
        if written
            .as_ref()
            .is_err_and(|error| error.sqlite_error_code() == Some(ErrorCode::DiskFull))
        {
            // Once it is copied, the write-ahead log need not get longer.
            self.flusher.flush_on(&self.conn);
            written = self.write(batches);
        }
        match written {
            Ok(true) => {
                let rows = batches.iter().flat_map(|batch| &batch.rows);
                let bytes: usize = rows.map(|row| row.body.len() + 400).sum();
                self.flusher.written(bytes as u64);
                Ok(())
            }
            Ok(false) => Err(self.fenced()),
            Err(error) => {
                // What it names may have been rolled back.
                self.sources.clear();
                Err(self.failed(&error))
            }
        }
    }

    /// Whether the head let itself be moved; a transaction that does not end well is rolled back.
    fn write(&mut self, batches: &[Batch<'_>]) -> rusqlite::Result<bool> {
        let (Some(first), Some(last)) = (batches.first(), batches.last()) else { return Ok(true) };
        let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let moved = tx.prepare_cached(MOVE_HEAD)?.execute((
            signed(last.head.size),
            last.head.root.as_bytes(),
            self.epoch,
            signed(first.from),
        ))?;
        if moved != 1 {
            return Ok(false);
        }
        if self.sources.len() > MAX_SOURCES {
            self.sources.clear();
        }
        for batch in batches {
            insert(&tx, &mut self.sources, batch)?;
        }
        lists::list(&tx, first.from, last.head.size)?;
        tx.commit()?;
        Ok(true)
    }

    /// Makes durable what was committed.
    pub(crate) fn sync(&mut self) -> Result<(), StoreError> {
        if self.wal.unsure {
            self.copy_all()?;
            self.wal.unsure = false;
        }
        self.wal.file.sync_data().map_err(|error| {
            self.wal.unsure = true;
            StoreError::file(&self.wal.path, &error)
        })
    }

    /// Starts over with a fresh connection after a failure: whatever was half done is rolled back.
    pub(crate) fn reconnect(&mut self) -> Result<(), StoreError> {
        let conn = connect(&self.path).map_err(|e| self.failed(&e))?;
        // The old connection may be unable to close in order; dropping it is enough.
        drop(std::mem::replace(&mut self.conn, conn));
        let sql = "SELECT epoch FROM audit_head WHERE id = 1";
        let epoch: i64 =
            self.conn.query_row(sql, (), |row| row.get(0)).map_err(|e| self.failed(&e))?;
        if epoch != self.epoch {
            return Err(self.fenced());
        }
        self.sources.clear();
        self.wal.file =
            File::open(&self.wal.path).map_err(|e| StoreError::file(&self.wal.path, &e))?;
        // An error that the old file had to tell is not told by this one.
        self.wal.unsure = true;
        Ok(())
    }

    /// Copies all of the write-ahead log into the database, which SQLite syncs.
    fn copy_all(&self) -> Result<(), StoreError> {
        let (busy, log, copied): (i64, i64, i64) = self
            .conn
            .query_row("PRAGMA wal_checkpoint(PASSIVE)", (), |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .map_err(|e| self.failed(&e))?;
        if busy == 0 && log >= 0 && log == copied {
            return Ok(());
        }
        let why = "a sync failed, and a reader keeps it from being written anew".to_owned();
        Err(StoreError::Unavailable { place: self.place.to_string(), why })
    }

    fn delete_salts(&mut self, indices: &[u64]) -> rusqlite::Result<u64> {
        let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut erased = 0;
        for index in indices {
            let gone = tx
                .prepare_cached("DELETE FROM audit_salts WHERE idx = ?")?
                .execute((signed(*index),))?;
            erased += gone as u64;
        }
        tx.commit()?;
        Ok(erased)
    }

    fn forget(&mut self, below: u64) -> rusqlite::Result<()> {
        let below = signed(below);
        let tx = self.conn.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let below: i64 = tx.query_row(FORGETTABLE, (below,), |row| row.get(0))?;
        lists::unlist(&tx, below)?;
        tx.execute("DELETE FROM audit_salts WHERE idx < ?", (below,))?;
        tx.execute("DELETE FROM audit_entries WHERE idx < ?", (below,))?;
        tx.execute(FORGET_CHECKPOINTS, ())?;
        tx.commit()
    }

    fn truncate_wal(&self) -> Result<(), StoreError> {
        let busy: i64 = self
            .conn
            .query_row("PRAGMA wal_checkpoint(TRUNCATE)", (), |row| row.get(0))
            .map_err(|e| self.failed(&e))?;
        if busy == 0 {
            return Ok(());
        }
        let why = "a reader holds its write-ahead log open; try again when it is done".to_owned();
        Err(StoreError::Unavailable { place: self.place.to_string(), why })
    }
}

/// Puts a batch's entries, salts and tiles into the tables.
fn insert(
    tx: &Transaction<'_>,
    sources: &mut HashMap<String, i64>,
    batch: &Batch<'_>,
) -> rusqlite::Result<()> {
    let mut insert = tx.prepare_cached(INSERT_ENTRY)?;
    for row in &batch.rows {
        let name = row.source.unwrap_or_default();
        let source = match sources.get(name) {
            Some(id) => *id,
            None => {
                let id = source_id(tx, name)?;
                sources.insert(name.to_owned(), id);
                id
            }
        };
        let columns = &row.columns;
        insert.execute(params![
            signed(row.index),
            source,
            signed(row.sequence),
            row.leaf.as_bytes(),
            columns.timestamp,
            columns.kind,
            columns.result,
            columns.agent_id,
            columns.reason,
            columns.server,
            columns.tool,
            columns.decision_id,
            row.body.as_ref(),
        ])?;
    }
    for (index, salt) in &batch.salts {
        tx.prepare_cached(INSERT_SALT)?.execute((signed(*index), salt.as_bytes()))?;
    }
    for (tile, hashes) in &batch.tiles {
        tx.prepare_cached(PUT_TILE)?.execute((tile.level, signed(tile.index), hashes))?;
    }
    Ok(())
}

/// Brings the tables up to what a process that did not close the log has left in its redo log.
///
/// # Errors
/// When that cannot be read or written, or does not continue the database.
fn recover(path: &Path, verifier: &str) -> Result<(), StoreError> {
    let left = redo::left(path)?;
    let place = Location::Sqlite(path.to_owned());
    let failed = |e: rusqlite::Error| StoreError::sqlite(&place, &e);
    if left.size() == 0 {
        return Ok(());
    }
    let conn = connect(path).map_err(failed)?;
    let found: i64 = conn.query_row("PRAGMA user_version", (), |row| row.get(0)).map_err(failed)?;
    if found > SCHEMA_VERSION {
        return Err(StoreError::NewerSchema { place: place.to_string(), found });
    }
    let sql = "SELECT size, epoch FROM audit_head WHERE id = 1";
    let head = conn.query_row(sql, (), |row| Ok((row.get(0)?, row.get(1)?))).optional();
    // Whoever opens the log says what is wrong with one that has no head.
    let Some((size, epoch)) = head.map_err(failed)? else { return Ok(()) };
    let batches = left.beyond(path, verifier, unsigned(size))?;
    if batches.is_empty() {
        return Ok(());
    }
    let entries: usize = batches.iter().map(|batch| batch.rows.len()).sum();
    tracing::info!(place = %place, entries, "moving what was left in the redo log into the database");
    let mut tables = Tables::new(path, conn, epoch)?;
    let moved = tables.commit(&batches).and_then(|()| tables.sync());
    tables.flusher.stop();
    moved
}

/// For readers: waits until the database has all that was durable when it was called. What nobody writes any more is
/// moved here.
///
/// # Errors
/// When it has not, and why.
pub(crate) fn catch_up(path: &Path) -> Result<(), StoreError> {
    let size = redo::left(path)?.size();
    let until = Instant::now() + CATCH_UP;
    loop {
        let immutable = !beside(path, "-wal").exists();
        let head = connect_to_read(path, immutable).and_then(|conn| {
            let sql = "SELECT size, verifier FROM audit_head WHERE id = 1";
            conn.query_row(sql, (), |row| Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?)))
        });
        let (has, verifier) = match head {
            Ok(head) => head,
            Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                return Err(StoreError::sqlite(&Location::Sqlite(path.to_owned()), &error));
            }
            // What is wrong with the database will be said by whoever reads on.
            Err(_) => return Ok(()),
        };
        if unsigned(has) >= size {
            return Ok(());
        }
        match lock(path) {
            Ok(_lock) => return recover(path, &verifier),
            Err(StoreError::Locked { .. }) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(2));
            }
            Err(error) => {
                let (place, entries) = (path.display().to_string(), size - unsigned(has));
                let why = match error {
                    StoreError::Locked { .. } => {
                        format!(
                            "its writer has not moved {entries} entries from the redo log into it"
                        )
                    }
                    error => format!(
                        "{entries} entries are in its redo log alone; copy all its files to where you may write ({error})"
                    ),
                };
                return Err(StoreError::Unavailable { place, why });
            }
        }
    }
}

/// Takes the writer's lock, for which a reader that moves what was left is waited for.
fn lock_soon(path: &Path) -> Result<File, StoreError> {
    let until = Instant::now() + Duration::from_secs(1);
    loop {
        match lock(path) {
            Err(StoreError::Locked { .. }) if Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(20));
            }
            taken => return taken,
        }
    }
}

/// The writer's side of a SQLite log.
#[derive(Debug)]
pub(crate) struct SqliteStore {
    place: Location,
    tables: Arc<Mutex<Tables>>,
    redo: Arc<Redo>,
    mover: Mover,
    _held: Held,
    _lock: File,
}

impl SqliteStore {
    /// Opens the log for writing, creating it if the file is absent or empty.
    pub(crate) fn open(path: &Path, verifier: &str, source: &str) -> Result<Self, StoreError> {
        let lock = lock_soon(path)?;
        prepare_file(path, verifier)?;
        let held = Held::new(path)?;
        let place = Location::Sqlite(path.to_owned());
        let mut conn = connect(path).map_err(|e| StoreError::sqlite(&place, &e))?;
        let (epoch, size) = begin(&mut conn, &place, verifier)?;
        let size = match redo::left(path)?.size() {
            left if left > size => {
                recover(path, verifier)?;
                left
            }
            _ => size,
        };
        let mut tables = Tables::new(path, conn, epoch)?;
        tables.sync()?;
        let redo = Arc::new(Redo::open(path, verifier, source, size)?);
        held.follow(&redo);
        let tables = Arc::new(Mutex::new(tables));
        let mover = Mover::start(Arc::clone(&redo), Arc::clone(&tables)).map_err(|error| {
            let why = format!("cannot start the thread that fills its tables: {error}");
            StoreError::Unavailable { place: place.to_string(), why }
        })?;
        Ok(Self { place, tables, redo, mover, _held: held, _lock: lock })
    }

    pub(crate) const fn redo(&self) -> &Arc<Redo> {
        &self.redo
    }

    /// Starts over after a failure. What is durable is moved; what was written and not synced is gone.
    pub(crate) fn reconnect(&self) -> Result<(), StoreError> {
        self.redo.drain()?;
        let mut tables = self.tables.lock();
        tables.reconnect()?;
        if self.redo.is_unsure() {
            tables.sync()?;
            self.redo.clear()?;
        }
        Ok(())
    }

    pub(crate) fn save_checkpoint(&self, size: u64, note: &str) -> Result<(), StoreError> {
        let tables = self.tables.lock();
        tables
            .conn
            .prepare_cached("INSERT OR REPLACE INTO audit_checkpoints (size, note) VALUES (?, ?)")
            .and_then(|mut insert| insert.execute((signed(size), note)))
            .map(drop)
            .map_err(|e| tables.failed(&e))
    }

    /// Erases salts for good: overwritten in the database, and gone from the write-ahead log and the redo log.
    pub(crate) fn erase_salts(&self, indices: &[u64]) -> Result<u64, StoreError> {
        self.redo.drain()?;
        let mut tables = self.tables.lock();
        let erased =
            tables.delete_salts(indices).map_err(|e| StoreError::sqlite(&self.place, &e))?;
        tables.truncate_wal()?;
        self.redo.clear()?;
        Ok(erased)
    }

    /// Deletes the entries below `below` and their salts, and checkpoints that a later one covers. The
    /// head, the tiles and the last entries stay, so that the chain goes on.
    pub(crate) fn forget(&self, below: u64) -> Result<(), StoreError> {
        self.redo.drain()?;
        self.tables.lock().forget(below).map_err(|e| StoreError::sqlite(&self.place, &e))
    }

    /// Leaves one whole database file behind, as far as readers let it.
    pub(crate) fn close(mut self) {
        let settled = self.redo.drain();
        self.mover.stop();
        let mut tables = self.tables.lock();
        tables.flusher.stop();
        match settled.and_then(|()| tables.sync()) {
            Ok(()) => self.redo.remove(),
            Err(error) => tracing::error!(%error, "left entries in the redo log"),
        }
        if let Err(error) = tables.truncate_wal() {
            tracing::debug!(%error, "left the write-ahead log in place");
        }
    }
}

/// A connection that writes.
pub(crate) fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let conn = Connection::open_with_flags(path, WRITING)?;
    conn.busy_timeout(Duration::from_secs(10))?;
    conn.execute_batch(
        "PRAGMA journal_mode = WAL; PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON; \
         PRAGMA wal_autocheckpoint = 0; PRAGMA secure_delete = ON",
    )?;
    // Kept at the length it reaches between two starts over: writing within a file costs the disk
    // less than making it longer.
    conn.pragma_update(None, "journal_size_limit", signed(2 * FLUSH_BY_FORCE))?;
    Ok(conn)
}

/// A connection that only reads. Of an immutable file SQLite takes no lock and looks for nothing
/// beside it, which can be said in a URI alone.
pub(crate) fn connect_to_read(path: &Path, immutable: bool) -> rusqlite::Result<Connection> {
    let mut uri = String::from("file:");
    for byte in path.as_os_str().as_encoded_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => {
                uri.push(char::from(*byte));
            }
            other => uri.push_str(&format!("%{other:02X}")),
        }
    }
    uri.push_str(if immutable { "?immutable=1" } else { "" });
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY
        | OpenFlags::SQLITE_OPEN_NO_MUTEX
        | OpenFlags::SQLITE_OPEN_URI;
    let conn = Connection::open_with_flags(uri, flags)?;
    conn.busy_timeout(Duration::from_secs(10))?;
    Ok(conn)
}

/// Checks whose log it is and takes the next epoch.
fn begin(
    conn: &mut Connection,
    place: &Location,
    verifier: &str,
) -> Result<(i64, u64), StoreError> {
    let failed = |e: rusqlite::Error| StoreError::sqlite(place, &e);
    let found: i64 = conn.query_row("PRAGMA user_version", (), |row| row.get(0)).map_err(failed)?;
    if found > SCHEMA_VERSION {
        return Err(StoreError::NewerSchema { place: place.to_string(), found });
    }
    let tx = conn.transaction_with_behavior(TransactionBehavior::Immediate).map_err(failed)?;
    let taken = tx
        .query_row(
            "UPDATE audit_head SET epoch = epoch + 1 WHERE id = 1 RETURNING epoch, verifier, size",
            (),
            |row| Ok((row.get(0)?, row.get::<_, String>(1)?, row.get(2)?)),
        )
        .optional()
        .map_err(failed)?;
    let Some((epoch, ours, size)) = taken else {
        let why = "its head row is missing".to_owned();
        return Err(StoreError::Corrupt { place: place.to_string(), why });
    };
    if ours != verifier {
        return Err(StoreError::ForeignKey {
            place: place.to_string(),
            found: ours,
            expected: verifier.to_owned(),
        });
    }
    if found < SCHEMA_VERSION {
        lists::upgrade(&tx).map_err(failed)?;
    }
    tx.commit().map_err(failed)?;
    Ok((epoch, unsigned(size)))
}

/// The row of a source, made if there is none.
fn source_id(tx: &Transaction<'_>, name: &str) -> rusqlite::Result<i64> {
    tx.prepare_cached("INSERT OR IGNORE INTO audit_sources (name) VALUES (?)")?.execute((name,))?;
    tx.prepare_cached("SELECT id FROM audit_sources WHERE name = ?")?
        .query_row((name,), |row| row.get(0))
}
