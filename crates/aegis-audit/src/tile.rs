//! Tiles (c2sp.org/tlog-tiles): the tree cut into rows of 256 hashes, eight levels of the tree high.
//!
//! Level 0 holds leaf hashes; a hash at level L+1 is the root of a full tile at level L. The right
//! edge of each level is a partial tile. [`Edge`] keeps those in memory while a log grows.

use std::fmt;
use std::ops::Range;

use aegis_core::Digest;

use crate::tree::{self, Node, root_of};

/// Hashes in a full tile.
pub const TILE_WIDTH: u64 = 256;

/// Levels of the tree within a tile.
const TILE_HEIGHT: u32 = 8;

/// Levels of tiles that a 64-bit tree can have.
const MAX_LEVEL: u32 = 7;

/// One tile: level, index within the level, and how many hashes wide.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Tile {
    /// Level of tiles, 0 at the leaves.
    pub level: u32,
    /// Place within the level.
    pub index: u64,
    /// Hashes, 1 to 256.
    pub width: u64,
}

/// What a path of the tile API names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resource {
    /// `tile/<L>/<N>[.p/<W>]`
    Tile(Tile),
    /// `tile/entries/<N>[.p/<W>]`: index and width.
    Entries(u64, u64),
}

impl Tile {
    /// The tile of a tree of `size` leaves that holds this node, with the width it has there.
    #[must_use]
    pub fn of_node(node: Node, size: u64) -> Self {
        let level = node.level / TILE_HEIGHT;
        let index = (node.index << (node.level % TILE_HEIGHT)) / TILE_WIDTH;
        Self { level, index, width: width_at(level, index, size) }
    }

    /// The root of a node within this tile's hashes; `None` when the tile does not reach it.
    #[must_use]
    pub fn node_root(node: Node, hashes: &[Digest]) -> Option<Digest> {
        let below = node.level % TILE_HEIGHT;
        let start = usize::try_from((node.index << below) % TILE_WIDTH).ok()?;
        Some(root_of(hashes.get(start..start + (1 << below))?))
    }

    /// All tiles of a tree of `size` leaves, level by level.
    pub fn all(size: u64) -> impl Iterator<Item = Self> {
        (0..=MAX_LEVEL).flat_map(move |level| {
            let hashes = size.checked_shr(TILE_HEIGHT * level).unwrap_or(0);
            (0..hashes.div_ceil(TILE_WIDTH)).map(move |index| Self {
                level,
                index,
                width: width_at(level, index, size),
            })
        })
    }
}

/// The tiles from which [`range_root`] computes the hashes of these ranges of leaves in a tree of
/// `size` leaves, each once.
#[must_use]
pub fn tiles_of(ranges: &[Range<u64>], size: u64) -> Vec<Tile> {
    let mut wanted = Vec::new();
    for node in ranges.iter().flat_map(tree::subtrees) {
        let tile = Tile::of_node(node, size);
        if !wanted.contains(&tile) {
            wanted.push(tile);
        }
    }
    wanted
}

/// The hash of a range of leaves in the tree of `size` leaves, from the hashes of its tiles.
///
/// # Errors
/// The tile that is missing or narrower than its tree.
pub fn range_root<'t>(
    range: &Range<u64>,
    size: u64,
    hashes: impl Fn(Tile) -> Option<&'t [Digest]>,
) -> Result<Digest, Tile> {
    let peak = |node| {
        let tile = Tile::of_node(node, size);
        hashes(tile).and_then(|hashes| Tile::node_root(node, hashes)).ok_or(tile)
    };
    let peaks = tree::subtrees(range).into_iter().map(peak).collect::<Result<Vec<_>, _>>()?;
    Ok(tree::fold_peaks(&peaks).unwrap_or_else(tree::empty_root))
}

/// How many hashes the tile has in a tree of `size` leaves; 0 when it does not exist there.
#[must_use]
pub fn width_at(level: u32, index: u64, size: u64) -> u64 {
    let hashes = size.checked_shr(TILE_HEIGHT * level).unwrap_or(0);
    hashes.saturating_sub(index.saturating_mul(TILE_WIDTH)).min(TILE_WIDTH)
}

impl fmt::Display for Resource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (index, width) = match self {
            Self::Tile(tile) => {
                write!(f, "tile/{}/", tile.level)?;
                (tile.index, tile.width)
            }
            Self::Entries(index, width) => {
                f.write_str("tile/entries/")?;
                (*index, *width)
            }
        };
        write_index(f, index)?;
        if width < TILE_WIDTH { write!(f, ".p/{width}") } else { Ok(()) }
    }
}

/// `x001/x234/067`: three digits per element, all but the last after an `x`.
fn write_index(f: &mut fmt::Formatter<'_>, index: u64) -> fmt::Result {
    let mut groups = vec![index % 1000];
    let mut rest = index / 1000;
    while rest > 0 {
        groups.push(rest % 1000);
        rest /= 1000;
    }
    for group in groups.iter().skip(1).rev() {
        write!(f, "x{group:03}/")?;
    }
    write!(f, "{:03}", index % 1000)
}

impl Resource {
    /// Reads a path. Every other spelling of the same tile is refused, so that a resource has one
    /// address.
    #[must_use]
    pub fn parse(path: &str) -> Option<Self> {
        let rest = path.strip_prefix("tile/")?;
        let (kind, rest) = rest.split_once('/')?;
        let (digits, width) = match rest.split_once(".p/") {
            Some((digits, width)) => (digits, width.parse().ok()?),
            None => (rest, TILE_WIDTH),
        };
        let mut index: u64 = 0;
        for group in digits.split('/') {
            let group = group.strip_prefix('x').unwrap_or(group);
            index = index.checked_mul(1000)?.checked_add(group.parse().ok()?)?;
        }
        let resource = match kind {
            "entries" => Self::Entries(index, width),
            level => Self::Tile(Tile { level: level.parse().ok()?, index, width }),
        };
        let legal = match &resource {
            Self::Tile(tile) => tile.level < 64,
            Self::Entries(..) => true,
        };
        (legal && width >= 1 && resource.to_string() == path).then_some(resource)
    }
}

/// Splits the bytes of a tile into its hashes; `None` when they are not whole.
#[must_use]
pub fn split(bytes: &[u8]) -> Option<Vec<Digest>> {
    let (hashes, rest) = bytes.as_chunks::<32>();
    rest.is_empty().then(|| hashes.iter().map(|hash| Digest::from_bytes(*hash)).collect())
}

/// The bytes of a tile.
#[must_use]
pub fn join(hashes: &[Digest]) -> Vec<u8> {
    hashes.iter().flat_map(|hash| hash.as_bytes()).copied().collect()
}

/// The partial tiles at the right edge of a growing tree.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Edge {
    levels: Vec<Vec<Digest>>,
    size: u64,
}

impl Edge {
    /// The edge of a tree of `size` leaves from its partial tiles, level by level; `None` when
    /// their widths do not fit.
    #[must_use]
    pub fn from_levels(size: u64, levels: Vec<Vec<Digest>>) -> Option<Self> {
        let fits = levels.iter().zip(0..).all(|(hashes, level)| {
            let width = size.checked_shr(TILE_HEIGHT * level).unwrap_or(0) % TILE_WIDTH;
            hashes.len() as u64 == width
        });
        fits.then_some(Self { levels, size })
    }

    /// How many levels a tree of `size` leaves has.
    #[must_use]
    pub fn height(size: u64) -> u32 {
        (0..=MAX_LEVEL).take_while(|level| size >> (TILE_HEIGHT * level) > 0).count() as u32
    }

    /// Appends a leaf hash; `changed` gets each tile that is to be stored: full ones, and above
    /// level 0 partial ones too (those at level 0 can be read from the entries themselves).
    pub fn push(&mut self, leaf: Digest, changed: &mut impl FnMut(Tile, &[Digest])) {
        self.size += 1;
        let mut hash = leaf;
        for level in 0..=MAX_LEVEL {
            let at = level as usize;
            if self.levels.len() <= at {
                self.levels.push(Vec::new());
            }
            let Some(hashes) = self.levels.get_mut(at) else { return };
            hashes.push(hash);
            let width = hashes.len() as u64;
            let full = width == TILE_WIDTH;
            if full || level > 0 {
                let index = ((self.size >> (TILE_HEIGHT * level)) - 1) / TILE_WIDTH;
                changed(Tile { level, index, width }, hashes);
            }
            if !full {
                return;
            }
            hash = root_of(hashes);
            hashes.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;
    use crate::tree::{
        Frontier, fold_peaks, inclusion_ranges, leaf_hash, subtrees, verify_inclusion,
    };

    #[test]
    fn paths_are_those_of_the_specification() {
        for (path, index, width) in [
            ("tile/0/x001/x234/067", 1_234_067, 256),
            ("tile/0/000", 0, 256),
            ("tile/0/999.p/255", 999, 255),
            ("tile/0/x001/000.p/1", 1000, 1),
        ] {
            let tile = Resource::Tile(Tile { level: 0, index, width });
            assert_eq!(tile.to_string(), path);
            assert_eq!(Resource::parse(path), Some(tile));
        }
        assert_eq!(
            Resource::parse("tile/entries/x012/345.p/7"),
            Some(Resource::Entries(12_345, 7))
        );
    }

    #[test]
    fn other_spellings_are_refused() {
        for path in [
            "tile/0/0",
            "tile/00/000",
            "tile/0/x000/000",
            "tile/0/000.p/256",
            "tile/0/000.p/0",
            "tile/0/000.p/01",
            "tile/64/000",
            "tile/-1/000",
            "tile/0/x001",
            "tile/0/001/000",
            "tile/entries",
            "tile/entries/",
            "tile/0/+01",
            "tile/x/000",
            "checkpoint",
            "tile/0/x999/x999/x999/x999/x999/x999/x999/999",
        ] {
            assert_eq!(Resource::parse(path), None, "{path}");
        }
    }

    /// The specification's own example: a tree of 70,000 leaves.
    #[test]
    fn tiles_of_70_000_leaves() {
        let of = |level| Tile::all(70_000).filter(move |t| t.level == level).collect::<Vec<_>>();
        assert_eq!((of(0).len(), of(1).len(), of(2).len(), of(3).len()), (274, 2, 1, 0));
        assert_eq!((of(0)[273].width, of(1)[1].width, of(2)[0].width), (112, 17, 1));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(12))]
        #[test]
        fn stored_tiles_answer_every_proof(size in 1_u64..140_000, a in any::<u64>()) {
            let mut stored: HashMap<(u32, u64), Vec<Digest>> = HashMap::new();
            let (mut edge, mut frontier) = (Edge::default(), Frontier::default());
            let leaves: Vec<Digest> = (0..size).map(|i| leaf_hash(&i.to_be_bytes())).collect();
            for leaf in &leaves {
                frontier.push(*leaf);
                edge.push(*leaf, &mut |tile, hashes| {
                    stored.insert((tile.level, tile.index), hashes.to_vec());
                });
            }
            let hash = |node: Node| {
                let tile = Tile::of_node(node, size);
                let hashes = if tile.level == 0 {
                    let start = (tile.index * TILE_WIDTH) as usize;
                    leaves[start..start + tile.width as usize].to_vec()
                } else {
                    stored[&(tile.level, tile.index)].clone()
                };
                assert_eq!(hashes.len() as u64, tile.width);
                Tile::node_root(node, &hashes).unwrap()
            };
            let peaks: Vec<Digest> = subtrees(&(0..size)).into_iter().map(hash).collect();
            prop_assert_eq!(Frontier::from_peaks(size, peaks), Some(frontier.clone()));
            let index = a % size;
            let proof: Vec<Digest> = inclusion_ranges(index, size).unwrap().iter().map(|range| {
                fold_peaks(&subtrees(range).into_iter().map(hash).collect::<Vec<_>>()).unwrap()
            }).collect();
            prop_assert!(verify_inclusion(&leaves[index as usize], index, size, &frontier.root(), &proof).is_ok());
            let levels: Vec<Vec<Digest>> = (0..Edge::height(size)).map(|level| {
                let (hashes, width) = (size >> (8 * level), (size >> (8 * level)) % 256);
                let start = hashes - width;
                (start..hashes).map(|i| hash(Node { level: 8 * level, index: i })).collect()
            }).collect();
            let rebuilt = Edge::from_levels(size, levels).unwrap();
            prop_assert_eq!(&rebuilt.levels[..], &edge.levels[..rebuilt.levels.len()]);
        }
    }
}
