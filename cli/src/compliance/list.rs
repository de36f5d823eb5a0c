//! `aegis compliance controls`: what a report would look for. Needs no ledger.

use super::framework::{Control, Framework};
use crate::{
    Context, Outcome,
    output::{self, Format, Text, Tone},
};

/// List the controls of frameworks: what is evidence for them, and which nothing here can show
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  aegis compliance controls --framework gdpr -o json")]
pub(crate) struct Args {
    /// Of this framework: eu-ai-act, gdpr, hipaa, soc2, or a file; may be repeated. Default: all four
    #[arg(long, value_name = "NAME|FILE", value_parser = framework)]
    framework: Vec<Framework>,
}

/// A framework that is named on the command line.
pub(super) fn framework(name: &str) -> Result<Framework, String> {
    Framework::load(name).map_err(|error| format!("{error:#}"))
}

/// Those that were named, or all that come with Aegis.
pub(super) fn chosen(named: &[Framework]) -> anyhow::Result<Vec<Framework>> {
    if named.is_empty() {
        return Framework::names().map(Framework::load).collect();
    }
    let mut chosen: Vec<Framework> = Vec::new();
    for framework in named {
        if !chosen.iter().any(|known| known.id == framework.id) {
            chosen.push(framework.clone());
        }
    }
    Ok(chosen)
}

pub(crate) fn run(args: &Args, cx: &Context) -> anyhow::Result<Outcome> {
    let frameworks = chosen(&args.framework)?;
    if cx.format == Format::Json {
        output::json(&frameworks)?;
        return Ok(Outcome::Done);
    }
    let mut text = Text::new();
    for framework in &frameworks {
        text.line(format!("{}: {} ({})", framework.id, framework.title, framework.edition));
        for control in &framework.controls {
            show(&mut text, control);
        }
    }
    text.print()?;
    Ok(Outcome::Done)
}

fn show(text: &mut Text, control: &Control) {
    text.line(format!("  {}  {}", control.id, control.title));
    if let Some(why) = &control.nothing {
        text.toned(Tone::Warn, format!("    nothing here can show it: {why}"));
        return;
    }
    for evidence in &control.evidence {
        let against = if evidence.against { " (speaks against)" } else { "" };
        text.line(format!("    {}{against}", evidence.shows));
    }
    if control.by_policies {
        text.line(format!("    Decisions of policies tagged with `{}`", control.id));
    }
}
