//! `aegis policy eval`: any module that `opa build -t wasm` made, run by the engine that decides.

use std::{fs, path::PathBuf};

use aegis_policy::{Host, Limits, eval_module};
use anyhow::Context as _;

use crate::{Outcome, output};

/// Evaluate a WebAssembly module made by `opa build -t wasm`; print the result set as JSON
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  aegis policy eval --wasm policy.wasm --input input.json --entrypoint example/allow"
)]
pub(crate) struct Args {
    /// The module
    #[arg(long, value_name = "FILE")]
    wasm: PathBuf,
    /// The data document (JSON); default: {}
    #[arg(long, value_name = "FILE")]
    data: Option<PathBuf>,
    /// The input document (JSON); default: none, so that `input` is undefined
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// The entry point, such as example/allow; default: the module's first
    #[arg(long)]
    entrypoint: Option<String>,
}

pub(crate) fn run(args: &Args) -> anyhow::Result<Outcome> {
    let wasm = fs::read(&args.wasm)
        .with_context(|| format!("cannot read the module {}", args.wasm.display()))?;
    let document = |path: &Option<PathBuf>| -> anyhow::Result<Option<String>> {
        let Some(path) = path else { return Ok(None) };
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        serde_json::from_str::<serde::de::IgnoredAny>(&text)
            .with_context(|| format!("{} is not JSON", path.display()))?;
        Ok(Some(text))
    };
    let (data, input) = (document(&args.data)?, document(&args.input)?);
    let host = Host::new(Limits::default(), None)?;
    let entrypoint = args.entrypoint.as_deref();
    let result = eval_module(&host, &wasm, data.as_deref(), input.as_deref(), entrypoint)
        .with_context(|| format!("{} cannot be evaluated", args.wasm.display()))?;
    output::json(&result)?;
    Ok(Outcome::Done)
}
