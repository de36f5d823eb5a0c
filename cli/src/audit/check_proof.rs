//! `aegis audit check-proof`: is this entry in the log of that key? Offline.

use std::{fs, path::PathBuf};

use aegis_audit::{Entry, Salt, TlogProof, Verifier};
use aegis_core::canonical;
use anyhow::{Context as _, bail};
use serde_json::{Value, json};

use super::{prove, query};
use crate::{
    Context, Outcome,
    output::{self, Format, Text, Tone},
};

/// Check a proof offline: signature, path, entry and, where disclosed, arguments
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  aegis audit check-proof 42.tlog-proof --key 'acme.example/audit+1a2b3c4d+AX…'"
)]
pub(crate) struct Args {
    /// The proof
    file: PathBuf,
    /// The log's verifier key, from somebody you trust
    #[arg(long, value_name = "VKEY")]
    key: Verifier,
    /// The entry; default: FILE.json beside the proof
    #[arg(long, value_name = "FILE")]
    entry: Option<PathBuf>,
    /// The arguments as they were, as JSON: are they those that were recorded?
    #[arg(long, value_name = "FILE")]
    arguments: Option<PathBuf>,
}

pub(crate) fn run(args: &Args, cx: &Context) -> anyhow::Result<Outcome> {
    let read =
        |path: &PathBuf| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let text = String::from_utf8(read(&args.file)?)
        .with_context(|| format!("{} is not a proof", args.file.display()))?;
    let proof =
        TlogProof::parse(&text).with_context(|| format!("{} is refused", args.file.display()))?;
    let body = read(&args.entry.clone().unwrap_or_else(|| prove::beside(&args.file)))?;
    let checkpoint = proof.verify(&args.key, &body).context("the proof does not hold")?;
    let entry = Entry::parse(&body)?;
    let arguments = match &args.arguments {
        None => None,
        Some(path) => {
            let value: Value = serde_json::from_slice(&read(path)?)
                .with_context(|| format!("{} is not JSON", path.display()))?;
            check_arguments(&proof, &entry, &value)?;
            Some(true)
        }
    };
    let head = checkpoint.head;
    match cx.format {
        Format::Json => output::json(&json!({
            "ok": true, "index": proof.index, "origin": checkpoint.origin, "size": head.size,
            "root": head.root, "entry": entry, "arguments": arguments,
        }))?,
        Format::Text => {
            let mut out = Text::new();
            let said = format!("entry {} is in the log of {}", proof.index, checkpoint.origin);
            out.toned(Tone::Good, said);
            out.field("size", head.size);
            out.field("root", head.root);
            if arguments.is_some() {
                out.field("arguments", "are those that were recorded");
            }
            out.line(query::line(proof.index, &entry));
            out.print()?;
        }
    }
    Ok(Outcome::Done)
}

fn check_arguments(proof: &TlogProof, entry: &Entry, arguments: &Value) -> anyhow::Result<()> {
    let salt: Option<[u8; 32]> =
        proof.extra.as_ref().and_then(|extra| extra.as_slice().try_into().ok());
    let salt = salt.context(
        "the proof discloses no salt; ask for one made with `aegis audit prove --disclose`",
    )?;
    let recorded = entry.arguments_digest.context("the entry records no arguments")?;
    if Salt::from_bytes(salt).digest(&canonical::to_vec(arguments)?) != recorded {
        bail!("the arguments are not those that were recorded");
    }
    Ok(())
}
