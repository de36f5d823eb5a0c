//! What a start takes from the ledger: the approvals, and the fold of trust.
//!
//! Approvals are found by their kinds. Trust is a fold over every entry; a snapshot of it that the
//! journal vouches for ([`aegis_audit::snapshot`]) spares reading those that it covers. A snapshot
//! that is refused is reported, and everything is folded anew.

use std::sync::Arc;

use aegis_audit::{
    entry::{Entry, Kind},
    journal::Journal,
    query::Filter,
    read::Stored,
};
use aegis_core::Timestamp;
use parking_lot::Mutex;

use crate::{StartError, approvals::ApprovalBook, trust_book::TrustBook};

/// Entries after which a snapshot is worth a new one: a fraction of a second to read.
pub(crate) const SNAPSHOT_AFTER: u64 = 10_000;

fn parsed(stored: &Stored) -> Result<Entry, StartError> {
    let wrong = |error: aegis_audit::entry::EntryError| StartError::Entry {
        index: stored.index,
        message: error.to_string(),
    };
    stored.entry().map_err(wrong)
}

/// Every approval, from its request on, and the salts of those that are not over.
pub(crate) async fn approvals(
    journal: &Journal,
    now: Timestamp,
) -> Result<ApprovalBook, StartError> {
    let mut steps = Vec::new();
    for kind in [Kind::ApprovalRequested, Kind::ApprovalVote, Kind::ApprovalConsumed] {
        let filter = Filter { kind: Some(kind), ..Filter::default() };
        let take = |stored: Stored| {
            steps.push((stored.index, parsed(&stored)?));
            Ok::<_, StartError>(())
        };
        journal.reader().walk(filter, take).await?;
    }
    steps.sort_by_key(|(index, _)| *index);
    let mut book = ApprovalBook::default();
    for (_, entry) in &steps {
        book.replay(entry);
    }
    for (index, entry) in steps.iter().filter(|(_, e)| e.kind == Kind::ApprovalRequested) {
        if let Some(id) = entry.approval.as_deref().filter(|id| book.is_open(id, now)) {
            book.salt(id, journal.reader().salt(*index).await?);
        }
    }
    Ok(book)
}

/// Folds what the snapshot does not cover; returns how many entries it does cover.
pub(crate) async fn fold_trust(
    journal: &Journal,
    trust: &Arc<Mutex<TrustBook>>,
) -> Result<u64, StartError> {
    let mut kept = 0;
    match journal.snapshot().await {
        Ok(Some(found)) if trust.lock().restore(found.size, &found.state) => kept = found.size,
        Ok(_) => {}
        Err(error) => tracing::warn!(%error, "folding trust over the whole ledger"),
    }
    let reader = journal.reader();
    let size = reader.head().await?.size;
    let mut at = kept;
    while at < size {
        let stored = reader.entries(at..size.min(at + 1_000)).await?;
        if stored.is_empty() {
            break;
        }
        for one in &stored {
            trust.lock().replay(one.index, &parsed(one)?);
            at = one.index + 1;
        }
    }
    trust.lock().caught_up(at);
    Ok(kept)
}

#[cfg(test)]
mod tests {
    use aegis_audit::{Draft, Location, Options, Outcome, Signer};
    use aegis_core::AgentId;
    use serde_json::json;

    use super::*;

    fn success(agent: &AgentId) -> Draft {
        let mut draft = Draft::new(Kind::Outcome, Timestamp::from_secs(7_200), Outcome::Success);
        draft.agent_id = Some(agent.to_string());
        draft.action.insert("kind".into(), json!("tool_call"));
        draft.risk = Some(500);
        draft
    }

    async fn folded(journal: &Journal) -> (u64, TrustBook) {
        let book = Arc::new(Mutex::new(TrustBook::default()));
        let kept = fold_trust(journal, &book).await.unwrap();
        let book = std::mem::take(&mut *book.lock());
        (kept, book)
    }

    #[tokio::test]
    async fn a_snapshot_spares_reading_and_a_refused_one_changes_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let agent: AgentId = "spiffe://acme.example/ns/a/sa/b/agent/x".parse().unwrap();
        let signer = Signer::generate("acme.example/audit").unwrap();
        let place = Location::Sqlite(dir.path().join("ledger.db"));
        let journal = Journal::open(&place, Options::new("test", signer)).await.unwrap();
        let append = || async {
            journal.append(success(&agent)).await.unwrap().await.unwrap();
        };
        append().await;
        let (kept, mut book) = folded(&journal).await;
        assert_eq!((kept, book.as_of()), (0, 2));
        assert_eq!(book.trust(&agent).score().get(), 600);

        // A snapshot that differs from the fold shows that it was used, and that the rest followed.
        book.replay(2, &parsed(&journal.reader().entry(1).await.unwrap().unwrap()).unwrap());
        let doubled = book.to_snapshot().replace("\"as_of\":3", "\"as_of\":2");
        journal.save_snapshot(2, doubled).await.unwrap();
        append().await;
        let (kept, restored) = folded(&journal).await;
        assert_eq!((kept, restored.as_of()), (2, 3));
        let after_three = restored.trust(&agent).score();

        let file = dir.path().join("ledger.db.snapshot");
        let altered = std::fs::read_to_string(&file).unwrap().replace("\\\"a\\\":", "\\\"a\\\":9");
        std::fs::write(&file, altered).unwrap();
        let (kept, anew) = folded(&journal).await;
        assert_eq!((kept, anew.as_of()), (0, 3));
        assert!(anew.trust(&agent).score() < after_three);
        journal.close().await.unwrap();
    }
}
