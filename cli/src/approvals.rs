//! `aegis approvals`: what waits for a human, and the answer.

mod enroll;

use aegis_api::control::{ApprovalView, VoteRequest};
use clap::Subcommand;

use crate::{
    Context, Outcome, cluster, log,
    output::{self, Format, Text, Tone},
};

/// See what waits for a human, and answer
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  aegis approvals list\n  aegis approvals approve 9s01zq5rj7 --comment 'agreed with ada'"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    cluster: cluster::ClusterArgs,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List approvals, those that wait first
    #[command(after_help = "Example:\n  aegis approvals list --pending")]
    List {
        /// Only those that still wait
        #[arg(long)]
        pending: bool,
    },
    /// Show one approval with its arguments (redacted) and answers
    #[command(after_help = "Example:\n  aegis approvals show 9s01zq5rj7")]
    Show {
        /// Its id
        id: String,
    },
    /// Agree to an action, once
    #[command(
        after_help = "Example:\n  aegis approvals approve ID --comment 'reviewed' --totp 123456"
    )]
    Approve(Vote),
    /// Refuse an action
    #[command(after_help = "Example:\n  aegis approvals deny ID --comment 'not during the freeze'")]
    Deny(Vote),
    Enroll(enroll::Args),
}

#[derive(Debug, clap::Args)]
struct Vote {
    /// The approval's id
    id: String,
    /// Why; recorded in the ledger
    #[arg(long)]
    comment: Option<String>,
    #[command(flatten)]
    factor: SecondFactor,
}

/// What confirms that a person asks.
#[derive(Debug, clap::Args)]
pub(crate) struct SecondFactor {
    /// A one-time code of your authenticator (`aegis approvals enroll`)
    #[arg(long, value_name = "CODE")]
    pub(crate) totp: Option<String>,
}

pub(crate) async fn run(args: Args, cx: &Context) -> anyhow::Result<Outcome> {
    if let Some(cluster) = args.cluster.connect().await? {
        return in_cluster(args.command, &cluster, cx).await;
    }
    match args.command {
        Command::List { pending } => list(pending, cx).await,
        Command::Show { id } => {
            let view: ApprovalView = cx.client.get(&path(&id)).await?;
            print(&view, cx)
        }
        Command::Approve(vote) => answer(vote, true, cx).await,
        Command::Deny(vote) => answer(vote, false, cx).await,
        Command::Enroll(args) => enroll::run(args, cx),
    }
}

async fn in_cluster(
    command: Command,
    cluster: &cluster::Cluster,
    cx: &Context,
) -> anyhow::Result<Outcome> {
    let (vote, approve) = match command {
        Command::List { pending } => {
            return cluster::approvals::list(cluster, pending, cx.format).await;
        }
        Command::Show { id } => return cluster::approvals::show(cluster, &id, cx.format).await,
        Command::Approve(vote) => (vote, true),
        Command::Deny(vote) => (vote, false),
        Command::Enroll(_) => anyhow::bail!("a cluster takes no one-time codes; use your login"),
    };
    if vote.comment.is_some() || vote.factor.totp.is_some() {
        anyhow::bail!("an answer in a cluster has neither comment nor code; leave them out");
    }
    cluster::approvals::answer(cluster, &vote.id, approve, cx.format).await
}

fn path(id: &str) -> String {
    format!("/v1/approvals/{}", log::encode(id))
}

async fn answer(vote: Vote, approve: bool, cx: &Context) -> anyhow::Result<Outcome> {
    let request = VoteRequest { approve, comment: vote.comment, totp: vote.factor.totp };
    let view: ApprovalView = cx.client.post(&path(&vote.id), &request).await?;
    print(&view, cx)
}

async fn list(pending: bool, cx: &Context) -> anyhow::Result<Outcome> {
    let mut views: Vec<ApprovalView> = cx.client.get("/v1/approvals").await?;
    views.retain(|view| !pending || view.state == "pending");
    views.sort_by_key(|view| (view.state != "pending", view.requested_at));
    if cx.format == Format::Json {
        output::json(&views)?;
        return Ok(Outcome::Done);
    }
    let mut text = Text::new();
    if views.is_empty() {
        text.line("nothing waits for approval");
    } else {
        let rows = views.iter().map(|view| {
            vec![
                view.id.clone(),
                view.state.clone(),
                view.agent.name().to_owned(),
                format!("{} {}", view.server, view.tool.as_deref().unwrap_or(&view.method)),
                format!("{} ‰", view.risk),
                view.expires_at.to_string(),
                view.message.clone(),
            ]
        });
        text.table(&["ID", "STATE", "AGENT", "ACTION", "RISK", "EXPIRES", "WHY"], rows.collect());
    }
    text.print()?;
    Ok(Outcome::Done)
}

fn print(view: &ApprovalView, cx: &Context) -> anyhow::Result<Outcome> {
    match cx.format {
        Format::Json => output::json(view)?,
        Format::Text => show(view).print()?,
    }
    Ok(Outcome::Done)
}

fn show(view: &ApprovalView) -> Text {
    let mut text = Text::new();
    text.field("approval", &view.id);
    text.toned(Tone::of(&view.state), format!("{:<14} {}", "state", view.state));
    text.field("agent", &view.agent);
    text.field("sponsor", view.sponsor.as_deref().unwrap_or("none"));
    text.field("server", &view.server);
    text.field("method", &view.method);
    if let Some(tool) = &view.tool {
        text.field("tool", tool);
    }
    if let Some(resource) = &view.resource {
        text.field("resource", resource);
    }
    text.field("arguments", &view.arguments);
    text.field("digest", view.digest);
    text.field("why", format!("{} ({})", view.message, view.reason));
    text.field("risk", format!("{} ‰, trust {}, tier {}", view.risk, view.trust, view.tier));
    let factor = if view.mfa { ", one with a second factor" } else { "" };
    text.field("needs", format!("{}{factor}", output::count(view.quorum, "approver")));
    text.field("asked", view.requested_at);
    text.field("expires", view.expires_at);
    for vote in &view.votes {
        let word = if vote.approve { "agreed" } else { "refused" };
        let comment = vote.comment.as_deref().map_or(String::new(), |text| format!(": {text}"));
        text.line(format!("{} {word} (factor: {}){comment}", vote.approver, vote.factor));
    }
    text
}
