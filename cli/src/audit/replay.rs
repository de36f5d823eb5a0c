//! `aegis audit replay`: a recorded run, step by step, and what other policies would have said.
//!
//! A step is decided again only if the ledger holds all of it: the digest of the recorded action must
//! come out of what is recorded. Redacted or omitted arguments are told as such, and nothing is guessed.

use std::path::PathBuf;

use aegis_audit::{Entry, Filter, Kind, query::MAX_PAGE};
use aegis_core::{
    AgentId,
    action::Protocol,
    decision::Reason,
    input::{ActionInput, ContextInput, Input, PrincipalInput},
    policy::{Mode, Scope},
    risk::{Facts, Grade, PerMille, Risk},
    tier::Tier,
    trust::TrustScore,
};
use aegis_kernel::verdict;
use aegis_policy::PolicyEngine;
use anyhow::{Context as _, bail};
use serde::Serialize;
use serde_json::{Value, json};

use super::Source;
use crate::{
    Context, Outcome,
    log::Log,
    output::{self, Format, Text, Tone},
    policy::{check, folder},
    recorded::{self, Fate},
};

/// Step through a recorded run; decide each step again by other policies, and show the differences
///
/// A run is what shares a session, a trace or a decision. What is not recorded is taken as absent:
/// rates, capabilities, provenance and the namespace of the server.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  aegis audit replay 0af7651916cd43dd8448eb211c80319c --policies next.d\n  aegis audit replay SESSION --policies next.d --recorded aegis.d --database copy-of-ledger.db -o json"
)]
pub(crate) struct Args {
    /// The run: a session, a trace ID (32 hexadecimal digits) or a decision
    run: String,
    #[command(flatten)]
    source: Source,
    /// The policies to decide by: folders and files
    #[arg(long, value_name = "DIR|FILE", required = true)]
    policies: Vec<PathBuf>,
    /// The policies as they were: each step is decided by them too, if they are the recorded versions
    #[arg(long, value_name = "DIR|FILE")]
    recorded: Vec<PathBuf>,
}

/// What policies say to a step now.
#[derive(Debug, Serialize)]
struct Again {
    fate: Fate,
    reason: &'static str,
    rules: Vec<String>,
}

/// One decision of the run.
#[derive(Debug)]
struct Step {
    index: u64,
    entry: Entry,
    fate: Option<Fate>,
    /// By the policies as they were, and by the others; or why not.
    recorded: Option<Result<Again, String>>,
    other: Result<Again, String>,
    ending: Option<String>,
}

impl Step {
    fn differs(&self) -> bool {
        self.other.as_ref().is_ok_and(|again| Some(again.fate) != self.fate)
    }
}

pub(crate) async fn run(args: Args, cx: &Context) -> anyhow::Result<Outcome> {
    let other = engine(&args.policies)?;
    let as_they_were = match args.recorded.is_empty() {
        true => None,
        false => Some(engine(&args.recorded)?),
    };
    let log = Log::open(args.source.database.as_ref(), &cx.client).await?;
    let mut steps = Vec::new();
    for (index, entry) in of_run(&log, &args.run).await? {
        let reason = entry.reason.as_deref().and_then(|code| code.parse::<Reason>().ok());
        let recorded = as_they_were
            .as_ref()
            .map(|engine| same_versions(engine, &entry).and_then(|()| again(engine, &entry)));
        steps.push(Step {
            index,
            fate: reason.map(|reason| Fate::recorded(&entry, reason)),
            recorded,
            other: again(&other, &entry),
            ending: ending(&log, &entry).await?,
            entry,
        });
    }
    if steps.is_empty() {
        bail!(
            "no decision is recorded of the run `{}`; give a session, a trace ID or a decision, as `aegis audit query -o json` shows them",
            args.run
        );
    }
    match cx.format {
        Format::Json => output::json(&told(&args.run, &steps))?,
        Format::Text => show(&steps).print()?,
    }
    Ok(Outcome::Done)
}

/// An engine with these policies, all of which must be sound.
fn engine(paths: &[PathBuf]) -> anyhow::Result<PolicyEngine> {
    let (resources, problems) = folder::read(paths)?;
    if let Some(problem) = problems.first() {
        bail!("{problem}");
    }
    let engine = folder::engines()?();
    let statuses = engine.reload(&folder::compiler()?, &folder::policies(&resources))?;
    if let Some(broken) = statuses.iter().find(|status| !check::is_ready(status)) {
        bail!("policy {} does not compile: {}", broken.policy, broken.message);
    }
    Ok(engine)
}

/// The decisions of a run, the oldest first.
async fn of_run(log: &Log, run: &str) -> anyhow::Result<Vec<(u64, Entry)>> {
    let mut found = Vec::new();
    let mut filter = Filter {
        text: Some(run.to_owned()),
        oldest_first: true,
        limit: Some(MAX_PAGE),
        ..Filter::default()
    };
    loop {
        let (records, next) = log.query(&filter).await?;
        for record in records {
            let entry = Entry::parse(&record.body)
                .with_context(|| format!("entry {} cannot be replayed", record.index))?;
            let decided = matches!(entry.kind, Kind::Decision | Kind::ServerRequest);
            if decided && is_of(&entry, run) {
                found.push((record.index, entry));
            }
        }
        match next {
            Some(next) => filter.after = Some(next),
            None => return Ok(found),
        }
    }
}

/// The text may stand elsewhere in an entry too.
fn is_of(entry: &Entry, run: &str) -> bool {
    let detail = |name: &str| entry.detail.get(name).and_then(Value::as_str) == Some(run);
    let trace = entry.trace.as_deref().and_then(|trace| trace.split('-').nth(1));
    detail("session")
        || detail("within")
        || trace == Some(run)
        || entry.decision_id.as_deref() == Some(run)
}

async fn ending(log: &Log, entry: &Entry) -> anyhow::Result<Option<String>> {
    let Some(id) = &entry.decision_id else { return Ok(None) };
    let filter =
        Filter { decision_id: Some(id.clone()), kind: Some(Kind::Outcome), ..Filter::default() };
    let (records, _) = log.query(&filter).await?;
    let Some(record) = records.first() else { return Ok(None) };
    Ok(Some(Entry::parse(&record.body)?.result.to_string()))
}

/// Whether every policy that spoke is there in the version that spoke.
fn same_versions(engine: &PolicyEngine, entry: &Entry) -> Result<(), String> {
    let set = engine.policies();
    for policy in &entry.policies {
        let name = policy.name.split('#').next().unwrap_or_default();
        let version =
            set.policies().find(|(id, _)| id.to_string() == name).map(|(_, digest)| digest);
        match version {
            Some(digest) if digest == policy.digest => {}
            Some(_) => return Err(format!("policy {name} was another version")),
            None => return Err(format!("policy {name}, which spoke, is not among those given")),
        }
    }
    Ok(())
}

/// What the policies say to a recorded step.
fn again(engine: &PolicyEngine, entry: &Entry) -> Result<Again, String> {
    let missing = || "the entry does not hold what a policy sees".to_owned();
    let agent: AgentId =
        entry.agent_id.as_deref().and_then(|id| id.parse().ok()).ok_or_else(missing)?;
    let action = recorded::action(entry).ok_or_else(missing)?;
    let (Some(score), Some(tier), Some(trust)) = (entry.risk, entry.tier.as_deref(), entry.trust)
    else {
        return Err("it was refused before it was judged".to_owned());
    };
    let Some(digest) = recorded::whole(entry, &action, &agent) else {
        return Err("the ledger does not hold all of its arguments: they are redacted or left out"
            .to_owned());
    };
    let reason = entry.reason.as_deref().unwrap_or_default();
    if entry.policies.is_empty()
        && reason != Reason::NoPolicyAllows.code()
        && !action.kind.is_preparatory()
    {
        return Err(format!("no policy was asked about it ({reason})"));
    }
    if entry.detail.contains_key("delegation") {
        return Err("it was done on others' behalf, which is not decided again".to_owned());
    }
    let tier =
        [Tier::Local, Tier::Team, Tier::Mesh].into_iter().find(|known| known.as_str() == tier);
    let facts = Facts::of(&action);
    let risk = Risk {
        score: PerMille::clamped(score),
        scope: facts.scope,
        sensitivity: facts.sensitivity,
        grade: Grade::of(facts.sensitivity),
    };
    let tier = tier.ok_or_else(missing)?;
    let trust = TrustScore::clamped(trust);
    let seen = ActionInput::of(&action, entry.action_text("endpoint"), digest);
    let input = input(entry, seen, &agent, trust, risk, tier);
    let preparatory = action.kind.is_preparatory();
    let evaluation = match preparatory {
        true => engine.may_prepare(&input, None),
        false => engine.evaluate(&input, None),
    };
    let (verdict, reason) = verdict(evaluation.effect, || Reason::PolicyDenied, tier, preparatory);
    let rules = evaluation.findings.iter().filter(|finding| finding.rule.mode == Mode::Enforce);
    let rules =
        rules.map(|finding| format!("{}#{}", finding.policy(), finding.rule.name)).collect();
    Ok(Again { fate: Fate::of(verdict), reason: reason.code(), rules })
}

fn input<'a>(
    entry: &'a Entry,
    action: ActionInput<'a>,
    agent: &'a AgentId,
    trust: TrustScore,
    risk: Risk,
    tier: Tier,
) -> Input<'a> {
    let scope = match action.protocol {
        Protocol::Kernel => Scope::Kernel,
        Protocol::Ide => Scope::Ide,
        _ => Scope::Mesh,
    };
    Input {
        action,
        principal: PrincipalInput {
            id: agent,
            name: agent.name(),
            namespace: agent.namespace().unwrap_or_default(),
            sponsor: entry.sponsor.as_deref().unwrap_or_default(),
            capabilities: &[],
            delegation: &[],
            trust,
        },
        provenance: None,
        context: ContextInput {
            scope,
            intent: None,
            session: entry.detail.get("session").and_then(Value::as_str),
            approvals: 0,
            mfa: false,
            rate: 0,
            tier,
            risk,
            now: entry.timestamp,
            now_secs: entry.timestamp.as_secs(),
        },
    }
}

fn result(again: &Result<Again, String>) -> Value {
    match again {
        Ok(again) => json!(again),
        Err(why) => json!({ "not_decided": why }),
    }
}

fn told(run: &str, steps: &[Step]) -> Value {
    let steps: Vec<Value> = steps
        .iter()
        .map(|step| {
            json!({
                "index": step.index, "timestamp": step.entry.timestamp, "agent": step.entry.agent_id,
                "server": step.entry.action_text("server"), "tool": step.entry.action_text("tool"),
                "method": step.entry.action_text("method"), "resource": step.entry.resource,
                "was": {
                    "fate": step.fate, "reason": step.entry.reason, "outcome": step.ending,
                    "rules": step.entry.policies.iter().map(|policy| &policy.name).collect::<Vec<_>>(),
                },
                "by_recorded_policies": step.recorded.as_ref().map(result),
                "by_other_policies": result(&step.other),
                "differs": step.differs(),
            })
        })
        .collect();
    json!({ "run": run, "steps": steps })
}

fn show(steps: &[Step]) -> Text {
    let mut text = Text::new();
    for step in steps {
        text.line(super::query::line(step.index, &step.entry));
        let outcome = step.ending.as_deref().unwrap_or("no outcome");
        let was = step.fate.map_or("refused", Fate::word);
        let spoke: Vec<&str> =
            step.entry.policies.iter().map(|policy| policy.name.as_str()).collect();
        text.line(format!("         was    {was} ({outcome}) {}", spoke.join(", ")));
        if let Some(recorded) = &step.recorded {
            let same = recorded.as_ref().is_ok_and(|again| Some(again.fate) == step.fate);
            tell(&mut text, "then", recorded, if same { Tone::Good } else { Tone::Bad });
        }
        tell(&mut text, "now", &step.other, if step.differs() { Tone::Warn } else { Tone::Good });
    }
    let differing = steps.iter().filter(|step| step.differs()).count();
    let unknown = steps.iter().filter(|step| step.other.is_err()).count();
    text.line(format!(
        "{} steps: {differing} would come out otherwise, {unknown} cannot be decided again",
        steps.len()
    ));
    text.line("Taken as absent, because it is not recorded: rates, capabilities, provenance, the server's namespace.");
    text
}

fn tell(text: &mut Text, when: &str, again: &Result<Again, String>, tone: Tone) {
    match again {
        Ok(again) => text.toned(
            tone,
            format!(
                "         {when:<6} {} ({}) {}",
                again.fate.word(),
                again.reason,
                again.rules.join(", ")
            ),
        ),
        Err(why) => text.toned(Tone::Warn, format!("         {when:<6} not decided: {why}")),
    }
}
