//! `aegis compliance`: what is counted, what is cited, and what is refused.

use std::{fs, path::Path};

use aegis_audit::{Draft, Kind, Outcome, PolicyRef};
use aegis_core::{Digest, Timestamp};
use serde_json::{Value, json};

use crate::{
    fixture::{AGENT, Ledger, aegis, text},
    live::{Live, Server, until},
};

const POLICY: Digest = Digest::from_bytes([7; 32]);

/// What an agent could call a tool to get at whoever reads the report.
const HOSTILE: &str =
    "</script><script>alert(1)</script><img src=http://x.example/ onerror='x'>\"&\u{202e}";

fn draft(kind: Kind, result: Outcome, second: u64) -> Draft {
    let mut draft = Draft::new(kind, Timestamp::from_secs(1_760_000_000 + second), result);
    draft.agent_id = Some(AGENT.into());
    draft
}

/// A ledger with calls, a tagged policy, an approval, and a tool with a hostile name.
async fn ledger() -> Ledger {
    let ledger = Ledger::with(10).await;
    let mut loaded = draft(Kind::PolicyLoaded, Outcome::Recorded, 0);
    loaded.detail.insert("policy".into(), json!("eu-ai-act-oversight"));
    loaded.detail.insert("digest".into(), json!(POLICY));
    loaded.detail.insert(
        "compliance".into(),
        json!([
            { "framework": "eu-ai-act", "control": "Art. 14" },
            { "framework": "soc2", "control": "CC99" },
        ]),
    );
    let mut asked = draft(Kind::Decision, Outcome::RequireApproval, 10);
    asked.reason = Some("approval_by_policy".into());
    asked.policies = vec![PolicyRef {
        name: "eu-ai-act-oversight#art-14-employment".into(),
        digest: POLICY,
        effect: "require_approval".into(),
        mode: "enforce".into(),
    }];
    let mut vote = draft(Kind::ApprovalVote, Outcome::Recorded, 20);
    vote.detail.insert(
        "vote".into(),
        json!({
            "approver": "ben@acme.example", "approve": true, "factor": "totp", "comment": null,
        }),
    );
    let mut hostile = draft(Kind::Decision, Outcome::Deny, 30);
    hostile.reason = Some("policy_denied".into());
    hostile.action.insert("tool".into(), HOSTILE.into());
    ledger.append([loaded, asked, vote, hostile]).await;
    ledger
}

fn report(ledger: &Ledger, more: &[&str]) -> crate::fixture::Run {
    let mut args = vec!["compliance", "report", "--database", text(&ledger.path)];
    args.extend(more);
    aegis(&args)
}

/// A control of a report.
fn control<'r>(report: &'r Value, framework: &str, id: &str) -> &'r Value {
    let of = |list: &'r Value, id: &str| {
        list.as_array()
            .unwrap()
            .iter()
            .find(|one| one["id"] == id)
            .unwrap_or_else(|| panic!("{id}"))
    };
    of(&of(&report["frameworks"], framework)["controls"], id)
}

/// A line of a control, by a part of what it shows.
fn line<'r>(control: &'r Value, part: &str) -> &'r Value {
    let mut lines = control["evidence"].as_array().unwrap().iter();
    lines
        .find(|line| line["shows"].as_str().unwrap().contains(part))
        .unwrap_or_else(|| panic!("{part}"))
}

#[tokio::test]
async fn evidence_is_counted_by_control() {
    let ledger = ledger().await;
    let told = report(&ledger, &["-o", "json", "--key", &ledger.key()]).exits(0).json();
    let record = control(&told, "eu-ai-act", "Art. 12");
    // Ten calls, one asked for, one hostile.
    let decisions = line(record, "Every decision");
    assert_eq!((&decisions["count"], &decisions["entries"]), (&json!(12), &json!([1, 24, 26])));
    assert_eq!(line(record, "What became")["count"], 10);
    assert_eq!(record["status"], "evidence");
    let oversight = control(&told, "eu-ai-act", "Art. 14");
    let by_policy = line(oversight, "Decisions of policies");
    assert_eq!(
        (&by_policy["count"], &by_policy["policies"]),
        (&json!(1), &json!(["eu-ai-act-oversight"]))
    );
    assert_eq!(line(oversight, "A human answered")["count"], 1);
    assert_eq!(line(oversight, "Answers by a factor")["count"], 0);
    let none = control(&told, "eu-ai-act", "Art. 10");
    assert_eq!((&none["status"], &none["evidence"]), (&json!("cannot_be_shown"), &json!([])));
    assert!(none["nothing"].as_str().unwrap().contains("trained"));
    assert_eq!(control(&told, "soc2", "CC7.4")["status"], "no_evidence");
    // An outcome that nobody knows speaks against.
    assert_eq!(control(&told, "eu-ai-act", "Art. 26(5)")["status"], "against");
    let soc2 = told["frameworks"].as_array().unwrap().iter().find(|f| f["id"] == "soc2").unwrap();
    assert!(soc2["doubts"][0].as_str().unwrap().contains("`CC99`, which is no control"), "{soc2}");
    assert_eq!((&told["log"]["size"], &told["log"]["key_given"]), (&json!(28), &json!(true)));
}

#[tokio::test]
async fn a_period_bounds_what_is_counted() {
    let ledger = ledger().await;
    let since = Timestamp::from_secs(1_760_000_010).to_string();
    let until = Timestamp::from_secs(1_760_000_030).to_string();
    let run = report(
        &ledger,
        &["-o", "json", "--framework", "eu-ai-act", "--since", &since, "--until", &until],
    );
    let told = run.exits(0).json();
    assert_eq!(told["frameworks"].as_array().unwrap().len(), 1);
    assert_eq!(told["log"]["entries"], 2, "the asked call and the answer");
    assert_eq!(line(control(&told, "eu-ai-act", "Art. 12"), "Every decision")["count"], 1);
    // The tag was recorded before the period.
    let oversight = control(&told, "eu-ai-act", "Art. 14");
    assert_eq!(line(oversight, "Decisions of policies")["entries"], json!([24]));
}

#[tokio::test]
async fn each_cited_entry_is_proven_offline_against_one_checkpoint() {
    let ledger = ledger().await;
    let folder = ledger.file("proofs");
    let told = report(&ledger, &["-o", "json", "--proofs", text(&folder)]).exits(0).json();
    let entries = told["entries"].as_object().unwrap();
    assert!(entries.len() > 8, "{}", entries.len());
    let checkpoint = told["log"]["checkpoint"].as_str().unwrap();
    let key = ledger.key();
    for (index, cited) in entries {
        assert!(cited["proof"].as_str().unwrap().ends_with(checkpoint), "entry {index}");
        let proof = folder.join(format!("{index}.tlog-proof"));
        let run = aegis(&["audit", "check-proof", text(&proof), "--key", &key]).exits(0);
        assert!(run.stdout.starts_with(&format!("entry {index} is in the log")), "{}", run.stdout);
    }
    let cited: std::collections::BTreeSet<u64> = told["frameworks"]
        .as_array()
        .unwrap()
        .iter()
        .flat_map(|framework| framework["controls"].as_array().unwrap())
        .flat_map(|control| control["evidence"].as_array().unwrap())
        .flat_map(|line| line["entries"].as_array().unwrap())
        .map(|index| index.as_u64().unwrap())
        .collect();
    assert_eq!(cited.len(), entries.len(), "what is cited is there, and nothing else");
}

#[tokio::test]
async fn a_log_that_was_touched_gets_no_report() {
    let ledger = ledger().await;
    let mut bytes = fs::read(&ledger.path).unwrap();
    let wanted = b"file:///srv/entry-7-end";
    let at = bytes.windows(wanted.len()).position(|window| window == wanted).unwrap();
    bytes[at + 17] = b'6';
    fs::write(&ledger.path, &bytes).unwrap();
    let out = ledger.file("report.html");
    report(&ledger, &["-O", text(&out)]).refuses("not those that its checkpoint covers");
    assert!(!Path::new(&out).exists());
    let other = aegis_audit::Signer::from_seed("acme.example/audit", &[1; 32]).unwrap();
    report(&ledger, &["--key", &other.verifier().to_string()]).refuses("checkpoint is refused");
}

#[tokio::test]
async fn the_page_holds_no_markup_of_agents_and_asks_the_network_for_nothing() {
    let ledger = ledger().await;
    let out = ledger.file("report.html");
    let run = report(&ledger, &["-O", text(&out), "--cite", "50"]).exits(0);
    assert!(run.stdout.contains(&format!("written: {}", text(&out))), "{}", run.stdout);
    let page = fs::read_to_string(&out).unwrap();
    assert!(page.contains("&lt;/script&gt;&lt;script&gt;alert(1)"), "the name is shown");
    assert!(!page.contains("<script") && !page.contains("<img"), "and is no markup");
    assert!(!page.contains('\u{202e}'), "nor turns text round");
    assert!(page.contains("default-src 'none'"));
    for address in page.split("href=\"").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(address.starts_with('#') || address.starts_with("data:"), "{address}");
    }
    assert!(!page.contains("src=\"") && !page.contains("url(") && !page.contains("@import"));
    for link in page.split("href=\"#").skip(1).map(|rest| rest.split('"').next().unwrap()) {
        assert!(page.contains(&format!("id=\"{link}\"")), "{link} leads nowhere");
    }
}

#[tokio::test]
async fn check_fails_on_what_is_lacking() {
    let ledger = ledger().await;
    let framework = ledger.file("own.yaml");
    let head = "id: own\ntitle: Own\nedition: '1'\nabout: a\ncontrols:\n";
    let shown =
        "- {id: A, title: a, asks: b, evidence: [{shows: c, entries: {kinds: [decision]}}]}\n";
    let absent = "- {id: B, title: a, asks: b, evidence: [{shows: c, entries: {kinds: [gap]}}]}\n";
    fs::write(&framework, format!("{head}{shown}")).unwrap();
    report(&ledger, &["--framework", text(&framework), "--check"]).exits(0);
    fs::write(&framework, format!("{head}{shown}{absent}")).unwrap();
    report(&ledger, &["--framework", text(&framework)]).exits(0);
    let run = report(&ledger, &["--framework", text(&framework), "--check"]).exits(1);
    assert!(run.stdout.contains("no evidence      B"), "{}", run.stdout);
}

#[tokio::test]
async fn the_controls_of_policies_can_be_read_from_their_files() {
    let ledger = Ledger::with(1).await;
    let file = ledger.file("policy.yaml");
    fs::write(&file, "apiVersion: aegis.dev/v1alpha1\nkind: ClusterAgentPolicy\nmetadata: {name: own}\nspec:\n  compliance: [{framework: soc2, control: CC6.1}]\n  rules: [{name: a, effect: deny}]\n").unwrap();
    let bundle = ledger.file("own.bundle.json");
    aegis(&["policy", "build", text(&file), "-O", text(&bundle)]).exits(0);
    let bundle: Value = serde_json::from_slice(&fs::read(&bundle).unwrap()).unwrap();
    let policy: aegis_policy::Policy =
        serde_json::from_value(bundle["policies"][0]["policy"].clone()).unwrap();
    let mut denied = draft(Kind::Decision, Outcome::Deny, 1);
    denied.policies = vec![PolicyRef {
        name: "own#a".into(),
        digest: policy.digest().unwrap(),
        effect: "deny".into(),
        mode: "enforce".into(),
    }];
    ledger.append([denied]).await;
    let count = |more: &[&str]| {
        let mut args = vec!["--framework", "soc2", "-o", "json"];
        args.extend(more);
        let told = report(&ledger, &args).exits(0).json();
        let control = control(&told, "soc2", "CC6.1").clone();
        let lines = control["evidence"].as_array().unwrap().clone();
        lines
            .iter()
            .filter(|line| line["shows"].as_str().unwrap().starts_with("Decisions of policies"))
            .count()
    };
    assert_eq!(count(&[]), 0);
    assert_eq!(count(&["--policies", text(&file)]), 1);
    report(&ledger, &["--policies", "/nonexistent"]).refuses("/nonexistent");
}

#[test]
fn usage_is_told_apart() {
    let run = aegis(&["compliance", "report", "--framework", "soc"]).exits(2);
    assert!(
        run.stderr.contains("there is no framework `soc`") && run.stderr.contains("`soc2`"),
        "{}",
        run.stderr
    );
    let run = aegis(&["compliance", "report", "-O", "report.pdf"]).exits(2);
    assert!(run.stderr.contains(".html or .json"), "{}", run.stderr);
    let told =
        aegis(&["compliance", "controls", "--framework", "hipaa", "-o", "json"]).exits(0).json();
    let ids: Vec<&str> =
        told[0]["controls"].as_array().unwrap().iter().map(|c| c["id"].as_str().unwrap()).collect();
    assert!(ids.contains(&"164.312(b)") && ids.contains(&"164.310"), "{ids:?}");
    let run = aegis(&["compliance", "controls", "--framework", "gdpr"]).exits(0);
    assert!(run.stdout.contains("nothing here can show it"), "{}", run.stdout);
}

/// The packs that carry a framework's name are tagged with its controls, and their rules say which.
#[test]
fn the_packs_name_controls_of_their_framework() {
    let told = aegis(&["compliance", "controls", "-o", "json"]).exits(0).json();
    for framework in told.as_array().unwrap() {
        let id = framework["id"].as_str().unwrap();
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../policies").join(id);
        let policies = aegis_policy::sandbox::read_policies(&folder.join("policy.yaml")).unwrap();
        for policy in policies {
            let name = policy.id.to_string();
            assert!(!policy.spec.compliance.is_empty(), "{name}");
            for tag in &policy.spec.compliance {
                assert_eq!(tag.framework, id, "{name}");
                let known = framework["controls"]
                    .as_array()
                    .unwrap()
                    .iter()
                    .find(|c| c["id"] == tag.control.as_str());
                let known = known.unwrap_or_else(|| panic!("{name}: {}", tag.control));
                assert!(known.get("nothing").is_none(), "{name}: {}", tag.control);
            }
            let slugs: Vec<String> =
                policy.spec.compliance.iter().map(|tag| slug(&tag.control)).collect();
            for rule in &policy.spec.rules {
                assert!(
                    slugs.iter().any(|slug| rule.name.starts_with(slug.as_str())),
                    "{name}#{}: {slugs:?}",
                    rule.name
                );
            }
        }
    }
}

/// `Art. 5(1)(c)` is `art-5`, `164.502(b)` is `164-502`.
fn slug(control: &str) -> String {
    let plain = control.split('(').next().unwrap().to_lowercase();
    plain.replace(". ", "-").replace('.', "-")
}

/// The ledger of a daemon says by itself which controls a decision was for.
#[tokio::test]
async fn a_daemon_records_what_policies_are_tagged_with_and_proves_what_is_cited() {
    let server = Server::start().await;
    let live = Live::start(&server.document, &[]).await;
    let tagged = "apiVersion: aegis.dev/v1alpha1\nkind: AgentPolicy\nmetadata: { name: tagged }\nspec:\n  compliance: [{ framework: soc2, control: CC6.1 }]\n  rules: [{ name: cc6-1, effect: deny, tools: [echo] }]\n";
    live.write("tagged.yaml", tagged);
    until("the policy is in force", async || {
        let loaded = live.entries("policy_loaded").await;
        loaded.iter().any(|entry| entry["detail"]["compliance"][0]["control"] == "CC6.1")
    })
    .await;
    assert_eq!(live.call("echo").await.as_deref(), Some("policy_denied"));
    let folder = live.folder.path().join("proofs");
    let words =
        ["compliance", "report", "--framework", "soc2", "-o", "json", "--proofs", text(&folder)];
    let mut told = Value::Null;
    until("a checkpoint covers the call", async || {
        told = live.aegis(&words).await.exits(0).json();
        let access = control(&told, "soc2", "CC6.1");
        let lines = access["evidence"].as_array().unwrap();
        lines.iter().any(|line| line["policies"] == json!(["default/tagged"]))
    })
    .await;
    let cited =
        line(control(&told, "soc2", "CC6.1"), "Decisions of policies")["entries"][0].clone();
    let proof = folder.join(format!("{cited}.tlog-proof"));
    let key = told["log"]["key"].as_str().unwrap();
    let run = aegis(&["audit", "check-proof", text(&proof), "--key", key]).exits(0);
    assert!(run.stdout.contains("(policy_denied)"), "{}", run.stdout);
}
