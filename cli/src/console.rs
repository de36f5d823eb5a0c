//! `aegis console`: a link to the daemon's console that signs one browser in.

use aegis_api::control::{ConsoleLink, ConsoleRequest};

use crate::{
    Context,
    output::{self, Format, Text},
};

/// Print a link to the console in a browser
///
/// The link works once, within an hour, for a browser of an operator on this machine. What it opens lasts
/// for twelve hours, or until the daemon ends.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  aegis console\n  aegis console --read-only")]
pub(crate) struct Args {
    /// A session that sees everything and decides nothing
    #[arg(long)]
    read_only: bool,
}

pub(crate) async fn run(args: Args, cx: &Context) -> anyhow::Result<()> {
    let request = ConsoleRequest { read_only: args.read_only };
    let link: ConsoleLink = cx.client.post("/v1/console", &request).await?;
    match cx.format {
        Format::Json => output::json(&link)?,
        Format::Text => {
            let mut text = Text::new();
            text.line(&link.url);
            text.print()?;
        }
    }
    Ok(())
}
