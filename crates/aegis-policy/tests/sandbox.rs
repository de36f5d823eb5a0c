//! A pack's own tests, run as `aegis policy test` runs them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod fixture;

use std::fs;

use aegis_policy::sandbox::run_pack;
use fixture::{compiler, empty_engine};

const POLICY: &str = r#"
apiVersion: aegis.dev/v1alpha1
kind: ClusterAgentPolicy
metadata: { name: sql }
spec:
  rules:
    - { name: all, effect: allow, rateLimit: { requests: 2, per: minute } }
    - { name: no-drop, effect: deny, reason: No., when: [{ argument: $.query, operator: contains, value: DROP }] }
---
apiVersion: aegis.dev/v1alpha1
kind: AgentPolicy
metadata: { name: raw, namespace: default }
spec:
  rego: |
    package raw

    deny contains "bad tool" if input.action.tool == "bad"
"#;

const CASES: &str = r#"
- { name: ok, request: { tool: query, arguments: { query: SELECT } }, expect: { effect: allow, rule: all, listed: true } }
- { name: dropped, request: { tool: query, arguments: { query: DROP x } }, expect: { effect: deny, rule: no-drop, reason: No. } }
- { name: bad, request: { tool: bad }, expect: { effect: deny, reason: bad tool } }
- { name: too often, request: { tool: query, after: 2 }, expect: { effect: deny, rule: all } }
- { name: wrong, request: { tool: query, now: "2030-01-01T00:00:00Z", arguments: { query: DROP x } }, expect: { effect: allow } }
"#;

const REGO_TEST: &str = "package raw_test\n\nimport data.raw\n\ntest_bad if \"bad tool\" in raw.deny with input as {\"action\": {\"tool\": \"bad\"}}\n";

#[test]
fn a_pack_says_what_holds_and_what_does_not() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path();
    fs::write(path.join("policy.yaml"), POLICY).unwrap();
    fs::create_dir(path.join("sandbox")).unwrap();
    fs::write(path.join("sandbox/cases.yaml"), CASES).unwrap();
    fs::write(path.join("raw_test.rego"), REGO_TEST).unwrap();
    let report = run_pack(path, &compiler(), &empty_engine).unwrap();
    let failed: Vec<_> = report
        .cases
        .iter()
        .filter(|case| case.problem.is_some())
        .map(|case| case.name.as_str())
        .collect();
    assert_eq!(failed, ["wrong"], "{:#?}", report.cases);
    assert!(report.rego.as_ref().unwrap().0, "{:?}", report.rego);
    fs::write(path.join("raw_test.rego"), REGO_TEST.replace("\"bad tool\" in", "\"other\" in"))
        .unwrap();
    let report = run_pack(path, &compiler(), &empty_engine).unwrap();
    let (passed, said) = report.rego.unwrap();
    assert!(!passed);
    assert!(said.contains("data.raw_test.test_bad: FAIL"), "{said}");
    fs::write(path.join("sandbox/cases.yaml"), CASES.replace("effect: allow", "efect: allow"))
        .unwrap();
    assert!(run_pack(path, &compiler(), &empty_engine).is_err(), "a misspelt expectation");
}
