//! What a store holds, whatever the database: entries, tiles, checkpoints, the head and salts.
//!
//! A [`Batch`] is written in one transaction, so a crash leaves a log of some whole number of
//! batches. The head row carries size, root and the sequencer's fencing epoch. Salts stand in their
//! own table: erasing one leaves the log as it was.

use std::borrow::Cow;
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use aegis_core::{Digest, Timestamp};

use crate::checkpoint::Head;
use crate::entry::Draft;
use crate::salt::Salt;
use crate::tile::{Edge, Tile};
use crate::tree::Frontier;

/// The layout of the tables. In version 1 SQLite had indexes where it has lists ([`crate::lists`]); for Postgres
/// the two are the same.
pub(crate) const SCHEMA_VERSION: i64 = 2;

/// Where a log is kept.
#[derive(Clone, PartialEq, Eq)]
pub enum Location {
    /// A SQLite database file.
    Sqlite(PathBuf),
    /// A Postgres connection URL.
    Postgres(String),
}

impl FromStr for Location {
    type Err = std::convert::Infallible;

    /// `postgres://…` and `postgresql://…` are Postgres; anything else is a path, with or without
    /// `sqlite:` before it.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            return Ok(Self::Postgres(text.to_owned()));
        }
        let path = text.strip_prefix("sqlite://").or_else(|| text.strip_prefix("sqlite:"));
        Ok(Self::Sqlite(PathBuf::from(path.unwrap_or(text))))
    }
}

impl fmt::Display for Location {
    /// A Postgres URL is shown without what may be a password.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Sqlite(path) => write!(f, "{}", path.display()),
            Self::Postgres(url) => {
                let rest = url.split_once("://").map_or(url.as_str(), |(_, rest)| rest);
                let host = rest.rsplit_once('@').map_or(rest, |(_, host)| host);
                let host = host.split_once('?').map_or(host, |(host, _)| host);
                write!(f, "postgres://{host}")
            }
        }
    }
}

impl fmt::Debug for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Why a store cannot be opened, read or written.
#[derive(Clone, Debug, thiserror::Error)]
pub enum StoreError {
    /// The file is something else.
    #[error("{path} is not an Aegis audit log: {why}; name another file, or move this one away")]
    NotALog {
        /// Which file.
        path: String,
        /// What it is.
        why: String,
    },
    /// The file does not exist.
    #[error("{path} does not exist; check the path, or start the log's writer first")]
    Missing {
        /// Which file.
        path: String,
    },
    /// Bytes are damaged or missing.
    #[error(
        "{place} is damaged or cut short ({why}); keep it for inspection, restore a copy, and run `aegis audit verify` on it"
    )]
    Corrupt {
        /// Which log.
        place: String,
        /// What was found.
        why: String,
    },
    /// Written by a newer Aegis.
    #[error(
        "{place} has schema version {found} and this program knows {SCHEMA_VERSION}; use a newer Aegis"
    )]
    NewerSchema {
        /// Which log.
        place: String,
        /// Its version.
        found: i64,
    },
    /// Somebody else writes.
    #[error(
        "another process is writing the audit log {path}; stop that Aegis, or give this one another database (the lock is released when its holder ends, nothing needs deleting)"
    )]
    Locked {
        /// Which file.
        path: String,
    },
    /// The log belongs to another key or origin.
    #[error(
        "{place} is the log of `{found}` and this one would sign as `{expected}`; use the key it was begun with, or begin a new log"
    )]
    ForeignKey {
        /// Which log.
        place: String,
        /// Its verifier key.
        found: String,
        /// Ours.
        expected: String,
    },
    /// The log is shorter than, or differs from, what was signed before.
    #[error(
        "{place} was rolled back or replaced: {why}; restore the newer database, and do not remove the saved checkpoint unless you mean to give up its evidence"
    )]
    Rollback {
        /// Which log.
        place: String,
        /// The evidence.
        why: String,
    },
    /// A newer sequencer took over.
    #[error("another sequencer has taken over the log {place}; this one has stopped")]
    Fenced {
        /// Which log.
        place: String,
    },
    /// No room.
    #[error("no space left for the audit log {place}; free some, appends work again by themselves")]
    DiskFull {
        /// Which log.
        place: String,
    },
    /// Everything else that fails below.
    #[error("cannot use the audit log {place}: {why}")]
    Unavailable {
        /// Which log.
        place: String,
        /// What the system said.
        why: String,
    },
}

impl StoreError {
    /// A file operation that failed.
    pub(crate) fn file(path: &Path, error: &std::io::Error) -> Self {
        let place = path.display().to_string();
        match error.kind() {
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                Self::DiskFull { place }
            }
            _ => Self::Unavailable { place, why: error.to_string() },
        }
    }

    /// A database operation that failed.
    pub(crate) fn database(place: &Location, error: &sqlx::Error) -> Self {
        let code = error.as_database_error().and_then(|e| e.code().map(|code| code.into_owned()));
        let code = match (place, code) {
            (Location::Sqlite(_), Some(code)) => code.parse().ok(),
            _ => None,
        };
        Self::coded(place, code, error)
    }

    /// An operation on a SQLite database that failed.
    pub(crate) fn sqlite(place: &Location, error: &rusqlite::Error) -> Self {
        Self::coded(place, error.sqlite_error().map(|e| e.extended_code), error)
    }

    fn coded(place: &Location, code: Option<i32>, error: &dyn fmt::Display) -> Self {
        let text = place.to_string();
        // SQLite's primary result codes: sqlite.org/rescode.html
        match code.map(|code| code & 0xff) {
            Some(11) => Self::Corrupt { place: text, why: "SQLite finds it malformed".into() },
            Some(26) => Self::NotALog { path: text, why: "SQLite cannot read it".into() },
            Some(13) => Self::DiskFull { place: text },
            _ => Self::Unavailable { place: text, why: error.to_string() },
        }
    }
}

/// The columns by which entries are found. They repeat what the canonical bytes say; verification
/// compares the two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Columns<'a> {
    pub(crate) timestamp: i64,
    pub(crate) kind: &'a str,
    pub(crate) result: &'a str,
    pub(crate) agent_id: Option<&'a str>,
    pub(crate) reason: Option<&'a str>,
    pub(crate) server: Option<&'a str>,
    pub(crate) tool: Option<&'a str>,
    pub(crate) decision_id: Option<&'a str>,
}

/// A timestamp as both databases hold it.
pub(crate) fn micros(time: Timestamp) -> i64 {
    i64::try_from(time.as_micros()).unwrap_or(i64::MAX)
}

/// A number as both databases hold it. Sizes, indices and sequences stay far below 2^63.
pub(crate) fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// And back.
pub(crate) fn unsigned(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}

impl<'a> From<&'a Draft> for Columns<'a> {
    fn from(draft: &'a Draft) -> Self {
        Self {
            timestamp: micros(draft.timestamp),
            kind: draft.kind.as_str(),
            result: draft.result.as_str(),
            agent_id: draft.agent_id.as_deref(),
            reason: draft.reason.as_deref(),
            server: draft.action_text("server"),
            tool: draft.action_text("tool"),
            decision_id: draft.decision_id.as_deref(),
        }
    }
}

/// An entry to be stored.
#[derive(Debug)]
pub(crate) struct Row<'a> {
    pub(crate) index: u64,
    /// Whose chain it is in, if not the journal's own.
    pub(crate) source: Option<&'a str>,
    pub(crate) sequence: u64,
    pub(crate) leaf: Digest,
    pub(crate) body: Cow<'a, [u8]>,
    pub(crate) columns: Columns<'a>,
}

/// What one transaction writes.
#[derive(Debug)]
pub(crate) struct Batch<'a> {
    /// The size before it.
    pub(crate) from: u64,
    /// Size and root after it.
    pub(crate) head: Head,
    pub(crate) rows: Vec<Row<'a>>,
    pub(crate) tiles: Vec<(Tile, Vec<u8>)>,
    pub(crate) salts: Vec<(u64, Salt)>,
}

/// What the sequencer must know of the tree to append to it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tree {
    pub(crate) frontier: Frontier,
    pub(crate) edge: Edge,
}

impl Tree {
    pub(crate) fn head(&self) -> Head {
        Head { size: self.frontier.size(), root: self.frontier.root() }
    }
}

/// Where a source's chain stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SourceHead {
    pub(crate) sequence: u64,
    pub(crate) leaf: Digest,
    /// Whether its last entry is `journal_closed`.
    pub(crate) closed: bool,
}

impl Default for SourceHead {
    fn default() -> Self {
        Self { sequence: 0, leaf: Digest::from_bytes([0; 32]), closed: true }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locations_parse_and_hide_passwords() {
        let at = |text: &str| text.parse::<Location>().unwrap();
        assert_eq!(at("/var/lib/a.db"), Location::Sqlite("/var/lib/a.db".into()));
        assert_eq!(at("sqlite:///var/a.db"), Location::Sqlite("/var/a.db".into()));
        assert_eq!(at("sqlite:a.db"), Location::Sqlite("a.db".into()));
        let postgres = at("postgres://u:secret@db.example/audit?sslmode=require");
        assert_eq!(postgres.to_string(), "postgres://db.example/audit");
        assert!(!format!("{postgres:?}").contains("secret"));
    }
}
