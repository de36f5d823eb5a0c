//! What a replica hears from the API server: changes that another replica made, and pods that go.

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{
    Api, Client, ResourceExt as _,
    core::PartialObjectMeta,
    runtime::{WatchStreamExt as _, watcher},
};
use tokio_util::sync::CancellationToken;

use super::{SecretStore, TokenAttestor, rotation::Rotation, store::ROTATE};
use crate::IdentityManager;

/// Takes over what other replicas write into the Secret `name`, and rotates what is asked for there,
/// until `stop`.
pub async fn keep_reloading(
    client: Client,
    (namespace, name): (&str, &str),
    store: SecretStore,
    manager: IdentityManager,
    rotation: Rotation,
    stop: CancellationToken,
) {
    let api: Api<Secret> = Api::namespaced(client, namespace);
    let only = watcher::Config::default().fields(&format!("metadata.name={name}"));
    let events = watcher(api, only).default_backoff().take_until(stop.clone().cancelled_owned());
    tokio::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Apply(secret) | watcher::Event::InitApply(secret)) => {
                if secret.annotations().contains_key(ROTATE) {
                    rotation.answer(&manager, &secret, &stop).await;
                }
                // Its own writes come back too.
                if secret.resource_version() != store.version() {
                    reload(manager.clone()).await;
                }
            }
            Ok(watcher::Event::Delete(_)) => {
                tracing::error!(
                    "the Secret {name} was deleted; this replica goes on with what it has, and a new start would make a CA that nobody trusts: restore it from a backup"
                );
            }
            Ok(watcher::Event::Init | watcher::Event::InitDone) => {}
            Err(error) => tracing::warn!(%error, "the watch of the Secret {name} was interrupted"),
        }
    }
}

async fn reload(manager: IdentityManager) {
    // The store waits for the API server.
    match tokio::task::spawn_blocking(move || manager.reload()).await {
        Ok(Ok(())) => tracing::info!("took over what another replica has changed"),
        Ok(Err(error)) => {
            tracing::error!(%error, "what another replica has changed cannot be taken over");
        }
        Err(error) => tracing::error!(%error, "taking over was interrupted"),
    }
}

/// Has `attestor` forget pods that are gone, until `stop`. A pod whose end is missed is forgotten by
/// itself, a little later.
pub async fn keep_forgetting(
    client: Client,
    attestor: std::sync::Arc<TokenAttestor>,
    stop: CancellationToken,
) {
    let api: Api<PartialObjectMeta<Pod>> = Api::all(client);
    let events = watcher(api, watcher::Config::default()).default_backoff();
    let events = events.take_until(stop.cancelled_owned());
    tokio::pin!(events);
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Delete(pod)) => {
                attestor.forget(pod.metadata.uid.as_deref().unwrap_or_default());
            }
            Ok(_) => {}
            Err(error) => tracing::warn!(%error, "the watch of pods was interrupted"),
        }
    }
}
