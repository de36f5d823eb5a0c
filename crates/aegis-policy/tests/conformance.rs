//! OPA's own test cases against our host.
//!
//! The Go program in `e2e/opa` compiles them from OPA's module. A sample by default; all of them
//! with AEGIS_CONFORMANCE=1. Each case that does not hold is listed with its reason in
//! `conformance_exceptions.txt`, and one that is listed but holds is an error too.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod fixture;

use std::{
    collections::BTreeMap,
    io::{BufRead, BufReader},
    path::Path,
    process::{Command, Stdio},
    sync::Mutex,
    thread,
};

use aegis_policy::{Host, Limits, LoadError, ModuleError, eval_module};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::Value;

#[derive(Deserialize)]
struct Case {
    note: String,
    #[serde(default)]
    skip: String,
    #[serde(default)]
    wasm: String,
    data: Option<Value>,
    input: Option<String>,
    want_defined: Option<bool>,
    want_result: Option<Value>,
    want_error: Option<String>,
    #[serde(default)]
    strict_error: bool,
    #[serde(default)]
    sort_bindings: bool,
}

/// Patterns with their reasons. A pattern ends in `*` or is a whole note; `builtin <pattern>` is for
/// all cases whose module is refused because it calls such builtins.
fn exceptions() -> Vec<(String, String)> {
    include_str!("conformance_exceptions.txt")
        .lines()
        .filter(|line| !line.trim().is_empty() && !line.starts_with('#'))
        .map(|line| {
            let (pattern, reason) = line.split_once(" # ").expect("pattern # reason");
            (pattern.trim().to_owned(), reason.trim().to_owned())
        })
        .collect()
}

fn covers(pattern: &str, note: &str) -> bool {
    pattern.strip_suffix('*').map_or(pattern == note, |prefix| note.starts_with(prefix))
}

/// A value in a form in which equal values are equal: numbers by value, and where the case says
/// that order does not count, arrays sorted.
fn normal(value: &Value, sort: bool) -> String {
    match value {
        Value::Number(number) => {
            number.as_f64().map_or_else(|| number.to_string(), |n| n.to_string())
        }
        Value::Array(items) => {
            let mut items: Vec<String> = items.iter().map(|item| normal(item, sort)).collect();
            if sort {
                items.sort();
            }
            format!("[{}]", items.join(","))
        }
        Value::Object(members) => {
            let members: BTreeMap<_, _> =
                members.iter().map(|(key, value)| (key, normal(value, sort))).collect();
            format!("{members:?}")
        }
        other => other.to_string(),
    }
}

/// Result sets have no order.
fn rows(value: &Value, sort: bool) -> Vec<String> {
    let mut rows: Vec<String> =
        value.as_array().unwrap().iter().map(|row| normal(row, sort)).collect();
    rows.sort();
    rows.dedup();
    rows
}

fn check(host: &Host, case: &Case) -> Result<(), String> {
    let wasm = STANDARD.decode(&case.wasm).map_err(|error| error.to_string())?;
    let data = case.data.as_ref().map(Value::to_string);
    let result = eval_module(host, &wasm, data.as_deref(), case.input.as_deref(), None);
    if let Err(ModuleError::Load(LoadError::Builtins(missing))) = result {
        let first = missing.first().map(|name| name.trim_matches('`')).unwrap_or_default();
        return Err(format!("builtin {first}"));
    }
    if case.want_error.is_some() && !case.strict_error {
        return match result {
            Err(_) => Ok(()),
            Ok(value) => Err(format!("wanted an error, got {value}")),
        };
    }
    let got = result.map_err(|error| error.to_string())?;
    let empty = Value::Array(Vec::new());
    if case.want_error.is_some() {
        return (got == empty).then_some(()).ok_or(format!("wanted nothing, got {got}"));
    }
    if let Some(defined) = case.want_defined {
        let holds = (got != empty) == defined;
        return holds.then_some(()).ok_or(format!("wanted defined={defined}, got {got}"));
    }
    let want = case.want_result.as_ref().unwrap_or(&empty);
    // Sets arrive as arrays in the module's own order, so order cannot count inside either.
    for sort in [case.sort_bindings, true] {
        if rows(want, sort) == rows(&got, sort) {
            return Ok(());
        }
    }
    Err(format!("wanted {want}, got {got}"))
}

/// What became of the cases.
#[derive(Default)]
struct Tally {
    passed: usize,
    skipped: usize,
    /// Which exceptions were needed.
    used: Vec<bool>,
    problems: Vec<String>,
}

impl Tally {
    fn count(
        &mut self,
        case: &Case,
        outcome: Option<Result<(), String>>,
        exceptions: &[(String, String)],
    ) {
        match outcome {
            None => {
                println!("skipped {}: {}", case.note, case.skip);
                self.skipped += 1;
            }
            Some(Ok(())) => self.passed += 1,
            Some(Err(problem)) => {
                let name = if problem.starts_with("builtin ") { &problem } else { &case.note };
                match exceptions.iter().position(|(pattern, _)| covers(pattern, name)) {
                    Some(i) => self.used[i] = true,
                    None => self.problems.push(format!("{}: {problem}", case.note)),
                }
            }
        }
    }
}

#[test]
fn opas_own_cases_hold() {
    let all = std::env::var("AEGIS_CONFORMANCE").is_ok_and(|value| value == "1");
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../e2e/opa");
    let mut child = Command::new("go")
        .args(["run", ".", "-every", if all { "1" } else { "16" }])
        .current_dir(folder)
        .stdout(Stdio::piped())
        .spawn()
        .expect("Go is needed to compile OPA's cases");
    let limits = Limits { output_bytes: 8 << 20, ..fixture::patient() };
    let host = Host::for_many_modules(limits).unwrap();
    let exceptions = exceptions();
    let lines = Mutex::new(BufReader::new(child.stdout.take().unwrap()).lines());
    let tally = Mutex::new(Tally { used: vec![false; exceptions.len()], ..Tally::default() });
    let threads = thread::available_parallelism().map_or(1, usize::from);
    thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                let next = || lines.lock().unwrap().next();
                while let Some(line) = next() {
                    let case: Case = serde_json::from_str(&line.unwrap()).unwrap();
                    let outcome = case.skip.is_empty().then(|| check(&host, &case));
                    tally.lock().unwrap().count(&case, outcome, &exceptions);
                }
            });
        }
    });
    let Tally { passed, skipped, used, problems } = tally.into_inner().unwrap();
    assert!(child.wait().unwrap().success(), "the Go program failed");
    println!("{passed} passed, {skipped} skipped");
    assert!(passed > 100, "only {passed} cases ran");
    assert!(problems.is_empty(), "{} failed:\n{}", problems.len(), problems.join("\n"));
    if all {
        let idle: Vec<_> = exceptions.iter().zip(used).filter(|(_, used)| !used).collect();
        assert!(idle.is_empty(), "exceptions that are not needed: {idle:?}");
    }
}
