//! Two pods and what lies between: each sidecar takes what its redirect has caught, and knows the
//! other by its SVID. Here a closure says where a connection was going, as netfilter does in a pod.

use std::{
    io,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    sync::{Arc, OnceLock},
    time::Duration,
};

use aegis_audit::{
    entry::{Entry, Kind},
    query::Filter,
};
use aegis_ca::{
    Applications, CaConfig, Directory, IdentityManager, Lifetimes, Registration, Selector, Subject,
    Unrecorded,
};
use aegis_core::{AgentId, decision::Reason};
use aegis_identity::{
    Clock, Fetched, PeerRule, SvidFetcher, SvidSource, sign_manifest, system_clock,
    tls::client_config,
};
use aegis_kernel::Kernel;
use aegis_mesh::workload::Source as _;
use aegis_sidecar::{
    Attest, Attested, MESH_PROTOCOL, ManifestMode, Reachable, Route, Shared,
    metrics::Metrics,
    refusals::Refusals,
    transparent::{Asked, Own, Ports, Probe, Transparent, serve_inbound, serve_outbound},
};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream, UnixStream},
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use crate::{
    manifests::{manifest, show},
    upstream::{Upstream, json as answer, result_for},
    world::{AGENT, OTHER, PATIENCE, Plan, STANDARD, STRICTER, call, kernel},
};

pub(crate) const SERVER: &str = "spiffe://acme.example/ns/shop/sa/tools/agent/calc";
/// An agent of the same name, of somebody else's.
pub(crate) const NAMESAKE: &str = "spiffe://acme.example/ns/evil/sa/tools/agent/calc";
/// Nothing is forbidden.
pub(crate) const LAX: &[&str] = &["rules: [{ name: all, effect: allow }]"];

struct Nobody;

impl Attest for Nobody {
    fn tcp(&self, _: SocketAddr, _: SocketAddr) -> Result<Attested, Reason> {
        Err(Reason::IdentityMissing)
    }

    fn unix(&self, _: &UnixStream) -> Result<Attested, Reason> {
        Err(Reason::IdentityMissing)
    }
}

/// A CA of its own for each test.
pub(crate) struct Authority {
    pub(crate) manager: IdentityManager,
    /// The pods' clock.
    clock: Clock,
    _folder: tempfile::TempDir,
}

impl Authority {
    pub(crate) fn new() -> Self {
        Self::at(system_clock())
    }

    /// With pods whose clock is `clock`; the CA's own is the machine's.
    fn at(clock: Clock) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = CaConfig {
            trust_domain: "acme.example".parse().unwrap(),
            lifetimes: Lifetimes::default(),
        };
        let store = Directory::open(folder.path().join("ca")).unwrap();
        let manager =
            IdentityManager::open(store, config, Arc::new(Unrecorded), system_clock()).unwrap();
        let registered = [AGENT, OTHER, SERVER, NAMESAKE].map(|id| Registration {
            id: id.parse().unwrap(),
            sponsor: "ada@acme.example".parse().unwrap(),
            capabilities: Vec::new(),
            selectors: vec![Selector::Uid(1)],
            ttl: None,
        });
        manager.register(registered.into()).unwrap();
        Self { manager, clock, _folder: folder }
    }

    pub(crate) async fn source(&self, id: &str) -> Arc<SvidSource> {
        let sponsor = "ada@acme.example".parse().unwrap();
        let fetcher = Arc::new(self.manager.svids_of(id.parse().unwrap(), sponsor));
        let clock = Arc::clone(&self.clock);
        Arc::new(SvidSource::start(fetcher, clock, Arc::new(|| 0)).await.unwrap())
    }
}

/// One pod: its sidecar, and where its redirect leads.
pub(crate) struct Pod {
    pub(crate) kernel: Arc<Kernel>,
    source: Arc<SvidSource>,
    pub(crate) caught: Arc<Transparent>,
    pub(crate) outbound: SocketAddr,
    pub(crate) inbound: SocketAddr,
    /// Where every connection was going.
    pub(crate) destination: Arc<OnceLock<SocketAddr>>,
    asked: Asked,
    drain: CancellationToken,
    refusals: Arc<Refusals>,
    _ledger: tempfile::TempDir,
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.drain.cancel();
    }
}

/// Where the node of every pod is.
pub(crate) const NODE: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 9, 9));

impl Pod {
    pub(crate) async fn start(
        authority: &Authority,
        id: &str,
        policies: &'static [&'static str],
        ports: Ports,
    ) -> Self {
        Self::start_reaching(authority, id, policies, ports, Reachable::Everything).await
    }

    /// One that asks so much of manifests.
    pub(crate) async fn start_asking(
        authority: &Authority,
        id: &str,
        policies: &'static [&'static str],
        ports: Ports,
        manifests: ManifestMode,
    ) -> Self {
        let reachable = Reachable::Everything;
        Self::start_as(authority, id, policies, ports, (Ipv4Addr::LOCALHOST, reachable, manifests))
            .await
    }

    /// One that may connect so far.
    pub(crate) async fn start_reaching(
        authority: &Authority,
        id: &str,
        policies: &'static [&'static str],
        ports: Ports,
        reachable: Reachable,
    ) -> Self {
        Self::start_at(Ipv4Addr::LOCALHOST, authority, id, policies, ports, reachable).await
    }

    /// One that others find at this address.
    pub(crate) async fn start_at(
        address: Ipv4Addr,
        authority: &Authority,
        id: &str,
        policies: &'static [&'static str],
        ports: Ports,
        reachable: Reachable,
    ) -> Self {
        let manifests = ManifestMode::Required;
        Self::start_as(authority, id, policies, ports, (address, reachable, manifests)).await
    }

    async fn start_as(
        authority: &Authority,
        id: &str,
        policies: &'static [&'static str],
        ports: Ports,
        (address, reachable, manifests): (Ipv4Addr, Reachable, ManifestMode),
    ) -> Self {
        let ledger = tempfile::tempdir().unwrap();
        let kernel = kernel(ledger.path(), &Plan { policies, ..Plan::default() }).await;
        register(&kernel, &[AGENT, OTHER, SERVER, NAMESAKE], &[]).await;
        let (drain, refusals) = (CancellationToken::new(), Arc::new(Refusals::default()));
        let shared = Arc::new(Shared {
            kernel: Arc::clone(&kernel),
            attest: Arc::new(Nobody),
            refusals: Arc::clone(&refusals),
            metrics: Metrics::register(&prometheus::Registry::new()).unwrap(),
            tracer: None,
            reachable,
            drain: drain.clone(),
        });
        let source = authority.source(id).await;
        let own = Own {
            agent: id.parse().unwrap(),
            source: Arc::clone(&source),
            revocations: authority.manager.revocations(),
            manifests,
        };
        let destination = Arc::new(OnceLock::new());
        let going = Arc::clone(&destination);
        let going = Arc::new(move |_: &TcpStream| {
            going.get().copied().ok_or_else(|| io::Error::other("it was not redirected"))
        });
        let caught = Transparent::new(shared, own, ports, going).unwrap();
        let asked = Asked::default();
        let caught = caught.with_node(&[NODE]).with_asked(asked.clone());
        let caught = Arc::new(caught.with_names(Arc::new(|name| {
            let found = if name.ends_with(".example.com") {
                Ok(vec![Ipv4Addr::LOCALHOST.into()])
            } else {
                Err(io::Error::other("nobody has this name"))
            };
            Box::pin(async move { found })
        })));
        let outbound = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let inbound = TcpListener::bind((address, 0)).await.unwrap();
        let addresses = (outbound.local_addr().unwrap(), inbound.local_addr().unwrap());
        tokio::spawn(serve_outbound(Arc::clone(&caught), outbound));
        tokio::spawn(serve_inbound(Arc::clone(&caught), inbound));
        let (outbound, inbound) = addresses;
        Self {
            kernel,
            source,
            caught,
            outbound,
            inbound,
            destination,
            asked,
            drain,
            refusals,
            _ledger: ledger,
        }
    }

    pub(crate) async fn entries(&self) -> Vec<Entry> {
        let filter = Filter { oldest_first: true, limit: Some(1_000), ..Filter::default() };
        let page = self.kernel.query(&filter).await.unwrap();
        page.entries.iter().map(|stored| stored.entry().unwrap()).collect()
    }

    /// Decisions on tools, as (agent, server, tool, reason).
    pub(crate) async fn decisions(&self) -> Vec<(String, String, String, String)> {
        let text =
            |entry: &Entry, name: &str| entry.action_text(name).unwrap_or_default().to_owned();
        let all = self.entries().await;
        let of_tools = all.into_iter().filter(|entry| entry.kind == Kind::Decision);
        of_tools
            .map(|entry| {
                let agent = entry.agent_id.clone().unwrap_or_default();
                let reason = entry.reason.clone().unwrap_or_default();
                (agent, text(&entry, "server"), text(&entry, "tool"), reason)
            })
            .filter(|(_, _, tool, reason)| !tool.is_empty() || reason != "session_allowed")
            .collect()
    }

    /// What strangers were refused for, once it is on record.
    pub(crate) async fn strangers(&self) -> Vec<String> {
        self.refusals.flush(&self.kernel).await;
        let all = self.entries().await;
        let refusals = all.into_iter().filter(|entry| entry.kind == Kind::Refusals);
        refusals.filter_map(|entry| entry.reason).collect()
    }
}

/// A client's pod, a server's pod, and the server.
pub(crate) struct Mesh {
    pub(crate) authority: Authority,
    pub(crate) client: Pod,
    pub(crate) server: Pod,
    pub(crate) upstream: Upstream,
}

impl Mesh {
    pub(crate) async fn new() -> Self {
        Self::with(STANDARD, STANDARD).await
    }

    /// With a server whose port is declared to speak MCP.
    pub(crate) async fn with(
        of_client: &'static [&'static str],
        of_server: &'static [&'static str],
    ) -> Self {
        Self::of(Authority::new(), SERVER, (of_client, of_server), true).await
    }

    /// With a server whose port is declared to speak nothing.
    pub(crate) async fn undeclared(policies: &'static [&'static str]) -> Self {
        Self::of(Authority::new(), SERVER, (policies, policies), false).await
    }

    pub(crate) async fn of(
        authority: Authority,
        id: &str,
        (of_client, of_server): (&'static [&'static str], &'static [&'static str]),
        declared: bool,
    ) -> Self {
        let upstream = Upstream::start().await;
        let port = upstream.address.port();
        let probes = vec![
            Probe { port, path: Some("/healthz".into()), grpc: None },
            Probe { port, path: None, grpc: None },
        ];
        let mcp = declared.then_some(port).into_iter().collect();
        let client = Pod::start(&authority, AGENT, of_client, Ports::default()).await;
        let ports = Ports { mcp, probes, ..Ports::default() };
        let server = Pod::start(&authority, id, of_server, ports).await;
        client.destination.set(server.inbound).unwrap();
        server.destination.set(upstream.address).unwrap();
        Self { authority, client, server, upstream }
    }

    /// What the client's application gets.
    pub(crate) async fn ask(&self, request: Request<Full<Bytes>>) -> (StatusCode, Value) {
        exchange(TcpStream::connect(self.client.outbound).await.unwrap(), request).await
    }

    pub(crate) async fn call(&self, tool: &str) -> (StatusCode, Value) {
        self.ask(post("/mcp", &call(1, tool).to_string())).await
    }
}

pub(crate) fn post(path: &str, body: &str) -> Request<Full<Bytes>> {
    Request::builder()
        .method(Method::POST)
        .uri(path)
        .header("host", "calc.shop:8080")
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .body(Full::new(Bytes::copy_from_slice(body.as_bytes())))
        .unwrap()
}

pub(crate) fn get(path: &str) -> Request<Full<Bytes>> {
    Request::get(path).header("host", "calc.shop:8080").body(Full::new(Bytes::new())).unwrap()
}

pub(crate) async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> (StatusCode, Value) {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let answer = tokio::time::timeout(PATIENCE, sender.send_request(request)).await.unwrap();
    let (head, body) = answer.unwrap().into_parts();
    let body = tokio::time::timeout(PATIENCE, body.collect()).await.unwrap().unwrap().to_bytes();
    (head.status, serde_json::from_slice(&body).unwrap_or_default())
}

pub(crate) fn reason(answer: &Value) -> &str {
    let found =
        [answer.pointer("/error/data/reason"), answer.pointer("/result/_meta/aegis.dev~1reason")];
    found.into_iter().flatten().find_map(Value::as_str).unwrap_or_default()
}

#[tokio::test]
async fn a_call_is_decided_on_both_sides_by_who_the_agents_are() {
    let mesh = Mesh::new().await;
    mesh.upstream.results(json!({ "content": [{ "type": "text", "text": "hi" }] }));
    let (status, said) = mesh.call("echo").await;
    assert_eq!((status, &said["result"]["content"][0]["text"]), (StatusCode::OK, &json!("hi")));
    assert_eq!(mesh.upstream.count("tools/call"), 1);
    let expected =
        [(AGENT.to_owned(), "calc".to_owned(), "echo".to_owned(), "policy_allowed".to_owned())];
    assert_eq!(mesh.client.decisions().await, expected);
    assert_eq!(mesh.server.decisions().await, expected);
}

#[tokio::test]
async fn what_is_forbidden_ends_in_the_clients_own_pod() {
    let mesh = Mesh::new().await;
    let (_, said) = mesh.call("forbidden").await;
    assert_eq!(reason(&said), "policy_denied");
    assert_eq!(mesh.upstream.count("tools/call"), 0);
    assert_eq!(mesh.server.decisions().await, [], "it did not even leave the pod");
}

/// Its policies may be newer, and another client's sidecar may not be what it was built as.
#[tokio::test]
async fn the_servers_sidecar_decides_for_itself() {
    let mesh = Mesh::with(LAX, STRICTER).await;
    let agent = mesh.authority.source(AGENT).await;
    let peer = connect(&mesh, &agent, &[MESH_PROTOCOL]).await.unwrap();
    let (_, said) = exchange(peer, post("/mcp", &call(1, "echo").to_string())).await;
    assert_eq!(reason(&said), "policy_denied");
    let (_, said) = mesh.call("echo").await;
    assert_eq!(said["error"]["message"], "Unknown tool: echo", "the list does not name it");
    assert_eq!(mesh.upstream.count("tools/call"), 0);
}

#[tokio::test]
async fn whoever_has_no_svid_reaches_nothing() {
    let mesh = Mesh::new().await;
    let plain = TcpStream::connect(mesh.server.inbound).await.unwrap();
    let (status, said) = exchange(plain, post("/mcp", &call(1, "echo").to_string())).await;
    assert_eq!((status, reason(&said)), (StatusCode::FORBIDDEN, "identity_missing"));
    // Neither does who speaks another protocol.
    let mut other = TcpStream::connect(mesh.server.inbound).await.unwrap();
    other.write_all(b"\x00\x01\x02\x03").await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, other.read(&mut [0; 8])).await.unwrap();
    assert!(!matches!(ended, Ok(count) if count > 0));
    assert_eq!(mesh.upstream.seen().len(), 0);
    assert_eq!(mesh.server.strangers().await, ["identity_missing"]);
}

/// Says at a pod what agents may ever do.
pub(crate) async fn register(kernel: &Kernel, agents: &[&str], capabilities: &[&str]) {
    let capabilities: Vec<_> = capabilities.iter().map(|one| one.parse().unwrap()).collect();
    let registration = aegis_kernel::Registration {
        sponsor: "ada@acme.example".parse().unwrap(),
        capabilities: capabilities.into(),
    };
    let change = |state: &mut aegis_kernel::State| {
        for agent in agents {
            state.registry.insert(agent.parse().unwrap(), registration.clone());
        }
    };
    kernel.update_with(change).await.unwrap();
}

/// Connects to the server's sidecar with an SVID, and shows a manifest that holds.
pub(crate) async fn connect(
    mesh: &Mesh,
    source: &Arc<SvidSource>,
    protocols: &[&[u8]],
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let mut stream = open(mesh, source, protocols).await?;
    if protocols.contains(&MESH_PROTOCOL) {
        let svid = source.current().unwrap().svid.clone();
        let token = sign_manifest(&svid, &manifest(&stream, &svid)).unwrap();
        show(&mut stream, token.as_bytes()).await?.ok_or(io::ErrorKind::ConnectionRefused)?;
    }
    Ok(stream)
}

/// Connects to the server's sidecar with an SVID.
pub(crate) async fn open(
    mesh: &Mesh,
    source: &Arc<SvidSource>,
    protocols: &[&[u8]],
) -> io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let revoked = mesh.authority.manager.revocations();
    let rule = PeerRule::exactly(SERVER.parse().unwrap());
    let mut config = client_config(source, revoked, rule).unwrap();
    config.alpn_protocols = protocols.iter().map(|one| one.to_vec()).collect();
    let stream = TcpStream::connect(mesh.server.inbound).await.unwrap();
    let name = ServerName::try_from("aegis").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

/// Whether somebody with this SVID is answered.
async fn is_answered(mesh: &Mesh, source: &Arc<SvidSource>, protocols: &[&[u8]]) -> bool {
    let Ok(mut stream) = connect(mesh, source, protocols).await else { return false };
    let asked = b"GET /healthz HTTP/1.1\r\nhost: x\r\n\r\n";
    // In TLS 1.3 a client learns that it was turned away when it reads.
    stream.write_all(asked).await.is_ok()
        && matches!(stream.read(&mut [0; 1]).await, Ok(count) if count > 0)
}

#[tokio::test]
async fn only_sidecars_of_the_trust_domain_are_peers() {
    let mesh = Mesh::new().await;
    let agent = mesh.authority.source(AGENT).await;
    assert!(is_answered(&mesh, &agent, &[MESH_PROTOCOL]).await);
    assert!(!is_answered(&mesh, &agent, &[]).await, "it has not said that it is a sidecar");
    assert!(!is_answered(&mesh, &agent, &[b"h2"]).await);
    let agent: AgentId = AGENT.parse().unwrap();
    let manager = &mesh.authority.manager;
    let registration = manager.registration(&agent).unwrap();
    let applications = Applications::new(manager.clone());
    let (svid, bundle, _) = applications.svid(&registration).await.unwrap();
    assert_eq!(*svid.id(), agent.workload());
    let application = fixed(Fetched { svid, bundle }).await;
    assert!(!is_answered(&mesh, &application, &[MESH_PROTOCOL]).await, "an application");
    let svid = mesh.authority.manager.issue_component("ledger").await.unwrap();
    let component = Fetched { svid, bundle: mesh.authority.manager.bundle() };
    let component = fixed(component).await;
    assert!(!is_answered(&mesh, &component, &[MESH_PROTOCOL]).await, "a component is no agent");
    let foreign = Authority::new();
    let foreign = foreign.source(agent.as_str()).await;
    assert!(!is_answered(&mesh, &foreign, &[MESH_PROTOCOL]).await, "another CA's SVID");
    assert_eq!(mesh.upstream.seen().len(), 1);
}

struct Fixed(Fetched);

impl SvidFetcher for Fixed {
    fn fetch(&self) -> BoxFuture<'_, Result<Fetched, Box<dyn std::error::Error + Send + Sync>>> {
        let fetched = self.0.clone();
        Box::pin(async move { Ok(fetched) })
    }
}

async fn fixed(fetched: Fetched) -> Arc<SvidSource> {
    let fetcher = Arc::new(Fixed(fetched));
    Arc::new(SvidSource::start(fetcher, system_clock(), Arc::new(|| 0)).await.unwrap())
}

#[tokio::test]
async fn revocation_ends_what_is_open() {
    let mesh = Mesh::new().await;
    let agent = mesh.authority.source(AGENT).await;
    let mut open = connect(&mesh, &agent, &[MESH_PROTOCOL]).await.unwrap();
    let id: AgentId = AGENT.parse().unwrap();
    let revoked = Subject::Id(id.spiffe_id().clone());
    mesh.authority.manager.revoke(revoked, "for the test").await.unwrap();
    let ended = tokio::time::timeout(PATIENCE, open.read(&mut [0; 8])).await.unwrap();
    assert!(!matches!(ended, Ok(count) if count > 0));
    assert!(!is_answered(&mesh, &agent, &[MESH_PROTOCOL]).await);
    let (_, said) = mesh.call("echo").await;
    assert_ne!(reason(&said), "", "{said}");
    assert_eq!(mesh.upstream.count("tools/call"), 0);
}

#[tokio::test]
async fn who_asks_whether_it_is_redirected_is_heard() {
    let authority = Authority::new();
    let own = [15_001].into_iter().collect();
    let pod = Pod::start(&authority, AGENT, STANDARD, Ports { own, ..Ports::default() }).await;
    pod.destination.set("192.0.2.1:9".parse().unwrap()).unwrap();
    let (asked, nonce) = (pod.asked.clone(), "0123456789abcdef0123456789abcdef");
    assert!(!asked.came(nonce));
    let mut waiting = TcpStream::connect(pod.outbound).await.unwrap();
    waiting.write_all(nonce.as_bytes()).await.unwrap();
    let mut said = Vec::new();
    tokio::time::timeout(PATIENCE, waiting.read_to_end(&mut said)).await.unwrap().unwrap();
    assert!(said.is_empty() && asked.came(nonce), "what is heard is told on loopback alone");
}

/// The pods' clock is so far ahead that an SVID of a quarter of an hour has six seconds left.
#[tokio::test]
async fn no_call_is_cut_because_an_svid_ends() {
    let ahead = Duration::from_mins(15) - Duration::from_secs(6);
    let machine = system_clock();
    let clock: Clock = Arc::new(move || machine().plus(ahead));
    let mesh = Mesh::of(Authority::at(Arc::clone(&clock)), SERVER, (LAX, LAX), true).await;
    mesh.upstream.results(json!({ "content": [] }));
    assert_eq!(mesh.call("echo").await.0, StatusCode::OK);
    let end = |pod: &Pod| pod.source.current().unwrap().svid.not_after();
    let ends = end(&mesh.client).min(end(&mesh.server));
    // Connections are used all the time; the last call begins before that end, and is answered after it.
    while ends.since(clock()) > Duration::from_secs(1) {
        assert_eq!(mesh.call("echo").await.0, StatusCode::OK);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    mesh.upstream.answers(move |seen| {
        let clock = Arc::clone(&clock);
        async move {
            tokio::time::sleep(ends.since(clock()) + Duration::from_millis(200)).await;
            answer(200, &result_for(&seen, &json!({ "content": [] })))
        }
    });
    let (status, said) = mesh.call("echo").await;
    assert_eq!(status, StatusCode::OK, "{said}");
}

#[tokio::test]
async fn the_kubelet_gets_a_status_where_it_was_declared_to_ask() {
    let mesh = Mesh::new().await;
    mesh.upstream.answers(|_| async { answer(503, &json!({ "secret": 1 })) });
    let ask = async |request| {
        exchange(TcpStream::connect(mesh.server.inbound).await.unwrap(), request).await
    };
    assert_eq!(ask(get("/healthz")).await, (StatusCode::SERVICE_UNAVAILABLE, Value::Null));
    for refused in [get("/"), get("/healthz?full=1"), get("/healthz/"), post("/healthz", "{}")] {
        assert_eq!(ask(refused).await.0, StatusCode::FORBIDDEN);
    }
    assert_eq!(mesh.upstream.seen().len(), 1);
}

#[tokio::test]
async fn a_server_without_a_sidecar_is_no_server() {
    let mesh = Mesh::new().await;
    let plain = Upstream::start().await;
    let client = Pod::start(&mesh.authority, AGENT, LAX, Ports::default()).await;
    client.destination.set(plain.address).unwrap();
    for request in [post("/mcp", &call(1, "echo").to_string()), get("/")] {
        let stream = TcpStream::connect(client.outbound).await.unwrap();
        let (status, said) = exchange(stream, request).await;
        assert_eq!((status, reason(&said)), (StatusCode::FORBIDDEN, "server_unknown"));
    }
    assert_eq!(plain.seen().len(), 0);
    let reasons: Vec<String> = client.decisions().await.into_iter().map(|d| d.3).collect();
    assert_eq!(reasons, ["server_unknown", "server_unknown"]);
}

#[tokio::test]
async fn what_cannot_be_looked_into_does_not_leave() {
    let mesh = Mesh::with(LAX, LAX).await;
    for bytes in [&b"\x16\x03\x01\x00\x05hello"[..], b"PRI * HTTP/2.0\r\n\r\n", b"\x00\x00ssh"] {
        let mut stream = TcpStream::connect(mesh.client.outbound).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let ended = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 8])).await.unwrap();
        assert!(!matches!(ended, Ok(count) if count > 0));
    }
    let told: Vec<Value> = mesh
        .client
        .entries()
        .await
        .into_iter()
        .filter(|entry| entry.reason.as_deref() == Some("server_unknown"))
        .filter_map(|entry| entry.detail.get("spoken").cloned())
        .collect();
    assert_eq!(told, [json!("tls"), json!("http/2"), json!("unknown")]);
    assert_eq!(mesh.upstream.seen().len(), 0);
}

#[tokio::test]
async fn an_address_in_the_request_leads_nowhere() {
    let mesh = Mesh::with(LAX, LAX).await;
    let absolute = format!("http://{}/mcp", mesh.upstream.address);
    let (status, said) = mesh.ask(post(&absolute, &call(1, "echo").to_string())).await;
    assert_eq!((status, reason(&said)), (StatusCode::FORBIDDEN, "host_refused"));
    assert_eq!(mesh.upstream.seen().len(), 0);
}

#[tokio::test]
async fn nobody_is_led_to_the_sidecars_own_ports() {
    let authority = Authority::new();
    let upstream = Upstream::start().await;
    let own = Ports { own: [upstream.address.port()].into(), ..Ports::default() };
    let pod = Pod::start(&authority, SERVER, LAX, own).await;
    pod.destination.set(upstream.address).unwrap();
    for port in [pod.inbound, pod.outbound] {
        let mut stream = TcpStream::connect(port).await.unwrap();
        stream.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
        let ended = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 8])).await.unwrap();
        assert!(!matches!(ended, Ok(count) if count > 0));
    }
    assert_eq!(upstream.seen().len(), 0);
}

#[tokio::test]
async fn other_http_is_decided_request_by_request() {
    const PARTLY: &[&str] = &[
        "rules: [{ name: all, effect: allow }]",
        "match: { paths: ['/admin/**'] }\nrules: [{ name: admin, effect: deny }]",
    ];
    let mesh = Mesh::undeclared(PARTLY).await;
    mesh.upstream.answers(|_| async { answer(200, &json!({ "items": 3 })) });
    let (status, said) = mesh.ask(get("/items?full=1")).await;
    assert_eq!((status, said), (StatusCode::OK, json!({ "items": 3 })));
    let (status, said) = mesh.ask(get("/admin/keys")).await;
    assert_eq!((status, reason(&said)), (StatusCode::FORBIDDEN, "policy_denied"));
    assert_eq!(mesh.upstream.seen().len(), 1);
}

fn disguised(kind: &str, body: &[u8]) -> Request<Full<Bytes>> {
    Request::post("/mcp")
        .header("host", "calc.shop:8080")
        .header("content-type", kind)
        .body(Full::new(Bytes::copy_from_slice(body)))
        .unwrap()
}

/// JSON-RPC is a message of MCP whatever its headers leave out.
#[tokio::test]
async fn a_call_cannot_pass_for_other_http() {
    let body = call(1, "forbidden").to_string();
    let escaped = body.replace("jsonrpc", "\\u006asonrpc");
    let cased = body.replace("jsonrpc", "JSONRPC").replace("method", "METHOD");
    let overflowing = escaped.replace("\"hi\"", "1e999");
    let wide: Vec<u8> = body.encode_utf16().flat_map(u16::to_le_bytes).collect();
    for mesh in [Mesh::new().await, Mesh::undeclared(STANDARD).await] {
        for (request, expected) in [
            (disguised("application/json", body.as_bytes()), "policy_denied"),
            (disguised("application/json", escaped.as_bytes()), "policy_denied"),
            (disguised("text/plain", body.as_bytes()), "malformed_message"),
            (disguised("application/json; charset=utf-16", body.as_bytes()), "malformed_message"),
            (disguised("application/json", overflowing.as_bytes()), "malformed_message"),
            (disguised("application/json", cased.as_bytes()), "malformed_message"),
            (disguised("application/json", &wide), "malformed_message"),
        ] {
            let (_, said) = mesh.ask(request).await;
            assert_eq!(reason(&said), expected, "{said}");
        }
        let mut packed = disguised("application/json", b"\x1f\x8b\x08");
        packed.headers_mut().insert("content-encoding", "gzip".parse().unwrap());
        assert_eq!(reason(&mesh.ask(packed).await.1), "malformed_message");
        assert_eq!(mesh.upstream.seen().len(), 0);
    }
}

/// A client's sidecar that is not what it was built as still meets the server's.
#[tokio::test]
async fn an_undeclared_port_speaks_no_mcp() {
    const NO_ITEMS: &[&str] = &[
        "rules: [{ name: all, effect: allow }]",
        "match: { paths: ['/items/**'] }\nrules: [{ name: items, effect: deny }]",
    ];
    let mesh = Mesh::undeclared(NO_ITEMS).await;
    let agent = mesh.authority.source(AGENT).await;
    let ask = async |request| {
        let peer = connect(&mesh, &agent, &[MESH_PROTOCOL]).await.unwrap();
        reason(&exchange(peer, request).await.1).to_owned()
    };
    let ping = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" }).to_string();
    assert_eq!(ask(post("/items/5", &ping)).await, "protocol_unsupported");
    // A session's name does not make a session of it: the path is what is judged.
    let mut request = get("/items/5");
    *request.method_mut() = Method::DELETE;
    request.headers_mut().insert("mcp-session-id", "x".parse().unwrap());
    assert_eq!(ask(request).await, "policy_denied");
    assert_eq!(mesh.upstream.seen().len(), 0);
}

#[tokio::test]
async fn another_spelling_of_a_path_is_refused() {
    let mesh = Mesh::undeclared(LAX).await;
    for path in ["//admin", "/x/../admin", "/%61dmin", "/a%2fb"] {
        assert_eq!(reason(&mesh.ask(get(path)).await.1), "malformed_message", "{path}");
    }
    assert_eq!(mesh.upstream.seen().len(), 0);
}

#[tokio::test]
async fn a_stream_does_not_pass_for_an_answer() {
    let mesh = Mesh::undeclared(LAX).await;
    mesh.upstream.says(200, "text/event-stream", "data: {}\n\n");
    assert_eq!(reason(&mesh.ask(get("/")).await.1), "upstream_malformed");
}

#[tokio::test]
async fn another_namespaces_server_has_another_name() {
    const OWN: &[&str] = &["match: { servers: [calc] }\nrules: [{ name: calc, effect: allow }]"];
    const ITS: &[&str] =
        &["match: { servers: [evil/calc] }\nrules: [{ name: calc, effect: allow }]"];
    let mesh = Mesh::of(Authority::new(), NAMESAKE, (OWN, LAX), true).await;
    let (_, said) = mesh.call("echo").await;
    assert_eq!(reason(&said), "no_policy_allows", "{said}");
    assert_eq!(mesh.upstream.count("tools/call"), 0);
    let mesh = Mesh::of(Authority::new(), NAMESAKE, (ITS, ITS), true).await;
    mesh.upstream.results(json!({ "content": [] }));
    assert_eq!(mesh.call("echo").await.0, StatusCode::OK);
    assert_eq!(mesh.client.decisions().await[0].1, "evil/calc");
}

/// What was agreed to of a tool holds at every address of its server, and under every name.
#[tokio::test]
async fn pins_hold_whatever_the_host_says() {
    let mesh = Mesh::with(LAX, LAX).await;
    mesh.upstream.results(json!({ "content": [] }));
    assert_eq!(mesh.call("echo").await.0, StatusCode::OK);
    mesh.upstream.answers(|seen| async move {
        let schema = json!({ "type": "object", "properties": { "secret": { "type": "string" } } });
        let changed = json!({ "tools": [{ "name": "echo", "inputSchema": schema }] });
        answer(200, &result_for(&seen, &changed))
    });
    let elsewhere = |message: Value| {
        let mut request = post("/mcp", &message.to_string());
        request.headers_mut().insert("host", "other.name:1".parse().unwrap());
        request
    };
    let listing = json!({ "jsonrpc": "2.0", "id": 3, "method": "tools/list", "params": {} });
    assert_eq!(mesh.ask(elsewhere(listing)).await.0, StatusCode::OK);
    assert_eq!(reason(&mesh.ask(elsewhere(call(4, "echo"))).await.1), "tool_quarantined");
    assert_eq!(mesh.upstream.count("tools/call"), 1);
}

#[tokio::test]
async fn an_upstream_of_the_namespace_is_reached_by_its_name() {
    let mesh = Mesh::with(STANDARD, STANDARD).await;
    let outside = Upstream::start().await;
    outside.results(json!({ "content": [] }));
    let url = format!("http://localhost:{}/mcp", outside.address.port());
    let spec = serde_json::from_value(json!({ "url": url })).unwrap();
    let route = Route::new(Arc::clone(mesh.client.caught.shared()), "shop", "tools", spec).unwrap();
    mesh.client.caught.set_upstreams(vec![Arc::new(route)]);
    let named = |tool: &str| {
        let mut request = post("/mcp", &call(1, tool).to_string());
        let host = format!("localhost:{}", outside.address.port());
        request.headers_mut().insert("host", host.parse().unwrap());
        request
    };
    let (status, said) = mesh.ask(named("echo")).await;
    assert_eq!(status, StatusCode::OK, "{said}");
    assert_eq!(outside.count("tools/call"), 1);
    assert_eq!(reason(&mesh.ask(named("forbidden")).await.1), "policy_denied");
    assert_eq!(outside.count("tools/call"), 1);
    let servers: Vec<String> = mesh.client.decisions().await.into_iter().map(|d| d.1).collect();
    assert_eq!(servers, ["tools", "tools"]);
}

#[tokio::test]
async fn draining_ends_the_listeners() {
    let mesh = Mesh::new().await;
    mesh.client.drain.cancel();
    let gone = async {
        while TcpStream::connect(mesh.client.outbound).await.is_ok() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.unwrap();
}
