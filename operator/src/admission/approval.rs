//! Answers to ApprovalRequests: who gives one is taken from the authenticated request, never from
//! what can be typed.
//!
//! [`stamp`] runs first and moves an answer to the list, under the name of who asks. [`judge`] runs
//! last, on what would be stored: whatever other webhooks did in between, only one answer of who
//! asks comes in, and nothing else changes.

use aegis_core::Timestamp;
use aegis_resources::approval::{
    Answer as Given, AnswerVerdict, ApprovalRequestSpec, ApprovalState, MAX_ANSWERS,
};
use serde_json::{Value, json};

use super::{Answer, Cluster, Operation, Permission, Request};
use crate::status::rfc3339;

fn spec(object: &Value) -> Result<ApprovalRequestSpec, Answer> {
    serde_json::from_value(object.get("spec").cloned().unwrap_or_default())
        .map_err(|error| Answer::refused(format!("`spec` cannot be read: {error}")))
}

/// Moves an answer to the list.
#[must_use]
pub fn stamp(request: &Request, now: Timestamp) -> Answer {
    stamped(request, now).unwrap_or_else(|refused| refused)
}

fn stamped(request: &Request, now: Timestamp) -> Result<Answer, Answer> {
    if request.kind.kind != "ApprovalRequest" || request.operation != Operation::Update {
        return Ok(Answer::default());
    }
    let (before, after) = (spec(&request.old_object)?, spec(&request.object)?);
    if before.answers != after.answers {
        return Err(Answer::refused("`spec.answers` cannot be written; set `spec.answer`"));
    }
    let Some(verdict) = after.answer else { return Ok(Answer::default()) };
    let mut answers = after.answers;
    let by = request.user_info.username.clone();
    answers.push(Given { by, verdict, at: rfc3339(now) });
    let patch = json!([
        { "op": "remove", "path": "/spec/answer" },
        { "op": "add", "path": "/spec/answers", "value": answers },
    ]);
    let patch = serde_json::from_value(patch)
        .map_err(|error| Answer::refused(format!("the answer cannot be taken: {error}")))?;
    Ok(Answer { patch: Some(patch), ..Answer::default() })
}

/// Judges a request as it would be stored.
pub(super) async fn judge(request: &Request, cluster: &impl Cluster) -> Answer {
    match judged(request, cluster).await {
        Ok(()) => Answer::default(),
        Err(refused) => refused,
    }
}

async fn judged(request: &Request, cluster: &impl Cluster) -> Result<(), Answer> {
    let after = spec(&request.object)?;
    if request.operation == Operation::Create {
        return match after.answer.is_none() && after.answers.is_empty() {
            true => Ok(()),
            false => Err(Answer::refused("an ApprovalRequest is made without answers")),
        };
    }
    let before = spec(&request.old_object)?;
    if before.asked() != after.asked() {
        return Err(Answer::refused(
            "what is asked for cannot be changed; the agent has to ask again",
        ));
    }
    if after.answer.is_some() {
        return Err(Answer::refused("the answer was not taken; try again"));
    }
    if before.answers == after.answers {
        return Ok(());
    }
    let new = match after.answers.strip_prefix(before.answers.as_slice()) {
        Some([new]) => new,
        _ => return Err(Answer::refused("`spec.answers` cannot be written; set `spec.answer`")),
    };
    let user = request.user_info.username.as_str();
    if new.by != user {
        return Err(Answer::refused("`spec.answers` cannot be written; set `spec.answer`"));
    }
    may_answer(request, &before, new)?;
    match cluster
        .may(&request.user_info, Permission::Approve, &request.namespace, &request.name)
        .await
    {
        Ok(true) => Ok(()),
        Ok(false) => Err(Answer::refused(format!(
            "`{user}` may not answer: it takes the verb `{}` on approvalrequests",
            Permission::Approve.verb()
        ))),
        Err(message) => Err(Answer::refused(format!(
            "whether `{user}` may answer cannot be asked now ({message}); try again"
        ))),
    }
}

/// What the request itself forbids, whoever may answer.
fn may_answer(request: &Request, before: &ApprovalRequestSpec, new: &Given) -> Result<(), Answer> {
    let user = new.by.as_str();
    let state = request.old_object.pointer("/status/state").cloned().unwrap_or_default();
    let state: Option<ApprovalState> = serde_json::from_value(state)
        .map_err(|error| Answer::refused(format!("`status.state` cannot be read: {error}")))?;
    if let Some(state) = state.filter(|state| *state != ApprovalState::Pending) {
        return Err(Answer::refused(format!("it waits for no answer: it is {state:?}")));
    }
    if user.is_empty() || user == before.requester.as_str() || user == account_of(before) {
        return Err(Answer::refused("an agent cannot answer for itself; a person must"));
    }
    if before.answers.iter().any(|answer| answer.by == user) {
        return Err(Answer::refused(format!("`{user}` has already answered")));
    }
    if before.answers.len() >= MAX_ANSWERS {
        return Err(Answer::refused("it has as many answers as it can hold"));
    }
    if before.mfa && new.verdict == AnswerVerdict::Approve {
        return Err(Answer::refused(
            "it needs a second factor, which the API server cannot ask for; only `deny` can be answered here",
        ));
    }
    Ok(())
}

/// How the API server names the ServiceAccount that the agent's pods run under.
fn account_of(spec: &ApprovalRequestSpec) -> String {
    let segments: Vec<&str> = spec.requester.spiffe_id().segments().collect();
    match segments.as_slice() {
        ["ns", namespace, "sa", account, ..] => {
            format!("system:serviceaccount:{namespace}:{account}")
        }
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use aegis_core::thresholds::Thresholds;

    use super::{super::User, *};

    const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
    const GRACE: &str = "grace@acme.example";

    #[derive(Default)]
    struct Rbac {
        approves: bool,
        broken: bool,
    }

    impl Cluster for Rbac {
        async fn may(&self, _: &User, what: Permission, _: &str, _: &str) -> Result<bool, String> {
            if self.broken {
                return Err("timeout".into());
            }
            Ok(self.approves && what == Permission::Approve)
        }

        async fn thresholds(&self) -> Result<Thresholds, String> {
            Err("not asked".into())
        }
    }

    fn asked() -> Value {
        json!({
            "enforcedBy": "spiffe://acme.example/ns/shop/sa/tools/agent/notes",
            "requester": "spiffe://acme.example/ns/shop/sa/bot/agent/buyer",
            "action": aegis_core::Digest::of(b"").to_string(), "server": "notes",
            "method": "tools/call", "tool": "write_note", "reason": "Changes need a human.",
            "risk": 400, "tier": "L2", "quorum": 2, "mfa": false,
            "expiresAt": "2027-01-15T08:15:00Z",
        })
    }

    fn with(changes: Value) -> Value {
        let mut spec = asked();
        let members = spec.as_object_mut().unwrap();
        members.extend(changes.as_object().unwrap().clone());
        spec
    }

    fn answer(by: &str, verdict: &str) -> Value {
        json!({ "by": by, "verdict": verdict, "at": "2027-01-15T08:00:00Z" })
    }

    fn update(user: &str, old: Value, new: Value, state: Option<&str>) -> Request {
        serde_json::from_value(json!({
            "uid": "u", "kind": { "group": "aegis.dev", "kind": "ApprovalRequest" },
            "operation": if old.is_null() { "CREATE" } else { "UPDATE" },
            "namespace": "shop", "name": "one", "userInfo": { "username": user },
            "object": { "spec": new },
            "oldObject": { "spec": old, "status": { "state": state } },
        }))
        .unwrap()
    }

    /// Both webhooks in turn: what is stored, or why not.
    async fn answered(user: &str, old: Value, new: Value, rbac: &Rbac) -> Result<Value, String> {
        let mut request = update(user, old, new, Some("Pending"));
        let stamped = stamp(&request, NOW);
        if let Some(refused) = stamped.refused {
            return Err(refused);
        }
        if let Some(patch) = stamped.patch {
            json_patch::patch(&mut request.object, &patch).unwrap();
        }
        match judge(&request, rbac).await.refused {
            Some(refused) => Err(refused),
            None => Ok(request.object["spec"].clone()),
        }
    }

    const MAY: Rbac = Rbac { approves: true, broken: false };

    #[tokio::test]
    async fn an_answer_is_stored_under_the_name_of_who_asks() {
        let new = with(json!({ "answer": "approve" }));
        let stored = answered(GRACE, asked(), new, &MAY).await.unwrap();
        let at = "2027-01-15T08:00:00Z";
        assert_eq!(stored["answers"], json!([{ "by": GRACE, "verdict": "approve", "at": at }]));
        assert!(stored.get("answer").is_none());
        // The next one comes after it.
        let next = with(json!({ "answers": stored["answers"], "answer": "deny" }));
        let stored = answered("ada@acme.example", stored, next, &MAY).await.unwrap();
        assert_eq!(stored["answers"][1]["by"], "ada@acme.example");
        assert_eq!(stored["answers"][1]["verdict"], "deny");
    }

    #[tokio::test]
    async fn who_answered_cannot_be_typed() {
        let typed = with(json!({ "answers": [answer("ada@acme.example", "approve")] }));
        let refused = answered(GRACE, asked(), typed.clone(), &MAY).await.unwrap_err();
        assert!(refused.contains("cannot be written"), "{refused}");
        // Nor does another webhook, after the stamp.
        let late = update(GRACE, asked(), typed.clone(), None);
        assert!(judge(&late, &MAY).await.refused.unwrap().contains("cannot be written"));
        let both = json!([answer(GRACE, "approve"), answer("ada@acme.example", "approve")]);
        let late = update(GRACE, asked(), with(json!({ "answers": both })), None);
        assert!(judge(&late, &MAY).await.refused.is_some());
        // Nor is one taken away, or there from the start.
        let late = update(GRACE, typed.clone(), asked(), None);
        assert!(judge(&late, &MAY).await.refused.is_some());
        assert!(stamp(&late, NOW).refused.is_some());
        let born = update(GRACE, Value::Null, typed, None);
        assert!(judge(&born, &MAY).await.refused.unwrap().contains("without answers"));
        // An answer that was not stamped is not stored.
        let late = update(GRACE, asked(), with(json!({ "answer": "approve" })), None);
        assert!(judge(&late, &MAY).await.refused.unwrap().contains("was not taken"));
    }

    #[tokio::test]
    async fn without_the_verb_nobody_answers() {
        let new = || with(json!({ "answer": "approve" }));
        let nobody = Rbac::default();
        let refused = answered(GRACE, asked(), new(), &nobody).await.unwrap_err();
        assert!(refused.contains("the verb `approve`"), "{refused}");
        let broken = Rbac { broken: true, ..Rbac::default() };
        let refused = answered(GRACE, asked(), new(), &broken).await.unwrap_err();
        assert!(refused.contains("try again"), "{refused}");
        // What is no answer needs none: labels, for one.
        assert!(answered(GRACE, asked(), asked(), &nobody).await.is_ok());
    }

    #[tokio::test]
    async fn an_agent_and_a_second_answer_are_refused() {
        let new = || with(json!({ "answer": "approve" }));
        let own = "system:serviceaccount:shop:bot";
        let refused = answered(own, asked(), new(), &MAY).await.unwrap_err();
        assert!(refused.contains("for itself"), "{refused}");
        let answers = json!([answer(GRACE, "approve")]);
        let again = with(json!({ "answers": answers, "answer": "approve" }));
        let old = with(json!({ "answers": answers }));
        let refused = answered(GRACE, old, again, &MAY).await.unwrap_err();
        assert!(refused.contains("has already answered"), "{refused}");
        let mfa = with(json!({ "mfa": true }));
        let asked_more = |verdict: &str| with(json!({ "mfa": true, "answer": verdict }));
        let refused = answered(GRACE, mfa.clone(), asked_more("approve"), &MAY).await.unwrap_err();
        assert!(refused.contains("second factor"), "{refused}");
        assert!(answered(GRACE, mfa, asked_more("deny"), &MAY).await.is_ok());
    }

    #[tokio::test]
    async fn what_is_asked_stays_and_what_has_ended_is_not_answered() {
        for change in [json!({ "tool": "read_note" }), json!({ "quorum": 1 })] {
            let refused = answered(GRACE, asked(), with(change), &MAY).await.unwrap_err();
            assert!(refused.contains("cannot be changed"), "{refused}");
        }
        let new = with(json!({ "answers": [answer(GRACE, "approve")] }));
        for state in ["Approved", "Denied", "Expired", "Used"] {
            let late = update(GRACE, asked(), new.clone(), Some(state));
            let refused = judge(&late, &MAY).await.refused.unwrap();
            assert!(refused.contains("waits for no answer"), "{refused}");
        }
    }
}
