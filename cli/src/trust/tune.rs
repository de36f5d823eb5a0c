//! `aegis trust tune`: the ledger replayed under other thresholds.
//!
//! Trust is folded by the book that the kernel itself folds with, once as it was and once with the
//! other numbers; risk, tier and verdict are computed by the functions that decided. A decision counts
//! only if the recorded numbers come out of the same computation first; where they do not (arguments
//! that are not in the record, thresholds of a namespace, delegated trust), it is told and not guessed.
//!
//! What the agents did is taken as it was: what waits for a human is taken as approved, and what is
//! denied has no outcome.

use std::collections::{BTreeMap, HashMap, VecDeque};

use aegis_audit::{Entry, Kind, Outcome as Ending};
use aegis_core::{
    AgentId,
    action::Action,
    cost::Cost,
    decision::Reason,
    policy::Effect,
    risk::{Facts, Risk},
    thresholds::Thresholds,
    tier::Tier,
    trust::Trust,
};
use aegis_kernel::{trust_book::TrustBook, verdict};
use anyhow::Context as _;
use serde_json::{Value, json};

use crate::{
    Context, Outcome,
    audit::Source,
    log::Log,
    output::{self, Format, Progress, Text, Tone},
    recorded::{self, Fate},
};

/// Replay the ledger under other thresholds: what would have been allowed, asked or denied
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Example:\n  aegis trust tune --set tau=500 --set tMin=800\n  aegis trust tune --set weights.trust=400 --database copy-of-ledger.db -o json"
)]
pub(crate) struct Args {
    #[command(flatten)]
    source: Source,
    /// A threshold with another value, named as in a TrustThreshold: tau=500, weights.trust=400; may be
    /// repeated
    #[arg(long = "set", value_name = "NAME=NUMBER", required = true, value_parser = setting)]
    settings: Vec<Setting>,
    /// How many entries are named for each change
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(0..=100))]
    examples: u16,
}

/// A threshold with another value.
#[derive(Clone, Debug)]
struct Setting {
    path: Vec<String>,
    value: Value,
}

fn setting(text: &str) -> Result<Setting, String> {
    let (name, value) = text.split_once('=').ok_or("expected NAME=NUMBER")?;
    let value =
        serde_json::from_str(value.trim()).map_err(|_| format!("`{value}` is no number"))?;
    let setting = Setting { path: name.trim().split('.').map(str::to_owned).collect(), value };
    with(&Thresholds::default(), std::slice::from_ref(&setting))
        .map_err(|error| error.to_string())?;
    Ok(setting)
}

/// Thresholds with other values in them.
fn with(thresholds: &Thresholds, settings: &[Setting]) -> anyhow::Result<Thresholds> {
    let mut changed = json!(thresholds);
    for setting in settings {
        let mut place = &mut changed;
        for name in &setting.path {
            let members = place.as_object_mut().context("a threshold has no parts of its own")?;
            place = members.entry(name.clone()).or_insert(Value::Null);
        }
        *place = setting.value.clone();
    }
    let thresholds: Thresholds = serde_json::from_value(changed)?;
    thresholds.validate().map_err(anyhow::Error::msg)?;
    Ok(thresholds)
}

/// Decisions with the same fate, and some of them.
#[derive(Debug, Default)]
struct Seen {
    count: u64,
    examples: Vec<Value>,
}

/// Why a decision cannot be computed again.
const NOT_FROM_RECORD: &str = "its risk does not follow from what is recorded of it: arguments are missing or redacted, or a namespace has thresholds of its own";
const OTHER_TRUST: &str = "the trust that it was decided with is not the fold of this ledger: it was delegated, or told by a cluster";
const NOT_ASKED: &str =
    "no policy was asked about it, because of its agent's trust or the age of the state";
const NOT_JUDGED: &str = "it was refused before it was judged";

/// The most calls that are remembered until their outcome.
const MAX_OPEN: usize = 100_000;

/// The most moves of scores that are remembered.
const MAX_MOVES: usize = 4_096;

/// A fold, and what scores were a moment ago: a decision is made by what had been folded when it was
/// made, and entries that came in meanwhile stand before it in the ledger.
#[derive(Default)]
struct Folded {
    book: TrustBook,
    /// The index of an entry that moved a score, whose, and what it was before.
    moves: VecDeque<(u64, AgentId, Trust)>,
}

impl Folded {
    fn replay(&mut self, index: u64, entry: &Entry) {
        let agent = entry.agent_id.as_deref().and_then(|id| id.parse::<AgentId>().ok());
        let before = agent.map(|agent| self.book.trust(&agent)).unwrap_or_default();
        if let Some(moved) = self.book.replay(index, entry) {
            if self.moves.len() >= MAX_MOVES {
                self.moves.pop_front();
            }
            self.moves.push_back((index, moved, before));
        }
    }

    /// The posterior of an agent as of the first `as_of` entries.
    fn trust(&self, agent: &AgentId, as_of: u64) -> Trust {
        let later = self.moves.iter().rev().take_while(|(index, ..)| *index >= as_of);
        let first = later.filter(|(_, moved, _)| moved == agent).last();
        first.map_or_else(|| self.book.trust(agent), |(.., before)| *before)
    }

    fn numbers(&self, agent: &AgentId, action: &Action, delegated: bool, as_of: u64) -> Numbers {
        let thresholds = self.book.thresholds_of(agent);
        let posterior = self.trust(agent, as_of);
        let (trust, facts) = (posterior.score(), Facts::of(action));
        let risk = Risk::compute(&facts, trust, thresholds);
        let (tier, _) = Tier::of(&risk, &facts, trust, Cost::NotApplicable, delegated, thresholds);
        let critical = posterior.is_critical(thresholds);
        Numbers { trust: trust.get(), risk, tier, critical }
    }
}

/// The replay.
struct Replay<'s> {
    settings: &'s [Setting],
    most: usize,
    was: Folded,
    would: Folded,
    /// Calls without an outcome yet: risk and tier as they would be, unless they would be denied.
    open: HashMap<String, Option<(u64, Tier)>>,
    changes: BTreeMap<(Fate, Fate), Seen>,
    unknown: BTreeMap<&'static str, Seen>,
}

/// What a decision comes to with one book and its thresholds.
struct Numbers {
    trust: u16,
    risk: Risk,
    tier: Tier,
    critical: bool,
}

pub(crate) async fn run(args: Args, cx: &Context) -> anyhow::Result<Outcome> {
    let log = Log::open(args.source.database.as_ref(), &cx.client).await?;
    let size = log.size().await?;
    let mut replay = Replay {
        settings: &args.settings,
        most: usize::from(args.examples),
        was: Folded::default(),
        would: Folded::default(),
        open: HashMap::new(),
        changes: BTreeMap::new(),
        unknown: BTreeMap::new(),
    };
    let mut progress = Progress::new("entries replayed");
    log.each(size, |record| {
        let entry = Entry::parse(&record.body)
            .with_context(|| format!("entry {} cannot be replayed", record.index))?;
        replay.take(record.index, entry)?;
        progress.at(record.index + 1, size);
        Ok(())
    })
    .await?;
    drop(progress);
    match cx.format {
        Format::Json => output::json(&replay.told(size))?,
        Format::Text => replay.show(size).print()?,
    }
    Ok(Outcome::Done)
}

impl Replay<'_> {
    fn take(&mut self, index: u64, mut entry: Entry) -> anyhow::Result<()> {
        let as_it_was = entry.clone();
        let mut counts = true;
        match entry.kind {
            Kind::Configuration => self.retune(&mut entry)?,
            Kind::Decision | Kind::ServerRequest => self.decide(index, &mut entry),
            Kind::Outcome => counts = self.conclude(&mut entry),
            _ => {}
        }
        self.was.replay(index, &as_it_was);
        if counts {
            self.would.replay(index, &entry);
        }
        Ok(())
    }

    /// The other thresholds are those that were recorded, with other values in them.
    fn retune(&self, entry: &mut Entry) -> anyhow::Result<()> {
        let Some(recorded) = entry.detail.get_mut("thresholds") else { return Ok(()) };
        if let Ok(thresholds) = serde_json::from_value::<Thresholds>(recorded.clone()) {
            *recorded = json!(with(&thresholds, self.settings)?);
        }
        Ok(())
    }

    fn decide(&mut self, index: u64, entry: &mut Entry) {
        let fate = match self.judged(entry) {
            Ok((was, would, numbers)) => {
                entry.risk = Some(numbers.risk.score.get().into());
                entry.tier = Some(numbers.tier.as_str().to_owned());
                if let (Some(id), Ending::Allow) = (&entry.decision_id, entry.result) {
                    if self.open.len() >= MAX_OPEN {
                        self.open.clear();
                    }
                    let kept = (would != Fate::Denied)
                        .then(|| (u64::from(numbers.risk.score.get()), numbers.tier));
                    self.open.insert(id.clone(), kept);
                }
                let example = example(index, entry, Some(&numbers));
                (self.changes.entry((was, would)).or_default(), example)
            }
            Err(why) => (self.unknown.entry(why).or_default(), example(index, entry, None)),
        };
        let (seen, example) = fate;
        seen.count += 1;
        if seen.examples.len() < self.most {
            seen.examples.push(example);
        }
    }

    /// What a decision was, what it would be, and by which numbers.
    fn judged(&self, entry: &Entry) -> Result<(Fate, Fate, Numbers), &'static str> {
        let agent: AgentId =
            entry.agent_id.as_deref().and_then(|id| id.parse().ok()).ok_or(NOT_JUDGED)?;
        let reason: Reason =
            entry.reason.as_deref().and_then(|code| code.parse().ok()).ok_or(NOT_JUDGED)?;
        let (Some(risk), Some(tier), Some(trust)) =
            (entry.risk, entry.tier.as_deref(), entry.trust)
        else {
            return Err(NOT_JUDGED);
        };
        let action = recorded::action(entry).ok_or(NOT_FROM_RECORD)?;
        let as_of = entry.trust_as_of.unwrap_or(u64::MAX);
        let delegated = tier == Tier::Team.as_str();
        let was = self.was.numbers(&agent, &action, delegated, as_of);
        if u64::from(was.trust) != trust {
            return Err(OTHER_TRUST);
        }
        if (u64::from(was.risk.score.get()), was.tier.as_str()) != (risk, tier) {
            return Err(NOT_FROM_RECORD);
        }
        let would = self.would.numbers(&agent, &action, delegated, as_of);
        let stopped = would.critical || self.would.book.thresholds_of(&agent).suspended;
        let fate = match (Fate::recorded(entry, reason), reason) {
            (_, Reason::AgentQuarantined) if was.critical && !stopped => return Err(NOT_ASKED),
            (_, Reason::StateStale) => return Err(NOT_ASKED),
            (Fate::Denied, _) => Fate::Denied,
            _ if stopped => Fate::Denied,
            _ => {
                let asks = |policy: &aegis_audit::PolicyRef| {
                    policy.mode == "enforce" && policy.effect == "require_approval"
                };
                let asks = entry.policies.iter().any(asks);
                let effect = if asks { Effect::RequireApproval } else { Effect::Allow };
                let preparatory = action.kind.is_preparatory();
                Fate::of(verdict(Some(effect), || Reason::PolicyDenied, would.tier, preparatory).0)
            }
        };
        Ok((Fate::recorded(entry, reason), fate, would))
    }

    /// An outcome with the risk and tier of its call; whether there would be one.
    fn conclude(&mut self, entry: &mut Entry) -> bool {
        let known = entry.decision_id.as_ref().and_then(|id| self.open.remove(id));
        match known {
            Some(None) => return false,
            Some(Some((risk, tier))) => {
                entry.risk = Some(risk);
                entry.tier = Some(tier.as_str().to_owned());
            }
            None => {}
        }
        true
    }

    fn told(&self, size: u64) -> Value {
        let changes = self.changes.iter().map(|((was, would), seen)| {
            json!({ "was": was, "would_be": would, "count": seen.count, "examples": seen.examples })
        });
        let unknown = self.unknown.iter().map(
            |(why, seen)| json!({ "why": why, "count": seen.count, "examples": seen.examples }),
        );
        json!({
            "entries": size,
            "settings": self.settings.iter().map(|s| json!({ "name": s.path.join("."), "value": s.value })).collect::<Vec<_>>(),
            "thresholds": self.would.book.thresholds(),
            "decisions": changes.collect::<Vec<_>>(),
            "not_computed": unknown.collect::<Vec<_>>(),
            "agents": self.agents().map(|(agent, was, would)| json!({ "agent": agent, "was": was, "would_be": would })).collect::<Vec<_>>(),
        })
    }

    /// Every agent with its score, as it is and as it would be.
    fn agents(&self) -> impl Iterator<Item = (&AgentId, u16, u16)> {
        let sorted: BTreeMap<&AgentId, u16> =
            self.was.book.agents().map(|(agent, trust)| (agent, trust.score().get())).collect();
        sorted
            .into_iter()
            .map(|(agent, score)| (agent, score, self.would.book.trust(agent).score().get()))
    }

    fn show(&self, size: u64) -> Text {
        let mut text = Text::new();
        let set: Vec<String> = self
            .settings
            .iter()
            .map(|setting| format!("{} = {}", setting.path.join("."), setting.value))
            .collect();
        text.line(format!("{size} entries replayed with {}", set.join(", ")));
        let rows = self.changes.iter().map(|((was, would), seen)| {
            let kept = was == would;
            let would = if kept { "the same" } else { would.word() };
            let indices: Vec<String> =
                seen.examples.iter().map(|example| example["index"].to_string()).collect();
            let indices = if kept { String::new() } else { indices.join(", ") };
            vec![was.word().to_owned(), would.to_owned(), seen.count.to_string(), indices]
        });
        text.table(&["WAS", "WOULD BE", "DECISIONS", "ENTRIES"], rows.collect());
        for (why, seen) in &self.unknown {
            text.toned(Tone::Warn, format!("{} not computed: {why}", seen.count));
        }
        let rows = self
            .agents()
            .map(|(agent, was, would)| vec![agent.to_string(), was.to_string(), would.to_string()]);
        text.table(&["AGENT", "TRUST", "WOULD BE"], rows.collect());
        text.line("What the agents did is taken as it was: who is asked approves, and what is denied has no outcome.");
        text
    }
}

fn example(index: u64, entry: &Entry, numbers: Option<&Numbers>) -> Value {
    let mut told = json!({
        "index": index, "timestamp": entry.timestamp, "agent": entry.agent_id,
        "tool": entry.action_text("tool").or_else(|| entry.action_text("method")),
        "reason": entry.reason, "trust": entry.trust,
    });
    if let (Some(members), Some(numbers)) = (told.as_object_mut(), numbers) {
        let would =
            json!({ "trust": numbers.trust, "risk": numbers.risk.score, "tier": numbers.tier });
        members.insert("would_be".into(), would);
    }
    told
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thresholds_are_named_as_in_a_trust_threshold() {
        let changed = |text: &str| with(&Thresholds::default(), &[setting(text).unwrap()]).unwrap();
        assert_eq!(changed("tau=123").tau.get(), 123);
        assert_eq!(changed("weights.trust = 400").weights.trust.get(), 400);
        for (text, expected) in [
            ("tau", "NAME=NUMBER"),
            ("tau=x", "no number"),
            ("tua=1", "unknown field `tua`"),
            ("tau=1001", "at most 1000"),
            ("tMin=0", "tMin"),
            ("tau.x=1", "no parts"),
        ] {
            let said = setting(text).unwrap_err();
            assert!(said.contains(expected), "{text}: {said}");
        }
    }
}
