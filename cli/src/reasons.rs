//! `aegis reasons`: the closed list of reasons, from the code itself.

use std::fmt::Write as _;

use aegis_core::decision::Reason;
use serde_json::{Value, json};

use crate::{
    Context, Outcome,
    output::{self, Format},
};

/// Print every reason a decision can have, as a Markdown table
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  aegis reasons -o json | jq -r '.[].code'")]
pub(crate) struct Args {}

pub(crate) fn run(_: &Args, cx: &Context) -> anyhow::Result<Outcome> {
    match cx.format {
        Format::Text => output::emit(&table())?,
        Format::Json => output::json(&list())?,
    }
    Ok(Outcome::Done)
}

fn list() -> Vec<Value> {
    let told = |reason: &Reason| {
        json!({
            "code": reason.code(),
            "meaning": reason.sentence(),
            "counts_against_agent": reason.counts_against_agent(),
        })
    };
    Reason::ALL.iter().map(told).collect()
}

/// The reasons as a Markdown table.
pub(crate) fn table() -> String {
    let mut out =
        String::from("| code | meaning | counts against the agent's trust |\n|---|---|---|\n");
    for reason in Reason::ALL {
        let counts = if reason.counts_against_agent() { "yes" } else { "no" };
        let _ = writeln!(out, "| `{}` | {} | {counts} |", reason.code(), reason.sentence());
    }
    out
}
