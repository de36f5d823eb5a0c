//! `aegis audit prove`: a `.tlog-proof` of one entry, to hand to somebody who trusts nobody here.
//!
//! The daemon never discloses the salt of an entry's arguments; whoever may read the database can.

use std::{fs, path::PathBuf};

use aegis_audit::TlogProof;
use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::Source;
use crate::{
    Context, Outcome,
    log::Log,
    output::{self, Format},
};

/// Write the proof that an entry is in the log (c2sp.org/tlog-proof)
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  aegis audit prove 42 -O 42.tlog-proof   # writes 42.tlog-proof and 42.tlog-proof.json\n  aegis audit check-proof 42.tlog-proof --key \"$(cat log.key)\""
)]
pub(crate) struct Args {
    /// The entry's index
    index: u64,
    #[command(flatten)]
    source: Source,
    /// Disclose the salt of the arguments' digest, so that the arguments can be checked too
    #[arg(long, requires = "database")]
    disclose: bool,
    /// Write the proof to this file, and the entry itself to FILE.json
    #[arg(short = 'O', long, value_name = "FILE")]
    out: Option<PathBuf>,
}

pub(crate) async fn run(args: Args, cx: &Context) -> anyhow::Result<Outcome> {
    let log = Log::open(args.source.database.as_ref(), &cx.client).await?;
    let size = log.size().await?;
    if args.index >= size {
        bail!("there is no entry {}: the log holds {size} of them, counted from 0", args.index);
    }
    let (proof, body) = match &log {
        Log::Daemon(client) => (
            TlogProof::parse(&client.get_text(&format!("/v1/proof/{}", args.index)).await?)?,
            client.get_bytes(&format!("/v1/entries/{}", args.index)).await?,
        ),
        Log::Database(reader) => {
            let proof = reader.prove(args.index, args.disclose).await?;
            let entry = reader.entry(args.index).await?;
            let (Some(proof), Some(entry)) = (proof, entry) else {
                bail!(
                    "no checkpoint covers entry {} yet; one is signed within seconds while the daemon runs",
                    args.index
                );
            };
            (proof, entry.body)
        }
    };
    if args.disclose && proof.extra.is_none() {
        bail!(
            "entry {} has no salt to disclose: it records no arguments, or the salt was erased",
            args.index
        );
    }
    if let Some(path) = &args.out {
        let entry = beside(path);
        fs::write(path, proof.to_text())
            .with_context(|| format!("cannot write {}", path.display()))?;
        fs::write(&entry, &body).with_context(|| format!("cannot write {}", entry.display()))?;
    }
    match cx.format {
        Format::Json => {
            let entry: Value = serde_json::from_slice(&body)?;
            let text = proof.to_text();
            output::json(&json!({ "index": args.index, "entry": entry, "proof": text }))?;
        }
        Format::Text => match &args.out {
            None => output::emit(&proof.to_text())?,
            Some(path) => {
                output::emit(&format!("{}\n{}\n", path.display(), beside(path).display()))?
            }
        },
    }
    Ok(Outcome::Done)
}

/// Where the entry of a proof is kept.
pub(crate) fn beside(path: &std::path::Path) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(".json");
    name.into()
}
