//! A full disk: appends fail, nothing is half written, and they work again when there is room.

use std::path::Path;
use std::process::Command;

use aegis_audit::{AppendError, Durability, Journal, Location, StoreError, Trusted, verify};

use crate::fixture::{Log, draft};

/// A tiny file system in a mount of its own; it goes away with the test.
struct Tiny<'a>(&'a Path);

impl<'a> Tiny<'a> {
    fn mount(at: &'a Path) -> Option<Self> {
        std::fs::create_dir_all(at).unwrap();
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs"])
            .arg(at)
            .output();
        mounted.is_ok_and(|out| out.status.success()).then_some(Self(at))
    }
}

impl Drop for Tiny<'_> {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0).output();
    }
}

#[tokio::test]
async fn a_full_disk_fails_appends_until_there_is_room() {
    let log = Log::new();
    let folder = log.dir.path().join("tiny");
    let Some(_tiny) = Tiny::mount(&folder) else {
        assert!(std::env::var_os("CI").is_none(), "this test must be able to mount a tmpfs");
        eprintln!("skipped: only root can mount a tiny file system to fill");
        return;
    };
    let ballast = folder.join("ballast");
    std::fs::write(&ballast, vec![0; 300 * 1024]).unwrap();
    let path = folder.join("audit.db");
    let place = Location::Sqlite(path.clone());
    let journal = Journal::open(&place, log.options()).await.unwrap();
    let mut kept = Vec::new();
    let error = loop {
        match journal.append(draft(kept.len() as u64)).await.unwrap().await {
            Ok(committed) => kept.push(committed),
            Err(error) => break error,
        }
        assert!(kept.len() < 10_000, "the disk never filled up");
    };
    let AppendError::Store(error) = error else { panic!("{error}") };
    assert!(matches!(*error, StoreError::DiskFull { .. }), "{error}");
    assert!(journal.append(draft(1)).await.unwrap().await.is_err(), "it is still full");
    for i in 0..3 {
        journal.record(draft(i), Durability::Buffered).await.unwrap();
    }
    assert!(journal.append(draft(1)).await.unwrap().await.is_err(), "and still");
    assert_eq!(journal.statistics().dropped, 3, "lost buffered entries are counted");

    std::fs::remove_file(&ballast).unwrap();
    let next = journal.append(draft(7)).await.unwrap().await.unwrap();
    assert_eq!(next.index, kept.last().unwrap().index + 2, "a gap entry, then this one");
    let gap = journal.reader().entry(next.index - 1).await.unwrap().unwrap().entry().unwrap();
    assert_eq!((gap.kind, gap.detail["lost"].clone()), (aegis_audit::Kind::Gap, 3.into()));
    journal.checkpoint_now().await.unwrap();
    let report = verify::verify(journal.reader(), &Trusted::default(), |_, _| {}).await.unwrap();
    assert_eq!(report.head.size, next.index + 1);
    for committed in kept {
        let stored = journal.reader().entry(committed.index).await.unwrap().unwrap();
        assert_eq!(stored.leaf, committed.leaf);
    }
    journal.close().await.unwrap();
}

#[tokio::test]
async fn a_folder_that_does_not_exist_is_named() {
    let log = Log::new();
    let place = Location::Sqlite(log.dir.path().join("absent/audit.db"));
    let error = Journal::open(&place, log.options()).await.unwrap_err();
    assert!(error.to_string().contains("absent/audit.db"), "{error}");
}
