//! Somebody else opens the database while the journal writes, and leaves again. SQLite's last connection to leave
//! deletes the write-ahead log, and it knows of the others by locks that a process loses when it closes any
//! descriptor of the file (fcntl(2), "record locks").

use std::process::Command;
use std::time::{Duration, Instant};

use aegis_audit::Reader;

use crate::fixture::{Log, beside, draft};

/// What the `sqlite3` program does too.
const COUNT: &str = "
import sqlite3, sys
database = sqlite3.connect(sys.argv[1])
print(database.execute('SELECT count(*) FROM audit_entries').fetchone()[0])
database.close()
";

/// Waits until another process that comes, looks, and leaves sees so many entries.
fn sees(log: &Log, entries: u64) {
    let until = Instant::now() + Duration::from_secs(10);
    while counted(log) != entries {
        assert!(Instant::now() < until, "the database never had {entries} entries");
    }
}

fn counted(log: &Log) -> u64 {
    let counted = Command::new("python3").args(["-c", COUNT]).arg(&log.path).output().unwrap();
    assert!(counted.status.success(), "{}", String::from_utf8_lossy(&counted.stderr));
    String::from_utf8(counted.stdout).unwrap().trim().parse().unwrap()
}

#[tokio::test]
async fn a_stranger_who_opens_and_leaves_the_database_takes_nothing_with_him() {
    let log = Log::new();
    let journal = log.open().await;
    journal.append(draft(1)).await.unwrap().await.unwrap();
    // This process looks at the file by itself too.
    Reader::open(&log.place()).await.unwrap().close().await;
    sees(&log, 2);
    assert!(beside(&log.path, "-wal").exists(), "the write-ahead log stays");
    journal.append(draft(2)).await.unwrap().await.unwrap();
    // The stranger's leaving took nothing of what came after it.
    sees(&log, 3);
    journal.close().await.unwrap();
}
