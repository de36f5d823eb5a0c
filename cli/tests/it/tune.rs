//! `aegis trust tune`: what other thresholds would have made of what was decided.

use std::fs;

use aegis_core::decision::Verdict;
use serde_json::{Value, json};

use crate::{
    domain::Domain,
    fixture::{Run, aegis, text},
};

const POLICY: &str = "apiVersion: aegis.dev/v1alpha1\nkind: ClusterAgentPolicy\nmetadata: {name: t}\nspec:\n  rules:\n    - {name: ask, effect: require_approval, tools: [ask_me]}\n    - {name: no, effect: deny, tools: [never]}\n    - {name: yes, effect: allow}\n";

/// Decisions of a kernel: 4 reads and 3 deletions allowed, 1 asked by a policy, 2 denied, 1 whose
/// arguments are not all in the record.
async fn ledger() -> (tempfile::TempDir, std::path::PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("policy.yaml"), POLICY).unwrap();
    // Nothing is asked because of risk or trust here.
    let domain = Domain::open(dir, json!({ "tau": 1000, "tMin": 1, "criticalScore": 0 })).await;
    for _ in 0..4 {
        assert_eq!(domain.done("read_file", json!({ "path": "/a" })).await, Verdict::Allow);
    }
    for _ in 0..3 {
        assert_eq!(domain.done("delete_file", json!({ "path": "/a" })).await, Verdict::Allow);
    }
    assert_eq!(domain.done("ask_me", json!({})).await, Verdict::RequireApproval);
    for _ in 0..2 {
        assert_eq!(domain.done("never", json!({})).await, Verdict::Deny);
    }
    // The value is kept out of the record, and with it what it says of the risk.
    let secret = json!({ "password": { "path": "/srv/payments/delete" } });
    assert_eq!(domain.done("store", secret).await, Verdict::Allow);
    domain.close().await
}

fn tune(ledger: &std::path::Path, settings: &[&str]) -> Run {
    let mut args = vec!["trust", "tune", "--database", text(ledger)];
    settings.iter().for_each(|setting| args.extend(["--set", *setting]));
    aegis(&args)
}

/// How many decisions went from one fate to another.
fn count(told: &Value, was: &str, would: &str) -> u64 {
    let all = told["decisions"].as_array().unwrap();
    let found = all.iter().find(|one| one["was"] == was && one["would_be"] == would);
    found.map_or(0, |one| one["count"].as_u64().unwrap())
}

fn json_of(ledger: &std::path::Path, settings: &[&str]) -> Value {
    let mut args = vec!["trust", "tune", "--database", text(ledger), "-o", "json"];
    settings.iter().for_each(|setting| args.extend(["--set", *setting]));
    aegis(&args).exits(0).json()
}

#[tokio::test]
async fn other_thresholds_are_computed_as_the_kernel_would_have() {
    let (_dir, ledger) = ledger().await;
    let same = json_of(&ledger, &["tau=1000"]);
    assert_eq!(count(&same, "allowed", "allowed"), 7, "{same}");
    assert_eq!((count(&same, "asked", "asked"), count(&same, "denied", "denied")), (1, 2));
    let unknown = &same["not_computed"][0];
    assert_eq!(unknown["count"], 1, "{same}");
    assert!(unknown["why"].as_str().unwrap().contains("missing or redacted"), "{unknown}");
    assert_eq!(same["agents"][0]["was"], same["agents"][0]["would_be"]);

    let strict = json_of(&ledger, &["tau=1"]);
    assert_eq!((count(&strict, "allowed", "asked"), count(&strict, "denied", "denied")), (7, 2));
    let examples = strict["decisions"][0]["examples"].as_array().unwrap();
    assert_eq!(examples.len(), 5);
    assert!(examples.iter().all(|one| one["would_be"]["tier"] == "L3"), "{strict}");
    // Risky successes wear trust, and none of them was risky as it was.
    let agent = &strict["agents"][0];
    assert!(agent["would_be"].as_u64() < agent["was"].as_u64(), "{agent}");

    // Sensitive actions alone.
    let sensitive = json_of(&ledger, &["tMin=1000", "sensitiveAt=600"]);
    assert_eq!(
        (count(&sensitive, "allowed", "asked"), count(&sensitive, "allowed", "allowed")),
        (3, 4),
        "{sensitive}"
    );

    // Two refusals and a low bar for quarantine stop what comes after.
    let stopped = json_of(&ledger, &["criticalScore=500", "criticalConfidence=500"]);
    assert!(count(&stopped, "allowed", "denied") > 0, "{stopped}");
    let suspended = json_of(&ledger, &["suspended=true"]);
    assert_eq!(
        (count(&suspended, "allowed", "denied"), count(&suspended, "asked", "denied")),
        (7, 1)
    );

    let run = tune(&ledger, &["tau=1"]).exits(0);
    assert!(run.stdout.contains("allowed") && run.stdout.contains("asked"), "{}", run.stdout);
    assert!(run.stdout.contains("1 not computed: its risk does not follow"), "{}", run.stdout);
    let run = tune(&ledger, &["tua=1"]).exits(2);
    assert!(run.stderr.contains("tua"), "{}", run.stderr);
}
