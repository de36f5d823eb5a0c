//! An approval is asked for once, given by a person, used once, and outlives the process.

use std::time::Duration;

use aegis_audit::Kind;
use aegis_core::{
    approval::{ApprovalState, Factor, Vote},
    decision::{Reason, Verdict},
};
use serde_json::json;

use crate::domain::{Domain, START, call, call_with, principal};

fn yes(who: &str) -> Vote {
    Vote { approver: who.into(), approve: true, factor: Factor::Account, comment: None, at: START }
}

/// Asks, and returns the approval that is waited for.
async fn ask(domain: &Domain, tool: &str) -> String {
    let refusal = domain.kernel.decide(domain.context(), call(tool)).await.unwrap_err();
    assert_eq!(refusal.decision.verdict, Verdict::RequireApproval);
    refusal.approval.unwrap()
}

#[tokio::test]
async fn an_approval_permits_exactly_once() {
    let folder = tempfile::tempdir().unwrap();
    let domain = Domain::open(folder.path()).await;
    let id = ask(&domain, "ask").await;
    assert_eq!(ask(&domain, "ask").await, id, "the same call waits for the same approval");
    assert_eq!(domain.kernel.vote(&id, yes("user:ada")).await.unwrap(), ApprovalState::Approved);
    let permit = domain.kernel.decide(domain.context(), call("ask")).await.unwrap();
    assert_eq!(permit.receipt().decision.reason, Reason::Approved);
    assert_ne!(ask(&domain, "ask").await, id, "used up");
}

/// Behind another port or path of the same name may be another server.
#[tokio::test]
async fn an_approval_is_for_one_endpoint() {
    let folder = tempfile::tempdir().unwrap();
    let domain = Domain::open(folder.path()).await;
    let at = |endpoint| {
        let mut context = domain.context();
        context.endpoint = endpoint;
        context
    };
    let mut asked = Vec::new();
    for endpoint in [None, Some("8080/mcp"), Some("8081/mcp"), Some("8080/admin")] {
        let refusal = domain.kernel.decide(at(endpoint), call("ask")).await.unwrap_err();
        asked.push(refusal.approval.unwrap());
    }
    asked.dedup();
    assert_eq!(asked.len(), 4, "{asked:?}");
    domain.kernel.vote(&asked[1], yes("user:ada")).await.unwrap();
    for endpoint in [None, Some("8081/mcp"), Some("8080/admin")] {
        assert!(domain.kernel.decide(at(endpoint), call("ask")).await.is_err(), "{endpoint:?}");
    }
    drop(domain.kernel.decide(at(Some("8080/mcp")), call("ask")).await.unwrap());
    let entries = domain.entries().await;
    assert_eq!(entries.last().unwrap().action["endpoint"], "8080/mcp");
}

#[tokio::test]
async fn an_agent_cannot_ask_without_end_and_large_arguments_stay_in_the_ledger() {
    let folder = tempfile::tempdir().unwrap();
    let mut domain = Domain::open(folder.path()).await;
    let long = json!({ "word": "x".repeat(20_000) });
    let refusal = domain.kernel.decide(domain.context(), call_with("ask", long)).await.unwrap_err();
    assert!(refusal.approval.is_some());
    let shown = &domain.kernel.approvals()[0].question.arguments;
    assert!(shown["omitted"].as_str().unwrap().contains("arguments_digest"), "{shown}");
    for number in 1..aegis_kernel::approvals::MAX_PENDING {
        let call = call_with("ask", json!({ "n": number }));
        assert!(domain.kernel.decide(domain.context(), call).await.unwrap_err().approval.is_some());
    }
    let one_more = || call_with("ask", json!({ "n": "more" }));
    let refusal = domain.kernel.decide(domain.context(), one_more()).await.unwrap_err();
    assert_eq!(
        (refusal.decision.verdict, refusal.decision.reason, refusal.approval),
        (Verdict::Deny, Reason::Overloaded, None)
    );
    assert!(refusal.index.is_some(), "recorded");
    // What it waits for already, and other agents, are not held up.
    let known = domain.kernel.decide(domain.context(), call_with("ask", json!({ "n": 1 }))).await;
    assert!(known.unwrap_err().approval.is_some());
    domain.principal = principal("two");
    let other = domain.kernel.decide(domain.context(), one_more()).await.unwrap_err();
    assert!(other.approval.is_some());
}

#[tokio::test]
async fn of_many_at_once_one_uses_it() {
    let folder = tempfile::tempdir().unwrap();
    let domain = Domain::open(folder.path()).await;
    let id = ask(&domain, "ask").await;
    domain.kernel.vote(&id, yes("user:ada")).await.unwrap();
    let tries = (0..50).map(|_| domain.kernel.decide(domain.context(), call("ask")));
    let results = futures::future::join_all(tries).await;
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1);
    let consumed =
        domain.entries().await.iter().filter(|e| e.kind == Kind::ApprovalConsumed).count();
    assert_eq!(consumed, 1);
}

#[tokio::test]
async fn an_approval_is_for_that_action_of_that_agent() {
    let folder = tempfile::tempdir().unwrap();
    let mut domain = Domain::open(folder.path()).await;
    let id = ask(&domain, "ask").await;
    domain.kernel.vote(&id, yes("user:ada")).await.unwrap();
    let other = call_with("ask", json!({ "word": "other" }));
    assert!(domain.kernel.decide(domain.context(), other).await.is_err());
    domain.principal = principal("two");
    assert!(domain.kernel.decide(domain.context(), call("ask")).await.is_err());
    domain.principal = principal("one");
    assert!(domain.kernel.decide(domain.context(), call("ask")).await.is_ok());
}

#[tokio::test]
async fn an_approval_survives_a_restart_and_so_does_its_use() {
    let folder = tempfile::tempdir().unwrap();
    let domain = Domain::open(folder.path()).await;
    let id = ask(&domain, "ask").await;
    domain.close().await;
    let domain = Domain::open(folder.path()).await;
    assert_eq!(ask(&domain, "ask").await, id, "the open request was found again");
    domain.kernel.vote(&id, yes("user:ada")).await.unwrap();
    domain.close().await;
    let domain = Domain::open(folder.path()).await;
    assert!(domain.kernel.decide(domain.context(), call("ask")).await.is_ok());
    domain.close().await;
    let domain = Domain::open(folder.path()).await;
    assert_ne!(ask(&domain, "ask").await, id, "used before the restart");
}

#[tokio::test]
async fn a_quorum_needs_that_many_people() {
    let folder = tempfile::tempdir().unwrap();
    let domain = Domain::open(folder.path()).await;
    let id = ask(&domain, "ask-twice").await;
    assert_eq!(domain.kernel.vote(&id, yes("user:ada")).await.unwrap(), ApprovalState::Pending);
    assert!(domain.kernel.vote(&id, yes("user:ada")).await.is_err());
    assert!(domain.kernel.vote(&id, yes(domain.principal.id.as_str())).await.is_err());
    assert!(domain.kernel.decide(domain.context(), call("ask-twice")).await.is_err());
    assert_eq!(domain.kernel.vote(&id, yes("user:grace")).await.unwrap(), ApprovalState::Approved);
    assert!(domain.kernel.decide(domain.context(), call("ask-twice")).await.is_ok());
}

#[tokio::test]
async fn a_second_factor_cannot_be_left_out() {
    let folder = tempfile::tempdir().unwrap();
    let domain = Domain::open(folder.path()).await;
    let id = ask(&domain, "ask-code").await;
    assert!(domain.kernel.vote(&id, yes("user:ada")).await.is_err());
    let confirmed = Vote { factor: Factor::Totp, ..yes("user:ada") };
    assert_eq!(domain.kernel.vote(&id, confirmed).await.unwrap(), ApprovalState::Approved);
}

#[tokio::test]
async fn nobody_in_time_means_no() {
    let folder = tempfile::tempdir().unwrap();
    let domain = Domain::open(folder.path()).await;
    let id = ask(&domain, "ask").await;
    domain.pass(Duration::from_secs(901));
    assert_eq!(domain.kernel.approval_state(&id), Some(ApprovalState::Expired));
    let late = Vote { at: domain.kernel.now(), ..yes("user:ada") };
    assert!(domain.kernel.vote(&id, late).await.is_err());
    assert_ne!(ask(&domain, "ask").await, id);
}

#[tokio::test]
async fn whoever_waits_is_woken() {
    let folder = tempfile::tempdir().unwrap();
    let domain = Domain::open(folder.path()).await;
    let id = ask(&domain, "ask").await;
    let waiting = domain.kernel.wait_for_approval(&id, Duration::from_secs(30));
    let voting = async {
        tokio::task::yield_now().await;
        domain.kernel.vote(&id, Vote { approve: false, ..yes("user:ada") }).await.unwrap()
    };
    let (woken, voted) = tokio::join!(waiting, voting);
    assert_eq!((woken, voted), (ApprovalState::Denied, ApprovalState::Denied));
}
