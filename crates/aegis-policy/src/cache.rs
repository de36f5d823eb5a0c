//! Compiled modules on disk, by the digest of all that went into them.
//!
//! Refused: a folder that somebody else could write to. What is in it is executed as policy.

use std::{
    fs,
    io::Write,
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use aegis_core::Digest;

/// A folder of compiled modules.
#[derive(Clone, Debug)]
pub struct ModuleCache {
    folder: PathBuf,
}

/// Why a folder is not used.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// It cannot be made or read.
    #[error("the policy cache {folder} cannot be used: {source}")]
    Io {
        /// The folder.
        folder: PathBuf,
        /// What happened.
        source: std::io::Error,
    },
    /// Others can write to it.
    #[error(
        "the policy cache {0} belongs to another user or is open to others; remove it, or run `chmod 700` on it"
    )]
    Open(PathBuf),
}

impl ModuleCache {
    /// Opens a folder, making it where it is missing (mode 0700).
    ///
    /// # Errors
    /// When it cannot be made, or others can write to it.
    pub fn open(folder: impl Into<PathBuf>) -> Result<Self, CacheError> {
        let folder = folder.into();
        let failed = |source| CacheError::Io { folder: folder.clone(), source };
        let mut builder = fs::DirBuilder::new();
        builder.recursive(true).mode(0o700).create(&folder).map_err(failed)?;
        let found = fs::metadata(&folder).map_err(failed)?;
        let me = fs::metadata("/proc/self").map(|me| me.uid()).ok();
        if found.mode() & 0o077 != 0 || me.is_some_and(|me| me != found.uid()) {
            return Err(CacheError::Open(folder));
        }
        Ok(Self { folder })
    }

    /// The folder for the engine's own cache of machine code.
    ///
    /// # Errors
    /// When it cannot be made, or others can write to it.
    pub fn machine_code(&self) -> Result<PathBuf, CacheError> {
        let folder = fs::canonicalize(&self.folder)
            .map_err(|source| CacheError::Io { folder: self.folder.clone(), source })?;
        Self::open(folder.join("code")).map(|cache| cache.folder)
    }

    fn path(&self, key: &Digest) -> PathBuf {
        self.folder.join(format!("{}.wasm", key.to_hex()))
    }

    /// A module, if it is there and whole.
    #[must_use]
    pub fn get(&self, key: &Digest) -> Option<Vec<u8>> {
        let stored = fs::read(self.path(key)).ok()?;
        let (digest, wasm) = stored.split_at_checked(64)?;
        (Digest::of(wasm).to_hex().as_bytes() == digest).then(|| wasm.to_vec())
    }

    /// Keeps a module. A failure costs the next start some time and nothing else.
    pub fn put(&self, key: &Digest, wasm: &[u8]) {
        let _ = self.write(&self.path(key), wasm);
    }

    fn write(&self, path: &Path, wasm: &[u8]) -> std::io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
        file.write_all(Digest::of(wasm).to_hex().as_bytes())?;
        file.write_all(wasm)?;
        file.persist(path)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_damaged_module_is_not_used() {
        let folder = tempfile::tempdir().unwrap();
        let cache = ModuleCache::open(folder.path().join("c")).unwrap();
        let key = Digest::of(b"key");
        assert_eq!(cache.get(&key), None);
        cache.put(&key, b"wasm");
        assert_eq!(cache.get(&key).as_deref(), Some(b"wasm".as_slice()));
        let mut stored = fs::read(cache.path(&key)).unwrap();
        stored.truncate(66);
        fs::write(cache.path(&key), stored).unwrap();
        assert_eq!(cache.get(&key), None);
    }

    #[test]
    fn an_open_folder_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o777)).unwrap();
        assert!(matches!(ModuleCache::open(folder.path()), Err(CacheError::Open(_))));
    }
}
