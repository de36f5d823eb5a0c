//! The tree of files that tools see: `/workspace`, `/mem`, `/policy`, and nothing else.
//!
//! A name becomes a handle before anything is judged: resolved by the kernel beneath its folder (`openat2`),
//! through links that stay within, to the file that is really meant. What is judged is where that handle is, and what
//! happens afterwards happens to that handle, so that whoever swaps a folder for a link in between changes nothing.
//! Refused: `..`, paths of the machine, control characters, links that lead out, and everything that is
//! neither a plain file nor a folder.

mod place;

use std::{
    fs::File,
    io::{self, Read as _},
    os::fd::{AsFd, AsRawFd as _, OwnedFd},
    path::Path,
};

use nix::{
    errno::Errno,
    fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::stat::{FileStat, Mode, SFlag, fstat, fstatat},
};

pub(super) use place::Place;

/// The most of a file that is read or written. Bytes.
pub(super) const MAX_FILE: usize = 512 << 10;
/// The most entries of a folder that are listed.
const MAX_ENTRIES: usize = 2_000;
/// The longest name. PATH_MAX of Linux.
const MAX_PATH: usize = 4096;

/// Why a name leads to nothing that may be used. Content is never quoted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum TreeError {
    /// Text that names nothing in the tree.
    #[error(
        "a path is one beneath /workspace, /mem or /policy, or relative to /workspace, without `..` and control characters"
    )]
    Outside,
    /// A link that leads out, or one into the kernel's own files.
    #[error("the path leads out of its folder by a symbolic link, which is never followed")]
    Escape,
    /// A device, a socket, a pipe.
    #[error("only plain files and folders can be used")]
    Special,
    /// Something else than is needed is there.
    #[error("the path names {0}")]
    Kind(&'static str),
    /// It is there for reading alone.
    #[error("what is beneath /policy can only be read")]
    ReadOnly,
    /// Nothing is there.
    #[error("there is no such file or folder")]
    Missing,
    /// It moved between decision and use.
    #[error("the path led elsewhere by the time that it was decided on; try again")]
    Moved,
    /// Too large.
    #[error("the file is larger than {} KiB; use a command to work with a part of it", MAX_FILE >> 10)]
    TooLarge,
    /// Not text.
    #[error("the file is not UTF-8 text")]
    NotText,
    /// The operating system refuses.
    #[error("the operating system says: {0}")]
    System(Errno),
}

impl TreeError {
    /// Whether the tree itself refuses, whatever a policy says.
    pub(super) const fn is_refusal(&self) -> bool {
        matches!(self, Self::Outside | Self::Escape | Self::Special | Self::ReadOnly)
    }
}

impl From<Errno> for TreeError {
    fn from(errno: Errno) -> Self {
        match errno {
            Errno::ENOENT => Self::Missing,
            // `openat2` says so where a path would leave its folder; an endless or magic link is no better.
            Errno::EXDEV | Errno::ELOOP => Self::Escape,
            Errno::ENOTDIR => Self::Kind("a file where a folder must be"),
            Errno::EISDIR => Self::Kind("a folder where a file must be"),
            other => Self::System(other),
        }
    }
}

impl From<io::Error> for TreeError {
    fn from(error: io::Error) -> Self {
        Errno::from_raw(error.raw_os_error().unwrap_or_default()).into()
    }
}

/// What a name is relative to its folder, in its one spelling: segments without `.` and `..`; the folder itself is
/// empty.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Name(Vec<String>);

impl Name {
    /// A name out of text without a leading slash.
    pub(super) fn new(text: &str) -> Result<Self, TreeError> {
        if text.len() > MAX_PATH || text.chars().any(char::is_control) {
            return Err(TreeError::Outside);
        }
        let segments: Vec<&str> =
            text.split('/').filter(|segment| !matches!(*segment, "" | ".")).collect();
        if segments.contains(&"..") {
            return Err(TreeError::Outside);
        }
        Ok(Self(segments.into_iter().map(str::to_owned).collect()))
    }

    /// A name that is told from there.
    pub(super) fn then(&self, text: &str) -> Result<Self, TreeError> {
        let Self(more) = Self::new(text)?;
        Ok(Self(self.0.iter().cloned().chain(more).collect()))
    }

    /// Its segments.
    pub(super) fn segments(&self) -> &[String] {
        &self.0
    }

    fn text(&self) -> String {
        if self.0.is_empty() { ".".into() } else { self.0.join("/") }
    }
}

/// A folder that names are resolved in.
#[derive(Debug)]
pub(super) struct Root {
    handle: OwnedFd,
    /// How policies see what is beneath: by this name, or where it is on the machine.
    shown: Option<&'static str>,
}

/// Something that is there: what is judged and what is used are one.
#[derive(Debug)]
pub(super) struct Found {
    handle: OwnedFd,
    at: String,
    /// As policies see it.
    pub(super) judged: String,
    /// Whether it is a folder; otherwise it is a plain file.
    pub(super) is_folder: bool,
}

/// Where a file is to be written, whether or not one is there.
#[derive(Debug)]
pub(super) struct Slot {
    /// The nearest folder that is there.
    folder: OwnedFd,
    at: String,
    /// Folders that are to be made in it.
    missing: Vec<String>,
    name: String,
    mode: Option<Mode>,
    /// As policies see it.
    pub(super) judged: String,
}

impl Root {
    /// The folder at `path`, which policies see by its name `shown`, or else where it is.
    pub(super) fn open(path: &Path, shown: Option<&'static str>) -> Result<Self, TreeError> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let root = Self { handle: open(path, flags, Mode::empty())?, shown };
        // Without openat2 (Linux 5.6) nothing here is safe.
        root.beneath(".", OFlag::O_DIRECTORY, ResolveFlag::empty())?;
        Ok(root)
    }

    /// Where it is on the machine.
    pub(super) fn at(&self) -> Result<String, TreeError> {
        location(&self.handle)
    }

    /// How policies see a name that could not be resolved.
    pub(super) fn judged(&self, name: &Name) -> Result<String, TreeError> {
        let whole = join(&self.at()?, &name.0);
        self.seen(&whole)
    }

    /// Resolves a name to what is there.
    pub(super) fn find(&self, name: &Name) -> Result<Found, TreeError> {
        let handle = self.beneath(&name.text(), OFlag::empty(), ResolveFlag::empty())?;
        let kind = kind(&fstat(&handle)?);
        let is_folder = kind == SFlag::S_IFDIR;
        if !is_folder && kind != SFlag::S_IFREG {
            return Err(TreeError::Special);
        }
        let at = location(&handle)?;
        Ok(Found { judged: self.seen(&at)?, at, handle, is_folder })
    }

    /// Resolves a name to where a file is to be written.
    pub(super) fn slot(&self, name: &Name) -> Result<Slot, TreeError> {
        match self.find(name) {
            Ok(found) => self.existing(&found),
            Err(TreeError::Missing) => self.vacant(name),
            Err(other) => Err(other),
        }
    }

    /// The place of a file that is there, by the folder that it really is in.
    fn existing(&self, found: &Found) -> Result<Slot, TreeError> {
        if found.is_folder {
            return Err(TreeError::Kind("a folder"));
        }
        let root = self.at()?;
        let beneath = found.at.strip_prefix(&root).ok_or(TreeError::Moved)?;
        let (parents, name) = beneath.rsplit_once('/').ok_or(TreeError::Moved)?;
        let parents = Name::new(parents)?;
        let folder =
            self.beneath(&parents.text(), OFlag::O_DIRECTORY, ResolveFlag::RESOLVE_NO_SYMLINKS)?;
        let (there, meant) =
            (fstatat(&folder, name, AtFlags::AT_SYMLINK_NOFOLLOW)?, fstat(&found.handle)?);
        if (there.st_dev, there.st_ino) != (meant.st_dev, meant.st_ino) {
            return Err(TreeError::Moved);
        }
        Ok(Slot {
            at: location(&folder)?,
            folder,
            missing: Vec::new(),
            name: name.to_owned(),
            mode: Some(Mode::from_bits_truncate(meant.st_mode & 0o777)),
            judged: found.judged.clone(),
        })
    }

    /// A place where nothing is: its nearest folder, and what is missing on the way.
    fn vacant(&self, name: &Name) -> Result<Slot, TreeError> {
        let (last, parents) = name.0.split_last().ok_or(TreeError::Kind("a folder"))?;
        let mut there = parents.len();
        let folder = loop {
            let (known, _) = parents.split_at_checked(there).unwrap_or_default();
            let known = Name(known.to_vec()).text();
            match self.beneath(&known, OFlag::O_DIRECTORY, ResolveFlag::empty()) {
                Ok(folder) => break folder,
                Err(TreeError::Missing) if there > 0 => there -= 1,
                Err(other) => return Err(other),
            }
        };
        let missing = parents.get(there..).unwrap_or_default().to_vec();
        // Something that resolves to nothing and is there is a dangling link: where it leads is not judged.
        let next = missing.first().unwrap_or(last);
        match fstatat(&folder, next.as_str(), AtFlags::AT_SYMLINK_NOFOLLOW) {
            Err(Errno::ENOENT) => {}
            Ok(_) => return Err(TreeError::Escape),
            Err(other) => return Err(other.into()),
        }
        let at = location(&folder)?;
        let mut rest = missing.clone();
        rest.push(last.clone());
        let judged = self.seen(&join(&at, &rest))?;
        Ok(Slot { folder, at, missing, name: last.clone(), mode: None, judged })
    }

    /// A handle on what a name leads to, by the kernel's own walk, which does not leave the folder.
    fn beneath(&self, name: &str, flags: OFlag, more: ResolveFlag) -> Result<OwnedFd, TreeError> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_CLOEXEC | flags)
            .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_MAGICLINKS | more);
        let mut again = 0;
        loop {
            match openat2(&self.handle, name, how) {
                // Something was renamed during the walk.
                Err(Errno::EAGAIN) if again < 8 => again += 1,
                result => return Ok(result?),
            }
        }
    }

    /// How policies see what is at that place of the machine.
    fn seen(&self, at: &str) -> Result<String, TreeError> {
        let root = self.at()?;
        let beneath = at.strip_prefix(&root).ok_or(TreeError::Escape)?;
        if !beneath.is_empty() && !beneath.starts_with('/') {
            return Err(TreeError::Escape);
        }
        Ok(self.shown.map_or_else(|| at.to_owned(), |shown| format!("{shown}{beneath}")))
    }
}

impl Found {
    /// The text of the file that was judged.
    pub(super) fn read(&self) -> Result<String, TreeError> {
        self.check()?;
        if self.is_folder {
            return Err(TreeError::Kind("a folder; list it"));
        }
        text(File::open(itself(&self.handle))?)
    }

    /// The entries of the folder that was judged, sorted; folders end with `/`, links with `@`.
    pub(super) fn list(&self) -> Result<Vec<String>, TreeError> {
        self.check()?;
        if !self.is_folder {
            return Err(TreeError::Kind("a file; read it"));
        }
        let mut entries = Vec::new();
        for entry in std::fs::read_dir(itself(&self.handle))? {
            let entry = entry?;
            let kind = entry.file_type()?;
            let mark = if kind.is_dir() {
                "/"
            } else if kind.is_symlink() {
                "@"
            } else {
                ""
            };
            entries.push(format!("{}{mark}", entry.file_name().to_string_lossy()));
            if entries.len() > MAX_ENTRIES {
                return Err(TreeError::Kind("a folder with too many entries; use a command"));
            }
        }
        entries.sort();
        Ok(entries)
    }

    /// A path that leads to this very folder, whatever becomes of its names.
    pub(super) fn itself(&self) -> Result<String, TreeError> {
        self.check()?;
        Ok(itself(&self.handle))
    }

    /// Where it is on the machine.
    pub(super) fn at(&self) -> &str {
        &self.at
    }

    /// Whether it is still where it was judged to be.
    fn check(&self) -> Result<(), TreeError> {
        if location(&self.handle)? == self.at { Ok(()) } else { Err(TreeError::Moved) }
    }
}

impl Slot {
    /// The text of the file that is there.
    pub(super) fn read(&self) -> Result<String, TreeError> {
        self.check()?;
        if self.mode.is_none() {
            return Err(TreeError::Missing);
        }
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let handle = nix::fcntl::openat(&self.folder, self.name.as_str(), flags, Mode::empty())?;
        if kind(&fstat(&handle)?) != SFlag::S_IFREG {
            return Err(TreeError::Special);
        }
        text(File::from(handle))
    }

    /// Puts a file with that content there, whole or not at all.
    pub(super) fn write(&self, content: &[u8]) -> Result<(), TreeError> {
        if content.len() > MAX_FILE {
            return Err(TreeError::TooLarge);
        }
        self.check()?;
        place::put(self, content)
    }

    /// Whether its folder is still where it was judged to be.
    fn check(&self) -> Result<(), TreeError> {
        if location(&self.folder)? == self.at { Ok(()) } else { Err(TreeError::Moved) }
    }
}

fn text(file: File) -> Result<String, TreeError> {
    let mut bytes = Vec::new();
    file.take(MAX_FILE as u64 + 1).read_to_end(&mut bytes)?;
    if bytes.len() > MAX_FILE {
        return Err(TreeError::TooLarge);
    }
    String::from_utf8(bytes).map_err(|_| TreeError::NotText)
}

fn kind(stat: &FileStat) -> SFlag {
    SFlag::from_bits_truncate(stat.st_mode & SFlag::S_IFMT.bits())
}

/// A path that leads to what a handle holds (proc_pid_fd(5)).
fn itself(handle: &impl AsFd) -> String {
    format!("/proc/self/fd/{}", handle.as_fd().as_raw_fd())
}

/// Where what a handle holds is now.
fn location(handle: &impl AsFd) -> Result<String, TreeError> {
    let at = std::fs::read_link(itself(handle))?;
    let at = at.into_os_string().into_string().map_err(|_| TreeError::Outside)?;
    // What was removed is nowhere, and what is nowhere was not judged.
    if !at.starts_with('/') || at.ends_with(" (deleted)") {
        return Err(TreeError::Moved);
    }
    Ok(at)
}

fn join(folder: &str, segments: &[String]) -> String {
    segments.iter().fold(folder.to_owned(), |path, segment| format!("{path}/{segment}"))
}

#[cfg(test)]
mod tests;
