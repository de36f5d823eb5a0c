//! The log in a SQLite file: WAL, `synchronous=FULL`, mode 0600, one writer.
//!
//! A commit is one `fsync` of the write-ahead log. Copying that log into the database (SQLite's
//! own "checkpoint") runs on another connection, off the append path, because it is what makes the
//! tail of commit times. The writer holds a lock on `<database>.lock` for as long as it lives; the
//! file's content does not matter and it is never deleted, so no stale lock can be left behind.

use std::collections::HashMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sqlx::sqlite::{SqliteConnectOptions, SqliteConnection, SqliteJournalMode, SqliteSynchronous};
use sqlx::{AssertSqlSafe, ConnectOptions as _, Connection as _};

use crate::flush::{FLUSH_BY_FORCE, Flusher};
use crate::read::APPLICATION_ID;
use crate::salt::Salt;
use crate::store::{Batch, Location, Row, SCHEMA_VERSION, StoreError, signed};
use crate::tile::Tile;

/// Each index costs every append; the common kinds and results have none, because a scan from the
/// newest finds those soon. `crate::query` repeats the conditions, so that the indexes are used.
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
CREATE INDEX audit_by_time ON audit_entries (timestamp);
CREATE INDEX audit_by_agent ON audit_entries (agent_id);
CREATE INDEX audit_by_rare_kind ON audit_entries (kind)
  WHERE kind NOT IN ('decision', 'server_request', 'outcome');
CREATE INDEX audit_by_rare_result ON audit_entries (result)
  WHERE result NOT IN ('allow', 'success', 'recorded');
CREATE INDEX audit_by_decision ON audit_entries (decision_id)
  WHERE decision_id IS NOT NULL;
CREATE TABLE audit_tiles (
  level INTEGER NOT NULL, idx INTEGER NOT NULL, hashes BLOB NOT NULL,
  PRIMARY KEY (level, idx)) STRICT, WITHOUT ROWID;
CREATE TABLE audit_checkpoints (size INTEGER PRIMARY KEY, note TEXT NOT NULL) STRICT;
CREATE TABLE audit_salts (idx INTEGER PRIMARY KEY, salt BLOB NOT NULL) STRICT;
";

/// The most rows in one statement.
const CHUNK: usize = 64;

/// The statements that write a batch. A small batch is one text, from BEGIN to COMMIT, because each
/// text is a trip to the connection's thread and back; one text per number of rows, so that all stay
/// prepared.
#[derive(Debug, Default)]
struct Statements {
    texts: HashMap<(usize, bool, bool), Arc<str>>,
}

const INSERT: &str = "INSERT INTO audit_entries (idx, source, sequence, leaf, timestamp, kind, result, \
                      agent_id, reason, server, tool, decision_id, body) VALUES ";

/// Salts and tiles come as one JSON text each, however many there are. The head moves only from the
/// size and epoch that this writer knows; otherwise it becomes NULL, which its column refuses, and
/// nothing is committed.
const REST: &str = "
INSERT INTO audit_salts (idx, salt)
  SELECT json_extract(value, '$[0]'), unhex(json_extract(value, '$[1]')) FROM json_each(?);
INSERT INTO audit_tiles (level, idx, hashes)
  SELECT json_extract(value, '$[0]'), json_extract(value, '$[1]'), unhex(json_extract(value, '$[2]'))
  FROM json_each(?) WHERE true
  ON CONFLICT (level, idx) DO UPDATE SET hashes = excluded.hashes;
UPDATE audit_head SET size = CASE WHEN epoch = ? AND size = ? THEN ? END, root = ? WHERE id = 1;
COMMIT";

impl Statements {
    fn text(&mut self, rows: usize, begin: bool, last: bool) -> Arc<str> {
        let text = self.texts.entry((rows, begin, last)).or_insert_with(|| {
            let mut text = String::from(if begin { "BEGIN IMMEDIATE;" } else { "" });
            if rows > 0 {
                text.push_str(INSERT);
                text.push_str(&vec!["(?,?,?,?,?,?,?,?,?,?,?,?,?)"; rows].join(","));
                text.push(';');
            }
            text.push_str(if last { REST } else { "" });
            text.into()
        });
        Arc::clone(text)
    }

    /// A full chunk with more to come.
    fn rows(&mut self, begin: bool) -> Arc<str> {
        self.text(CHUNK, begin, false)
    }

    /// The last rows of a batch and everything else.
    fn last(&mut self, rows: usize, begin: bool) -> Arc<str> {
        self.text(rows, begin, true)
    }
}

fn salts_json(salts: &[(u64, Salt)]) -> String {
    let rows: Vec<String> = salts
        .iter()
        .map(|(index, salt)| format!("[{index},\"{}\"]", hex::encode(salt.as_bytes())))
        .collect();
    format!("[{}]", rows.join(","))
}

fn tiles_json(tiles: &[(Tile, Vec<u8>)]) -> String {
    let rows: Vec<String> = tiles
        .iter()
        .map(|(tile, hashes)| {
            format!("[{},{},\"{}\"]", tile.level, tile.index, hex::encode(hashes))
        })
        .collect();
    format!("[{}]", rows.join(","))
}

/// Whether the head row did not let itself be moved.
fn refused(error: &sqlx::Error) -> bool {
    const NOT_NULL: &str = "1299"; // SQLITE_CONSTRAINT_NOTNULL
    let code = error.as_database_error().and_then(|e| e.code());
    code.as_deref() == Some(NOT_NULL)
        && error.as_database_error().is_some_and(|e| e.message().contains("audit_head.size"))
}

/// Checks that a file is a SQLite database of ours before SQLite touches it.
pub(crate) fn check_file(path: &Path) -> Result<(), StoreError> {
    let text = path.display().to_string();
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(StoreError::Missing { path: text });
        }
        Err(e) => return Err(StoreError::file(path, &e)),
    };
    let mut header = [0_u8; 100];
    let mut read = 0;
    while let Some(rest) = header.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(e) => return Err(StoreError::file(path, &e)),
        }
    }
    let not_a_log = |why: &str| StoreError::NotALog { path: text.clone(), why: why.into() };
    // https://sqlite.org/fileformat.html §1.3
    if !header.starts_with(b"SQLite format 3\0") {
        let why = if read == 0 { "it is empty" } else { "it is not a SQLite database" };
        return Err(not_a_log(why));
    }
    if read < header.len() {
        return Err(StoreError::Corrupt { place: text, why: "it ends within its header".into() });
    }
    if header.get(68..72) != Some(&APPLICATION_ID.to_be_bytes()) {
        return Err(not_a_log("it is another application's SQLite database"));
    }
    let length = file.metadata().map_err(|e| StoreError::file(path, &e))?.len();
    // With a write-ahead log beside it, a file may rightly be shorter until SQLite has recovered it.
    if beside(path, "-wal").exists() || whole(&header, length) {
        return Ok(());
    }
    let why = format!("it has {length} bytes, which is less than its header says");
    Err(StoreError::Corrupt { place: text, why })
}

/// Whether a file of this length holds all the pages that its header promises.
fn whole(header: &[u8; 100], length: u64) -> bool {
    let [.., size_high, size_low] = header.first_chunk::<18>().copied().unwrap_or([0; 18]);
    let [.., a, b, c, d] = header.first_chunk::<32>().copied().unwrap_or([0; 32]);
    let page = match u64::from(u16::from_be_bytes([size_high, size_low])) {
        1 => 65_536,
        size => size,
    };
    page * u64::from(u32::from_be_bytes([a, b, c, d])) <= length
}

/// The file beside a database with the same name and another ending.
pub(crate) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// Takes the writer's lock.
fn lock(path: &Path) -> Result<File, StoreError> {
    let lock = beside(path, ".lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&lock)
        .map_err(|e| StoreError::file(&lock, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(StoreError::Locked { path: path.display().to_string() })
        }
        Err(TryLockError::Error(e)) => Err(StoreError::file(&lock, &e)),
    }
}

/// Makes sure that there is a log at `path`, with mode 0600, which SQLite gives its `-wal` and `-shm`
/// too. A new one is built beside it and renamed, so that a crash leaves no half-made database.
async fn prepare_file(path: &Path, verifier: &str) -> Result<(), StoreError> {
    let failed = |e: &io::Error| StoreError::file(path, e);
    match std::fs::metadata(path) {
        Ok(meta) if meta.len() == 0 => create(path, verifier).await,
        Ok(meta) => {
            if meta.permissions().mode() & 0o077 != 0 {
                let private = std::fs::Permissions::from_mode(0o600);
                std::fs::set_permissions(path, private).map_err(|e| failed(&e))?;
            }
            check_file(path)
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => create(path, verifier).await,
        Err(e) => Err(failed(&e)),
    }
}

async fn create(path: &Path, verifier: &str) -> Result<(), StoreError> {
    let next = beside(path, ".new");
    let io_failed = |e: io::Error| StoreError::file(path, &e);
    match std::fs::remove_file(&next) {
        Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io_failed(e)),
        _ => {}
    }
    OpenOptions::new().write(true).create_new(true).mode(0o600).open(&next).map_err(io_failed)?;
    let place = Location::Sqlite(path.to_owned());
    let failed = |e: sqlx::Error| StoreError::database(&place, &e);
    let options = SqliteConnectOptions::new()
        .filename(&next)
        .journal_mode(SqliteJournalMode::Delete)
        .synchronous(SqliteSynchronous::Full);
    let mut conn = SqliteConnection::connect_with(&options).await.map_err(failed)?;
    let marks = format!(
        "PRAGMA application_id = {APPLICATION_ID}; PRAGMA user_version = {SCHEMA_VERSION};"
    );
    sqlx::raw_sql(AssertSqlSafe(marks)).execute(&mut conn).await.map_err(failed)?;
    sqlx::raw_sql(SCHEMA).execute(&mut conn).await.map_err(failed)?;
    sqlx::query("INSERT INTO audit_head (id, schema, size, root, epoch, verifier) VALUES (1, $1, 0, $2, 0, $3)")
        .bind(SCHEMA_VERSION)
        .bind(crate::tree::empty_root().as_bytes().to_vec())
        .bind(verifier.to_owned())
        .execute(&mut conn)
        .await
        .map_err(failed)?;
    conn.close().await.map_err(failed)?;
    std::fs::rename(&next, path).map_err(io_failed)?;
    sync_folder(path).map_err(io_failed)
}

/// Makes a rename in a file's folder durable.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all())
}

/// The writer's side of a SQLite log.
#[derive(Debug)]
pub(crate) struct SqliteStore {
    path: PathBuf,
    place: Location,
    verifier: String,
    conn: SqliteConnection,
    epoch: i64,
    source: i64,
    statements: Statements,
    flusher: Flusher,
    _lock: File,
}

impl SqliteStore {
    /// Opens the log for writing, creating it if the file is absent or empty.
    pub(crate) async fn open(
        path: &Path,
        verifier: &str,
        source: &str,
    ) -> Result<Self, StoreError> {
        let lock = lock(path)?;
        prepare_file(path, verifier).await?;
        let place = Location::Sqlite(path.to_owned());
        let mut conn = connect(path, &place).await?;
        let (epoch, source) = begin(&mut conn, &place, verifier, source).await?;
        Ok(Self {
            statements: Statements::default(),
            path: path.to_owned(),
            flusher: Flusher::new(path.to_owned()),
            place,
            verifier: verifier.to_owned(),
            conn,
            epoch,
            source,
            _lock: lock,
        })
    }

    fn failed(&self, error: &sqlx::Error) -> StoreError {
        StoreError::database(&self.place, error)
    }

    /// Writes a batch in one durable transaction, or nothing.
    pub(crate) async fn commit(&mut self, batch: Batch) -> Result<(), StoreError> {
        if self.flusher.pending() > FLUSH_BY_FORCE {
            self.flusher.flush_on(&mut self.conn).await;
        }
        let bytes: usize = batch.rows.iter().map(|row| row.body.len() + 400).sum();
        match self.write(batch).await {
            Ok(()) => {
                self.flusher.written(bytes as u64);
                Ok(())
            }
            Err(error) if refused(&error) => {
                Err(StoreError::Fenced { place: self.place.to_string() })
            }
            Err(error) => Err(self.failed(&error)),
        }
    }

    /// On an error the transaction is left open, and the connection is not used again.
    async fn write(&mut self, batch: Batch) -> Result<(), sqlx::Error> {
        let mut rows = batch.rows.into_iter();
        let mut begun = false;
        while rows.len() > CHUNK {
            let sql = self.statements.rows(!begun);
            begun = true;
            let mut query = sqlx::query(AssertSqlSafe(sql));
            for row in rows.by_ref().take(CHUNK) {
                query = bind_row(query, self.source, row);
            }
            query.execute(&mut self.conn).await?;
        }
        let mut query = sqlx::query(AssertSqlSafe(self.statements.last(rows.len(), !begun)));
        for row in rows {
            query = bind_row(query, self.source, row);
        }
        query
            .bind(salts_json(&batch.salts))
            .bind(tiles_json(&batch.tiles))
            .bind(self.epoch)
            .bind(signed(batch.from))
            .bind(signed(batch.head.size))
            .bind(batch.head.root.as_bytes().to_vec())
            .execute(&mut self.conn)
            .await
            .map(drop)
    }

    /// Starts over with a fresh connection after a failure: whatever was half done is rolled back.
    pub(crate) async fn reconnect(&mut self) -> Result<(), StoreError> {
        let conn = connect(&self.path, &self.place).await?;
        let old = std::mem::replace(&mut self.conn, conn);
        // The old connection may be unable to close in order; dropping it is enough.
        drop(old);
        let sql = "SELECT epoch FROM audit_head WHERE id = 1";
        let epoch: i64 =
            sqlx::query_scalar(sql).fetch_one(&mut self.conn).await.map_err(|e| self.failed(&e))?;
        if epoch == self.epoch {
            Ok(())
        } else {
            Err(StoreError::Fenced { place: self.place.to_string() })
        }
    }

    pub(crate) async fn save_checkpoint(
        &mut self,
        size: u64,
        note: &str,
    ) -> Result<(), StoreError> {
        sqlx::query("INSERT OR REPLACE INTO audit_checkpoints (size, note) VALUES ($1, $2)")
            .bind(signed(size))
            .bind(note.to_owned())
            .execute(&mut self.conn)
            .await
            .map(drop)
            .map_err(|e| self.failed(&e))
    }

    /// Erases salts for good: overwritten in the database, and gone from the write-ahead log.
    pub(crate) async fn erase_salts(&mut self, indices: &[u64]) -> Result<u64, StoreError> {
        let mut erased = 0;
        for index in indices {
            erased += sqlx::query("DELETE FROM audit_salts WHERE idx = $1")
                .bind(signed(*index))
                .execute(&mut self.conn)
                .await
                .map_err(|e| self.failed(&e))?
                .rows_affected();
        }
        self.truncate_wal().await?;
        Ok(erased)
    }

    async fn truncate_wal(&mut self) -> Result<(), StoreError> {
        let busy: i64 = sqlx::query_scalar("PRAGMA wal_checkpoint(TRUNCATE)")
            .fetch_one(&mut self.conn)
            .await
            .map_err(|e| self.failed(&e))?;
        if busy == 0 {
            return Ok(());
        }
        let why = "a reader holds its write-ahead log open; try again when it is done".to_owned();
        Err(StoreError::Unavailable { place: self.place.to_string(), why })
    }

    /// Leaves one whole database file behind, as far as readers let it.
    pub(crate) async fn close(mut self) {
        self.flusher.stop().await;
        if let Err(error) = self.truncate_wal().await {
            tracing::debug!(%error, verifier = %self.verifier, "left the write-ahead log in place");
        }
        let _ = self.conn.close().await;
    }
}

type SqliteQuery = sqlx::query::Query<'static, sqlx::Sqlite, sqlx::sqlite::SqliteArguments>;

fn bind_row(query: SqliteQuery, source: i64, row: Row) -> SqliteQuery {
    let columns = row.columns;
    query
        .bind(signed(row.index))
        .bind(source)
        .bind(signed(row.sequence))
        .bind(row.leaf.as_bytes().to_vec())
        .bind(columns.timestamp)
        .bind(columns.kind)
        .bind(columns.result)
        .bind(columns.agent_id)
        .bind(columns.reason)
        .bind(columns.server)
        .bind(columns.tool)
        .bind(columns.decision_id)
        .bind(row.body)
}

pub(crate) async fn connect(path: &Path, place: &Location) -> Result<SqliteConnection, StoreError> {
    let options = SqliteConnectOptions::new()
        .filename(path)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .busy_timeout(Duration::from_secs(10))
        .pragma("wal_autocheckpoint", "0")
        .pragma("journal_size_limit", FLUSH_BY_FORCE.to_string())
        .pragma("secure_delete", "ON")
        .statement_cache_capacity(2 * CHUNK + 8)
        .disable_statement_logging();
    SqliteConnection::connect_with(&options).await.map_err(|e| StoreError::database(place, &e))
}

/// Checks whose log it is and takes the next epoch.
async fn begin(
    conn: &mut SqliteConnection,
    place: &Location,
    verifier: &str,
    source: &str,
) -> Result<(i64, i64), StoreError> {
    let failed = |e: sqlx::Error| StoreError::database(place, &e);
    let found: i64 =
        sqlx::query_scalar("PRAGMA user_version").fetch_one(&mut *conn).await.map_err(failed)?;
    if found > SCHEMA_VERSION {
        return Err(StoreError::NewerSchema { place: place.to_string(), found });
    }
    let mut tx = conn.begin_with("BEGIN IMMEDIATE").await.map_err(failed)?;
    let row: Option<(i64, String)> = sqlx::query_as(
        "UPDATE audit_head SET epoch = epoch + 1 WHERE id = 1 RETURNING epoch, verifier",
    )
    .fetch_optional(&mut *tx)
    .await
    .map_err(failed)?;
    let Some((epoch, ours)) = row else {
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
    sqlx::query("INSERT OR IGNORE INTO audit_sources (name) VALUES ($1)")
        .bind(source.to_owned())
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
    let id: i64 = sqlx::query_scalar("SELECT id FROM audit_sources WHERE name = $1")
        .bind(source.to_owned())
        .fetch_one(&mut *tx)
        .await
        .map_err(failed)?;
    tx.commit().await.map_err(failed)?;
    Ok((epoch, id))
}
