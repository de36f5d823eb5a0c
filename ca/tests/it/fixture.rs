//! A CA in a temporary directory, its socket, and a registration of this very process.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use aegis_ca::{
    Applications, CaConfig, Directory, IdentityEvent, IdentityManager, Lifetimes, Recorder,
    RecorderError, Registration, Selector, WorkloadSocket,
};
use aegis_core::{AgentId, Sponsor};
use aegis_identity::system_clock;
use futures::future::BoxFuture;
use parking_lot::Mutex;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

pub(crate) const AGENT: &str = "spiffe://acme.example/ns/shop/sa/bot/agent/buyer";

/// Keeps what it is told, or refuses to.
#[derive(Default)]
pub(crate) struct Log {
    pub(crate) events: Mutex<Vec<IdentityEvent>>,
    pub(crate) broken: AtomicBool,
}

impl Recorder for Log {
    fn record<'a>(&'a self, event: &'a IdentityEvent) -> BoxFuture<'a, Result<(), RecorderError>> {
        Box::pin(async {
            if self.broken.load(Ordering::SeqCst) {
                return Err("the disk is full".into());
            }
            self.events.lock().push(event.clone());
            Ok(())
        })
    }
}

pub(crate) struct Running {
    pub(crate) manager: IdentityManager,
    pub(crate) log: Arc<Log>,
    pub(crate) endpoint: String,
    pub(crate) stop: CancellationToken,
    pub(crate) directory: TempDir,
}

pub(crate) fn agent() -> AgentId {
    AGENT.parse().unwrap()
}

pub(crate) fn sponsor() -> Sponsor {
    "ada@acme.example".parse().unwrap()
}

pub(crate) fn registration(selectors: Vec<Selector>) -> Registration {
    Registration { id: agent(), sponsor: sponsor(), capabilities: vec![], selectors, ttl: None }
}

/// This process, as the kernel sees it.
pub(crate) fn this_process() -> Vec<Selector> {
    vec![
        Selector::Uid(nix::unistd::getuid().as_raw()),
        Selector::Path(std::env::current_exe().unwrap().canonicalize().unwrap()),
    ]
}

pub(crate) fn manager(directory: &TempDir, log: &Arc<Log>) -> IdentityManager {
    let config =
        CaConfig { trust_domain: "acme.example".parse().unwrap(), lifetimes: Lifetimes::default() };
    let store = Directory::open(directory.path().join("ca")).unwrap();
    IdentityManager::open(store, config, log.clone(), system_clock()).unwrap()
}

pub(crate) async fn start() -> Running {
    let directory = tempfile::tempdir().unwrap();
    let log = Arc::new(Log::default());
    let manager = manager(&directory, &log);
    let socket = WorkloadSocket::bind(directory.path().join("api/workload.sock")).await.unwrap();
    let (endpoint, stop) = (socket.endpoint(), CancellationToken::new());
    tokio::spawn(socket.serve(Applications::new(manager.clone()), stop.clone()));
    Running { manager, log, endpoint, stop, directory }
}

/// Nothing in these tests takes this long.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(60), future).await.expect("it takes too long")
}
