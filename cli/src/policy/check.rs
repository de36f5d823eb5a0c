//! `aegis policy check`: parse and validate every resource, compile and load every policy.

use std::path::PathBuf;

use aegis_policy::{PolicyState, PolicyStatus};
use serde_json::json;

use super::folder;
use crate::{
    Context, Outcome, names,
    output::{self, Format, Text, Tone},
};

/// Check resources: syntax, fields, bounds, and that every policy compiles
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  aegis policy check aegis.d policies/sql/policy.yaml")]
pub(crate) struct Args {
    /// Folders (with their subfolders) and files
    #[arg(required = true, value_name = "DIR|FILE")]
    paths: Vec<PathBuf>,
}

pub(crate) fn run(args: &Args, cx: &Context) -> anyhow::Result<Outcome> {
    let (resources, mut problems) = folder::read(&args.paths)?;
    let policies = folder::policies(&resources);
    let places = folder::places(&resources);
    let others = resources.identities.len()
        + resources.thresholds.len()
        + resources.cluster_thresholds.len()
        + resources.upstreams.len();
    if policies.is_empty() && others == 0 && problems.is_empty() {
        let places: Vec<String> = args.paths.iter().map(|p| p.display().to_string()).collect();
        anyhow::bail!(
            "there is no resource in {}; write a first one with `aegis init`",
            places.join(", ")
        );
    }
    let statuses = if policies.is_empty() { Vec::new() } else { compile(&policies)? };
    problems.sort_by(|a, b| a.place.cmp(&b.place));
    let doubts = names::warnings(&policies, &folder::servers(&resources));
    let sound = problems.is_empty() && statuses.iter().all(is_ready);
    match cx.format {
        Format::Json => {
            let told = statuses.iter().map(|status| {
                json!({
                    "policy": status.policy.to_string(), "kind": status.policy.kind,
                    "place": places.get(&status.policy).map(|place| place.in_rego(status.line)),
                    "ready": is_ready(status), "message": status.message, "line": status.line,
                })
            });
            let wrong = problems
                .iter()
                .map(|problem| json!({ "place": problem.place, "message": problem.message }));
            output::json(&json!({
                "ok": sound, "policies": told.collect::<Vec<_>>(), "other_resources": others,
                "problems": wrong.collect::<Vec<_>>(), "warnings": doubts,
            }))?;
        }
        Format::Text => {
            let mut text = Text::new();
            for status in &statuses {
                let place = places.get(&status.policy).map(|place| place.in_rego(status.line));
                tell(&mut text, status, place.as_deref());
            }
            for problem in &problems {
                text.toned(Tone::Bad, format!("wrong  {problem}"));
            }
            for doubt in &doubts {
                text.toned(Tone::Warn, format!("doubt  {doubt}"));
            }
            text.line(format!(
                "policies: {}, other resources: {others}; {}",
                statuses.len(),
                if sound { "all sound" } else { "not all are sound" }
            ));
            text.print()?;
        }
    }
    Ok(if sound { Outcome::Done } else { Outcome::Failed })
}

fn compile(policies: &[aegis_policy::Policy]) -> anyhow::Result<Vec<PolicyStatus>> {
    let engine = folder::engines()?();
    Ok(engine.reload(&folder::compiler()?, policies)?)
}

pub(crate) fn is_ready(status: &PolicyStatus) -> bool {
    status.state == PolicyState::Ready
}

/// One line on a policy, with its place where that is known.
pub(crate) fn tell(text: &mut Text, status: &PolicyStatus, at: Option<&str>) {
    let (kind, name) = (status.policy.kind, &status.policy);
    if is_ready(status) {
        text.toned(Tone::Good, format!("ok     {kind:?} {name}"));
    } else {
        let at = at.map_or_else(String::new, |at| format!("{at}: "));
        let place = if status.line.is_some() { "in its Rego, " } else { "" };
        text.toned(Tone::Bad, format!("wrong  {at}{kind:?} {name}: {place}{}", status.message));
    }
}
