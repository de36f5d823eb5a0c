//! `kill -9` under load: whatever was acknowledged is there afterwards, and the log verifies.
//!
//! The child is this same test binary, which runs [`the_child_appends`] when the environment names
//! a database, and prints each acknowledged entry.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::time::Duration;

use aegis_audit::{Journal, Location, Signer, Trusted, verify};

use crate::fixture::{Log, ORIGIN, draft};

const DATABASE: &str = "AEGIS_AUDIT_CRASH_DATABASE";
const ROUNDS: u64 = 50;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_child_appends() {
    let Some(path) = std::env::var_os(DATABASE) else { return };
    let signer = Signer::from_seed(ORIGIN, &[9; 32]).unwrap();
    let mut options = aegis_audit::Options::new("test", signer);
    options.checkpoint_interval = Duration::from_millis(5);
    let place = Location::Sqlite(path.into());
    let journal = Journal::open(&place, options).await.unwrap();
    let mut appenders = Vec::new();
    for worker in 0..8 {
        let journal = journal.clone();
        appenders.push(tokio::spawn(async move {
            for i in 0.. {
                let done =
                    journal.append(draft(worker * 1_000_000 + i)).await.unwrap().await.unwrap();
                let line = format!("acknowledged {} {}\n", done.index, done.leaf);
                // One write a line: what the parent reads is whole or absent.
                std::io::stdout().lock().write_all(line.as_bytes()).unwrap();
            }
        }));
    }
    for appender in appenders {
        appender.await.unwrap();
    }
}

/// Starts a child, kills it after `lines` acknowledgements and a moment that differs each round, and
/// collects everything it acknowledged.
fn round(log: &Log, number: u64, acknowledged: &mut BTreeMap<u64, String>) {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "crash::the_child_appends", "--nocapture", "--test-threads=1"])
        .env(DATABASE, &log.path)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).split(b'\n');
    let mut seen = 0;
    let mut take = |line: Vec<u8>, acknowledged: &mut BTreeMap<u64, String>| {
        let line = String::from_utf8(line).unwrap();
        if let Some(rest) = line.split("acknowledged ").nth(1)
            && let Some((index, leaf)) = rest.split_once(' ')
            && leaf.len() == "sha256:".len() + 64
        {
            let again = acknowledged.insert(index.parse().unwrap(), leaf.to_owned());
            assert_eq!(again, None, "index {index} was acknowledged twice");
            seen += 1;
        }
        seen
    };
    let enough = 1 + number * 37 % 400;
    for line in lines.by_ref() {
        if take(line.unwrap(), acknowledged) >= enough {
            break;
        }
    }
    std::thread::sleep(Duration::from_micros(number * 7_919 % 15_000));
    child.kill().unwrap();
    for line in lines {
        take(line.unwrap(), acknowledged);
    }
    let out = child.wait_with_output().unwrap();
    assert!(seen >= enough, "the child ended early: {}", String::from_utf8_lossy(&out.stderr));
}

#[tokio::test]
async fn killed_writers_lose_no_acknowledged_entry() {
    let log = Log::new();
    let mut acknowledged = BTreeMap::new();
    for number in 0..ROUNDS {
        round(&log, number, &mut acknowledged);
    }
    let kept = std::fs::read_to_string(log.saved_checkpoint()).unwrap();
    // As a crash left it: write-ahead log and all.
    let trusted = Trusted { verifier: Some(log.signer.verifier().clone()), checkpoint: Some(kept) };
    let reader = log.reader().await;
    let report = verify::verify(&reader, &trusted, |_, _| {}).await.unwrap();
    assert_eq!(report.gaps.len() as u64, ROUNDS - 1, "each restart tells of a missing close");
    assert!(acknowledged.len() as u64 > ROUNDS);
    for (index, leaf) in &acknowledged {
        let stored = reader.entry(*index).await.unwrap();
        let stored = stored.unwrap_or_else(|| panic!("acknowledged entry {index} is lost"));
        assert_eq!(stored.leaf.to_string(), *leaf, "entry {index}");
    }
    reader.close().await;
    let journal = log.open().await;
    journal.close().await.unwrap();
}
