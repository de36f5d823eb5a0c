//! Offline verification: is this log whole, in order, unaltered, and what was signed?
//!
//! Works on a database (the live one or a copy) and on a directory of tiles ([`crate::export`]).
//! Every entry's bytes are hashed again and compared with the stored leaf, the tile, the chain of
//! its source, and the columns by which it is found; the tree is built anew and compared with every
//! tile, with the head, with the signed checkpoint, and with a checkpoint that somebody kept.
//! Entries pass through in chunks, so the memory needed does not grow with the log.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::path::Path;

use aegis_core::{Digest, Timestamp};
use serde::Deserialize;

use crate::checkpoint::{self, Head};
use crate::entry::{ENTRY_VERSION, Kind};
use crate::export::Directory;
use crate::note::{NoteError, Verifier};
use crate::read::Reader;
use crate::store::{Columns, StoreError, unsigned};
use crate::tile::{Edge, TILE_WIDTH, Tile, width_at};
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

/// An entry as it lies in the store.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) index: u64,
    pub(crate) body: Vec<u8>,
    /// Leaf, source, sequence and columns, where the store has them.
    pub(crate) row: Option<(Digest, String, u64, Columns)>,
}

/// Where entries and tiles come from.
enum Log<'a> {
    Database(&'a Reader),
    Directory(&'a Directory),
}

impl Log<'_> {
    async fn items(&self, start: u64, end: u64) -> Result<Vec<Item>, VerifyError> {
        match self {
            Self::Database(reader) => Ok(reader
                .entries(start..end)
                .await?
                .into_iter()
                .map(|s| Item {
                    index: s.index,
                    body: s.body,
                    row: Some((s.leaf, s.source, s.sequence, s.columns)),
                })
                .collect()),
            Self::Directory(directory) => Ok(directory.items(start, end)?),
        }
    }

    async fn tile(&self, tile: Tile) -> Result<Option<Vec<Digest>>, VerifyError> {
        match self {
            Self::Database(reader) => Ok(reader.tile(tile).await?),
            Self::Directory(directory) => Ok(directory.tile(tile)?),
        }
    }
}

/// What an entry says of itself, as far as verification needs it.
#[derive(Deserialize)]
struct Facts<'a> {
    #[serde(borrow, default)]
    action: ActionFacts<'a>,
    agent_id: Option<Cow<'a, str>>,
    decision_id: Option<Cow<'a, str>>,
    #[serde(borrow, default)]
    detail: DetailFacts<'a>,
    #[serde(borrow)]
    kind: Cow<'a, str>,
    parent_hash: Digest,
    reason: Option<Cow<'a, str>>,
    #[serde(borrow)]
    result: Cow<'a, str>,
    sequence: u64,
    #[serde(borrow)]
    source: Cow<'a, str>,
    #[serde(borrow)]
    timestamp: Cow<'a, str>,
    version: u64,
}

#[derive(Deserialize, Default)]
struct ActionFacts<'a> {
    #[serde(borrow, default)]
    server: Word<'a>,
    #[serde(borrow, default)]
    tool: Word<'a>,
}

#[derive(Deserialize, Default)]
struct DetailFacts<'a> {
    #[serde(borrow, default)]
    gap: Word<'a>,
}

/// A member that is indexed when it is a string and ignored when it is anything else.
#[derive(Deserialize, Default)]
#[serde(untagged)]
enum Word<'a> {
    Text(#[serde(borrow)] Cow<'a, str>),
    Other(serde::de::IgnoredAny),
    #[default]
    Absent,
}

impl Word<'_> {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// What hashing and parsing one entry gives; these need nothing of its neighbours.
struct Checked {
    leaf: Digest,
    source: String,
    sequence: u64,
    parent: Digest,
    gap: bool,
}

/// Checks an entry by itself.
fn check(item: &Item) -> Result<Checked, VerifyError> {
    let (origin, sequence) =
        item.row.as_ref().map_or(("?", 0), |(_, source, sequence, _)| (source.as_str(), *sequence));
    let wrong = |why: String| VerifyError::Entry {
        index: item.index,
        origin: origin.to_owned(),
        sequence,
        why,
    };
    let leaf = tree::leaf_hash(&item.body);
    if item.row.as_ref().is_some_and(|(stored, ..)| *stored != leaf) {
        return Err(wrong("its bytes do not have the recorded leaf hash".into()));
    }
    let facts: Facts<'_> = serde_json::from_slice(&item.body)
        .map_err(|e| wrong(format!("it is not an entry: {e}")))?;
    if facts.version != ENTRY_VERSION {
        return Err(wrong(format!(
            "it has version {}, which this program does not know",
            facts.version
        )));
    }
    if let Some((_, source, sequence, columns)) = &item.row
        && let Some(column) = differing(&facts, source, *sequence, columns)
    {
        return Err(wrong(format!("the column `{column}` says something else than the entry")));
    }
    Ok(Checked {
        leaf,
        sequence: facts.sequence,
        parent: facts.parent_hash,
        gap: facts.kind == Kind::Gap.as_str() || facts.detail.gap.text().is_some(),
        source: facts.source.into_owned(),
    })
}

/// The first column that does not repeat what the entry says.
fn differing(
    facts: &Facts<'_>,
    source: &str,
    sequence: u64,
    columns: &Columns,
) -> Option<&'static str> {
    let time = Timestamp::from_micros(unsigned(columns.timestamp)).to_string();
    [
        ("source", facts.source == source),
        ("sequence", facts.sequence == sequence),
        ("timestamp", facts.timestamp == time),
        ("kind", facts.kind == columns.kind),
        ("result", facts.result == columns.result),
        ("agent_id", facts.agent_id.as_deref() == columns.agent_id.as_deref()),
        ("reason", facts.reason.as_deref() == columns.reason.as_deref()),
        ("server", facts.action.server.text() == columns.server.as_deref()),
        ("tool", facts.action.tool.text() == columns.tool.as_deref()),
        ("decision_id", facts.decision_id.as_deref() == columns.decision_id.as_deref()),
    ]
    .into_iter()
    .find_map(|(name, same)| (!same).then_some(name))
}

/// Checks a chunk on two threads.
async fn check_all(items: Vec<Item>) -> Vec<Result<Checked, VerifyError>> {
    let mut first = items;
    let second = first.split_off(first.len() / 2);
    let run = |half: Vec<Item>| {
        tokio::task::spawn_blocking(move || half.iter().map(check).collect::<Vec<_>>())
    };
    let (first, second) = tokio::join!(run(first), run(second));
    // A panic in a checker leaves its half out, and the missing entries are then reported.
    first.into_iter().chain(second).flatten().collect()
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
        let (sequence, parent) =
            self.chains.get(&entry.source).copied().unwrap_or((0, Digest::from_bytes([0; 32])));
        let why = if entry.sequence != sequence + 1 {
            format!("its source's previous entry has sequence {sequence}")
        } else if entry.parent != parent {
            "its parent_hash is not the leaf hash of its source's previous entry; one of the two was altered".into()
        } else {
            self.chains.insert(entry.source.clone(), (entry.sequence, entry.leaf));
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

/// Goes through the whole log once.
async fn pass(
    log: &Log<'_>,
    head: Head,
    milestones: &[Milestone],
    progress: &mut (dyn FnMut(u64, u64) + Send),
) -> Result<Pass, VerifyError> {
    let mut state = Pass::default();
    meet(&state, milestones)?;
    let mut next = log.items(0, CHUNK.min(head.size)).await?;
    let mut start = 0;
    while start < head.size {
        let end = (start + CHUNK).min(head.size);
        let items = std::mem::take(&mut next);
        if let Some((index, _)) =
            (start..end).zip(&items).find(|(index, item)| *index != item.index)
        {
            return Err(missing(index));
        }
        if items.len() as u64 != end - start {
            return Err(missing(start + items.len() as u64));
        }
        let following = log.items(end, (end + CHUNK).min(head.size));
        let (checked, following) = tokio::join!(check_all(items), following);
        let mut expected = Vec::new();
        let mut tile = None;
        for (index, entry) in (start..end).zip(checked) {
            let entry = entry?;
            if index % TILE_WIDTH == 0 {
                tile = leaf_tile(log, index / TILE_WIDTH, head.size).await?;
            }
            let at = usize::try_from(index % TILE_WIDTH).unwrap_or(0);
            if tile.as_ref().is_some_and(|hashes| hashes.get(at) != Some(&entry.leaf)) {
                let why = "its bytes do not have the leaf hash in the tile".to_owned();
                let (origin, sequence) = (entry.source, entry.sequence);
                return Err(VerifyError::Entry { index, origin, sequence, why });
            }
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
        for (tile, hashes) in expected {
            if log.tile(tile).await?.as_ref() != Some(&hashes) {
                return Err(VerifyError::Tile { level: tile.level, index: tile.index });
            }
        }
        next = following?;
        start = end;
        progress(start, head.size);
    }
    Ok(state)
}

fn missing(index: u64) -> VerifyError {
    let why = "it is missing".to_owned();
    VerifyError::Entry { index, origin: "?".into(), sequence: 0, why }
}

/// The stored tile of leaf hashes, where it is not just another view of the entries.
async fn leaf_tile(
    log: &Log<'_>,
    index: u64,
    size: u64,
) -> Result<Option<Vec<Digest>>, VerifyError> {
    let width = width_at(0, index, size);
    if width < TILE_WIDTH && matches!(log, Log::Database(_)) {
        return Ok(None);
    }
    match log.tile(Tile { level: 0, index, width }).await? {
        Some(hashes) => Ok(Some(hashes)),
        None => Err(VerifyError::Tile { level: 0, index }),
    }
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
    log: &Log<'_>,
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
    run(&Log::Database(reader), Some(head), note, verifier, trusted, &mut progress).await
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
    run(&Log::Directory(&directory), None, note, verifier, &trusted, &mut progress).await
}
