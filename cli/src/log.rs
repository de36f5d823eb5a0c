//! Where entries are read from: the daemon's ledger over its socket, or a database directly.

use std::collections::HashMap;

use aegis_api::Client;
use aegis_audit::{
    Filter, Location, Reader, Verifier, checkpoint,
    tile::{self, Resource, TILE_WIDTH, Tile, width_at},
    tree,
};
use aegis_core::Digest;
use anyhow::{Context as _, bail};
use serde::Deserialize;
use serde_json::value::RawValue;

/// A source of entries.
#[derive(Debug)]
pub(crate) enum Log {
    /// The daemon's.
    Daemon(Client),
    /// A database.
    Database(Reader),
}

/// An entry with its place.
#[derive(Debug)]
pub(crate) struct Record {
    /// Its index.
    pub(crate) index: u64,
    /// Its leaf hash.
    pub(crate) leaf: Digest,
    /// Its JSON: the canonical bytes, except in answers to a query of the daemon.
    pub(crate) body: Vec<u8>,
}

/// An entry as the daemon answers a query.
#[derive(Deserialize)]
struct Shown {
    index: u64,
    leaf_hash: Digest,
    entry: Box<RawValue>,
}

#[derive(Deserialize)]
struct Page {
    entries: Vec<Shown>,
    next: Option<u64>,
}

#[derive(Deserialize)]
struct Health {
    entries: u64,
}

/// Entries that are read from a database at once.
const CHUNK: u64 = 1_000;

impl Log {
    /// The log in `database`, or else the daemon's.
    ///
    /// # Errors
    /// When the database cannot be opened.
    pub(crate) async fn open(database: Option<&Location>, client: &Client) -> anyhow::Result<Self> {
        match database {
            None => Ok(Self::Daemon(client.clone())),
            Some(place) => Ok(Self::Database(open_database(place).await?)),
        }
    }

    /// How many entries there are.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) async fn size(&self) -> anyhow::Result<u64> {
        Ok(match self {
            Self::Daemon(client) => client.get::<Health>("/healthz").await?.entries,
            Self::Database(reader) => reader.head().await?.size,
        })
    }

    /// One page of the entries that a filter selects, and where the next one starts.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) async fn query(
        &self,
        filter: &Filter,
    ) -> anyhow::Result<(Vec<Record>, Option<u64>)> {
        match self {
            Self::Daemon(client) => {
                let page: Page = client.get(&format!("/v1/entries?{}", query_of(filter))).await?;
                let record = |shown: Shown| Record {
                    index: shown.index,
                    leaf: shown.leaf_hash,
                    body: shown.entry.get().as_bytes().to_vec(),
                };
                Ok((page.entries.into_iter().map(record).collect(), page.next))
            }
            Self::Database(reader) => {
                let page = reader.query(filter).await?;
                let record = |stored: aegis_audit::Stored| Record {
                    index: stored.index,
                    leaf: stored.leaf,
                    body: stored.body,
                };
                Ok((page.entries.into_iter().map(record).collect(), page.next))
            }
        }
    }

    /// The latest signed checkpoint, a note.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub(crate) async fn checkpoint(&self) -> anyhow::Result<String> {
        match self {
            Self::Daemon(client) => Ok(client.get_text("/checkpoint").await?),
            Self::Database(reader) => {
                reader.checkpoint().await?.context("the log has no checkpoint yet")
            }
        }
    }

    /// The key by which the log says that it signs.
    ///
    /// # Errors
    /// When it cannot be read.
    pub(crate) async fn key(&self) -> anyhow::Result<Verifier> {
        Ok(match self {
            Self::Daemon(client) => client.get_text("/v1/key").await?.trim().parse()?,
            Self::Database(reader) => reader.verifier().await?,
        })
    }

    /// The canonical bytes of one entry.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub(crate) async fn body(&self, index: u64) -> anyhow::Result<Vec<u8>> {
        match self {
            Self::Daemon(client) => Ok(client.get_bytes(&format!("/v1/entries/{index}")).await?),
            Self::Database(reader) => {
                let stored = reader.entry(index).await?;
                Ok(stored.with_context(|| format!("the log lacks entry {index}"))?.body)
            }
        }
    }

    /// The path that proves entry `index` in the tree of the first `size` entries.
    ///
    /// # Errors
    /// When the log is shorter, or it cannot be read.
    pub(crate) async fn inclusion(&self, index: u64, size: u64) -> anyhow::Result<Vec<Digest>> {
        let client = match self {
            Self::Database(reader) => return Ok(reader.inclusion(index, size).await?),
            Self::Daemon(client) => client,
        };
        let ranges = tree::inclusion_ranges(index, size)
            .with_context(|| format!("entry {index} is not among the first {size}"))?;
        let mut tiles: HashMap<Tile, Vec<Digest>> = HashMap::new();
        for wanted in tile::tiles_of(&ranges, size) {
            let bytes = client.get_bytes(&format!("/{}", Resource::Tile(wanted))).await?;
            let hashes = tile::split(&bytes).context("a tile of the daemon is not whole hashes")?;
            tiles.insert(wanted, hashes);
        }
        let root = |range| {
            tile::range_root(range, size, |tile| tiles.get(&tile).map(Vec::as_slice)).map_err(
                |tile| anyhow::anyhow!("{} of the daemon is too narrow", Resource::Tile(tile)),
            )
        };
        ranges.iter().map(root).collect()
    }

    /// Shows each entry before `end` in order, with its canonical bytes.
    ///
    /// # Errors
    /// When one cannot be read, or `visit` fails.
    pub(crate) async fn each(
        &self,
        end: u64,
        mut visit: impl FnMut(Record) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        match self {
            Self::Daemon(client) => each_of_daemon(client, end, &mut visit).await,
            Self::Database(reader) => {
                let mut start = 0;
                while start < end {
                    let stop = (start + CHUNK).min(end);
                    let entries = reader.entries(start..stop).await?;
                    if entries.len() as u64 != stop - start {
                        bail!(
                            "the log lacks entries between {start} and {stop}; run `aegis audit verify`"
                        );
                    }
                    for stored in entries {
                        let (index, leaf, body) = (stored.index, stored.leaf, stored.body);
                        visit(Record { index, leaf, body })?;
                    }
                    start = stop;
                }
                Ok(())
            }
        }
    }
}

/// Opens a database to read it. A SQLite file may be a copy on read-only media.
///
/// # Errors
/// When it is missing or not a log.
pub(crate) async fn open_database(place: &Location) -> anyhow::Result<Reader> {
    Ok(match place {
        Location::Sqlite(path) => Reader::open_copy(path).await?,
        Location::Postgres(_) => Reader::open(place).await?,
    })
}

/// Bundles as far as a checkpoint covers them, then one by one.
async fn each_of_daemon(
    client: &Client,
    end: u64,
    visit: &mut impl FnMut(Record) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut next = 0;
    if end > TILE_WIDTH {
        let note = client.get_text("/checkpoint").await?;
        let signed = checkpoint::parse(&note)?.head.size.min(end);
        for bundle in 0..signed.div_ceil(TILE_WIDTH) {
            let width = width_at(0, bundle, signed);
            let path = format!("/{}", Resource::Entries(bundle, width));
            let bytes = client.get_bytes(&path).await?;
            for body in split_bundle(&bytes)? {
                visit(Record { index: next, leaf: tree::leaf_hash(body), body: body.to_vec() })?;
                next += 1;
            }
        }
    }
    while next < end {
        let body = client.get_bytes(&format!("/v1/entries/{next}")).await?;
        visit(Record { index: next, leaf: tree::leaf_hash(&body), body })?;
        next += 1;
    }
    Ok(())
}

/// The entries of a bundle: each after its length in 16 bits (c2sp.org/tlog-tiles).
fn split_bundle(bytes: &[u8]) -> anyhow::Result<Vec<&[u8]>> {
    let mut rest = bytes;
    let mut entries = Vec::new();
    while let Some((length, after)) = rest.split_first_chunk::<2>() {
        let length = usize::from(u16::from_be_bytes(*length));
        let (body, after) = after
            .split_at_checked(length)
            .context("an entry bundle of the daemon ends within an entry")?;
        entries.push(body);
        rest = after;
    }
    Ok(entries)
}

/// A filter as the ledger's query parameters.
fn query_of(filter: &Filter) -> String {
    let text = |value: &Option<String>| value.clone();
    let parameters = [
        ("agent", text(&filter.agent)),
        ("kind", filter.kind.map(|kind| kind.to_string())),
        ("result", filter.result.map(|result| result.to_string())),
        ("reason", text(&filter.reason)),
        ("tool", text(&filter.tool)),
        ("server", text(&filter.server)),
        ("decision_id", text(&filter.decision_id)),
        ("since", filter.since.map(|time| time.to_string())),
        ("until", filter.until.map(|time| time.to_string())),
        ("text", text(&filter.text)),
        ("order", filter.oldest_first.then(|| "oldest".to_owned())),
        ("after", filter.after.map(|index| index.to_string())),
        ("limit", filter.limit.map(|limit| limit.to_string())),
    ];
    let set = |(name, value): (&str, Option<String>)| {
        value.map(|value| format!("{name}={}", encode(&value)))
    };
    parameters.into_iter().filter_map(set).collect::<Vec<_>>().join("&")
}

/// Percent-encodes all but the unreserved characters (RFC 3986 §2.3).
pub(crate) fn encode(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                char::from(byte).to_string()
            }
            other => format!("%{other:02X}"),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_filter_becomes_a_query() {
        let filter = Filter {
            agent: Some("spiffe://a/ns/b".into()),
            text: Some("a b&c".into()),
            oldest_first: true,
            limit: Some(5),
            ..Filter::default()
        };
        assert_eq!(
            query_of(&filter),
            "agent=spiffe%3A%2F%2Fa%2Fns%2Fb&text=a%20b%26c&order=oldest&limit=5"
        );
    }

    #[test]
    fn a_bundle_that_is_cut_is_refused() {
        assert_eq!(split_bundle(&[0, 1, b'a', 0, 2, b'b', b'c']).unwrap(), [&b"a"[..], b"bc"]);
        assert!(split_bundle(&[0, 3, b'a']).is_err());
    }
}
