//! A sidecar between a client and a scripted upstream, on a ledger and policies of its own.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, OnceLock},
    time::Duration,
};

use aegis_audit::{
    entry::{Entry, Kind},
    journal::{Durability, Journal, Options},
    note::Signer,
    query::Filter,
    store::Location,
};
use aegis_core::{AgentId, Sponsor, Timestamp, decision::Reason};
use aegis_kernel::{Kernel, Principal, Registration, State};
use aegis_policy::{Bundle, Compiler, Host, Limits, Opa, Policy, PolicyEngine, PolicyId};
use aegis_resources::AgentUpstreamSpec;
use aegis_sidecar::{
    Attest, Attested, Reachable, Route, Shared, metrics::Metrics, refusals::Refusals,
    route::Caller, span::CallSpan,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio_util::sync::CancellationToken;

use crate::upstream::Upstream;

/// Everything but what its name says is forbidden.
pub(crate) const STANDARD: &[&str] = &[
    r"
rules:
  - { name: all, effect: allow }
  - { name: forbidden, effect: deny, tools: ['forbidden*'], reason: Not for agents. }
  - { name: risky, effect: require_approval, tools: [risky] }
  - { name: no-roots, effect: deny, methods: [roots/list] }
  - { name: no-elicitation, effect: deny, methods: [elicitation/create] }
  - name: leaky
    effect: allow
    tools: [leaky]
    obligations: [{ kind: redactResult, target: 'sk-[a-z0-9]+' }]
",
    r"
match: { paths: ['file:///secret/**'] }
rules: [{ name: secret, effect: deny }]
",
];

/// As [`STANDARD`], and `echo` is forbidden.
pub(crate) const STRICTER: &[&str] =
    &["rules: [{ name: all, effect: allow }, { name: no-echo, effect: deny, tools: [echo] }]"];

/// What coding agents may do; `drop` is forbidden wherever it is asked for.
pub(crate) const DESK: &[&str] = &[
    r"
scopes: [ide]
rules:
  - { name: all, effect: allow }
  - { name: no-deleting, effect: deny, when: [{ argument: $.command, operator: matches, value: '^rm ' }], reason: Nothing is deleted here. }
  - { name: no-writes-outside, effect: deny, when: [{ field: action.resource, operator: matches, value: '^/outside/' }], reason: Outside is not yours. }
",
    r"
match: { servers: [shop] }
rules:
  - { name: rest, effect: allow }
  - { name: no-drop, effect: deny, tools: [drop], reason: Nothing is dropped. }
  - { name: leaky, effect: allow, tools: [leaky], obligations: [{ kind: redactResult, target: 'sk-[a-z0-9]+' }] }
",
];

/// The agent of every test.
pub(crate) const AGENT: &str = "spiffe://acme.example/ns/shop/sa/bot/agent/buyer";

/// Another agent, with the same rights.
pub(crate) const OTHER: &str = "spiffe://acme.example/ns/shop/sa/bot/agent/rival";

/// How long a test waits for what must come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Compiles a set of policies, once for all tests.
pub(crate) fn bundle(policies: &'static [&'static str]) -> Arc<Bundle> {
    static KNOWN: OnceLock<Known<Arc<Bundle>>> = OnceLock::new();
    once(&KNOWN, policies, || {
        let named = policies.iter().enumerate().map(|(at, yaml)| Policy {
            id: PolicyId::cluster(format!("policy-{at}")),
            spec: serde_yaml_ng::from_str(yaml).unwrap(),
        });
        let compiler = Compiler::new(Opa::locate().unwrap(), None);
        let compiled = compiler.compile(&named.collect::<Vec<_>>()).unwrap();
        assert_eq!(compiled.failures, []);
        Arc::new(compiled.bundle)
    })
}

/// The engine that every test with these policies shares.
fn engine(policies: &'static [&'static str]) -> Arc<PolicyEngine> {
    static KNOWN: OnceLock<Known<Arc<PolicyEngine>>> = OnceLock::new();
    once(&KNOWN, policies, || Arc::new(own_engine(policies)))
}

fn own_engine(policies: &'static [&'static str]) -> PolicyEngine {
    let limits = Limits { budget: Duration::from_secs(5), ..Limits::default() };
    let engine = PolicyEngine::new(Arc::new(Host::new(limits, None).unwrap()));
    engine.load(&bundle(policies)).unwrap();
    engine
}

type Known<T> = Mutex<HashMap<&'static [&'static str], T>>;

fn once<T: Clone>(
    known: &OnceLock<Known<T>>,
    policies: &'static [&'static str],
    make: impl FnOnce() -> T,
) -> T {
    known.get_or_init(Mutex::default).lock().entry(policies).or_insert_with(make).clone()
}

/// Whoever connects is who the test says.
struct Everybody(Arc<Mutex<Result<Attested, Reason>>>);

impl Attest for Everybody {
    fn tcp(&self, _: SocketAddr, _: SocketAddr) -> Result<Attested, Reason> {
        self.0.lock().clone()
    }

    fn unix(&self, _: &UnixStream) -> Result<Attested, Reason> {
        self.0.lock().clone()
    }
}

/// How a world is to be.
pub(crate) struct Plan {
    pub(crate) policies: &'static [&'static str],
    pub(crate) spec: Value,
    pub(crate) attested: Option<Reason>,
    /// How long the agent's identity lasts.
    pub(crate) lasts: Duration,
    /// Whether it changes its policies, and so needs an engine of its own.
    pub(crate) changes_policies: bool,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            policies: STANDARD,
            spec: json!({}),
            attested: None,
            lasts: Duration::from_secs(3600),
            changes_policies: false,
        }
    }
}

/// Client, sidecar and upstream.
pub(crate) struct World {
    speaker: Arc<Mutex<Result<Attested, Reason>>>,
    pub(crate) upstream: Upstream,
    pub(crate) address: SocketAddr,
    pub(crate) route: Arc<Route>,
    pub(crate) kernel: Arc<Kernel>,
    pub(crate) drain: CancellationToken,
    pub(crate) serving: tokio::task::JoinHandle<()>,
    _ledger: tempfile::TempDir,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Answer {
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("not JSON: {self:?}"))
    }

    /// The reason code, wherever the form of the refusal puts it.
    pub(crate) fn reason(&self) -> String {
        let json = self.json();
        [json.pointer("/error/data/reason"), json.pointer("/result/_meta/aegis.dev~1reason")]
            .into_iter()
            .flatten()
            .find_map(Value::as_str)
            .unwrap_or_else(|| panic!("no reason in {json}"))
            .to_owned()
    }
}

pub(crate) fn now() -> Timestamp {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    Timestamp::from_micros(u64::try_from(since.as_micros()).unwrap())
}

pub(crate) async fn world() -> World {
    World::plan(Plan::default()).await
}

/// A world whose AgentUpstream has these members beside its URL.
pub(crate) async fn world_with(spec: Value) -> World {
    World::plan(Plan { spec, ..Plan::default() }).await
}

impl World {
    pub(crate) async fn plan(plan: Plan) -> Self {
        Self::around(Upstream::start().await, plan).await
    }

    pub(crate) async fn around(upstream: Upstream, plan: Plan) -> Self {
        let ledger = tempfile::tempdir().unwrap();
        let kernel = kernel(ledger.path(), &plan).await;
        let drain = CancellationToken::new();
        let attested = match plan.attested {
            Some(reason) => Err(reason),
            None => Ok(Attested { id: AGENT.parse().unwrap(), not_after: now().plus(plan.lasts) }),
        };
        let speaker = Arc::new(Mutex::new(attested));
        let shared = Arc::new(Shared {
            kernel: Arc::clone(&kernel),
            attest: Arc::new(Everybody(Arc::clone(&speaker))),
            refusals: Arc::new(Refusals::default()),
            metrics: Metrics::register(&prometheus::Registry::new()).unwrap(),
            tracer: None,
            reachable: Reachable::Everything,
            drain: drain.clone(),
        });
        let mut spec = json!({ "url": format!("http://{}/mcp", upstream.address) });
        let members = plan.spec.as_object().unwrap().clone();
        if members.contains_key("command") {
            spec.as_object_mut().unwrap().remove("url");
        }
        spec.as_object_mut().unwrap().extend(members);
        let spec: AgentUpstreamSpec = serde_json::from_value(spec).unwrap();
        spec.validate().unwrap();
        let route = Arc::new(Route::new(shared, "shop", "calc", spec).unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(aegis_sidecar::serve(Arc::clone(&route), listener));
        Self { speaker, upstream, address, route, kernel, drain, serving, _ledger: ledger }
    }

    /// Who connects from now on.
    pub(crate) fn speaks(&self, agent: Result<&str, Reason>) {
        let not_after = now().plus(Duration::from_secs(3600));
        let attested = agent.map(|id| Attested { id: id.parse().unwrap(), not_after });
        *self.speaker.lock() = attested;
    }

    /// The agent as the kernel knows it.
    pub(crate) fn principal(&self) -> Principal {
        let not_after = now().plus(Duration::from_secs(3600));
        self.kernel.state().registry.principal(&AGENT.parse().unwrap(), not_after).unwrap()
    }

    /// The agent in a session.
    pub(crate) fn caller(&self, session: &str) -> Caller {
        Caller {
            principal: self.principal(),
            session: Some(session.into()),
            grant: None,
            carried: Arc::default(),
            span: CallSpan::default(),
        }
    }

    /// Sends a request and gives the answer as it begins.
    pub(crate) async fn open(
        &self,
        method: Method,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Response<Incoming> {
        self.open_at(method, "/mcp", headers, body).await
    }

    /// Sends a request to another path and gives the answer as it begins.
    pub(crate) async fn open_at(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Response<Incoming> {
        let stream = TcpStream::connect(self.address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let mut request = Request::new(Full::new(body.into()));
        *request.method_mut() = method;
        *request.uri_mut() = path.parse().unwrap();
        let out = request.headers_mut();
        for (name, value) in headers {
            out.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
        }
        for (name, value) in [
            ("host", self.address.to_string().as_str()),
            ("content-type", "application/json"),
            ("accept", "application/json, text/event-stream"),
        ] {
            if !out.contains_key(name) {
                out.append(name.parse::<HeaderName>().unwrap(), value.parse().unwrap());
            }
        }
        tokio::time::timeout(PATIENCE, sender.send_request(request)).await.unwrap().unwrap()
    }

    /// Sends a request and reads the whole answer.
    pub(crate) async fn send(
        &self,
        method: Method,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        self.send_to(method, "/mcp", headers, body).await
    }

    /// Sends a request to another path and reads the whole answer.
    pub(crate) async fn send_to(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: impl Into<Bytes>,
    ) -> Answer {
        let (head, body) = self.open_at(method, path, headers, body).await.into_parts();
        let body = tokio::time::timeout(PATIENCE, body.collect()).await.unwrap().unwrap();
        Answer { status: head.status, headers: head.headers, body: body.to_bytes() }
    }

    pub(crate) async fn post(&self, body: impl Into<Bytes>) -> Answer {
        self.send(Method::POST, &[], body).await
    }

    /// A legacy call of a tool.
    pub(crate) async fn call(&self, tool: &str) -> Answer {
        self.post(call(1, tool).to_string()).await
    }

    /// Every entry of the ledger, the oldest first.
    pub(crate) async fn entries(&self) -> Vec<Entry> {
        let filter = Filter { oldest_first: true, limit: Some(1_000), ..Filter::default() };
        let page = self.kernel.query(&filter).await.unwrap();
        page.entries.iter().map(|stored| stored.entry().unwrap()).collect()
    }

    /// Waits until the ledger holds `count` entries of a kind, and gives them.
    pub(crate) async fn recorded(&self, kind: Kind, count: usize) -> Vec<Entry> {
        let found = || async {
            let all = self.entries().await;
            all.into_iter().filter(|entry| entry.kind == kind).collect::<Vec<_>>()
        };
        let enough = tokio::time::timeout(PATIENCE, async {
            loop {
                let found = found().await;
                if found.len() >= count {
                    return found;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        match enough.await {
            Ok(found) => found,
            Err(_) => panic!("waited for {count} {kind} in {:#?}", self.entries().await),
        }
    }

    /// The reasons of all refusals on record.
    pub(crate) async fn refused_for(&self) -> Vec<String> {
        let denied = self.entries().await.into_iter().filter(|entry| entry.kind == Kind::Decision);
        denied
            .filter(|entry| entry.result == aegis_audit::entry::Outcome::Deny)
            .filter_map(|entry| entry.reason)
            .collect()
    }
}

pub(crate) async fn kernel(folder: &std::path::Path, plan: &Plan) -> Arc<Kernel> {
    let (book, observer) = aegis_kernel::trust_book();
    let mut options = Options::new("tests", Signer::generate("tests.example").unwrap());
    options.observers.push(observer);
    let place = Location::Sqlite(folder.join("ledger.db"));
    let journal = Journal::open(&place, options).await.unwrap();
    let (policies, own) = (plan.policies, plan.changes_policies);
    let make = move || if own { Arc::new(own_engine(policies)) } else { engine(policies) };
    let engine = tokio::task::spawn_blocking(make).await.unwrap();
    let mut state = State::default();
    for agent in [AGENT, OTHER] {
        let agent: AgentId = agent.parse().unwrap();
        let sponsor: Sponsor = "ada@acme.example".parse().unwrap();
        state.registry.insert(agent, Registration { sponsor, capabilities: Arc::from([]) });
    }
    let kernel = Kernel::start(journal, Durability::Strict, engine, book, state, Arc::new(now));
    Arc::new(kernel.await.unwrap())
}

/// A legacy call of a tool.
pub(crate) fn call(id: u64, tool: &str) -> Value {
    json!({
        "jsonrpc": "2.0", "id": id, "method": "tools/call",
        "params": { "name": tool, "arguments": { "text": "hi" } },
    })
}

/// A legacy request.
pub(crate) fn request(id: u64, method: &str, params: Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": id, "method": method, "params": params })
}

/// A modern request, with the headers that mirror it.
pub(crate) fn modern(method: &str, mut params: Value) -> (Vec<(&'static str, String)>, Value) {
    let mut headers =
        vec![("mcp-protocol-version", "2026-07-28".to_owned()), ("mcp-method", method.to_owned())];
    if let Some(name) = params.get("name").or(params.get("uri")).and_then(Value::as_str) {
        headers.push(("mcp-name", name.to_owned()));
    }
    params["_meta"] = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {},
        "io.modelcontextprotocol/clientInfo": { "name": "tests", "version": "1" },
    });
    (headers, request(1, method, params))
}

/// A modern call of a client that shows forms.
pub(crate) fn asking(id: u64, tool: &str) -> (Vec<(&'static str, String)>, Value) {
    let params = json!({ "name": tool, "arguments": { "text": "hi" } });
    let (headers, mut body) = modern("tools/call", params);
    body["id"] = id.into();
    body["params"]["_meta"]["io.modelcontextprotocol/clientCapabilities"] =
        json!({ "elicitation": { "form": {} } });
    (headers, body)
}

/// Borrows the headers of [`modern`].
pub(crate) fn borrowed<'a>(headers: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    headers.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

/// The next piece of a streamed body; `None` at its end.
pub(crate) async fn next(body: &mut Incoming) -> Option<String> {
    let frame = tokio::time::timeout(PATIENCE, body.frame()).await.unwrap()?;
    let data = frame.ok()?.into_data().ok()?;
    Some(String::from_utf8(data.to_vec()).unwrap())
}
