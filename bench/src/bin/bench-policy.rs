//! One policy decision: Aegis and its peers, warm, in interleaved rounds on one thread.
//!
//! Aegis' figure holds all of it: selection, projection from the typed input, evaluation in the
//! module, decoding, combining. A peer's holds its own parse of the same projected document from
//! JSON text, evaluation and reading the verdict. Each round runs every engine once, in a rotated
//! order; the median of the rounds is printed in nanoseconds. A wrong verdict ends the run.

use std::{collections::BTreeMap, fmt::Write as _, hint::black_box, sync::Arc, time::Instant};

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

const ROUNDS: usize = 9;

const COMPARISONS: &str = "
rules:
  - { name: tools, effect: allow, tools: [read_query, write_query, list_tables] }
  - { name: low-trust, effect: deny, when: [{ field: principal.trust, operator: lessThan, value: 300 }] }
  - { name: hasty, effect: deny, when: [{ field: context.rate, operator: greaterThan, value: 100 }] }
  - { name: table, effect: deny, when: [{ argument: $.table, operator: in, value: [users, secrets] }] }
";

const REGEX: &str = "
  - { name: no-drop, effect: deny, when: [{ argument: $.query, operator: matches, value: '(?i)\\b(drop|truncate)\\s+table\\b' }] }
";

const REGO: &str = r#"package peer

allow if input.action.tool in {"read_query", "write_query", "list_tables"}

deny if input.principal.trust < 300

deny if input.context.rate > 100

deny if input.action.arguments.table in {"users", "secrets"}

verdict := "deny" if deny
verdict := "allow" if { allow; not deny }
"#;

const REGO_REGEX: &str = r#"
deny if regex.match(`(?i)\b(drop|truncate)\s+table\b`, input.action.arguments.query)
"#;

/// What an input borrows from.
struct Call {
    id: AgentId,
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
            arguments: json!({ "query": query, "table": "customers", "limit": 10 }),
        })
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
                arguments: &self.arguments,
                digest: Digest::of(b"action"),
            },
            principal: PrincipalInput {
                id: &self.id,
                name: self.id.name(),
                namespace: self.id.namespace().unwrap_or_default(),
                sponsor: "ada@acme.example",
                capabilities: &[],
                delegation: &[],
                trust: TrustScore::clamped(700),
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

    /// The document that Aegis' projection of the policies above writes.
    fn projected(&self, regex: bool) -> String {
        let mut arguments = json!({ "table": self.arguments["table"] });
        if regex {
            arguments["query"] = self.arguments["query"].clone();
        }
        json!({
            "action": { "arguments": arguments, "tool": "write_query" },
            "principal": { "trust": 700 },
            "context": { "rate": 3 },
        })
        .to_string()
    }
}

/// Something that decides; `false` is a deny.
type Decide = Box<dyn FnMut() -> Result<bool>>;

fn engine() -> Result<PolicyEngine> {
    // A deadline that passes because other processes run would be a wrong verdict.
    let limits = Limits { budget: std::time::Duration::from_secs(1), ..Limits::default() };
    Ok(PolicyEngine::new(Arc::new(Host::new(limits, None)?)))
}

fn policy(name: String, yaml: &str) -> Result<Policy> {
    Ok(Policy { id: PolicyId::cluster(name), spec: serde_yaml_ng::from_str(yaml)? })
}

fn loaded(compiler: &Compiler, policies: &[Policy]) -> Result<PolicyEngine> {
    let engine = engine()?;
    for status in engine.reload(compiler, policies)? {
        ensure!(status.message.is_empty(), "{}: {}", status.policy, status.message);
    }
    Ok(engine)
}

fn aegis(compiler: &Compiler, yaml: &str, call: &Arc<Call>) -> Result<Decide> {
    let engine = loaded(compiler, &[policy("bench".into(), yaml)?])?;
    let call = Arc::clone(call);
    Ok(Box::new(move || {
        Ok(engine.evaluate(black_box(&call.input()), None).effect == Some(Effect::Allow))
    }))
}

fn regorus_interpreter(rego: &str, document: &str) -> Result<Decide> {
    let mut engine = regorus::Engine::new();
    engine.set_strict_builtin_errors(false);
    engine.add_policy("peer.rego".into(), rego.into())?;
    let document = document.to_owned();
    Ok(Box::new(move || {
        engine.set_input(regorus::Value::from_json_str(black_box(&document))?);
        let value = engine.eval_rule("data.peer.verdict".into())?;
        Ok(value.as_string().is_ok_and(|verdict| verdict.as_ref() == "allow"))
    }))
}

fn regorus_rvm(rego: &str, document: &str) -> Result<Decide> {
    use regorus::{languages::rego::compiler::Compiler, rvm::vm::RegoVM};
    let mut engine = regorus::Engine::new();
    engine.set_strict_builtin_errors(false);
    engine.add_policy("peer.rego".into(), rego.into())?;
    let compiled = engine.compile_with_entrypoint(&"data.peer.verdict".into())?;
    let program = Compiler::compile_from_policy(&compiled, &["data.peer.verdict"])
        .map_err(|error| anyhow::anyhow!("{error:?}"))?;
    let mut vm = RegoVM::new();
    vm.load_program(program);
    let document = document.to_owned();
    Ok(Box::new(move || {
        vm.set_input(regorus::Value::from_json_str(black_box(&document))?);
        let value = vm.execute().map_err(|error| anyhow::anyhow!("{error:?}"))?;
        Ok(value.as_string().is_ok_and(|verdict| verdict.as_ref() == "allow"))
    }))
}

fn opa_wasm(compiler: &Compiler, rego: &str, document: &str) -> Result<Decide> {
    use opa_wasm::{Runtime, wasmtime};
    let wasm = compiler.opa().build(&[rego.to_owned()], &["peer/verdict".to_owned()])?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let wasm_engine = wasmtime::Engine::new(&wasmtime::Config::new())
        .map_err(|error| anyhow::anyhow!("{error}"))?;
    let module =
        wasmtime::Module::new(&wasm_engine, wasm).map_err(|error| anyhow::anyhow!("{error}"))?;
    let mut store = wasmtime::Store::new(&wasm_engine, ());
    let policy = runtime.block_on(async {
        Runtime::new(&mut store, &module).await?.without_data(&mut store).await
    })?;
    let document = document.to_owned();
    Ok(Box::new(move || {
        let input: Value = serde_json::from_str(black_box(&document))?;
        let result: Value =
            runtime.block_on(policy.evaluate(&mut store, "peer/verdict", &input))?;
        Ok(result[0]["result"] == "allow")
    }))
}

fn cedar(regex: bool, document: &str) -> Result<Decide> {
    use cedar_policy::{Authorizer, Context, Decision, Entities, PolicySet, Request};
    let mut text = String::from(
        r#"permit(principal, action, resource) when { ["read_query", "write_query", "list_tables"].contains(context.action.tool) };
forbid(principal, action, resource) when { context.principal.trust < 300 };
forbid(principal, action, resource) when { context.context.rate > 100 };
forbid(principal, action, resource) when { ["users", "secrets"].contains(context.action.arguments.table) };"#,
    );
    if regex {
        text.push_str(r#"forbid(principal, action, resource) when { context.action.arguments.query like "*DROP TABLE*" };"#);
    }
    let policies: PolicySet = text.parse()?;
    let (authorizer, entities) = (Authorizer::new(), Entities::empty());
    let document = document.to_owned();
    Ok(Box::new(move || {
        let context = Context::from_json_str(black_box(&document), None)?;
        let request = Request::new(
            r#"Agent::"buyer""#.parse()?,
            r#"Action::"call""#.parse()?,
            r#"Server::"sqlite""#.parse()?,
            context,
            None,
        )?;
        let response = authorizer.is_authorized(&request, &policies, &entities);
        Ok(response.decision() == Decision::Allow)
    }))
}

fn cel(regex: bool, document: &str) -> Result<Decide> {
    use cel::{Context, Program};
    let mut text = String::from(
        r#"input.action.tool in ["read_query", "write_query", "list_tables"] && !(input.principal.trust < 300) && !(input.context.rate > 100) && !(input.action.arguments.table in ["users", "secrets"])"#,
    );
    if regex {
        text.push_str(" && !drops(input.action.arguments.query)");
    }
    let program = Program::compile(&text)?;
    let pattern = regex::Regex::new(r"(?i)\b(drop|truncate)\s+table\b")?;
    let document = document.to_owned();
    Ok(Box::new(move || {
        let mut context = Context::default();
        let pattern = pattern.clone();
        context.add_function("drops", move |text: Arc<String>| pattern.is_match(&text));
        let input: Value = serde_json::from_str(black_box(&document))?;
        context.add_variable("input", input).map_err(|error| anyhow::anyhow!("{error}"))?;
        let value = program.execute(&context)?;
        Ok(value == cel::Value::Bool(true))
    }))
}

/// Median nanoseconds of each engine over interleaved rounds.
fn race(engines: &mut [(String, Decide)]) -> Result<BTreeMap<String, u64>> {
    let mut times: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for round in 0..=ROUNDS {
        engines.rotate_left(1);
        for (name, decide) in engines.iter_mut() {
            let start = Instant::now();
            let mut count: u64 = 0;
            while start.elapsed().as_millis() < 60 {
                for _ in 0..64 {
                    if !decide()? {
                        bail!("{name} denied what is allowed");
                    }
                }
                count += 64;
            }
            let each = u64::try_from(start.elapsed().as_nanos())? / count;
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

fn peers(compiler: &Compiler) -> Result<()> {
    for regex in [false, true] {
        let call = Arc::new(Call::new(380)?);
        let (yaml, rego) = if regex {
            (
                format!("{COMPARISONS}{}", REGEX.trim_start_matches('\n')),
                format!("{REGO}{REGO_REGEX}"),
            )
        } else {
            (COMPARISONS.to_owned(), REGO.to_owned())
        };
        let document = call.projected(regex);
        let mut engines = vec![
            ("aegis".to_owned(), aegis(compiler, &yaml, &call)?),
            ("regorus interpreter".to_owned(), regorus_interpreter(&rego, &document)?),
            ("regorus RVM".to_owned(), regorus_rvm(&rego, &document)?),
            ("opa-wasm".to_owned(), opa_wasm(compiler, &rego, &document)?),
            ("cedar-policy".to_owned(), cedar(regex, &document)?),
            ("cel".to_owned(), cel(regex, &document)?),
        ];
        let kind = if regex { "one regex" } else { "comparisons only" };
        report(
            &format!("{kind}, projected input of {} bytes", document.len()),
            &race(&mut engines)?,
        );
    }
    Ok(())
}

fn sizes(compiler: &Compiler) -> Result<()> {
    let mut engines = Vec::new();
    for bytes in [380, 2_000, 16_000] {
        let call = Arc::new(Call::new(bytes)?);
        let yaml = format!("{COMPARISONS}{}", REGEX.trim_start_matches('\n'));
        engines.push((format!("query of {bytes:>6} bytes"), aegis(compiler, &yaml, &call)?));
    }
    report("aegis, one regex over larger arguments", &race(&mut engines)?);
    Ok(())
}

/// The same match among ever more policies that do not match, each with rules of its own.
fn installed(compiler: &Compiler) -> Result<()> {
    let mut engines: Vec<(String, Decide)> = Vec::new();
    let mut notes = String::new();
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
        let took = start.elapsed();
        let each = resident()?.saturating_sub(before) / u64::try_from(count)?;
        writeln!(
            notes,
            "  {count:>6} installed: loaded in {} ms, {each} bytes of RSS each",
            took.as_millis()
        )?;
        let call = Arc::new(Call::new(380)?);
        let decide = move || {
            Ok(engine.evaluate(black_box(&call.input()), None).effect == Some(Effect::Allow))
        };
        engines.push((format!("{count:>6} installed"), Box::new(decide)));
    }
    report("aegis, one policy matches", &race(&mut engines)?);
    print!("{notes}");
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
    for (name, ns) in medians {
        println!("  {name:<24} {ns:>8}");
    }
}

fn main() -> Result<()> {
    let cache = std::env::var_os("AEGIS_BENCH_CACHE").map(ModuleCache::open).transpose()?;
    let compiler = Compiler::new(Opa::locate()?, cache);
    peers(&compiler)?;
    sizes(&compiler)?;
    installed(&compiler)
}
