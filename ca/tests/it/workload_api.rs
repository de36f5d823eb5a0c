//! The Workload API as the `spiffe` crate sees it.

use std::{path::PathBuf, sync::atomic::Ordering, time::Duration};

use crate::fixture::{AGENT, agent, registration, soon, sponsor, start, this_process};
use aegis_ca::{IdentityEvent, Kind, Selector, Status, Subject};
use aegis_core::Digest;
use aegis_identity::Serial;
use futures::StreamExt as _;
use rustls::pki_types::CertificateDer;
use spiffe::{TrustDomain, WorkloadApiClient};

async fn client(endpoint: &str) -> WorkloadApiClient {
    soon(WorkloadApiClient::connect_to(endpoint)).await.unwrap()
}

fn chain(svid: &spiffe::X509Svid) -> Vec<CertificateDer<'_>> {
    svid.cert_chain().iter().map(|c| CertificateDer::from(c.as_bytes())).collect()
}

fn domain() -> TrustDomain {
    TrustDomain::new("acme.example").unwrap()
}

#[tokio::test]
async fn an_application_gets_its_own_x509_svid() {
    let ca = start().await;
    ca.manager.register(vec![registration(this_process())]).unwrap();
    let context = soon(client(&ca.endpoint).await.fetch_x509_context()).await.unwrap();
    let svid = context.default_svid().unwrap();
    assert_eq!(svid.spiffe_id().to_string(), format!("{AGENT}/workload"));
    assert!(context.bundle_set().get(&domain()).is_some());
    let peer = ca.manager.verify(&chain(svid)).unwrap();
    assert_eq!(peer.id.as_str(), format!("{AGENT}/workload"));
    let recorded = ca.log.events.lock().clone();
    assert!(
        matches!(recorded.as_slice(), [IdentityEvent::X509Issued { serial, .. }] if *serial == peer.serial),
        "{recorded:?}"
    );
    // A second request gets the same SVID: asking often signs nothing.
    let again = soon(client(&ca.endpoint).await.fetch_x509_svid()).await.unwrap();
    assert_eq!(ca.manager.verify(&chain(&again)).unwrap().serial, peer.serial);
}

#[tokio::test]
async fn an_application_gets_jwt_svids() {
    let ca = start().await;
    ca.manager.register(vec![registration(this_process())]).unwrap();
    let client = client(&ca.endpoint).await;
    let svid = soon(client.fetch_jwt_svid(["ledger"], None)).await.unwrap();
    assert_eq!(svid.spiffe_id().to_string(), format!("{AGENT}/workload"));
    soon(client.validate_jwt_token("ledger", svid.token())).await.unwrap();
    assert!(soon(client.validate_jwt_token("another", svid.token())).await.is_err());
    assert!(soon(client.fetch_jwt_svid(Vec::<String>::new(), None)).await.is_err());
    let bundles = soon(client.fetch_jwt_bundles()).await.unwrap();
    assert!(bundles.get(&domain()).is_some());
    // The agent's own identity is not for the application.
    let own = AGENT.parse::<spiffe::SpiffeId>().unwrap();
    assert!(soon(client.fetch_jwt_svid(["ledger"], Some(&own))).await.is_err());

    ca.manager.revoke(Subject::Id(AGENT.parse().unwrap()), "stolen").await.unwrap();
    assert!(ca.manager.verify_jwt(svid.token(), "ledger").is_err());
    assert!(soon(client.fetch_jwt_svid(["ledger"], None)).await.is_err());
}

#[tokio::test]
async fn a_watcher_sees_a_rotation_and_both_svids_stay_valid() {
    let ca = start().await;
    ca.manager.register(vec![registration(this_process())]).unwrap();
    let client = client(&ca.endpoint).await;
    let mut contexts = soon(client.stream_x509_contexts()).await.unwrap();
    let before = soon(contexts.next()).await.unwrap().unwrap();
    let old = chain(before.default_svid().unwrap());
    let old_serial = ca.manager.verify(&old).unwrap().serial;

    ca.manager.rotate(Kind::Root).unwrap();
    let after = soon(contexts.next()).await.unwrap().unwrap();
    let new = chain(after.default_svid().unwrap());
    assert_ne!(ca.manager.verify(&new).unwrap().serial, old_serial);
    assert!(ca.manager.verify(&old).is_ok(), "during the overlap");
    assert_eq!(after.bundle_set().get(&domain()).unwrap().authorities().len(), 2);

    let root = ca
        .manager
        .authorities()
        .into_iter()
        .find(|a| a.kind == Kind::Root && a.status == Status::Retired);
    let root = root.unwrap().id;
    ca.manager.taint(&root).unwrap();
    assert!(ca.manager.revoke_authority(&root, false).is_err(), "SVIDs under it may be in use");
    ca.manager.revoke_authority(&root, true).unwrap();
    assert!(ca.manager.verify(&old).is_err(), "the overlap is over");
    let last = loop {
        let context = soon(contexts.next()).await.unwrap().unwrap();
        if context.bundle_set().get(&domain()).unwrap().authorities().len() == 1 {
            break context;
        }
    };
    assert!(ca.manager.verify(&chain(last.default_svid().unwrap())).is_ok());
    let of_root = |event: &IdentityEvent| match event {
        IdentityEvent::AuthorityChanged { authority, status, .. } if *authority == root => {
            Some(*status)
        }
        _ => None,
    };
    let recorded: Vec<Option<Status>> = ca.log.events.lock().iter().filter_map(of_root).collect();
    assert_eq!(recorded, [Some(Status::Retired), Some(Status::Tainted), None]);
}

#[tokio::test]
async fn a_rotation_that_cannot_be_recorded_holds_in_force_and_issues_nothing() {
    let ca = start().await;
    ca.manager.register(vec![registration(this_process())]).unwrap();
    ca.log.broken.store(true, Ordering::SeqCst);
    ca.manager.rotate(Kind::Intermediate).unwrap();
    assert!(ca.manager.record_changes().await.is_err());
    assert!(ca.manager.issue(&agent(), &sponsor()).await.is_err());
    ca.log.broken.store(false, Ordering::SeqCst);
    ca.manager.issue(&agent(), &sponsor()).await.unwrap();
    let events = ca.log.events.lock();
    let issued = events.iter().position(|e| matches!(e, IdentityEvent::X509Issued { .. }));
    let changed: Vec<usize> = (0..events.len())
        .filter(|at| matches!(events[*at], IdentityEvent::AuthorityChanged { .. }))
        .collect();
    assert!(changed.len() >= 2 && changed.iter().all(|at| Some(*at) < issued), "{events:?}");
}

#[tokio::test]
async fn strangers_are_refused() {
    let ca = start().await;
    let client = client(&ca.endpoint).await;
    let denied = |error: String, code: &str| assert!(error.contains(code), "{error}");
    let refusal = soon(client.fetch_x509_svid()).await.unwrap_err();
    denied(format!("{refusal:?}"), "Unavailable");

    let mut twin = registration(this_process());
    twin.id = "spiffe://acme.example/ns/shop/sa/bot/agent/twin".parse().unwrap();
    let with = |extra: Selector| registration([this_process(), vec![extra]].concat());
    let hidden = PathBuf::from("/usr/bin/another-program");
    for (name, registrations) in [
        ("nobody is registered", vec![]),
        ("no selector", vec![registration(vec![])]),
        ("another program", vec![registration(vec![Selector::Path(hidden.clone())])]),
        ("another user", vec![with(Selector::Uid(4_000_000))]),
        ("another group", vec![with(Selector::Gid(4_000_000))]),
        ("another digest", vec![with(Selector::Sha256(Digest::of(b"another")))]),
        ("another launcher", vec![with(Selector::Launcher(hidden))]),
        ("two that fit equally", vec![registration(this_process()), twin]),
    ] {
        ca.manager.register(registrations).unwrap();
        for outcome in [
            soon(client.fetch_x509_svid()).await.map(|_| ()),
            soon(client.fetch_x509_bundles()).await.map(|_| ()),
            soon(client.fetch_jwt_svid(["ledger"], None)).await.map(|_| ()),
            soon(client.fetch_jwt_bundles()).await.map(|_| ()),
        ] {
            let error = format!("{:?}", outcome.expect_err(name));
            assert!(
                error.contains("PermissionDenied") || error.contains("NoIdentity"),
                "{name}: {error}"
            );
        }
    }
    assert!(ca.log.events.lock().is_empty(), "nothing was issued");
}

#[tokio::test]
async fn all_selectors_together_recognise_this_process() {
    let ca = start().await;
    let program = std::fs::read("/proc/self/exe").unwrap();
    let launcher = std::fs::read_link(format!("/proc/{}/exe", nix::unistd::getppid())).unwrap();
    let gid = nix::unistd::getgid().as_raw();
    let specific = [
        this_process(),
        vec![
            Selector::Gid(gid),
            Selector::Sha256(Digest::of(&program)),
            Selector::Launcher(launcher),
        ],
    ];
    let mut vague = registration(this_process());
    vague.id = "spiffe://acme.example/ns/shop/sa/bot/agent/vague".parse().unwrap();
    ca.manager.register(vec![vague, registration(specific.concat())]).unwrap();
    let svid = soon(client(&ca.endpoint).await.fetch_x509_svid()).await.unwrap();
    assert_eq!(svid.spiffe_id().to_string(), format!("{AGENT}/workload"), "the most specific wins");
}

#[tokio::test]
async fn a_stream_ends_when_its_agent_is_revoked_or_unregistered() {
    let ca = start().await;
    for revoke in [false, true] {
        ca.manager.register(vec![registration(this_process())]).unwrap();
        let client = client(&ca.endpoint).await;
        let mut contexts = soon(client.stream_x509_contexts()).await.unwrap();
        soon(contexts.next()).await.unwrap().unwrap();
        if revoke {
            ca.manager.revoke(Subject::Id(AGENT.parse().unwrap()), "stolen").await.unwrap();
        } else {
            ca.manager.register(vec![]).unwrap();
        }
        let end = soon(contexts.next()).await;
        assert!(!matches!(end, Some(Ok(_))), "{end:?}");
    }
}

#[tokio::test]
async fn a_revoked_certificate_is_replaced_at_once() {
    let ca = start().await;
    ca.manager.register(vec![registration(this_process())]).unwrap();
    let client = client(&ca.endpoint).await;
    let mut contexts = soon(client.stream_x509_contexts()).await.unwrap();
    let first = soon(contexts.next()).await.unwrap().unwrap();
    let serial: Serial = ca.manager.verify(&chain(first.default_svid().unwrap())).unwrap().serial;
    ca.manager.revoke(Subject::Serial(serial), "leaked").await.unwrap();
    assert!(ca.manager.verify(&chain(first.default_svid().unwrap())).is_err());
    let next = soon(contexts.next()).await.unwrap().unwrap();
    assert!(ca.manager.verify(&chain(next.default_svid().unwrap())).is_ok());
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_issued() {
    let ca = start().await;
    ca.manager.register(vec![registration(this_process())]).unwrap();
    ca.log.broken.store(true, Ordering::SeqCst);
    let client = client(&ca.endpoint).await;
    assert!(soon(client.fetch_x509_svid()).await.is_err());
    assert!(soon(client.fetch_jwt_svid(["ledger"], None)).await.is_err());
    ca.log.broken.store(false, Ordering::SeqCst);
    assert!(soon(client.fetch_x509_svid()).await.is_ok());
}

#[tokio::test]
async fn stopping_ends_streams_and_removes_the_socket() {
    let ca = start().await;
    ca.manager.register(vec![registration(this_process())]).unwrap();
    let client = client(&ca.endpoint).await;
    let mut contexts = soon(client.stream_x509_contexts()).await.unwrap();
    soon(contexts.next()).await.unwrap().unwrap();
    ca.stop.cancel();
    let end = soon(contexts.next()).await;
    assert!(!matches!(end, Some(Ok(_))), "{end:?}");
    drop(contexts);
    drop(client);
    let path = ca.endpoint.strip_prefix("unix://").unwrap().to_owned();
    soon(async {
        while std::fs::exists(&path).unwrap() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
