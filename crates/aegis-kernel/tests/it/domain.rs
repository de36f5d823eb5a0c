//! A decision domain for tests: a kernel over policies compiled by `opa` and a ledger in a
//! temporary folder, with a clock that tests own.

use std::{
    path::Path,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use aegis_audit::{Durability, Entry, Filter, Journal, Location, Options, Signer};
use aegis_core::{
    AgentId, Timestamp,
    action::{Action, ActionKind, Protocol},
    policy::Scope,
};
use aegis_kernel::{Context, Kernel, Principal, Registration, Registry, State, trust_book};
use aegis_policy::{Bundle, Compiler, Host, Limits, Opa, Policy, PolicyEngine, PolicyId};
use serde_json::{Value, json};

/// When every test begins.
pub(crate) const START: Timestamp = Timestamp::from_secs(1_800_000_000);

const POLICIES: &str = r#"
- name: calc
  spec:
    match: { servers: [calc] }
    rules:
      - { name: add, effect: allow, tools: [add] }
      - { name: limited, effect: allow, tools: [limited], rateLimit: { requests: 2, per: hour } }
      - { name: ask, effect: require_approval, tools: [ask], reason: Somebody must look at this. }
      - { name: ask-twice, effect: require_approval, tools: [ask-twice], approvals: 2 }
      - { name: ask-code, effect: allow, tools: [ask-code], requireMfa: true }
      - name: forbidden
        effect: deny
        reason: Not that word.
        when: [{ argument: $.word, operator: equals, value: forbidden }]
        obligations: [{ kind: redactArgument, target: $.word }]
- name: broken
  spec:
    match: { servers: [broken] }
    rego: "package broken\nallow := 1"
- name: secrets
  spec:
    match: { servers: [vault] }
    rules:
      - { name: all, effect: allow }
"#;

/// Compiled once for all tests.
fn bundle() -> &'static Bundle {
    static BUNDLE: OnceLock<Bundle> = OnceLock::new();
    BUNDLE.get_or_init(|| {
        let listed: Vec<Value> = serde_yaml_ng::from_str(POLICIES).unwrap();
        let policies: Vec<Policy> = listed
            .into_iter()
            .map(|one| Policy {
                id: PolicyId::namespaced("default", one["name"].as_str().unwrap()),
                spec: serde_json::from_value(one["spec"].clone()).unwrap(),
            })
            .collect();
        let compiled = Compiler::new(Opa::locate().unwrap(), None).compile(&policies).unwrap();
        assert!(compiled.failures.is_empty(), "{:?}", compiled.failures);
        compiled.bundle
    })
}

/// A running domain.
pub(crate) struct Domain {
    pub(crate) kernel: Kernel,
    pub(crate) clock: Arc<AtomicU64>,
    pub(crate) principal: Principal,
}

pub(crate) fn agent(name: &str) -> AgentId {
    format!("spiffe://acme.example/ns/default/sa/default/agent/{name}").parse().unwrap()
}

/// An agent as it is registered by default.
pub(crate) fn principal(name: &str) -> Principal {
    state().registry.principal(&agent(name), START.plus(Duration::from_secs(86_400))).unwrap()
}

/// Three agents; `narrow` may only add.
pub(crate) fn state() -> State {
    let mut registry = Registry::default();
    for (name, capabilities) in
        [("one", vec![]), ("two", vec![]), ("narrow", vec!["call:calc/add".parse().unwrap()])]
    {
        let sponsor = "ada@acme.example".parse().unwrap();
        registry
            .insert(agent(name), Registration { sponsor, capabilities: Arc::from(capabilities) });
    }
    State { registry, ..State::default() }
}

impl Domain {
    /// Opens the domain whose ledger is in `folder`; a second time continues it.
    pub(crate) async fn open(folder: &Path) -> Self {
        Self::open_with(folder, state()).await
    }

    pub(crate) async fn open_with(folder: &Path, state: State) -> Self {
        let signer = Signer::load_or_create(&folder.join("key"), "acme.example/ledger").unwrap();
        let (book, observer) = trust_book();
        let mut options = Options::new("acme.example/test", signer);
        options.observers.push(observer);
        let location = Location::Sqlite(folder.join("ledger.db"));
        let journal = Journal::open(&location, options).await.unwrap();
        // Not about speed: a busy machine must not turn an answer into a timeout.
        let limits = Limits { budget: Duration::from_secs(10), ..Limits::default() };
        let engine = Arc::new(PolicyEngine::new(Arc::new(Host::new(limits, None).unwrap())));
        engine.load(bundle()).unwrap();
        let clock = Arc::new(AtomicU64::new(START.as_micros()));
        let read = Arc::clone(&clock);
        let now = Arc::new(move || Timestamp::from_micros(read.load(Ordering::SeqCst)));
        let kernel =
            Kernel::start(journal, Durability::Strict, engine, book, state, now).await.unwrap();
        Self { kernel, clock, principal: principal("one") }
    }

    pub(crate) fn pass(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap();
        self.clock.fetch_add(micros, Ordering::SeqCst);
    }

    pub(crate) fn context(&self) -> Context<'_> {
        Context::new(&self.principal, Scope::Mesh, "default")
    }

    /// Every entry, oldest first.
    pub(crate) async fn entries(&self) -> Vec<Entry> {
        let filter = Filter { oldest_first: true, limit: Some(1_000), ..Filter::default() };
        let page = self.kernel.query(&filter).await.unwrap();
        page.entries.iter().map(|stored| stored.entry().unwrap()).collect()
    }

    pub(crate) async fn close(self) {
        self.kernel.journal().close().await.unwrap();
    }
}

/// A call of a tool of the server `calc`.
pub(crate) fn call(tool: &str) -> Action {
    call_with(tool, json!({ "word": "hello" }))
}

pub(crate) fn call_with(tool: &str, arguments: Value) -> Action {
    Action {
        kind: ActionKind::ToolCall,
        protocol: Protocol::Mcp,
        method: "tools/call".into(),
        server: "calc".into(),
        tool: Some(tool.into()),
        tool_pin: None,
        resource: None,
        arguments,
    }
}
