//! Finding entries: by agent, kind, result, reason, tool, server, time, decision and text, in pages.

use aegis_core::Timestamp;
use sqlx::AssertSqlSafe;

use crate::entry::{Kind, Outcome};
use crate::lists;
use crate::read::{Pool, Reader, Stored, StoredRow, on, select_entries};
use crate::store::{StoreError, micros, signed};

/// The most entries in a page.
pub const MAX_PAGE: u32 = 1_000;

/// Which entries. Every condition that is set must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    /// Of this agent.
    pub agent: Option<String>,
    /// Of this kind.
    pub kind: Option<Kind>,
    /// With this result.
    pub result: Option<Outcome>,
    /// With this reason.
    pub reason: Option<String>,
    /// About this tool.
    pub tool: Option<String>,
    /// About this server.
    pub server: Option<String>,
    /// Of this decision.
    pub decision_id: Option<String>,
    /// At or after.
    pub since: Option<Timestamp>,
    /// Before.
    pub until: Option<Timestamp>,
    /// With this text somewhere in their canonical bytes; case counts.
    pub text: Option<String>,
    /// Oldest first instead of newest first.
    pub oldest_first: bool,
    /// Continue after this index: [`Page::next`] of the page before.
    pub after: Option<u64>,
    /// How many: 100 unless told, at most [`MAX_PAGE`].
    pub limit: Option<u32>,
}

/// A page of entries.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page {
    /// The entries.
    pub entries: Vec<Stored>,
    /// What to put into [`Filter::after`] for the next page; `None` when this is the last.
    pub next: Option<u64>,
}

enum Value {
    Number(i64),
    Text(String),
    Bytes(Vec<u8>),
}

/// Conditions and the values bound to them. No value ever becomes part of the SQL text.
#[derive(Default)]
struct Conditions {
    sql: String,
    values: Vec<Value>,
}

impl Conditions {
    fn add(&mut self, before: &str, value: Option<Value>, after: &str) {
        let Some(value) = value else { return };
        self.values.push(value);
        let at = self.values.len();
        self.also(&format!("{before} ${at}{after}"));
    }

    fn also(&mut self, condition: &str) {
        self.sql.push_str(if self.sql.is_empty() { "WHERE " } else { " AND " });
        self.sql.push_str(condition);
    }
}

/// Where entries are looked for; one part after the other makes the whole log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Part {
    /// Everywhere.
    Whole,
    /// By the lists, which name what is below this index.
    Listed(i64),
    /// From this index on, where nothing is listed.
    Rest(i64),
}

/// The listed entries with a value: the lists come first, and their order is that of the entries.
const SELECT_LISTED: &str = "SELECT e.idx, s.name, e.sequence, e.leaf, e.body \
    FROM audit_lookup l CROSS JOIN audit_entries e ON e.idx = l.idx \
    CROSS JOIN audit_sources s ON s.id = e.source";

/// `SELECT … WHERE … ORDER BY …` for a part, without its limit.
fn statement(filter: &Filter, part: Part, postgres: bool) -> Conditions {
    let list = match part {
        Part::Listed(_) => lists::chosen(filter),
        Part::Whole | Part::Rest(_) => None,
    };
    let at = if list.is_some() { "l.idx" } else { "e.idx" };
    let select = if list.is_some() { SELECT_LISTED } else { select_entries!("") };
    let mut all = conditions(filter, at, postgres);
    if let Some((field, value)) = list {
        all.add("l.field =", Some(Value::Number(field as i64)), "");
        all.add("l.value =", Some(Value::Text(value)), "");
    }
    match part {
        Part::Whole => {}
        Part::Listed(to) => {
            all.add(&format!("{at} <"), Some(Value::Number(to)), "");
            let time = |value: Option<Timestamp>| value.map(|time| Value::Number(micros(time)));
            // Tiles whose entries are all too old, or all too new, are passed over.
            let since = format!("{at} >= ifnull((SELECT min(tile) FROM audit_times WHERE last >=");
            all.add(&since, time(filter.since), format!(") * 256, {})", i64::MAX).as_str());
            let until =
                format!("{at} < ifnull((SELECT max(tile) + 1 FROM audit_times WHERE first <");
            all.add(&until, time(filter.until), ") * 256, 0)");
        }
        Part::Rest(from) => all.add(&format!("{at} >="), Some(Value::Number(from)), ""),
    }
    let order = if filter.oldest_first { "ASC" } else { "DESC" };
    Conditions { sql: format!("{select} {} ORDER BY {at} {order}", all.sql), values: all.values }
}

fn conditions(filter: &Filter, at: &str, postgres: bool) -> Conditions {
    let text = |value: &Option<String>| value.clone().map(Value::Text);
    let time = |value: Option<Timestamp>| value.map(|time| Value::Number(micros(time)));
    let mut all = Conditions::default();
    // A row that the head does not cover was never committed by a writer: somebody else put it there.
    all.also(&format!("{at} >= 0 AND {at} < (SELECT size FROM audit_head WHERE id = 1)"));
    all.add("e.agent_id =", text(&filter.agent), "");
    all.add("e.kind =", filter.kind.map(|kind| Value::Text(kind.to_string())), "");
    all.add("e.result =", filter.result.map(|result| Value::Text(result.to_string())), "");
    // The conditions of the partial indexes, word for word: only then does Postgres use them.
    if postgres && filter.kind.is_some_and(|kind| lists::is_rare_kind(kind.as_str())) {
        all.also("e.kind NOT IN ('decision', 'server_request', 'outcome')");
    }
    if postgres && filter.result.is_some_and(|result| lists::is_rare_result(result.as_str())) {
        all.also("e.result NOT IN ('allow', 'success', 'recorded')");
    }
    all.add("e.reason =", text(&filter.reason), "");
    all.add("e.tool =", text(&filter.tool), "");
    all.add("e.server =", text(&filter.server), "");
    all.add("e.decision_id =", text(&filter.decision_id), "");
    all.add("e.timestamp >=", time(filter.since), "");
    all.add("e.timestamp <", time(filter.until), "");
    let needle = filter.text.clone().map(|text| Value::Bytes(text.into_bytes()));
    if postgres {
        all.add("position(", needle, " IN e.body) > 0");
    } else {
        all.add("instr(e.body,", needle, ") > 0");
    }
    let after = filter.after.map(|index| Value::Number(signed(index)));
    all.add(&format!("{at} {}", if filter.oldest_first { ">" } else { "<" }), after, "");
    all
}

impl Reader {
    /// One page of the entries that a filter selects.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn query(&self, filter: &Filter) -> Result<Page, StoreError> {
        let limit = filter.limit.unwrap_or(100).clamp(1, MAX_PAGE);
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let mut entries = Vec::new();
        for part in self.parts(filter.oldest_first).await? {
            // One more than asked for tells whether there is another page.
            let missing = (limit + 1).saturating_sub(entries.len());
            if missing > 0 {
                entries.append(&mut self.select(filter, part, missing).await?);
            }
        }
        let more = entries.len() > limit;
        entries.truncate(limit);
        let next = entries.last().filter(|_| more).map(|entry| entry.index);
        Ok(Page { entries, next })
    }

    async fn parts(&self, oldest_first: bool) -> Result<Vec<Part>, StoreError> {
        if !self.lists {
            return Ok(vec![Part::Whole]);
        }
        // Read first: what is written meanwhile is listed only from here on.
        let to = signed(lists::listed_to(self.head().await?.size));
        let (listed, rest) = (Part::Listed(to), Part::Rest(to));
        Ok(if oldest_first { vec![listed, rest] } else { vec![rest, listed] })
    }

    async fn select(
        &self,
        filter: &Filter,
        part: Part,
        limit: usize,
    ) -> Result<Vec<Stored>, StoreError> {
        let Conditions { sql, values } =
            statement(filter, part, matches!(self.pool, Pool::Postgres(_)));
        let sql = format!("{sql} LIMIT {limit}");
        let rows: Result<Vec<StoredRow>, sqlx::Error> = on!(self.current().await?, pool => {
            let mut query = sqlx::query_as(AssertSqlSafe(sql));
            for value in values {
                query = match value {
                    Value::Number(number) => query.bind(number),
                    Value::Text(text) => query.bind(text),
                    Value::Bytes(bytes) => query.bind(bytes),
                };
            }
            query.fetch_all(pool).await
        });
        let rows = rows.map_err(|e| self.failed(&e))?;
        rows.into_iter().map(|row| self.stored(row)).collect()
    }

    /// Visits every entry that a filter selects, the oldest first, however many there are.
    ///
    /// # Errors
    /// When the store cannot be read, and whatever `visit` refuses with.
    pub async fn walk<E: From<StoreError>>(
        &self,
        filter: Filter,
        mut visit: impl FnMut(Stored) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut filter = Filter { oldest_first: true, limit: Some(MAX_PAGE), ..filter };
        loop {
            let page = self.query(&filter).await?;
            page.entries.into_iter().try_for_each(&mut visit)?;
            match page.next {
                Some(next) => filter.after = Some(next),
                None => return Ok(()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use sqlx::Row as _;

    use super::*;
    use crate::journal::{Journal, Options};
    use crate::note::Signer;
    use crate::store::Location;

    /// Without the lists, or in another order of the tables, a page would cost a scan and a sort.
    #[tokio::test]
    async fn listed_entries_are_found_in_order_without_a_scan() {
        let dir = tempfile::tempdir().unwrap();
        let place = Location::Sqlite(dir.path().join("audit.db"));
        let options = Options::new("test", Signer::generate("acme.example/audit").unwrap());
        let journal = Journal::open(&place, options).await.unwrap();
        let Pool::Sqlite(pool) = &journal.reader().pool else { panic!("SQLite") };
        let text = || Some("x".to_owned());
        for filter in [
            Filter { result: Some(Outcome::Deny), ..Filter::default() },
            Filter { kind: Some(Kind::PolicyLoaded), ..Filter::default() },
            Filter { agent: text(), since: Some(Timestamp::from_secs(1)), ..Filter::default() },
            Filter { decision_id: text(), oldest_first: true, ..Filter::default() },
        ] {
            let Conditions { sql, .. } = statement(&filter, Part::Listed(256), false);
            let plan = sqlx::query(AssertSqlSafe(format!("EXPLAIN QUERY PLAN {sql}")));
            let plan = plan.fetch_all(pool).await.unwrap();
            let plan: Vec<String> = plan.iter().map(|row| row.get("detail")).collect();
            let first = "SEARCH l USING PRIMARY KEY (field=? AND value=? AND idx>? AND idx<?)";
            assert_eq!(plan[0], first, "{plan:?}");
            assert!(!plan.iter().any(|step| step.contains("TEMP B-TREE")), "{plan:?}");
        }
        journal.close().await.unwrap();
    }
}
