//! The process at the other end of a unix socket, as the kernel vouches for it.
//!
//! A process id alone proves nothing, because it is reused. The kernel's own handle of the process
//! that connected (`SO_PEERPIDFD`, Linux 6.5) says whether it still lives; an older kernel has the
//! process' start time compared instead. What `/proc` says is believed only if the process lived
//! before and after it was read.

use std::{
    fs::{self, File},
    io::{self, Read as _},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt as _,
    },
    path::{Path, PathBuf},
};

use aegis_core::Digest;
use aws_lc_rs::digest::{Context, SHA256};
use nix::{
    poll::{PollFd, PollFlags, PollTimeout, poll},
    sys::socket::{getsockopt, sockopt},
};

/// The largest executable that is hashed.
const MAX_EXECUTABLE_BYTES: u64 = 512 * 1024 * 1024;

/// A connected process.
#[derive(Debug)]
pub struct Peer {
    pid: i32,
    uid: u32,
    gid: u32,
    handle: Option<OwnedFd>,
    started: String,
    executable: FileId,
}

/// Which file an executable is, whatever its name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct FileId {
    device: u64,
    inode: u64,
    modified: (i64, i64),
    size: u64,
}

/// What a process shows, read at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Evidence {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// `None` when the path does not name the running file: deleted, replaced, or mounted over in
    /// a namespace of the process' own making.
    pub(crate) path: Option<PathBuf>,
    pub(crate) launcher: Option<PathBuf>,
    pub(crate) executable: FileId,
}

/// Why a process cannot be examined.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// The kernel does not say who connected.
    #[error("the kernel does not say who connected: {0}")]
    Credentials(nix::Error),
    /// The process is in a namespace that this one cannot see into.
    #[error("the process is not visible from here")]
    Invisible,
    /// It has ended, or another process has its id now.
    #[error("process {0} has ended")]
    Ended(i32),
    /// It runs another executable than when it connected.
    #[error("process {0} runs another executable than when it connected")]
    Changed(i32),
    /// `/proc` cannot be read.
    #[error("cannot read {}: {cause}", path.display())]
    Proc {
        /// Which file.
        path: PathBuf,
        /// What the system says.
        cause: io::Error,
    },
}

fn proc_path(pid: i32, name: &str) -> PathBuf {
    PathBuf::from(format!("/proc/{pid}/{name}"))
}

fn proc_error(path: &Path) -> impl FnOnce(io::Error) -> PeerError {
    let path = path.to_owned();
    move |cause| PeerError::Proc { path, cause }
}

impl FileId {
    fn of(path: &Path) -> io::Result<Self> {
        let metadata = fs::metadata(path)?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            size: metadata.len(),
        })
    }
}

/// The fields of `/proc/<pid>/stat` after the command, whose text could hold anything.
fn stat_fields(pid: i32) -> Result<Vec<String>, PeerError> {
    let path = proc_path(pid, "stat");
    let text = fs::read_to_string(&path).map_err(proc_error(&path))?;
    let (_, rest) = text.rsplit_once(')').ok_or(PeerError::Ended(pid))?;
    Ok(rest.split_whitespace().map(str::to_owned).collect())
}

/// proc(5): field 22, counted from the process id.
fn start_time(pid: i32) -> Result<String, PeerError> {
    stat_fields(pid)?.into_iter().nth(19).ok_or(PeerError::Ended(pid))
}

/// proc(5): field 4.
fn parent(pid: i32) -> Result<i32, PeerError> {
    let fields = stat_fields(pid)?;
    fields.get(1).and_then(|field| field.parse().ok()).ok_or(PeerError::Ended(pid))
}

/// The path of a running executable, if that path names the running file here too.
fn executable_path(pid: i32) -> Option<PathBuf> {
    let link = proc_path(pid, "exe");
    let path = fs::read_link(&link).ok()?;
    let same = FileId::of(&path).ok()? == FileId::of(&link).ok()?;
    same.then_some(path)
}

impl Peer {
    /// Who connected to `socket`.
    ///
    /// # Errors
    /// When the kernel does not say, or the process has already gone.
    pub fn of(socket: &impl AsFd) -> Result<Self, PeerError> {
        let credentials =
            getsockopt(socket, sockopt::PeerCredentials).map_err(PeerError::Credentials)?;
        let pid = credentials.pid();
        if pid <= 0 {
            return Err(PeerError::Invisible);
        }
        let handle = getsockopt(socket, sockopt::PeerPidfd).ok();
        let executable = proc_path(pid, "exe");
        let peer = Self {
            pid,
            uid: credentials.uid(),
            gid: credentials.gid(),
            handle,
            started: start_time(pid)?,
            executable: FileId::of(&executable).map_err(proc_error(&executable))?,
        };
        peer.check_alive()?;
        Ok(peer)
    }

    /// A process known by its id alone, such as the owner of a TCP connection. Weaker than
    /// [`Peer::of`]: whoever calls this must know that the process held the connection a moment ago.
    ///
    /// # Errors
    /// When the process has gone, or cannot be examined.
    pub fn of_process(pid: i32) -> Result<Self, PeerError> {
        let directory = PathBuf::from(format!("/proc/{pid}"));
        let owner = fs::metadata(&directory).map_err(proc_error(&directory))?;
        let executable = proc_path(pid, "exe");
        let peer = Self {
            pid,
            uid: owner.uid(),
            gid: owner.gid(),
            handle: None,
            started: start_time(pid)?,
            executable: FileId::of(&executable).map_err(proc_error(&executable))?,
        };
        peer.check_alive()?;
        Ok(peer)
    }

    /// Its process id, for the log.
    #[must_use]
    pub const fn pid(&self) -> i32 {
        self.pid
    }

    /// Its user when it connected.
    #[must_use]
    pub const fn uid(&self) -> u32 {
        self.uid
    }

    /// The process that connected still lives, so its id is still its own.
    fn check_alive(&self) -> Result<(), PeerError> {
        if let Some(handle) = &self.handle {
            // pidfd_open(2): the handle becomes readable when the process ends.
            let mut fds = [PollFd::new(handle.as_fd(), PollFlags::POLLIN)];
            if poll(&mut fds, PollTimeout::ZERO) != Ok(0) {
                return Err(PeerError::Ended(self.pid));
            }
        }
        if start_time(self.pid)? == self.started { Ok(()) } else { Err(PeerError::Ended(self.pid)) }
    }

    /// What it shows now.
    pub(crate) fn evidence(&self) -> Result<Evidence, PeerError> {
        self.check_alive()?;
        let link = proc_path(self.pid, "exe");
        let executable = FileId::of(&link).map_err(proc_error(&link))?;
        // A process could connect, hand the socket to a child, and become a registered agent.
        if executable != self.executable {
            return Err(PeerError::Changed(self.pid));
        }
        let evidence = Evidence {
            uid: self.uid,
            gid: self.gid,
            path: executable_path(self.pid),
            launcher: self.launcher(),
            executable,
        };
        self.check_alive()?;
        Ok(evidence)
    }

    fn launcher(&self) -> Option<PathBuf> {
        let before = parent(self.pid).ok()?;
        let path = executable_path(before)?;
        // A parent that ended in between has left its child to another.
        (parent(self.pid).ok()? == before).then_some(path)
    }

    /// The SHA-256 digest of its executable, read through the process itself.
    pub(crate) fn executable_digest(&self) -> Result<Digest, PeerError> {
        let link = proc_path(self.pid, "exe");
        let file = File::open(&link).map_err(proc_error(&link))?;
        let mut file = file.take(MAX_EXECUTABLE_BYTES + 1);
        let mut context = Context::new(&SHA256);
        let mut buffer = vec![0_u8; 64 * 1024];
        let mut total = 0_u64;
        loop {
            let read = file.read(&mut buffer).map_err(proc_error(&link))?;
            total += read as u64;
            if total > MAX_EXECUTABLE_BYTES {
                let cause = io::Error::other("the executable is larger than 512 MiB");
                return Err(PeerError::Proc { path: link, cause });
            }
            match buffer.get(..read) {
                Some([]) | None => break,
                Some(bytes) => context.update(bytes),
            }
        }
        let digest: [u8; 32] = context.finish().as_ref().try_into().unwrap_or_default();
        self.check_alive()?;
        Ok(Digest::from_bytes(digest))
    }
}
