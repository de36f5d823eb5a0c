//! The Workload API of a pod, as the `spiffe` crate sees it.

use std::{os::unix::fs::PermissionsExt as _, sync::Arc};

use aegis_identity::{Revocations, SvidSource, system_clock, verify_chain};
use aegis_mesh::{Authority, WorkloadSocket, workload::Application};
use futures::StreamExt as _;
use rustls::pki_types::CertificateDer;
use spiffe::WorkloadApiClient;

use crate::{
    authority::{CA, World, source, trust, world},
    fixture::{AGENT, PATIENCE, Root, until},
};

/// A pod whose sidecar serves its application.
struct Pod {
    world: World,
    authority: Authority,
    endpoint: String,
    _folder: tempfile::TempDir,
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.unwrap()
}

impl Pod {
    /// Without an SVID yet, in a folder that looks as a pod's volume does.
    async fn new() -> Self {
        let world = world(CA).await;
        let authority = Authority::new(world.config.clone()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let path = folder.path().join("workload.sock");
        assert!(WorkloadSocket::bind(&path).await.is_err(), "elsewhere, others could replace it");
        // What a sidecar that was killed has left behind.
        drop(tokio::net::UnixListener::bind(&path).unwrap());
        let socket = WorkloadSocket::bind_within(path).await.unwrap();
        let endpoint = socket.endpoint();
        let application =
            Application::new(authority.clone(), AGENT.parse().unwrap(), system_clock());
        tokio::spawn(socket.serve(application, world.stop.clone()));
        Self { world, authority, endpoint, _folder: folder }
    }

    /// With an SVID, and the CA followed.
    async fn joined() -> (Self, Arc<SvidSource>) {
        let pod = Self::new().await;
        let source = Arc::new(source(&pod.authority).await.unwrap());
        let (authority, followed) = (pod.authority.clone(), Arc::clone(&source));
        let stop = pod.world.stop.clone();
        tokio::spawn(async move { authority.follow(&followed, stop).await });
        until(&mut pod.authority.following(), |following| *following).await;
        (pod, source)
    }

    async fn client(&self) -> WorkloadApiClient {
        soon(WorkloadApiClient::connect_to(&self.endpoint)).await.unwrap()
    }
}

/// Whose it is, if `root` vouches for it.
fn vouched(svid: &spiffe::X509Svid, root: &Root) -> Option<String> {
    let chain: Vec<CertificateDer<'_>> =
        svid.cert_chain().iter().map(|one| CertificateDer::from(one.as_bytes())).collect();
    let nobody = Revocations::default();
    let peer = verify_chain(&chain, &root.bundle, &nobody, system_clock()()).ok()?;
    Some(peer.id.to_string())
}

#[tokio::test]
async fn the_application_gets_its_own_svids_and_no_others() {
    let (pod, source) = Pod::joined().await;
    let (client, own) = (pod.client().await, format!("{AGENT}/workload"));
    let context = soon(client.fetch_x509_context()).await.unwrap();
    let svid = context.default_svid().unwrap();
    assert_eq!(vouched(svid, &pod.world.root), Some(own.clone()));
    let sidecars = source.current().unwrap().svid.chain_der();
    assert_ne!(svid.cert_chain()[0].as_bytes(), sidecars, "the sidecar keeps its own");

    let jwt = soon(client.fetch_jwt_svid(["ledger"], None)).await.unwrap();
    assert_eq!(jwt.spiffe_id().to_string(), own);
    soon(client.validate_jwt_token("ledger", jwt.token())).await.unwrap();
    assert!(soon(client.validate_jwt_token("another", jwt.token())).await.is_err());
    let again = soon(client.fetch_jwt_svid(["ledger"], None)).await.unwrap();
    assert_eq!(again.token(), jwt.token(), "the CA is not asked again");
    let agent: spiffe::SpiffeId = AGENT.parse().unwrap();
    assert!(soon(client.fetch_jwt_svid(["ledger"], Some(&agent))).await.is_err());
    assert!(soon(client.fetch_jwt_svid(Vec::<String>::new(), None)).await.is_err());
    soon(client.fetch_jwt_bundles()).await.unwrap();
}

#[tokio::test]
async fn an_application_does_not_use_up_what_the_pod_may_ask() {
    let (pod, _source) = Pod::joined().await;
    let client = pod.client().await;
    let mut told = Vec::new();
    for number in 0..20 {
        told.push(soon(client.fetch_jwt_svid([format!("audience-{number}")], None)).await);
    }
    let refused = told.iter().filter_map(|one| one.as_ref().err());
    let refused: Vec<_> = refused.map(|error| format!("{error:?}")).collect();
    assert!(told[0].is_ok() && refused.len() > 5, "{refused:?}");
    assert!(refused.iter().all(|error| error.contains("ResourceExhausted")), "{refused:?}");
}

#[tokio::test]
async fn a_stream_follows_renewal_and_ends_with_a_revocation() {
    let (pod, _source) = Pod::joined().await;
    let client = pod.client().await;
    let mut contexts = soon(client.stream_x509_contexts()).await.unwrap();
    soon(contexts.next()).await.unwrap().unwrap();
    let next = Arc::new(Root::new(2));
    *pod.world.ca.root.lock() = Arc::clone(&next);
    pod.world.ca.trust.send_replace(trust(&next.bundle, &[]));
    let mut last = None;
    while last.is_none() {
        let context = soon(contexts.next()).await.unwrap().unwrap();
        last = vouched(context.default_svid().unwrap(), &next);
    }
    assert_eq!(last, Some(format!("{AGENT}/workload")));

    pod.world.ca.trust.send_replace(trust(&next.bundle, &[AGENT]));
    let end = soon(async {
        loop {
            match contexts.next().await {
                Some(Ok(_)) => {}
                end => return end.is_none_or(|one| one.is_err()),
            }
        }
    });
    assert!(end.await);
    assert!(soon(client.fetch_x509_svid()).await.is_err());
    assert!(soon(client.fetch_jwt_svid(["ledger"], None)).await.is_err());
    assert!(soon(client.fetch_jwt_bundles()).await.is_err());
}

#[tokio::test]
async fn before_there_is_an_svid_nothing_is_given_out() {
    let pod = Pod::new().await;
    let refused = soon(pod.client().await.fetch_x509_svid()).await.unwrap_err();
    assert!(format!("{refused:?}").contains("Unavailable"), "{refused:?}");
}
