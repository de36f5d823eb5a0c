//! The node agent: it redirects the traffic of injected pods on its node, where pod security forbids that
//! they do it themselves.
//!
//! A pod is there before its redirect, so a container of Aegis' own waits in it
//! ([`crate::inject::AWAIT`]) and nothing of the author's starts before. The agent therefore needs no
//! hook into the network's set-up: while it is away pods wait, and whoever slipped past an agent that
//! was down is redirected when it is back.
//!
//! It enters no network but that of a pod that waits for it, and never its own, which is the node's.

mod netns;

use std::{net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use anyhow::Context as _;
use axum::{Router, routing::get};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};
use kube::{
    Api, Client, Resource as _,
    runtime::{
        Controller,
        controller::Action,
        events::{Event, EventType, Recorder, Reporter},
        watcher,
    },
};
use prometheus::{IntCounterVec, Opts, Registry};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::{
    inject::{AWAIT, InjectConfig, redirect_rules},
    metrics::text_of,
};

/// How soon a pod whose containers are not there yet, or that could not be redirected, is looked at
/// again.
const AGAIN: Duration = Duration::from_millis(500);
const AFTER_FAILURE: Duration = Duration::from_secs(5);

/// What the node agent is told.
#[derive(Clone, Debug, clap::Parser)]
#[command(name = "aegis-node", version, about = "Redirects the traffic of injected pods on a node")]
pub struct Options {
    /// The node that it runs on
    #[arg(long, env = "NODE_NAME")]
    pub node: String,
    /// The file that says how pods are injected
    #[arg(long, default_value = "/etc/aegis/inject.json")]
    pub inject_config: PathBuf,
    /// Where health and metrics are served
    #[arg(long, default_value = "0.0.0.0:9492")]
    pub admin: SocketAddr,
    /// Where the node's processes are seen
    #[arg(long, default_value = "/proc")]
    pub proc: PathBuf,
}

/// Why a pod is not redirected.
#[derive(Debug, thiserror::Error)]
enum NodeError {
    #[error("{0}")]
    Pod(#[from] crate::inject::Refusal),
    #[error("the pod cannot be read: {0}")]
    Shape(#[from] serde_json::Error),
    #[error("{0}")]
    Namespace(#[from] netns::NetnsError),
    #[error("a task of the node agent ended unexpectedly: {0}")]
    Task(#[from] tokio::task::JoinError),
}

struct Node {
    config: InjectConfig,
    proc: PathBuf,
    recorder: Recorder,
    redirected: IntCounterVec,
}

/// Redirects until `stop`.
///
/// # Errors
/// When the configuration cannot be read or a port is taken.
pub async fn run(options: Options, client: Client, stop: CancellationToken) -> anyhow::Result<()> {
    let path = options.inject_config.display();
    let text = std::fs::read(&options.inject_config)
        .with_context(|| format!("cannot read how pods are injected from {path}"))?;
    let config: InjectConfig = serde_json::from_slice(&text)
        .with_context(|| format!("{path} does not say how pods are injected"))?;
    anyhow::ensure!(
        netns::is_the_nodes(&options.proc),
        "the node agent is not in the node's network, so it could not tell that from a pod's; run it with hostNetwork"
    );
    let registry = Registry::new();
    let counted = Opts::new("aegis_node_redirects_total", "Pods redirected, by result");
    let redirected = IntCounterVec::new(counted, &["result"])?;
    registry.register(Box::new(redirected.clone()))?;
    let admin = TcpListener::bind(options.admin).await.with_context(|| {
        format!(
            "cannot listen on {} for health and metrics; choose another with --admin",
            options.admin
        )
    })?;
    let router = Router::new()
        .route("/healthz", get(|| async { "ok" }))
        .route("/metrics", get(move || async move { text_of(&registry) }));
    let admin = axum::serve(admin, router).with_graceful_shutdown(stop.clone().cancelled_owned());
    tracing::info!(
        version = env!("CARGO_PKG_VERSION"),
        node = options.node,
        "the node agent is up"
    );

    let reporter =
        Reporter { controller: "aegis-node".into(), instance: Some(options.node.clone()) };
    let recorder = Recorder::new(client.clone(), reporter);
    let node = Arc::new(Node { config, proc: options.proc, recorder, redirected });
    let own = watcher::Config::default().fields(&format!("spec.nodeName={}", options.node));
    let pods = Controller::new(Api::<Pod>::all(client), own)
        .graceful_shutdown_on(stop.cancelled_owned())
        .run(reconcile, failed, node)
        .for_each(|_| std::future::ready(()));
    tokio::select! {
        ended = admin => ended.context("the admin port has failed"),
        () = pods => Ok(()),
    }
}

/// Whether the pod was injected so that its node redirects, and still runs or will.
fn is_ours(pod: &Pod) -> bool {
    let inits = pod.spec.as_ref().and_then(|spec| spec.init_containers.as_ref());
    let injected = inits.is_some_and(|inits| inits.iter().any(|one| one.name == AWAIT));
    let status = pod.status.as_ref();
    let ended = status.and_then(|status| status.phase.as_deref());
    injected && !matches!(ended, Some("Succeeded" | "Failed"))
}

/// Whether the pod's own container has seen that it is redirected. That is looked at again all the same: it
/// may have been told so by somebody else.
fn has_seen_it(pod: &Pod) -> bool {
    let told = pod.status.as_ref().and_then(|status| status.init_container_statuses.as_ref());
    told.is_some_and(|told| told.iter().any(|one| one.name == AWAIT && has_ended_well(one)))
}

fn has_ended_well(container: &ContainerStatus) -> bool {
    let ended = container.state.as_ref().and_then(|state| state.terminated.as_ref());
    ended.is_some_and(|ended| ended.exit_code == 0)
}

async fn reconcile(pod: Arc<Pod>, node: Arc<Node>) -> Result<Action, NodeError> {
    if !is_ours(&pod) {
        return Ok(Action::await_change());
    }
    let rules = redirect_rules(&serde_json::to_value(&*pod)?, &node.config)?;
    let (proc, uid) = (node.proc.clone(), pod.metadata.uid.clone().unwrap_or_default());
    // Looking through the node's processes and running `nft` take their time.
    let found = tokio::task::spawn_blocking(move || match netns::of_pod(&proc, &uid)? {
        Some(namespace) => namespace.redirect(&rules).map(Some),
        None => Ok(None),
    });
    match found.await?? {
        None if has_seen_it(&pod) => Ok(Action::await_change()),
        None => Ok(Action::requeue(AGAIN)),
        Some(anew) => {
            if anew {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
                tracing::info!(namespace, pod = name, "redirected");
                node.redirected.with_label_values(&["done"]).inc();
            }
            Ok(Action::await_change())
        }
    }
}

fn failed(pod: Arc<Pod>, error: &NodeError, node: Arc<Node>) -> Action {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
    tracing::error!(namespace, pod = name, %error, "a pod could not be redirected; it waits");
    node.redirected.with_label_values(&["failed"]).inc();
    let event = Event {
        type_: EventType::Warning,
        reason: "NotRedirected".into(),
        note: Some(format!(
            "its traffic could not be redirected into its sidecar, so it does not start: {error}"
        )),
        action: "Redirect".into(),
        secondary: None,
    };
    let about = pod.object_ref(&());
    tokio::spawn(async move {
        if let Err(error) = node.recorder.publish(&event, &about).await {
            tracing::warn!(%error, "an Event could not be told");
        }
    });
    Action::requeue(AFTER_FAILURE)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn pod(inits: &[&str], status: Value) -> Pod {
        let inits: Vec<Value> = inits.iter().map(|name| json!({ "name": name })).collect();
        serde_json::from_value(json!({
            "metadata": { "name": "a" },
            "spec": { "containers": [{ "name": "app" }], "initContainers": inits },
            "status": status,
        }))
        .unwrap()
    }

    fn ended(code: i32) -> Value {
        json!({ "phase": "Pending", "initContainerStatuses": [{
            "name": AWAIT, "image": "i", "imageID": "i", "ready": code == 0, "restartCount": 0,
            "state": { "terminated": { "exitCode": code } },
        }] })
    }

    #[test]
    fn who_is_redirected_is_who_was_injected_so_and_runs() {
        let injected = ["aegis-proxy", AWAIT];
        assert!(is_ours(&pod(&injected, json!({ "phase": "Pending" }))));
        assert!(is_ours(&pod(&injected, ended(1))), "it gave up, and is started again");
        assert!(is_ours(&pod(&injected, ended(0))), "somebody else may have told it so");
        assert!(!is_ours(&pod(&injected, json!({ "phase": "Failed" }))));
        assert!(!is_ours(&pod(&["aegis-proxy", "aegis-redirect"], json!({ "phase": "Pending" }))));
        assert!(!is_ours(&pod(&[], json!({ "phase": "Running" }))));
        assert!(has_seen_it(&pod(&injected, ended(0))) && !has_seen_it(&pod(&injected, ended(1))));
    }
}
