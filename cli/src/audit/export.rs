//! `aegis audit export`: the log as tiles that any tool verifies, as lines of JSON, or as OCSF events.

use std::path::{Path, PathBuf};

use aegis_api::Client;
use aegis_audit::export;
use anyhow::Context as _;
use serde::Serialize;
use serde_json::{json, value::RawValue};

use super::{Source, ocsf};
use crate::{
    Context, Outcome,
    log::{Log, Record},
    output::{self, Format, Progress},
};

/// Export the log as tiles (c2sp.org/tlog-tiles), as lines of JSON, or as OCSF events
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  aegis audit export --jsonl > entries.jsonl\n  aegis audit export --tiles published/\n  aegis audit export --ocsf > events.jsonl"
)]
#[command(group(clap::ArgGroup::new("form").required(true).args(["tiles", "jsonl", "ocsf"])))]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
    /// Write checkpoint, tiles and entry bundles into this folder, up to the latest checkpoint
    #[arg(long, value_name = "DIR")]
    tiles: Option<PathBuf>,
    /// Print each entry as {"index", "leaf_hash", "entry"}, the entry in its canonical bytes
    #[arg(long)]
    jsonl: bool,
    /// Print each entry as an OCSF 1.9.0 event in a CloudEvents 1.0 envelope, one a line, with its index and
    /// its leaf hash
    #[arg(long)]
    ocsf: bool,
}

/// One line of the export.
#[derive(Serialize)]
struct Line<'a> {
    index: u64,
    leaf_hash: aegis_core::Digest,
    entry: &'a RawValue,
}

pub(crate) async fn run(args: Args, cx: &Context) -> anyhow::Result<Outcome> {
    let log = Log::open(args.source.database.as_ref(), &cx.client).await?;
    match &args.tiles {
        None if args.ocsf => each(&log, |record| output::json_line(&ocsf::event(record)?)).await?,
        None => each(&log, line).await?,
        Some(folder) => tiles(&log, folder, cx).await?,
    }
    Ok(Outcome::Done)
}

fn line(record: &Record) -> anyhow::Result<()> {
    let body = std::str::from_utf8(&record.body)
        .map_err(anyhow::Error::from)
        .and_then(|text| Ok(serde_json::from_str::<&RawValue>(text)?))
        .with_context(|| format!("entry {} is damaged", record.index))?;
    output::json_line(&Line { index: record.index, leaf_hash: record.leaf, entry: body })
}

async fn each(log: &Log, print: impl Fn(&Record) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let size = log.size().await?;
    let mut progress = Progress::new("entries exported");
    log.each(size, |record| {
        print(&record)?;
        progress.at(record.index + 1, size);
        Ok(())
    })
    .await
}

async fn tiles(log: &Log, folder: &Path, cx: &Context) -> anyhow::Result<()> {
    let size = match log {
        Log::Daemon(client) => fetch_tiles(client, folder).await?,
        Log::Database(reader) => export::write_directory(reader, folder)
            .await?
            .context("the log has no checkpoint yet")?,
    };
    match cx.format {
        Format::Json => output::json(&json!({ "entries": size, "folder": folder })),
        Format::Text => output::emit(&format!(
            "{size} entries, up to the checkpoint, in {}\n",
            folder.display()
        )),
    }
}

/// Fetches the daemon's log up to its latest checkpoint into a folder, and tells its size.
///
/// # Errors
/// When the daemon does not give it, or a file cannot be written.
pub(crate) async fn fetch_tiles(client: &Client, folder: &Path) -> anyhow::Result<u64> {
    let mut progress = Progress::new("entries fetched");
    aegis_ledger::fetch::tiles(client, folder, |done, total| progress.at(done, total)).await
}
