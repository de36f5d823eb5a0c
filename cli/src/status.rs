//! `aegis status`: how the daemon stands, and what it does not cover.

use aegis_api::control::Status;

use crate::{
    Context, Outcome,
    cluster::{self, status::ClusterStatus},
    output::{self, Format, Text, Tone},
};

/// Show how the daemon stands, and what is not covered
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  aegis status --check || echo 'something is broken'\n  aegis status --cluster --check --coverage"
)]
pub(crate) struct Args {
    /// Fail (exit 1) if anything that is configured does not work as it says: a document or policy
    /// that is broken, an upstream that does not listen
    #[arg(long)]
    check: bool,
    /// With --check: fail also if anything is not covered. On one machine something always is
    #[arg(long, requires = "check")]
    coverage: bool,
    #[command(flatten)]
    cluster: cluster::ClusterArgs,
}

pub(crate) async fn run(args: Args, cx: &Context) -> anyhow::Result<Outcome> {
    if let Some(cluster) = args.cluster.connect().await? {
        let status = ClusterStatus::of(&cluster).await?;
        match cx.format {
            Format::Json => output::json(&status)?,
            Format::Text => status.show().print()?,
        }
        let uncovered = args.coverage && !status.is_covered();
        let failed = args.check && (!status.is_sound() || uncovered);
        return Ok(if failed { Outcome::Failed } else { Outcome::Done });
    }
    let status: Status = cx.client.get("/v1/status").await?;
    match cx.format {
        Format::Json => output::json(&status)?,
        Format::Text => show(&status).print()?,
    }
    let uncovered = args.coverage && !status.not_covered.is_empty();
    let failed = args.check && (!is_sound(&status) || uncovered);
    Ok(if failed { Outcome::Failed } else { Outcome::Done })
}

/// Whether everything that is configured works as its configuration says. What nobody can cover on
/// one machine is no fault of it.
fn is_sound(status: &Status) -> bool {
    status.problems.is_empty() && status.policies.iter().all(|policy| policy.state == "ready")
}

fn show(status: &Status) -> Text {
    let mut text = Text::new();
    text.line(format!("Aegis {} (process {})", status.version, status.pid));
    text.field("since", status.started_at);
    text.field("trust domain", &status.trust_domain);
    text.field("config", &status.config);
    text.field("audit", &status.audit);
    let ledger = &status.ledger;
    text.field("ledger", format!("{} with {} entries", ledger.place, ledger.size));
    text.field("origin", &ledger.origin);
    text.field("verifier key", &ledger.verifier_key);
    upstreams(&mut text, status);
    policies(&mut text, status);
    agents(&mut text, status);
    text.line("");
    if status.not_covered.is_empty() {
        text.toned(Tone::Good, "Everything that is configured is covered.");
    } else {
        text.toned(Tone::Bad, "Not covered:");
        text.items(&status.not_covered);
    }
    for (heading, items) in [
        ("Problems:", &status.problems),
        ("Probably not meant:", &status.warnings),
        ("Advisory only, because the agent's own user could do the same:", &status.advisory),
    ] {
        if !items.is_empty() {
            text.toned(Tone::Warn, heading);
            text.items(items);
        }
    }
    text
}

fn upstreams(text: &mut Text, status: &Status) {
    text.line("");
    if status.upstreams.is_empty() {
        text.toned(Tone::Warn, "No upstreams: add an AgentUpstream to the config folder.");
        return;
    }
    let rows = status.upstreams.iter().map(|upstream| {
        vec![
            format!("{}/{}", upstream.namespace, upstream.name),
            upstream.address.clone(),
            upstream.pinned.to_string(),
            upstream.quarantined.to_string(),
            upstream.target.clone(),
        ]
    });
    text.table(&["UPSTREAM", "ADDRESS", "PINNED", "QUARANTINED", "TARGET"], rows.collect());
}

fn policies(text: &mut Text, status: &Status) {
    text.line("");
    if status.policies.is_empty() {
        text.toned(Tone::Warn, "No policies: every action is denied.");
        return;
    }
    let rows = status
        .policies
        .iter()
        .map(|policy| vec![policy.name.clone(), policy.state.clone(), policy.message.clone()]);
    text.table(&["POLICY", "STATE", "MESSAGE"], rows.collect());
}

fn agents(text: &mut Text, status: &Status) {
    text.line("");
    if status.agents.is_empty() {
        text.toned(Tone::Warn, "No agents: add an AgentIdentity to the config folder.");
    } else {
        crate::agents::table(text, &status.agents);
    }
}
