//! Whom a sidecar believes when it starts: what the CA said last, or what injection gave the pod.
//!
//! What injection gave is as old as the pod, and the CA may have rotated since. So what is believed
//! is kept beside the journal, where no other container of the pod can write. What cannot be read
//! there is passed over: then there is what injection gave.

use std::path::{Path, PathBuf};

use aegis_core::TrustDomain;
use aegis_identity::Bundle;
use aegis_mesh::{AuthorityError, authority::first_roots};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The file, in the sidecar's own folder.
const FILE: &str = "trust-bundle.json";

/// Whom to believe at first.
///
/// # Errors
/// When nothing was kept and what was given is no roots.
pub(super) fn first(
    folder: &Path,
    trust_domain: &TrustDomain,
    given: &str,
) -> Result<Bundle, AuthorityError> {
    let path = folder.join(FILE);
    match std::fs::read_to_string(&path) {
        Ok(kept) => match first_roots(trust_domain, &kept) {
            Ok(bundle) => return Ok(bundle),
            Err(error) => tracing::warn!(%error, "{} is passed over", path.display()),
        },
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
        Err(error) => tracing::warn!(%error, "{} is passed over", path.display()),
    }
    first_roots(trust_domain, given)
}

/// Keeps what is believed, until `stop`.
pub(super) async fn keep(
    folder: PathBuf,
    mut believed: watch::Receiver<Bundle>,
    stop: CancellationToken,
) {
    loop {
        let document = believed.borrow_and_update().to_jwks();
        let written = match document {
            Ok(document) => write(&folder, &document).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = written {
            tracing::warn!(error, "what is believed is not kept for a restart");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = believed.changed() => if changed.is_err() { return },
        }
    }
}

/// Whole or not at all.
async fn write(folder: &Path, document: &[u8]) -> std::io::Result<()> {
    let (path, new) = (folder.join(FILE), folder.join(format!("{FILE}.new")));
    tokio::fs::write(&new, document).await?;
    tokio::fs::rename(&new, &path).await
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn bundle(sequence: u64) -> (Bundle, String) {
        let mut params = rcgen::CertificateParams::default();
        params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
        let root = params.self_signed(&rcgen::KeyPair::generate().unwrap()).unwrap();
        let hint = Duration::from_secs(300);
        let certificates = vec![root.der().clone()];
        let bundle = Bundle::new(domain(), certificates, vec![], sequence, hint).unwrap();
        (bundle, root.pem())
    }

    fn domain() -> TrustDomain {
        "acme.example".parse().unwrap()
    }

    fn certificates(bundle: &Bundle) -> Vec<Vec<u8>> {
        bundle.certificates().map(|one| one.to_vec()).collect()
    }

    #[tokio::test]
    async fn a_restart_believes_what_the_ca_said_last() {
        let folder = tempfile::tempdir().unwrap();
        let ((old, pem), (new, _)) = (bundle(1), bundle(2));
        let first = || first(folder.path(), &domain(), &pem).unwrap();
        assert_eq!(certificates(&first()), certificates(&old));
        let (send, believed) = watch::channel(old);
        let stop = CancellationToken::new();
        let keeping = tokio::spawn(keep(folder.path().to_owned(), believed, stop.clone()));
        send.send_replace(new.clone());
        let kept = async {
            while certificates(&first()) != certificates(&new) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(60), kept).await.unwrap();
        stop.cancel();
        keeping.await.unwrap();
    }

    #[test]
    fn what_was_kept_and_is_nobody_is_passed_over() {
        let folder = tempfile::tempdir().unwrap();
        let (old, pem) = bundle(1);
        for kept in ["", "{}", "{\"keys\":[]}", "hello"] {
            std::fs::write(folder.path().join(FILE), kept).unwrap();
            let found = first(folder.path(), &domain(), &pem).unwrap();
            assert_eq!(certificates(&found), certificates(&old), "{kept}");
        }
        assert!(first(folder.path(), &domain(), "hello").is_err());
    }
}
