//! `aegis explain`: the whole computation of a hypothetical action.

use aegis_api::control::{ActionQuestion, Explanation};
use serde_json::Value;

use crate::{
    Context, Outcome, agents,
    output::{self, Format, Text, Tone},
};

/// Explain what would be decided about an action, and why; nothing is recorded or done
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  aegis explain --server files --tool write_file --arguments '{\"path\":\"/srv/a.txt\"}'"
)]
pub(crate) struct Args {
    /// The upstream
    #[arg(long)]
    server: String,
    /// The tool; the method is then tools/call
    #[arg(long)]
    tool: Option<String>,
    /// The protocol's method, such as resources/read
    #[arg(long, conflicts_with = "tool")]
    method: Option<String>,
    /// The resource: a URI or path
    #[arg(long)]
    resource: Option<String>,
    /// The arguments, as JSON
    #[arg(long, value_name = "JSON", value_parser = parse_json, default_value = "{}")]
    arguments: Value,
    /// Who would act: a SPIFFE ID or a name; default: the only registered agent
    #[arg(long, value_name = "AGENT")]
    agent: Option<String>,
}

fn parse_json(text: &str) -> Result<Value, String> {
    serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))
}

pub(crate) async fn run(args: Args, cx: &Context) -> anyhow::Result<Outcome> {
    let agent = match &args.agent {
        Some(text) => Some(agents::find(text, cx).await?),
        None => None,
    };
    let Args { server, tool, method, resource, arguments, .. } = args;
    let question = ActionQuestion { agent, server, method, tool, resource, arguments };
    let told: Explanation = cx.client.post("/v1/explain", &question).await?;
    match cx.format {
        Format::Json => output::json(&told)?,
        Format::Text => show(&told).print()?,
    }
    Ok(Outcome::Done)
}

fn show(told: &Explanation) -> Text {
    let mut text = Text::new();
    text.toned(
        Tone::of(&told.verdict),
        format!("{}: {} ({})", told.verdict, told.message, told.reason),
    );
    for note in &told.notes {
        text.toned(Tone::Warn, note);
    }
    text.field("digest", &told.digest);
    text.list("Computation:", &told.computation);
    if told.rules.is_empty() {
        text.line("No rule spoke.");
    }
    text.list("Rules that spoke:", &told.rules);
    text.list("What would have allowed it:", &told.would_allow);
    text
}
