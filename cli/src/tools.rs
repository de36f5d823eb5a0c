//! `aegis tools`: the tools that were seen, their pins, and pinning a changed one.

use aegis_api::control::{Done, PinRequest, ToolView};
use aegis_core::Digest;
use clap::Subcommand;

use crate::{
    Context, Outcome,
    approvals::SecondFactor,
    output::{self, Format, Text, Tone},
};

/// List the tools of upstreams with their pins; agree to a changed definition
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  aegis tools list files")]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List tools, their pins and what looks suspicious
    #[command(after_help = "Example:\n  aegis tools list files -o json")]
    List {
        /// Only of this upstream
        server: Option<String>,
    },
    /// Agree to the definition of a tool that was seen last
    #[command(
        after_help = "Example:\n  aegis tools pin files read_file --digest sha256:…   # the digest that `aegis tools list` shows as seen"
    )]
    Pin {
        /// The upstream
        server: String,
        /// The tool
        tool: String,
        /// The digest you agree to; refused if another definition was seen meanwhile
        #[arg(long)]
        digest: Digest,
        #[command(flatten)]
        factor: SecondFactor,
    },
}

pub(crate) async fn run(args: Args, cx: &Context) -> anyhow::Result<Outcome> {
    match args.command {
        Command::List { server } => list(server.as_deref(), cx).await,
        Command::Pin { server, tool, digest, factor } => {
            let request = PinRequest { server, tool, digest, totp: factor.totp };
            let done: Done = cx.client.post("/v1/tools", &request).await?;
            match cx.format {
                Format::Json => output::json(&done)?,
                Format::Text => {
                    let mut text = Text::new();
                    let (tool, server, index) = (&request.tool, &request.server, done.index);
                    let said = format!("{tool} of {server} is pinned to {digest}");
                    text.toned(Tone::Good, format!("{said}; recorded as entry {index}"));
                    text.print()?;
                }
            }
            Ok(Outcome::Done)
        }
    }
}

async fn list(server: Option<&str>, cx: &Context) -> anyhow::Result<Outcome> {
    let mut tools: Vec<ToolView> = cx.client.get("/v1/tools").await?;
    tools.retain(|tool| server.is_none_or(|server| tool.server == server));
    if cx.format == Format::Json {
        output::json(&tools)?;
        return Ok(Outcome::Done);
    }
    let mut text = Text::new();
    if tools.is_empty() {
        text.line("no tool has been seen yet: tools are seen when an agent lists them");
    } else {
        let rows = tools.iter().map(|tool| {
            let state = match (tool.quarantined, tool.pinned) {
                (true, _) => "quarantined",
                (false, Some(_)) => "pinned",
                (false, None) => "not pinned",
            };
            let state = state.to_owned();
            vec![tool.server.clone(), tool.tool.clone(), state, tool.seen.to_string()]
        });
        text.table(&["SERVER", "TOOL", "STATE", "SEEN"], rows.collect());
    }
    for tool in &tools {
        for warning in &tool.warnings {
            text.toned(Tone::Warn, format!("{}/{}: {warning}", tool.server, tool.tool));
        }
    }
    text.print()?;
    Ok(Outcome::Done)
}
