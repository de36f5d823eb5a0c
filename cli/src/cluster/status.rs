//! `aegis status --cluster`: what the operator says of its objects, and what is not covered.
//!
//! What cannot be asked is said to be unknown, and counts as not covered.

use aegis_api::control::PolicyStatus;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Cluster, KINDS, full_name, text};
use crate::output::{Text, Tone};

/// The label by which an administrator enrols a namespace.
const ENROLLED: &str = "&labelSelector=aegis.dev%2Finject%3Denabled";
/// The sidecar's container in a pod, as the operator puts it there.
const SIDECAR: &str = "aegis-proxy";

/// How a cluster stands.
#[derive(Debug, Serialize)]
pub(crate) struct ClusterStatus {
    /// The API server.
    server: String,
    /// How many entries the ledger holds; absent where nobody says.
    entries: Option<u64>,
    /// Why nobody says; empty where somebody does.
    ledger_problem: String,
    /// The policies.
    policies: Vec<PolicyStatus>,
    /// The agents.
    agents: Vec<Agent>,
    /// The namespaces that are enrolled.
    enrolled: Vec<String>,
    /// What is not covered; empty if all of that is.
    not_covered: Vec<String>,
}

/// One AgentIdentity.
#[derive(Debug, Serialize)]
struct Agent {
    /// `namespace/name`.
    name: String,
    /// The SPIFFE ID.
    id: String,
    /// Whether it is ready.
    ready: bool,
    /// Why not.
    message: String,
    /// The trust score; absent where the ledger holds nothing of it.
    trust: Option<u64>,
    /// The name of that.
    standing: String,
    /// How many entries of the ledger it is folded from.
    as_of: Option<u64>,
    /// Why its conduct has every action denied; empty where it does not.
    quarantined: String,
}

#[derive(Deserialize)]
struct Health {
    entries: u64,
}

impl ClusterStatus {
    /// Asks the cluster.
    ///
    /// # Errors
    /// When it does not tell what Aegis' objects are.
    pub(crate) async fn of(cluster: &Cluster) -> anyhow::Result<Self> {
        let mut policies = Vec::new();
        for plural in ["clusteragentpolicies", "agentpolicies"] {
            let objects = cluster.list(&format!("{KINDS}/{plural}"), "").await?;
            policies.extend(objects.iter().map(policy));
        }
        let identities = cluster.list(&format!("{KINDS}/agentidentities"), "").await?;
        let health = cluster.ledger().get::<Health>("/healthz").await;
        let (enrolled, not_covered) = coverage(cluster).await;
        Ok(Self {
            server: cluster.server().to_owned(),
            entries: health.as_ref().ok().map(|health| health.entries),
            ledger_problem: health.err().map_or_else(String::new, |error| error.to_string()),
            policies,
            agents: identities.iter().map(agent).collect(),
            enrolled,
            not_covered,
        })
    }

    /// Whether everything that is configured works as it says.
    pub(crate) fn is_sound(&self) -> bool {
        self.entries.is_some()
            && self.policies.iter().all(|policy| policy.state == "ready")
            && self.agents.iter().all(|agent| agent.ready)
    }

    /// Whether every pod of the enrolled namespaces is governed.
    pub(crate) const fn is_covered(&self) -> bool {
        self.not_covered.is_empty()
    }

    /// For people.
    pub(crate) fn show(&self) -> Text {
        let mut text = Text::new();
        text.field("cluster", &self.server);
        match self.entries {
            Some(entries) => text.field("ledger", format!("{entries} entries")),
            None => text.toned(Tone::Bad, format!("the ledger: {}", self.ledger_problem)),
        }
        text.line("");
        if self.policies.is_empty() {
            text.toned(Tone::Warn, "No policies: every action is denied.");
        } else {
            let rows = self.policies.iter();
            let rows = rows.map(|p| vec![p.name.clone(), p.state.clone(), p.message.clone()]);
            text.table(&["POLICY", "STATE", "MESSAGE"], rows.collect());
        }
        text.line("");
        if self.agents.is_empty() {
            text.toned(Tone::Warn, "No agents: apply an AgentIdentity.");
        } else {
            let rows = self.agents.iter().map(Agent::row).collect();
            text.table(&["AGENT", "READY", "TRUST", "STANDING", "AS OF", "MESSAGE"], rows);
        }
        for agent in self.agents.iter().filter(|agent| !agent.quarantined.is_empty()) {
            text.toned(Tone::Bad, format!("{} is quarantined: {}", agent.name, agent.quarantined));
        }
        text.line("");
        text.field("enrolled", self.enrolled.join(", "));
        if self.not_covered.is_empty() {
            text.toned(Tone::Good, "Every pod of the enrolled namespaces has its sidecar.");
        } else {
            text.toned(Tone::Bad, "Not covered:");
            text.items(&self.not_covered);
        }
        text
    }
}

impl Agent {
    fn row(&self) -> Vec<String> {
        let number = |value: Option<u64>| value.map_or_else(String::new, |value| value.to_string());
        let ready = if self.ready { "yes" } else { "no" };
        let (trust, as_of) = (number(self.trust), number(self.as_of));
        let (name, standing) = (self.name.clone(), self.standing.clone());
        vec![name, ready.into(), trust, standing, as_of, self.message.clone()]
    }
}

/// What the operator says of `Ready`, for the specification as it is now.
fn ready(object: &Value) -> (bool, String) {
    let conditions = object.pointer("/status/conditions").and_then(Value::as_array);
    let ready =
        conditions.and_then(|all| all.iter().find(|condition| text(condition, "/type") == "Ready"));
    let Some(ready) = ready else {
        return (false, "the operator has not looked at it yet".to_owned());
    };
    let generation = |pointer| object.pointer(pointer).and_then(Value::as_i64);
    if generation("/metadata/generation") != generation("/status/observedGeneration") {
        return (false, "the operator has not looked at its last change yet".to_owned());
    }
    (text(ready, "/status") == "True", text(ready, "/message").to_owned())
}

fn policy(object: &Value) -> PolicyStatus {
    let (holds, message) = ready(object);
    let state = match object.pointer("/status/inForce") {
        _ if holds => "ready",
        Some(_) => "last_good",
        None => "failed",
    };
    PolicyStatus { name: full_name(object), state: state.to_owned(), message }
}

fn agent(object: &Value) -> Agent {
    let (ready, message) = ready(object);
    let number = |pointer| object.pointer(pointer).and_then(Value::as_u64);
    Agent {
        name: full_name(object),
        id: text(object, "/status/spiffeID").to_owned(),
        ready,
        message,
        trust: number("/status/trust/score"),
        standing: text(object, "/status/trust/standing").to_owned(),
        as_of: number("/status/trust/asOf"),
        quarantined: text(object, "/status/trust/quarantined").to_owned(),
    }
}

/// The namespaces that are enrolled, and the pods in them that run without a sidecar.
async fn coverage(cluster: &Cluster) -> (Vec<String>, Vec<String>) {
    let namespaces = match cluster.list("/api/v1/namespaces", ENROLLED).await {
        Ok(namespaces) => namespaces,
        Err(error) => {
            return (vec![], vec![format!("unknown which namespaces are enrolled: {error:#}")]);
        }
    };
    let enrolled: Vec<String> = namespaces.iter().map(full_name).collect();
    let mut not_covered = Vec::new();
    for namespace in &enrolled {
        match cluster.list(&format!("/api/v1/namespaces/{namespace}/pods"), "").await {
            Ok(pods) => {
                let bare = pods.iter().filter(|pod| runs(pod) && !has_sidecar(pod));
                not_covered.extend(bare.map(|pod| {
                    format!(
                        "pod {} has no sidecar; delete it, so that it starts anew",
                        full_name(pod)
                    )
                }));
            }
            Err(error) => not_covered.push(format!("unknown what runs in {namespace}: {error:#}")),
        }
    }
    (enrolled, not_covered)
}

fn runs(pod: &Value) -> bool {
    !matches!(text(pod, "/status/phase"), "Succeeded" | "Failed")
}

fn has_sidecar(pod: &Value) -> bool {
    let inits = pod.pointer("/spec/initContainers").and_then(Value::as_array);
    inits.is_some_and(|all| all.iter().any(|container| text(container, "/name") == SIDECAR))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn status_says_no_more_than_the_operator() {
        let fresh =
            json!({ "metadata": { "namespace": "shop", "name": "buyer", "generation": 2 } });
        assert!(!agent(&fresh).ready, "nobody has looked at it");
        let mut known = fresh;
        known["status"] = json!({
            "observedGeneration": 1,
            "conditions": [{ "type": "Ready", "status": "True", "message": "fine" }],
            "trust": { "score": 333, "standing": "probationary", "asOf": 17 },
        });
        assert!(!agent(&known).ready, "that was about another specification");
        known["status"]["observedGeneration"] = json!(2);
        let told = agent(&known);
        assert_eq!((told.ready, told.name.as_str(), told.trust), (true, "shop/buyer", Some(333)));
        known["status"]["conditions"][0]["status"] = json!("False");
        assert_eq!(policy(&known).state, "failed");
        known["status"]["inForce"] = json!({});
        assert_eq!(policy(&known).state, "last_good");
    }

    #[test]
    fn a_pod_without_its_sidecar_is_not_covered() {
        let pod = |inits: Value, phase: &str| json!({ "spec": { "initContainers": inits }, "status": { "phase": phase } });
        let bare = pod(json!([{ "name": "setup" }]), "Running");
        assert!(runs(&bare) && !has_sidecar(&bare));
        assert!(has_sidecar(&pod(json!([{ "name": SIDECAR }]), "Running")));
        assert!(!runs(&pod(json!([]), "Succeeded")));
    }
}
