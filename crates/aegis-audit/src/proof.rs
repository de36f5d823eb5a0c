//! Proofs that travel (c2sp.org/tlog-proof): an entry's index, its inclusion path and a checkpoint
//! in one text that anybody can verify offline, with another tool if they like.
//!
//! The optional `extra` line carries what the log does not hold: the salt of the entry's arguments
//! digest, when its owner discloses it. It is not authenticated by the log; it is checked by hashing.

use std::fmt::Write as _;

use aegis_core::Digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::checkpoint::{self, Checkpoint};
use crate::note::{NoteError, Verifier};
use crate::tree::{self, ProofError};

const MAGIC: &str = "c2sp.org/tlog-proof@v1";

/// Paths are at most as long as a 64-bit tree is high.
const MAX_PATH: usize = 64;

/// Why a proof is refused.
#[derive(Debug, thiserror::Error)]
pub enum InclusionError {
    /// Not the format.
    #[error("not a tlog-proof: {0}")]
    Malformed(&'static str),
    /// The checkpoint within it is not to be trusted.
    #[error("the checkpoint in the proof is refused: {0}")]
    Checkpoint(#[from] NoteError),
    /// It does not prove the entry.
    #[error("the entry is not proven: {0}")]
    Unproven(#[from] ProofError),
}

/// An inclusion proof with its checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TlogProof {
    /// Unauthenticated context; Aegis puts a disclosed salt there.
    pub extra: Option<Vec<u8>>,
    /// The entry's index.
    pub index: u64,
    /// From the leaf's sibling to the root's child.
    pub path: Vec<Digest>,
    /// The signed note.
    pub checkpoint: String,
}

impl TlogProof {
    /// The text form.
    #[must_use]
    pub fn to_text(&self) -> String {
        let mut out = format!("{MAGIC}\n");
        if let Some(extra) = &self.extra {
            let _ = writeln!(out, "extra {}", BASE64.encode(extra));
        }
        let _ = writeln!(out, "index {}", self.index);
        for hash in &self.path {
            let _ = writeln!(out, "{}", BASE64.encode(hash.as_bytes()));
        }
        out.push('\n');
        out.push_str(&self.checkpoint);
        out
    }

    /// Reads the text form.
    ///
    /// # Errors
    /// When it is not the format.
    pub fn parse(text: &str) -> Result<Self, InclusionError> {
        let bad = InclusionError::Malformed;
        let (head, checkpoint) =
            text.split_once("\n\n").ok_or(bad("there is no blank line before the checkpoint"))?;
        let mut lines = head.split('\n').peekable();
        if lines.next() != Some(MAGIC) {
            return Err(bad("the first line is not `c2sp.org/tlog-proof@v1`"));
        }
        let extra = match lines.next_if(|line| line.starts_with("extra ")) {
            Some(line) => {
                let encoded = line.strip_prefix("extra ").unwrap_or_default();
                Some(BASE64.decode(encoded).map_err(|_| bad("the extra data is not base64"))?)
            }
            None => None,
        };
        let digits = lines
            .next()
            .and_then(|line| line.strip_prefix("index "))
            .ok_or(bad("there is no index line"))?;
        let index: u64 = digits.parse().map_err(|_| bad("the index is not a number"))?;
        if index.to_string() != digits {
            return Err(bad("the index is not in its shortest form"));
        }
        let mut path = Vec::new();
        for line in lines {
            let hash = BASE64.decode(line).ok().and_then(|bytes| bytes.try_into().ok());
            path.push(Digest::from_bytes(hash.ok_or(bad("a hash is not 32 bytes of base64"))?));
            if path.len() > MAX_PATH {
                return Err(bad("it has more than 64 hashes"));
            }
        }
        Ok(Self { extra, index, path, checkpoint: checkpoint.to_owned() })
    }

    /// Verifies that the entry with these canonical bytes is in the log of this key.
    ///
    /// # Errors
    /// When the checkpoint is not signed by the key or the path does not lead to its root.
    pub fn verify(&self, verifier: &Verifier, entry: &[u8]) -> Result<Checkpoint, InclusionError> {
        let checkpoint = checkpoint::open(verifier, &self.checkpoint)?;
        let leaf = tree::leaf_hash(entry);
        let head = &checkpoint.head;
        tree::verify_inclusion(&leaf, self.index, head.size, &head.root, &self.path)?;
        Ok(checkpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checkpoint::Head;
    use crate::note::Signer;
    use crate::tree::{leaf_hash, node_hash};

    fn sample(extra: Option<Vec<u8>>) -> (Signer, TlogProof) {
        let signer = Signer::from_seed("acme.example/log", &[3; 32]).unwrap();
        let (a, b) = (leaf_hash(b"a"), leaf_hash(b"b"));
        let head = Head { size: 2, root: node_hash(&a, &b) };
        let checkpoint = checkpoint::sign(&signer, &head);
        (signer, TlogProof { extra, index: 1, path: vec![a], checkpoint })
    }

    #[test]
    fn text_form_round_trips_and_verifies() {
        for extra in [None, Some(vec![1, 2, 3])] {
            let (signer, proof) = sample(extra);
            let again = TlogProof::parse(&proof.to_text()).unwrap();
            assert_eq!(again, proof);
            assert_eq!(again.verify(signer.verifier(), b"b").unwrap().head.size, 2);
            assert!(matches!(
                again.verify(signer.verifier(), b"a"),
                Err(InclusionError::Unproven(ProofError::WrongRoot))
            ));
        }
    }

    #[test]
    fn other_texts_are_refused() {
        let text = sample(None).1.to_text();
        for bad in [
            text.replace("@v1", "@v2"),
            text.replace("index 1", "index 01"),
            text.replace("index 1", "index x"),
            text.replace("index 1\n", ""),
            text.replace("index 1\n", "index 1\nAAAA\n"),
            text.replace("\n\n", "\n"),
            String::new(),
        ] {
            assert!(TlogProof::parse(&bad).is_err(), "{bad}");
        }
    }
}
