//! The files of a SQLite log: what is ours, what is whole, and who writes.
//!
//! A file is looked at before SQLite touches it. The writer holds a lock on `<database>.lock` for as
//! long as it lives; the lock file's content does not matter and it is never deleted, so no stale lock
//! can be left behind.
//!
//! SQLite knows of other users of a database by the file locks of their processes, and a process loses all its locks
//! of a file when it closes any descriptor of it (fcntl(2), "record locks"). The last user to leave deletes the
//! write-ahead log. So a database that this process writes ([`Held`]) is opened by SQLite alone, which knows.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Read as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;

use crate::read::APPLICATION_ID;
use crate::redo::Redo;
use crate::store::StoreError;

/// The databases that this process writes, by device and inode, and what is on its way into them.
static HELD: Mutex<BTreeMap<(u64, u64), Weak<Redo>>> = Mutex::new(BTreeMap::new());

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::metadata(path).map(|meta| (meta.dev(), meta.ino()))
}

/// A database that this process writes: while this lives, nothing but SQLite opens the file.
#[derive(Debug)]
pub(crate) struct Held((u64, u64));

impl Held {
    pub(crate) fn new(path: &Path) -> Result<Self, StoreError> {
        let file = identity(path).map_err(|e| StoreError::file(path, &e))?;
        HELD.lock().insert(file, Weak::new());
        Ok(Self(file))
    }

    /// Has readers in this process wait for what is on its way.
    pub(crate) fn follow(&self, redo: &Arc<Redo>) {
        HELD.lock().insert(self.0, Arc::downgrade(redo));
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        HELD.lock().remove(&self.0);
    }
}

/// What is on its way into a database, if this process writes it.
pub(crate) fn followed(path: &Path) -> Option<Arc<Redo>> {
    identity(path).ok().and_then(|file| HELD.lock().get(&file)?.upgrade())
}

/// Checks that a file is a SQLite database of ours before SQLite touches it. One that this process
/// writes has been checked.
pub(crate) fn check_file(path: &Path) -> Result<(), StoreError> {
    if identity(path).is_ok_and(|file| HELD.lock().contains_key(&file)) {
        return Ok(());
    }
    let text = path.display().to_string();
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            return Err(StoreError::Missing { path: text });
        }
        Err(e) => return Err(StoreError::file(path, &e)),
    };
    let mut header = [0_u8; 100];
    let mut read = 0;
    while let Some(rest) = header.get_mut(read..).filter(|rest| !rest.is_empty()) {
        match file.read(rest) {
            Ok(0) => break,
            Ok(n) => read += n,
            Err(e) => return Err(StoreError::file(path, &e)),
        }
    }
    let not_a_log = |why: &str| StoreError::NotALog { path: text.clone(), why: why.into() };
    // https://sqlite.org/fileformat.html §1.3
    if !header.starts_with(b"SQLite format 3\0") {
        let why = if read == 0 { "it is empty" } else { "it is not a SQLite database" };
        return Err(not_a_log(why));
    }
    if read < header.len() {
        return Err(StoreError::Corrupt { place: text, why: "it ends within its header".into() });
    }
    if header.get(68..72) != Some(&APPLICATION_ID.to_be_bytes()) {
        return Err(not_a_log("it is another application's SQLite database"));
    }
    let length = file.metadata().map_err(|e| StoreError::file(path, &e))?.len();
    // With a write-ahead log beside it, a file may rightly be shorter until SQLite has recovered it.
    if beside(path, "-wal").exists() || whole(&header, length) {
        return Ok(());
    }
    let why = format!("it has {length} bytes, which is less than its header says");
    Err(StoreError::Corrupt { place: text, why })
}

/// Whether a file of this length holds all the pages that its header promises.
fn whole(header: &[u8; 100], length: u64) -> bool {
    let [.., size_high, size_low] = header.first_chunk::<18>().copied().unwrap_or([0; 18]);
    let [.., a, b, c, d] = header.first_chunk::<32>().copied().unwrap_or([0; 32]);
    let page = match u64::from(u16::from_be_bytes([size_high, size_low])) {
        1 => 65_536,
        size => size,
    };
    page * u64::from(u32::from_be_bytes([a, b, c, d])) <= length
}

/// The file beside a database with the same name and another ending.
pub(crate) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    PathBuf::from(name)
}

/// Takes the writer's lock.
pub(crate) fn lock(path: &Path) -> Result<File, StoreError> {
    let lock = beside(path, ".lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&lock)
        .map_err(|e| StoreError::file(&lock, &e))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => {
            Err(StoreError::Locked { path: path.display().to_string() })
        }
        Err(TryLockError::Error(e)) => Err(StoreError::file(&lock, &e)),
    }
}

/// Makes a rename in a file's folder durable.
pub(crate) fn sync_folder(path: &Path) -> io::Result<()> {
    let folder = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all())
}
