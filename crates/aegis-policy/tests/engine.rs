//! The engine end to end: YAML in, verdict out.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    reason = "a test fails by panicking"
)]

mod fixture;

use aegis_core::{
    Timestamp,
    policy::{Effect, ObligationKind},
};
use aegis_policy::{EvalError, Evaluation, PolicyEngine, PolicyState};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use fixture::{Call, cluster, compiler, empty_engine, engine, namespaced};
use serde_json::json;

const ALLOW_ALL: &str = "rules: [{ name: all, effect: allow }]";

const DROP: &str = r#"
match: { tools: [write_query] }
rules:
  - name: no-drop
    effect: deny
    reason: Dropping tables is not for agents.
    when: [{ argument: $.query, operator: matches, value: '(?i)\bdrop\s+table\b' }]
  - name: low-trust
    effect: require_approval
    approvals: 2
    when: [{ field: principal.trust, operator: lessThan, value: 500 }]
"#;

fn effect(engine: &PolicyEngine, call: &Call) -> Option<Effect> {
    evaluate(engine, call).effect
}

fn evaluate(engine: &PolicyEngine, call: &Call) -> Evaluation {
    let evaluation = engine.evaluate(&call.input(), None);
    for finding in &evaluation.findings {
        assert_eq!(finding.error, None, "{}", finding.policy());
    }
    evaluation
}

#[test]
fn a_dangerous_call_is_denied_and_an_ordinary_one_allowed() {
    let engine = engine(&[cluster("all", ALLOW_ALL), cluster("sql", DROP)]);
    let call = Call::tool("write_query", json!({ "query": "SELECT 1" }));
    assert_eq!(effect(&engine, &call), Some(Effect::Allow));
    let call = Call::tool("write_query", json!({ "query": "x; DROP  TABLE users" }));
    let evaluation = evaluate(&engine, &call);
    assert_eq!(evaluation.effect, Some(Effect::Deny));
    let finding = evaluation.determining().next().unwrap();
    assert_eq!(
        (finding.policy().to_string(), finding.rule.name.as_str()),
        ("sql".into(), "no-drop")
    );
    assert_eq!(finding.reason(), Some("Dropping tables is not for agents."));
    // An ill-typed argument fails closed.
    let call = Call::tool("write_query", json!({ "query": ["DROP TABLE users"] }));
    assert_eq!(effect(&engine, &call), Some(Effect::Deny));
    let call = Call { trust: 499, ..Call::default() };
    let evaluation = evaluate(&engine, &call);
    assert_eq!((evaluation.effect, evaluation.approvals()), (Some(Effect::RequireApproval), 2));
}

#[test]
fn no_policy_and_no_allow_mean_no() {
    assert_eq!(effect(&empty_engine(), &Call::default()), None);
    assert_eq!(effect(&engine(&[cluster("sql", DROP)]), &Call::default()), None);
}

#[test]
fn an_audit_policy_is_told_and_does_not_count() {
    let audit = format!("mode: audit\n{DROP}");
    let engine = engine(&[cluster("all", ALLOW_ALL), cluster("sql", &audit)]);
    let evaluation =
        evaluate(&engine, &Call::tool("write_query", json!({ "query": "drop table x" })));
    assert_eq!(evaluation.effect, Some(Effect::Allow));
    assert_eq!(evaluation.audited, Some(Effect::Deny));
}

#[test]
fn an_audited_allow_permits_nothing() {
    let engine = engine(&[cluster("all", &format!("mode: audit\n{ALLOW_ALL}"))]);
    let evaluation = evaluate(&engine, &Call::default());
    assert_eq!((evaluation.effect, evaluation.audited), (None, Some(Effect::Allow)));
}

#[test]
fn a_second_factor_turns_an_allow_into_a_question() {
    let engine = engine(&[cluster(
        "mfa",
        "rules: [{ name: creds, effect: allow, requireMfa: true, obligations: [{ kind: redactArgument, target: $.secret }] }]",
    )]);
    let evaluation = evaluate(&engine, &Call::default());
    assert_eq!(evaluation.effect, Some(Effect::RequireApproval));
    assert!(evaluation.require_mfa());
    assert_eq!(
        evaluation.obligations().next().map(|o| o.kind),
        Some(ObligationKind::RedactArgument)
    );
}

#[test]
fn a_used_up_rate_limit_denies_although_another_rule_allows() {
    let engine = engine(&[
        cluster("all", ALLOW_ALL),
        cluster(
            "rate",
            "rules: [{ name: slow, effect: allow, rateLimit: { requests: 2, per: minute } }]",
        ),
    ]);
    let mut call = Call::default();
    for remaining in [2, 1] {
        let evaluation = evaluate(&engine, &call);
        assert_eq!(evaluation.effect, Some(Effect::Allow));
        let rate = evaluation.findings.iter().find_map(|f| f.rate).unwrap();
        assert_eq!(rate.remaining, remaining);
        assert!(engine.take(&evaluation, &call.input()));
    }
    let evaluation = evaluate(&engine, &call);
    assert_eq!(evaluation.effect, Some(Effect::Deny));
    assert!(evaluation.determining().all(|finding| finding.is_rate_limited()));
    // Another agent has its own allowance; the limit comes back with time.
    let other = Call {
        id: "spiffe://acme.example/ns/shop/sa/bot/agent/other".parse().unwrap(),
        ..Call::default()
    };
    assert_eq!(effect(&engine, &other), Some(Effect::Allow));
    call.now = Timestamp::from_secs(1_800_000_031);
    assert_eq!(effect(&engine, &call), Some(Effect::Allow));
}

#[test]
fn an_allowance_taken_meanwhile_denies() {
    let engine = engine(&[cluster(
        "rate",
        "rules: [{ name: slow, effect: allow, rateLimit: { requests: 1, per: minute } }]",
    )]);
    let call = Call::default();
    let (one, two) = (evaluate(&engine, &call), evaluate(&engine, &call));
    assert!(engine.take(&one, &call.input()));
    assert!(!engine.take(&two, &call.input()));
}

#[test]
fn policies_speak_only_for_what_they_match() {
    let deny = |selection: &str| format!("{selection}\nrules: [{{ name: no, effect: deny }}]");
    let matching = [
        "match: { tools: [write_query] }",
        "match: { tools: ['write_*'] }",
        "match: { servers: [other, sqlite] }",
        "match: { methods: ['tools/*'] }",
        "match: { protocols: [mcp] }",
        "match: { paths: ['file:///work/**'] }",
        "selector: { agents: [buyer] }",
        "selector: { agents: ['spiffe://acme.example/ns/shop/**'] }",
        "selector: { namespaces: ['sh?p'] }",
        "scopes: [mesh]",
    ];
    let other = [
        "match: { tools: [read_query] }",
        "match: { tools: ['read_*'] }",
        "match: { servers: [files] }",
        "match: { methods: [tools/list] }",
        "match: { protocols: [a2a] }",
        "match: { paths: ['file:///work/*'] }",
        "selector: { agents: [seller] }",
        "selector: { namespaces: [bank] }",
        "scopes: [ide, kernel]",
        "match: { servers: [sqlite], tools: [read_query] }",
    ];
    let call = Call { resource: Some("file:///work/a/b".into()), ..Call::default() };
    for (selection, expected) in
        matching.iter().map(|s| (s, Effect::Deny)).chain(other.iter().map(|s| (s, Effect::Allow)))
    {
        let engine = engine(&[cluster("all", ALLOW_ALL), cluster("x", &deny(selection))]);
        assert_eq!(effect(&engine, &call), Some(expected), "{selection}");
    }
}

#[test]
fn a_call_between_two_namespaces_needs_both() {
    let call = Call::default();
    let between = |engine: &PolicyEngine| engine.evaluate(&call.input(), Some("bank")).effect;
    let shop = namespaced("shop", "all", ALLOW_ALL);
    let bank = namespaced("bank", "all", ALLOW_ALL);
    let no = namespaced("bank", "no", "rules: [{ name: no, effect: deny }]");
    assert_eq!(between(&engine(std::slice::from_ref(&shop))), None);
    assert_eq!(between(&engine(&[shop.clone(), bank.clone()])), Some(Effect::Allow));
    assert_eq!(between(&engine(&[shop.clone(), bank.clone(), no])), Some(Effect::Deny));
    assert_eq!(effect(&engine(&[bank]), &call), None, "another namespace's allow is not ours");
    assert_eq!(effect(&engine(&[shop]), &call), Some(Effect::Allow));
}

#[test]
fn a_list_shows_what_may_be_allowed() {
    let engine = engine(&[cluster(
        "reads",
        r#"
rules:
  - { name: reads, effect: allow, tools: [read_file], when: [{ argument: $.path, operator: within, value: /work }] }
  - { name: writes, effect: allow, tools: [write_file, drop] }
  - { name: secrets, effect: deny, when: [{ argument: $.path, operator: notWithin, value: /work }] }
  - { name: never, effect: deny, tools: [drop] }
"#,
    )]);
    let shown = |tool: &str| engine.may_allow(&Call::tool(tool, json!(null)).input(), None).effect;
    assert_eq!(shown("read_file"), Some(Effect::Allow));
    assert_eq!(shown("write_file"), Some(Effect::Allow));
    assert_eq!(shown("drop"), Some(Effect::Deny));
    assert_eq!(shown("other"), None);
    // The same tools when called.
    let called = |path: &str| effect(&engine, &Call::tool("read_file", json!({ "path": path })));
    assert_eq!(called("/work/a"), Some(Effect::Allow));
    assert_eq!(called("/work/../etc/passwd"), Some(Effect::Deny));
}

#[test]
fn preparing_is_allowed_where_anything_could_be() {
    let list =
        Call { method: "tools/list".into(), tool: None, arguments: json!({}), ..Call::default() };
    let prepare = |policies: &[_]| engine(policies).may_prepare(&list.input(), None).effect;
    assert_eq!(prepare(&[]), None);
    let one_tool =
        "match: { servers: [sqlite], tools: [read_query] }\nrules: [{ name: a, effect: allow }]";
    assert_eq!(prepare(&[cluster("a", one_tool)]), Some(Effect::Allow));
    let elsewhere = "match: { servers: [files] }\nrules: [{ name: a, effect: allow }]";
    assert_eq!(prepare(&[cluster("a", elsewhere)]), None);
    let no = "rules: [{ name: no, effect: deny }]";
    assert_eq!(prepare(&[cluster("a", one_tool), cluster("no", no)]), Some(Effect::Deny));
    assert_eq!(prepare(&[cluster("sql", "rules: [{ name: no, effect: deny, tools: [x] }]")]), None);
}

/// A rule's lists become one rule for each combination, or helper rules where that is too many.
#[test]
fn all_lists_of_a_rule_must_hold() {
    for (tools, numbers) in
        [("a, b", "1, 2"), ("a, b, 'c*'", "1, 2, 3, 4"), ("a, b", "1, 2, 3, 4, 5, 6, 7, 8, 9")]
    {
        let yaml = format!(
            "rules: [{{ name: x, effect: allow, tools: [{tools}], when: [{{ argument: $.n, operator: in, value: [{numbers}] }}] }}]"
        );
        let engine = engine(&[cluster("x", &yaml)]);
        let said = |tool: &str, n: i64| effect(&engine, &Call::tool(tool, json!({ "n": n })));
        for tool in ["a", "b"] {
            assert_eq!((said(tool, 1), said(tool, 2)), (Some(Effect::Allow), Some(Effect::Allow)));
            assert_eq!((said(tool, 0), said(tool, 10)), (None, None));
        }
        assert_eq!(said("d", 1), None);
        assert_eq!(said("cc", 1).is_some(), tools.contains("c*"));
    }
}

#[test]
fn what_is_refused_or_only_audited_is_kept_out_of_the_record_too() {
    let rego = r#"
rego: |
  package shop.keys

  deny contains "a key" if contains(input.action.arguments.text, "KEY")

  obligations contains {"kind": "redactArgument", "target": "$"} if count(deny) > 0

  # There is no result that could be redacted.
  obligations contains {"kind": "redactResult", "target": "x"} if count(deny) > 0
"#;
    let declared = r"
rules:
  - { name: all, effect: allow }
  - name: no-pins
    effect: deny
    when: [{ argument: $.text, operator: equals, value: pin }]
    obligations: [{ kind: redactArgument, target: $.text }]
";
    let audited = declared.replace("rules:", "mode: audit\nrules:");
    let targets = |engine: &PolicyEngine, text: &str| -> Vec<String> {
        let evaluation = evaluate(engine, &Call::tool("t", json!({ "text": text })));
        evaluation.obligations().map(|one| one.target.clone()).collect()
    };
    let enforcing = engine(&[cluster("raw", rego), cluster("declared", declared)]);
    assert_eq!(targets(&enforcing, "a KEY"), ["$"]);
    assert_eq!(targets(&enforcing, "pin"), ["$.text"]);
    assert_eq!(targets(&enforcing, "plain"), [""; 0]);
    assert_eq!(targets(&engine(&[cluster("audited", &audited)]), "pin"), ["$.text"]);
}

#[test]
fn raw_rego_speaks_by_its_contract() {
    let rego = r#"
rego: |
  package shop.rules

  allow if input.action.tool == "read_query"

  deny contains "no dropping" if regex.match(`(?i)drop`, input.action.arguments.query)

  require_approval contains msg if {
    input.principal.trust < 500
    msg := sprintf("trust is %d", [input.principal.trust])
  }

  obligations contains {"kind": "redactResult", "target": "sk-[a-z]+"}

  visible if startswith(input.action.tool, "read")
"#;
    let engine = engine(&[cluster("raw", rego)]);
    let call = Call::tool("read_query", json!({ "query": "SELECT 1" }));
    let evaluation = evaluate(&engine, &call);
    assert_eq!(evaluation.effect, Some(Effect::Allow));
    assert_eq!(evaluation.obligations().next().unwrap().target, "sk-[a-z]+");
    let evaluation = evaluate(&engine, &Call::tool("read_query", json!({ "query": "Drop it" })));
    assert_eq!(evaluation.effect, Some(Effect::Deny));
    assert_eq!(evaluation.findings[0].reason(), Some("no dropping"));
    let evaluation = evaluate(&engine, &Call { trust: 400, ..call.clone() });
    assert_eq!(evaluation.effect, Some(Effect::RequireApproval));
    assert_eq!(evaluation.determining().next().unwrap().reason(), Some("trust is 400"));
    let shown = |tool: &str| engine.may_allow(&Call::tool(tool, json!({})).input(), None).effect;
    assert_eq!((shown("read_x"), shown("write_x")), (Some(Effect::Allow), Some(Effect::Deny)));
}

/// Bytes that are no text must not hide those that are: the expression is found beside them, as by
/// OPA, and a negation over it is not met.
#[test]
fn a_deny_by_regex_speaks_about_what_is_not_utf8() {
    let rego = r#"
rego: |
  package x

  allow if not regex.match(`(?i)drop.table`, base64.decode(input.action.arguments.data))

  deny if regex.match(`(?i)drop.table`, base64.decode(input.action.arguments.data))
"#;
    let engine = engine(&[cluster("x", rego)]);
    let data = |bytes: &[u8]| Call::tool("t", json!({ "data": STANDARD.encode(bytes) }));
    assert_eq!(effect(&engine, &data(b"\xff\xfe select")), Some(Effect::Allow));
    for bytes in [&b"drop table"[..], b"\xff drop table", b"drop\xfftable", b"drop table \xe2\x82"]
    {
        assert_eq!(effect(&engine, &data(bytes)), Some(Effect::Deny), "{bytes:?}");
    }
    // Each byte that is none counts as one character.
    assert_eq!(effect(&engine, &data(b"drop\xe2\x82table")), Some(Effect::Allow));
}

#[test]
fn a_result_of_another_shape_denies() {
    for output in
        ["allow := 1", "allow := true\ndeny := {\"a\": 1}", "allow := true\nobligations := [1]"]
    {
        let yaml = json!({ "rego": format!("package x\n{output}\n") }).to_string();
        let engine = engine(&[cluster("all", ALLOW_ALL), cluster("odd", &yaml)]);
        let evaluation = engine.evaluate(&Call::default().input(), None);
        assert_eq!(evaluation.effect, Some(Effect::Deny), "{output}");
        let error = evaluation.determining().next().and_then(|f| f.error.clone());
        assert!(matches!(error, Some(EvalError::Result(_))), "{error:?}");
    }
}

#[test]
fn an_audit_policy_that_fails_denies_nothing() {
    let yaml = json!({ "mode": "audit", "rego": "package x\nallow := 1\n" }).to_string();
    let engine = engine(&[cluster("all", ALLOW_ALL), cluster("odd", &yaml)]);
    let evaluation = engine.evaluate(&Call::default().input(), None);
    assert_eq!((evaluation.effect, evaluation.audited), (Some(Effect::Allow), Some(Effect::Deny)));
}

#[test]
fn a_broken_policy_keeps_its_last_good_version() {
    let engine = empty_engine();
    let compiler = compiler();
    let good = [
        cluster("all", ALLOW_ALL),
        cluster("x", "rego: \"package x\\n\\ndeny if input.action.tool == `bad`\\n\""),
    ];
    engine.reload(&compiler, &good).unwrap();
    let version = engine.version();
    let bad = [
        cluster("all", ALLOW_ALL),
        cluster("x", "rego: \"package x\\n\\ndeny if )\\n\""),
        cluster(
            "new",
            "rules: [{ name: a, effect: deny, when: [{ argument: query, operator: exists }] }]",
        ),
    ];
    let statuses = engine.reload(&compiler, &bad).unwrap();
    let states: Vec<_> = statuses.iter().map(|status| status.state).collect();
    assert_eq!(states, [PolicyState::Ready, PolicyState::LastGood, PolicyState::Failed]);
    assert_eq!(statuses[1].line, Some(3), "{}", statuses[1].message);
    assert!(statuses[2].message.contains("rule `a`, condition 1"), "{}", statuses[2].message);
    assert!(engine.version() > version);
    assert_eq!(effect(&engine, &Call::tool("bad", json!({}))), Some(Effect::Deny));
    assert_eq!(effect(&engine, &Call::tool("good", json!({}))), Some(Effect::Allow));
    engine.reload(&compiler, &good[..1]).unwrap();
    assert_eq!(
        effect(&engine, &Call::tool("bad", json!({}))),
        Some(Effect::Allow),
        "removed is gone"
    );
}

#[test]
fn what_is_not_deterministic_is_refused_with_its_line() {
    for call in [
        "time.now_ns() > 0",
        "rand.intn(`x`, 2) == 1",
        "http.send({}).status_code == 200",
        "net.lookup_ip_addr(`x`)",
        "opa.runtime().env",
    ] {
        let yaml = json!({ "rego": format!("package x\n\nallow if {call}\n") }).to_string();
        let statuses = empty_engine().reload(&compiler(), &[cluster("x", &yaml)]).unwrap();
        assert_eq!(
            (statuses[0].state, statuses[0].line),
            (PolicyState::Failed, Some(3)),
            "{call}: {}",
            statuses[0].message
        );
    }
}

#[test]
fn a_misspelt_field_is_refused() {
    let yaml = json!({ "rego": "package x\n\nallow if input.action.tol == `a`\n" }).to_string();
    let statuses = empty_engine().reload(&compiler(), &[cluster("x", &yaml)]).unwrap();
    assert_eq!(
        (statuses[0].state, statuses[0].line),
        (PolicyState::Failed, Some(3)),
        "{}",
        statuses[0].message
    );
}

#[test]
fn a_bundle_loads_elsewhere() {
    let policies = [cluster("all", ALLOW_ALL), cluster("sql", DROP)];
    let compiled = compiler().compile(&policies).unwrap();
    let json = serde_json::to_string(&compiled.bundle).unwrap();
    let bundle: aegis_policy::Bundle = serde_json::from_str(&json).unwrap();
    assert_eq!(bundle.digest(), compiled.bundle.digest());
    let engine = empty_engine();
    engine.load(&bundle).unwrap();
    assert_eq!(engine.policies().digest(), bundle.digest());
    assert_eq!(effect(&engine, &Call::default()), Some(Effect::Allow));
}
