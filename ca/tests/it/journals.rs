//! What a replica of the cluster's CA records: a journal of its own for each start, none lost when
//! the next one begins.

use std::{path::Path, sync::Arc, time::Duration};

use aegis_audit::{Entry, Kind, Location, Reader};
use aegis_ca::{IdentityEvent, Recorder as _, Subject, kubernetes::Journals};
use aegis_identity::system_clock;
use tempfile::tempdir;

use crate::fixture::{AGENT, soon};

const OWNER: &str = "spiffe://acme.example/aegis/ca";

async fn journals(folder: &Path) -> Journals {
    Journals::open(folder, OWNER.parse().unwrap(), "aegis-ca-0", system_clock()).await.unwrap()
}

fn event(number: u32) -> IdentityEvent {
    let subject = Subject::Id(AGENT.parse().unwrap());
    IdentityEvent::Revoked { subject, reason: number.to_string() }
}

/// Every entry in a folder by source, in the order of its chain.
async fn recorded(folder: &Path) -> Vec<Vec<Entry>> {
    let mut all = Vec::new();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|ending| ending == "db") {
            let reader = Reader::open(&Location::Sqlite(path)).await.unwrap();
            let stored = reader.entries(0..10_000).await.unwrap();
            all.push(stored.iter().map(|entry| entry.entry().unwrap()).collect());
        }
    }
    all
}

#[tokio::test]
async fn each_start_has_a_source_that_was_never_used() {
    let folder = tempdir().unwrap();
    let mut sources = Vec::new();
    for start in 0..3 {
        let journals = journals(folder.path()).await;
        assert_eq!(journals.left(), start);
        journals.record(&event(0)).await.unwrap();
        sources.push(journals.current().source().to_owned());
        journals.close().await;
    }
    sources.sort();
    sources.dedup();
    assert_eq!(sources.len(), 3);
    for source in &sources {
        let incarnation =
            source.strip_prefix("spiffe://acme.example/aegis/ca#aegis-ca-0-").unwrap();
        // What the ledger takes as the name of an incarnation.
        assert!(incarnation.bytes().all(|b| b.is_ascii_alphanumeric()), "{incarnation}");
    }
    let all = recorded(folder.path()).await;
    assert_eq!(all.len(), 3);
    for journal in all {
        let kinds: Vec<_> = journal.iter().map(|entry| entry.kind).collect();
        assert_eq!(kinds, [Kind::JournalOpened, Kind::IdentityRevoked, Kind::JournalClosed]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_when_the_next_journal_begins() {
    let folder = tempdir().unwrap();
    let journals = Arc::new(journals(folder.path()).await);
    assert!(!journals.begin_anew(10).await.unwrap());
    let recording: Vec<_> = (0..4)
        .map(|part| {
            let journals = Arc::clone(&journals);
            tokio::spawn(async move {
                for number in 0..100 {
                    journals.record(&event(part * 100 + number)).await.unwrap();
                }
            })
        })
        .collect();
    let mut begun = 0;
    while !recording.iter().all(tokio::task::JoinHandle::is_finished) {
        begun += usize::from(journals.begin_anew(20).await.unwrap());
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    for part in recording {
        soon(part).await.unwrap();
    }
    journals.close().await;
    assert!(begun > 1, "{begun}");
    let all = recorded(folder.path()).await;
    assert_eq!(all.len(), begun + 1);
    let mut numbers: Vec<u32> = all
        .iter()
        .flatten()
        .filter(|entry| entry.kind == Kind::IdentityRevoked)
        .map(|entry| entry.detail["reason"].as_str().unwrap().parse().unwrap())
        .collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..400).collect::<Vec<_>>(), "each once");
    for journal in &all {
        assert_eq!(journal.last().unwrap().kind, Kind::JournalClosed);
    }
}
