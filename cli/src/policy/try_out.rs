//! `aegis policy try`: what policies say to one request.

use std::path::PathBuf;

use aegis_core::policy::{Effect, Mode};
use aegis_policy::{
    Evaluation, Finding,
    sandbox::{Trial, try_request},
};
use serde_json::{Value, json};

use super::{check, folder};
use crate::{
    Context, Outcome,
    output::{self, Format, Text, Tone},
};

/// Evaluate one request against policies; nothing is recorded or done
///
/// The request is a YAML or JSON file, written as a case's `request` in a sandbox:
/// {tool: write_file, server: files, arguments: {path: /srv/a.txt}, agent: spiffe://…, trust: 700}
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  aegis policy try aegis.d --request request.yaml")]
pub(crate) struct Args {
    /// Folders and files with policies
    #[arg(required = true, value_name = "DIR|FILE")]
    paths: Vec<PathBuf>,
    /// The request
    #[arg(long, value_name = "FILE")]
    request: PathBuf,
}

pub(crate) fn run(args: &Args, cx: &Context) -> anyhow::Result<Outcome> {
    let (resources, problems) = folder::read(&args.paths)?;
    if let Some(problem) = problems.first() {
        anyhow::bail!("{problem}");
    }
    let engine = folder::engines()?();
    let statuses = engine.reload(&folder::compiler()?, &folder::policies(&resources))?;
    if statuses.iter().any(|status| !check::is_ready(status)) {
        let mut text = Text::new();
        statuses.iter().for_each(|status| check::tell(&mut text, status, None));
        text.print()?;
        return Ok(Outcome::Failed);
    }
    let trial = try_request(&engine, &args.request)?;
    match cx.format {
        Format::Json => output::json(&as_json(&trial))?,
        Format::Text => show(&trial).print()?,
    }
    Ok(Outcome::Done)
}

/// The verdict that follows: what nothing allows is denied.
const fn verdict(effect: Option<Effect>) -> &'static str {
    match effect {
        Some(Effect::Allow) => "allow",
        Some(Effect::RequireApproval) => "require_approval",
        Some(Effect::Deny) | None => "deny",
    }
}

fn is_listed(list: &Evaluation) -> bool {
    matches!(list.effect, Some(Effect::Allow | Effect::RequireApproval))
}

fn as_json(trial: &Trial) -> Value {
    let finding = |finding: &Finding| {
        json!({
            "policy": finding.policy().to_string(), "rule": finding.rule.name,
            "effect": finding.effect, "mode": finding.rule.mode, "reason": finding.reason(),
            "error": finding.error.as_ref().map(ToString::to_string),
        })
    };
    let act = &trial.act;
    json!({
        "verdict": verdict(act.effect),
        "approvals": act.approvals(),
        "mfa": act.require_mfa(),
        "obligations": act.obligations().collect::<Vec<_>>(),
        "listed": is_listed(&trial.list),
        "if_audit_enforced": verdict(act.audited),
        "findings": act.findings.iter().map(finding).collect::<Vec<_>>(),
    })
}

fn show(trial: &Trial) -> Text {
    let act = &trial.act;
    let mut text = Text::new();
    let word = verdict(act.effect);
    let why = if act.effect.is_none() { ": no policy allows it" } else { "" };
    text.toned(Tone::of(word), format!("{word}{why}"));
    for finding in &act.findings {
        let audit =
            if finding.rule.mode == Mode::Audit { " (audit mode: does not count)" } else { "" };
        let said = finding.reason().map_or(String::new(), |reason| format!(": {reason}"));
        let error = finding.error.as_ref().map_or(String::new(), |error| format!(" [{error}]"));
        text.line(format!(
            "  {}#{} {}{audit}{said}{error}",
            finding.policy(),
            finding.rule.name,
            verdict(Some(finding.effect))
        ));
    }
    if act.effect == Some(Effect::RequireApproval) {
        let factor = if act.require_mfa() { ", one with a second factor" } else { "" };
        let approvers = output::count(act.approvals(), "approver");
        text.line(format!("needs {approvers}{factor}"));
    }
    for obligation in act.obligations() {
        text.line(format!("obliges: {:?} {}", obligation.kind, obligation.target));
    }
    text.line(if is_listed(&trial.list) { "shown in lists" } else { "hidden from lists" });
    text
}
