//! Who gets which identity in a cluster, and who gets none.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use aegis_api::authority::proto::{
    FollowTrustRequest, IssueJwtRequest, IssueRequest, authority_server::Authority as _,
};
use aegis_ca::{
    Subject,
    kubernetes::{
        Attested, AuthorityService, Cluster, Identities, Known, LookupError, Metrics, Refused,
        TokenAttestor,
    },
};
use aegis_core::Timestamp;
use aegis_identity::{Bundle, Revocations, system_clock, verify_chain};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use futures::{StreamExt as _, future::BoxFuture};
use k8s_openapi::api::{authentication::v1::TokenReviewStatus, core::v1::Pod};
use parking_lot::Mutex;
use rcgen::{CertificateParams, KeyPair, SanType};
use rustls::pki_types::CertificateDer;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Request};

use crate::fixture::{AGENT, Log, manager, soon};

/// An API server that says what a test wants.
struct Fake {
    review: Mutex<Value>,
    pod: Mutex<Option<Value>>,
    asked: AtomicUsize,
}

impl Cluster for Fake {
    fn review<'a>(&'a self, _: &'a str) -> BoxFuture<'a, Result<TokenReviewStatus, LookupError>> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        let review = self.review.lock().clone();
        Box::pin(async move {
            if review.is_null() {
                return Err(LookupError("it is away".into()));
            }
            Ok(serde_json::from_value(review).unwrap())
        })
    }

    fn pod<'a>(
        &'a self,
        namespace: &'a str,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<Pod>, LookupError>> {
        assert_eq!((namespace.is_empty(), name), (false, "buyer-0"));
        let pod = self.pod.lock().clone();
        Box::pin(async move { Ok(pod.map(|pod| serde_json::from_value(pod).unwrap())) })
    }
}

fn review(account: &str) -> Value {
    json!({
        "authenticated": true, "audiences": ["aegis-ca"],
        "user": { "username": format!("system:serviceaccount:{account}"), "extra": {
            "authentication.kubernetes.io/pod-name": ["buyer-0"],
            "authentication.kubernetes.io/pod-uid": ["u1"],
            "authentication.kubernetes.io/node-name": ["node"],
        } },
    })
}

fn pod(account: &str) -> Value {
    json!({
        "metadata": { "name": "buyer-0", "uid": "u1", "labels": { "app": "buyer" } },
        "spec": { "nodeName": "node", "serviceAccountName": account, "containers": [] },
        "status": { "phase": "Running" },
    })
}

fn identity(name: &str, labels: Value) -> Known {
    let spec = json!({
        "sponsor": "ada@acme.example", "serviceAccount": "bot", "svidTTLSeconds": 600,
        "selector": { "kubernetes": { "podLabels": labels } },
    });
    Known {
        namespace: "shop".into(),
        name: name.into(),
        spec: serde_json::from_value(spec).unwrap(),
    }
}

/// A token of this number that is good for an hour.
fn token(number: u32) -> String {
    let expires = system_clock()().as_secs() + 3600;
    let claims = json!({ "exp": expires, "number": number }).to_string();
    format!("e30.{}.c2lnbmF0dXJl", BASE64_URL_SAFE_NO_PAD.encode(claims))
}

struct Cast {
    fake: Arc<Fake>,
    identities: Identities,
    attestor: Arc<TokenAttestor>,
}

fn cast() -> Cast {
    let fake = Arc::new(Fake {
        review: Mutex::new(review("shop:bot")),
        pod: Mutex::new(Some(pod("bot"))),
        asked: AtomicUsize::default(),
    });
    let identities = Identities::default();
    identities.apply(identity("buyer", json!({ "app": "buyer" })));
    identities.apply(identity("seller", json!({ "app": "seller" })));
    let components =
        BTreeMap::from([(("aegis-system".into(), "aegis-operator".into()), "operator".into())]);
    let attestor = TokenAttestor::new(
        fake.clone(),
        identities.clone(),
        "acme.example".parse().unwrap(),
        components,
        system_clock(),
    );
    Cast { fake, identities, attestor: Arc::new(attestor) }
}

#[tokio::test]
async fn the_name_comes_from_the_pod_and_its_one_identity() {
    let cast = cast();
    let Attested::Agent(agent) = cast.attestor.attest(&token(1)).await.unwrap() else {
        panic!("an agent")
    };
    assert_eq!((agent.id.to_string(), agent.ttl), (AGENT.into(), Some(Duration::from_secs(600))));
    // An answer is believed for a while: renewals of a fleet are not a flood at the API server.
    for _ in 0..5 {
        cast.attestor.attest(&token(1)).await.unwrap();
    }
    assert_eq!(cast.fake.asked.load(Ordering::SeqCst), 1);
    // Who the pod may be is asked each time, and what is said of a pod that is gone is forgotten.
    cast.identities.remove("shop", "buyer");
    let refused = cast.attestor.attest(&token(1)).await.unwrap_err();
    assert!(matches!(refused, Refused::Unregistered(_)), "{refused}");
    cast.attestor.forget("u1");
    *cast.fake.pod.lock() = None;
    assert_eq!(cast.attestor.attest(&token(1)).await.unwrap_err().reason(), "other_pod");

    *cast.fake.review.lock() = review("aegis-system:aegis-operator");
    *cast.fake.pod.lock() = Some(pod("aegis-operator"));
    let component = cast.attestor.attest(&token(2)).await.unwrap();
    assert_eq!(component, Attested::Component("operator".into()));
}

#[tokio::test]
async fn nobody_else_is_recognised() {
    let changed = |at: &str, value: Value| {
        let mut review = review("shop:bot");
        *review.pointer_mut(at).unwrap() = value;
        review
    };
    let without = |key: &str| {
        let mut review = review("shop:bot");
        let extra = review.pointer_mut("/user/extra").unwrap().as_object_mut().unwrap();
        extra.remove(&format!("authentication.kubernetes.io/{key}"));
        review
    };
    for (review, reason) in [
        (changed("/authenticated", json!(false)), "invalid_token"),
        (json!({ "error": "token has expired" }), "invalid_token"),
        (changed("/audiences", json!(["kubernetes"])), "other_audience"),
        (changed("/audiences", json!([])), "other_audience"),
        (changed("/user/username", json!("ada@acme.example")), "unbound_token"),
        (without("pod-name"), "unbound_token"),
        (without("pod-uid"), "unbound_token"),
        (without("node-name"), "unbound_token"),
        (Value::Null, "api_server"),
    ] {
        let cast = cast();
        *cast.fake.review.lock() = review.clone();
        let refused = cast.attestor.attest(&token(1)).await.unwrap_err();
        assert_eq!(refused.reason(), reason, "{review}");
    }
    for (at, value) in [
        ("/metadata/uid", json!("u2")),
        ("/spec/nodeName", json!("other")),
        ("/spec/serviceAccountName", json!("default")),
        ("/status/phase", json!("Succeeded")),
        ("/status/phase", json!("Failed")),
    ] {
        let cast = cast();
        *cast.fake.pod.lock().as_mut().unwrap().pointer_mut(at).unwrap() = value;
        let refused = cast.attestor.attest(&token(1)).await.unwrap_err();
        assert_eq!(refused.reason(), "other_pod", "{at}");
    }
    let cast = cast();
    for odd in ["", "a.b", "a.b.c.d", "e30.e30.x", &"x".repeat(20_000)] {
        assert_eq!(cast.attestor.attest(odd).await.unwrap_err().reason(), "malformed_token");
    }
    assert_eq!(cast.fake.asked.load(Ordering::SeqCst), 0, "the API server is not bothered");
    cast.identities.apply(identity("twin", json!({})));
    let refused = cast.attestor.attest(&token(1)).await.unwrap_err();
    assert!(matches!(refused, Refused::Ambiguous { count: 2, .. }), "{refused}");
    assert!(refused.to_string().contains("buyer and twin"), "{refused}");
}

#[tokio::test]
async fn one_pod_cannot_ask_without_end() {
    let cast = cast();
    let mut refused = 0;
    for _ in 0..100 {
        refused += usize::from(cast.attestor.attest(&token(1)).await.is_err());
    }
    assert!(refused > 60, "{refused}");
}

fn csr() -> Vec<u8> {
    let key = KeyPair::generate().unwrap();
    CertificateParams::default().serialize_request(&key).unwrap().der().to_vec()
}

fn service(cast: &Cast, ca: &aegis_ca::IdentityManager) -> AuthorityService {
    let metrics = Metrics::register().unwrap();
    AuthorityService::new(ca.clone(), cast.attestor.clone(), metrics, CancellationToken::new())
}

fn id_of(chain: &[Vec<u8>], bundle: &Bundle) -> String {
    let chain: Vec<_> = chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    let now: Timestamp = system_clock()();
    verify_chain(&chain, bundle, &Revocations::default(), now).unwrap().id.to_string()
}

#[tokio::test]
async fn a_token_gets_svids_and_a_request_has_no_say() {
    let (cast, directory, log) = (cast(), tempfile::tempdir().unwrap(), Arc::new(Log::default()));
    let ca = manager(&directory, &log);
    let service = service(&cast, &ca);
    let ask = async |request: Vec<u8>, workload_request: Vec<u8>| {
        let asked = IssueRequest { token: token(1), request, workload_request };
        service.issue(Request::new(asked)).await.map(tonic::Response::into_inner)
    };
    let issued = ask(csr(), csr()).await.unwrap();
    let trust = issued.trust.unwrap();
    let bundle = Bundle::from_jwks("acme.example".parse().unwrap(), &trust.bundle).unwrap();
    assert_eq!(id_of(&issued.chain, &bundle), AGENT);
    assert_eq!(id_of(&issued.workload_chain, &bundle), format!("{AGENT}/workload"));
    assert_eq!(log.events.lock().len(), 2, "both are recorded");

    let mut other = CertificateParams::default();
    other.subject_alt_names =
        vec![SanType::URI("spiffe://acme.example/ns/shop/sa/bot/agent/seller".try_into().unwrap())];
    let crafted = other.serialize_request(&KeyPair::generate().unwrap()).unwrap().der().to_vec();
    for bad in [crafted, vec![], vec![0x30; 9000]] {
        assert_eq!(ask(bad, vec![]).await.unwrap_err().code(), Code::InvalidArgument);
    }
    log.broken.store(true, Ordering::SeqCst);
    assert_eq!(ask(csr(), vec![]).await.unwrap_err().code(), Code::Unavailable);
    log.broken.store(false, Ordering::SeqCst);

    let jwt = |audience: Vec<String>| {
        service.issue_jwt(Request::new(IssueJwtRequest { token: token(1), audience }))
    };
    let svid = jwt(vec!["db".into()]).await.unwrap().into_inner();
    assert_eq!(
        ca.verify_jwt(&svid.token, "db").unwrap().id.to_string(),
        format!("{AGENT}/workload")
    );
    assert_eq!(jwt(vec![]).await.unwrap_err().code(), Code::InvalidArgument);

    *cast.fake.review.lock() = json!({ "error": "expired" });
    let asked = IssueRequest { token: token(2), request: csr(), workload_request: vec![] };
    let refused = service.issue(Request::new(asked)).await.unwrap_err();
    assert_eq!(
        (refused.code(), refused.message()),
        (Code::Unauthenticated, "the token is not accepted")
    );
}

#[tokio::test]
async fn followers_hear_of_new_authorities_and_revocations() {
    let (cast, directory, log) = (cast(), tempfile::tempdir().unwrap(), Arc::new(Log::default()));
    let ca = manager(&directory, &log);
    let service = service(&cast, &ca);
    let follow = Request::new(FollowTrustRequest { token: token(1) });
    let mut told = service.follow_trust(follow).await.unwrap().into_inner();
    let first = soon(told.next()).await.unwrap().unwrap();
    ca.rotate(aegis_ca::Kind::Root).unwrap();
    let second = soon(told.next()).await.unwrap().unwrap();
    assert_ne!(first.bundle, second.bundle);
    ca.revoke(Subject::Id(AGENT.parse().unwrap()), "stolen").await.unwrap();
    let third = soon(told.next()).await.unwrap().unwrap();
    assert_eq!(third.revoked_ids, [AGENT]);
    // And it gets nothing any more.
    let asked = IssueRequest { token: token(1), request: csr(), workload_request: vec![] };
    let refused = service.issue(Request::new(asked)).await.unwrap_err();
    assert_eq!(refused.code(), Code::PermissionDenied);
    *cast.fake.review.lock() = json!({ "error": "expired" });
    let stranger = Request::new(FollowTrustRequest { token: token(2) });
    assert!(service.follow_trust(stranger).await.is_err());
}
