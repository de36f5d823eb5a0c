//! The key that signs checkpoints, from a seed of 32 bytes in a file.
//!
//! The file holds them as they are, or in base64 as a chart's generated Secret has them. It refuses a
//! file that everybody can read. A group may: that is how Kubernetes gives a pod its volumes.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
};

use aegis_audit::{Signer, note::NoteError};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use zeroize::Zeroizing;

/// Why there is no key.
#[derive(Debug, thiserror::Error)]
pub enum SeedError {
    /// The file.
    #[error("the key in {} cannot be used: {cause}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
    /// Others can read it.
    #[error("everybody can read the key in {} (mode {mode:03o}); run `chmod o= {}`, and if somebody may have, begin a new log", path.display(), path.display())]
    Exposed {
        /// Which.
        path: PathBuf,
        /// Its mode.
        mode: u32,
    },
    /// Something else.
    #[error("{} holds no seed: expected 32 bytes, or their base64", .0.display())]
    Malformed(PathBuf),
    /// The name.
    #[error(transparent)]
    Name(#[from] NoteError),
}

/// The key named `origin` of the seed in `path`.
///
/// # Errors
/// When the file is missing, exposed or no seed.
pub fn read(path: &Path, origin: &str) -> Result<Signer, SeedError> {
    let failed = |cause| SeedError::File { path: path.to_owned(), cause };
    let mode = fs::metadata(path).map_err(failed)?.permissions().mode() & 0o777;
    if mode & 0o007 != 0 {
        return Err(SeedError::Exposed { path: path.to_owned(), mode });
    }
    let bytes = Zeroizing::new(fs::read(path).map_err(failed)?);
    let text = Zeroizing::new(BASE64_STANDARD.decode(bytes.trim_ascii()).unwrap_or_default());
    let seed = <&[u8; 32]>::try_from(bytes.as_slice()).or_else(|_| text.as_slice().try_into());
    let seed = seed.map_err(|_| SeedError::Malformed(path.to_owned()))?;
    Ok(Signer::from_seed(origin, seed)?)
}

/// As [`read`]; where there is no file, it is made with a new seed, for its owner alone.
///
/// # Errors
/// As [`read`], or when it cannot be written.
pub fn read_or_make(path: &Path, origin: &str) -> Result<Signer, SeedError> {
    if !path.exists() {
        make(path).map_err(|cause| SeedError::File { path: path.to_owned(), cause })?;
    }
    read(path, origin)
}

/// Written beside it and renamed, so that a crash leaves no half of a key.
fn make(path: &Path) -> io::Result<()> {
    let seed: Zeroizing<[u8; 32]> = Zeroizing::new(rand::random());
    let text = Zeroizing::new(BASE64_STANDARD.encode(seed.as_slice()));
    let next = path.with_extension("new");
    let mut file =
        OpenOptions::new().create(true).truncate(true).write(true).mode(0o600).open(&next)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&next, path)?;
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
    fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_made_once_and_read_in_both_forms() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seed");
        assert!(matches!(read(&path, "acme.example/ledger"), Err(SeedError::File { .. })));
        let made = read_or_make(&path, "acme.example/ledger").unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let again = read_or_make(&path, "acme.example/ledger").unwrap();
        assert_eq!(made.verifier(), again.verifier());
        // The same seed, with the newline of an editor and as bytes.
        let text = fs::read_to_string(&path).unwrap();
        for form in [format!("{text}\n").into_bytes(), BASE64_STANDARD.decode(&text).unwrap()] {
            fs::write(&path, form).unwrap();
            assert_eq!(read(&path, "acme.example/ledger").unwrap().verifier(), made.verifier());
        }
    }

    #[test]
    fn what_is_exposed_or_no_seed_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("seed");
        read_or_make(&path, "acme.example/ledger").unwrap();
        for (mode, refused) in [(0o604, true), (0o640, false), (0o440, false), (0o602, true)] {
            fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
            let read = read(&path, "acme.example/ledger");
            assert_eq!(matches!(read, Err(SeedError::Exposed { .. })), refused, "{mode:o}");
        }
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        for bad in [b"".as_slice(), b"AAAA", &[7; 31], &[7; 33], b"not a seed at all, but a text."]
        {
            fs::write(&path, bad).unwrap();
            assert!(matches!(read(&path, "a/b"), Err(SeedError::Malformed(_))), "{bad:?}");
        }
    }
}
