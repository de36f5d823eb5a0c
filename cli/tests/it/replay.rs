//! `aegis audit replay`: a recorded run under the policies as they were, and under others.

use std::fs;

use aegis_core::decision::Verdict;
use serde_json::{Value, json};

use crate::{
    domain::Domain,
    fixture::{aegis, text},
};

const HEAD: &str = "apiVersion: aegis.dev/v1alpha1\nkind: ClusterAgentPolicy\nmetadata: {name: t}\nspec:\n  rules:\n";

#[tokio::test]
async fn each_step_is_decided_again_or_said_not_to_be() {
    let dir = tempfile::tempdir().unwrap();
    let was = format!("{HEAD}    - {{name: yes, effect: allow, tools: [\"read_*\", store]}}\n");
    fs::write(dir.path().join("policy.yaml"), was).unwrap();
    let thresholds = json!({ "tau": 1000, "tMin": 1, "criticalScore": 0 });
    let domain = Domain::open(dir, thresholds).await.in_session("run-7");
    assert_eq!(domain.done("read_file", json!({ "path": "/srv/a" })).await, Verdict::Allow);
    assert_eq!(domain.done("read_file", json!({ "path": "/etc/b" })).await, Verdict::Allow);
    assert_eq!(domain.done("write_file", json!({ "path": "/srv/a" })).await, Verdict::Deny);
    assert_eq!(domain.done("store", json!({ "password": "hunter2" })).await, Verdict::Allow);
    let elsewhere = domain.in_session("run-8");
    assert_eq!(elsewhere.done("read_file", json!({})).await, Verdict::Allow);
    let (dir, ledger) = elsewhere.close().await;

    let next = dir.path().join("next.yaml");
    let rules = "    - {name: inside, effect: allow, tools: [read_file], when: [{argument: $.path, operator: within, value: /srv}]}\n    - {name: writes, effect: require_approval, tools: [write_file]}\n    - {name: store, effect: deny, tools: [store]}\n";
    fs::write(&next, format!("{HEAD}{rules}")).unwrap();
    let policy = dir.path().join("policy.yaml");
    let replay = |more: &[&str]| {
        let mut args = vec![
            "audit",
            "replay",
            "run-7",
            "--database",
            text(&ledger),
            "--policies",
            text(&next),
        ];
        args.extend(more);
        aegis(&args)
    };
    let told = replay(&["--recorded", text(&policy), "-o", "json"]).exits(0).json();
    let steps = told["steps"].as_array().unwrap();
    assert_eq!(steps.len(), 4, "{told}");
    let fate = |step: &Value, side: &str| step[side]["fate"].as_str().map(str::to_owned);
    for (step, was, other) in
        [(0, "allowed", "allowed"), (1, "allowed", "denied"), (2, "denied", "asked")]
    {
        let step = &steps[step];
        assert_eq!(step["was"]["fate"], was, "{step}");
        assert_eq!(fate(step, "by_recorded_policies").as_deref(), Some(was), "{step}");
        assert_eq!(fate(step, "by_other_policies").as_deref(), Some(other), "{step}");
        assert_eq!(step["differs"], was != other);
    }
    assert_eq!(
        (&steps[0]["was"]["outcome"], &steps[2]["was"]["outcome"]),
        (&json!("success"), &Value::Null)
    );
    assert_eq!(steps[0]["by_other_policies"]["rules"], json!(["t#inside"]));
    // The password is not in the ledger, and nobody guesses it.
    for side in ["by_recorded_policies", "by_other_policies"] {
        let why = steps[3][side]["not_decided"].as_str().unwrap();
        assert!(why.contains("redacted or left out"), "{why}");
    }
    assert_eq!(steps[3]["differs"], false);
    let run = replay(&[]).exits(0);
    assert!(
        run.stdout.contains("4 steps: 2 would come out otherwise, 1 cannot be decided again"),
        "{}",
        run.stdout
    );

    // Other versions are not taken for those that decided.
    let told = replay(&["--recorded", text(&next), "-o", "json"]).exits(0).json();
    let why = told["steps"][0]["by_recorded_policies"]["not_decided"].as_str().unwrap();
    assert_eq!(why, "policy t was another version");
    let id = told["steps"][0]["index"].to_string();
    assert!(!id.is_empty());
    aegis(&["audit", "replay", "run-9", "--database", text(&ledger), "--policies", text(&next)])
        .refuses("no decision is recorded of the run `run-9`");
}
