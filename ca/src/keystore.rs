//! Where keys and state rest: a directory that only its owner can read.
//!
//! Refuses to start when a file in it is readable by others, belongs to somebody else or is a link,
//! and when another process has it open. A write is whole or has not happened: temporary file,
//! fsync, rename, fsync of the directory.

use std::{
    fmt,
    fs::{self, DirBuilder, File, OpenOptions, Permissions, TryLockError},
    io::{self, Read as _, Write as _},
    os::unix::fs::{
        DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _,
    },
    path::{Path, PathBuf},
};

use nix::unistd::geteuid;
use zeroize::Zeroizing;

/// Larger than any file that the CA writes.
const MAX_FILE_BYTES: u64 = 64 * 1024 * 1024;
/// The file whose lock says that a CA is at work here.
const LOCK: &str = "lock";
/// What an unfinished write leaves behind.
const TEMPORARY: &str = ".tmp";

/// Named pieces of bytes, each replaced as a whole and durable once written.
pub trait Store: Send + Sync + 'static {
    /// All names.
    ///
    /// # Errors
    /// When they cannot be listed.
    fn names(&self) -> Result<Vec<String>, StoreError>;

    /// The bytes under `name`; `None` if there are none.
    ///
    /// # Errors
    /// When they cannot be read.
    fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError>;

    /// Replaces the bytes under `name`.
    ///
    /// # Errors
    /// When they are not certainly on disk; either the old or the new bytes are then.
    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError>;

    /// Removes the bytes under `name`, if there are any.
    ///
    /// # Errors
    /// When they are not certainly gone.
    fn remove(&self, name: &str) -> Result<(), StoreError>;

    /// Replaces several pieces in this order, or all at once where that is possible.
    ///
    /// # Errors
    /// When they are not all certainly written; those before may be.
    fn write_all(&self, pieces: &[(&str, &[u8])]) -> Result<(), StoreError> {
        pieces.iter().try_for_each(|(name, bytes)| self.write(name, bytes))
    }

    /// Looks again at what others may have written. Where nobody else writes there is nothing to do.
    ///
    /// # Errors
    /// When it cannot be looked at.
    fn reload(&self) -> Result<(), StoreError> {
        Ok(())
    }

    /// Which authority somebody asks to have rotated, in their words; known since the last
    /// [`reload`](Self::reload). Most stores have nowhere to ask.
    fn asked(&self) -> Option<String> {
        None
    }

    /// As [`write_all`](Self::write_all), and what was asked for is gone with the same write.
    ///
    /// # Errors
    /// As [`write_all`](Self::write_all); what was asked for is still there then.
    fn answer(&self, pieces: &[(&str, &[u8])]) -> Result<(), StoreError> {
        self.write_all(pieces)
    }
}

/// Why the directory cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The operating system refuses.
    #[error("cannot {action} {}: {cause}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What it says.
        cause: io::Error,
    },
    /// Others can read or change it.
    #[error("{} can be read or changed by others (mode {mode:03o}); run `chmod {wanted:o} {}`", path.display(), path.display())]
    Exposed {
        /// Which file.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The mode it should have.
        wanted: u32,
    },
    /// It belongs to somebody else.
    #[error("{} belongs to user {owner}, not to user {user} who runs the CA; run `chown {user} {}`", path.display(), path.display())]
    Foreign {
        /// Which file.
        path: PathBuf,
        /// Whose it is.
        owner: u32,
        /// Who runs this process.
        user: u32,
    },
    /// A link, a device, a folder where a file should be.
    #[error("{} is not a regular file; move it away", .0.display())]
    NotAFile(PathBuf),
    /// Another CA is at work here.
    #[error("{} is in use by another process; stop it or choose another directory", .0.display())]
    InUse(PathBuf),
    /// More bytes than the CA ever writes.
    #[error("{} is larger than anything the CA writes; it is not one of its files", .0.display())]
    TooLarge(PathBuf),
    /// Another replica has changed it since it was read.
    #[error("another replica has changed the Secret {0}; it is read again")]
    Conflict(String),
    /// The API server does not do what was asked.
    #[error("the Secret {name} cannot be read or written: {cause}")]
    Cluster {
        /// Which Secret.
        name: String,
        /// What the API server says.
        cause: String,
    },
}

/// A directory on disk.
pub struct Directory {
    path: PathBuf,
    /// Held, and its lock with it, as long as the directory is open.
    _lock: File,
}

fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let path = path.to_owned();
    move |cause| StoreError::Io { action, path, cause }
}

impl Directory {
    /// Opens a directory, creating it with mode 0700 if there is none.
    ///
    /// # Errors
    /// When it, or a file in it, is exposed or foreign, or another process has it open.
    pub fn open(path: impl Into<PathBuf>) -> Result<Self, StoreError> {
        let path = path.into();
        if !path.exists() {
            let create = DirBuilder::new().recursive(true).mode(0o700).create(&path);
            create.map_err(io_error("create", &path))?;
        }
        check_owner_only(&path, 0o700)?;
        let lock = lock(&path)?;
        let directory = Self { path, _lock: lock };
        for name in directory.list()? {
            let file = directory.path.join(&name);
            // What a crash in the middle of a write left behind was never part of the state.
            if name.ends_with(TEMPORARY) {
                fs::remove_file(&file).map_err(io_error("remove", &file))?;
                continue;
            }
            check_file(&file)?;
        }
        Ok(directory)
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn list(&self) -> Result<Vec<String>, StoreError> {
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(io_error("list", &self.path))? {
            let entry = entry.map_err(io_error("list", &self.path))?;
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn sync(&self) -> Result<(), StoreError> {
        let directory = File::open(&self.path).map_err(io_error("open", &self.path))?;
        directory.sync_all().map_err(io_error("sync", &self.path))
    }
}

fn lock(directory: &Path) -> Result<File, StoreError> {
    let path = directory.join(LOCK);
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .custom_flags(nix::fcntl::OFlag::O_NOFOLLOW.bits())
        .open(&path)
        .map_err(io_error("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StoreError::InUse(directory.to_owned())),
        Err(TryLockError::Error(cause)) => Err(StoreError::Io { action: "lock", path, cause }),
    }
}

fn check_file(path: &Path) -> Result<(), StoreError> {
    let metadata = fs::symlink_metadata(path).map_err(io_error("inspect", path))?;
    if !metadata.is_file() {
        return Err(StoreError::NotAFile(path.to_owned()));
    }
    check_owner_only(path, 0o600)
}

fn check_owner_only(path: &Path, wanted: u32) -> Result<(), StoreError> {
    let metadata = fs::metadata(path).map_err(io_error("inspect", path))?;
    let user = geteuid().as_raw();
    if metadata.uid() != user {
        return Err(StoreError::Foreign { path: path.to_owned(), owner: metadata.uid(), user });
    }
    let mode = metadata.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(StoreError::Exposed { path: path.to_owned(), mode, wanted });
    }
    Ok(())
}

impl Store for Directory {
    fn names(&self) -> Result<Vec<String>, StoreError> {
        let mut names = self.list()?;
        names.retain(|name| name != LOCK && !name.ends_with(TEMPORARY));
        Ok(names)
    }

    fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        let path = self.path.join(name);
        if !path.exists() {
            return Ok(None);
        }
        check_file(&path)?;
        let mut file = File::open(&path).map_err(io_error("open", &path))?;
        let length = file.metadata().map_err(io_error("inspect", &path))?.len();
        if length > MAX_FILE_BYTES {
            return Err(StoreError::TooLarge(path));
        }
        // Room for the whole file at once, so that no half of a key is left in freed memory.
        let capacity = usize::try_from(length).unwrap_or_default() + 1;
        let mut bytes = Zeroizing::new(Vec::with_capacity(capacity));
        file.read_to_end(&mut bytes).map_err(io_error("read", &path))?;
        Ok(Some(bytes))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        let path = self.path.join(name);
        let temporary = self.path.join(format!("{name}{TEMPORARY}"));
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&temporary)
            .map_err(io_error("create", &temporary))?;
        // The umask can only take away; an old temporary file could have had any mode.
        file.set_permissions(Permissions::from_mode(0o600))
            .map_err(io_error("protect", &temporary))?;
        file.write_all(bytes).map_err(io_error("write", &temporary))?;
        file.sync_all().map_err(io_error("sync", &temporary))?;
        fs::rename(&temporary, &path).map_err(io_error("replace", &path))?;
        self.sync()
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        let path = self.path.join(name);
        match fs::remove_file(&path) {
            Ok(()) => self.sync(),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(cause) => Err(StoreError::Io { action: "remove", path, cause }),
        }
    }
}

impl fmt::Debug for Directory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Directory").field("path", &self.path).finish_non_exhaustive()
    }
}
