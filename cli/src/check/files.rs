//! Files and folders that were named on the command line.

use std::{
    fs,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::{Change, Source, git};

/// Every file of these paths, each once, by its name below `root`, or by its whole path.
///
/// # Errors
/// When one is not there, or a folder cannot be read.
pub(super) fn below(root: &Path, paths: &[PathBuf]) -> anyhow::Result<Vec<Change>> {
    let mut found = Vec::new();
    for path in paths {
        let whole = root.join(path);
        let kind = fs::symlink_metadata(&whole)
            .with_context(|| format!("cannot read {}", path.display()))?;
        // Of a file, where the bytes are: its folder without links, its own name.
        if kind.is_dir() {
            folder(&fs::canonicalize(&whole)?, &mut found)?;
        } else {
            let name = whole.file_name().context("a path ends in a name")?;
            let parent = whole.parent().unwrap_or(Path::new("/"));
            found.push(fs::canonicalize(parent)?.join(name));
        }
    }
    found.sort();
    found.dedup();
    let root = fs::canonicalize(root)?;
    let change = |path: PathBuf| {
        let name = path.strip_prefix(&root).unwrap_or(&path).as_os_str().as_bytes().to_vec();
        Change { name, commit: None, source: Source::File(path) }
    };
    Ok(found.into_iter().map(change).collect())
}

/// All files in a folder but git's own. Git is not asked here: what a repository within says that is to be ignored is
/// said by whom it came from.
fn walk(folder: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let unreadable = || format!("cannot read the folder {}", folder.display());
    for entry in fs::read_dir(folder).with_context(unreadable)? {
        let entry = entry.with_context(unreadable)?;
        if entry.file_name() == ".git" {
            continue;
        }
        match entry.file_type().with_context(unreadable)?.is_dir() {
            true => walk(&entry.path(), found)?,
            false => found.push(entry.path()),
        }
    }
    Ok(())
}

/// What is in a folder: what git does not ignore, or all but git's own.
fn folder(folder: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let Some(listed) = git::listed(folder) else { return walk(folder, found) };
    for name in listed {
        let path = folder.join(std::ffi::OsString::from_vec(name));
        match fs::symlink_metadata(&path) {
            // A submodule, or a repository within this one.
            Ok(kind) if kind.is_dir() && path.join(".git").exists() => walk(&path, found)?,
            Ok(kind) if kind.is_dir() => {}
            // One that cannot be looked at is said when it is read.
            Ok(_) => found.push(path),
            // Tracked, and not there.
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(_) => found.push(path),
        }
    }
    Ok(())
}
