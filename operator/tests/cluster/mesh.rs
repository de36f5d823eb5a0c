//! The operator serves sidecars, with a real API server and a CA in the test.

use std::{net::SocketAddr, path::Path, sync::Arc};

use aegis_api::distribution::Verifier;
use ed25519_dalek::SigningKey;
use k8s_openapi::api::{
    core::v1::{ConfigMap, Secret},
    events::v1::Event,
};
use kube::{
    Api, Client,
    api::{ListParams, Patch, PatchParams, PostParams},
};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    time::Instant,
};

use crate::{
    authority::Authority,
    fixture::{apply, cluster, condition, eventually, namespace, objects},
    follower::{OPERATOR, Sidecar, to},
    operator::start_with,
};

async fn unused() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap()
}

fn flags(ca: SocketAddr, token: &Path, distribution: SocketAddr) -> Vec<String> {
    vec![
        format!("--ca={ca}"),
        format!("--token={}", token.display()),
        format!("--distribution={distribution}"),
        format!("--distribution-service={distribution}"),
    ]
}

/// Who believes the operators of a namespace, as sidecars are told their key.
async fn verifier(client: &Client, namespace: &str) -> Verifier {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = secrets.get("aegis-distribution-key").await.unwrap();
    let seed = secret.data.unwrap()["seed"].0.as_slice().try_into().unwrap();
    Verifier::new(vec![SigningKey::from_bytes(&seed).verifying_key()])
}

#[tokio::test]
async fn the_leader_serves_agents_and_a_standby_does_not() {
    let Some(client) = cluster().await else { return };
    let namespace = namespace(&client).await;
    let authority = Arc::new(Authority::new());
    let ca = authority.serve(unused().await).await;
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, OPERATOR).unwrap();
    let leader = "leader_election_master_status{name=\"aegis-operator\"}";

    // Without the CA's roots it leads, is ready for what else it does, and serves no sidecar.
    let address = unused().await;
    let first = start_with(&client, &namespace, &flags(ca.address, &token, address)).await;
    first.until(leader, 1.0).await;
    assert!(first.asked("/readyz").await.starts_with("HTTP/1.1 200"));
    assert!(TcpStream::connect(address).await.is_err());
    assert!(first.metric("aegis_operator_mesh{what=\"roots\"}").await < 0.5);

    let config_maps: Api<ConfigMap> = Api::namespaced(client.clone(), &namespace);
    let bundle = serde_json::from_value(json!({
        "metadata": { "name": "aegis-trust-bundle" }, "data": { "roots.pem": authority.pem },
    }));
    config_maps.create(&PostParams::default(), &bundle.unwrap()).await.unwrap();
    let agent = format!("spiffe://acme.example/ns/{namespace}/sa/bot/agent/buyer");
    let source = authority.source(&agent).await;
    let verifier = verifier(&client, &namespace).await;
    let mut sidecar = Sidecar::follow(to(address, &source), verifier.clone());
    sidecar.until(|_| true).await;

    // A standby is in the mesh already, and does not listen.
    let other = unused().await;
    let second = start_with(&client, &namespace, &flags(ca.address, &token, other)).await;
    second.until("aegis_operator_mesh{what=\"ca\"}", 1.0).await;
    assert!(TcpStream::connect(other).await.is_err());

    // What is applied reaches the sidecar; so does the kill switch, and it is told.
    let identity = json!({
        "apiVersion": "aegis.dev/v1alpha1", "kind": "AgentIdentity", "metadata": { "name": "buyer" },
        "spec": { "sponsor": "ada@acme.example", "serviceAccount": "bot", "selector": { "kubernetes": {} } },
    });
    apply(&client, &namespace, &identity).await.unwrap();
    let is_it = |id: &aegis_core::AgentId| id.to_string() == agent;
    sidecar.until(|state| state.agents.iter().any(|one| is_it(&one.id))).await;
    let identities = objects(&client, &namespace, "AgentIdentity");
    let started = Instant::now();
    let stop = Patch::Merge(json!({ "spec": { "suspended": true } }));
    identities.patch("buyer", &PatchParams::default(), &stop).await.unwrap();
    let state = sidecar.until(|state| state.quarantined.iter().any(is_it)).await;
    eprintln!("suspended at a sidecar {} ms after it was asked for", started.elapsed().as_millis());
    let told = |object: &_| condition(object, "Ready").is_some_and(|ready| ready.1 == "Suspended");
    eventually(&identities, "buyer", told).await;
    let events: Api<Event> = Api::namespaced(client.clone(), &namespace);
    let told = events.list(&ListParams::default()).await.unwrap();
    assert!(told.items.iter().any(|event| event.reason.as_deref() == Some("Suspended")));

    // The successor serves, and nothing of it is older.
    first.end().await;
    sidecar.lost().await;
    second.until(leader, 1.0).await;
    let mut again = Sidecar::follow(to(other, &source), sidecar.end().await);
    let next = again.until(|_| true).await;
    assert!(next.serial > state.serial && next.quarantined.iter().any(is_it));
    second.end().await;
}
