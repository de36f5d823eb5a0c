//! `aegis trust replay`: folds the log from zero and compares with what the daemon goes by.

use std::collections::BTreeMap;

use aegis_api::{ClientError, control::TrustView};
use aegis_audit::Entry;
use aegis_core::{AgentId, trust::Trust};
use aegis_kernel::trust_book::TrustBook;
use anyhow::Context as _;
use serde_json::{Value, json};

use super::observations;
use crate::{
    Context, Outcome,
    audit::Source,
    log::Log,
    output::{self, Format, Progress, Text, Tone},
};

/// Fold the log from zero and compare with the integers the daemon goes by; exit 1 if they differ
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  aegis trust replay\n  aegis trust replay --database copy-of-ledger.db"
)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
}

pub(crate) async fn run(args: Args, cx: &Context) -> anyhow::Result<Outcome> {
    let log = Log::open(args.source.database.as_ref(), &cx.client).await?;
    // First what the daemon goes by: every entry it has folded is in the log by then.
    let views = match cx.client.get::<Vec<TrustView>>("/v1/trust").await {
        Ok(views) => Some(views),
        Err(ClientError::Away { .. }) if args.source.database.is_some() => None,
        Err(error) => return Err(error.into()),
    };
    let size = log.size().await?;
    let as_of = views.iter().flatten().map(|view| view.as_of).max();
    let views = views.filter(|_| as_of.is_none_or(|as_of| as_of <= size));
    let end = if views.is_some() { as_of.unwrap_or(size) } else { size };
    let book = fold(&log, end).await?;
    let replayed: BTreeMap<AgentId, Trust> =
        book.agents().map(|(agent, trust)| (agent.clone(), *trust)).collect();
    let differing: Vec<&TrustView> = views
        .iter()
        .flatten()
        .filter(|view| {
            let trust = book.trust(&view.agent);
            (view.a, view.b, view.score) != (trust.a, trust.b, trust.score().get())
        })
        .collect();
    match cx.format {
        Format::Json => output::json(&json!({
            "ok": differing.is_empty(),
            "compared": views.as_ref().map(Vec::len),
            "as_of": end,
            "agents": replayed.iter().map(told).collect::<Vec<_>>(),
            "differing": differing,
        }))?,
        Format::Text => show(&replayed, &book, end, views.as_deref(), &differing).print()?,
    }
    Ok(if differing.is_empty() { Outcome::Done } else { Outcome::Failed })
}

async fn fold(log: &Log, end: u64) -> anyhow::Result<TrustBook> {
    let mut book = TrustBook::default();
    let mut progress = Progress::new("entries folded");
    log.each(end, |record| {
        let entry = Entry::parse(&record.body)
            .with_context(|| format!("entry {} cannot be folded", record.index))?;
        book.replay(record.index, &entry);
        progress.at(record.index + 1, end);
        Ok(())
    })
    .await?;
    Ok(book)
}

fn told((agent, trust): (&AgentId, &Trust)) -> Value {
    json!({ "agent": agent, "score": trust.score().get(), "a": trust.a, "b": trust.b })
}

fn show(
    replayed: &BTreeMap<AgentId, Trust>,
    book: &TrustBook,
    end: u64,
    views: Option<&[TrustView]>,
    differing: &[&TrustView],
) -> Text {
    let mut text = Text::new();
    text.line(format!("folded {end} entries from zero"));
    let rows = replayed.iter().map(|(agent, trust)| {
        let (a, b) = (observations(trust.a), observations(trust.b));
        vec![agent.to_string(), trust.score().get().to_string(), a, b]
    });
    text.table(&["AGENT", "TRUST", "FOR (a)", "AGAINST (b)"], rows.collect());
    match views {
        None => text.toned(
            Tone::Warn,
            "not compared: no daemon answers, or its log is longer than this copy",
        ),
        Some(views) if differing.is_empty() => text.toned(
            Tone::Good,
            format!("the daemon goes by the same integers for all {} agents", views.len()),
        ),
        Some(_) => text.toned(Tone::Bad, "the daemon goes by other integers:"),
    }
    for view in differing {
        let trust = book.trust(&view.agent);
        text.line(format!(
            "  {}: a = {} and b = {} in the daemon, {} and {} by the log",
            view.agent, view.a, view.b, trust.a, trust.b
        ));
    }
    text
}
