//! The CA on a real API server: `AEGIS_CLUSTER_KUBECONFIG` names its kubeconfig. Without one, these
//! tests say so and pass; `e2e/cluster/cluster.sh up` gives one.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "what sets a test up may end it; the exemption of tests does not reach these functions"
)]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use aegis_ca::{
    CaConfig, CaError, IdentityManager, Kind, Lifetimes, RotateError, Store as _, StoreError,
    Subject, Unrecorded,
    kubernetes::{
        ApiServer, Attested, Identities, Rotation, SecretStore, TokenAttestor, identities,
        watch::keep_reloading,
    },
};
use aegis_identity::system_clock;
use k8s_openapi::{
    api::{
        core::v1::{Namespace, Pod, Secret},
        events::v1::Event,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config,
    api::{
        ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams,
        Request,
    },
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{conditions, wait::await_condition},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);

/// How to reach the cluster, with the CRDs in it and a namespace of the test's own.
async fn cluster() -> Option<(Config, Client, String)> {
    let Some(path) = std::env::var_os("AEGIS_CLUSTER_KUBECONFIG") else {
        eprintln!("skipped: AEGIS_CLUSTER_KUBECONFIG names no cluster");
        return None;
    };
    let kubeconfig = Kubeconfig::read_from(path).unwrap();
    let config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let client = Client::try_from(config.clone()).unwrap();
    let kinds: Api<CustomResourceDefinition> = Api::all(client.clone());
    for (name, crd) in aegis_resources::crd::definitions().unwrap() {
        let params = PatchParams::apply("aegis-test").force();
        kinds.patch(&name, &params, &Patch::Apply(crd)).await.unwrap();
        let established = await_condition(kinds.clone(), &name, conditions::is_crd_established());
        tokio::time::timeout(PATIENCE, established).await.unwrap().unwrap();
    }
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace = serde_json::from_value(json!({ "metadata": { "generateName": "ca-" } }));
    let made = namespaces.create(&PostParams::default(), &namespace.unwrap()).await.unwrap();
    Some((config, client, made.metadata.name.unwrap()))
}

async fn eventually(what: &str, mut holds: impl AsyncFnMut() -> bool) {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !holds().await {
        assert!(tokio::time::Instant::now() < deadline, "{what} did not happen");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

fn ca(store: SecretStore) -> Result<IdentityManager, CaError> {
    let config =
        CaConfig { trust_domain: "acme.example".parse().unwrap(), lifetimes: Lifetimes::default() };
    IdentityManager::open(store, config, Arc::new(Unrecorded), system_clock())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_share_a_secret_and_overwrite_nothing() {
    let Some((config, _, namespace)) = cluster().await else { return };
    let open = || SecretStore::open(config.clone(), &namespace, "aegis-ca-state").unwrap();
    // Two that start at once: one makes the authorities, the other finds them.
    let (one, two) = (open(), open());
    let first = ca(one).unwrap();
    let lost = ca(two.clone()).unwrap_err();
    assert!(matches!(lost, CaError::Rotate(RotateError::Store(StoreError::Conflict(_)))), "{lost}");
    two.refresh().unwrap();
    let second = ca(two).unwrap();
    assert_eq!(first.authorities(), second.authorities());

    // One rotates; the other, which does not know yet, cannot undo that, and reads it again.
    first.rotate(Kind::Root).unwrap();
    assert!(second.rotate(Kind::Jwt).is_err());
    second.reload().unwrap();
    assert_eq!(first.authorities(), second.authorities());
    assert_eq!(first.bundle().sequence(), second.bundle().sequence());
    let agent = Subject::Id("spiffe://acme.example/ns/a/sa/b/agent/c".parse().unwrap());
    second.revoke(agent.clone(), "stolen").await.unwrap();
    first.reload().unwrap();
    assert_eq!(first.revoked()[0].subject, agent);
    // What each issues, the other verifies.
    let svid = second.issue_component("operator").await.unwrap();
    assert!(first.verify(svid.chain()).is_ok());
    assert!(open().names().unwrap().contains(&"state.json".to_owned()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn an_annotation_rotates_once_and_is_told_of() {
    let Some((config, client, namespace)) = cluster().await else { return };
    let name = "aegis-ca-state";
    let secrets: Api<Secret> = Api::namespaced(client.clone(), &namespace);
    let stop = CancellationToken::new();
    let mut replicas = Vec::new();
    for number in 0..2 {
        let store = SecretStore::open(config.clone(), &namespace, name).unwrap();
        let manager = ca(store.clone()).unwrap();
        let rotation = Rotation::new(client.clone(), &format!("replica-{number}"));
        let (client, namespace) = (client.clone(), namespace.clone());
        let (told, stopping) = (manager.clone(), stop.clone());
        tokio::spawn(async move {
            keep_reloading(client, (&namespace, name), store, told, rotation, stopping).await;
        });
        replicas.push(manager);
    }
    let signs = |kind: Kind| -> Vec<String> {
        let all = replicas[0].authorities().into_iter();
        all.filter(|one| one.kind == kind).map(|one| one.id).collect()
    };
    let annotate = async |value: &str| {
        let patch = json!({ "metadata": { "annotations": { "aegis.dev/rotate": value } } });
        secrets.patch(name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
        eventually("the annotation's end", async || {
            let secret = secrets.get(name).await.unwrap();
            !secret.metadata.annotations.unwrap_or_default().contains_key("aegis.dev/rotate")
        })
        .await;
    };
    for (asked, kind) in [("x509", Kind::Root), ("jwt", Kind::Jwt), ("x509", Kind::Root)] {
        let before = (signs(kind), replicas[0].bundle().sequence());
        annotate(asked).await;
        eventually("the same everywhere", async || {
            let sequence = replicas[0].bundle().sequence();
            sequence > before.1 && sequence == replicas[1].bundle().sequence()
        })
        .await;
        assert_eq!(replicas[0].bundle().sequence(), before.1 + 1, "it rotates once");
        assert_eq!(signs(kind).len(), before.0.len() + 1);
        assert_eq!(replicas[0].authorities(), replicas[1].authorities());
    }
    let before = replicas[0].authorities();
    annotate("everything").await;
    assert_eq!(replicas[0].authorities(), before);
    let events: Api<Event> = Api::namespaced(client, &namespace);
    eventually("an Event about each", async || {
        let all = events.list(&ListParams::default()).await.unwrap().items;
        let told = |reason: &str| {
            let about = all.iter().filter(|event| event.reason.as_deref() == Some(reason));
            about
                .filter(|event| event.regarding.as_ref().unwrap().name.as_deref() == Some(name))
                .count()
        };
        told("Rotated") >= 2 && told("UnknownAuthority") == 1
    })
    .await;
    stop.cancel();
}

/// A token for a pod, as the kubelet asks for it.
async fn token(client: &Client, namespace: &str, pod: &Pod, audience: &str) -> String {
    let asked = json!({
        "apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest",
        "spec": { "audiences": [audience], "expirationSeconds": 600, "boundObjectRef": {
            "apiVersion": "v1", "kind": "Pod", "name": pod.metadata.name, "uid": pod.metadata.uid,
        } },
    });
    let request = Request::new(format!("/api/v1/namespaces/{namespace}/serviceaccounts"));
    let asked = serde_json::to_vec(&asked).unwrap();
    let params = PostParams::default();
    let request = request.create_subresource("token", "default", &params, asked).unwrap();
    let answer: Value = client.request(request).await.unwrap();
    answer["status"]["token"].as_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pods_token_is_its_identity_until_either_is_gone() {
    let Some((config, client, namespace)) = cluster().await else { return };
    let pods: Api<Pod> = Api::namespaced(client.clone(), &namespace);
    let pod = json!({
        "metadata": { "name": "buyer", "labels": { "app": "buyer" } },
        "spec": { "terminationGracePeriodSeconds": 0, "containers": [
            { "name": "app", "image": "aegis.dev/e2e/pause:1", "imagePullPolicy": "IfNotPresent" },
        ] },
    });
    let pod: Pod = serde_json::from_value(pod).unwrap();
    // The service account of a new namespace takes a moment.
    eventually("the pod", async || pods.create(&PostParams::default(), &pod).await.is_ok()).await;
    let running = await_condition(pods.clone(), "buyer", conditions::is_pod_running());
    tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap();
    let pod = pods.get("buyer").await.unwrap();

    let store = SecretStore::open(config, &namespace, "aegis-ca-state").unwrap();
    let manager = ca(store).unwrap();
    let (known, listed, stop) =
        (Identities::default(), CancellationToken::new(), CancellationToken::new());
    let following = identities::keep_following(
        client.clone(),
        known.clone(),
        manager.clone(),
        listed.clone(),
        stop.clone(),
    );
    let following = tokio::spawn(following);
    tokio::time::timeout(PATIENCE, listed.cancelled()).await.unwrap();
    let domain = "acme.example".parse().unwrap();
    let cluster = Arc::new(ApiServer(client.clone()));
    let attestor = TokenAttestor::new(cluster, known, domain, BTreeMap::new(), system_clock());
    let good = token(&client, &namespace, &pod, "aegis-ca").await;
    assert_eq!(attestor.attest(&good).await.unwrap_err().reason(), "unregistered");

    let resource = ApiResource::erase::<aegis_resources::kinds::AgentIdentity>(&());
    let agents: Api<DynamicObject> = Api::namespaced_with(client.clone(), &namespace, &resource);
    let agent: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "aegis.dev/v1alpha1", "kind": "AgentIdentity", "metadata": { "name": "buyer" },
        "spec": { "sponsor": "ada@acme.example", "selector": { "kubernetes": { "podLabels": { "app": "buyer" } } } },
    }))
    .unwrap();
    agents.create(&PostParams::default(), &agent).await.unwrap();
    let id = format!("spiffe://acme.example/ns/{namespace}/sa/default/agent/buyer");
    eventually("the identity", async || match attestor.attest(&good).await {
        Ok(Attested::Agent(agent)) => agent.id.to_string() == id,
        _ => {
            tokio::time::sleep(Duration::from_millis(500)).await;
            false
        }
    })
    .await;

    let other = token(&client, &namespace, &pod, "somebody-else").await;
    let refused = attestor.attest(&other).await.unwrap_err();
    assert!(["invalid_token", "other_audience"].contains(&refused.reason()), "{refused}");
    let forged = format!("{}x", good.trim_end_matches('x'));
    assert_eq!(attestor.attest(&forged).await.unwrap_err().reason(), "invalid_token");

    let revoked = |manager: &IdentityManager| {
        manager.revoked().iter().any(|one| one.subject == Subject::Id(id.parse().unwrap()))
    };
    agents.delete("buyer", &DeleteParams::default()).await.unwrap();
    eventually("the revocation", async || revoked(&manager)).await;
    agents.create(&PostParams::default(), &agent).await.unwrap();
    eventually("its end", async || !revoked(&manager)).await;

    let fresh = token(&client, &namespace, &pod, "aegis-ca").await;
    pods.delete("buyer", &DeleteParams::default()).await.unwrap();
    eventually("the pod's end", async || pods.get_opt("buyer").await.unwrap().is_none()).await;
    let refused = attestor.attest(&fresh).await.unwrap_err();
    assert!(["invalid_token", "other_pod"].contains(&refused.reason()), "{refused}");
    stop.cancel();
    following.await.unwrap();
}
