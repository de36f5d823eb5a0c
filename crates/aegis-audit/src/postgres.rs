//! The log in Postgres: one sequencer at a time, fenced on the head row.
//!
//! Opening takes the next epoch; each batch moves the head only `WHERE epoch = …` is still that one.
//! A sequencer that was overtaken (a paused pod, a slow network) fails its next append and stops; it
//! can never write beside its successor.

use std::collections::{BTreeSet, HashMap};

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{Connection as _, Executor as _};

use crate::store::{Batch, Location, Row, SCHEMA_VERSION, StoreError, signed};

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS audit_head (
  id BIGINT PRIMARY KEY CHECK (id = 1), schema BIGINT NOT NULL, size BIGINT NOT NULL,
  root BYTEA NOT NULL, epoch BIGINT NOT NULL, verifier TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS audit_sources (
  id BIGINT GENERATED ALWAYS AS IDENTITY PRIMARY KEY, name TEXT NOT NULL UNIQUE);
CREATE TABLE IF NOT EXISTS audit_entries (
  idx BIGINT PRIMARY KEY, source BIGINT NOT NULL REFERENCES audit_sources (id),
  sequence BIGINT NOT NULL, leaf BYTEA NOT NULL, timestamp BIGINT NOT NULL, kind TEXT NOT NULL,
  result TEXT NOT NULL, agent_id TEXT, reason TEXT, server TEXT, tool TEXT, decision_id TEXT,
  body BYTEA NOT NULL, UNIQUE (source, sequence));
CREATE INDEX IF NOT EXISTS audit_by_time ON audit_entries (timestamp, idx);
CREATE INDEX IF NOT EXISTS audit_by_agent ON audit_entries (agent_id, idx);
CREATE INDEX IF NOT EXISTS audit_by_rare_kind ON audit_entries (kind, idx)
  WHERE kind NOT IN ('decision', 'server_request', 'outcome');
CREATE INDEX IF NOT EXISTS audit_by_rare_result ON audit_entries (result, idx)
  WHERE result NOT IN ('allow', 'success', 'recorded');
CREATE INDEX IF NOT EXISTS audit_by_decision ON audit_entries (decision_id)
  WHERE decision_id IS NOT NULL;
CREATE TABLE IF NOT EXISTS audit_tiles (
  level BIGINT NOT NULL, idx BIGINT NOT NULL, hashes BYTEA NOT NULL, PRIMARY KEY (level, idx));
CREATE TABLE IF NOT EXISTS audit_checkpoints (size BIGINT PRIMARY KEY, note TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS audit_salts (idx BIGINT PRIMARY KEY, salt BYTEA NOT NULL);
";

/// Any number that nobody else uses as an advisory lock: two first starts must not race to create
/// the tables.
const SCHEMA_LOCK: i64 = 0x6165_6769_7361_7564;

/// The writer's side of a Postgres log.
#[derive(Debug)]
pub(crate) struct PostgresStore {
    place: Location,
    url: String,
    conn: PgConnection,
    epoch: i64,
    source: i64,
}

impl PostgresStore {
    /// Opens the log for writing, creating its tables, and fences every earlier sequencer.
    pub(crate) async fn open(url: &str, verifier: &str, source: &str) -> Result<Self, StoreError> {
        let place = Location::Postgres(url.to_owned());
        let mut conn = connect(url, &place).await?;
        let (epoch, source) = begin(&mut conn, &place, verifier, source).await?;
        Ok(Self { place, url: url.to_owned(), conn, epoch, source })
    }

    fn failed(&self, error: &sqlx::Error) -> StoreError {
        StoreError::database(&self.place, error)
    }

    /// Writes a batch in one durable transaction, or nothing.
    pub(crate) async fn commit(&mut self, batch: &Batch<'_>) -> Result<(), StoreError> {
        match self.write(batch).await {
            Ok(true) => Ok(()),
            Ok(false) => Err(StoreError::Fenced { place: self.place.to_string() }),
            Err(error) => Err(self.failed(&error)),
        }
    }

    async fn write(&mut self, batch: &Batch<'_>) -> Result<bool, sqlx::Error> {
        let mut tx = self.conn.begin().await?;
        // First, so that the row's lock orders two sequencers before either inserts.
        let moved = sqlx::query(
            "UPDATE audit_head SET size = $1, root = $2 WHERE id = 1 AND epoch = $3 AND size = $4",
        )
        .bind(signed(batch.head.size))
        .bind(batch.head.root.as_bytes().to_vec())
        .bind(self.epoch)
        .bind(signed(batch.from))
        .execute(&mut *tx)
        .await?
        .rows_affected();
        if moved != 1 {
            tx.rollback().await?;
            return Ok(false);
        }
        let mut columns = Arrays::default();
        let names = batch.rows.iter().filter_map(|row| row.source);
        let sources = source_ids(&mut tx, names.collect()).await?;
        for row in &batch.rows {
            let source = match row.source {
                None => self.source,
                Some(name) => *sources.get(name).ok_or(sqlx::Error::RowNotFound)?,
            };
            columns.push(row, source);
        }
        columns.insert().execute(&mut *tx).await?;
        if !batch.salts.is_empty() {
            let (indices, salts): (Vec<i64>, Vec<Vec<u8>>) = batch
                .salts
                .iter()
                .map(|(index, salt)| (signed(*index), salt.as_bytes().to_vec()))
                .unzip();
            sqlx::query("INSERT INTO audit_salts (idx, salt) SELECT * FROM UNNEST($1::bigint[], $2::bytea[])")
                .bind(indices)
                .bind(salts)
                .execute(&mut *tx)
                .await?;
        }
        for (tile, hashes) in &batch.tiles {
            sqlx::query("INSERT INTO audit_tiles (level, idx, hashes) VALUES ($1, $2, $3) ON CONFLICT (level, idx) DO UPDATE SET hashes = excluded.hashes")
                .bind(i64::from(tile.level))
                .bind(signed(tile.index))
                .bind(hashes)
                .execute(&mut *tx)
                .await?;
        }
        tx.commit().await?;
        Ok(true)
    }

    /// Starts over with a fresh connection after a failure.
    pub(crate) async fn reconnect(&mut self) -> Result<(), StoreError> {
        self.conn = connect(&self.url, &self.place).await?;
        let sql = "SELECT epoch FROM audit_head WHERE id = 1";
        let epoch: i64 =
            sqlx::query_scalar(sql).fetch_one(&mut self.conn).await.map_err(|e| self.failed(&e))?;
        if epoch == self.epoch {
            Ok(())
        } else {
            Err(StoreError::Fenced { place: self.place.to_string() })
        }
    }

    /// Stores a checkpoint unless a newer sequencer has taken over.
    pub(crate) async fn save_checkpoint(
        &mut self,
        size: u64,
        note: &str,
    ) -> Result<(), StoreError> {
        let sql = "INSERT INTO audit_checkpoints (size, note) \
                   SELECT $1, $2 FROM audit_head WHERE id = 1 AND epoch = $3 FOR UPDATE \
                   ON CONFLICT (size) DO UPDATE SET note = excluded.note";
        let saved = sqlx::query(sql)
            .bind(signed(size))
            .bind(note.to_owned())
            .bind(self.epoch)
            .execute(&mut self.conn)
            .await
            .map_err(|e| self.failed(&e))?;
        if saved.rows_affected() == 1 {
            Ok(())
        } else {
            Err(StoreError::Fenced { place: self.place.to_string() })
        }
    }

    pub(crate) async fn erase_salts(&mut self, indices: &[u64]) -> Result<u64, StoreError> {
        let indices: Vec<i64> = indices.iter().map(|index| signed(*index)).collect();
        sqlx::query("DELETE FROM audit_salts WHERE idx = ANY($1)")
            .bind(indices)
            .execute(&mut self.conn)
            .await
            .map(|done| done.rows_affected())
            .map_err(|e| self.failed(&e))
    }

    pub(crate) async fn close(self) {
        let _ = self.conn.close().await;
    }
}

/// The rows of sources, made where there are none.
async fn source_ids(
    tx: &mut PgConnection,
    names: BTreeSet<&str>,
) -> Result<HashMap<String, i64>, sqlx::Error> {
    if names.is_empty() {
        return Ok(HashMap::new());
    }
    let names: Vec<String> = names.into_iter().map(str::to_owned).collect();
    sqlx::query(
        "INSERT INTO audit_sources (name) SELECT * FROM UNNEST($1::text[]) ON CONFLICT DO NOTHING",
    )
    .bind(names.clone())
    .execute(&mut *tx)
    .await?;
    let ids: Vec<(String, i64)> =
        sqlx::query_as("SELECT name, id FROM audit_sources WHERE name = ANY($1)")
            .bind(names)
            .fetch_all(&mut *tx)
            .await?;
    Ok(ids.into_iter().collect())
}

/// A batch of rows, column by column.
#[derive(Default)]
struct Arrays<'a> {
    source: Vec<i64>,
    index: Vec<i64>,
    sequence: Vec<i64>,
    leaf: Vec<&'a [u8]>,
    timestamp: Vec<i64>,
    kind: Vec<&'a str>,
    result: Vec<&'a str>,
    agent_id: Vec<Option<&'a str>>,
    reason: Vec<Option<&'a str>>,
    server: Vec<Option<&'a str>>,
    tool: Vec<Option<&'a str>>,
    decision_id: Vec<Option<&'a str>>,
    body: Vec<&'a [u8]>,
}

impl<'a> Arrays<'a> {
    fn push(&mut self, row: &'a Row<'_>, source: i64) {
        self.source.push(source);
        self.index.push(signed(row.index));
        self.sequence.push(signed(row.sequence));
        self.leaf.push(row.leaf.as_bytes());
        self.timestamp.push(row.columns.timestamp);
        self.kind.push(row.columns.kind);
        self.result.push(row.columns.result);
        self.agent_id.push(row.columns.agent_id);
        self.reason.push(row.columns.reason);
        self.server.push(row.columns.server);
        self.tool.push(row.columns.tool);
        self.decision_id.push(row.columns.decision_id);
        self.body.push(&row.body);
    }

    fn insert(self) -> sqlx::query::Query<'static, sqlx::Postgres, sqlx::postgres::PgArguments> {
        sqlx::query(
            "INSERT INTO audit_entries (idx, sequence, leaf, timestamp, kind, result, agent_id, \
             reason, server, tool, decision_id, body, source) SELECT * FROM UNNEST(\
             $1::bigint[], $2::bigint[], $3::bytea[], $4::bigint[], $5::text[], $6::text[], \
             $7::text[], $8::text[], $9::text[], $10::text[], $11::text[], $12::bytea[], $13::bigint[])",
        )
        .bind(self.index)
        .bind(self.sequence)
        .bind(self.leaf)
        .bind(self.timestamp)
        .bind(self.kind)
        .bind(self.result)
        .bind(self.agent_id)
        .bind(self.reason)
        .bind(self.server)
        .bind(self.tool)
        .bind(self.decision_id)
        .bind(self.body)
        .bind(self.source)
    }
}

/// A connection whose commits are durable.
pub(crate) async fn connect(url: &str, place: &Location) -> Result<PgConnection, StoreError> {
    let failed = |e: sqlx::Error| StoreError::database(place, &e);
    let options: PgConnectOptions = url.parse().map_err(failed)?;
    let mut conn = PgConnection::connect_with(&options).await.map_err(failed)?;
    // A server may default to asynchronous commits; an acknowledged entry must survive a crash.
    conn.execute("SET synchronous_commit = on").await.map_err(failed)?;
    Ok(conn)
}

/// Creates what is missing, checks what is there, and takes the next epoch.
async fn begin(
    conn: &mut PgConnection,
    place: &Location,
    verifier: &str,
    source: &str,
) -> Result<(i64, i64), StoreError> {
    let failed = |e: sqlx::Error| StoreError::database(place, &e);
    let mut tx = conn.begin().await.map_err(failed)?;
    sqlx::query("SELECT pg_advisory_xact_lock($1)")
        .bind(SCHEMA_LOCK)
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
    sqlx::raw_sql(SCHEMA).execute(&mut *tx).await.map_err(failed)?;
    sqlx::query("INSERT INTO audit_head (id, schema, size, root, epoch, verifier) VALUES (1, $1, 0, $2, 0, $3) ON CONFLICT (id) DO NOTHING")
        .bind(SCHEMA_VERSION)
        .bind(crate::tree::empty_root().as_bytes().to_vec())
        .bind(verifier.to_owned())
        .execute(&mut *tx)
        .await
        .map_err(failed)?;
    let (epoch, ours, found): (i64, String, i64) = sqlx::query_as(
        "UPDATE audit_head SET epoch = epoch + 1 WHERE id = 1 RETURNING epoch, verifier, schema",
    )
    .fetch_one(&mut *tx)
    .await
    .map_err(failed)?;
    if found > SCHEMA_VERSION {
        return Err(StoreError::NewerSchema { place: place.to_string(), found });
    }
    if ours != verifier {
        return Err(StoreError::ForeignKey {
            place: place.to_string(),
            found: ours,
            expected: verifier.to_owned(),
        });
    }
    sqlx::query("INSERT INTO audit_sources (name) VALUES ($1) ON CONFLICT (name) DO NOTHING")
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
