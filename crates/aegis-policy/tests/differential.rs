//! Random rules and inputs: a plain interpreter of `PolicySpec`, written from its documentation,
//! must agree with what Rego, `opa` and the WebAssembly host make of it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod fixture;

use aegis_core::policy::{Condition, Effect, Operator, PolicySpec, Rule};
use aegis_policy::{Policy, PolicyId, json_path::JsonPath};
use fixture::{Call, compiler, engine};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use serde_json::{Value, json};

// === the reference ===

/// What an operator says about one value: `None` where the value is of another type.
fn says(operator: Operator, value: &Value, wanted: &Value) -> Option<bool> {
    use Operator as O;
    let text = value.as_str();
    let pattern = wanted.as_str().unwrap_or_default();
    let number = || value.as_f64().zip(wanted.as_f64());
    let size = || match value {
        Value::String(text) => Some(text.chars().count()),
        Value::Array(items) => Some(items.len()),
        _ => None,
    };
    match operator {
        O::Equals => Some(same(value, wanted)),
        O::NotEquals => Some(!same(value, wanted)),
        O::In => Some(wanted.as_array()?.iter().any(|item| same(item, value))),
        O::NotIn => Some(!wanted.as_array()?.iter().any(|item| same(item, value))),
        O::Matches => Some(regex::Regex::new(pattern).unwrap().is_match(text?)),
        O::NotMatches => Some(!regex::Regex::new(pattern).unwrap().is_match(text?)),
        O::Contains | O::NotContains => {
            let holds = match value {
                Value::String(text) => text.contains(wanted.as_str()?),
                Value::Array(items) => items.iter().any(|item| same(item, wanted)),
                _ => return None,
            };
            Some(holds == (operator == O::Contains))
        }
        O::StartsWith => Some(text?.starts_with(pattern)),
        O::EndsWith => Some(text?.ends_with(pattern)),
        O::Glob => {
            // The patterns below are `<prefix>*`: within one segment.
            let rest = text?.strip_prefix(pattern.strip_suffix('*')?);
            Some(rest.is_some_and(|rest| !rest.contains('/')))
        }
        O::Within | O::NotWithin => Some(within(text?, pattern)? == (operator == O::Within)),
        O::HasWord => {
            let mut words = text?.split(|c: char| !c.is_alphanumeric());
            Some(words.any(|word| word.eq_ignore_ascii_case(pattern)))
        }
        O::LessThan => number().map(|(a, b)| a < b),
        O::AtMost => number().map(|(a, b)| a <= b),
        O::GreaterThan => number().map(|(a, b)| a > b),
        O::AtLeast => number().map(|(a, b)| a >= b),
        O::LongerThan => Some(size()? as u64 > wanted.as_u64()?),
        O::Exists | O::Absent => unreachable!(),
    }
}

/// JSON equality by value: 1 is 1.0.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => a.as_f64() == b.as_f64(),
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        _ => a == b,
    }
}

fn within(path: &str, directory: &str) -> Option<bool> {
    if !path.starts_with('/') {
        return None;
    }
    let mut out: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." => {
                out.pop();
            }
            part => out.push(part),
        }
    }
    let directory: Vec<&str> = directory.split('/').filter(|part| !part.is_empty()).collect();
    Some(out.starts_with(&directory))
}

fn met(condition: &Condition, effect: Effect, call: &Value) -> bool {
    use Operator as O;
    let path = condition.argument.as_deref().unwrap();
    let selected = JsonPath::parse(path).unwrap().select(call);
    let allow = effect == Effect::Allow;
    let wanted = condition.value.clone().unwrap_or_default();
    let negated = matches!(
        condition.operator,
        O::NotEquals | O::NotIn | O::NotMatches | O::NotContains | O::NotWithin
    );
    match condition.operator {
        O::Exists => !selected.is_empty(),
        O::Absent => selected.is_empty(),
        operator if allow => {
            !selected.is_empty()
                && selected.iter().all(|value| says(operator, value, &wanted) == Some(true))
        }
        operator => {
            (negated && selected.is_empty())
                || selected.iter().any(|value| says(operator, value, &wanted) != Some(false))
        }
    }
}

fn expected(spec: &PolicySpec, arguments: &Value) -> Vec<String> {
    let applies = |rule: &&Rule| rule.when.iter().all(|c| met(c, rule.effect, arguments));
    spec.rules.iter().filter(applies).map(|rule| rule.name.clone()).collect()
}

// === the generators ===

fn leaf() -> impl Strategy<Value = Value> {
    prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-3_i64..4).prop_map(Value::from),
        prop_oneof![Just(0.5), Just(1.0)].prop_map(Value::from),
        prop_oneof![
            Just(""),
            Just("a"),
            Just("ab"),
            Just("b a"),
            Just("/w/a"),
            Just("/w/../e"),
            Just("/wx"),
            Just("w/a"),
            Just("/w/a/b"),
            Just("A.b"),
            Just("é\"\\\n")
        ]
        .prop_map(Value::from),
    ]
}

fn value() -> impl Strategy<Value = Value> {
    prop_oneof![
        4 => leaf(),
        1 => prop::collection::vec(leaf(), 0..3).prop_map(Value::from),
        1 => leaf().prop_map(|v| json!({ "x": v })),
    ]
}

fn arguments() -> impl Strategy<Value = Value> {
    let member = prop::option::weighted(0.8, value());
    let files = prop::option::weighted(
        0.8,
        prop::collection::vec(prop::option::weighted(0.9, value()), 0..3),
    );
    (member, files).prop_map(|(x, files)| {
        let mut out = serde_json::Map::new();
        out.extend(x.map(|x| ("x".to_owned(), x)));
        out.extend(files.map(|files| {
            let file = |x: Option<Value>| x.map_or(json!({}), |x| json!({ "x": x }));
            ("f".to_owned(), Value::from(files.into_iter().map(file).collect::<Vec<_>>()))
        }));
        Value::Object(out)
    })
}

fn condition() -> impl Strategy<Value = Condition> {
    use Operator as O;
    let text = prop_oneof![Just("a"), Just("b"), Just("/w"), Just("ab")].prop_map(Value::from);
    let number = prop_oneof![Just(json!(0)), Just(json!(1)), Just(json!(0.5)), Just(json!(-2))];
    let test = prop_oneof![
        (prop_oneof![Just(O::Equals), Just(O::NotEquals)], leaf().boxed()),
        (
            prop_oneof![Just(O::In), Just(O::NotIn)],
            prop::collection::vec(leaf(), 1..12).prop_map(Value::from).boxed()
        ),
        (
            prop_oneof![Just(O::Matches), Just(O::NotMatches)],
            prop_oneof![Just("^a"), Just("b$"), Just("[a-z] a"), Just("\"")]
                .prop_map(Value::from)
                .boxed()
        ),
        (prop_oneof![Just(O::Contains), Just(O::NotContains)], leaf().boxed()),
        (prop_oneof![Just(O::StartsWith), Just(O::EndsWith)], text.clone().boxed()),
        (Just(O::Glob), prop_oneof![Just("a*"), Just("/w/*")].prop_map(Value::from).boxed()),
        (prop_oneof![Just(O::Within), Just(O::NotWithin)], Just(json!("/w")).boxed()),
        (Just(O::HasWord), prop_oneof![Just("a"), Just("w")].prop_map(Value::from).boxed()),
        (
            prop_oneof![Just(O::LessThan), Just(O::AtMost), Just(O::GreaterThan), Just(O::AtLeast)],
            number.boxed()
        ),
        (Just(O::LongerThan), (0_u64..3).prop_map(Value::from).boxed()),
        (prop_oneof![Just(O::Exists), Just(O::Absent)], Just(Value::Null).boxed()),
    ];
    let path = prop_oneof![
        3 => Just("$.x"), 2 => Just("$.f[*].x"), 1 => Just("$..x"), 1 => Just("$['f'][0].x"), 1 => Just("$.f")
    ];
    (path, test).prop_map(|(path, (operator, value))| Condition {
        argument: Some(path.to_owned()),
        field: None,
        operator,
        value: (!matches!(operator, O::Exists | O::Absent)).then_some(value),
    })
}

fn spec() -> impl Strategy<Value = PolicySpec> {
    let effect =
        prop_oneof![Just(Effect::Allow), Just(Effect::Deny), Just(Effect::RequireApproval)];
    let rule = (effect, prop::collection::vec(condition(), 1..3));
    prop::collection::vec(rule, 1..6).prop_map(|rules| PolicySpec {
        rules: rules
            .into_iter()
            .enumerate()
            .map(|(i, (effect, when))| Rule {
                name: format!("r{i}"),
                effect,
                tools: Vec::new(),
                methods: Vec::new(),
                when,
                rate_limit: None,
                require_mfa: false,
                approvals: None,
                obligations: Vec::new(),
                reason: None,
            })
            .collect(),
        ..PolicySpec::default()
    })
}

fn policies() -> Vec<Policy> {
    let mut runner = TestRunner::deterministic();
    let mut sample = || spec().new_tree(&mut runner).unwrap().current();
    (0..256).map(|i| Policy { id: PolicyId::cluster(format!("p{i:03}")), spec: sample() }).collect()
}

#[test]
fn rego_agrees_with_a_plain_interpreter() {
    let policies = policies();
    let engine = engine(&policies);
    let mut runner = TestRunner::deterministic();
    for _ in 0..64 {
        let arguments = arguments().new_tree(&mut runner).unwrap().current();
        let call = Call::tool("t", arguments.clone());
        let evaluation = engine.evaluate(&call.input(), None);
        for policy in &policies {
            let spoke: Vec<String> = evaluation
                .findings
                .iter()
                .filter(|finding| *finding.policy() == policy.id)
                .map(|finding| {
                    assert_eq!(finding.error, None);
                    finding.rule.name.clone()
                })
                .collect();
            assert_eq!(
                spoke,
                expected(&policy.spec, &arguments),
                "{arguments}\n{}",
                serde_yaml_ng::to_string(&policy.spec).unwrap()
            );
        }
    }
}

/// The indices in a JSON array, as the names of rules.
fn names(result: &Value) -> Vec<String> {
    let mut indices: Vec<u64> =
        result.as_array().unwrap().iter().map(|i| i.as_u64().unwrap()).collect();
    indices.sort_unstable();
    indices.into_iter().map(|i| format!("r{i}")).collect()
}

/// Two engines that share no code with ours: `regorus` interprets the translated Rego, and
/// `opa-wasm` runs the same modules. Only policies without Aegis' own builtins, which they lack.
#[test]
fn other_engines_agree() {
    let plain = |policy: &Policy| {
        aegis_policy::translate::translate(&policy.spec).is_ok_and(|t| !t.body.contains("aegis."))
    };
    let policies: Vec<Policy> = policies().into_iter().filter(plain).take(60).collect();
    assert!(policies.len() > 20, "too few policies: {}", policies.len());
    let bundle = compiler().compile(&policies).unwrap().bundle;
    let mut interpreter = regorus::Engine::new();
    // As in a module: a failing builtin is undefined.
    interpreter.set_strict_builtin_errors(false);
    for (i, rego) in bundle.modules.iter().flat_map(|module| &module.rego).enumerate() {
        interpreter.add_policy(format!("m{i}.rego"), rego.clone()).unwrap();
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let config = opa_wasm::wasmtime::Config::new();
    let wasm_engine = opa_wasm::wasmtime::Engine::new(&config).unwrap();
    let mut store = opa_wasm::wasmtime::Store::new(&wasm_engine, ());
    let mut modules = Vec::new();
    for module in &bundle.modules {
        let module = opa_wasm::wasmtime::Module::new(&wasm_engine, &module.wasm).unwrap();
        modules.push(runtime.block_on(async {
            let runtime = opa_wasm::Runtime::new(&mut store, &module).await.unwrap();
            runtime.without_data(&mut store).await.unwrap()
        }));
    }
    let mut runner = TestRunner::deterministic();
    for _ in 0..24 {
        let arguments = arguments().new_tree(&mut runner).unwrap().current();
        let call = Call::tool("t", arguments.clone());
        for bundled in &bundle.policies {
            let unit = &bundled.units[0];
            let mut written = Vec::new();
            unit.projection.write(&call.input(), true, &mut written).unwrap();
            let input: Value = serde_json::from_slice(&written).unwrap();
            interpreter.set_input(regorus::Value::from_json_str(&input.to_string()).unwrap());
            let want = expected(&bundled.policy.spec, &arguments);
            let rule = format!("data.{}", unit.verdict.replace('/', "."));
            let value = interpreter.eval_rule(rule).unwrap();
            let value: Value = serde_json::from_str(&value.to_json_str().unwrap()).unwrap();
            let spec = serde_yaml_ng::to_string(&bundled.policy.spec).unwrap();
            assert_eq!(names(&value), want, "regorus: {arguments}\n{spec}");
            let result: Value = runtime
                .block_on(modules[unit.module].evaluate(&mut store, &unit.verdict, &input))
                .unwrap();
            assert_eq!(names(&result[0]["result"]), want, "opa-wasm: {arguments}\n{spec}");
        }
    }
}
