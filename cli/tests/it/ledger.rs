//! Reading entries from a database.

use crate::fixture::{AGENT, Ledger, aegis, text};

#[tokio::test]
async fn queries_select_and_page() {
    let ledger = Ledger::with(20).await;
    let query = |more: &[&str]| {
        let mut args = vec!["audit", "query", "--database", text(&ledger.path), "-o", "json"];
        args.extend(more);
        let lines = aegis(&args).exits(0).stdout;
        let index = |line: &str| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["index"].as_u64().unwrap()
        };
        lines.lines().map(index).collect::<Vec<_>>()
    };
    assert_eq!(query(&["--result", "deny"]), [39, 19]);
    assert_eq!(query(&["--result", "deny", "--oldest"]), [19, 39]);
    assert_eq!(query(&["--decision-id", "d4"]), [10, 9]);
    assert_eq!(query(&["--agent", AGENT]).len(), 40);
    assert_eq!(query(&["--agent", "spiffe://acme.example/ns/x/sa/y/agent/z"]), [0_u64; 0]);
    assert_eq!(query(&["--agent", "buyer"]).len(), 40);
    assert_eq!(query(&["--agent", "buyer", "--limit", "3"]), [40, 39, 38]);
    assert_eq!(query(&["--agent", "buyer", "--text", "entry-7-end"]), [15]);
    assert_eq!(query(&["--agent", "uyer"]), [0_u64; 0]);
    assert_eq!(query(&["--kind", "journal_closed"]), [41]);
    assert_eq!(query(&["--limit", "3"]), [41, 40, 39]);
    assert_eq!(query(&["--limit", "2", "--after", "39"]), [38, 37]);
    assert_eq!(query(&["--text", "entry-7-end"]), [15]);
    assert_eq!(query(&["--until", "2023-11-14T22:13:21Z"]), [2, 1], "calls of the first second");
}

#[tokio::test]
async fn an_unknown_word_is_refused_with_those_that_are_known() {
    let ledger = Ledger::with(1).await;
    let refused = |filter: &[&str]| {
        let mut args = vec!["audit", "query", "--database", text(&ledger.path)];
        args.extend(filter);
        aegis(&args).exits(2).stderr
    };
    let said = refused(&["--reason", "polcy_denied"]);
    assert!(said.contains("did you mean `policy_denied`?"), "{said}");
    assert!(said.contains("rate_limited, obligation_unmet"), "{said}");
    assert!(refused(&["--kind", "decisions"]).contains("expected one of decision, "));
    assert!(refused(&["--result", "denied"]).contains("expected one of allow, "));
}

#[tokio::test]
async fn tail_shows_the_newest_in_order() {
    let ledger = Ledger::with(20).await;
    let run = aegis(&["audit", "tail", "-n", "3", "--database", text(&ledger.path)]).exits(0);
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert_eq!(lines.len(), 3);
    assert!(lines[0].contains("deny") && lines[0].contains("(policy_denied)"), "{}", run.stdout);
    assert!(lines[0].contains(" buyer files read_file file:///srv/entry-19-end"));
    assert!(lines[2].contains("journal_closed"));
    assert!(!run.stdout.contains('\u{1b}'), "no colours where there is no terminal");
}
