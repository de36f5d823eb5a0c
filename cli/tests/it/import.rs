//! `aegis import`: each field is enforced or refused by name, and what is written behaves as the file
//! says when the kernel decides by it.

use std::{fs, path::Path};

use aegis_core::{
    AgentId,
    action::{Action, ActionKind, Protocol},
    decision::Verdict,
    trust::Trust,
};
use aegis_policy::sandbox::read_policies;
use serde_json::{Value, json};

use crate::{
    domain::Domain,
    fixture::{AGENT, Run, aegis, text},
};

fn import(dir: &Path, template: &str, more: &[&str]) -> Run {
    let file = dir.join("template.yaml");
    fs::write(&file, template).unwrap();
    let out = dir.join("policy.yaml");
    let mut args = vec!["import", text(&file), "-O", text(&out)];
    args.extend(more);
    aegis(&args)
}

/// Imports a file that can be enforced whole, and decides by it.
async fn domain_of(template: &str, more: &[&str]) -> Domain {
    let dir = tempfile::tempdir().unwrap();
    import(dir.path(), template, more).exits(0);
    aegis(&["policy", "check", text(&dir.path().join("policy.yaml"))]).exits(0);
    // Policies alone decide here.
    let thresholds = json!({ "tau": 1000, "tMin": 1, "criticalScore": 0, "fileLimit": 10000 });
    Domain::open(dir, thresholds).await
}

const ALLOW: Verdict = Verdict::Allow;
const ASK: Verdict = Verdict::RequireApproval;
const DENY: Verdict = Verdict::Deny;

const TEMPLATE: &str = r#"
kernel: {version: "1.0", mode: strict, template: shop}
description: What the shop's agents may do.
signals: {enabled: [SIGSTOP, SIGKILL, SIGCONT]}
policies:
  - name: tool_allowlist
    description: Nothing else.
    severity: critical
    category: security
    allow:
      - {action: read_file, paths: ["/app/**", "/etc/motd"]}
      - {action: http_request, methods: [GET], domains: ["*.acme.example", api.ben.example]}
      - {action: search, scope: ["*"]}
      - {action: database_read, tables: [goods, prices]}
    deny: [{action: "*"}]
    action: SIGKILL
    message: Not in the allowlist.
  - name: writes
    requires_approval:
      - {action: database_write, approval_level: dual}
    action: SIGSTOP
    message: Two people look at writes.
  - name: destructive
    deny:
      - patterns: ['(?i)\bDROP\s+TABLE\b', 'sk-[A-Za-z0-9]{8,}']
      - {action: database_write, operations: [TRUNCATE]}
    action: SIGKILL
    message: That destroys.
  - name: look
    deny: [{patterns: ['(?i)salary']}]
    action: SIGSTOP
    message: Somebody looks at salaries.
  - name: network
    allow: [{action: http_request, domains: ["*.acme.example", api.ben.example]}]
    deny: [{action: http_request, domains: ["*"]}]
    action: SIGKILL
    message: Not that host.
  - name: noted
    mode: warn
    deny: [{action: search}]
    message: Only noted.
  - name: limits
    limits:
      - {action: search, max_per_minute: 3, max_per_hour: 100}
      - {action: tool_call, max_per_minute: 40}
    action: SIGSTOP
    message: Too often.
audit: {enabled: true, mandatory: true, format: json, include: [all_actions, approvals], tamper_detection: {enabled: true, algorithm: sha256}}
settings: {fail_closed: true, debug_mode: false}
"#;

#[tokio::test]
async fn a_template_of_agent_os_behaves_as_it_says() {
    let domain = domain_of(TEMPLATE, &["--tool", "database_write=run_sql,write_*"]).await;
    let path = |path: &str| json!({ "path": path });
    let get = |url: &str| json!({ "url": url, "method": "GET" });
    domain
        .expect(&[
            ("read_file", path("/app/a/b.txt"), ALLOW),
            ("read_file", path("/etc/motd"), ALLOW),
            ("read_file", path("/app/../etc/passwd"), DENY),
            ("read_file", path("/etc/passwd"), DENY),
            ("read_file", json!({}), DENY),
            ("read_file", json!({ "file_path": "/app/x" }), ALLOW),
            ("read_file", json!({ "path": "/app/x", "file_path": "/etc/passwd" }), DENY),
            ("http_request", get("https://api.acme.example/x?y"), ALLOW),
            ("http_request", get("https://api.ben.example:443"), ALLOW),
            ("http_request", get("https://acme.example/"), DENY),
            ("http_request", get("https://api.acme.example.evil.example/"), DENY),
            ("http_request", get("https://api.acme.example@evil.example/"), DENY),
            ("http_request", get(r"https://api.acme.example\@evil.example/"), DENY),
            ("http_request", json!({ "uri": "https://api.acme.example/", "method": "GET" }), ALLOW),
            ("http_request", json!({ "uri": "https://evil.example/", "method": "GET" }), DENY),
            // The second policy allows any method to these hosts.
            (
                "http_request",
                json!({ "url": "https://api.acme.example/", "method": "POST" }),
                ALLOW,
            ),
            ("http_request", json!({ "method": "GET" }), DENY),
            ("database_read", json!({ "table": "goods" }), ALLOW),
            ("database_read", json!({ "table": "staff" }), DENY),
            ("run_sql", json!({ "sql": "insert into goods values (1)" }), ASK),
            ("write_rows", json!({ "rows": 1 }), ASK),
            ("database_write", json!({ "sql": "insert" }), DENY),
            ("run_sql", json!({ "sql": "truncate goods" }), DENY),
            ("run_sql", json!({ "batch": [{ "q": "drop  table goods" }] }), DENY),
            ("search", json!({ "q": "sk-abcdefgh1" }), DENY),
            ("search", json!({ "q": "salary" }), ASK),
            ("other", json!({}), DENY),
            // A text that is asked about opens nothing that is not allowed.
            ("other", json!({ "q": "salary" }), DENY),
        ])
        .await;
    let once = json!({ "q": "x" });
    for expected in [ALLOW, ALLOW, ALLOW, DENY] {
        domain.expect(&[("search", once.clone(), expected)]).await;
    }
    let denied = domain.decided("http_request", get("https://evil.example/")).await.1;
    assert_eq!(denied, "Not that host.");
    let asked = domain.decided("run_sql", json!({ "sql": "insert" })).await.1;
    assert_eq!(asked, "Two people look at writes.");
    assert!(domain.policies().contains("approvals: 2"));
    // 34 calls so far; above 40 in a minute nothing goes on.
    for _ in 0..6 {
        domain.decided("read_file", path("/app/x")).await;
    }
    let (verdict, why) = domain.decided("read_file", path("/app/x")).await;
    assert_eq!((verdict, why.as_str()), (DENY, "Too many actions in a minute."));
}

#[test]
fn each_field_that_cannot_be_enforced_is_named_with_its_line() {
    let dir = tempfile::tempdir().unwrap();
    let template = r#"kernel: {version: "1.0", mode: permissive}
signals: {enabled: [SIGKILL, SIGUSR1]}
policies:
  - name: a
    allow:
      - {action: search, regions: [EU]}
      - {action: read_file, paths: ["/a*/**"]}
      - {action: list_files}
    deny:
      - patterns: ['x(?!y)', 'secret']
    scope: [input, output]
    action: SIGUSR2
    message: no
    escalate_to: somebody
  - name: b
    allow: [{action: search}]
    requires_approval:
      - {action: pay, approval_level: finance, timeout_minutes: 5, threshold_usd: 100}
    limits:
      - {action: search, max_per_minute: 3, max_per_session: 9}
      - {action: llm_call, max_per_minute: 3}
notifications: {channels: [{name: x}]}
audit: {enabled: false, log_path: ./x.log, include: [phi_access]}
"#;
    let out = dir.path().join("policy.yaml");
    let run = import(dir.path(), template, &["-o", "json"]).exits(1);
    let told = run.json();
    let file = text(&dir.path().join("template.yaml")).to_owned();
    let refused: Vec<(String, String)> = told["refused"]
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            let place = one["place"].as_str().unwrap().strip_prefix(&file).unwrap();
            (place.split(':').nth(1).unwrap().to_owned(), one["field"].as_str().unwrap().to_owned())
        })
        .collect();
    for (line, field) in [
        ("1", "kernel.mode"),
        ("2", "signals.enabled[1]"),
        ("12", "policies[0].action"),
        ("14", "policies[0].escalate_to"),
        ("18", "policies[1].requires_approval[0].approval_level"),
        ("18", "policies[1].requires_approval[0].timeout_minutes"),
        ("18", "policies[1].requires_approval[0].threshold_usd"),
        ("20", "policies[1].limits[0].max_per_session"),
        ("21", "policies[1].limits[1].max_per_minute"),
        ("22", "notifications"),
        ("23", "audit.enabled"),
        ("23", "audit.log_path"),
        ("23", "audit.include[0]"),
    ] {
        assert!(refused.contains(&(line.into(), field.into())), "{field} at {line}: {refused:?}");
    }
    assert!(!out.exists(), "nothing is written");

    // Without what is said of the policy as a whole, its entries are looked at one by one.
    let template = template.replace("    escalate_to: somebody\n", "");
    let run = import(dir.path(), &template, &["--partial"]).exits(1);
    for expected in [
        "template.yaml:6:26: `policies[0].allow[0].regions`",
        "template.yaml:7:29: `policies[0].allow[1].paths`",
        "template.yaml:10:20: `policies[0].deny[0].patterns[0]`",
        "template.yaml:11:20: `policies[0].scope[1]`",
    ] {
        assert!(run.stdout.contains(expected), "{expected}: {}", run.stdout);
    }
    let written = fs::read_to_string(&out).unwrap();
    assert!(
        written.contains("#   ") && written.contains("policies[0].allow[0].regions"),
        "{written}"
    );
    let tools: Vec<Value> = policies(&out)
        .iter()
        .flat_map(|policy| policy["rules"].as_array().cloned().unwrap_or_default())
        .map(|rule| rule["tools"].clone())
        .collect();
    assert!(
        !tools.contains(&json!(["pay"])),
        "an approval without its condition is none: {tools:?}"
    );
    assert!(tools.contains(&json!(["list_files"])), "{tools:?}");
    let searches = tools.iter().filter(|tools| **tools == json!(["search"])).count();
    assert_eq!(
        searches, 1,
        "allowed by the second policy, not by the one whose condition is refused"
    );
    aegis(&["policy", "check", text(&out)]).exits(0);
}

/// The specifications of what was written.
fn policies(file: &Path) -> Vec<Value> {
    read_policies(file).unwrap().iter().map(|policy| json!(policy.spec)).collect()
}

#[tokio::test]
async fn a_document_of_agent_os_is_decided_by_its_first_match() {
    let document = r#"
version: "1.0"
name: careful
rules:
  - {name: reads, condition: {field: tool_name, operator: in, value: [read, list]}, action: allow, priority: 90}
  - {name: exec, condition: {field: tool_name, operator: eq, value: execute}, action: block, priority: 98, message: No code.}
  - {name: big, condition: {field: params.size, operator: gt, value: 100}, action: deny, priority: 50}
  - {name: note, condition: {field: tool_name, operator: matches, value: "^note_"}, action: audit, priority: 10}
defaults: {action: deny}
"#;
    let domain = domain_of(document, &[]).await;
    domain
        .expect(&[
            ("read", json!({}), ALLOW),
            // The earlier rule has allowed it.
            ("read", json!({ "size": 500 }), ALLOW),
            ("execute", json!({}), DENY),
            ("note_x", json!({ "size": 1 }), ALLOW),
            ("note_x", json!({ "size": 101 }), DENY),
            ("other", json!({}), DENY),
        ])
        .await;
    assert_eq!(domain.decided("execute", json!({})).await.1, "No code.");
    let dir = tempfile::tempdir().unwrap();
    let more = document
        .replace("{action: deny}\n", "{action: deny, max_tokens: 5, confidence_threshold: 0.9}\n");
    let run = import(dir.path(), &more, &[]).exits(1);
    assert!(
        run.stdout.contains("`defaults.max_tokens`")
            && run.stdout.contains("`defaults.confidence_threshold`"),
        "{}",
        run.stdout
    );
    let open = domain_of(&document.replace("{action: deny}\n", "{action: allow}\n"), &[]).await;
    open.expect(&[("other", json!({}), ALLOW), ("execute", json!({}), DENY)]).await;
}

#[tokio::test]
async fn a_governance_policy_of_agentmesh_means_what_it_says() {
    let policy = r#"
version: "1.0"
name: support-bot
agents: [buyer, "*"]
default_action: deny
rules:
  - {name: cap-exports, condition: "action.type == 'export'", action: allow, limit: "2/hour", priority: 100}
  - {name: big, condition: "params.rows > 100 and action.type in ['query', 'read']", action: deny, description: Too many rows., priority: 90}
  - {name: pii, condition: "data.contains_pii", action: require_approval, priority: 80}
  - {name: reads, condition: "action.type == 'query' or action.type == 'read'", action: allow, priority: 10}
  - {name: off, condition: "nonsense ~~", action: allow, enabled: false}
"#;
    let domain = domain_of(policy, &[]).await;
    domain
        .expect(&[
            ("query", json!({ "rows": 5 }), ALLOW),
            ("query", json!({ "rows": 500 }), DENY),
            ("query", json!({}), ALLOW),
            ("read", json!({ "contains_pii": true }), ASK),
            ("read", json!({ "contains_pii": false }), ALLOW),
            ("drop", json!({}), DENY),
            ("export", json!({}), ALLOW),
            ("export", json!({}), ALLOW),
            ("export", json!({}), DENY),
        ])
        .await;
    let dir = tempfile::tempdir().unwrap();
    for (from, to, expected) in [
        ("action: allow, limit", "action: warn, limit", "`rules[0].action`: Aegis records"),
        ("\"2/hour\"", "2 an hour", "`rules[0].limit`: expected a number and a period"),
        ("\"*\"]", "\"did:mesh:1\"]", "`agents[1]`: a DID says nothing"),
        ("action.type == 'export'", "user.role == 'x'", "`user.role`"),
        ("priority: 80", "approvers: [ben@acme.example]", "`rules[2].approvers`: who may approve"),
    ] {
        let run = import(dir.path(), &policy.replacen(from, to, 1), &[]).exits(1);
        assert!(run.stdout.contains(expected), "{expected}: {}", run.stdout);
    }
}

#[tokio::test]
async fn a_trust_policy_of_agentmesh_says_whom_to_deal_with() {
    let policy = r#"
name: strict-trust
version: "1.0"
rules:
  - {name: low, condition: {field: trust_score, operator: lt, value: 700}, action: deny, priority: 10}
  - {name: asked, condition: {field: trust_score, operator: lt, value: 800}, action: require_approval, priority: 20}
  - {name: deep, condition: {field: delegation_depth, operator: gt, value: 1}, action: deny, priority: 5}
defaults: {min_trust_score: 600, max_delegation_depth: 1, allowed_namespaces: [shop], require_handshake: true}
"#;
    let domain = domain_of(policy, &[]).await;
    let message = || Action {
        kind: ActionKind::AgentMessage,
        protocol: Protocol::A2a,
        method: "message/send".into(),
        server: "other".into(),
        tool: None,
        tool_pin: None,
        resource: None,
        arguments: json!({}),
    };
    let agent: AgentId = AGENT.parse().unwrap();
    for (score, expected) in [(650, DENY), (750, ASK), (850, ALLOW)] {
        let trust = Trust { a: score * 10_000, b: (1_000 - score) * 10_000, ..Trust::default() };
        domain.kernel.told_trust(1, [(agent.clone(), trust)]);
        assert_eq!(
            domain.decided_on(message()).await.0,
            expected,
            "{score}\n{}",
            domain.policies()
        );
    }
    // Whom to deal with is not what to do.
    domain.expect(&[("anything", json!({}), DENY)]).await;
    let elsewhere = domain_of(&policy.replace("[shop]", "[core]"), &[]).await;
    let trust = Trust { a: 9_000_000, b: 1_000_000, ..Trust::default() };
    elsewhere.kernel.told_trust(1, [(agent, trust)]);
    assert_eq!(elsewhere.decided_on(message()).await.0, DENY);
}

const PROXY: &str = r#"
version: "1.0"
mode: enforce
rules:
  - {tool: run_shell, action: deny, reason: No shell.}
  - tool: read_file
    action: allow
    conditions: [{path_starts_with: /data/}, {path_not_contains: [.env, id_rsa]}]
  - tool: query
    action: allow
    conditions: [{argument_not_matches: {sql: "(?i)(DROP|DELETE)\\s"}}]
    rate_limit: {requests: 3, per: minute}
  - {tool: "git_*", action: allow}
  - {tool: "*", action: deny, reason: Nothing else.}
rate_limits: {global: {requests: 100, per: minute}}
audit: {log_all: true, include_arguments: true, redact_fields: [api_key]}
"#;

#[tokio::test]
async fn a_policy_of_agentmeshs_proxy_is_decided_by_its_first_match() {
    let domain = domain_of(PROXY, &[]).await;
    let path = |path: &str| json!({ "path": path });
    domain
        .expect(&[
            ("run_shell", json!({}), DENY),
            ("read_file", path("/data/a"), ALLOW),
            ("read_file", path("/data/.ENV"), DENY),
            ("read_file", path("/etc/a"), DENY),
            ("read_file", json!({}), DENY),
            ("read_file", json!({ "path": "/data/a", "filename": "/data/id_rsa" }), DENY),
            ("query", json!({ "sql": "select 1" }), ALLOW),
            ("query", json!({ "sql": "drop table x" }), DENY),
            ("query", json!({}), ALLOW),
            ("git_log", json!({ "api_key": "x" }), ALLOW),
            ("gitlog", json!({}), DENY),
        ])
        .await;
    assert_eq!(domain.decided("run_shell", json!({})).await.1, "No shell.");
    domain.expect(&[("query", json!({}), ALLOW), ("query", json!({}), DENY)]).await;
    // A ban of everything after exceptions with many conditions is what Aegis does anyhow.
    let mut long = PROXY.replace("  - {tool: \"*\"", "  - {tool: never, action: allow, conditions: [{path_not_contains: [a]}, {argument_matches: {x: a, y: b}}]}\n  - {tool: write_file, action: allow, conditions: [{path_not_contains: [.env]}]}\n  - {tool: web, action: allow}\n  - {tool: \"*\"");
    long.push_str("default_action: deny\n");
    let long = long.replace("rate_limits: {", "rate_limits: {per_tool: {git_log: {requests: 5, per: hour}, web: {requests: 9, per: hour}}, ");
    let dir = tempfile::tempdir().unwrap();
    let run = import(dir.path(), &long, &[]).exits(1);
    assert!(
        run.stdout.contains("`rate_limits.per_tool.git_log`: a limit belongs"),
        "{}",
        run.stdout
    );
    let long = domain_of(&long.replace("git_log: {requests: 5, per: hour}, ", ""), &[]).await;
    long.expect(&[
        ("write_file", path("/a"), ALLOW),
        ("write_file", path("/.env"), DENY),
        ("read_file", path("/data/a"), ALLOW),
        ("other", json!({}), DENY),
    ])
    .await;
    assert!(long.policies().contains("requests: 9"), "{}", long.policies());
    let shadow = domain_of(&PROXY.replace("enforce", "shadow"), &[]).await;
    let page = shadow.kernel.engine().policies().policies().count();
    assert!(page > 0 && shadow.policies().contains("mode: audit"), "{}", shadow.policies());
    let dir = tempfile::tempdir().unwrap();
    for (from, to, expected) in [
        ("redact_fields: [api_key]", "include_arguments_hash: x", "`audit.include_arguments_hash`"),
        (
            "per: minute}}",
            "per: hour}}",
            "`rate_limits.global.per`: all actions of an agent together",
        ),
        (
            "argument_not_matches: {sql: \"(?i)(DROP|DELETE)\\\\s\"}",
            "path_not_contains: [x]",
            "`rules[2].rate_limit`: here it would count by itself",
        ),
        ("path_starts_with", "path_ends_with", "`rules[1].conditions[0].path_ends_with`: expected"),
        ("log_all: true", "log_all: false", "`audit.log_all`: Aegis records"),
    ] {
        let run = import(dir.path(), &PROXY.replacen(from, to, 1), &[]).exits(1);
        assert!(run.stdout.contains(expected), "{expected}: {}", run.stdout);
    }
}

#[test]
fn what_is_of_no_known_format_is_told() {
    let dir = tempfile::tempdir().unwrap();
    import(dir.path(), "a: 1\n", &[]).refuses("of no format that is known here");
    // Of these two formats one puts higher priorities first, and the other lower ones.
    let rule = "rules: [{name: a, condition: {field: tool_name, operator: eq, value: x}, action: deny}]\nname: x\n";
    import(dir.path(), rule, &[]).refuses("say which with --from");
    import(dir.path(), rule, &["--from", "agent-os-document"]).exits(0);
    import(dir.path(), "rules: [\n", &[]).refuses("template.yaml:");
    let run = import(dir.path(), rule, &["--tool", "x"]).exits(2);
    assert!(run.stderr.contains("ACTION=TOOL"), "{}", run.stderr);
    let file = dir.path().join("template.yaml");
    let run = aegis(&["import", text(&file), "--from", "agent-os-document", "--namespace", "shop"])
        .exits(0);
    assert!(
        run.stdout.contains("kind: AgentPolicy\n") && run.stdout.contains("namespace: shop"),
        "{}",
        run.stdout
    );
}
