//! By what a SQLite log finds entries: lists that are written once for a whole tile.
//!
//! An index on the table of entries would be written by every commit: a page for each index, where a
//! commit of one entry writes three pages otherwise. So entries are listed when a tile of 256 is full, by
//! the commit that fills it: in `audit_lookup` by agent, by decision, by rare kind and by rare result, and in
//! `audit_times` with the tile's first and last time. Of a tile that is not full every entry is looked at.
//!
//! The lists are under no hash. [`crate::verify`] therefore compares them with the entries ([`Tally`]):
//! what is not listed would not be found.

use std::collections::BTreeMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::atomic::{AtomicU64, Ordering};

use rusqlite::{Connection, Transaction};

use crate::entry::{Kind, Outcome};
use crate::query::Filter;
use crate::store::{Columns, signed, unsigned};
use crate::tile::TILE_WIDTH;

/// The tables of the lists.
pub(crate) const TABLES: &str = "
CREATE TABLE audit_lookup (
  field INTEGER NOT NULL, value TEXT NOT NULL, idx INTEGER NOT NULL,
  PRIMARY KEY (field, value, idx)) STRICT, WITHOUT ROWID;
CREATE TABLE audit_times (
  tile INTEGER PRIMARY KEY, first INTEGER NOT NULL, last INTEGER NOT NULL) STRICT;
";

/// What an entry is listed by; the numbers are those of `audit_lookup.field`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Field {
    Agent = 1,
    Decision = 2,
    Kind = 3,
    Result = 4,
}

/// What the entries of a range are listed by. Common kinds and results are not listed: a scan from the
/// newest finds those soon.
const LISTED: &str = "\
    SELECT 1 AS field, agent_id AS value, idx FROM audit_entries \
      WHERE idx >= ?1 AND idx < ?2 AND agent_id IS NOT NULL \
    UNION ALL SELECT 2, decision_id, idx FROM audit_entries \
      WHERE idx >= ?1 AND idx < ?2 AND decision_id IS NOT NULL \
    UNION ALL SELECT 3, kind, idx FROM audit_entries \
      WHERE idx >= ?1 AND idx < ?2 AND kind NOT IN ('decision', 'server_request', 'outcome') \
    UNION ALL SELECT 4, result, idx FROM audit_entries \
      WHERE idx >= ?1 AND idx < ?2 AND result NOT IN ('allow', 'success', 'recorded')";

/// The indexes that version 1 of the schema had instead.
const REPLACED: &str = "\
    DROP INDEX audit_by_time; DROP INDEX audit_by_agent; DROP INDEX audit_by_rare_kind; \
    DROP INDEX audit_by_rare_result; DROP INDEX audit_by_decision;";

/// Whether entries are listed by this kind: those of the others are soon found anyway.
pub(crate) fn is_rare_kind(kind: &str) -> bool {
    ![Kind::Decision, Kind::ServerRequest, Kind::Outcome].iter().any(|k| k.as_str() == kind)
}

/// As [`is_rare_kind`], of results.
pub(crate) fn is_rare_result(result: &str) -> bool {
    ![Outcome::Allow, Outcome::Success, Outcome::Recorded].iter().any(|r| r.as_str() == result)
}

/// The first entry of the tile that is not full.
pub(crate) fn listed_to(size: u64) -> u64 {
    size / TILE_WIDTH * TILE_WIDTH
}

/// Lists the entries of the tiles that became full between the two sizes.
pub(crate) fn list(tx: &Transaction<'_>, before: u64, size: u64) -> rusqlite::Result<()> {
    let range = (signed(listed_to(before)), signed(listed_to(size)));
    if range.0 == range.1 {
        return Ok(());
    }
    // What is there already was not put there by a writer, and must not stop one.
    let lookup = format!("INSERT OR IGNORE INTO audit_lookup {LISTED} ORDER BY 1, 2, 3");
    tx.prepare_cached(&lookup)?.execute(range)?;
    let times = "INSERT OR REPLACE INTO audit_times \
        SELECT idx / 256, min(timestamp), max(timestamp) FROM audit_entries \
        WHERE idx >= ?1 AND idx < ?2 GROUP BY 1";
    tx.prepare_cached(times)?.execute(range)?;
    Ok(())
}

/// Takes the entries below `below`, the first of a tile, off the lists; they are still there.
pub(crate) fn unlist(tx: &Transaction<'_>, below: i64) -> rusqlite::Result<()> {
    let lookup = format!("DELETE FROM audit_lookup WHERE (field, value, idx) IN ({LISTED})");
    tx.execute(&lookup, (0, below))?;
    tx.execute("DELETE FROM audit_times WHERE tile < ? / 256", (below,))?;
    Ok(())
}

/// Brings a log of version 1 to version 2 of the schema: lists in place of indexes.
pub(crate) fn upgrade(tx: &Transaction<'_>) -> rusqlite::Result<()> {
    tx.execute_batch(TABLES)?;
    let size: i64 = tx.query_row("SELECT size FROM audit_head WHERE id = 1", (), |r| r.get(0))?;
    list(tx, 0, unsigned(size))?;
    tx.execute_batch(REPLACED)?;
    tx.pragma_update(None, "user_version", 2)?;
    tx.execute("UPDATE audit_head SET schema = 2 WHERE id = 1", ()).map(drop)
}

/// The list that a query goes by: the one that names the fewest entries.
pub(crate) fn chosen(filter: &Filter) -> Option<(Field, String)> {
    let kind = filter.kind.map(|kind| kind.as_str()).filter(|kind| is_rare_kind(kind));
    let result = filter.result.map(|result| result.as_str()).filter(|word| is_rare_result(word));
    let lists = [
        (Field::Decision, filter.decision_id.as_deref()),
        (Field::Kind, kind),
        (Field::Result, result),
        (Field::Agent, filter.agent.as_deref()),
    ];
    lists.into_iter().find_map(|(field, value)| Some((field, value?.to_owned())))
}

/// Compares the lists with the entries, in one number: each row that there should be is added, each
/// that there is taken away. The hashes are keyed anew for each verification, so that nobody can
/// prepare rows that cancel out.
#[derive(Debug)]
pub(crate) struct Tally {
    to: u64,
    keys: RandomState,
    sum: AtomicU64,
}

impl Tally {
    /// For a log of that many entries.
    pub(crate) fn new(size: u64) -> Self {
        Self { to: listed_to(size), keys: RandomState::new(), sum: AtomicU64::new(0) }
    }

    fn row(&self, field: Field, value: &str, index: u64) -> u64 {
        self.keys.hash_one((field as i64, value, index))
    }

    fn time(&self, tile: u64, first: i64, last: i64) -> u64 {
        self.keys.hash_one((tile, first, last))
    }

    /// Adds what an entry should be listed by.
    pub(crate) fn expect(&self, index: u64, columns: &Columns<'_>, times: &mut Times) {
        if index >= self.to {
            return;
        }
        let rows = [
            (Field::Agent, columns.agent_id),
            (Field::Decision, columns.decision_id),
            (Field::Kind, Some(columns.kind).filter(|kind| is_rare_kind(kind))),
            (Field::Result, Some(columns.result).filter(|result| is_rare_result(result))),
        ];
        for (field, value) in rows {
            if let Some(value) = value {
                self.sum.fetch_add(self.row(field, value, index), Ordering::Relaxed);
            }
        }
        let at = columns.timestamp;
        let (first, last) = times.0.entry(index / TILE_WIDTH).or_insert((at, at));
        (*first, *last) = ((*first).min(at), (*last).max(at));
    }

    /// Adds the times of whole tiles.
    pub(crate) fn expect_times(&self, times: &Times) {
        for (tile, (first, last)) in &times.0 {
            self.sum.fetch_add(self.time(*tile, *first, *last), Ordering::Relaxed);
        }
    }

    /// What is wrong with the lists, if anything, once everything that should be there was added.
    pub(crate) fn settle(&self, conn: &Connection) -> rusqlite::Result<Option<String>> {
        let mut sum = self.sum.load(Ordering::Relaxed);
        let to = signed(self.to);
        let mut select =
            conn.prepare("SELECT field, value, idx FROM audit_lookup WHERE idx < ?")?;
        let mut rows = select.query((to,))?;
        while let Some(row) = rows.next()? {
            let key = (row.get::<_, i64>(0)?, row.get_ref(1)?.as_str()?, unsigned(row.get(2)?));
            sum = sum.wrapping_sub(self.keys.hash_one(key));
        }
        let mut select =
            conn.prepare("SELECT tile, first, last FROM audit_times WHERE tile < ?")?;
        let mut rows = select.query((signed(self.to / TILE_WIDTH),))?;
        while let Some(row) = rows.next()? {
            let tile = unsigned(row.get(0)?);
            sum = sum.wrapping_sub(self.time(tile, row.get(1)?, row.get(2)?));
        }
        if sum == 0 {
            return Ok(None);
        }
        let unlisted = format!(
            "SELECT idx FROM ({LISTED}) l WHERE NOT EXISTS (SELECT 1 FROM audit_lookup a \
             WHERE a.field = l.field AND a.value = l.value AND a.idx = l.idx) ORDER BY idx LIMIT 1"
        );
        let first: Option<i64> = conn.query_row(&unlisted, (0, to), |row| row.get(0)).map_or_else(
            |error| match error {
                rusqlite::Error::QueryReturnedNoRows => Ok(None),
                other => Err(other),
            },
            |index| Ok(Some(index)),
        )?;
        Ok(Some(match first {
            Some(index) => format!("entry {index} is not listed and would not be found"),
            None => "they list what is not in the entries, or other times".into(),
        }))
    }
}

/// The first and last time of each tile of a range.
#[derive(Debug, Default)]
pub(crate) struct Times(BTreeMap<u64, (i64, i64)>);
