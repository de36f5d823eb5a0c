//! What a module may use up: each limit ends the evaluation with a deny, and the next call works.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod fixture;

use std::time::Duration;

use aegis_core::policy::Effect;
use aegis_policy::{EvalError, Host, Limits, LoadError, Opa, PolicyEngine, eval_module};
use fixture::{Call, cluster, compiler, patient};
use serde_json::json;
use std::sync::Arc;

fn limited(limits: Limits, rego: &str) -> PolicyEngine {
    let engine = PolicyEngine::new(Arc::new(Host::new(limits, None).unwrap()));
    let yaml = json!({ "rego": rego }).to_string();
    let all = cluster("all", "rules: [{ name: all, effect: allow }]");
    let statuses = engine.reload(&compiler(), &[all, cluster("x", &yaml)]).unwrap();
    assert!(statuses.iter().all(|status| status.message.is_empty()), "{statuses:?}");
    engine
}

/// A call with `n` that fails, and around it calls that do not.
fn fails_and_recovers(engine: &PolicyEngine, n: u64) -> EvalError {
    let evaluate = |n: u64| engine.evaluate(&Call::tool("t", json!({ "n": n })).input(), None);
    assert_eq!(evaluate(1).effect, Some(Effect::Allow));
    let failed = evaluate(n);
    assert_eq!(failed.effect, Some(Effect::Deny));
    let finding = failed.determining().next().unwrap();
    assert_eq!(finding.policy().name, "x");
    assert_eq!(evaluate(1).effect, Some(Effect::Allow), "the next call works");
    finding.error.clone().unwrap()
}

/// Compares a milliard times and allocates nothing meanwhile.
const LOOP: &str = "package x\n\ndeny if {\n\tr := numbers.range(1, input.action.arguments.n)\n\tsome a in r\n\tsome b in r\n\tsome c in r\n\tc < 0\n}\n";

#[test]
fn an_endless_policy_is_stopped() {
    // Iterating allocates a little: the time must end before the memory does.
    let limits = Limits { budget: Duration::from_millis(50), memory_bytes: 2 << 30, ..patient() };
    let engine = limited(limits, LOOP);
    assert_eq!(fails_and_recovers(&engine, 1_000), EvalError::Deadline);
}

#[test]
fn a_hungry_policy_is_stopped() {
    let limits = Limits { memory_bytes: 4 << 20, ..patient() };
    let engine = limited(
        limits,
        "package x\n\ndeny if count(numbers.range(1, input.action.arguments.n)) == 2\n",
    );
    let error = fails_and_recovers(&engine, 10_000_000);
    assert!(matches!(error, EvalError::Trap(_) | EvalError::Abort(_)), "{error:?}");
}

#[test]
fn a_talkative_policy_is_stopped() {
    let rego = "package x\n\ndeny contains msg if {\n\tinput.action.arguments.n > 1\n\tsome i in numbers.range(1, input.action.arguments.n)\n\tmsg := sprintf(`%d`, [i])\n}\n";
    let engine = limited(patient(), rego);
    assert_eq!(fails_and_recovers(&engine, 20_000), EvalError::OutputTooLarge);
}

#[test]
fn a_contradiction_denies() {
    let rego = "package x\n\nallow := true if input.action.arguments.n > 0\n\nallow := false if input.action.arguments.n > 1\n";
    let engine = limited(patient(), rego);
    assert!(matches!(fails_and_recovers(&engine, 2), EvalError::Abort(_)));
}

#[test]
fn a_large_input_is_refused_and_a_fairly_large_one_is_not() {
    let limits = Limits { input_bytes: 300_000, ..patient() };
    let engine =
        limited(limits, "package x\n\ndeny if endswith(input.action.arguments.text, `!`)\n");
    let evaluate =
        |text: String| engine.evaluate(&Call::tool("t", json!({ "text": text })).input(), None);
    assert_eq!(evaluate("a".repeat(250_000)).effect, Some(Effect::Allow));
    assert_eq!(evaluate("a".repeat(250_000) + "!").effect, Some(Effect::Deny));
    let refused = evaluate("a".repeat(400_000));
    assert_eq!(refused.determining().next().unwrap().error, Some(EvalError::InputTooLarge));
    assert_eq!(evaluate("a".into()).effect, Some(Effect::Allow));
}

#[test]
fn foreign_modules_are_refused() {
    let host = Host::new(patient(), None).unwrap();
    for wasm in ["(module)", "(module (import \"wasi\" \"fd_write\" (func)))", "not a module"] {
        assert!(matches!(host.load(wasm.as_bytes()), Err(LoadError::Module(_))), "{wasm}");
    }
}

#[test]
fn any_module_is_evaluated_with_data() {
    let rego = ["package a\n\nb := data.x[input.y]\n".to_owned()];
    let wasm = Opa::locate().unwrap().build(&rego, &["a/b".to_owned()]).unwrap();
    let host = Host::new(patient(), None).unwrap();
    let data = r#"{"x":{"one":1}}"#;
    let eval = |input| eval_module(&host, &wasm, Some(data), Some(input), Some("a/b"));
    assert_eq!(eval(r#"{"y":"one"}"#).unwrap(), json!([{ "result": 1 }]));
    assert_eq!(eval(r#"{"y":"two"}"#).unwrap(), json!([]));
    assert!(eval_module(&host, &wasm, None, None, Some("a/c")).is_err());
    assert!(eval_module(&host, &wasm, Some("{"), None, None).is_err());
}
