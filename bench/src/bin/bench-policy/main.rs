//! One policy decision: Aegis and its peers, warm, in interleaved rounds on one thread.
//!
//! Aegis' figure holds all of it: selection, projection from the typed input, evaluation in the
//! module, decoding, combining. A peer's holds its own parse of the same projected document from
//! JSON text, evaluation and reading the verdict; see `peers`. Each round runs every engine once,
//! in a rotated order; the median of the rounds is printed in nanoseconds. Before that, each engine
//! must deny what the rules deny; a wrong verdict ends the run.

mod peers;
mod toolkit;

use std::{
    collections::BTreeMap,
    env,
    hint::black_box,
    sync::Arc,
    time::{Duration, Instant},
};

use aegis_core::{
    AgentId, Digest, Timestamp,
    action::{ActionKind, Protocol},
    input::{ActionInput, ContextInput, Input, PrincipalInput},
    policy::{Effect, Scope},
    risk::{Grade, PerMille, Risk},
    tier::Tier,
    trust::TrustScore,
};
use aegis_policy::{Compiler, Host, Limits, ModuleCache, Opa, Policy, PolicyEngine, PolicyId};
use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use crate::toolkit::Toolkit;

const ROUNDS: usize = 9;
/// How long an engine runs in each round.
const TURN: Duration = Duration::from_millis(60);
/// Of a query whose projected document stays below 600 bytes.
const QUERY: usize = 380;

const COMPARISONS: &str = "
rules:
  - { name: tools, effect: allow, tools: [read_query, write_query, list_tables] }
  - { name: low-trust, effect: deny, when: [{ field: principal.trust, operator: lessThan, value: 300 }] }
  - { name: hasty, effect: deny, when: [{ field: context.rate, operator: greaterThan, value: 100 }] }
  - { name: table, effect: deny, when: [{ argument: $.table, operator: in, value: [users, secrets] }] }
";

const REGEX: &str = "  - { name: no-drop, effect: deny, when: [{ argument: $.query, operator: matches, value: '(?i)\\b(drop|truncate)\\s+table\\b' }] }
";

/// What an input borrows from.
struct Call {
    id: AgentId,
    digest: Digest,
    trust: i64,
    arguments: Value,
}

impl Call {
    fn new(query_bytes: usize) -> Result<Self> {
        let mut query = String::from("SELECT id, name FROM customers WHERE city = 'Turin'");
        while query.len() < query_bytes {
            query.push_str(" OR city = 'Padova'");
        }
        query.truncate(query_bytes);
        Ok(Self {
            id: "spiffe://acme.example/ns/shop/sa/bot/agent/buyer".parse()?,
            digest: Digest::of(b"action"),
            trust: 700,
            arguments: json!({ "query": query, "table": "customers", "limit": 10 }),
        })
    }

    /// Calls that the rules deny, each for another reason.
    fn denied(regex: bool) -> Result<Vec<Self>> {
        let mut calls = vec![Self { trust: 100, ..Self::new(QUERY)? }, Self::new(QUERY)?];
        calls[1].arguments["table"] = json!("secrets");
        if regex {
            let mut call = Self::new(QUERY)?;
            call.arguments["query"] = json!("DROP TABLE customers");
            calls.push(call);
        }
        Ok(calls)
    }

    fn input(&self) -> Input<'_> {
        let score = PerMille::clamped(120);
        let now = Timestamp::from_secs(1_800_000_000);
        Input {
            action: ActionInput {
                kind: ActionKind::ToolCall,
                protocol: Protocol::Mcp,
                method: "tools/call",
                server: "sqlite",
                tool: Some("write_query"),
                resource: None,
                endpoint: None,
                arguments: &self.arguments,
                digest: self.digest,
            },
            principal: PrincipalInput {
                id: &self.id,
                name: self.id.name(),
                namespace: self.id.namespace().unwrap_or_default(),
                sponsor: "ada@acme.example",
                capabilities: &[],
                delegation: &[],
                trust: TrustScore::clamped(self.trust.unsigned_abs()),
            },
            provenance: None,
            context: ContextInput {
                scope: Scope::Mesh,
                intent: None,
                session: None,
                approvals: 0,
                mfa: false,
                rate: 3,
                tier: Tier::Local,
                risk: Risk { score, scope: score, sensitivity: score, grade: Grade::of(score) },
                now,
                now_secs: now.as_secs(),
            },
        }
    }

    /// The facts that the rules read, in one flat document, as Aegis' own projection writes them.
    fn projected(&self, regex: bool) -> String {
        let mut document = json!({
            "tool": "write_query",
            "trust": self.trust,
            "rate": 3,
            "table": self.arguments["table"],
        });
        if regex {
            document["query"] = self.arguments["query"].clone();
        }
        document.to_string()
    }
}

/// Something that decides; `false` is a deny.
type Decide = Box<dyn FnMut() -> Result<bool>>;

/// Runs an engine for one turn and gives the nanoseconds of one decision.
type Measure = Box<dyn FnMut() -> Result<u64>>;

fn rules(regex: bool) -> String {
    if regex { format!("{COMPARISONS}{REGEX}") } else { COMPARISONS.to_owned() }
}

fn policy(name: String, yaml: &str) -> Result<Policy> {
    Ok(Policy { id: PolicyId::cluster(name), spec: serde_yaml_ng::from_str(yaml)? })
}

fn loaded(compiler: &Compiler, policies: &[Policy]) -> Result<PolicyEngine> {
    // A deadline that passes because other processes run would be a wrong verdict.
    let limits = Limits { budget: Duration::from_secs(1), ..Limits::default() };
    let engine = PolicyEngine::new(Arc::new(Host::new(limits, None)?));
    for status in engine.reload(compiler, policies)? {
        ensure!(status.message.is_empty(), "{}: {}", status.policy, status.message);
    }
    Ok(engine)
}

fn aegis(compiler: &Compiler, yaml: &str, call: &Arc<Call>) -> Result<Decide> {
    let engine = loaded(compiler, &[policy("bench".into(), yaml)?])?;
    Ok(deciding(engine, Arc::clone(call)))
}

fn deciding(engine: PolicyEngine, call: Arc<Call>) -> Decide {
    Box::new(move || {
        Ok(engine.evaluate(black_box(&call.input()), None).effect == Some(Effect::Allow))
    })
}

/// Times a decision that allows.
fn turns(mut decide: Decide) -> Measure {
    Box::new(move || {
        let (start, mut count) = (Instant::now(), 0_u64);
        while start.elapsed() < TURN {
            for _ in 0..64 {
                if !decide()? {
                    bail!("it denied what is allowed");
                }
            }
            count += 64;
        }
        Ok(u64::try_from(start.elapsed().as_nanos())? / count)
    })
}

/// Median nanoseconds of each engine over interleaved rounds.
fn race(engines: Vec<(String, Measure)>) -> Result<BTreeMap<String, u64>> {
    let mut engines = engines;
    let mut times: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for round in 0..=ROUNDS {
        engines.rotate_left(1);
        for (name, measure) in &mut engines {
            let each = measure().with_context(|| name.clone())?;
            // The first round warms up.
            if round > 0 {
                times.entry(name.clone()).or_default().push(each);
            }
        }
    }
    Ok(times.into_iter().map(|(name, list)| (name, median(list))).collect())
}

fn median(mut list: Vec<u64>) -> u64 {
    list.sort_unstable();
    list.get(list.len() / 2).copied().unwrap_or_default()
}

fn in_process(compiler: &Compiler, regex: bool, call: &Arc<Call>) -> Result<Vec<(String, Decide)>> {
    let mut engines = vec![("aegis".to_owned(), aegis(compiler, &rules(regex), call)?)];
    engines.extend(peers::all(compiler, regex, call)?);
    Ok(engines)
}

/// Aegis beside its peers, without and with one regular expression.
fn beside_peers(compiler: &Compiler) -> Result<()> {
    for (regex, kind, target) in
        [(false, "comparisons only", 3_000), (true, "one regular expression", 5_000)]
    {
        for call in Call::denied(regex)? {
            for (name, mut decide) in in_process(compiler, regex, &Arc::new(call))? {
                ensure!(!decide()?, "{name} allowed what is denied");
            }
        }
        let call = Arc::new(Call::new(QUERY)?);
        let mut engines: Vec<(String, Measure)> = in_process(compiler, regex, &call)?
            .into_iter()
            .map(|(name, decide)| (name, turns(decide)))
            .collect();
        match Toolkit::start(regex, &call) {
            Ok(mut toolkit) => {
                let name = format!("agent-governance-toolkit-core {}, Python", toolkit.version);
                engines.push((name, Box::new(move || toolkit.time(TURN))));
            }
            Err(error) => println!("agent-governance-toolkit-core is not measured: {error:#}"),
        }
        let medians = race(engines)?;
        let bytes = call.projected(regex).len();
        report(&format!("{kind}, projected input of {bytes} bytes"), &medians);
        judge(&medians, target);
    }
    Ok(())
}

/// Says whether Aegis is below its target and ahead of each peer.
fn judge(medians: &BTreeMap<String, u64>, target: u64) {
    let Some(own) = medians.get("aegis") else { return };
    println!("  target {target}: {}", if *own < target { "met" } else { "missed" });
    for (name, ns) in medians.iter().filter(|(name, ns)| *name != "aegis" && *ns <= own) {
        println!("  behind {name}: {ns}");
    }
}

fn sizes(compiler: &Compiler) -> Result<()> {
    let mut engines = Vec::new();
    for bytes in [QUERY, 2_000, 16_000] {
        let call = Arc::new(Call::new(bytes)?);
        let decide = aegis(compiler, &rules(true), &call)?;
        engines.push((format!("query of {bytes:>6} bytes"), turns(decide)));
    }
    report("aegis, one regular expression over larger arguments", &race(engines)?);
    Ok(())
}

/// The same match among ever more policies that do not match, each with rules of its own.
fn installed(compiler: &Compiler) -> Result<()> {
    let mut engines: Vec<(String, Measure)> = Vec::new();
    for count in [10_usize, 100, 1_000, 10_000] {
        let mut policies = vec![policy("bench".into(), COMPARISONS)?];
        for i in 1..count {
            let yaml = format!(
                "match: {{ tools: [tool_{i}, 'other_{i}_*'] }}\nrules: [{{ name: no, effect: deny, when: [{{ argument: $.x, operator: equals, value: {i} }}] }}]"
            );
            policies.push(policy(format!("other-{i}"), &yaml)?);
        }
        let before = resident()?;
        let start = Instant::now();
        let engine = loaded(compiler, &policies)?;
        let took = start.elapsed().as_millis();
        let each = resident()?.saturating_sub(before) / u64::try_from(count)?;
        println!("{count:>6} policies: loaded in {took} ms, {each} bytes of RSS each");
        let decide = deciding(engine, Arc::new(Call::new(QUERY)?));
        engines.push((format!("{count:>6} installed"), turns(decide)));
    }
    let medians = race(engines)?;
    report("aegis, one policy matches", &medians);
    // By name, so the fewest come first.
    if let (Some(few), Some(many)) = (medians.values().next(), medians.values().next_back()) {
        let per_mille = many * 1_000 / few.max(&1);
        println!("  10,000 beside 10: {per_mille} per mille (target: 1200 at most)");
    }
    Ok(())
}

/// Bytes of this process in memory.
fn resident() -> Result<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm")?;
    let pages: u64 = statm.split(' ').nth(1).context("statm has no second field")?.parse()?;
    Ok(pages * 4096)
}

fn report(title: &str, medians: &BTreeMap<String, u64>) {
    println!("{title} (ns a decision, median of {ROUNDS} rounds)");
    let mut sorted: Vec<_> = medians.iter().collect();
    sorted.sort_by_key(|(_, ns)| **ns);
    for (name, ns) in sorted {
        println!("  {name:<44} {ns:>8}");
    }
}

/// Without arguments everything; else the parts named: `peers`, `sizes`, `installed`.
fn main() -> Result<()> {
    let cache = env::var_os("AEGIS_BENCH_CACHE").map(ModuleCache::open).transpose()?;
    let compiler = Compiler::new(Opa::locate()?, cache);
    let wanted: Vec<String> = env::args().skip(1).collect();
    let wants = |part: &str| wanted.is_empty() || wanted.iter().any(|name| name == part);
    if wants("peers") {
        beside_peers(&compiler)?;
    }
    if wants("sizes") {
        sizes(&compiler)?;
    }
    if wants("installed") {
        installed(&compiler)?;
    }
    Ok(())
}
