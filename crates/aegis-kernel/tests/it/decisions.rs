//! What is allowed, what is not, and that both are on record first.

use std::time::Duration;

use aegis_audit::{Kind, Outcome};
use aegis_core::{
    action::{Action, ActionKind},
    decision::{Reason, Verdict},
    thresholds::Thresholds,
    trust::Trust,
};
use aegis_kernel::{Ending, Record, State, Thresholding};
use serde_json::json;

use crate::domain::{Domain, agent, call, call_with, principal, state};

pub(crate) async fn reason(domain: &Domain, action: Action) -> Reason {
    match domain.kernel.decide(domain.context(), action).await {
        Ok(permit) => permit.receipt().decision.reason,
        Err(refusal) => refusal.decision.reason,
    }
}

fn by(why: &str) -> aegis_kernel::ByHand {
    let factor = aegis_core::approval::Factor::Totp;
    aegis_kernel::ByHand { who: "user:ada".into(), factor, why: Some(why.into()) }
}

#[tokio::test]
async fn a_permit_exists_only_after_its_record() {
    let folder = tempfile::tempdir().unwrap();
    let domain = Domain::open(folder.path()).await;
    let permit = domain.kernel.decide(domain.context(), call("add")).await.unwrap();
    let Record::Durable(committed) = permit.receipt().record else { panic!("not durable") };
    let stored = domain.kernel.journal().reader().entry(committed.index).await.unwrap().unwrap();
    let entry = stored.entry().unwrap();
    assert_eq!((entry.kind, entry.result), (Kind::Decision, Outcome::Allow));
    assert_eq!(entry.reason.as_deref(), Some("policy_allowed"));
    assert_eq!(entry.agent_id.as_deref(), Some(agent("one").as_str()));
    assert_eq!(entry.policies[0].name, "default/calc#add");
    let (action, _) = permit.into_parts();
    assert_eq!(action, call("add"), "what is forwarded is what was judged");
}

#[tokio::test]
async fn what_no_policy_allows_is_denied_and_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let domain = Domain::open(folder.path()).await;
    assert_eq!(reason(&domain, call("multiply")).await, Reason::NoPolicyAllows);
    let elsewhere = Action { server: "nowhere".into(), ..call("add") };
    assert_eq!(reason(&domain, elsewhere).await, Reason::NoPolicyAllows);
    let forbidden = call_with("add", json!({ "word": "forbidden" }));
    let refusal = domain.kernel.decide(domain.context(), forbidden).await.unwrap_err();
    assert_eq!(
        (refusal.decision.reason, refusal.decision.message.as_str()),
        (Reason::PolicyDenied, "Not that word.")
    );
    let denials: Vec<_> =
        domain.entries().await.into_iter().filter(|e| e.result == Outcome::Deny).collect();
    assert_eq!(denials.len(), 3);
}

/// What the entries hold as arguments, oldest first, with a digest beside each.
pub(crate) async fn recorded(domain: &Domain) -> Vec<serde_json::Value> {
    let entries = domain.entries().await.into_iter().filter(|entry| entry.arguments.is_some());
    let told = |entry: aegis_audit::Entry| {
        assert!(entry.arguments_digest.is_some());
        entry.arguments.unwrap()
    };
    entries.map(told).collect()
}

#[tokio::test]
async fn what_is_refused_for_a_secret_does_not_stand_in_the_record() {
    let folder = tempfile::tempdir().unwrap();
    let domain = Domain::open(folder.path()).await;
    let told = call_with("add", json!({ "word": "forbidden", "beside": "told" }));
    assert_eq!(reason(&domain, told).await, Reason::PolicyDenied);
    assert_eq!(recorded(&domain).await, [json!({ "word": "[redacted]", "beside": "told" })]);
}

#[tokio::test]
async fn what_a_failing_policy_might_have_hidden_does_not_stand_in_the_record() {
    let folder = tempfile::tempdir().unwrap();
    let domain = Domain::open(folder.path()).await;
    let broken = Action { server: "broken".into(), ..call("add") };
    assert_eq!(reason(&domain, broken).await, Reason::EvaluationFailed);
    assert_eq!(recorded(&domain).await, [json!("[redacted]")]);
}

#[tokio::test]
async fn what_has_the_shape_of_a_secret_stands_in_no_record_whatever_becomes_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let domain = Domain::open(folder.path()).await;
    let key = "AKIAIOSFODNN7EXAMPLE";
    let shaped = |tool: &str| Action {
        resource: Some(format!("https://acme.example/?k={key}")),
        ..call_with(tool, json!({ "word": [{ "x": format!("use {key} now") }], key: 1 }))
    };
    assert_eq!(reason(&domain, shaped("add")).await, Reason::PolicyAllowed);
    assert_eq!(reason(&domain, shaped("multiply")).await, Reason::NoPolicyAllows);
    assert_eq!(reason(&domain, shaped("ask")).await, Reason::ApprovalByPolicy);
    let action = shaped("add");
    let endpoint = format!("8080/{key}/mcp");
    let mut context = domain.context();
    context.endpoint = Some(&endpoint);
    let request = context.about(&action);
    domain.kernel.refuse_action(&request, None, Reason::ApprovalDenied).await.unwrap();
    let whole = serde_json::to_string(&domain.entries().await).unwrap();
    assert!(!whole.contains("AKIA"), "{whole}");
    // Two decisions, the request for an approval and its decision, a refusal.
    let told = json!({ "word": [{ "x": "use [redacted] now" }], "[redacted]": 1 });
    assert_eq!(recorded(&domain).await, vec![told.clone(); 5]);
    let asked = &domain.kernel.approvals()[0].question;
    assert_eq!(asked.arguments, told);
    assert_eq!(asked.resource.as_deref(), Some("https://acme.example/?k=[redacted]"));
}

#[tokio::test]
async fn a_preview_says_what_would_be_and_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let domain = Domain::open(folder.path()).await;
    let before = (domain.entries().await.len(), domain.kernel.trust(&agent("one")));
    let preview = |action: &Action| domain.kernel.preview(&domain.context().about(action));
    for _ in 0..5 {
        let limited = preview(&call("limited"));
        assert_eq!(limited.decision.verdict, Verdict::Allow, "no rate is taken");
    }
    assert_eq!(preview(&call("multiply")).decision.reason, Reason::NoPolicyAllows);
    let ask = preview(&call("ask"));
    assert_eq!((ask.decision.verdict, ask.approval), (Verdict::RequireApproval, None));
    assert_eq!(domain.kernel.approvals().len(), 0);
    assert_eq!((domain.entries().await.len(), domain.kernel.trust(&agent("one"))), before);
    // What waits is named; what is approved would pass, and still passes once.
    assert_eq!(reason(&domain, call("ask")).await, Reason::ApprovalByPolicy);
    let id = domain.kernel.approvals()[0].approval.request.id.clone();
    let waiting = preview(&call("ask"));
    assert_eq!(
        (waiting.decision.verdict, waiting.approval),
        (Verdict::RequireApproval, Some(id.clone()))
    );
    let vote = aegis_core::approval::Vote {
        approver: "user:ada".into(),
        approve: true,
        factor: aegis_core::approval::Factor::Totp,
        comment: None,
        at: domain.kernel.now(),
    };
    domain.kernel.vote(&id, vote).await.unwrap();
    for _ in 0..2 {
        let approved = preview(&call("ask"));
        assert_eq!(approved.decision.reason, Reason::Approved);
    }
    assert_eq!(reason(&domain, call("ask")).await, Reason::Approved);
    assert_eq!(preview(&call("ask")).decision.verdict, Verdict::RequireApproval);
}

#[tokio::test]
async fn broken_glass_lifts_policies_for_a_while_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let mut domain = Domain::open(folder.path()).await;
    let until = crate::domain::START.plus(Duration::from_secs(600));
    let lift = |state: &mut State| {
        state.glass.insert(agent("one"), until);
    };
    domain.kernel.update_with(lift).await.unwrap();
    let forbidden = || call_with("add", json!({ "word": "forbidden" }));
    for action in [call("multiply"), forbidden(), call("ask")] {
        let permit = domain.kernel.decide(domain.context(), action).await.unwrap();
        assert_eq!(permit.receipt().decision.reason, Reason::GlassBroken);
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
    }
    assert_eq!(domain.kernel.approvals().len(), 0, "nobody is asked");
    assert_eq!(reason(&domain, call("add")).await, Reason::PolicyAllowed, "as always");
    // What a policy could not be asked about stays refused, and so does another agent.
    let broken = Action { server: "broken".into(), ..call("add") };
    assert_eq!(reason(&domain, broken).await, Reason::EvaluationFailed);
    for _ in 0..2 {
        assert_eq!(reason(&domain, call("limited")).await, Reason::PolicyAllowed);
    }
    assert_eq!(reason(&domain, call("limited")).await, Reason::RateLimited);
    // A rule that forbids it as well does not give back what is used up.
    let forbidden_too = call_with("limited", json!({ "word": "forbidden" }));
    assert_eq!(reason(&domain, forbidden_too).await, Reason::RateLimited);
    domain.principal = principal("two");
    assert_eq!(reason(&domain, call("multiply")).await, Reason::NoPolicyAllows);
    domain.principal = principal("one");
    // The record tells it apart, names what would have refused, and earns no trust.
    let entries = domain.entries().await;
    let lifted: Vec<_> =
        entries.iter().filter(|e| e.reason.as_deref() == Some("glass_broken")).collect();
    let of = |kind| lifted.iter().filter(|e| e.kind == kind).count();
    assert_eq!((of(Kind::Decision), of(Kind::Outcome)), (3, 3));
    assert_eq!(lifted.iter().find(|e| e.policies.len() > 1).unwrap().policies[0].effect, "deny");
    assert_eq!(domain.kernel.trust(&agent("one")).0, Trust::default());
    // Who is stopped is stopped.
    let stop = |state: &mut State| {
        state.quarantined.insert(agent("one"));
    };
    domain.kernel.update_with(stop).await.unwrap();
    assert_eq!(reason(&domain, call("multiply")).await, Reason::AgentQuarantined);
    domain.kernel.update_with(|state| state.quarantined.clear()).await.unwrap();
    domain.pass(Duration::from_secs(600));
    assert_eq!(reason(&domain, call("multiply")).await, Reason::NoPolicyAllows);
}

#[tokio::test]
async fn identity_comes_before_policy() {
    let folder = tempfile::tempdir().unwrap();
    let mut domain = Domain::open(folder.path()).await;
    domain.principal = principal("narrow");
    assert_eq!(reason(&domain, call("add")).await, Reason::PolicyAllowed);
    assert_eq!(reason(&domain, call("limited")).await, Reason::CapabilityMissing);
    domain.principal.id = agent("stranger");
    assert_eq!(reason(&domain, call("add")).await, Reason::IdentityUnknown);
    domain.principal = principal("one");
    domain.principal.not_after = crate::domain::START;
    assert_eq!(reason(&domain, call("add")).await, Reason::IdentityExpired);
    domain.principal = principal("one");
    let suspended = Thresholding::new(Thresholds { suspended: true, ..Thresholds::default() });
    for (change, expected) in [
        (State { revoked: [agent("one")].into(), ..state() }, Reason::IdentityRevoked),
        (State { quarantined: [agent("one")].into(), ..state() }, Reason::AgentQuarantined),
        (State { suspended: [agent("one")].into(), ..state() }, Reason::AgentQuarantined),
        (State { thresholds: suspended, ..state() }, Reason::AgentQuarantined),
    ] {
        domain.kernel.update_with(|state| *state = change.clone()).await.unwrap();
        assert_eq!(reason(&domain, call("add")).await, expected);
    }
}

#[tokio::test]
async fn a_sensitive_action_of_an_untrusted_agent_waits_for_a_human() {
    let folder = tempfile::tempdir().unwrap();
    let domain = Domain::open(folder.path()).await;
    let secret = Action {
        server: "vault".into(),
        ..call_with("read", json!({ "path": "credentials.txt" }))
    };
    let refusal = domain.kernel.decide(domain.context(), secret.clone()).await.unwrap_err();
    assert_eq!(refusal.decision.reason, Reason::ApprovalByTier);
    assert_eq!(refusal.decision.approval.as_ref().unwrap().quorum, 2);
    // Trusted enough, the same agent may.
    domain
        .kernel
        .adjust_trust(&agent("one"), (95_000_000, 5_000_000), &by("known for years"))
        .await
        .unwrap();
    assert_eq!(reason(&domain, secret).await, Reason::PolicyAllowed);
}

#[tokio::test]
async fn stale_state_denies_what_is_sensitive_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let confirmed = State { confirmed_at: Some(crate::domain::START), ..state() };
    let domain = Domain::open_with(folder.path(), confirmed).await;
    domain.kernel.adjust_trust(&agent("one"), (95_000_000, 5_000_000), &by("test")).await.unwrap();
    let secret = Action {
        server: "vault".into(),
        ..call_with("read", json!({ "path": "credentials.txt" }))
    };
    assert_eq!(reason(&domain, secret.clone()).await, Reason::PolicyAllowed);
    domain.pass(Duration::from_secs(61));
    assert_eq!(reason(&domain, secret).await, Reason::StateStale);
    assert_eq!(reason(&domain, call("add")).await, Reason::PolicyAllowed);
}

#[tokio::test]
async fn a_rate_limit_is_taken_by_what_is_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let mut domain = Domain::open(folder.path()).await;
    // Looking does not use it up.
    for _ in 0..5 {
        let action = call("limited");
        let judgement = domain.kernel.evaluate(&domain.context().about(&action));
        assert_eq!(judgement.decision.verdict, Verdict::Allow);
    }
    assert_eq!(reason(&domain, call("limited")).await, Reason::PolicyAllowed);
    assert_eq!(reason(&domain, call("limited")).await, Reason::PolicyAllowed);
    assert_eq!(reason(&domain, call("limited")).await, Reason::RateLimited);
    domain.principal = principal("two");
    assert_eq!(
        reason(&domain, call("limited")).await,
        Reason::PolicyAllowed,
        "each agent has its own"
    );
    domain.principal = principal("one");
    domain.pass(Duration::from_secs(1_801));
    assert_eq!(reason(&domain, call("limited")).await, Reason::PolicyAllowed);
}

#[tokio::test]
async fn what_cannot_be_recorded_does_not_happen() {
    let folder = tempfile::tempdir().unwrap();
    let domain = Domain::open(folder.path()).await;
    domain.kernel.journal().close().await.unwrap();
    let refusal = domain.kernel.decide(domain.context(), call("add")).await.unwrap_err();
    assert_eq!(
        (refusal.decision.verdict, refusal.decision.reason),
        (Verdict::Deny, Reason::RecordFailed)
    );
    assert_eq!(refusal.index, None);
}

#[tokio::test]
async fn sessions_open_where_anything_could_be_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let domain = Domain::open(folder.path()).await;
    let initialize = Action {
        kind: ActionKind::Session,
        method: "initialize".into(),
        tool: None,
        ..call("add")
    };
    assert_eq!(reason(&domain, initialize.clone()).await, Reason::SessionAllowed);
    let nowhere = Action { server: "nowhere".into(), ..initialize };
    assert_eq!(reason(&domain, nowhere).await, Reason::NoPolicyAllows);
}

#[tokio::test]
async fn lists_show_what_may_be_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let domain = Domain::open(folder.path()).await;
    for (tool, expected) in [("add", true), ("limited", true), ("ask", true), ("multiply", false)] {
        let item = call_with(tool, serde_json::Value::Null);
        assert_eq!(domain.kernel.may_list(&domain.context().about(&item)), expected, "{tool}");
    }
}

#[tokio::test]
async fn trust_is_the_same_fold_after_a_restart() {
    let folder = tempfile::tempdir().unwrap();
    let domain = Domain::open(folder.path()).await;
    for _ in 0..5 {
        let permit = domain.kernel.decide(domain.context(), call("add")).await.unwrap();
        let (_, receipt) = permit.into_parts();
        let ending = Ending {
            result: Outcome::Success,
            reason: None,
            status: None,
            bytes: 1,
            sent: 0,
            events: 1,
            micros: 1,
            redactions: 0,
        };
        domain.kernel.conclude(&receipt, &ending).await.unwrap();
    }
    let _ = domain
        .kernel
        .decide(domain.context(), call_with("add", json!({ "word": "forbidden" })))
        .await;
    let filter = aegis_audit::Filter { kind: Some(Kind::Outcome), ..Default::default() };
    while domain.kernel.query(&filter).await.unwrap().entries.len() < 5 {
        tokio::task::yield_now().await;
    }
    let before = domain.kernel.trust(&agent("one")).0;
    assert_ne!(before.score().get(), 500);
    domain.close().await;
    let domain = Domain::open(folder.path()).await;
    assert_eq!(domain.kernel.trust(&agent("one")).0, before);
}

#[tokio::test]
async fn thresholds_are_in_the_ledger_before_they_count() {
    let folder = tempfile::tempdir().unwrap();
    let domain = Domain::open(folder.path()).await;
    let strict = Thresholds { evidence_cap: 1, ..Thresholds::default() };
    let changed = State { thresholds: Thresholding::new(strict.clone()), ..state() };
    domain.kernel.update_with(|state| *state = changed.clone()).await.unwrap();
    let entries = domain.entries().await;
    let recorded = entries.iter().rfind(|entry| entry.kind == Kind::Configuration).unwrap();
    assert_eq!(recorded.detail["thresholds"], json!(strict));
}

#[tokio::test]
async fn no_change_of_the_state_is_lost_to_another() {
    const EACH: usize = 2_000;
    let folder = tempfile::tempdir().unwrap();
    let domain = Domain::open(folder.path()).await;
    let kernel = &domain.kernel;
    std::thread::scope(|scope| {
        let stops = scope.spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            for number in 0..EACH {
                let agent = agent(&format!("x{number}"));
                let stop = kernel.update_with(|state| {
                    state.quarantined.insert(agent.clone());
                });
                runtime.block_on(stop).unwrap();
            }
        });
        // A folder that is confirmed again and again meanwhile.
        while !stops.is_finished() {
            kernel.confirm(crate::domain::START);
        }
    });
    assert_eq!(kernel.state().quarantined.len(), EACH);
}

fn read_secret() -> Action {
    Action { server: "vault".into(), ..call_with("read", json!({ "path": "credentials.txt" })) }
}

fn told(a: u64, b: u64) -> [(aegis_core::AgentId, Trust); 1] {
    let (a, b) = (a * 1_000_000, b * 1_000_000);
    [(agent("one"), Trust { a, b, ..Trust::default() })]
}

#[tokio::test]
async fn told_trust_decides_whether_a_human_is_asked() {
    let folder = tempfile::tempdir().unwrap();
    let domain = Domain::open(folder.path()).await;
    assert_eq!(reason(&domain, read_secret()).await, Reason::ApprovalByTier);
    // What its other pods have earned counts here.
    domain.kernel.told_trust(40_000, told(95, 5));
    let permit = domain.kernel.decide(domain.context(), read_secret()).await.unwrap();
    assert_eq!(permit.receipt().decision.trust.get(), 950);
    let recorded = domain.entries().await.pop().unwrap();
    assert_eq!((recorded.trust, recorded.trust_as_of), (Some(950), Some(40_000)));
    // And what they have lost: below tMin, a human is asked.
    domain.kernel.told_trust(40_100, told(85, 15));
    let refusal = domain.kernel.decide(domain.context(), read_secret()).await.unwrap_err();
    assert_eq!(refusal.decision.reason, Reason::ApprovalByTier);
    assert_eq!((refusal.decision.trust.get(), refusal.decision.trust_as_of), (850, 40_100));
    assert_eq!(reason(&domain, call("add")).await, Reason::PolicyAllowed);
    // Another agent is none the better or worse for it.
    assert_eq!(domain.kernel.trust(&agent("two")).0.score().get(), 500);
}

#[tokio::test]
async fn told_trust_below_the_critical_score_quarantines() {
    let folder = tempfile::tempdir().unwrap();
    let domain = Domain::open(folder.path()).await;
    let mut changes = domain.kernel.changes();
    assert_eq!(reason(&domain, call("add")).await, Reason::PolicyAllowed);
    changes.mark_unchanged();
    domain.kernel.told_trust(9, told(1, 9));
    assert!(changes.has_changed().unwrap(), "what is open is judged again");
    assert_eq!(reason(&domain, call("add")).await, Reason::AgentQuarantined);
    domain.kernel.told_trust(12, told(2, 2));
    assert_eq!(reason(&domain, call("add")).await, Reason::PolicyAllowed);
    // What happens here counts at once, and does not wait until it is told.
    for _ in 0..100 {
        let forbidden = call_with("add", json!({ "word": "forbidden" }));
        let _ = domain.kernel.decide(domain.context(), forbidden).await;
    }
    assert_eq!(reason(&domain, call("add")).await, Reason::AgentQuarantined);
}
