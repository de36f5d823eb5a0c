//! The audit log: a record that cannot be altered unseen.
//!
//! Entries are canonical JSON, every field under the hash, chained per source ([`entry`]), and the
//! leaves of an RFC 6962 Merkle tree ([`tree`], [`tile`]) whose head is signed as a C2SP checkpoint
//! ([`note`], [`checkpoint`], [`proof`]). A [`Journal`] appends with group commit to SQLite or
//! Postgres; a [`Reader`] reads, proves and queries; [`verify`] checks a copy offline. What it
//! promises: an acknowledged entry is durable, nothing is half written, and a log that was altered,
//! cut or rolled back does not verify.
//!
//! It refuses to sign anything inconsistent with what it signed before, to share a database between
//! two writers, and to touch a file that is not its own.

mod check;
pub mod checkpoint;
pub mod entry;
pub mod export;
mod file;
mod flush;
pub mod import;
pub mod journal;
mod kind;
mod lists;
mod log;
mod mover;
pub mod note;
mod postgres;
pub mod proof;
pub mod query;
pub mod read;
mod redo;
pub mod salt;
mod scan;
pub mod snapshot;
mod sqlite;
pub mod store;
pub mod tenure;
pub mod tile;
pub mod tree;
pub mod verify;
mod witness;
mod writer;

pub use checkpoint::{Checkpoint, Head};
pub use entry::{Draft, Entry, Kind, Outcome, PolicyRef};
pub use import::{Foreign, ImportError};
pub use journal::{
    Acknowledged, AppendError, Committed, Durability, Journal, Observed, Observer, Options,
    Recorded, Statistics, Ticket,
};
pub use log::AuditLog;
pub use note::{Signer, Verifier};
pub use proof::TlogProof;
pub use query::{Filter, Page};
pub use read::{Reader, Stored};
pub use salt::Salt;
pub use store::{Location, StoreError};
pub use tenure::Tenure;
pub use verify::{Report, Trusted, VerifyError};
