//! The CA's roots, as its ConfigMap holds them.
//!
//! What cannot be read, and a ConfigMap that goes, change nothing: the last good roots stay.

use std::sync::Arc;

use aegis_core::TrustDomain;
use aegis_identity::Bundle;
use aegis_mesh::{AuthorityError, authority::first_roots};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    runtime::{WatchStreamExt as _, watcher},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::metrics::Metrics;

/// The ConfigMap that the CA writes.
pub const CONFIG_MAP: &str = "aegis-trust-bundle";
/// The member with the certificates.
pub const KEY: &str = "roots.pem";
/// The most that is told to a sidecar: a process takes 128 KiB for one variable of its environment.
const MAX_BYTES: usize = 64 << 10;

/// Whom to believe at first.
#[derive(Debug)]
pub struct Roots {
    /// The certificates as they are told to sidecars, in PEM.
    pub pem: Box<str>,
    /// The same, read.
    pub bundle: Bundle,
}

/// Why there are no roots in the ConfigMap.
#[derive(Debug, thiserror::Error)]
pub enum RootsError {
    /// The member is missing.
    #[error("the ConfigMap {CONFIG_MAP} has no `{KEY}`; the CA writes it, so look at the CA")]
    Missing,
    /// There is too much of it.
    #[error(
        "`{KEY}` in the ConfigMap {CONFIG_MAP} is {0} bytes, and a sidecar takes at most {MAX_BYTES}"
    )]
    TooLarge(usize),
    /// It holds something else.
    #[error("`{KEY}` in the ConfigMap {CONFIG_MAP} cannot be used: {0}")]
    Unusable(#[from] AuthorityError),
}

impl Roots {
    /// Reads them.
    ///
    /// # Errors
    /// When there are none, or they are no certificates.
    pub fn read(config_map: &ConfigMap, trust_domain: &TrustDomain) -> Result<Self, RootsError> {
        let text = config_map.data.as_ref().and_then(|data| data.get(KEY));
        let text = text.ok_or(RootsError::Missing)?;
        if text.len() > MAX_BYTES {
            return Err(RootsError::TooLarge(text.len()));
        }
        let bundle = first_roots(trust_domain, text)?;
        Ok(Self { pem: text.as_str().into(), bundle })
    }
}

/// Follows the ConfigMap in the operator's own namespace until `stop`.
pub async fn follow(
    client: Client,
    namespace: &str,
    trust_domain: TrustDomain,
    known: watch::Sender<Option<Arc<Roots>>>,
    metrics: Metrics,
    stop: CancellationToken,
) {
    let api: Api<ConfigMap> = Api::namespaced(client, namespace);
    let named = watcher::Config::default().fields(&format!("metadata.name={CONFIG_MAP}"));
    let mut events = std::pin::pin!(watcher(api, named).default_backoff());
    let has = metrics.mesh.with_label_values(&["roots"]);
    has.set(0);
    loop {
        let event = tokio::select! {
            () = stop.cancelled() => return,
            event = events.next() => event,
        };
        match event {
            Some(Ok(watcher::Event::Apply(found) | watcher::Event::InitApply(found))) => {
                match Roots::read(&found, &trust_domain) {
                    Ok(roots) => take(&known, roots),
                    Err(error) => tracing::error!(%error, "the last good roots of the CA stay"),
                }
            }
            Some(Ok(watcher::Event::InitDone)) if known.borrow().is_none() => tracing::warn!(
                "there is no ConfigMap {CONFIG_MAP} with the CA's roots yet; until there is, no pod is injected and sidecars are told nothing"
            ),
            Some(Ok(watcher::Event::Delete(_))) => tracing::warn!(
                "the ConfigMap {CONFIG_MAP} was deleted; the last good roots of the CA stay"
            ),
            Some(Ok(_)) => {}
            Some(Err(error)) => {
                tracing::warn!(%error, "the watch of {CONFIG_MAP} was interrupted");
            }
            None => return,
        }
        has.set(known.borrow().is_some().into());
    }
}

fn take(known: &watch::Sender<Option<Arc<Roots>>>, roots: Roots) {
    let new = known.send_if_modified(|known| {
        let new = known.as_ref().is_none_or(|known| known.pem != roots.pem);
        if new {
            *known = Some(Arc::new(roots));
        }
        new
    });
    if new {
        tracing::info!("the CA's roots are known; pods that start from now on are told these");
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(data: serde_json::Value) -> Result<Roots, RootsError> {
        let config_map = serde_json::from_value(json!({ "metadata": {}, "data": data })).unwrap();
        Roots::read(&config_map, &"acme.example".parse().unwrap())
    }

    #[test]
    fn roots_are_certificates_of_a_bounded_size() {
        let held = crate::certificate::step(None, &["x".into()], crate::clock::now()).unwrap().held;
        let pem = held.ca.certificate;
        let roots = read(json!({ KEY: pem })).unwrap();
        assert_eq!((&*roots.pem, roots.bundle.certificates().count()), (pem.as_str(), 1));
        assert!(matches!(read(json!({ "bundle.json": "{}" })), Err(RootsError::Missing)));
        assert!(matches!(read(json!({ KEY: "hello" })), Err(RootsError::Unusable(_))));
        let large = pem.repeat(MAX_BYTES / pem.len() + 1);
        assert!(matches!(read(json!({ KEY: large })), Err(RootsError::TooLarge(_))));
    }

    #[test]
    fn the_same_roots_again_are_no_news() {
        let made = || {
            crate::certificate::step(None, &["x".into()], crate::clock::now())
                .unwrap()
                .held
                .ca
                .certificate
        };
        let (one, other) = (made(), made());
        let (known, mut told) = watch::channel(None);
        for (pem, news) in [(&one, true), (&one, false), (&other, true)] {
            take(&known, read(json!({ KEY: pem })).unwrap());
            assert_eq!(told.has_changed().unwrap(), news);
            told.mark_unchanged();
        }
    }
}
