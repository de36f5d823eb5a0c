//! Verifies a whole log, as a job that runs by itself: what serves the log is not asked for its opinion.
//!
//! It ends with success only if every entry, chain and tile is as it was signed, and, where a
//! checkpoint of the run before was kept, if all that it covered is still there.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use aegis_api::Client;
use aegis_audit::{Location, Reader, Report, Trusted, Verifier, VerifyError, verify};
use anyhow::Context as _;

use crate::fetch;

/// What is verified, and by what.
#[derive(Clone, Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("log").required(true).args(["store", "ledger"])))]
pub struct Options {
    /// The log: a SQLite file, or a postgres:// URL. It is only read
    #[arg(long, env = "AEGIS_VERIFY_STORE", hide_env_values = true, conflicts_with = "ledger")]
    pub store: Option<Location>,
    /// A ledger whose log is fetched first (host:port)
    #[arg(long, value_name = "ADDRESS")]
    pub ledger: Option<String>,
    /// The log's verifier key, from somebody you trust; without it the log's own word is taken
    #[arg(long, value_name = "VKEY", env = "AEGIS_VERIFY_KEY")]
    pub key: Option<Verifier>,
    /// The file that keeps the checkpoint of the last run that succeeded
    #[arg(long, value_name = "FILE")]
    pub kept: Option<PathBuf>,
}

/// Verifies, and tells what was found.
///
/// # Errors
/// When the log cannot be read, or the first thing in it that is wrong.
pub async fn run(options: &Options) -> anyhow::Result<()> {
    let kept = options.kept.as_deref().map(read).transpose()?.flatten();
    let known = kept.is_some();
    let (report, note) = verified(options, kept).await?;
    let report = report.context("the log does not verify")?;
    for warning in &report.warnings {
        tracing::warn!(warning, "verified, but");
    }
    if options.key.is_none() {
        tracing::warn!(key = %report.verifier, "the key is the log's own word; give the key that you trust with --key");
    }
    tracing::info!(
        entries = report.head.size,
        signed = report.signed,
        root = %report.head.root,
        sources = report.sources.len(),
        gaps = report.gaps.len(),
        contains_earlier_checkpoint = known,
        "the log is whole and unaltered"
    );
    if let (Some(path), Some(note)) = (&options.kept, note) {
        write(path, &note)?;
    }
    Ok(())
}

/// The outer error is about reaching the log, the inner about what it holds.
async fn verified(
    options: &Options,
    kept: Option<String>,
) -> anyhow::Result<(Result<Report, VerifyError>, Option<String>)> {
    let quiet = |_: u64, _: u64| {};
    if let Some(place) = &options.store {
        let reader = Reader::open(place).await?;
        // Before the log is read: it may grow meanwhile, and all of it is verified.
        let note = reader.checkpoint().await?;
        let trusted = Trusted { verifier: options.key.clone(), checkpoint: kept };
        let report = verify::verify(&reader, &trusted, quiet).await;
        reader.close().await;
        return Ok((report, note));
    }
    let address = options.ledger.as_deref().context("say which log with --store or --ledger")?;
    let client = Client::of_ledger(address);
    let folder = tempfile::tempdir().context("cannot make a temporary folder")?;
    fetch::tiles(&client, folder.path(), quiet).await?;
    let key = match &options.key {
        Some(key) => key.clone(),
        None => client.get_text("/v1/key").await?.trim().parse()?,
    };
    let note = read(&folder.path().join("checkpoint"))?;
    Ok((verify::verify_directory(folder.path(), key, kept, quiet).await, note))
}

fn read(path: &Path) -> anyhow::Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => {
            Err(error).with_context(|| format!("cannot read the checkpoint {}", path.display()))
        }
    }
}

/// Replaces the file at once, so that a run that is cut off leaves the old one or the new one.
fn write(path: &Path, note: &str) -> anyhow::Result<()> {
    let next = path.with_extension("next");
    fs::write(&next, note)
        .and_then(|()| fs::rename(&next, path))
        .with_context(|| format!("cannot keep the checkpoint {}", path.display()))
}
