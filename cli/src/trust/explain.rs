//! `aegis trust explain`: the entries that moved a score, with the fold step by step.

use aegis_audit::{Entry, Kind};
use aegis_core::{AgentId, trust::Trust};
use aegis_kernel::trust_book::TrustBook;
use anyhow::Context as _;
use serde_json::{Value, json};

use super::observations;
use crate::{
    Context, Outcome, agents,
    audit::Source,
    log::Log,
    output::{self, Format, Progress, Text, Tone},
};

/// Show the entries that moved the trust in an agent, and how
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  aegis trust explain buyer")]
pub(crate) struct Args {
    /// The agent: a SPIFFE ID, or a name (without --database)
    agent: String,
    #[command(flatten)]
    source: Source,
}

/// One entry that moved the posterior.
struct Step {
    index: u64,
    entry: Entry,
    before: Trust,
    after: Trust,
}

pub(crate) async fn run(args: Args, cx: &Context) -> anyhow::Result<Outcome> {
    let agent: AgentId = match args.source.database.is_some() {
        true => args.agent.parse()?,
        false => agents::find(&args.agent, cx).await?,
    };
    let log = Log::open(args.source.database.as_ref(), &cx.client).await?;
    let size = log.size().await?;
    let mut book = TrustBook::default();
    let mut steps = Vec::new();
    let mut progress = Progress::new("entries folded");
    log.each(size, |record| {
        let entry = Entry::parse(&record.body)
            .with_context(|| format!("entry {} cannot be folded", record.index))?;
        let before = book.trust(&agent);
        book.replay(record.index, &entry);
        let after = book.trust(&agent);
        if before != after {
            steps.push(Step { index: record.index, entry, before, after });
        }
        progress.at(record.index + 1, size);
        Ok(())
    })
    .await?;
    drop(progress);
    match cx.format {
        Format::Json => output::json(&json!({
            "agent": agent, "as_of": size, "trust": told(&book.trust(&agent)),
            "steps": steps.iter().map(as_json).collect::<Vec<_>>(),
        }))?,
        Format::Text => show(&agent, size, &book, &steps).print()?,
    }
    Ok(Outcome::Done)
}

fn told(trust: &Trust) -> Value {
    json!({ "score": trust.score().get(), "a": trust.a, "b": trust.b })
}

fn as_json(step: &Step) -> Value {
    json!({
        "index": step.index, "timestamp": step.entry.timestamp, "kind": step.entry.kind,
        "result": step.entry.result, "reason": step.entry.reason, "risk": step.entry.risk,
        "tier": step.entry.tier, "before": told(&step.before), "after": told(&step.after),
    })
}

fn show(agent: &AgentId, size: u64, book: &TrustBook, steps: &[Step]) -> Text {
    let mut text = Text::new();
    let trust = book.trust(agent);
    text.line(format!("{agent}: trust {} of 1000", trust.score().get()));
    let prior = Trust::default();
    text.line(format!(
        "  starts at a = {}, b = {}: {}",
        observations(prior.a),
        observations(prior.b),
        prior.score().get()
    ));
    for step in steps {
        let (before, after) = (&step.before, &step.after);
        let tone = if after.score() < before.score() { Tone::Bad } else { Tone::Good };
        let (index, at) = (step.index, step.entry.timestamp);
        text.toned(tone, format!("  entry {index} at {at}: {}", why(step)));
        text.line(format!(
            "    a {} → {}, b {} → {}: score {} → {}",
            observations(before.a),
            observations(after.a),
            observations(before.b),
            observations(after.b),
            before.score().get(),
            after.score().get(),
        ));
    }
    if steps.is_empty() {
        text.line("  no entry has moved it");
    }
    text.line(format!(
        "score = 1000·a / (a + b), rounded down, folded from {size} entries of the ledger"
    ));
    let critical = book.thresholds().critical_score;
    text.line(format!(
        "P(true score < {}) = {} ‰; at {} ‰ it is quarantined",
        critical.get(),
        trust.probability_below(critical).get(),
        book.thresholds().critical_confidence.get(),
    ));
    text
}

/// The rule of the fold that applied.
fn why(step: &Step) -> String {
    let entry = &step.entry;
    let risk = entry.risk.unwrap_or_default();
    let tool = entry.action_text("tool").or_else(|| entry.action_text("method")).unwrap_or("?");
    match entry.kind {
        Kind::Decision => format!(
            "{tool} was refused ({}): its risk of {risk} ‰, at least 200 ‰, counts against",
            entry.reason.as_deref().unwrap_or("?")
        ),
        Kind::Outcome if entry.tier.as_deref() == Some("L3") => format!(
            "{tool} succeeded at L3: a fraction 1 − α of a moves to b, then its risk of {risk} ‰ counts for, within the hour's cap"
        ),
        Kind::Outcome => {
            format!("{tool} succeeded: its risk of {risk} ‰ counts for, within the hour's cap")
        }
        Kind::TrustAdjusted => format!(
            "set by hand by {}: {}",
            detail(entry, "who").unwrap_or("?"),
            detail(entry, "why").unwrap_or("no reason recorded")
        ),
        other => other.to_string(),
    }
}

fn detail<'e>(entry: &'e Entry, name: &str) -> Option<&'e str> {
    entry.detail.get(name).and_then(Value::as_str)
}
