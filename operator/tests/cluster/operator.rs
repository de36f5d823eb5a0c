//! The operator at work.

use std::time::Duration;

use aegis_operator::{options::Options, run::Operator};
use clap::Parser as _;
use k8s_openapi::api::{coordination::v1::Lease, events::v1::Event};
use kube::{Api, Client, api::ListParams};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::fixture::{PATIENCE, apply, cluster, condition, eventually, namespace, objects};

pub(crate) struct Running {
    admin: std::net::SocketAddr,
    pub(crate) publisher: aegis_operator::distribution::Publisher,
    stop: CancellationToken,
    ended: JoinHandle<anyhow::Result<()>>,
}

async fn start(client: &Client, namespace: &str) -> Running {
    start_with(client, namespace, &[]).await
}

pub(crate) async fn start_with(client: &Client, namespace: &str, more: &[String]) -> Running {
    let flags = ["aegis-operator", "--trust-domain", "acme.example", "--admin", "127.0.0.1:0"];
    let flags = flags.into_iter().chain(["--namespace", namespace]);
    let options = Options::parse_from(flags.chain(more.iter().map(String::as_str)));
    let operator = Operator::build(options, client.clone()).await.unwrap();
    let (admin, publisher) = (operator.admin_address().unwrap(), operator.publisher().clone());
    let stop = CancellationToken::new();
    let ended = tokio::spawn(operator.run(stop.clone()));
    Running { admin, publisher, stop, ended }
}

impl Running {
    pub(crate) async fn end(self) {
        self.stop.cancel();
        tokio::time::timeout(PATIENCE, self.ended).await.unwrap().unwrap().unwrap();
    }

    /// What the admin port answers, with its head.
    pub(crate) async fn asked(&self, path: &str) -> String {
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let mut stream = tokio::net::TcpStream::connect(self.admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        text
    }

    /// Waits for the value of a metric's line.
    pub(crate) async fn until(&self, line: &str, wanted: f64) {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while (self.metric(line).await - wanted).abs() > f64::EPSILON {
            assert!(tokio::time::Instant::now() < deadline, "{line} is not {wanted}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// The value of a metric's line.
    pub(crate) async fn metric(&self, line: &str) -> f64 {
        let text = self.asked("/metrics").await;
        let found = text.lines().find_map(|one| one.strip_prefix(line));
        found.map_or(0.0, |value| value.trim().parse().unwrap())
    }
}

fn policy(name: &str, spec: Value) -> Value {
    json!({ "apiVersion": "aegis.dev/v1alpha1", "kind": "AgentPolicy", "metadata": { "name": name }, "spec": spec })
}

fn is(object: &kube::api::DynamicObject, kind: &str, status: &str) -> bool {
    let generation = object.metadata.generation.unwrap();
    condition(object, kind).is_some_and(|(now, _, _, seen)| now == status && seen == generation)
}

#[tokio::test]
async fn a_policy_is_compiled_and_a_broken_one_keeps_its_last_good_version() {
    let Some(client) = cluster().await else { return };
    let namespace = namespace(&client).await;
    let operator = start(&client, &namespace).await;
    let policies = objects(&client, &namespace, "AgentPolicy");

    let sound =
        policy("p", json!({ "rules": [{ "name": "r", "effect": "allow", "tools": ["read_*"] }] }));
    apply(&client, &namespace, &sound).await.unwrap();
    let ready = eventually(&policies, "p", |p| is(p, "Ready", "True")).await;
    assert_eq!(ready.data["status"]["observedGeneration"], 1);
    let digest = ready.data["status"]["inForce"]["digest"].clone();
    assert!(digest.as_str().unwrap().starts_with("sha256:"));

    let broken = policy(
        "p",
        json!({ "rego": "package shop.p\n\nallow if {\n\tnonsense(input)\n}\n", "rules": [] }),
    );
    apply(&client, &namespace, &broken).await.unwrap();
    let broken = eventually(&policies, "p", |p| is(p, "Compiled", "False")).await;
    let (_, reason, message, _) = condition(&broken, "Compiled").unwrap();
    assert_eq!(reason, "DoesNotCompile");
    assert!(message.starts_with("line 4: "), "{message}");
    let (_, reason, message, _) = condition(&broken, "Ready").unwrap();
    assert_eq!(reason, "LastGoodInForce");
    assert!(message.contains("generation 1 stays in force"), "{message}");
    assert_eq!(broken.data["status"]["inForce"]["digest"], digest);

    // An Event tells it, and nothing is written while nothing changes.
    let events: Api<Event> = Api::namespaced(client.clone(), &namespace);
    let told = events.list(&ListParams::default()).await.unwrap();
    assert!(told.items.iter().any(|event| event.reason.as_deref() == Some("LastGoodInForce")));
    let writes =
        operator.metric("aegis_operator_status_writes_total{controller=\"agentpolicy\"}").await;
    assert!(writes >= 2.0, "{writes}");
    let version = broken.metadata.resource_version.clone();
    // Another object's change passes through the same controller and leaves this one alone.
    apply(
        &client,
        &namespace,
        &policy("q", json!({ "rules": [{ "name": "r", "effect": "deny" }] })),
    )
    .await
    .unwrap();
    eventually(&policies, "q", |q| is(q, "Ready", "True")).await;
    assert_eq!(policies.get("p").await.unwrap().metadata.resource_version, version);

    // Also after a restart, the last good version is known.
    operator.end().await;
    let operator = start(&client, &namespace).await;
    apply(&client, &namespace, &policy("p", json!({ "rego": "nonsense", "rules": [] })))
        .await
        .unwrap();
    let again = eventually(&policies, "p", |p| is(p, "Compiled", "False")).await;
    assert_eq!(again.data["status"]["inForce"]["digest"], digest);
    operator.end().await;
}

#[tokio::test]
async fn identities_thresholds_and_upstreams_say_how_they_stand() {
    let Some(client) = cluster().await else { return };
    let namespace = namespace(&client).await;
    let operator = start(&client, &namespace).await;
    let object = |kind: &str, name: &str, spec: Value| json!({ "apiVersion": "aegis.dev/v1alpha1", "kind": kind, "metadata": { "name": name }, "spec": spec });
    let identity = object(
        "AgentIdentity",
        "buyer",
        json!({
            "sponsor": "ada@acme.example", "serviceAccount": "bot", "selector": { "kubernetes": {} },
        }),
    );
    apply(&client, &namespace, &identity).await.unwrap();
    let identities = objects(&client, &namespace, "AgentIdentity");
    let ready = eventually(&identities, "buyer", |one| is(one, "Ready", "True")).await;
    let expected = format!("spiffe://acme.example/ns/{namespace}/sa/bot/agent/buyer");
    assert_eq!(ready.data["status"]["spiffeID"], expected);

    let loose = object("TrustThreshold", "own", json!({ "tMin": 1 }));
    apply(&client, &namespace, &loose).await.unwrap();
    let thresholds = objects(&client, &namespace, "TrustThreshold");
    let told = eventually(&thresholds, "own", |one| is(one, "Ready", "False")).await;
    let (_, reason, message, _) = condition(&told, "Ready").unwrap();
    assert_eq!(reason, "Loosens");
    assert!(message.contains("`tMin` is 1"), "{message}");
    // What nobody wrote is not there: the API server must not fill in what would loosen.
    assert_eq!(told.data["spec"], json!({ "tMin": 1 }));

    let upstream =
        object("AgentUpstream", "tickets", json!({ "url": "https://tickets.example/mcp" }));
    apply(&client, &namespace, &upstream).await.unwrap();
    let upstreams = objects(&client, &namespace, "AgentUpstream");
    eventually(&upstreams, "tickets", |one| is(one, "Ready", "True")).await;
    operator.end().await;
}

#[tokio::test]
async fn one_operator_leads_and_another_takes_over() {
    let Some(client) = cluster().await else { return };
    let namespace = namespace(&client).await;
    let first = start(&client, &namespace).await;
    let until = async |running: &Running, wanted: bool| {
        let deadline = tokio::time::Instant::now() + PATIENCE;
        while (running.publisher.serial() > 0) != wanted {
            assert!(tokio::time::Instant::now() < deadline);
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    until(&first, true).await;
    let second = start(&client, &namespace).await;
    let leases: Api<Lease> = Api::namespaced(client.clone(), &namespace);
    let holder =
        async || leases.get("aegis-operator").await.unwrap().spec.unwrap().holder_identity.unwrap();
    let before = holder().await;
    assert_eq!(second.publisher.serial(), 0);
    let serial = first.publisher.serial();
    first.end().await;
    until(&second, true).await;
    assert!(second.publisher.serial() > serial, "a successor's serials are larger");
    assert_ne!(holder().await, before);
    second.end().await;
}
