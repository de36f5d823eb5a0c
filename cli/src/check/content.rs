//! A file's content as policies see it: text, or what can be said of what is none.

use std::{
    fs::{self, File},
    io::{self, Read},
    path::Path,
};

use sha2::{Digest as _, Sha256};

/// How much is kept of a content: the daemon reads no larger question.
const KEEP: usize = super::MAX_QUESTION;

/// A content.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Content {
    /// All of it.
    Text(String),
    /// What cannot be shown to policies.
    Opaque(Opaque),
}

/// What can be said of a content that policies do not see.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Opaque {
    pub(super) size: u64,
    /// `sha256:…`
    pub(super) digest: String,
    /// `binary` or `large`.
    pub(super) word: &'static str,
    /// Why, as a sentence's part.
    pub(super) why: &'static str,
}

impl Opaque {
    /// Text that is too large to be asked about.
    pub(super) fn large(bytes: &[u8]) -> Self {
        let size = u64::try_from(bytes.len()).unwrap_or(u64::MAX);
        Self::new(size, Sha256::new_with_prefix(bytes), false)
    }

    fn new(size: u64, hash: Sha256, binary: bool) -> Self {
        let (word, why) = match binary {
            true => ("binary", "it is binary, and policies see text"),
            false => ("large", "it is larger than policies are asked about (1 MiB)"),
        };
        Self { size, digest: format!("sha256:{}", hex::encode(hash.finalize())), word, why }
    }
}

impl Content {
    /// Reads to the end.
    pub(super) fn read(mut from: impl Read) -> io::Result<Self> {
        let (mut hash, mut size, mut kept) = (Sha256::new(), 0_u64, Vec::new());
        let mut buffer = vec![0; 64 << 10];
        loop {
            let read = match from.read(&mut buffer) {
                Ok(0) => break,
                Ok(read) => buffer.get(..read).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            hash.update(read);
            size = size.saturating_add(u64::try_from(read.len()).unwrap_or(u64::MAX));
            if kept.len() <= KEEP {
                kept.extend_from_slice(read);
            }
        }
        // Where a file is cut within a letter, its beginning is text all the same.
        let text = |kept: &[u8]| match std::str::from_utf8(kept) {
            Ok(_) => true,
            Err(error) => kept.len() > KEEP && error.error_len().is_none(),
        };
        if kept.contains(&0) || !text(&kept) {
            return Ok(Self::Opaque(Opaque::new(size, hash, true)));
        }
        if kept.len() > KEEP {
            return Ok(Self::Opaque(Opaque::new(size, hash, false)));
        }
        Ok(match String::from_utf8(kept) {
            Ok(text) => Self::Text(text),
            Err(_) => Self::Opaque(Opaque::new(size, hash, true)),
        })
    }
}

/// The content of a file; of a link, where it leads, as git has it.
pub(super) fn of_file(path: &Path) -> io::Result<Content> {
    let kind = fs::symlink_metadata(path)?.file_type();
    if kind.is_symlink() {
        let target = fs::read_link(path)?;
        return Content::read(target.as_os_str().as_encoded_bytes());
    }
    if !kind.is_file() {
        return Err(io::Error::other("it is no file"));
    }
    Content::read(File::open(path)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(bytes: &[u8]) -> &'static str {
        match Content::read(bytes).unwrap() {
            Content::Text(text) => {
                assert_eq!(text.as_bytes(), bytes);
                "text"
            }
            Content::Opaque(opaque) => {
                assert_eq!(opaque.size, bytes.len() as u64);
                assert_eq!(opaque.digest, format!("sha256:{}", hex::encode(Sha256::digest(bytes))));
                opaque.word
            }
        }
    }

    #[test]
    fn what_is_no_text_is_told_by_size_and_digest() {
        assert_eq!(word(b""), "text");
        assert_eq!(word("zw\u{f6}lf\r\n".as_bytes()), "text");
        assert_eq!(word(b"a\0b"), "binary");
        assert_eq!(word(b"\xff\xfe"), "binary");
        assert_eq!(word(b"cut \xc3"), "binary");
        assert_eq!(word(&vec![b'a'; KEEP]), "text");
        assert_eq!(word("\u{f6}".repeat(KEEP).as_bytes()), "large");
        assert_eq!(word(&[b"a", "\u{f6}".repeat(KEEP).as_bytes()].concat()), "large");
        let late = [vec![b'a'; KEEP / 2], vec![0], vec![b'a'; KEEP]].concat();
        assert_eq!(word(&late), "binary");
    }
}
