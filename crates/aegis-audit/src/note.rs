//! Signed notes (c2sp.org/signed-note) with Ed25519 keys: a text, a blank line, signatures.
//!
//! Keys have the text forms of Go's `golang.org/x/mod/sumdb/note`: a verifier key
//! `name+hash+base64`, a signer key `PRIVATE+KEY+name+hash+base64`. A signature of an unknown key is
//! ignored; a wrong one of a known key refuses the whole note.

use std::fmt;
use std::fs::OpenOptions;
use std::io::{self, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::str::FromStr;

use aegis_core::Digest;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ed25519_dalek::{Signature, Signer as _, SigningKey, VerifyingKey};

/// The signature type of plain Ed25519.
const ED25519: u8 = 1;

/// Notes above this are refused before they are read; a checkpoint with 16 post-quantum
/// cosignatures fits.
const MAX_NOTE_BYTES: usize = 100_000;

/// Why a key or a note is refused.
#[derive(Debug, thiserror::Error)]
pub enum NoteError {
    /// A key name that the format cannot carry.
    #[error(
        "`{0}` cannot name a key: it must be non-empty, without spaces, `+` or control characters"
    )]
    Name(String),
    /// Not a key.
    #[error("not an Ed25519 note key: expected `{expected}`")]
    Key {
        /// The form.
        expected: &'static str,
    },
    /// Not a note.
    #[error("not a signed note: {0}")]
    Malformed(&'static str),
    /// A signature of the known key that does not verify.
    #[error(
        "the signature by `{0}` does not verify: the note was altered, or another key signed it"
    )]
    BadSignature(String),
    /// No signature of the known key.
    #[error("the note is not signed by `{expected}`; it is signed by: {found}")]
    Unsigned {
        /// The verifier key that was asked for.
        expected: String,
        /// The names on the note.
        found: String,
    },
    /// The key file cannot be used.
    #[error("cannot use the signing key in {path}: {why}")]
    File {
        /// Where.
        path: String,
        /// Why, and what to do.
        why: String,
    },
}

fn check_name(name: &str) -> Result<(), NoteError> {
    let legal = |c: char| !c.is_whitespace() && !c.is_control() && c != '+';
    if name.is_empty() || !name.chars().all(legal) {
        return Err(NoteError::Name(name.chars().take(80).collect()));
    }
    Ok(())
}

/// The public half: a name and an Ed25519 key.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    name: String,
    key: VerifyingKey,
    id: [u8; 4],
}

impl Verifier {
    fn new(name: &str, key: VerifyingKey) -> Result<Self, NoteError> {
        check_name(name)?;
        let hash = Digest::of_parts(&[name.as_bytes(), b"\n", &[ED25519], &key.to_bytes()]);
        let [a, b, c, d, ..] = *hash.as_bytes();
        Ok(Self { name: name.to_owned(), key, id: [a, b, c, d] })
    }

    /// The key's name, which for a log is its origin.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Verifies a note and returns its text, which ends in a newline.
    ///
    /// # Errors
    /// When it is malformed, or this key did not sign it.
    pub fn open<'n>(&self, note: &'n str) -> Result<&'n str, NoteError> {
        let (text, signatures) = split(note)?;
        let mut names = Vec::new();
        let mut signed = false;
        for line in signatures.lines() {
            let (name, id, signature) = signature_line(line)?;
            names.push(name);
            if name != self.name || id != self.id {
                continue;
            }
            let bad = || NoteError::BadSignature(self.name.clone());
            let signature = Signature::from_slice(&signature).map_err(|_| bad())?;
            self.key.verify_strict(text.as_bytes(), &signature).map_err(|_| bad())?;
            signed = true;
        }
        if signed {
            Ok(text)
        } else {
            Err(NoteError::Unsigned { expected: self.to_string(), found: names.join(", ") })
        }
    }
}

/// Splits a note into its text and its signature lines.
fn split(note: &str) -> Result<(&str, &str), NoteError> {
    if note.len() > MAX_NOTE_BYTES {
        return Err(NoteError::Malformed("it is longer than 100,000 bytes"));
    }
    if note.chars().any(|c| c < ' ' && c != '\n') {
        return Err(NoteError::Malformed("it has a control character"));
    }
    let at = note.rfind("\n\n").ok_or(NoteError::Malformed("it has no blank line"))?;
    let (text, signatures) = note.split_at(at + 1);
    let signatures = signatures.strip_prefix('\n').unwrap_or(signatures);
    if signatures.is_empty() || !signatures.ends_with('\n') {
        return Err(NoteError::Malformed("it has no whole signature line"));
    }
    Ok((text, signatures))
}

fn signature_line(line: &str) -> Result<(&str, [u8; 4], Vec<u8>), NoteError> {
    let bad = || NoteError::Malformed("a signature line is not `— <name> <base64>`");
    let (name, encoded) =
        line.strip_prefix("— ").and_then(|l| l.split_once(' ')).ok_or_else(bad)?;
    check_name(name)?;
    let bytes = BASE64.decode(encoded).map_err(|_| bad())?;
    let (id, signature) = bytes.split_first_chunk::<4>().ok_or_else(bad)?;
    Ok((name, *id, signature.to_vec()))
}

impl fmt::Display for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = [&[ED25519][..], &self.key.to_bytes()].concat();
        write!(f, "{}+{}+{}", self.name, hex::encode(self.id), BASE64.encode(key))
    }
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for Verifier {
    type Err = NoteError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || NoteError::Key { expected: "name+hash+base64" };
        let mut parts = text.trim().splitn(3, '+');
        let (Some(name), Some(hash), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(bad());
        };
        let bytes = BASE64.decode(key).map_err(|_| bad())?;
        let Some((&ED25519, key)) = bytes.split_first() else { return Err(bad()) };
        let key: [u8; 32] = key.try_into().map_err(|_| bad())?;
        let verifier = Self::new(name, VerifyingKey::from_bytes(&key).map_err(|_| bad())?)?;
        if hex::encode(verifier.id) == hash { Ok(verifier) } else { Err(bad()) }
    }
}

/// The private half. Its `Debug` form shows the public one.
#[derive(Clone)]
pub struct Signer {
    verifier: Verifier,
    key: SigningKey,
}

impl Signer {
    /// A fresh key.
    ///
    /// # Errors
    /// When the name cannot name a key.
    pub fn generate(name: &str) -> Result<Self, NoteError> {
        Self::from_seed(name, &rand::random())
    }

    /// The key of a seed.
    ///
    /// # Errors
    /// When the name cannot name a key.
    pub fn from_seed(name: &str, seed: &[u8; 32]) -> Result<Self, NoteError> {
        let key = SigningKey::from_bytes(seed);
        Ok(Self { verifier: Verifier::new(name, key.verifying_key())?, key })
    }

    /// Reads the key in `path`, or makes one named `name` and stores it there with mode 0600.
    ///
    /// # Errors
    /// When the file cannot be read or written, is readable by others, or holds another name's key.
    pub fn load_or_create(path: &Path, name: &str) -> Result<Self, NoteError> {
        let file = |why: String| NoteError::File { path: path.display().to_string(), why };
        match std::fs::metadata(path) {
            Ok(meta) if meta.permissions().mode() & 0o077 != 0 => {
                return Err(file(
                    "others can read it; run `chmod 600` on it, and if they may have, replace it"
                        .into(),
                ));
            }
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                let signer = Self::generate(name)?;
                let mut out = OpenOptions::new()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(path)
                    .map_err(|e| file(e.to_string()))?;
                out.write_all(signer.secret_text().as_bytes())
                    .and_then(|()| out.sync_all())
                    .map_err(|e| file(e.to_string()))?;
                return Ok(signer);
            }
            Err(e) => return Err(file(e.to_string())),
        }
        let text = std::fs::read_to_string(path).map_err(|e| file(e.to_string()))?;
        let signer: Self = text.parse()?;
        if signer.name() != name {
            return Err(file(format!("it is the key of `{}`, not of `{name}`", signer.name())));
        }
        Ok(signer)
    }

    /// The key's name, which for a log is its origin.
    #[must_use]
    pub fn name(&self) -> &str {
        self.verifier.name()
    }

    /// The public half.
    #[must_use]
    pub const fn verifier(&self) -> &Verifier {
        &self.verifier
    }

    /// Signs a text, which must end in a newline, and returns the note.
    #[must_use]
    pub fn sign(&self, text: &str) -> String {
        let signature = self.key.sign(text.as_bytes()).to_bytes();
        let bytes = [&self.verifier.id[..], &signature[..]].concat();
        format!("{text}\n— {} {}\n", self.name(), BASE64.encode(bytes))
    }

    fn secret_text(&self) -> String {
        let key = [&[ED25519][..], &self.key.to_bytes()].concat();
        let id = hex::encode(self.verifier.id);
        format!("PRIVATE+KEY+{}+{id}+{}\n", self.name(), BASE64.encode(key))
    }
}

impl fmt::Debug for Signer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Signer({})", self.verifier)
    }
}

impl FromStr for Signer {
    type Err = NoteError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let bad = || NoteError::Key { expected: "PRIVATE+KEY+name+hash+base64" };
        let rest = text.trim().strip_prefix("PRIVATE+KEY+").ok_or_else(bad)?;
        let mut parts = rest.splitn(3, '+');
        let (Some(name), Some(hash), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
            return Err(bad());
        };
        let bytes = BASE64.decode(key).map_err(|_| bad())?;
        let Some((&ED25519, seed)) = bytes.split_first() else { return Err(bad()) };
        let signer = Self::from_seed(name, seed.try_into().map_err(|_| bad())?)?;
        if hex::encode(signer.verifier.id) == hash { Ok(signer) } else { Err(bad()) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The example of c2sp.org/signed-note cannot be re-signed without its key; this one is checked
    /// against Go's implementation by the integration test `go`.
    #[test]
    fn signs_and_opens() {
        let signer = Signer::from_seed("acme.example/log", &[3; 32]).unwrap();
        let note = signer.sign("hello\n\nworld\n");
        assert_eq!(signer.verifier().open(&note).unwrap(), "hello\n\nworld\n");
        let key = signer.verifier().to_string();
        assert_eq!(&key.parse::<Verifier>().unwrap(), signer.verifier());
        let again: Signer = signer.secret_text().parse().unwrap();
        assert_eq!(again.sign("hello\n\nworld\n"), note);
        assert!(!format!("{signer:?}").contains(&BASE64.encode([3; 32])));
    }

    #[test]
    fn anything_wrong_is_refused() {
        let signer = Signer::from_seed("acme.example/log", &[3; 32]).unwrap();
        let note = signer.sign("text\n");
        let verifier = signer.verifier();
        assert!(matches!(
            verifier.open(&note.replace("text", "tent")),
            Err(NoteError::BadSignature(_))
        ));
        let other = Signer::from_seed("acme.example/log", &[4; 32]).unwrap();
        assert!(matches!(other.verifier().open(&note), Err(NoteError::Unsigned { .. })));
        let cosigned = format!("{note}{}", other.sign("x\n").trim_start_matches("x\n\n"));
        assert_eq!(verifier.open(&cosigned).unwrap(), "text\n", "unknown signatures are ignored");
        for bad in ["", "text\n", "text\n\n", "text\n\n— a\n", "te\rxt\n\n— a b\n", note.trim_end()]
        {
            assert!(verifier.open(bad).is_err(), "{bad:?}");
        }
        for name in ["", "a b", "a+b", "a\u{a0}b"] {
            assert!(Signer::generate(name).is_err(), "{name:?}");
        }
        for key in ["", "a+b+c", "acme.example/log+00000000+AQ=="] {
            assert!(key.parse::<Verifier>().is_err(), "{key:?}");
        }
    }

    #[test]
    fn the_key_file_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log.key");
        let signer = Signer::load_or_create(&path, "acme.example/log").unwrap();
        let mode = std::fs::metadata(&path).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let again = Signer::load_or_create(&path, "acme.example/log").unwrap();
        assert_eq!(again.verifier(), signer.verifier());
        assert!(Signer::load_or_create(&path, "other.example").is_err());
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o644)).unwrap();
        let error = Signer::load_or_create(&path, "acme.example/log").unwrap_err();
        assert!(error.to_string().contains("chmod 600"), "{error}");
    }
}
