//! Other journals' entries in one ledger: whole, once, in order, and verifiable.

use std::ops::Range;

use aegis_audit::{Foreign, ImportError, Journal, Location, Trusted, verify};

use crate::fixture::{Log, draft, fill};

/// The entries of a journal as they are shipped.
async fn shipped(journal: &Journal, range: Range<u64>) -> Vec<Foreign> {
    let mut out = Vec::new();
    for stored in journal.reader().entries(range).await.unwrap() {
        let salt = journal.reader().salt(stored.index).await.unwrap();
        let salt = salt.map_or(Vec::new(), |salt| salt.as_bytes().to_vec());
        out.push(Foreign::check(journal.source(), stored.body, &salt).unwrap());
    }
    out
}

async fn journal(log: &Log, source: &str) -> Journal {
    let options = aegis_audit::Options { source: source.to_owned(), ..log.options() };
    let journal = Journal::open(&log.place(), options).await.unwrap();
    fill(&journal, 9).await;
    journal
}

pub(crate) async fn holds_other_journals(place: &Location, ledger: &Log) {
    let (log, other) = (Log::new(), Log::new());
    let (one, two) = (journal(&log, "one").await, journal(&other, "two").await);
    let holder = Journal::open(place, ledger.options()).await.unwrap();
    assert_eq!(holder.import("one", vec![]).await.unwrap(), 0);
    // Several at once, as many sidecars ship; entries of the ledger's own between them.
    let (first, second, own) = tokio::join!(
        async { holder.import("one", shipped(&one, 0..6).await).await },
        async { holder.import("two", shipped(&two, 0..10).await).await },
        async { holder.append(draft(1)).await.unwrap().await },
    );
    assert_eq!((first.unwrap(), second.unwrap()), (6, 10));
    own.unwrap();
    // What is there already is acknowledged again, and appended once.
    let size = holder.reader().head().await.unwrap().size;
    assert_eq!(holder.import("one", shipped(&one, 2..6).await).await.unwrap(), 6);
    assert_eq!(holder.reader().head().await.unwrap().size, size);
    assert_eq!(holder.import("one", shipped(&one, 4..8).await).await.unwrap(), 8);
    // A gap, and a second version of the same entries.
    let gap = holder.import("one", shipped(&one, 9..10).await).await.unwrap_err();
    assert!(matches!(gap, ImportError::Gap { held: 8, offered: 10, .. }), "{gap}");
    let rewritten = Log::new();
    let rewritten = journal(&rewritten, "one").await;
    for range in [0..3, 8..10] {
        let fork = holder.import("one", shipped(&rewritten, range).await).await.unwrap_err();
        assert!(matches!(fork, ImportError::Fork { .. }), "{fork}");
    }
    assert_eq!(holder.import("one", vec![]).await.unwrap(), 8);
    let own = shipped(&holder, 0..1).await;
    assert!(matches!(holder.import("test", own).await, Err(ImportError::Malformed { .. })));
    // The ledger goes on where it was, and every chain in it verifies.
    holder.close().await.unwrap();
    let holder = Journal::open(place, ledger.options()).await.unwrap();
    assert_eq!(holder.import("one", shipped(&one, 7..10).await).await.unwrap(), 10);
    let note = holder.checkpoint_now().await.unwrap();
    let trusted = Trusted { verifier: Some(holder.verifier().clone()), checkpoint: Some(note) };
    let report = verify::verify(holder.reader(), &trusted, |_, _| {}).await.unwrap();
    assert_eq!((report.sources["one"], report.sources["two"]), (10, 10));
    let salted = holder.reader().entries(0..40).await.unwrap();
    let of_one = salted.iter().find(|entry| entry.source == "one" && entry.sequence == 3).unwrap();
    let salt = holder.reader().salt(of_one.index).await.unwrap();
    assert_eq!(salt, one.reader().salt(2).await.unwrap());
    assert!(salt.is_some());
    for journal in [one, two, rewritten, holder] {
        journal.close().await.unwrap();
    }
}

#[tokio::test]
async fn one_ledger_holds_other_journals() {
    let ledger = Log::new();
    holds_other_journals(&ledger.place(), &ledger).await;
}

#[tokio::test]
async fn only_canonical_entries_of_the_source_are_taken() {
    let log = Log::new();
    let journal = journal(&log, "one").await;
    let body = journal.reader().entry(2).await.unwrap().unwrap().body;
    let text = String::from_utf8(body.clone()).unwrap();
    assert!(Foreign::check("one", body.clone(), &[7; 32]).is_ok());
    let refused = |source: &str, text: String, salt: &[u8]| {
        Foreign::check(source, text.into_bytes(), salt).unwrap_err().to_string()
    };
    assert!(refused("two", text.clone(), &[]).contains("of one"));
    assert!(refused("one", text.clone(), &[1]).contains("salt"));
    assert!(refused("one", text.replacen(':', ": ", 1), &[]).contains("canonical"));
    assert!(refused("one", text.replacen('{', "{\"more\":1,", 1), &[]).contains("unknown field"));
    let twice = text.replacen("\"risk\":120", "\"risk\":120,\"risk\":120", 1);
    assert!(refused("one", twice, &[]).contains("duplicate"));
    assert!(refused("one", "x".repeat(70_000), &[]).contains("70000 bytes"));
    journal.close().await.unwrap();
}
