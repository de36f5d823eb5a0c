//! What stands in no record, and what a reader cannot try either.

use aegis_audit::Outcome;
use aegis_core::{action::Action, decision::Reason};
use aegis_kernel::Ending;
use serde_json::json;

use crate::{
    decisions::{reason, recorded},
    domain::{Domain, agent, call, call_with, principal},
};

/// Names come from outside, too.
#[tokio::test]
async fn names_that_others_give_are_recorded_without_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let domain = Domain::open(folder.path()).await;
    let key = "AKIAIOSFODNN7EXAMPLE";
    for named in [
        Action { method: key.into(), ..call("add") },
        Action { server: key.into(), ..call("add") },
        Action { tool: Some(key.into()), ..call("add") },
    ] {
        drop(domain.kernel.decide(domain.context(), named).await);
    }
    let mut context = domain.context();
    (context.session, context.within) = (Some(key), Some(key));
    assert!(domain.kernel.decide(context, call("multiply")).await.is_err());
    let whole = serde_json::to_string(&domain.entries().await).unwrap();
    assert!(!whole.contains("AKIA") && whole.contains("[redacted]"), "{whole}");
}

#[tokio::test]
async fn what_is_recorded_as_a_trace_is_one() {
    let folder = tempfile::tempdir().unwrap();
    let domain = Domain::open(folder.path()).await;
    let traced = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    for trace in [traced, "hunter2", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0g"] {
        let mut context = domain.context();
        context.trace = Some(trace);
        assert!(domain.kernel.decide(context, call("multiply")).await.is_err());
        let action = call("add");
        let request = context.about(&action);
        domain.kernel.refuse_action(&request, None, Reason::ApprovalDenied).await.unwrap();
        let entries = domain.entries().await;
        let told: Vec<_> = entries.iter().rev().take(2).map(|e| e.trace.as_deref()).collect();
        assert_eq!(told, [Some(traced).filter(|traced| *traced == trace); 2]);
    }
}

/// Nobody can tell from it what the body was, and it says nothing else.
#[tokio::test]
async fn the_digest_of_a_body_is_not_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let domain = Domain::open(folder.path()).await;
    let content = aegis_core::Digest::of(b"\n1234");
    let action = Action {
        protocol: aegis_core::action::Protocol::Http,
        arguments: json!({ "bytes": 4, "content": content }),
        ..call("add")
    };
    assert_eq!(reason(&domain, action).await, Reason::PolicyAllowed);
    assert_eq!(recorded(&domain).await, [json!({ "bytes": 4, "content": "[redacted]" })]);
}

/// All else that the digest of an action is made of stands in the entry.
#[tokio::test]
async fn what_was_left_out_of_a_record_cannot_be_tried() {
    let folder = tempfile::tempdir().unwrap();
    let mut domain = Domain::open(folder.path()).await;
    let secret = |tool: &str| call_with(tool, json!({ "word": "curl -u ada:1234 x" }));
    let large = |tool: &str| call_with(tool, json!({ "word": "x".repeat(20_000) }));
    let elsewhere = |tool: &str| Action {
        resource: Some("https://ada:1234@acme.example/".into()),
        arguments: serde_json::Value::Null,
        ..call(tool)
    };
    let body = |tool: &str| Action {
        protocol: aegis_core::action::Protocol::Http,
        arguments: json!({ "bytes": 4, "content": aegis_core::Digest::of(b"\n1234") }),
        ..call(tool)
    };
    let hidden = [secret, large, elsewhere, body];
    for action in hidden {
        let permit = domain.kernel.decide(domain.context(), action("add")).await.unwrap();
        let ending = Ending {
            result: Outcome::Success,
            reason: None,
            status: None,
            bytes: 0,
            sent: 0,
            events: 0,
            micros: 0,
            redactions: 0,
        };
        domain.kernel.conclude(permit.receipt(), &ending).await.unwrap();
        let (refused, context) = (action("multiply"), domain.context());
        let request = context.about(&refused);
        domain.kernel.refuse_action(&request, None, Reason::ApprovalDenied).await.unwrap();
    }
    // An approval of such an action is found again, also by the next process, and permits it alone.
    let vote = |at| aegis_core::approval::Vote {
        approver: "user:ada".into(),
        approve: true,
        factor: aegis_core::approval::Factor::Totp,
        comment: None,
        at,
    };
    for action in hidden {
        let refusal = domain.kernel.decide(domain.context(), action("ask")).await.unwrap_err();
        let id = refusal.approval.unwrap();
        domain.close().await;
        domain = Domain::open(folder.path()).await;
        let again = domain.kernel.decide(domain.context(), action("ask")).await.unwrap_err();
        assert_eq!(again.approval.as_ref(), Some(&id));
        domain.kernel.vote(&id, vote(domain.kernel.now())).await.unwrap();
        domain.close().await;
        domain = Domain::open(folder.path()).await;
        let guess = call_with("ask", json!({ "word": "curl -u ada:1235 x" }));
        assert_ne!(reason(&domain, guess).await, Reason::Approved);
        domain.principal = principal("two");
        assert_ne!(reason(&domain, action("ask")).await, Reason::Approved);
        domain.principal = principal("one");
        assert_eq!(reason(&domain, action("ask")).await, Reason::Approved);
    }
    // Whoever guesses right cannot tell; of what is told, everybody can.
    drop(domain.kernel.decide(domain.context(), call("add")).await.unwrap());
    let whole = serde_json::to_string(&domain.entries().await).unwrap();
    let shown = format!("{:?}", domain.kernel.approvals());
    let plain = |action: &Action| action.digest(&agent("one"), None).unwrap().to_string();
    for action in hidden {
        for tool in ["add", "multiply", "ask"] {
            let guessed = plain(&action(tool));
            assert!(!whole.contains(&guessed) && !shown.contains(&guessed), "{tool}");
        }
    }
    assert!(whole.contains(&plain(&call("add"))));
}
