//! Queries: each condition selects exactly its entries, pages cover everything once.

use aegis_audit::{Filter, Kind, Outcome, Reader};
use aegis_core::Timestamp;

use crate::fixture::Log;

async fn indices(reader: &Reader, filter: Filter) -> Vec<u64> {
    let page = reader.query(&Filter { limit: Some(1_000), ..filter }).await.unwrap();
    assert_eq!(page.next, None);
    page.entries.iter().map(|entry| entry.index).collect()
}

/// Entry `i` of the fixture has index `i + 1`.
pub(crate) async fn every_condition(reader: &Reader) {
    let newest = |keep: &dyn Fn(u64) -> bool| {
        (0..40).filter(|i| keep(*i)).map(|i| i + 1).rev().collect::<Vec<u64>>()
    };
    let text = |text: &str| Some(text.to_owned());
    let none = Filter::default;
    let agent = text("spiffe://acme.example/ns/shop/sa/bot/agent/a2");
    assert_eq!(indices(reader, Filter { agent, ..none() }).await, newest(&|i| i % 4 == 2));
    let tool = text("write_file");
    assert_eq!(indices(reader, Filter { tool, ..none() }).await, newest(&|i| i % 3 == 0));
    let result = Some(Outcome::Deny);
    assert_eq!(indices(reader, Filter { result, ..none() }).await, newest(&|i| i % 5 == 0));
    let reason = text("policy_denied");
    assert_eq!(indices(reader, Filter { reason, ..none() }).await, newest(&|i| i % 5 == 0));
    let server = text("files");
    assert_eq!(indices(reader, Filter { server, ..none() }).await, newest(&|_| true));
    let kind = Some(Kind::JournalClosed);
    assert_eq!(indices(reader, Filter { kind, ..none() }).await, [41]);
    let decision_id = text("d7");
    assert_eq!(indices(reader, Filter { decision_id, ..none() }).await, [8]);
    let (since, until) =
        (Some(Timestamp::from_secs(1_700_000_010)), Some(Timestamp::from_secs(1_700_000_013)));
    assert_eq!(indices(reader, Filter { since, until, ..none() }).await, [13, 12, 11]);
    let found = Filter { text: text("file:///tmp/17\""), ..none() };
    assert_eq!(indices(reader, found).await, [18]);
    let hostile = Filter { text: text("' OR 1=1 --"), agent: text("' OR '1'='1"), ..none() };
    assert_eq!(indices(reader, hostile).await, Vec::<u64>::new());
    let both = Filter { tool: text("write_file"), result: Some(Outcome::Deny), ..none() };
    assert_eq!(indices(reader, both).await, [31, 16, 1]);
}

pub(crate) async fn pages_cover_everything(reader: &Reader) {
    for oldest_first in [false, true] {
        let mut filter = Filter { oldest_first, limit: Some(9), ..Filter::default() };
        let mut seen = Vec::new();
        loop {
            let page = reader.query(&filter).await.unwrap();
            seen.extend(page.entries.iter().map(|entry| entry.index));
            match page.next {
                Some(next) => filter.after = Some(next),
                None => break,
            }
        }
        let mut all: Vec<u64> = (0..42).collect();
        if !oldest_first {
            all.reverse();
        }
        assert_eq!(seen, all);
    }
}

#[tokio::test]
async fn on_sqlite() {
    let log = Log::with_entries(40).await;
    let reader = log.reader().await;
    every_condition(&reader).await;
    pages_cover_everything(&reader).await;
}
