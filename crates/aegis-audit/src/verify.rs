//! Offline verification: is this log whole, in order, unaltered, and what was signed?
//!
//! Works on a database (the live one or a copy) and on a directory of tiles ([`crate::export`]).
//! Every entry's bytes are hashed again and compared with the stored leaf, the tile, the chain of
//! its source, and the columns and lists by which it is found; the tree is built anew and compared with every
//! tile, with the head, with the signed checkpoint, and with a checkpoint that somebody kept.
//! Chunks of entries are read and checked on as many threads as there are processors ([`crate::scan`],
//! [`crate::check`]) while this one follows the chains and builds the tree, so the memory needed does
//! not grow with the log.

use std::collections::{BTreeMap, VecDeque};
use std::path::Path;

use aegis_core::Digest;

use crate::check::Checked;
use crate::checkpoint::{self, Head};
use crate::export::Directory;
use crate::note::{NoteError, Verifier};
use crate::read::Reader;
use crate::scan::{Chunk, Log};
use crate::store::StoreError;
use crate::tile::{Edge, width_at};
use crate::tree::{self, Frontier};

/// Entries that are read and hashed at once: a multiple of a tile.
const CHUNK: u64 = 4_096;

/// Why a log does not verify.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It cannot be read.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The first entry that is wrong.
    #[error(
        "entry {index} (source `{origin}`, sequence {sequence}) is not what was recorded: {why}"
    )]
    Entry {
        /// Its index.
        index: u64,
        /// Its source, as far as it can be told.
        origin: String,
        /// Its sequence, as far as it can be told.
        sequence: u64,
        /// What is wrong.
        why: String,
    },
    /// The entries are whole but a tile is not.
    #[error("tile {level}/{index} is not the tree over the entries")]
    Tile {
        /// Its level.
        level: u32,
        /// Its index.
        index: u64,
    },
    /// A row that the tree does not cover.
    #[error("row {index} is outside the log's {size} entries: no writer of the log put it there")]
    Uncovered {
        /// Its index.
        index: i64,
        /// How many entries there are.
        size: u64,
    },
    /// The entries are whole, and what finds them is not.
    #[error(
        "the lists by which entries are found were altered: {why}; the entries themselves are whole"
    )]
    Lists {
        /// What is wrong.
        why: String,
    },
    /// Entries are missing at the end.
    #[error("the log was truncated: it has {size} entries and {whence} covers {known}")]
    Truncated {
        /// How many there are.
        size: u64,
        /// How many there were.
        known: u64,
        /// Who says so.
        whence: &'static str,
    },
    /// The log differs from what was signed.
    #[error(
        "the first {size} entries are not those that {whence} covers: the log was rolled back or rewritten"
    )]
    Forked {
        /// The size of the checkpoint.
        size: u64,
        /// Which checkpoint.
        whence: &'static str,
    },
    /// A checkpoint is not to be trusted.
    #[error("{whence} is refused: {error}")]
    Checkpoint {
        /// Which checkpoint.
        whence: &'static str,
        /// Why.
        error: NoteError,
    },
    /// There are entries and nobody signed for them.
    #[error(
        "the log has {size} entries and no signed checkpoint; it was not written by Aegis, or lost its checkpoints"
    )]
    Unsigned {
        /// How many entries.
        size: u64,
    },
}

/// What a verification is to go by.
#[derive(Clone, Debug, Default)]
pub struct Trusted {
    /// The log's key, from somewhere else than the log. Without it the key in the database is used,
    /// and the report says so.
    pub verifier: Option<Verifier>,
    /// A checkpoint kept from before: the log must still contain what it covers.
    pub checkpoint: Option<String>,
}

/// What was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Entries and root.
    pub head: Head,
    /// How many of them the signed checkpoint covers; the rest was committed after it.
    pub signed: u64,
    /// The key that signed it.
    pub verifier: Verifier,
    /// Each source's number of entries.
    pub sources: BTreeMap<String, u64>,
    /// Indices of entries that tell of a gap: lost entries, or a journal that was not closed.
    pub gaps: Vec<u64>,
    /// What the verification could not establish.
    pub warnings: Vec<String>,
}

/// A checkpoint that the log has to pass on the way.
struct Milestone {
    head: Head,
    whence: &'static str,
}

/// The state of a pass over a log.
#[derive(Default)]
struct Pass {
    frontier: Frontier,
    edge: Edge,
    chains: BTreeMap<String, (u64, Digest)>,
    gaps: Vec<u64>,
}

impl Pass {
    fn follow(&mut self, index: u64, entry: &Checked) -> Result<(), VerifyError> {
        let known = self.chains.get_mut(&entry.source);
        let (sequence, parent) =
            known.as_deref().copied().unwrap_or((0, Digest::from_bytes([0; 32])));
        let why = if entry.sequence != sequence + 1 {
            format!("its source's previous entry has sequence {sequence}")
        } else if entry.parent != parent {
            "its parent_hash is not the leaf hash of its source's previous entry; one of the two was altered".into()
        } else {
            let newest = (entry.sequence, entry.leaf);
            match known {
                Some(known) => *known = newest,
                None => drop(self.chains.insert(entry.source.clone(), newest)),
            }
            return Ok(());
        };
        Err(VerifyError::Entry {
            index,
            origin: entry.source.clone(),
            sequence: entry.sequence,
            why,
        })
    }
}

/// Chunks that are being read and checked ahead of the pass, in order.
struct Ahead<'a> {
    log: &'a Log,
    size: u64,
    started: u64,
    chunks: VecDeque<tokio::task::JoinHandle<Result<Chunk, VerifyError>>>,
    most: usize,
}

impl<'a> Ahead<'a> {
    fn new(log: &'a Log, size: u64) -> Self {
        let most = std::thread::available_parallelism().map_or(2, std::num::NonZero::get) + 1;
        Self { log, size, started: 0, chunks: VecDeque::new(), most }
    }

    /// The next chunk; `None` behind the last one.
    async fn next(&mut self) -> Result<Option<Chunk>, VerifyError> {
        while self.started < self.size && self.chunks.len() < self.most {
            let end = (self.started + CHUNK).min(self.size);
            let (log, range) = (self.log.clone(), self.started..end);
            let size = self.size;
            self.chunks.push_back(tokio::spawn(async move { log.chunk(range, size).await }));
            self.started = end;
        }
        let Some(chunk) = self.chunks.pop_front() else { return Ok(None) };
        // A checker that panicked has checked nothing.
        chunk.await.unwrap_or_else(|error| Err(self.log.failed(&error).into())).map(Some)
    }
}

impl Drop for Ahead<'_> {
    fn drop(&mut self) {
        self.chunks.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

/// Goes through the whole log once.
async fn pass(
    log: &Log,
    head: Head,
    milestones: &[Milestone],
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Pass, VerifyError> {
    let mut state = Pass::default();
    meet(&state, milestones)?;
    let mut ahead = Ahead::new(log, head.size);
    while let Some(chunk) = ahead.next().await? {
        let mut expected = Vec::new();
        for entry in chunk.entries {
            let index = state.frontier.size();
            state.follow(index, &entry)?;
            if entry.gap {
                state.gaps.push(index);
            }
            state.frontier.push(entry.leaf);
            state.edge.push(entry.leaf, &mut |tile, hashes| {
                let final_width = width_at(tile.level, tile.index, head.size);
                if tile.level > 0 && tile.width == final_width {
                    expected.push((tile, hashes.to_vec()));
                }
            });
            meet(&state, milestones)?;
        }
        if let Some(error) = chunk.error {
            return Err(error);
        }
        for (tile, hashes) in expected {
            if log.tile(tile).await?.as_ref() != Some(&hashes) {
                return Err(VerifyError::Tile { level: tile.level, index: tile.index });
            }
        }
        progress(state.frontier.size(), head.size);
    }
    Ok(state)
}

fn meet(state: &Pass, milestones: &[Milestone]) -> Result<(), VerifyError> {
    for milestone in milestones {
        let Head { size, root } = milestone.head;
        if size == state.frontier.size() && root != state.frontier.root() {
            return Err(VerifyError::Forked { size, whence: milestone.whence });
        }
    }
    Ok(())
}

const SIGNED: &str = "its signed checkpoint";
const KEPT: &str = "the checkpoint that was kept";

/// Opens a checkpoint that a log of `size` entries must contain.
fn milestone(
    verifier: &Verifier,
    note: &str,
    size: u64,
    whence: &'static str,
) -> Result<Milestone, VerifyError> {
    let head = checkpoint::open(verifier, note)
        .map_err(|error| VerifyError::Checkpoint { whence, error })?
        .head;
    if head.size > size {
        return Err(VerifyError::Truncated { size, known: head.size, whence });
    }
    Ok(Milestone { head, whence })
}

async fn run(
    log: &Log,
    head: Option<Head>,
    note: Option<String>,
    verifier: Verifier,
    trusted: &Trusted,
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Report, VerifyError> {
    let mut warnings = Vec::new();
    if trusted.verifier.is_none() {
        warnings.push(format!(
            "the key was read from the log itself; give the key that you trust: {verifier}"
        ));
    }
    let mut milestones = Vec::new();
    let mut signed = 0;
    let mut size = head.map_or(u64::MAX, |head| head.size);
    if let Some(note) = note {
        let own = milestone(&verifier, &note, size, SIGNED)?;
        signed = own.head.size;
        size = size.min(head.map_or(signed, |head| head.size));
        milestones.push(own);
    } else if size > 0 {
        return Err(VerifyError::Unsigned { size });
    }
    if let Some(note) = &trusted.checkpoint {
        milestones.push(milestone(&verifier, note, size, KEPT)?);
    }
    let root = milestones.first().map_or_else(tree::empty_root, |m| m.head.root);
    let head = head.unwrap_or(Head { size, root });
    let state = pass(log, head, &milestones, progress).await?;
    if state.frontier.root() != head.root {
        return Err(VerifyError::Forked { size: head.size, whence: "its head row" });
    }
    if head.size > signed {
        warnings.push(format!(
            "{} entries were committed after the latest checkpoint and are not signed yet",
            head.size - signed
        ));
    }
    let sources = state.chains.into_iter().map(|(name, (count, _))| (name, count)).collect();
    Ok(Report { head, signed, verifier, sources, gaps: state.gaps, warnings })
}

/// Verifies a database. `progress` gets the number of entries done and their total.
///
/// # Errors
/// The first thing that is wrong.
pub async fn verify(
    reader: &Reader,
    trusted: &Trusted,
    mut progress: impl FnMut(u64, u64) + Send,
) -> Result<Report, VerifyError> {
    // The checkpoint first: the log may grow meanwhile, and a head read later still covers it.
    let note = reader.checkpoint().await?;
    let head = reader.head().await?;
    let verifier = match &trusted.verifier {
        Some(verifier) => verifier.clone(),
        None => reader.verifier().await?,
    };
    if let Some(index) = reader.uncovered().await? {
        return Err(VerifyError::Uncovered { index, size: head.size });
    }
    let log = Log::database(reader, head.size);
    let report = run(&log, Some(head), note, verifier, trusted, &mut progress).await?;
    match log.lists().await? {
        Some(why) => Err(VerifyError::Lists { why }),
        None => Ok(report),
    }
}

/// Verifies a directory of tiles and entry bundles with its `checkpoint` file. There is no key in
/// such a directory, so the caller brings it.
///
/// # Errors
/// The first thing that is wrong.
pub async fn verify_directory(
    path: &Path,
    verifier: Verifier,
    kept: Option<String>,
    mut progress: impl FnMut(u64, u64) + Send,
) -> Result<Report, VerifyError> {
    let directory = Directory::open(path)?;
    let note = Some(directory.checkpoint()?);
    let trusted = Trusted { verifier: Some(verifier.clone()), checkpoint: kept };
    run(&Log::directory(directory), None, note, verifier, &trusted, &mut progress).await
}
