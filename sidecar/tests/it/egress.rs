//! TLS of the application's own goes out to hosts that a policy names for it, and nowhere else.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use aegis_audit::entry::{Entry, Kind, Outcome};
use aegis_core::AgentId;
use aegis_identity::tls::provider;
use aegis_sidecar::{Reachable, transparent::Ports};
use rustls::{
    ClientConfig, RootCertStore, ServerConfig,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName},
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, TlsConnector, client::TlsStream};

use crate::{
    mesh::{Authority, LAX, Pod},
    world::{AGENT, PATIENCE},
};

/// One host is named, and everything else that can be looked into is allowed.
const NAMED: &[&str] = &[
    "rules: [{ name: all, effect: allow }]",
    "match: { protocols: [tls], servers: [api.example.com] }\nrules: [{ name: api, effect: allow }]",
];
/// It is forbidden besides, by who does not think of TLS.
const FORBIDDEN: &[&str] = &[
    "match: { protocols: [tls] }\nrules: [{ name: tls, effect: allow }]",
    "match: { servers: ['*.example.com'] }\nrules: [{ name: none, effect: deny }]",
];

/// A server that gives back what it gets.
struct Host {
    address: SocketAddr,
    reached: Arc<AtomicUsize>,
    root: CertificateDer<'static>,
}

impl Host {
    async fn start() -> Self {
        let names = ["api.example.com", "evil.example.com"].map(str::to_owned);
        let own = rcgen::generate_simple_self_signed(names).unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()));
        let root = own.cert.der().clone();
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![root.clone()], key)
            .unwrap();
        let acceptor = TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (address, reached) = (listener.local_addr().unwrap(), Arc::new(AtomicUsize::new(0)));
        let counted = Arc::clone(&reached);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                counted.fetch_add(1, Ordering::SeqCst);
                let acceptor = acceptor.clone();
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(stream).await else { return };
                    let (mut from, mut to) = tokio::io::split(stream);
                    let _ = tokio::io::copy(&mut from, &mut to).await;
                    let _ = to.shutdown().await;
                });
            }
        });
        Self { address, reached, root }
    }

    fn reached(&self) -> usize {
        self.reached.load(Ordering::SeqCst)
    }

    /// A pod whose application wants an address where nobody answers: only names lead to the host.
    async fn pod(&self, policies: &'static [&'static str], reachable: Reachable) -> Pod {
        let (authority, ports) = (Authority::new(), Ports::default());
        let pod = Pod::start_reaching(&authority, AGENT, policies, ports, reachable).await;
        pod.destination.set(SocketAddr::from(([192, 0, 2, 1], self.address.port()))).unwrap();
        pod
    }

    /// What the application does.
    async fn dial(
        &self,
        pod: &Pod,
        name: &str,
        sni: bool,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.root.clone()).unwrap();
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.enable_sni = sni;
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let stream = TcpStream::connect(pod.outbound).await.unwrap();
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
        tokio::time::timeout(PATIENCE, connecting).await.unwrap()
    }
}

/// Waits for the first entry that is wanted.
async fn recorded(pod: &Pod, wanted: impl Fn(&Entry) -> bool) -> Entry {
    let found = async {
        loop {
            if let Some(entry) = pod.entries().await.into_iter().find(&wanted) {
                return entry;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, found).await.unwrap()
}

async fn echoed(stream: &mut TlsStream<TcpStream>) -> bool {
    let mut back = [0; 5];
    stream.write_all(b"hello").await.is_ok()
        && tokio::time::timeout(PATIENCE, stream.read_exact(&mut back)).await.unwrap().is_ok()
        && back == *b"hello"
}

#[tokio::test]
async fn tls_goes_to_the_host_that_a_policy_names() {
    let host = Host::start().await;
    let pod = host.pod(NAMED, Reachable::Everything).await;
    let mut stream = host.dial(&pod, "API.example.com", true).await.unwrap();
    assert!(echoed(&mut stream).await);
    assert_eq!(pod.caught.shared().metrics.uncovered.get(), 1, "and is told as not covered");
    stream.shutdown().await.unwrap();
    assert_eq!(stream.read(&mut [0; 8]).await.unwrap(), 0);
    let outcome = recorded(&pod, |entry| entry.kind == Kind::Outcome).await;
    assert_eq!((outcome.result, outcome.reason.as_deref()), (Outcome::Unknown, None));
    for way in ["bytes", "sent"] {
        assert!(outcome.detail[way].as_u64().unwrap() > 500, "{outcome:?}");
    }
    let decision = recorded(&pod, |entry| entry.kind == Kind::Decision).await;
    assert_eq!(decision.reason.as_deref(), Some("policy_allowed"));
    assert_eq!(decision.action_text("protocol"), Some("tls"));
    assert_eq!(decision.action_text("server"), Some("api.example.com"));
    let port = host.address.port();
    assert_eq!(decision.resource, Some(format!("tls://api.example.com:{port}")));
    let outcomes = pod.entries().await.iter().filter(|one| one.kind == Kind::Outcome).count();
    assert_eq!((outcomes, host.reached()), (1, 1));
}

#[tokio::test]
async fn no_other_host_is_reached() {
    let host = Host::start().await;
    for (policies, name, sni, reason) in [
        (LAX, "api.example.com", true, "no_policy_allows"),
        (NAMED, "evil.example.com", true, "no_policy_allows"),
        (NAMED, "api.example.com", false, "server_unknown"),
        (FORBIDDEN, "api.example.com", true, "policy_denied"),
    ] {
        let pod = host.pod(policies, Reachable::Everything).await;
        assert!(host.dial(&pod, name, sni).await.is_err());
        let refused = recorded(&pod, |entry| entry.kind == Kind::Decision).await;
        assert_eq!(refused.reason.as_deref(), Some(reason), "{name}");
        if !sni {
            assert_eq!(refused.detail["server_name"], "absent");
        }
        assert_eq!(pod.caught.shared().metrics.uncovered.get(), 0);
    }
    assert_eq!(host.reached(), 0);
}

/// Whoever answers for an allowed name cannot lead into the pod.
#[tokio::test]
async fn a_name_that_leads_to_this_pod_leads_nowhere() {
    let host = Host::start().await;
    let pod = host.pod(NAMED, Reachable::OtherHosts([].into())).await;
    assert!(host.dial(&pod, "api.example.com", true).await.is_err());
    let outcome = recorded(&pod, |entry| entry.kind == Kind::Outcome).await;
    assert_eq!(outcome.result, Outcome::Failure);
    assert_eq!(outcome.reason.as_deref(), Some("upstream_unavailable"));
    assert_eq!(host.reached(), 0);
}

#[tokio::test]
async fn a_change_that_forbids_it_cuts_an_open_connection() {
    let host = Host::start().await;
    let pod = host.pod(NAMED, Reachable::Everything).await;
    let mut stream = host.dial(&pod, "api.example.com", true).await.unwrap();
    assert!(echoed(&mut stream).await);
    pod.kernel.announce_change();
    assert!(echoed(&mut stream).await, "what changed forbids nothing");
    let agent: AgentId = AGENT.parse().unwrap();
    let stop = |state: &mut aegis_kernel::State| {
        state.quarantined.insert(agent.clone());
    };
    pod.kernel.update_with(stop).await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 8])).await.unwrap();
    assert!(!matches!(ended, Ok(count) if count > 0));
    let outcome = recorded(&pod, |entry| entry.kind == Kind::Outcome).await;
    assert_eq!(outcome.reason.as_deref(), Some("agent_quarantined"));
    assert_eq!(outcome.detail.get("sent").map(Value::is_u64), Some(true));
    assert_ne!(json!(outcome.detail["sent"]), json!(0));
}
