//! The Merkle tree of RFC 6962 §2.1 (RFC 9162 §2.1): hashes, the append-only frontier, which
//! subtrees a proof needs, and the verification of proofs.
//!
//! Nothing here reads a store. A proof is planned as ranges of leaves ([`inclusion_ranges`],
//! [`consistency_ranges`]); whoever holds the tiles hashes each range. Verification refuses proofs
//! that are too short, too long or about an index outside the tree.

use std::ops::Range;

use aegis_core::Digest;

/// The hash of a leaf: SHA-256(0x00 ‖ data).
#[must_use]
pub fn leaf_hash(data: &[u8]) -> Digest {
    Digest::of_parts(&[&[0], data])
}

/// The hash of an interior node: SHA-256(0x01 ‖ left ‖ right).
#[must_use]
pub fn node_hash(left: &Digest, right: &Digest) -> Digest {
    let mut bytes = [1_u8; 65];
    let (_, children) = bytes.split_at_mut(1);
    let (a, b) = children.split_at_mut(32);
    a.copy_from_slice(left.as_bytes());
    b.copy_from_slice(right.as_bytes());
    Digest::of(&bytes)
}

/// The root of the empty tree: the hash of nothing.
#[must_use]
pub fn empty_root() -> Digest {
    Digest::of(b"")
}

/// The root of a tree over at most a tile's worth of hashes, whose number need not be a power of two.
#[must_use]
pub fn root_of(hashes: &[Digest]) -> Digest {
    let mut frontier = Frontier::default();
    for hash in hashes {
        frontier.push(*hash);
    }
    frontier.root()
}

/// The roots of the complete subtrees of a growing tree, largest first: all that appending needs.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Frontier {
    size: u64,
    peaks: Vec<Digest>,
}

impl Frontier {
    /// The frontier of a tree of `size` leaves whose complete subtrees ([`subtrees`] of `0..size`)
    /// have the roots `peaks`; `None` when their number does not fit the size.
    #[must_use]
    pub fn from_peaks(size: u64, peaks: Vec<Digest>) -> Option<Self> {
        (u32::try_from(peaks.len()).ok()? == size.count_ones()).then_some(Self { size, peaks })
    }

    /// Appends a leaf hash.
    pub fn push(&mut self, leaf: Digest) {
        let mut hash = leaf;
        // Each trailing one bit of the size is a complete subtree that the new leaf completes further.
        for _ in 0..self.size.trailing_ones() {
            if let Some(left) = self.peaks.pop() {
                hash = node_hash(&left, &hash);
            }
        }
        self.peaks.push(hash);
        self.size += 1;
    }

    /// How many leaves.
    #[must_use]
    pub const fn size(&self) -> u64 {
        self.size
    }

    /// The root.
    #[must_use]
    pub fn root(&self) -> Digest {
        fold_peaks(&self.peaks).unwrap_or_else(empty_root)
    }
}

/// The hash of a range from the roots of its [`subtrees`]; `None` for an empty one.
#[must_use]
pub fn fold_peaks(peaks: &[Digest]) -> Option<Digest> {
    let (last, rest) = peaks.split_last()?;
    Some(rest.iter().rev().fold(*last, |right, left| node_hash(left, &right)))
}

/// A complete subtree: the leaves `index << level .. (index + 1) << level`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Node {
    /// Height above the leaves.
    pub level: u32,
    /// Place within the level.
    pub index: u64,
}

impl Node {
    /// Which leaves those are.
    #[must_use]
    pub const fn leaves(self) -> Range<u64> {
        self.index << self.level..(self.index + 1) << self.level
    }
}

/// The complete subtrees that make up a range, left to right. The range is one that a proof names:
/// its start is a multiple of the largest power of two within it.
#[must_use]
pub fn subtrees(range: &Range<u64>) -> Vec<Node> {
    let mut nodes = Vec::new();
    let mut start = range.start;
    while start < range.end {
        let level = (range.end - start).ilog2();
        nodes.push(Node { level, index: start >> level });
        start += 1 << level;
    }
    nodes
}

/// The largest power of two below `n` (RFC 6962's k).
const fn split_at(n: u64) -> u64 {
    1 << (n - 1).ilog2()
}

/// The ranges whose hashes prove that leaf `index` is in the tree of `size` leaves, from the leaf's
/// sibling up (RFC 6962 §2.1.1); `None` when it is not.
#[must_use]
pub fn inclusion_ranges(index: u64, size: u64) -> Option<Vec<Range<u64>>> {
    if index >= size {
        return None;
    }
    let mut ranges = Vec::new();
    let (mut low, mut high) = (0, size);
    while high - low > 1 {
        let middle = low + split_at(high - low);
        if index < middle {
            ranges.push(middle..high);
            high = middle;
        } else {
            ranges.push(low..middle);
            low = middle;
        }
    }
    ranges.reverse();
    Some(ranges)
}

/// The ranges whose hashes prove that the tree of `old` leaves is a prefix of that of `new`
/// (RFC 6962 §2.1.2); `None` unless `1 ≤ old ≤ new`.
#[must_use]
pub fn consistency_ranges(old: u64, new: u64) -> Option<Vec<Range<u64>>> {
    if old == 0 || old > new {
        return None;
    }
    let mut ranges = Vec::new();
    let (mut low, mut high) = (0, new);
    while old < high {
        let middle = low + split_at(high - low);
        if old <= middle {
            ranges.push(middle..high);
            high = middle;
        } else {
            ranges.push(low..middle);
            low = middle;
        }
    }
    // At the old tree's own subtree: its hash is known to the verifier when it is the whole old tree.
    if low > 0 {
        ranges.push(low..high);
    }
    ranges.reverse();
    Some(ranges)
}

/// Why a proof does not prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ProofError {
    /// The index or size is impossible.
    #[error("the proof is about an entry or a size outside the tree")]
    OutOfRange,
    /// The number of hashes does not fit.
    #[error("the proof has the wrong number of hashes")]
    WrongLength,
    /// It leads to another root.
    #[error("the proof leads to another root hash than the checkpoint's")]
    WrongRoot,
}

/// Verifies that `leaf` is at `index` in the tree of `size` leaves with this root
/// (RFC 9162 §2.1.3.2).
///
/// # Errors
/// When it is not proven.
pub fn verify_inclusion(
    leaf: &Digest,
    index: u64,
    size: u64,
    root: &Digest,
    proof: &[Digest],
) -> Result<(), ProofError> {
    if index >= size {
        return Err(ProofError::OutOfRange);
    }
    let (mut node, mut last) = (index, size - 1);
    let mut hash = *leaf;
    for sibling in proof {
        if last == 0 {
            return Err(ProofError::WrongLength);
        }
        if node & 1 == 1 || node == last {
            hash = node_hash(sibling, &hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            hash = node_hash(&hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(ProofError::WrongLength);
    }
    if hash == *root { Ok(()) } else { Err(ProofError::WrongRoot) }
}

/// Verifies that the tree of `old` leaves with `old_root` is a prefix of that of `new` leaves with
/// `new_root` (RFC 9162 §2.1.4.2). The empty tree is a prefix of every tree, without hashes.
///
/// # Errors
/// When it is not proven.
pub fn verify_consistency(
    old: u64,
    old_root: &Digest,
    new: u64,
    new_root: &Digest,
    proof: &[Digest],
) -> Result<(), ProofError> {
    if old > new {
        return Err(ProofError::OutOfRange);
    }
    if old == 0 || old == new {
        let same = if old == 0 { *old_root == empty_root() } else { old_root == new_root };
        return match (proof.is_empty(), same) {
            (false, _) => Err(ProofError::WrongLength),
            (true, true) => Ok(()),
            (true, false) => Err(ProofError::WrongRoot),
        };
    }
    let (mut node, mut last) = (old - 1, new - 1);
    while node & 1 == 1 {
        node >>= 1;
        last >>= 1;
    }
    // When the old tree is one complete subtree, its root is the first hash and is not sent.
    let (seed, rest) = match proof.split_first() {
        _ if old.is_power_of_two() => (old_root, proof),
        Some((first, rest)) => (first, rest),
        None => return Err(ProofError::WrongLength),
    };
    let (mut old_hash, mut new_hash) = (*seed, *seed);
    for sibling in rest {
        if last == 0 {
            return Err(ProofError::WrongLength);
        }
        if node & 1 == 1 || node == last {
            old_hash = node_hash(sibling, &old_hash);
            new_hash = node_hash(sibling, &new_hash);
            while node & 1 == 0 && node != 0 {
                node >>= 1;
                last >>= 1;
            }
        } else {
            new_hash = node_hash(&new_hash, sibling);
        }
        node >>= 1;
        last >>= 1;
    }
    if last != 0 {
        return Err(ProofError::WrongLength);
    }
    if old_hash == *old_root && new_hash == *new_root { Ok(()) } else { Err(ProofError::WrongRoot) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn leaves(n: u64) -> Vec<Digest> {
        (0..n).map(|i| leaf_hash(&i.to_be_bytes())).collect()
    }

    /// The definition of RFC 6962 §2.1, word for word.
    fn mth(leaves: &[Digest]) -> Digest {
        match leaves {
            [] => empty_root(),
            [one] => *one,
            many => {
                let (left, right) =
                    many.split_at(usize::try_from(split_at(many.len() as u64)).unwrap());
                node_hash(&mth(left), &mth(right))
            }
        }
    }

    fn hash(leaves: &[Digest], range: &Range<u64>) -> Digest {
        let peaks: Vec<Digest> = subtrees(range)
            .iter()
            .map(|n| {
                let start = usize::try_from(n.index << n.level).unwrap();
                mth(&leaves[start..start + (1 << n.level)])
            })
            .collect();
        let folded = fold_peaks(&peaks).unwrap();
        let (start, end) = (range.start as usize, range.end as usize);
        assert_eq!(folded, mth(&leaves[start..end]), "{range:?}");
        folded
    }

    fn proof(leaves: &[Digest], ranges: &[Range<u64>]) -> Vec<Digest> {
        ranges.iter().map(|range| hash(leaves, range)).collect()
    }

    #[test]
    fn known_roots() {
        // RFC 6962 test vectors shared by every implementation: the empty tree, and one empty leaf.
        assert_eq!(
            empty_root().to_hex(),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(
            leaf_hash(b"").to_hex(),
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
        );
    }

    #[test]
    fn every_inclusion_and_consistency_up_to_70() {
        let all = leaves(70);
        for size in 1..=70_u64 {
            let root = mth(&all[..size as usize]);
            assert_eq!(root_of(&all[..size as usize]), root);
            for index in 0..size {
                let path = proof(&all, &inclusion_ranges(index, size).unwrap());
                verify_inclusion(&all[index as usize], index, size, &root, &path).unwrap();
            }
            for old in 1..=size {
                let path = proof(&all, &consistency_ranges(old, size).unwrap());
                let old_root = mth(&all[..old as usize]);
                verify_consistency(old, &old_root, size, &root, &path).unwrap();
            }
        }
        assert_eq!(inclusion_ranges(3, 3), None);
        assert_eq!(consistency_ranges(0, 3), None);
        assert_eq!(consistency_ranges(4, 3), None);
        verify_consistency(0, &empty_root(), 3, &mth(&all[..3]), &[]).unwrap();
    }

    #[test]
    fn peaks_must_fit_the_size() {
        assert!(Frontier::from_peaks(5, leaves(2)).is_some());
        assert!(Frontier::from_peaks(5, leaves(3)).is_none());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]
        #[test]
        fn anything_wrong_fails(size in 2_u64..600, a in any::<u64>(), b in any::<u64>(), bit in 0_usize..256) {
            let all = leaves(size);
            let root = mth(&all);
            let (index, old) = (a % size, 1 + b % (size - 1));
            let flip = |d: &Digest| {
                let mut bytes = *d.as_bytes();
                bytes[bit / 8] ^= 1 << (bit % 8);
                Digest::from_bytes(bytes)
            };
            let leaf = all[index as usize];
            let good = proof(&all, &inclusion_ranges(index, size).unwrap());
            prop_assert!(verify_inclusion(&leaf, index, size, &root, &good).is_ok());
            prop_assert!(verify_inclusion(&flip(&leaf), index, size, &root, &good).is_err());
            prop_assert!(verify_inclusion(&leaf, index, size, &flip(&root), &good).is_err());
            prop_assert!(verify_inclusion(&leaf, (index + 1) % size, size, &root, &good).is_err());
            prop_assert!(verify_inclusion(&leaf, size, size, &root, &good).is_err());
            for at in 0..good.len() {
                let mut bad = good.clone();
                bad[at] = flip(&bad[at]);
                prop_assert!(verify_inclusion(&leaf, index, size, &root, &bad).is_err());
                bad.remove(at);
                prop_assert!(verify_inclusion(&leaf, index, size, &root, &bad).is_err());
            }
            let long = [good.clone(), vec![root]].concat();
            prop_assert!(verify_inclusion(&leaf, index, size, &root, &long).is_err());

            let old_root = mth(&all[..old as usize]);
            let good = proof(&all, &consistency_ranges(old, size).unwrap());
            prop_assert!(verify_consistency(old, &old_root, size, &root, &good).is_ok());
            prop_assert!(verify_consistency(old, &flip(&old_root), size, &root, &good).is_err());
            prop_assert!(verify_consistency(old, &old_root, size, &flip(&root), &good).is_err());
            prop_assert!(verify_consistency(size, &root, old, &old_root, &good).is_err());
            for at in 0..good.len() {
                let mut bad = good.clone();
                bad[at] = flip(&bad[at]);
                prop_assert!(verify_consistency(old, &old_root, size, &root, &bad).is_err());
                bad.remove(at);
                prop_assert!(verify_consistency(old, &old_root, size, &root, &bad).is_err());
            }
            let long = [good, vec![root]].concat();
            prop_assert!(verify_consistency(old, &old_root, size, &root, &long).is_err());
        }
    }
}
