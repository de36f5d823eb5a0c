//! What an admission request gets: judgements that no schema can make, and injection.
//!
//! Pure but for two questions to the cluster, which tests answer themselves. A question that nobody
//! answers refuses.

pub mod approval;

use aegis_core::thresholds::Thresholds;
use aegis_resources::kinds::WrittenThresholds;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use serde::Deserialize;
use serde_json::{Value, json};

use crate::inject::{self, InjectConfig};

/// What RBAC can give somebody that is no verb of Kubernetes' own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Permission {
    /// To name a sponsor other than oneself, or change what another answers for:
    /// `kubectl auth can-i sponsor agentidentities.aegis.dev`.
    Sponsor,
    /// To answer what waits for a person: `kubectl auth can-i approve approvalrequests.aegis.dev`.
    Approve,
}

impl Permission {
    /// The verb.
    #[must_use]
    pub const fn verb(self) -> &'static str {
        match self {
            Self::Sponsor => "sponsor",
            Self::Approve => "approve",
        }
    }

    /// The resources that it is a verb on.
    #[must_use]
    pub const fn resource(self) -> &'static str {
        match self {
            Self::Sponsor => "agentidentities",
            Self::Approve => "approvalrequests",
        }
    }
}

/// An AdmissionReview, as far as it matters.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Review {
    /// The request.
    pub request: Request,
}

/// What is asked.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Request {
    /// Echoed in the answer.
    pub uid: String,
    /// The object's kind.
    pub kind: KindOf,
    /// What is done.
    pub operation: Operation,
    /// Where.
    #[serde(default)]
    pub namespace: String,
    /// To what; empty for a generated name.
    #[serde(default)]
    pub name: String,
    /// Who asks, as the API server has authenticated.
    pub user_info: User,
    /// The object as it would be.
    #[serde(default)]
    pub object: Value,
    /// As it is.
    #[serde(default)]
    pub old_object: Value,
    /// Whether it is only asked what would be: then nothing may be left behind.
    #[serde(default)]
    pub dry_run: bool,
}

/// A kind.
#[derive(Clone, Debug, Deserialize)]
pub struct KindOf {
    /// Its group.
    #[serde(default)]
    pub group: String,
    /// Its name.
    pub kind: String,
}

/// What is done to an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
pub enum Operation {
    /// It is made.
    Create,
    /// It is changed.
    Update,
    /// It is removed.
    Delete,
    /// It is connected to.
    Connect,
}

/// Who asks.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct User {
    /// The name.
    #[serde(default)]
    pub username: String,
    /// The unique id.
    #[serde(default)]
    pub uid: Option<String>,
    /// The groups.
    #[serde(default)]
    pub groups: Vec<String>,
    /// More of what the authenticator said.
    #[serde(default)]
    pub extra: std::collections::BTreeMap<String, Vec<String>>,
}

/// The answer.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Answer {
    /// Why not; `None` allows.
    pub refused: Option<String>,
    /// What its author should know.
    pub warnings: Vec<String>,
    /// What to change.
    pub patch: Option<json_patch::Patch>,
    /// What became of a pod, in two words for metrics.
    pub injection: Option<(&'static str, &'static str)>,
}

/// The questions that only the cluster answers.
pub trait Cluster: Send + Sync + 'static {
    /// Whether RBAC gives a user this, for an object of a namespace.
    fn may(
        &self,
        user: &User,
        what: Permission,
        namespace: &str,
        name: &str,
    ) -> impl Future<Output = Result<bool, String>> + Send;

    /// The cluster's thresholds.
    fn thresholds(&self) -> impl Future<Output = Result<Thresholds, String>> + Send;
}

impl Answer {
    fn refused(message: impl Into<String>) -> Self {
        Self { refused: Some(message.into()), ..Self::default() }
    }

    /// As an AdmissionReview.
    #[must_use]
    pub fn review(&self, uid: &str) -> Value {
        let mut response = json!({ "uid": uid, "allowed": self.refused.is_none() });
        if let Some(members) = response.as_object_mut() {
            if let Some(message) = &self.refused {
                let status = json!({ "code": 403, "reason": "Forbidden", "message": message });
                members.insert("status".into(), status);
            }
            if !self.warnings.is_empty() {
                members.insert("warnings".into(), json!(self.warnings));
            }
            if let Some(patch) = self.patch.as_ref().filter(|patch| !patch.is_empty()) {
                let text = serde_json::to_vec(patch).unwrap_or_default();
                members.insert("patchType".into(), json!("JSONPatch"));
                members.insert("patch".into(), json!(STANDARD.encode(text)));
            }
        }
        json!({ "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "response": response })
    }
}

/// Injects a pod of an enrolled namespace. Without a configuration the sidecar could not know whom to
/// believe, so there is no pod.
#[must_use]
pub fn mutate(request: &Request, config: Option<&InjectConfig>) -> Answer {
    if request.kind.kind != "Pod" || request.operation != Operation::Create {
        return Answer::default();
    }
    let Some(config) = config else {
        return Answer {
            refused: Some("aegis: the CA's trust bundle is not there yet; try again".into()),
            injection: Some(("refused", "NoTrustBundle")),
            ..Answer::default()
        };
    };
    match inject::inject(&request.object, config) {
        Ok(injected) => {
            let patch = inject::patch(&request.object, &injected.pod);
            let reason = if patch.is_empty() { "AlreadyInjected" } else { "Enrolled" };
            Answer {
                patch: Some(patch),
                warnings: injected.warnings,
                injection: Some(("injected", reason)),
                refused: None,
            }
        }
        Err(refusal) => Answer {
            refused: Some(format!("aegis: {}", refusal.message)),
            injection: Some(("refused", refusal.reason)),
            ..Answer::default()
        },
    }
}

/// Judges an object of Aegis. `prefix` is what the API server puts before users' e-mail addresses.
pub async fn validate(request: &Request, prefix: &str, cluster: &impl Cluster) -> Answer {
    let changes = matches!(request.operation, Operation::Create | Operation::Update);
    if request.kind.group != "aegis.dev" || !changes {
        return Answer::default();
    }
    match request.kind.kind.as_str() {
        "AgentIdentity" => sponsor(request, prefix, cluster).await,
        "TrustThreshold" => tighten(request, cluster).await,
        "ApprovalRequest" => approval::judge(request, cluster).await,
        _ => Answer::default(),
    }
}

/// Nobody makes another person answer for an agent, or changes what another answers for.
async fn sponsor(request: &Request, prefix: &str, cluster: &impl Cluster) -> Answer {
    let spec = |object: &Value| object.get("spec").cloned().unwrap_or_default();
    let named = |spec: &Value| spec.get("sponsor").and_then(Value::as_str).map(str::to_owned);
    let (before, after) = (spec(&request.old_object), spec(&request.object));
    if request.operation == Operation::Update && (before == after || only_suspends(&before, &after))
    {
        return Answer::default();
    }
    let user = &request.user_info.username;
    let person = user.strip_prefix(prefix).unwrap_or_default();
    let (old, new) = (named(&before), named(&after));
    let own = !person.is_empty() && new.as_deref() == Some(person);
    let own = own && (request.operation == Operation::Create || old == new);
    if own {
        return Answer::default();
    }
    let what = Permission::Sponsor;
    match cluster.may(&request.user_info, what, &request.namespace, &request.name).await {
        Ok(true) => Answer::default(),
        Ok(false) if old.is_some() && old != new => Answer::refused(format!(
            "`spec.sponsor` cannot be changed by `{user}`: to hand an agent over takes the verb `{}` on agentidentities",
            what.verb()
        )),
        Ok(false) => Answer::refused(format!(
            "`{user}` is not the sponsor `{}`: only the sponsor, or who has the verb `{}` on agentidentities, may say this",
            new.unwrap_or_default(),
            what.verb()
        )),
        Err(message) => Answer::refused(format!(
            "whether `{user}` may name this sponsor cannot be asked now ({message}); try again"
        )),
    }
}

/// Whether all that changes is that an agent is suspended: nobody keeps a person from stopping one.
fn only_suspends(before: &Value, after: &Value) -> bool {
    let mut suspended = before.clone();
    if let Some(members) = suspended.as_object_mut() {
        members.insert("suspended".into(), Value::Bool(true));
    }
    suspended == *after
}

/// A namespace only tightens.
async fn tighten(request: &Request, cluster: &impl Cluster) -> Answer {
    let spec = request.object.get("spec").cloned().unwrap_or_else(|| json!({}));
    let own: WrittenThresholds = match serde_json::from_value(spec) {
        Ok(own) => own,
        Err(error) => return Answer::refused(format!("`spec` cannot be read: {error}")),
    };
    let base = match cluster.thresholds().await {
        Ok(base) => base,
        Err(message) => {
            return Answer::refused(format!(
                "the cluster's thresholds cannot be read now ({message}); try again"
            ));
        }
    };
    let merged = match own.over(&base) {
        Ok(merged) => merged,
        Err(error) => return Answer::refused(format!("`spec` cannot be read: {error}")),
    };
    let loosened: Vec<String> =
        merged.loosenings(&base).into_iter().map(|one| one.message).collect();
    if loosened.is_empty() { Answer::default() } else { Answer::refused(loosened.join("; ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Default)]
    struct Answers {
        may: Option<Permission>,
        broken: bool,
    }

    impl Cluster for Answers {
        async fn may(&self, _: &User, what: Permission, _: &str, _: &str) -> Result<bool, String> {
            if self.broken { Err("timeout".into()) } else { Ok(self.may == Some(what)) }
        }

        async fn thresholds(&self) -> Result<Thresholds, String> {
            if self.broken { Err("timeout".into()) } else { Ok(Thresholds::default()) }
        }
    }

    fn request(kind: &str, user: &str, old: Value, new: Value) -> Request {
        let operation = if old.is_null() { "CREATE" } else { "UPDATE" };
        serde_json::from_value(json!({
            "uid": "u", "kind": { "group": "aegis.dev", "version": "v1alpha1", "kind": kind },
            "operation": operation, "namespace": "shop", "userInfo": { "username": user },
            "object": { "spec": new }, "oldObject": { "spec": old },
        }))
        .unwrap()
    }

    async fn judged(request: &Request, cluster: &Answers) -> Option<String> {
        validate(request, "oidc:", cluster).await.refused
    }

    const ADA: &str = "ada@acme.example";

    #[tokio::test]
    async fn a_person_answers_only_for_himself() {
        let nobody = Answers::default();
        let mine = json!({ "sponsor": ADA, "capabilities": [] });
        let create = |user| request("AgentIdentity", user, Value::Null, mine.clone());
        assert_eq!(judged(&create("oidc:ada@acme.example"), &nobody).await, None);
        for user in ["oidc:bob@acme.example", ADA, "oidc:", "system:serviceaccount:shop:bot"] {
            let refused = judged(&create(user), &nobody).await.unwrap();
            assert!(refused.contains("is not the sponsor"), "{user}: {refused}");
        }
        let trusted = Answers { may: Some(Permission::Sponsor), ..Answers::default() };
        assert_eq!(judged(&create("system:serviceaccount:gitops:deployer"), &trusted).await, None);
    }

    #[tokio::test]
    async fn nobody_takes_anothers_agent_over() {
        let nobody = Answers::default();
        let before = json!({ "sponsor": ADA });
        let taken = json!({ "sponsor": "bob@acme.example" });
        let update = |user, new| request("AgentIdentity", user, before.clone(), new);
        let refused =
            judged(&update("oidc:bob@acme.example", taken.clone()), &nobody).await.unwrap();
        assert!(refused.contains("cannot be changed by"), "{refused}");
        // Nor does one put one's own agent on another.
        assert!(judged(&update("oidc:ada@acme.example", taken), &nobody).await.is_some());
        // Nor is what one answers for changed by another.
        let wider = json!({ "sponsor": ADA, "capabilities": ["call:**"] });
        assert!(judged(&update("oidc:bob@acme.example", wider.clone()), &nobody).await.is_some());
        assert_eq!(judged(&update("oidc:ada@acme.example", wider), &nobody).await, None);
        assert_eq!(judged(&update("oidc:bob@acme.example", before.clone()), &nobody).await, None);
    }

    /// Who may change the object at all may stop the agent; only who answers for it lets it go on.
    #[tokio::test]
    async fn anybody_may_stop_an_agent() {
        let nobody = Answers::default();
        let running = json!({ "sponsor": ADA });
        let stopped = json!({ "sponsor": ADA, "suspended": true });
        let explicit = json!({ "sponsor": ADA, "suspended": false });
        let update = |old: &Value, new: &Value| {
            request("AgentIdentity", "oidc:bob@acme.example", old.clone(), new.clone())
        };
        assert_eq!(judged(&update(&running, &stopped), &nobody).await, None);
        assert_eq!(judged(&update(&explicit, &stopped), &nobody).await, None);
        assert!(judged(&update(&stopped, &running), &nobody).await.is_some());
        assert!(judged(&update(&stopped, &explicit), &nobody).await.is_some());
        let taken = json!({ "sponsor": "bob@acme.example", "suspended": true });
        assert!(judged(&update(&running, &taken), &nobody).await.is_some());
    }

    #[tokio::test]
    async fn a_namespace_only_tightens() {
        let ask = |spec| request("TrustThreshold", "oidc:bob@acme.example", Value::Null, spec);
        let sound = Answers::default();
        assert_eq!(judged(&ask(json!({ "tMin": 950 })), &sound).await, None);
        let refused = judged(&ask(json!({ "tMin": 899 })), &sound).await.unwrap();
        assert!(refused.contains("`tMin` is 899"), "{refused}");
        assert!(judged(&ask(json!({ "weights": { "trust": 0 } })), &sound).await.is_some());
    }

    #[tokio::test]
    async fn a_question_that_nobody_answers_refuses() {
        let broken = Answers { broken: true, ..Answers::default() };
        let identity = request("AgentIdentity", "x", Value::Null, json!({ "sponsor": ADA }));
        assert!(judged(&identity, &broken).await.unwrap().contains("try again"));
        let threshold = request("TrustThreshold", "x", Value::Null, json!({ "tMin": 950 }));
        assert!(judged(&threshold, &broken).await.unwrap().contains("try again"));
    }

    #[test]
    fn an_answer_is_a_review() {
        let refused = Answer::refused("no").review("u");
        assert_eq!(refused["response"]["allowed"], false);
        assert_eq!(refused["response"]["status"]["message"], "no");
        let allowed = Answer::default().review("u");
        assert_eq!(allowed["response"], json!({ "uid": "u", "allowed": true }));
    }
}
