//! Finding entries: by agent, kind, result, reason, tool, server, time, decision and text, in pages.

use aegis_core::Timestamp;
use sqlx::AssertSqlSafe;

use crate::entry::{Kind, Outcome};
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

fn conditions(filter: &Filter, postgres: bool) -> Conditions {
    let text = |value: &Option<String>| value.clone().map(Value::Text);
    let time = |value: Option<Timestamp>| value.map(|time| Value::Number(micros(time)));
    let mut all = Conditions::default();
    // A row that the head does not cover was never committed by a writer: somebody else put it there.
    all.also("e.idx >= 0 AND e.idx < (SELECT size FROM audit_head WHERE id = 1)");
    all.add("e.agent_id =", text(&filter.agent), "");
    all.add("e.kind =", filter.kind.map(|kind| Value::Text(kind.to_string())), "");
    all.add("e.result =", filter.result.map(|result| Value::Text(result.to_string())), "");
    // The conditions of the partial indexes, word for word: only then does the planner use them.
    if !matches!(filter.kind, None | Some(Kind::Decision | Kind::ServerRequest | Kind::Outcome)) {
        all.also("e.kind NOT IN ('decision', 'server_request', 'outcome')");
    }
    if !matches!(filter.result, None | Some(Outcome::Allow | Outcome::Success | Outcome::Recorded))
    {
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
    all.add(if filter.oldest_first { "e.idx >" } else { "e.idx <" }, after, "");
    all
}

impl Reader {
    /// One page of the entries that a filter selects.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn query(&self, filter: &Filter) -> Result<Page, StoreError> {
        let limit = filter.limit.unwrap_or(100).clamp(1, MAX_PAGE);
        let Conditions { sql, values } = conditions(filter, matches!(self.pool, Pool::Postgres(_)));
        let order = if filter.oldest_first { "ASC" } else { "DESC" };
        // One more than asked for tells whether there is another page.
        let sql =
            format!("{} {sql} ORDER BY e.idx {order} LIMIT {}", select_entries!(""), limit + 1);
        let rows: Result<Vec<StoredRow>, sqlx::Error> = on!(&self.pool, pool => {
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
        let mut entries =
            rows.into_iter().map(|row| self.stored(row)).collect::<Result<Vec<_>, _>>()?;
        let limit = usize::try_from(limit).unwrap_or(usize::MAX);
        let more = entries.len() > limit;
        entries.truncate(limit);
        let next = entries.last().filter(|_| more).map(|entry| entry.index);
        Ok(Page { entries, next })
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

    /// A partial index is used only while its condition and the query's are the same words.
    #[tokio::test]
    async fn rare_kinds_and_results_are_found_by_index() {
        let dir = tempfile::tempdir().unwrap();
        let place = Location::Sqlite(dir.path().join("audit.db"));
        let options = Options::new("test", Signer::generate("acme.example/audit").unwrap());
        let journal = Journal::open(&place, options).await.unwrap();
        let Pool::Sqlite(pool) = &journal.reader().pool else { panic!("SQLite") };
        for (filter, index) in [
            (Filter { result: Some(Outcome::Deny), ..Filter::default() }, "audit_by_rare_result"),
            (Filter { kind: Some(Kind::PolicyLoaded), ..Filter::default() }, "audit_by_rare_kind"),
        ] {
            let Conditions { sql, .. } = conditions(&filter, false);
            let sql =
                format!("EXPLAIN QUERY PLAN {} {sql} ORDER BY e.idx DESC", select_entries!(""));
            let plan = sqlx::query(AssertSqlSafe(sql)).bind("x").fetch_all(pool).await.unwrap();
            let plan: Vec<String> = plan.iter().map(|row| row.get("detail")).collect();
            assert!(plan.iter().any(|step| step.contains(index)), "{plan:?}");
        }
        journal.close().await.unwrap();
    }
}
