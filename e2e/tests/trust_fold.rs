//! `trust_fold.py`, which shares no line with Aegis, folds entries to the same integers as Aegis.
#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "a test may panic, and so may what it is made of"
)]

use std::{
    collections::BTreeMap,
    io::Write,
    process::{Command, Stdio},
};

use aegis_core::{
    Timestamp,
    action::ActionKind,
    decision::Reason,
    risk::PerMille,
    thresholds::Thresholds,
    tier::Tier,
    trust::{Observation, Trust},
};
use rand::{RngExt, SeedableRng, rngs::StdRng};
use serde_json::{Value, json};

const KINDS: [ActionKind; 15] = [
    ActionKind::ToolCall,
    ActionKind::ResourceRead,
    ActionKind::Subscription,
    ActionKind::PromptGet,
    ActionKind::Completion,
    ActionKind::List,
    ActionKind::Session,
    ActionKind::Task,
    ActionKind::ServerRequest,
    ActionKind::AgentMessage,
    ActionKind::HttpRequest,
    ActionKind::Connect,
    ActionKind::FileRead,
    ActionKind::FileWrite,
    ActionKind::ShellExec,
];

/// A log and what Aegis makes of it.
#[derive(Default)]
struct Log {
    lines: String,
    agents: BTreeMap<String, Trust>,
    thresholds: Thresholds,
    seconds: u64,
}

impl Log {
    fn write(&mut self, agent: &str, entry: Value) {
        let mut entry = entry;
        entry["agent_id"] = agent.into();
        entry["timestamp"] = Timestamp::from_secs(self.seconds).to_string().into();
        self.lines.push_str(&format!("{entry}\n"));
    }

    fn observe(&mut self, agent: &str, entry: Value, observation: Observation) {
        self.write(agent, entry);
        let trust = self.agents.entry(agent.into()).or_default();
        *trust = trust.after(observation, Timestamp::from_secs(self.seconds), &self.thresholds);
    }

    fn configure(&mut self, thresholds: &Value) {
        self.write("", json!({
            "kind": "configuration", "result": "recorded", "detail": { "thresholds": thresholds },
        }));
        if let Ok(understood) = serde_json::from_value(thresholds.clone()) {
            self.thresholds = understood;
        }
    }

    fn step(&mut self, random: &mut StdRng) {
        self.seconds += random.random_range(0..900);
        let agent = format!("spiffe://acme.example/ns/a/sa/b/agent/{}", random.random_range(0..40));
        // Some agents do more harm than others, so that every part of the scale is reached.
        let harm = u64::from(agent.bytes().last().unwrap_or_default()) % 10;
        let number: u64 = random.random_range(0..=1000);
        let risk = PerMille::clamped(number);
        match random.random_range(0..100_u64) {
            0 => {
                let (a, b) = (number * number * 1_700, random.random_range(0..900_000_000));
                let entry = json!({
                    "kind": "trust_adjusted", "result": "recorded", "detail": { "a": a, "b": b },
                });
                self.observe(&agent, entry, Observation::Adjusted { a, b });
            }
            1..10 => self.noise(&agent, number),
            n if n < 10 + 8 * harm => {
                let reason = Reason::ALL[random.random_range(0..Reason::ALL.len())];
                let entry = json!({
                    "kind": "decision", "result": "deny", "reason": reason.code(), "risk": number,
                });
                if reason.counts_against_agent() {
                    self.observe(&agent, entry, Observation::Violated { risk });
                } else {
                    self.write(&agent, entry);
                }
            }
            n => {
                let tier = if n % 7 == 0 { Tier::Mesh } else { Tier::Local };
                let kind = KINDS[random.random_range(0..KINDS.len())];
                let entry = json!({
                    "kind": "outcome", "result": "success", "risk": number, "tier": tier,
                    "action": { "kind": kind },
                });
                if kind.is_preparatory() {
                    self.write(&agent, entry);
                } else {
                    self.observe(&agent, entry, Observation::Succeeded { risk, tier });
                }
            }
        }
    }

    /// Entries that say nothing about conduct.
    fn noise(&mut self, agent: &str, number: u64) {
        let entry = match number % 3 {
            0 => {
                json!({ "kind": "outcome", "result": "failure", "action": { "kind": "tool_call" } })
            }
            1 => json!({ "kind": "decision", "result": "allow", "reason": "policy_allowed" }),
            _ => json!({ "kind": "approval_vote", "result": "deny", "reason": "policy_denied" }),
        };
        self.write(agent, entry);
    }
}

fn folded_by_the_script(log: &str) -> Value {
    let mut script = Command::new("python3")
        .args([concat!(env!("CARGO_MANIFEST_DIR"), "/trust_fold.py"), "--critical"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    script.stdin.take().unwrap().write_all(log.as_bytes()).unwrap();
    let output = script.wait_with_output().unwrap();
    assert!(output.status.success(), "the script failed");
    serde_json::from_slice(&output.stdout).unwrap()
}

#[test]
fn an_independent_fold_gives_identical_integers() {
    let mut log = Log::default();
    let mut random = StdRng::seed_from_u64(9_001);
    for thresholds in [
        json!({}),
        json!({ "alpha": 777, "evidenceCap": 60_000, "criticalScore": 450 }),
        json!({ "alpha": 2_000 }),
        json!({ "unheardOf": 1 }),
        json!({ "alpha": 950, "evidenceCap": 900_000, "criticalConfidence": 600 }),
    ] {
        log.configure(&thresholds);
        for _ in 0..6_000 {
            log.step(&mut random);
        }
    }
    let expected: serde_json::Map<_, _> = log
        .agents
        .iter()
        .map(|(agent, trust)| {
            let shown = json!({
                "a": trust.a, "b": trust.b, "score": trust.score(),
                "below": trust.probability_below(log.thresholds.critical_score),
                "critical": trust.is_critical(&log.thresholds),
            });
            (agent.clone(), shown)
        })
        .collect();
    assert_eq!(expected.len(), 40);
    assert!(expected.values().any(|shown| shown["critical"] == true));
    assert!(expected.values().any(|shown| shown["critical"] == false));
    let found = folded_by_the_script(&log.lines);
    for (agent, shown) in &expected {
        assert_eq!(&found[agent], shown, "{agent}");
    }
    assert_eq!(found.as_object().unwrap().len(), expected.len());
}

/// The same log as in the tests of `aegis_kernel::trust_book`, to the same scores.
#[test]
fn a_clusters_log_is_folded_by_what_its_components_say() {
    let ledger = "spiffe://acme.example/aegis/ledger";
    let agent = |name: &str| format!("spiffe://acme.example/ns/a/sa/b/agent/{name}");
    let own = format!("{}#1", agent("x"));
    let entry = |source: &str, hour: u64, more: Value| {
        let mut entry = json!({
            "source": source, "kind": "outcome", "result": "success", "agent_id": agent("x"), "risk": 500,
            "tier": "L1", "action": { "kind": "tool_call" }, "detail": {},
            "timestamp": Timestamp::from_secs(hour * 3_600).to_string(),
        });
        entry.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        format!("{entry}\n")
    };
    let thresholds =
        |of: Value| json!({ "kind": "configuration", "result": "recorded", "detail": of });
    let score = |log: &str, name: &str| folded_by_the_script(log)[agent(name)]["score"].clone();
    let mut log = entry(ledger, 2, json!({ "kind": "journal_opened", "result": "recorded" }));
    let lavish = json!({ "evidenceCap": 900_000 });
    log += &entry(&own, 2, thresholds(json!({ "thresholds": lavish })));
    log += &entry(&own, 2, thresholds(json!({ "namespace": "a", "thresholds": lavish })));
    for hour in 2..100 {
        log += &entry(&own, hour, json!({}));
    }
    assert_eq!(score(&log, "x"), 857, "neither its cap nor its hours count");
    log += &entry(ledger, 2, thresholds(json!({ "thresholds": { "evidenceCap": 9_000 } })));
    log += &entry(ledger, 2, thresholds(json!({ "namespace": "other", "thresholds": lavish })));
    log += &entry(&own, 2, json!({})).repeat(100);
    assert_eq!(score(&log, "x"), 909);
    log += &entry(ledger, 3, thresholds(json!({})));
    log += &entry(&own, 2, json!({ "action": { "kind": "tool_call", "server": "x" } })).repeat(9);
    assert_eq!(score(&log, "x"), 909, "a server of its own earns nothing");
    log += &entry(&own, 2, json!({})).repeat(100);
    assert_eq!(score(&log, "x"), 950, "the cap of another hour");
    log += &entry(ledger, 3, thresholds(json!({ "namespace": "a", "thresholds": lavish })));
    log += &entry(&own, 2, json!({})).repeat(100);
    assert_eq!(score(&log, "x"), 985, "50 more");
    let denial = json!({ "kind": "decision", "result": "deny", "reason": "policy_denied", "agent_id": agent("ghost") });
    log += &entry(&own, 3, denial);
    assert_eq!(score(&log, "ghost"), Value::Null, "who has no journal is nobody");
}

/// The script sums the posterior exactly, Aegis in fixed point: the same per mille on the whole grid.
#[test]
fn the_posterior_is_the_same_for_every_small_count() {
    for score in [1, 300, 500] {
        let (mut lines, mut expected) = (String::new(), BTreeMap::new());
        let thresholds = json!({ "criticalScore": score });
        lines.push_str(&format!("{}\n", json!({
            "kind": "configuration", "result": "recorded", "detail": { "thresholds": thresholds },
        })));
        for (a, b) in (1..32_u64).flat_map(|a| (1..34_u64).map(move |b| (a, b))) {
            let agent = format!("spiffe://acme.example/ns/a/sa/b/agent/{a}-{b}");
            let trust = Trust { a: a * 1_000_000, b: b * 1_000_000, ..Trust::default() };
            let detail = json!({ "a": trust.a, "b": trust.b });
            lines.push_str(&format!("{}\n", json!({
                "kind": "trust_adjusted", "result": "recorded", "agent_id": agent, "detail": detail,
                "timestamp": "2026-01-31T12:00:00.000000Z",
            })));
            expected.insert(agent, trust.probability_below(PerMille::clamped(score)).get());
        }
        let found = folded_by_the_script(&lines);
        for (agent, below) in expected {
            assert_eq!(found[&agent]["below"], below, "{agent} below {score}");
        }
    }
}
