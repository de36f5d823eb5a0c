//! A kernel that decides by the `policy.yaml` of a folder, with a ledger beside it.

use std::{fs, path::PathBuf, sync::Arc, time::Duration};

use aegis_audit::{Durability, Journal, Location, Options, Outcome, Signer};
use aegis_core::{
    AgentId, Timestamp,
    action::{Action, ActionKind, Protocol},
    decision::Verdict,
    policy::Scope,
};
use aegis_kernel::{Context, Ending, Kernel, Principal, Registration, Registry, State, trust_book};
use aegis_policy::{Compiler, Host, Limits, Opa, PolicyEngine, sandbox::read_policies};
use serde_json::Value;

use crate::fixture::AGENT;

pub(crate) struct Domain {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) kernel: Kernel,
    principal: Principal,
    session: Option<&'static str>,
}

impl Domain {
    pub(crate) async fn open(dir: tempfile::TempDir, thresholds: Value) -> Self {
        let limits = Limits { budget: Duration::from_secs(10), ..Limits::default() };
        let engine = Arc::new(PolicyEngine::new(Arc::new(Host::new(limits, None).unwrap())));
        let policies = read_policies(&dir.path().join("policy.yaml")).unwrap();
        engine.reload(&Compiler::new(Opa::locate().unwrap(), None), &policies).unwrap();
        let agent: AgentId = AGENT.parse().unwrap();
        let mut registry = Registry::default();
        let sponsor = "ada@acme.example".parse().unwrap();
        registry.insert(agent.clone(), Registration { sponsor, capabilities: Arc::from([]) });
        let mut state = State { registry, ..State::default() };
        state.thresholds.base = serde_json::from_value(thresholds).unwrap();
        let (book, observer) = trust_book();
        let mut options = Options::new("test", Signer::generate("acme.example/ledger").unwrap());
        options.observers.push(observer);
        let place = Location::Sqlite(dir.path().join("ledger.db"));
        let journal = Journal::open(&place, options).await.unwrap();
        let now = Timestamp::from_secs(1_800_000_000);
        let until = now.plus(Duration::from_secs(60));
        let principal = state.registry.principal(&agent, until).unwrap();
        let clock = Arc::new(move || now);
        let durability = Durability::Strict;
        let kernel = Kernel::start(journal, durability, engine, book, state, clock).await.unwrap();
        Self { dir, kernel, principal, session: None }
    }

    /// The calls from now on are of this session.
    pub(crate) fn in_session(mut self, session: &'static str) -> Self {
        self.session = Some(session);
        self
    }

    fn context(&self) -> Context<'_> {
        let context = Context::new(&self.principal, Scope::Mesh, "shop");
        Context { session: self.session, ..context }
    }

    /// What is decided about a call, and by which words.
    pub(crate) async fn decided(&self, tool: &str, arguments: Value) -> (Verdict, String) {
        self.decided_on(call(tool, arguments)).await
    }

    pub(crate) async fn decided_on(&self, action: Action) -> (Verdict, String) {
        match self.kernel.decide(self.context(), action).await {
            Ok(permit) => (Verdict::Allow, permit.into_parts().1.decision.message.clone()),
            Err(refusal) => (refusal.decision.verdict, refusal.decision.message.clone()),
        }
    }

    /// As [`Domain::decided`]; what is allowed succeeds.
    pub(crate) async fn done(&self, tool: &str, arguments: Value) -> Verdict {
        match self.kernel.decide(self.context(), call(tool, arguments)).await {
            Ok(permit) => {
                let ending = Ending {
                    result: Outcome::Success,
                    reason: None,
                    status: None,
                    bytes: 1,
                    sent: 0,
                    events: 1,
                    micros: 1,
                    redactions: 0,
                };
                self.kernel.conclude(&permit.into_parts().1, &ending).await.unwrap();
                Verdict::Allow
            }
            Err(refusal) => refusal.decision.verdict,
        }
    }

    pub(crate) async fn expect(&self, cases: &[(&str, Value, Verdict)]) {
        for (tool, arguments, expected) in cases {
            let (verdict, message) = self.decided(tool, arguments.clone()).await;
            assert_eq!(verdict, *expected, "{tool} {arguments}: {message}\n{}", self.policies());
        }
    }

    pub(crate) fn policies(&self) -> String {
        fs::read_to_string(self.dir.path().join("policy.yaml")).unwrap()
    }

    /// Closes the ledger, and says where it is.
    pub(crate) async fn close(self) -> (tempfile::TempDir, PathBuf) {
        self.kernel.journal().close().await.unwrap();
        let ledger = self.dir.path().join("ledger.db");
        (self.dir, ledger)
    }
}

fn call(tool: &str, arguments: Value) -> Action {
    Action {
        kind: ActionKind::ToolCall,
        protocol: Protocol::Mcp,
        method: "tools/call".into(),
        server: "any".into(),
        tool: Some(tool.into()),
        tool_pin: None,
        resource: None,
        arguments,
    }
}
