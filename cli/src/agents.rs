//! `aegis agents`: who is registered; quarantine, release and revoke; breaking the glass.

use aegis_api::control::{
    AgentOrder, AgentStatus, Done, GlassOrder, MAX_GLASS_MINUTES, Order, Status,
};
use aegis_core::AgentId;
use anyhow::{anyhow, bail};
use clap::Subcommand;

use crate::{
    Context, Outcome,
    approvals::SecondFactor,
    output::{self, Format, Text, Tone},
};

/// List agents; quarantine, release or revoke one; lift the policies for one
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  aegis agents quarantine buyer --reason 'reads what it should not'"
)]
pub(crate) struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List the registered agents
    #[command(after_help = "Example:\n  aegis agents list -o json")]
    List,
    /// Deny every action of an agent until it is released
    #[command(
        after_help = "Example:\n  aegis agents quarantine buyer --reason 'under investigation'"
    )]
    Quarantine(OrderArgs),
    /// End a quarantine
    #[command(after_help = "Example:\n  aegis agents release buyer --reason 'a false alarm'")]
    Release(OrderArgs),
    /// End an agent's identity now; it cannot be undone
    #[command(after_help = "Example:\n  aegis agents revoke buyer --reason 'its key was stolen'")]
    Revoke(OrderArgs),
    /// Lift the policies for an agent for a while: what they refuse or ask about passes, and is recorded as
    /// that. It ends by itself, by `end-break-glass`, and with the daemon
    #[command(
        after_help = "Example:\n  aegis agents break-glass buyer --minutes 15 --reason 'restore the orders by hand'"
    )]
    BreakGlass(GlassArgs),
    /// Put the policies in force again
    #[command(
        after_help = "Example:\n  aegis agents end-break-glass buyer --reason 'it is restored'"
    )]
    EndBreakGlass(OrderArgs),
}

#[derive(Debug, clap::Args)]
struct GlassArgs {
    /// For how long
    #[arg(long, default_value_t = 30, value_name = "MINUTES", value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_GLASS_MINUTES)))]
    minutes: u16,
    #[command(flatten)]
    order: OrderArgs,
}

#[derive(Debug, clap::Args)]
struct OrderArgs {
    /// The agent's SPIFFE ID, or its name where that is unambiguous
    agent: String,
    /// Why; recorded in the ledger
    #[arg(long)]
    reason: String,
    #[command(flatten)]
    factor: SecondFactor,
}

pub(crate) async fn run(args: Args, cx: &Context) -> anyhow::Result<Outcome> {
    match args.command {
        Command::List => list(cx).await,
        Command::Quarantine(args) => order(args, Order::Quarantine, cx).await,
        Command::Release(args) => order(args, Order::Release, cx).await,
        Command::Revoke(args) => order(args, Order::Revoke, cx).await,
        Command::BreakGlass(args) => glass(args.order, args.minutes, cx).await,
        Command::EndBreakGlass(args) => glass(args, 0, cx).await,
    }
}

async fn list(cx: &Context) -> anyhow::Result<Outcome> {
    let status: Status = cx.client.get("/v1/status").await?;
    match cx.format {
        Format::Json => output::json(&status.agents)?,
        Format::Text => {
            let mut text = Text::new();
            table(&mut text, &status.agents);
            text.print()?;
        }
    }
    Ok(Outcome::Done)
}

async fn order(args: OrderArgs, order: Order, cx: &Context) -> anyhow::Result<Outcome> {
    let agent = find(&args.agent, cx).await?;
    let request = AgentOrder { agent, order, reason: args.reason, totp: args.factor.totp };
    let done: Done = cx.client.post("/v1/agents", &request).await?;
    let what = match order {
        Order::Quarantine => "is quarantined",
        Order::Release => "is released",
        Order::Revoke => "is revoked",
    };
    tell(&format!("{} {what}", request.agent), &done, cx)
}

async fn glass(args: OrderArgs, minutes: u16, cx: &Context) -> anyhow::Result<Outcome> {
    let agent = find(&args.agent, cx).await?;
    let request = GlassOrder { agent, minutes, reason: args.reason, totp: args.factor.totp };
    let done: Done = cx.client.post("/v1/glass", &request).await?;
    let what = match minutes {
        0 => format!("{} is under its policies", request.agent),
        _ => format!("the policies are lifted for {} for {minutes} min", request.agent),
    };
    tell(&what, &done, cx)
}

fn tell(what: &str, done: &Done, cx: &Context) -> anyhow::Result<Outcome> {
    match cx.format {
        Format::Json => output::json(done)?,
        Format::Text => {
            let mut text = Text::new();
            text.toned(Tone::Good, format!("{what}; recorded as entry {}", done.index));
            text.print()?;
        }
    }
    Ok(Outcome::Done)
}

pub(crate) fn table(text: &mut Text, agents: &[AgentStatus]) {
    let rows = agents.iter().map(|agent| {
        let state = match (agent.revoked, agent.quarantined, agent.glass_broken_until) {
            (true, ..) => "revoked".to_owned(),
            (false, true, _) => "quarantined".to_owned(),
            (false, false, Some(until)) => format!("without policies until {until}"),
            (false, false, None) => "active".to_owned(),
        };
        vec![agent.id.to_string(), agent.sponsor.clone(), agent.trust.to_string(), state]
    });
    text.table(&["AGENT", "SPONSOR", "TRUST", "STATE"], rows.collect());
}

/// The agent that a person means: a SPIFFE ID as it is, a name as the daemon knows it.
///
/// # Errors
/// When nobody or more than one is called so.
pub(crate) async fn find(text: &str, cx: &Context) -> anyhow::Result<AgentId> {
    if text.starts_with("spiffe://") {
        return Ok(text.parse::<AgentId>()?);
    }
    let status: Status = cx.client.get("/v1/status").await?;
    named(text, status.agents.into_iter().map(|agent| agent.id).collect())
}

/// The one agent of this name.
///
/// # Errors
/// When nobody or more than one is called so.
pub(crate) fn named(text: &str, known: Vec<AgentId>) -> anyhow::Result<AgentId> {
    let mut matching: Vec<AgentId> = known.into_iter().filter(|id| id.name() == text).collect();
    let first = matching.pop().ok_or_else(|| {
        anyhow!("no agent is called `{text}`; `aegis agents list` names those that are registered")
    })?;
    if let Some(second) = matching.first() {
        bail!("`{text}` could be {first} or {second}; give the whole SPIFFE ID");
    }
    Ok(first)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_must_mean_one_agent() {
        let id = |text: &str| text.parse::<AgentId>().unwrap();
        let a = id("spiffe://acme.example/ns/a/sa/x/agent/buyer");
        let b = id("spiffe://acme.example/ns/b/sa/x/agent/buyer");
        assert_eq!(named("buyer", vec![a.clone()]).unwrap(), a);
        assert!(named("seller", vec![a.clone()]).unwrap_err().to_string().contains("no agent"));
        assert!(named("buyer", vec![a, b]).unwrap_err().to_string().contains("whole SPIFFE ID"));
    }
}
