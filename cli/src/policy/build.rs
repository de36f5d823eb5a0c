//! `aegis policy build`: policies compiled into one bundle.

use std::{fs, path::PathBuf};

use anyhow::Context as _;
use serde_json::json;

use super::folder;
use crate::{
    Context, Outcome,
    output::{self, Format, Text, Tone},
};

/// Compile policies into a bundle of WebAssembly modules
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  aegis policy build aegis.d -O policies.bundle.json")]
pub(crate) struct Args {
    /// Folders and files with policies
    #[arg(required = true, value_name = "DIR|FILE")]
    paths: Vec<PathBuf>,
    /// Where the bundle goes
    #[arg(short = 'O', long, value_name = "FILE")]
    out: PathBuf,
}

pub(crate) fn run(args: &Args, cx: &Context) -> anyhow::Result<Outcome> {
    let (resources, problems) = folder::read(&args.paths)?;
    if let Some(problem) = problems.first() {
        anyhow::bail!("{problem}");
    }
    let policies = folder::policies(&resources);
    if policies.is_empty() {
        anyhow::bail!("there is no policy to build");
    }
    let compiled = folder::compiler()?.compile(&policies)?;
    if !compiled.failures.is_empty() {
        let wrong: Vec<String> = compiled
            .failures
            .iter()
            .map(|failure| format!("{}: {}", failure.policy, failure.message))
            .collect();
        anyhow::bail!("no bundle was written: {}", wrong.join("; "));
    }
    let bundle = compiled.bundle;
    fs::write(&args.out, serde_json::to_vec(&bundle)?)
        .with_context(|| format!("cannot write {}", args.out.display()))?;
    let (digest, modules, count) = (bundle.digest(), bundle.modules.len(), bundle.policies.len());
    match cx.format {
        Format::Json => output::json(&json!({
            "digest": digest, "modules": modules, "policies": count, "file": args.out,
        }))?,
        Format::Text => {
            let mut text = Text::new();
            let file = args.out.display();
            text.toned(Tone::Good, format!("wrote {file}"));
            text.field("digest", digest);
            text.field("policies", count);
            text.field("modules", modules);
            text.print()?;
        }
    }
    Ok(Outcome::Done)
}
