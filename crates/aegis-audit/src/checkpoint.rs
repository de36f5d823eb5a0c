//! Checkpoints (c2sp.org/tlog-checkpoint): a signed note over origin, tree size and root hash.

use std::fmt::Write as _;

use aegis_core::Digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;

use crate::note::{NoteError, Signer, Verifier};

/// A tree's size and root.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// How many entries.
    pub size: u64,
    /// The root hash over them.
    pub root: Digest,
}

/// A checkpoint whose signature was verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Checkpoint {
    /// Which log.
    pub origin: String,
    /// Its size and root.
    pub head: Head,
}

/// The text that is signed.
fn text(origin: &str, head: &Head) -> String {
    let mut out = String::with_capacity(160);
    let root = BASE64.encode(head.root.as_bytes());
    let _ = write!(out, "{origin}\n{}\n{root}\n", head.size);
    out
}

/// Signs a checkpoint; the origin is the signer's name.
#[must_use]
pub fn sign(signer: &Signer, head: &Head) -> String {
    signer.sign(&text(signer.name(), head))
}

/// Verifies a checkpoint: signature, format, and that its origin is the key's name.
///
/// # Errors
/// When any of those does not hold.
pub fn open(verifier: &Verifier, note: &str) -> Result<Checkpoint, NoteError> {
    let checkpoint = parse(verifier.open(note)?)?;
    if checkpoint.origin == verifier.name() {
        Ok(checkpoint)
    } else {
        Err(NoteError::Malformed("the checkpoint is of another log than the key's name says"))
    }
}

/// Reads a checkpoint's text or note without looking at signatures: to show it, never to trust it.
///
/// # Errors
/// When it is not a checkpoint.
pub fn parse(text: &str) -> Result<Checkpoint, NoteError> {
    let bad =
        || NoteError::Malformed("a checkpoint is origin, size and base64 root hash, one a line");
    let mut lines = text.split('\n');
    let (Some(origin), Some(size), Some(root)) = (lines.next(), lines.next(), lines.next()) else {
        return Err(bad());
    };
    let number: u64 = size.parse().map_err(|_| bad())?;
    let root: [u8; 32] =
        BASE64.decode(root).ok().and_then(|b| b.try_into().ok()).ok_or_else(bad)?;
    if origin.is_empty() || number.to_string() != size || lines.next().is_none() {
        return Err(bad());
    }
    Ok(Checkpoint {
        origin: origin.to_owned(),
        head: Head { size: number, root: Digest::from_bytes(root) },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signs_and_opens() {
        let signer = Signer::from_seed("acme.example/log", &[3; 32]).unwrap();
        let head = Head { size: 7, root: Digest::of(b"root") };
        let note = sign(&signer, &head);
        let opened = open(signer.verifier(), &note).unwrap();
        assert_eq!(opened, Checkpoint { origin: "acme.example/log".into(), head });
        assert_eq!(parse(&note).unwrap(), opened);
        assert!(open(signer.verifier(), &note.replacen('7', "8", 1)).is_err());
    }

    #[test]
    fn other_texts_are_refused() {
        let signer = Signer::from_seed("acme.example/log", &[3; 32]).unwrap();
        let root = BASE64.encode([0; 32]);
        for text in [
            "acme.example/log\n07\nROOT\n",
            "acme.example/log\n-7\nROOT\n",
            "acme.example/log\n7\nAAAA\n",
            "\n7\nROOT\n",
            "other.example/log\n7\nROOT\n",
            "acme.example/log\n7\n",
        ] {
            let note = signer.sign(&text.replace("ROOT", &root));
            assert!(open(signer.verifier(), &note).is_err(), "{text:?}");
        }
    }
}
