//! `aegis audit tail` and `query`: entries as they come, and those that a filter selects.

use std::{
    io::{self, Write as _},
    time::Duration,
};

use aegis_audit::{Entry, Filter, Kind, entry::Outcome as Ending, query::MAX_PAGE};
use aegis_core::{Timestamp, decision::Reason};
use aegis_resources::did_you_mean;
use anyhow::Context as _;
use serde_json::{Value, json};

use super::Source;
use crate::{
    Context, Outcome,
    log::{Log, Record},
    output::{self, Format, Text, Tone},
};

/// How often a followed log is asked for more.
const PERIOD: Duration = Duration::from_millis(500);

/// Show the newest entries; with -f, those to come as well
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  aegis audit tail -f -n 50")]
pub(crate) struct TailArgs {
    #[command(flatten)]
    source: Source,
    /// Wait for more
    #[arg(short, long)]
    follow: bool,
    /// How many to begin with
    #[arg(short = 'n', long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_PAGE)))]
    lines: u32,
}

/// Show the entries that every given filter selects, newest first
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  aegis audit query --result deny --since 2026-01-31T00:00:00Z --tool write_file"
)]
pub(crate) struct QueryArgs {
    #[command(flatten)]
    source: Source,
    /// Of this agent: a SPIFFE ID, or the name of one or more
    #[arg(long)]
    agent: Option<String>,
    /// Of this kind, such as decision or outcome
    #[arg(long)]
    kind: Option<Kind>,
    /// With this result: allow, deny, require_approval, success, failure, unknown, recorded
    #[arg(long)]
    result: Option<Ending>,
    /// With this reason code (`aegis reasons` lists them)
    #[arg(long, value_parser = reason)]
    reason: Option<String>,
    /// About this tool
    #[arg(long)]
    tool: Option<String>,
    /// About this upstream
    #[arg(long)]
    server: Option<String>,
    /// Of this decision: the decision and its outcome
    #[arg(long)]
    decision_id: Option<String>,
    /// At or after this time (RFC 3339)
    #[arg(long)]
    since: Option<Timestamp>,
    /// Before this time (RFC 3339)
    #[arg(long)]
    until: Option<Timestamp>,
    /// With this text somewhere in them; case counts
    #[arg(long)]
    text: Option<String>,
    /// Oldest first
    #[arg(long)]
    oldest: bool,
    /// Only what comes after this index, in the order asked for
    #[arg(long)]
    after: Option<u64>,
    /// At most so many
    #[arg(long, default_value_t = 100)]
    limit: u64,
}

pub(crate) async fn tail(args: TailArgs, cx: &Context) -> anyhow::Result<Outcome> {
    let log = Log::open(args.source.database.as_ref(), &cx.client).await?;
    let newest = Filter { limit: Some(args.lines), ..Filter::default() };
    let (mut records, _) = log.query(&newest).await?;
    records.reverse();
    let mut last = records.last().map(|record| record.index);
    print(&records, cx.format)?;
    if !args.follow {
        return Ok(Outcome::Done);
    }
    loop {
        tokio::time::sleep(PERIOD).await;
        let more =
            Filter { oldest_first: true, after: last, limit: Some(MAX_PAGE), ..Filter::default() };
        let (records, _) = log.query(&more).await?;
        last = records.last().map(|record| record.index).or(last);
        print(&records, cx.format)?;
    }
}

pub(crate) async fn query(args: QueryArgs, cx: &Context) -> anyhow::Result<Outcome> {
    let log = Log::open(args.source.database.as_ref(), &cx.client).await?;
    let mut left = args.limit;
    let (agent, name) = match args.agent {
        Some(name) if !name.starts_with("spiffe://") => (None, Some(name)),
        id => (id, None),
    };
    // A name is the end of an ID, which the log finds as text. What else is found by it is left out
    // here, as is what it finds beside a text that was asked for.
    let ending = name.as_ref().map(|name| format!("/agent/{name}\""));
    let text = args.text.or(ending);
    let mut filter = Filter {
        agent,
        kind: args.kind,
        result: args.result,
        reason: args.reason,
        tool: args.tool,
        server: args.server,
        decision_id: args.decision_id,
        since: args.since,
        until: args.until,
        text,
        oldest_first: args.oldest,
        after: args.after,
        limit: None,
    };
    let mut matched = 0;
    while left > 0 {
        let page = if name.is_some() { u64::from(MAX_PAGE) } else { left };
        filter.limit = Some(u32::try_from(page).unwrap_or(MAX_PAGE).min(MAX_PAGE));
        let (mut records, next) = log.query(&filter).await?;
        if let Some(name) = &name {
            records.retain(|record| is_of(record, name));
        }
        records.truncate(usize::try_from(left).unwrap_or(usize::MAX));
        print(&records, cx.format)?;
        matched += records.len();
        left = left.saturating_sub(records.len() as u64);
        filter.after = next;
        if next.is_none() {
            break;
        }
    }
    if matched == 0 && args.limit > 0 {
        // Not among the results, which may be read by a program.
        let _ = writeln!(io::stderr(), "aegis: no entry matches");
    }
    Ok(Outcome::Done)
}

/// A reason code, or the sentence that lists them.
fn reason(text: &str) -> Result<String, String> {
    let codes = || Reason::ALL.iter().map(|reason| reason.code());
    if codes().any(|code| code == text) {
        return Ok(text.to_owned());
    }
    let near = did_you_mean(text, codes());
    let codes: Vec<&str> = codes().collect();
    Err(format!("expected one of {}{near}", codes.join(", ")))
}

/// Whether an entry is of an agent with this name.
fn is_of(record: &Record, name: &str) -> bool {
    let entry = Entry::parse(&record.body);
    entry.is_ok_and(|entry| {
        entry
            .agent_id
            .as_deref()
            .and_then(|id| id.rsplit_once("/agent/"))
            .is_some_and(|(_, n)| n == name)
    })
}

/// One line each: JSON or the essential fields.
fn print(records: &[Record], format: Format) -> anyhow::Result<()> {
    let mut text = Text::new();
    for record in records {
        match format {
            Format::Json => output::json_line(&as_json(record)?)?,
            Format::Text => {
                let entry = Entry::parse(&record.body)
                    .with_context(|| format!("entry {} cannot be shown", record.index))?;
                text.toned(Tone::of(entry.result.as_str()), line(record.index, &entry));
            }
        }
    }
    text.print()
}

/// An entry with its place, as JSON.
pub(crate) fn as_json(record: &Record) -> anyhow::Result<Value> {
    let entry: Value = serde_json::from_slice(&record.body)
        .with_context(|| format!("entry {} is damaged", record.index))?;
    Ok(json!({ "index": record.index, "leaf_hash": record.leaf, "entry": entry }))
}

/// The essential fields of an entry.
pub(crate) fn line(index: u64, entry: &Entry) -> String {
    let mut line =
        format!("{index:>7}  {}  {:<18} {:<16}", entry.timestamp, entry.kind, entry.result);
    let agent = entry.agent_id.as_deref().map(|id| id.rsplit('/').next().unwrap_or(id));
    let what = entry.action_text("tool").or_else(|| entry.action_text("method"));
    let parts = [agent, entry.action_text("server"), what, entry.resource.as_deref()];
    for part in parts.into_iter().flatten() {
        line.push(' ');
        line.push_str(part);
    }
    if let Some(reason) = &entry.reason {
        line.push_str(&format!("  ({reason})"));
    }
    line
}
