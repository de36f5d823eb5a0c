//! `aegis audit verify`: is the log whole, in order, unaltered, and what was signed?
//!
//! On a database or a folder of tiles it needs no daemon. Without either, the log is fetched from
//! the daemon as tiles and verified here: what answers is not asked for its opinion.

use std::{
    fs,
    path::{Path, PathBuf},
};

use aegis_audit::{Location, Report, Trusted, Verifier, VerifyError, verify};
use anyhow::Context as _;
use serde_json::json;

use super::export;
use crate::{
    Context, Outcome, log,
    output::{self, Format, Progress, Text, Tone},
};

/// Verify the log; name the first entry that is wrong, and why
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  aegis audit verify --database copy-of-ledger.db --key 'acme.example/audit+1a2b3c4d+AX…' --checkpoint kept.checkpoint"
)]
pub(crate) struct Args {
    /// Verify this database: a SQLite file, also a copy, or a postgres:// URL
    #[arg(long, value_name = "FILE", conflicts_with = "tiles")]
    database: Option<Location>,
    /// Verify this folder of tiles, as `aegis audit export --tiles` writes it
    #[arg(long, value_name = "DIR", requires = "key")]
    tiles: Option<PathBuf>,
    /// The log's verifier key, from somebody you trust; without it the log's own word is taken
    #[arg(long, value_name = "VKEY")]
    key: Option<Verifier>,
    /// A checkpoint kept from before: the log must still contain what it covers. Default: the
    /// file that the daemon keeps beside a SQLite database, where there is one
    #[arg(long, value_name = "FILE")]
    checkpoint: Option<PathBuf>,
}

pub(crate) async fn run(args: Args, cx: &Context) -> anyhow::Result<Outcome> {
    let kept_file = args.checkpoint.clone().or_else(|| saved_checkpoint(args.database.as_ref()));
    let kept = match &kept_file {
        None => None,
        Some(path) => Some(
            fs::read_to_string(path)
                .with_context(|| format!("cannot read the checkpoint {}", path.display()))?,
        ),
    };
    match verified(&args, kept, cx).await? {
        Ok(report) => {
            match cx.format {
                Format::Json => output::json(&as_json(&report, kept_file.as_deref()))?,
                Format::Text => show(&report, kept_file.as_deref()).print()?,
            }
            Ok(Outcome::Done)
        }
        Err(error) => {
            let entry = match &error {
                VerifyError::Entry { index, .. } => Some(*index),
                _ => None,
            };
            if cx.format == Format::Json {
                let said = error.to_string();
                output::json(&json!({ "ok": false, "problem": said, "entry": entry }))?;
                return Ok(Outcome::Failed);
            }
            Err(anyhow::Error::from(error).context("the log does not verify"))
        }
    }
}

/// The outer error is about reaching the log, the inner about what it holds.
async fn verified(
    args: &Args,
    kept: Option<String>,
    cx: &Context,
) -> anyhow::Result<Result<Report, VerifyError>> {
    let mut progress = Progress::new("entries verified");
    let mut shown = |done, total| progress.at(done, total);
    if let Some(place) = &args.database {
        let reader = log::open_database(place).await?;
        let trusted = Trusted { verifier: args.key.clone(), checkpoint: kept };
        return Ok(verify::verify(&reader, &trusted, &mut shown).await);
    }
    if let (Some(folder), Some(key)) = (&args.tiles, &args.key) {
        return Ok(verify::verify_directory(folder, key.clone(), kept, &mut shown).await);
    }
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    export::fetch_tiles(&cx.client, folder.path()).await?;
    let key = match &args.key {
        Some(key) => key.clone(),
        None => cx.client.get_text("/v1/key").await?.trim().parse()?,
    };
    let own_word = args.key.is_none().then(|| {
        format!("the key was read from the daemon itself; give the key that you trust: {key}")
    });
    let mut report = verify::verify_directory(folder.path(), key, kept, &mut shown).await;
    if let Ok(report) = &mut report {
        report.warnings.extend(own_word);
    }
    Ok(report)
}

/// The checkpoint that a journal keeps beside its database.
fn saved_checkpoint(database: Option<&Location>) -> Option<PathBuf> {
    let Some(Location::Sqlite(path)) = database else { return None };
    let mut name = path.as_os_str().to_owned();
    name.push(".checkpoint");
    Some(PathBuf::from(name)).filter(|path| path.exists())
}

fn as_json(report: &Report, kept: Option<&Path>) -> serde_json::Value {
    json!({
        "ok": true,
        "size": report.head.size,
        "root": report.head.root,
        "signed": report.signed,
        "origin": report.verifier.name(),
        "key": report.verifier.to_string(),
        "contains_checkpoint": kept,
        "sources": report.sources,
        "gaps": report.gaps,
        "warnings": report.warnings,
    })
}

fn show(report: &Report, kept: Option<&Path>) -> Text {
    let mut text = Text::new();
    let head = &report.head;
    text.toned(Tone::Good, format!("verified: {} entries, none altered", head.size));
    text.field("origin", report.verifier.name());
    text.field("root", head.root);
    text.field("checkpoint", format!("signed, covers {} entries", report.signed));
    match kept {
        Some(path) => text.field("kept", format!("contains all that {} covers", path.display())),
        None => text.field(
            "kept",
            "no earlier checkpoint was given: that none are missing at the end is not shown",
        ),
    }
    for (source, entries) in &report.sources {
        text.field("source", format!("{source}: {entries} entries"));
    }
    if !report.gaps.is_empty() {
        let indices: Vec<String> = report.gaps.iter().map(u64::to_string).collect();
        text.toned(Tone::Warn, format!("entries that tell of gaps: {}", indices.join(", ")));
    }
    for warning in &report.warnings {
        text.toned(Tone::Warn, format!("note: {warning}"));
    }
    text
}
