//! The trust bundle as a ConfigMap, for whoever has no SVID yet and must know the CA.
//!
//! The Secret with the CA's state is the truth: before anything else is overwritten, it is read
//! again, so that a replica that has not heard of a change cannot take it back.

use std::{collections::BTreeMap, time::Duration};

use aegis_identity::Bundle;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::{
    Api, Client,
    api::{Patch, PatchParams},
};
use serde_json::json;
use tokio_util::sync::CancellationToken;

use crate::{CaError, IdentityManager};

/// The ConfigMap's name.
pub const NAME: &str = "aegis-trust-bundle";
/// Who writes it.
const MANAGER: &str = "aegis-ca";
/// How often it is looked at, should somebody have changed or deleted it.
const EVERY: Duration = Duration::from_secs(30);
/// The wait after it could not be written.
const RETRY: Duration = Duration::from_secs(1);
/// How many characters of base64 a line of PEM has.
const LINE: usize = 64;

/// Why it is not written.
#[derive(Debug, thiserror::Error)]
enum PublishError {
    #[error(transparent)]
    Bundle(#[from] aegis_identity::BundleError),
    #[error("the API server does not take the ConfigMap {NAME}: {0}")]
    Cluster(#[from] kube::Error),
    #[error(transparent)]
    State(#[from] CaError),
    #[error("reading the CA's state was interrupted: {0}")]
    Interrupted(#[from] tokio::task::JoinError),
}

/// The certificates in PEM.
#[must_use]
pub fn roots_pem(bundle: &Bundle) -> String {
    let mut pem = String::new();
    for certificate in bundle.certificates() {
        pem.push_str("-----BEGIN CERTIFICATE-----\n");
        let text = BASE64_STANDARD.encode(certificate);
        let mut rest = text.as_str();
        while let Some((line, after)) = rest.split_at_checked(LINE.min(rest.len())) {
            if line.is_empty() {
                break;
            }
            pem.push_str(line);
            pem.push('\n');
            rest = after;
        }
        pem.push_str("-----END CERTIFICATE-----\n");
    }
    pem
}

/// What the ConfigMap holds.
fn data(bundle: &Bundle) -> Result<BTreeMap<String, String>, PublishError> {
    let document = String::from_utf8_lossy(&bundle.to_jwks()?).into_owned();
    Ok(BTreeMap::from([
        ("roots.pem".to_owned(), roots_pem(bundle)),
        ("bundle.json".to_owned(), document),
    ]))
}

/// Keeps the ConfigMap as the CA's bundle is, until `stop`.
pub async fn keep_published(
    client: Client,
    namespace: &str,
    manager: IdentityManager,
    stop: CancellationToken,
) {
    let api: Api<ConfigMap> = Api::namespaced(client, namespace);
    let mut issuing = manager.watch_issuing();
    loop {
        // Marked before it is read: a change in between is written again.
        issuing.mark_unchanged();
        let wait = match publish(&api, &manager).await {
            Ok(true) => {
                tracing::info!(
                    sequence = manager.bundle().sequence(),
                    "the trust bundle is in the ConfigMap {NAME}"
                );
                EVERY
            }
            Ok(false) => EVERY,
            Err(error) => {
                tracing::warn!(%error, "the trust bundle is not published; it is tried again");
                RETRY
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
            changed = issuing.changed() => if changed.is_err() { return },
        }
    }
}

/// Writes it where it differs. Returns whether it did.
async fn publish(api: &Api<ConfigMap>, manager: &IdentityManager) -> Result<bool, PublishError> {
    let there = api.get_opt(NAME).await?.and_then(|map| map.data).unwrap_or_default();
    let differs = |wanted: &BTreeMap<String, String>| {
        wanted.iter().any(|(key, value)| there.get(key) != Some(value))
    };
    if !differs(&data(&manager.bundle())?) {
        return Ok(false);
    }
    let reading = manager.clone();
    tokio::task::spawn_blocking(move || reading.reload()).await??;
    let data = data(&manager.bundle())?;
    if !differs(&data) {
        return Ok(false);
    }
    let map = json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": { "name": NAME, "labels": {
            "app.kubernetes.io/name": "aegis-ca", "app.kubernetes.io/part-of": "aegis",
        } },
        "data": data,
    });
    api.patch(NAME, &PatchParams::apply(MANAGER).force(), &Patch::Apply(map)).await?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustls::pki_types::{CertificateDer, pem::PemObject as _};

    use super::*;

    #[test]
    fn pem_is_read_back() {
        let key = rcgen::KeyPair::generate().unwrap();
        let mut certificates: Vec<CertificateDer<'static>> = Vec::new();
        for name in ["a", "a-longer-name-so-that-lines-end-elsewhere"] {
            let mut params = rcgen::CertificateParams::new(vec![name.to_owned()]).unwrap();
            params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
            params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
            certificates.push(params.self_signed(&key).unwrap().der().clone());
        }
        let domain = "acme.example".parse().unwrap();
        let hint = Duration::from_secs(300);
        let bundle = Bundle::new(domain, certificates.clone(), vec![], 1, hint).unwrap();
        let pem = roots_pem(&bundle);
        assert!(pem.lines().all(|line| line.len() <= LINE), "{pem}");
        let read: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
        assert_eq!(read.unwrap(), certificates);
        assert_eq!(data(&bundle).unwrap().keys().collect::<Vec<_>>(), ["bundle.json", "roots.pem"]);
    }
}
