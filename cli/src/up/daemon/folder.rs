//! The configuration folder: what is in it, and when it changes.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Every file and folder below a folder. `None` if it cannot be read.
pub(in crate::up) fn files_of(folder: &Path) -> Option<Vec<PathBuf>> {
    stamp(folder).map(|stamps| stamps.into_iter().map(|(path, ..)| path).collect())
}

/// What the folder's files look like: names, sizes and times. `None` if it cannot be read.
pub(super) fn stamp(folder: &Path) -> Option<Vec<(PathBuf, u64, std::time::SystemTime)>> {
    let mut stamps = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).ok()? {
            let entry = entry.ok()?;
            let meta = entry.metadata().ok()?;
            if meta.is_dir() && folders.len() < 256 {
                folders.push(entry.path());
            }
            stamps.push((entry.path(), meta.len(), meta.modified().ok()?));
        }
    }
    stamps.sort();
    Some(stamps)
}

pub(super) fn watch(
    folder: &Path,
    changed: tokio::sync::mpsc::Sender<()>,
) -> notify::Result<notify::RecommendedWatcher> {
    use notify::Watcher as _;
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = changed.try_send(());
        }
    })?;
    watcher.watch(folder, notify::RecursiveMode::Recursive)?;
    Ok(watcher)
}
