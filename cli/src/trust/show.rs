//! `aegis trust show`.

use aegis_api::control::TrustView;

use super::observations;
use crate::{
    Context, Outcome, agents,
    output::{self, Format, Text, Tone},
};

/// Show the trust in agents
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  aegis trust show buyer -o json")]
pub(crate) struct Args {
    /// Only this one: a SPIFFE ID or a name
    agent: Option<String>,
}

pub(crate) async fn run(args: Args, cx: &Context) -> anyhow::Result<Outcome> {
    let views: Vec<TrustView> = cx.client.get("/v1/trust").await?;
    of(args, views, cx)
}

/// Shows what the daemon, or a cluster's ledger, has told.
pub(super) fn of(args: Args, mut views: Vec<TrustView>, cx: &Context) -> anyhow::Result<Outcome> {
    if let Some(wanted) = &args.agent {
        let known = views.iter().map(|view| view.agent.clone()).collect();
        let agent = match wanted.starts_with("spiffe://") {
            true => wanted.parse()?,
            false => agents::named(wanted, known)?,
        };
        views.retain(|view| view.agent == agent);
        if views.is_empty() {
            anyhow::bail!(
                "nothing is known of {agent}; it is not registered, or has not acted yet"
            );
        }
    }
    if cx.format == Format::Json {
        output::json(&views)?;
        return Ok(Outcome::Done);
    }
    let mut text = Text::new();
    if views.is_empty() {
        text.line("no agent is known");
    } else {
        text.table(
            &["AGENT", "TRUST", "STANDING", "STAGE", "FOR (a)", "AGAINST (b)", "BELOW CRITICAL"],
            views.iter().map(row).collect(),
        );
        let as_of = views.iter().map(|view| view.as_of).max().unwrap_or(0);
        text.line(format!("folded from {as_of} ledger entries; `aegis trust replay` checks that"));
    }
    for view in views.iter().filter(|view| view.quarantined) {
        text.toned(Tone::Bad, format!("{} is quarantined by its own posterior", view.agent));
    }
    text.print()?;
    Ok(Outcome::Done)
}

fn row(view: &TrustView) -> Vec<String> {
    vec![
        view.agent.to_string(),
        view.score.to_string(),
        view.standing.clone(),
        view.stage.clone(),
        observations(view.a),
        observations(view.b),
        format!("{} ‰", view.below_critical),
    ]
}
