//! Keeps the webhooks' certificate: the leader makes it and has it trusted, every replica serves it.
//!
//! The Secret is the truth that replicas share. What the webhook configurations trust is set again
//! whenever somebody, such as an upgrade of the chart, has set it to something else.

use std::{collections::BTreeMap, time::Duration};

use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::{
    ByteString,
    api::{
        admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration},
        core::v1::Secret,
    },
};
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
    runtime::{WatchStreamExt as _, watcher},
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    certificate::{CertificateError, Held, Pair, step},
    clock,
    status::FIELD_MANAGER,
    webhook::Served,
};

/// The Secret with the certificate.
pub const SECRET: &str = "aegis-webhook-tls";
/// The two webhook configurations, as the chart names them.
pub const CONFIGURATION: &str = "aegis-webhooks";
/// The longest wait between looks; clocks are not trusted to sleep for weeks.
const LONGEST_WAIT: Duration = Duration::from_secs(6 * 3600);
/// What ends a certificate in PEM.
const END: &str = "-----END CERTIFICATE-----\n";
/// The wait after an error.
const RETRY: Duration = Duration::from_secs(5);

/// Why the certificate could not be kept.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// It could not be made.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// The API server did not do what was asked.
    #[error("the API server: {0}")]
    Kubernetes(#[from] Box<kube::Error>),
}

/// Keeps the certificate of one Service.
#[derive(Clone)]
pub struct Keeper {
    client: Client,
    namespace: String,
    names: Vec<String>,
}

impl std::fmt::Debug for Keeper {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keeper").field("names", &self.names).finish_non_exhaustive()
    }
}

impl Keeper {
    /// For the webhooks behind a Service.
    #[must_use]
    pub fn new(client: Client, namespace: &str, service: &str) -> Self {
        let names = vec![format!("{service}.{namespace}.svc")];
        Self { client, namespace: namespace.to_owned(), names }
    }

    fn secrets(&self) -> Api<Secret> {
        Api::namespaced(self.client.clone(), &self.namespace)
    }

    /// The leader's part: makes, announces and renews, until stopped.
    pub async fn keep(self, stop: CancellationToken) {
        let named = watcher::Config::default().fields(&format!("metadata.name={CONFIGURATION}"));
        let mutating: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        let validating: Api<ValidatingWebhookConfiguration> = Api::all(self.client.clone());
        let changes = futures::stream::select(
            watcher(mutating, named.clone()).default_backoff().touched_objects().map_ok(drop),
            watcher(validating, named).default_backoff().touched_objects().map_ok(drop),
        );
        let mut changes = std::pin::pin!(changes);
        loop {
            let wait = match self.bring_up_to_date().await {
                Ok(wait) => wait.min(LONGEST_WAIT),
                Err(error) => {
                    tracing::warn!(%error, "the webhooks' certificate could not be kept; trying again");
                    RETRY
                }
            };
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
                _ = changes.next() => {}
            }
        }
    }

    /// Brings Secret and configurations up to date; returns when to look again.
    async fn bring_up_to_date(&self) -> Result<Duration, KeeperError> {
        loop {
            let secret = self.secrets().get_opt(SECRET).await.map_err(Box::new)?;
            let held = secret.as_ref().and_then(read);
            let next = step(held.as_ref(), &self.names, clock::now())?;
            if held.as_ref() != Some(&next.held) {
                self.store(&next.held).await?;
                tracing::info!(
                    announced_first = next.announce_first,
                    "the webhooks' certificate was renewed"
                );
            }
            self.announce(&next.held.bundle_pem()).await?;
            if !next.announce_first {
                return Ok(next.again_at.since(clock::now()));
            }
        }
    }

    async fn store(&self, held: &Held) -> Result<(), KeeperError> {
        let secret = json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": { "name": SECRET },
            "type": "Opaque", "data": data(held),
        });
        let params = PatchParams::apply(FIELD_MANAGER).force();
        self.secrets().patch(SECRET, &params, &Patch::Apply(secret)).await.map_err(Box::new)?;
        Ok(())
    }

    /// Has the bundle trusted in both configurations, where they are there.
    async fn announce(&self, bundle: &str) -> Result<(), KeeperError> {
        let mutating: Api<MutatingWebhookConfiguration> = Api::all(self.client.clone());
        if let Some(found) = mutating.get_opt(CONFIGURATION).await.map_err(Box::new)? {
            let hooks = found.webhooks.unwrap_or_default();
            let stale =
                hooks.iter().map(|hook| (&hook.name, hook.client_config.ca_bundle.as_ref()));
            if let Some(patch) = trusting(stale, "MutatingWebhookConfiguration", bundle) {
                let params = PatchParams::apply(FIELD_MANAGER).force();
                mutating
                    .patch(CONFIGURATION, &params, &Patch::Apply(patch))
                    .await
                    .map_err(Box::new)?;
            }
        }
        let validating: Api<ValidatingWebhookConfiguration> = Api::all(self.client.clone());
        if let Some(found) = validating.get_opt(CONFIGURATION).await.map_err(Box::new)? {
            let hooks = found.webhooks.unwrap_or_default();
            let stale =
                hooks.iter().map(|hook| (&hook.name, hook.client_config.ca_bundle.as_ref()));
            if let Some(patch) = trusting(stale, "ValidatingWebhookConfiguration", bundle) {
                let params = PatchParams::apply(FIELD_MANAGER).force();
                validating
                    .patch(CONFIGURATION, &params, &Patch::Apply(patch))
                    .await
                    .map_err(Box::new)?;
            }
        }
        Ok(())
    }

    /// Every replica's part: serves what the Secret holds, as soon as it holds it.
    pub async fn follow(self, served: Served, stop: CancellationToken) {
        let named = watcher::Config::default().fields(&format!("metadata.name={SECRET}"));
        let stream = watcher(self.secrets(), named).default_backoff().applied_objects();
        let mut stream = std::pin::pin!(stream);
        loop {
            let next = tokio::select! {
                () = stop.cancelled() => return,
                next = stream.next() => next,
            };
            match next {
                Some(Ok(secret)) => match read(&secret).map(|held| held.leaf.certified()) {
                    Some(Ok(certified)) => served.set(certified),
                    Some(Err(error)) => tracing::error!(%error, "the last good certificate stays"),
                    None => tracing::error!(
                        "the Secret {SECRET} holds no certificate; the last good one stays"
                    ),
                },
                Some(Err(error)) => tracing::warn!(%error, "the watch of {SECRET} was interrupted"),
                None => return,
            }
        }
    }
}

/// A patch that has the bundle trusted; `None` where it is already.
fn trusting<'a>(
    hooks: impl Iterator<Item = (&'a String, Option<&'a ByteString>)>,
    kind: &str,
    bundle: &str,
) -> Option<Value> {
    let ca_bundle = ByteString(bundle.as_bytes().to_vec());
    let mut stale = false;
    let webhooks: Vec<Value> = hooks
        .map(|(name, trusted)| {
            stale |= trusted != Some(&ca_bundle);
            json!({ "name": name, "clientConfig": { "caBundle": ca_bundle } })
        })
        .collect();
    stale.then(|| {
        json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind,
            "metadata": { "name": CONFIGURATION }, "webhooks": webhooks,
        })
    })
}

fn data(held: &Held) -> BTreeMap<String, ByteString> {
    let texts = [
        ("ca.crt", held.ca.certificate.clone()),
        ("ca.key", held.ca.key.clone()),
        ("bundle.crt", held.bundle_pem()),
        ("tls.crt", held.leaf.certificate.clone()),
        ("tls.key", held.leaf.key.clone()),
    ];
    texts.into_iter().map(|(name, text)| (name.to_owned(), ByteString(text.into_bytes()))).collect()
}

fn read(secret: &Secret) -> Option<Held> {
    let data = secret.data.as_ref()?;
    let text = |name: &str| String::from_utf8(data.get(name)?.0.clone()).ok();
    let bundle = text("bundle.crt")?;
    let normal = bundle.replace("\r\n", "\n");
    Some(Held {
        ca: Pair { certificate: text("ca.crt")?, key: text("ca.key")? },
        bundle: normal
            .split_inclusive(END)
            .filter(|one| one.ends_with(END))
            .map(str::to_owned)
            .collect(),
        leaf: Pair { certificate: text("tls.crt")?, key: text("tls.key")? },
    })
}

#[cfg(test)]
mod tests {
    use aegis_core::Timestamp;

    use super::*;

    /// Otherwise the leader would write it again and again.
    #[test]
    fn what_is_written_is_what_is_read() {
        let now = Timestamp::from_secs(1_800_000_000);
        let mut held = step(None, &["x.y.svc".into()], now).unwrap().held;
        held.bundle.push(step(None, &["x.y.svc".into()], now).unwrap().held.ca.certificate);
        let secret = Secret { data: Some(data(&held)), ..Secret::default() };
        assert_eq!(read(&secret), Some(held));
        assert_eq!(read(&Secret::default()), None);
    }

    #[test]
    fn what_is_trusted_already_is_not_written() {
        let name = "pods.aegis.dev".to_owned();
        let trusted = ByteString(b"new".to_vec());
        assert!(trusting([(&name, Some(&trusted))].into_iter(), "K", "new").is_none());
        let patch = trusting([(&name, None)].into_iter(), "K", "new").unwrap();
        assert_eq!(patch["webhooks"][0]["clientConfig"]["caBundle"], "bmV3");
    }
}
