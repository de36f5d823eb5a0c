//! Queries: each condition selects exactly its entries, pages cover everything once.

use aegis_audit::{Entry, Filter, Kind, Outcome, Reader, Trusted, verify};
use aegis_core::Timestamp;
use sqlx::Connection as _;

use crate::fixture::{Log, fill};

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

/// What a filter selects, without any list: every entry is looked at.
fn selects(filter: &Filter, index: u64, entry: &Entry) -> bool {
    let same = |wanted: &Option<String>, is: Option<&str>| {
        wanted.as_deref().is_none_or(|wanted| Some(wanted) == is)
    };
    same(&filter.agent, entry.agent_id.as_deref())
        && same(&filter.reason, entry.reason.as_deref())
        && same(&filter.tool, entry.action_text("tool"))
        && same(&filter.server, entry.action_text("server"))
        && same(&filter.decision_id, entry.decision_id.as_deref())
        && filter.kind.is_none_or(|kind| kind == entry.kind)
        && filter.result.is_none_or(|result| result == entry.result)
        && filter.since.is_none_or(|since| entry.timestamp >= since)
        && filter.until.is_none_or(|until| entry.timestamp < until)
        && filter.after.is_none_or(
            |after| {
                if filter.oldest_first { index > after } else { index < after }
            },
        )
}

/// Conditions that go by lists, by none, and by both with times.
fn filters() -> Vec<Filter> {
    let text = |text: &str| Some(text.to_owned());
    let at = |seconds: u64| Some(Timestamp::from_secs(1_700_000_000 + seconds));
    let none = Filter::default;
    let agent = || text("spiffe://acme.example/ns/shop/sa/bot/agent/a2");
    vec![
        none(),
        Filter { agent: agent(), ..none() },
        Filter { agent: agent(), tool: text("write_file"), ..none() },
        Filter { agent: agent(), since: at(250), until: at(520), ..none() },
        Filter { agent: text("nobody"), ..none() },
        Filter { decision_id: text("d255"), ..none() },
        Filter { decision_id: text("d590"), ..none() },
        Filter { decision_id: text("d3"), agent: agent(), ..none() },
        Filter { result: Some(Outcome::Deny), ..none() },
        Filter { result: Some(Outcome::Allow), ..none() },
        Filter { result: Some(Outcome::Deny), agent: agent(), after: Some(300), ..none() },
        Filter { kind: Some(Kind::JournalOpened), ..none() },
        Filter { kind: Some(Kind::JournalClosed), result: Some(Outcome::Deny), ..none() },
        Filter { kind: Some(Kind::Decision), after: Some(400), ..none() },
        Filter { since: at(600), ..none() },
        Filter { since: at(9_999_999_999), ..none() },
        Filter { until: at(0), ..none() },
        Filter { since: at(100), until: at(110), ..none() },
        Filter { since: at(254), until: at(258), ..none() },
        Filter { reason: text("policy_denied"), until: at(300), ..none() },
    ]
}

/// Two full tiles, whose entries are listed, and a part of a third.
pub(crate) async fn lists_find_what_a_scan_finds(reader: &Reader) {
    let everything = Filter { oldest_first: true, limit: Some(1_000), ..Filter::default() };
    let all = reader.query(&everything).await.unwrap().entries;
    let all: Vec<(u64, Entry)> =
        all.iter().map(|stored| (stored.index, stored.entry().unwrap())).collect();
    assert_eq!(all.len(), 642);
    for filter in filters() {
        for oldest_first in [false, true] {
            for limit in [1_000, 7] {
                let mut filter = Filter { oldest_first, limit: Some(limit), ..filter.clone() };
                let mut expected: Vec<u64> = all
                    .iter()
                    .filter(|(index, entry)| selects(&filter, *index, entry))
                    .map(|(index, _)| *index)
                    .collect();
                if !oldest_first {
                    expected.reverse();
                }
                let mut found = Vec::new();
                loop {
                    let page = reader.query(&filter).await.unwrap();
                    assert!(page.entries.len() <= limit as usize);
                    found.extend(page.entries.iter().map(|entry| entry.index));
                    match page.next {
                        Some(next) => filter.after = Some(next),
                        None => break,
                    }
                }
                assert_eq!(found, expected, "{filter:?}");
            }
        }
    }
}

#[tokio::test]
async fn lists_find_what_a_scan_finds_on_sqlite() {
    let log = Log::with_entries(640).await;
    lists_find_what_a_scan_finds(&log.reader().await).await;
}

/// Makes a log what version 1 of the schema was: indexes, and no lists.
async fn as_version_1(log: &Log) {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(&log.path);
    let mut conn = sqlx::sqlite::SqliteConnection::connect_with(&options).await.unwrap();
    let sql = "DROP TABLE audit_lookup; DROP TABLE audit_times; \
        CREATE INDEX audit_by_time ON audit_entries (timestamp); \
        CREATE INDEX audit_by_agent ON audit_entries (agent_id); \
        CREATE INDEX audit_by_rare_kind ON audit_entries (kind) \
          WHERE kind NOT IN ('decision', 'server_request', 'outcome'); \
        CREATE INDEX audit_by_rare_result ON audit_entries (result) \
          WHERE result NOT IN ('allow', 'success', 'recorded'); \
        CREATE INDEX audit_by_decision ON audit_entries (decision_id) \
          WHERE decision_id IS NOT NULL; \
        UPDATE audit_head SET schema = 1; PRAGMA user_version = 1";
    sqlx::raw_sql(sql).execute(&mut conn).await.unwrap();
    conn.close().await.unwrap();
}

#[tokio::test]
async fn a_log_of_version_1_is_read_verified_and_brought_up_to_date() {
    let log = Log::with_entries(640).await;
    as_version_1(&log).await;
    let trusted = Trusted { verifier: Some(log.signer.verifier().clone()), checkpoint: None };
    // An auditor's old copy stays as it is.
    let copy = log.reader().await;
    lists_find_what_a_scan_finds(&copy).await;
    verify::verify(&copy, &trusted, |_, _| {}).await.unwrap();
    copy.close().await;
    // Its writer lists what is there and goes on.
    let journal = log.open().await;
    fill(&journal, 200).await;
    journal.close().await.unwrap();
    let reader = log.reader().await;
    let report = verify::verify(&reader, &trusted, |_, _| {}).await.unwrap();
    assert_eq!(report.head.size, 844);
    let agent = Some("spiffe://acme.example/ns/shop/sa/bot/agent/a2".to_owned());
    assert_eq!(indices(&reader, Filter { agent, ..Filter::default() }).await.len(), 210);
}
