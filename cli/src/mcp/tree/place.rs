//! Which of the folders a path names, and putting a file into one as a whole.

use std::{
    fs::File,
    io::Write as _,
    os::fd::{AsFd, OwnedFd},
};

use nix::{
    fcntl::{OFlag, openat, renameat},
    sys::stat::{Mode, fchmod, mkdirat},
    unistd::{UnlinkatFlags, unlinkat},
};

use super::{Name, Slot, TreeError};

/// A part of the tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::mcp) enum Place {
    /// The folder that the agent works in.
    Workspace,
    /// What this agent wants to remember.
    Memory,
    /// The policies that it is governed by.
    Policy,
}

impl Place {
    /// Its name in the tree.
    pub(in crate::mcp) const fn as_str(self) -> &'static str {
        match self {
            Self::Workspace => "/workspace",
            Self::Memory => "/mem",
            Self::Policy => "/policy",
        }
    }

    /// The place that a path names, and the name there.
    pub(in crate::mcp) fn of(path: &str) -> Result<(Self, Name), TreeError> {
        if path.is_empty() {
            return Err(TreeError::Outside);
        }
        if !path.starts_with('/') {
            return Ok((Self::Workspace, Name::new(path)?));
        }
        for place in [Self::Workspace, Self::Memory, Self::Policy] {
            let rest = path.strip_prefix(place.as_str());
            if let Some(rest) = rest.filter(|rest| rest.is_empty() || rest.starts_with('/')) {
                return Ok((place, Name::new(rest)?));
            }
        }
        Err(TreeError::Outside)
    }
}

/// Writes beside the file and puts the new one in its place: a reader sees the old or the new, and a link that
/// was put there meanwhile is replaced and not followed.
pub(super) fn put(slot: &Slot, content: &[u8]) -> Result<(), TreeError> {
    let made = folders(slot)?;
    let folder = made.as_ref().unwrap_or(&slot.folder);
    let beside = format!(".aegis-{}", hex::encode(rand::random::<[u8; 8]>()));
    let written = fill(folder, &beside, slot.mode, content)
        .and_then(|()| Ok(renameat(folder, beside.as_str(), folder, slot.name.as_str())?));
    if written.is_err() {
        let _ = unlinkat(folder, beside.as_str(), UnlinkatFlags::NoRemoveDir);
    }
    written
}

/// Makes what is missing on the way, one folder after the other, none of them through a link.
fn folders(slot: &Slot) -> Result<Option<OwnedFd>, TreeError> {
    let mut made: Option<OwnedFd> = None;
    for name in &slot.missing {
        let within = made.as_ref().unwrap_or(&slot.folder);
        mkdirat(within, name.as_str(), Mode::from_bits_truncate(0o777))?;
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        made = Some(openat(within, name.as_str(), flags, Mode::empty())?);
    }
    Ok(made)
}

fn fill(
    folder: &impl AsFd,
    name: &str,
    mode: Option<Mode>,
    content: &[u8],
) -> Result<(), TreeError> {
    let flags =
        OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    let handle = openat(folder, name, flags, Mode::from_bits_truncate(0o666))?;
    if let Some(mode) = mode {
        fchmod(&handle, mode)?;
    }
    let mut file = File::from(handle);
    file.write_all(content)?;
    Ok(())
}
