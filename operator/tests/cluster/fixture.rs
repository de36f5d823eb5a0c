//! A client of the cluster, with the CRDs in it and a namespace of the test's own.

use std::time::Duration;

use k8s_openapi::{
    api::core::v1::Namespace,
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
};
use kube::{
    Api, Client, Config,
    api::{ApiResource, DynamicObject, Patch, PatchParams, PostParams},
    config::{KubeConfigOptions, Kubeconfig},
    runtime::{conditions, wait::await_condition},
};
use serde_json::{Value, json};
use tokio::sync::OnceCell;

/// How long anything may take.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A client, or `None` where there is no cluster. The CRDs are applied first.
pub(crate) async fn cluster() -> Option<Client> {
    let Some(path) = std::env::var_os("AEGIS_CLUSTER_KUBECONFIG") else {
        eprintln!("skipped: AEGIS_CLUSTER_KUBECONFIG names no cluster");
        return None;
    };
    let kubeconfig = Kubeconfig::read_from(path).unwrap();
    let config =
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    let client = Client::try_from(config).unwrap();
    static APPLIED: OnceCell<()> = OnceCell::const_new();
    APPLIED.get_or_init(async || apply_crds(client.clone()).await).await;
    Some(client)
}

async fn apply_crds(client: Client) {
    let api: Api<CustomResourceDefinition> = Api::all(client);
    for (name, crd) in aegis_resources::crd::definitions().unwrap() {
        let params = PatchParams::apply("aegis-test").force();
        api.patch(&name, &params, &Patch::Apply(crd)).await.unwrap();
        let established = await_condition(api.clone(), &name, conditions::is_crd_established());
        tokio::time::timeout(PATIENCE, established).await.unwrap().unwrap();
    }
}

/// A namespace that no other test has.
pub(crate) async fn namespace(client: &Client) -> String {
    let api: Api<Namespace> = Api::all(client.clone());
    let namespace: Namespace =
        serde_json::from_value(json!({ "metadata": { "generateName": "test-" } })).unwrap();
    let made = api.create(&PostParams::default(), &namespace).await.unwrap();
    made.metadata.name.unwrap()
}

/// Objects of a kind, in a namespace if the kind has one.
pub(crate) fn objects(client: &Client, namespace: &str, kind: &str) -> Api<DynamicObject> {
    let (plural, namespaced) = match kind {
        "AgentPolicy" => ("agentpolicies", true),
        "ClusterAgentPolicy" => ("clusteragentpolicies", false),
        "AgentIdentity" => ("agentidentities", true),
        "TrustThreshold" => ("trustthresholds", true),
        "ClusterTrustThreshold" => ("clustertrustthresholds", false),
        "AgentUpstream" => ("agentupstreams", true),
        "ApprovalRequest" => ("approvalrequests", true),
        other => panic!("{other} is no kind"),
    };
    let resource = ApiResource {
        group: "aegis.dev".into(),
        version: "v1alpha1".into(),
        api_version: "aegis.dev/v1alpha1".into(),
        kind: kind.into(),
        plural: plural.into(),
    };
    if namespaced {
        Api::namespaced_with(client.clone(), namespace, &resource)
    } else {
        Api::all_with(client.clone(), &resource)
    }
}

/// Applies an object as `kubectl apply` does: an unknown field is an error.
pub(crate) async fn apply(
    client: &Client,
    namespace: &str,
    object: &Value,
) -> Result<DynamicObject, kube::Error> {
    let api = objects(client, namespace, object["kind"].as_str().unwrap());
    let name = object["metadata"]["name"].as_str().unwrap();
    let params = PatchParams {
        field_validation: Some(kube::api::ValidationDirective::Strict),
        ..PatchParams::apply("kubectl").force()
    };
    api.patch(name, &params, &Patch::Apply(object)).await
}

/// Waits until an object is as it should be.
pub(crate) async fn eventually(
    api: &Api<DynamicObject>,
    name: &str,
    holds: impl Fn(&DynamicObject) -> bool,
) -> DynamicObject {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        let object = api.get_opt(name).await.unwrap();
        if let Some(object) = object.clone().filter(|object| holds(object)) {
            return object;
        }
        assert!(tokio::time::Instant::now() < deadline, "{name} did not come to it: {object:#?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A condition of an object: its status, reason, message and generation.
pub(crate) fn condition(
    object: &DynamicObject,
    kind: &str,
) -> Option<(String, String, String, i64)> {
    let conditions = object.data.pointer("/status/conditions")?.as_array()?;
    let found = conditions.iter().find(|one| one["type"] == kind)?;
    let text = |name: &str| found[name].as_str().unwrap_or_default().to_owned();
    Some((text("status"), text("reason"), text("message"), found["observedGeneration"].as_i64()?))
}
