//! The daemon: wiring, reloading, and an orderly end.

use std::{
    collections::{BTreeMap, HashSet},
    fs,
    net::SocketAddr,
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    sync::Arc,
    time::Duration,
};

use aegis_audit::{
    Draft, Durability, Filter, Journal, Kind, Location, Options, Outcome, Signer, Stored,
};
use aegis_ca::{IdentityManager, Subject, WorkloadSocket};
use aegis_core::{AgentId, Timestamp, TrustDomain};
use aegis_kernel::{Kernel, State, trust_book, trust_book::TrustBook};
use aegis_policy::{
    Compiler, Host, Limits, ModuleCache, Opa, PolicyEngine, PolicyState, PolicyStatus,
};
use aegis_resources::AgentUpstreamSpec;
use aegis_sidecar::{Attest, Route, Shared, metrics::Metrics, refusals::Refusals};
use anyhow::Context as _;
use parking_lot::Mutex;
use prometheus::Registry;
use serde_json::json;
use tokio::net::{TcpListener, UnixListener};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use super::{
    Args, AuditMode,
    attest::{LocalAttest, now},
    config::Configuration,
    control, identity,
    operators::Operators,
};

/// How often the folder is looked at even if nothing announced a change.
const RECONFIRM: Duration = Duration::from_secs(15);
/// How long approvals that ended are still shown.
const REMEMBER: Duration = Duration::from_secs(24 * 60 * 60);
/// How long after a change a reload waits for the rest of it.
const SETTLE: Duration = Duration::from_millis(100);

/// Where a route listens.
pub(super) struct Listening {
    pub(super) route: Arc<Route>,
    /// `None` for a wrapped command.
    pub(super) address: Option<SocketAddr>,
}

/// The most servers, so that callers who make names up do not fill the memory.
const MAX_ROUTES: usize = 1_024;

/// Everything of the process.
pub(super) struct Daemon {
    pub(super) config: PathBuf,
    /// Where the control socket and that of the Workload API are.
    pub(super) sockets: PathBuf,
    pub(super) operators: Operators,
    pub(super) trust_domain: TrustDomain,
    pub(super) audit: AuditMode,
    pub(super) started_at: Timestamp,
    pub(super) location: Location,
    pub(super) kernel: Arc<Kernel>,
    pub(super) attest: Arc<LocalAttest>,
    pub(super) authority: IdentityManager,
    pub(super) shared: Arc<Shared>,
    pub(super) routes: Mutex<BTreeMap<(String, String), Listening>>,
    pub(super) policies: Mutex<Vec<PolicyStatus>>,
    pub(super) problems: Mutex<Vec<String>>,
    pub(super) totp: Mutex<Option<aegis_kernel::totp::Totp>>,
    pub(super) metrics: Registry,
    /// What was put in force last.
    last: Mutex<Configuration>,
    compiler: Compiler,
    admin: TcpListener,
    control: UnixListener,
    workload: Mutex<Option<WorkloadSocket>>,
    tasks: TaskTracker,
    drain: CancellationToken,
}

impl Daemon {
    /// Opens and binds everything; nothing is served yet.
    pub(super) async fn build(args: &Args, drain: CancellationToken) -> anyhow::Result<Arc<Self>> {
        private_folder(&args.state)?;
        let sockets = args.sockets.clone().unwrap_or_else(|| args.state.clone());
        let operators = Operators::new(&args.operators)?;
        anyhow::ensure!(
            args.config.is_dir(),
            "the configuration folder {} does not exist; write one with `aegis init {}`",
            args.config.display(),
            args.config.display()
        );
        let configuration = Configuration::read(&args.config, &args.trust_domain)?;
        anyhow::ensure!(
            !configuration.incomplete,
            "{}\nnothing was in force before, so nothing could stay in force: mend or remove these documents",
            configuration.problems.join("\n")
        );
        let admin = TcpListener::bind(args.admin).await.with_context(|| {
            format!(
                "cannot listen on {} for metrics and health; choose another with --admin",
                args.admin
            )
        })?;
        let control = bind_control(&sockets.join("control.sock"), args.sockets.is_some())?;
        let (book, observer) = trust_book();
        let (journal, location) = open_journal(args, observer).await?;
        let compiler =
            Compiler::new(Opa::locate()?, Some(ModuleCache::open(args.state.join("policies"))?));
        let authority = identity::open(&args.state.join("ca"), &args.trust_domain, &journal)?;
        let kernel =
            start_kernel(args, journal, book, configuration.state.clone(), &authority).await?;
        let metrics = Registry::new();
        let attest = Arc::new(LocalAttest::default());
        let shared = Arc::new(Shared {
            kernel: Arc::clone(&kernel),
            attest: Arc::clone(&attest) as Arc<dyn Attest>,
            refusals: Arc::new(Refusals::default()),
            metrics: Metrics::register(&metrics)?,
            drain: drain.clone(),
        });
        let workload = WorkloadSocket::bind(sockets.join("workload").join("api.sock")).await?;
        let daemon = Arc::new(Self {
            config: args.config.clone(),
            sockets,
            operators,
            trust_domain: args.trust_domain.clone(),
            audit: args.audit,
            started_at: now(),
            location,
            kernel,
            attest,
            authority,
            shared,
            routes: Mutex::default(),
            policies: Mutex::default(),
            problems: Mutex::default(),
            totp: Mutex::new(control::read_totp(&args.state)?),
            metrics,
            last: Mutex::default(),
            compiler,
            admin,
            control,
            workload: Mutex::new(Some(workload)),
            tasks: TaskTracker::new(),
            drain,
        });
        daemon.apply(configuration).await?;
        daemon.refuse_broken_policies()?;
        Ok(daemon)
    }

    /// A policy that is broken from the start has no last good version that could protect.
    fn refuse_broken_policies(&self) -> anyhow::Result<()> {
        let policies = self.policies.lock();
        let failed = policies.iter().filter(|status| status.state == PolicyState::Failed);
        let broken: Vec<String> =
            failed.map(|status| format!("policy {}: {}", status.policy, status.message)).collect();
        anyhow::ensure!(
            broken.is_empty(),
            "{}\nnothing was in force before, so nothing could stay in force: mend or remove these policies",
            broken.join("\n")
        );
        Ok(())
    }

    /// Says where everything is.
    #[expect(clippy::print_stdout, reason = "this is what the user waits for")]
    pub(super) fn announce(&self) {
        println!("aegis {} is up, trust domain {}", env!("CARGO_PKG_VERSION"), self.trust_domain);
        println!("  control    {}", self.sockets.join("control.sock").display());
        println!("  ledger     {} ({:?})", self.location, self.audit);
        println!("  workload   unix://{}", self.sockets.join("workload/api.sock").display());
        if let Ok(address) = self.admin.local_addr() {
            println!("  metrics    http://{address}/metrics");
        }
        for ((namespace, name), listening) in self.routes.lock().iter() {
            match listening.address {
                Some(address) => {
                    let path = listening.route.target.as_ref().map_or("/", |target| target.path());
                    println!("  upstream   {namespace}/{name}  http://{address}{path}");
                }
                None => {
                    let line = control::wrap_line(&listening.route);
                    println!("  upstream   {namespace}/{name}  {line}");
                }
            }
        }
        for problem in self.problems.lock().iter() {
            println!("  problem    {problem}");
        }
    }

    /// Serves until `shutdown`, then ends in order.
    pub(super) async fn run(
        self: Arc<Self>,
        shutdown: CancellationToken,
        patience: Duration,
    ) -> anyhow::Result<()> {
        let tasks = &self.tasks;
        let refusals = Arc::clone(&self.shared.refusals);
        tasks.spawn(refusals.keep_flushing(Arc::clone(&self.kernel), self.drain.clone()));
        tasks.spawn(Arc::clone(&self).keep_current());
        if let Some(workload) = self.workload.lock().take() {
            let serving = workload.serve(self.authority.clone(), self.drain.clone());
            tasks.spawn(async move {
                if let Err(error) = serving.await {
                    tracing::error!(%error, "the Workload API has stopped");
                }
            });
        }
        let rotating = tokio::spawn(self.authority.clone().keep_rotating());
        let control = control::serve(Arc::clone(&self), &self.control, &self.admin)?;
        tokio::select! {
            () = shutdown.cancelled() => {}
            ended = control => ended?,
        }
        tracing::info!("draining");
        rotating.abort();
        tasks.close();
        if !aegis_runtime::drained(tasks.wait(), patience).await {
            tracing::warn!(seconds = patience.as_secs(), "open exchanges did not end in time");
        }
        self.kernel.keep_trust().await;
        self.kernel.journal().close().await.context("the ledger did not close in order")?;
        let _ = fs::remove_file(self.sockets.join("control.sock"));
        Ok(())
    }

    /// Reads the folder again and puts it in force.
    pub(super) async fn reload(self: &Arc<Self>) -> anyhow::Result<()> {
        let (folder, trust_domain) = (self.config.clone(), self.trust_domain.clone());
        let read = tokio::task::spawn_blocking(move || Configuration::read(&folder, &trust_domain))
            .await?;
        self.apply(read?).await
    }

    async fn apply(self: &Arc<Self>, mut configuration: Configuration) -> anyhow::Result<()> {
        configuration.keep_missing(&self.last.lock());
        *self.last.lock() = configuration.clone();
        let Configuration { policies, mut state, registrations, upstreams, mut problems, .. } =
            configuration;
        let before: BTreeMap<String, String> = self.digests();
        let daemon = Arc::clone(self);
        let statuses = tokio::task::spawn_blocking(move || {
            daemon.kernel.engine().reload(&daemon.compiler, &policies)
        })
        .await??;
        self.record_policies(&before, &statuses).await?;
        self.authority.register(registrations.clone())?;
        self.attest.register(registrations);
        let current = self.kernel.state();
        state.revoked.clone_from(&current.revoked);
        state.quarantined.clone_from(&current.quarantined);
        state.confirmed_at = Some(now());
        self.kernel.update(state).await?;
        for status in statuses.iter().filter(|status| status.state != PolicyState::Ready) {
            let line = status.line.map_or(String::new(), |line| format!(", line {line}"));
            problems.push(format!("policy {}{line}: {}", status.policy, status.message));
        }
        *self.policies.lock() = statuses;
        for ((namespace, name), spec) in upstreams {
            if let Err(problem) = self.listen(&namespace, &name, spec).await {
                problems.push(format!("{problem:#}"));
            }
        }
        *self.problems.lock() = problems;
        Ok(())
    }

    fn digests(&self) -> BTreeMap<String, String> {
        let set = self.kernel.engine().policies();
        set.policies().map(|(id, digest)| (id.to_string(), digest.to_string())).collect()
    }

    /// Every policy that has come, changed or broken leaves an entry.
    async fn record_policies(
        &self,
        before: &BTreeMap<String, String>,
        statuses: &[PolicyStatus],
    ) -> anyhow::Result<()> {
        let after = self.digests();
        for (name, digest) in
            after.iter().filter(|(name, digest)| before.get(*name) != Some(digest))
        {
            let mut draft = Draft::new(Kind::PolicyLoaded, now(), Outcome::Recorded);
            draft.detail.insert("policy".into(), json!(name));
            draft.detail.insert("digest".into(), json!(digest));
            self.kernel.record(draft).await?;
        }
        for name in before.keys().filter(|name| !after.contains_key(*name)) {
            let mut draft = Draft::new(Kind::PolicyLoaded, now(), Outcome::Recorded);
            draft.detail.insert("policy".into(), json!(name));
            draft.detail.insert("removed".into(), json!(true));
            self.kernel.record(draft).await?;
        }
        let known = self.policies.lock().clone();
        for status in
            statuses.iter().filter(|s| s.state != PolicyState::Ready && !known.contains(s))
        {
            let mut draft = Draft::new(Kind::PolicyRefused, now(), Outcome::Recorded);
            draft.detail.insert("policy".into(), json!(status.policy.to_string()));
            draft.detail.insert("message".into(), json!(status.message));
            self.kernel.record(draft).await?;
        }
        Ok(())
    }

    /// Starts to listen for an upstream that is new.
    async fn listen(
        self: &Arc<Self>,
        namespace: &str,
        name: &str,
        spec: AgentUpstreamSpec,
    ) -> anyhow::Result<()> {
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(listening) = self.routes.lock().get(&key) {
            anyhow::ensure!(
                listening.route.spec == spec,
                "AgentUpstream `{name}` has changed; restart `aegis up` to use the new version"
            );
            return Ok(());
        }
        let route = Arc::new(Route::new(Arc::clone(&self.shared), namespace, name, spec)?);
        self.replay_pins(&route).await?;
        let mut address = None;
        if route.target.is_some() {
            let wanted = route.spec.listen.unwrap_or_else(|| SocketAddr::from(([127, 0, 0, 1], 0)));
            let listener = TcpListener::bind(wanted).await.with_context(|| {
                format!("AgentUpstream `{name}`: cannot listen on {wanted}; change `spec.listen` or free the port")
            })?;
            address = Some(listener.local_addr()?);
            self.tasks.spawn(aegis_sidecar::serve(Arc::clone(&route), listener));
        }
        self.routes.lock().insert(key, Listening { route, address });
        Ok(())
    }

    /// The route for a wrapped command: one that is configured, or one with the defaults.
    pub(super) async fn wrapped(
        self: &Arc<Self>,
        namespace: &str,
        name: &str,
    ) -> anyhow::Result<Arc<Route>> {
        let key = (namespace.to_owned(), name.to_owned());
        if let Some(listening) = self.routes.lock().get(&key) {
            anyhow::ensure!(
                listening.route.target.is_none(),
                "AgentUpstream `{name}` is an HTTP upstream; connect to its address instead of wrapping a command"
            );
            return Ok(Arc::clone(&listening.route));
        }
        for part in [namespace, name] {
            anyhow::ensure!(
                aegis_resources::is_label(part),
                "`{part}` cannot name a server or a namespace; use lower-case letters, digits and `-`, at most 63"
            );
        }
        anyhow::ensure!(
            self.routes.lock().len() < MAX_ROUTES,
            "there are {MAX_ROUTES} servers already; restart Aegis to forget those that are not configured"
        );
        let spec = AgentUpstreamSpec {
            protocol: Default::default(),
            url: None,
            command: None,
            listen: None,
            roots: None,
            credential: None,
            oauth_metadata: None,
            tool_pins: Default::default(),
            deny_form: Default::default(),
            allowed_origins: Vec::new(),
            limits: Default::default(),
        };
        let route = Arc::new(Route::new(Arc::clone(&self.shared), namespace, name, spec)?);
        self.replay_pins(&route).await?;
        let listening = Listening { route: Arc::clone(&route), address: None };
        self.routes.lock().insert(key, listening);
        Ok(route)
    }

    async fn replay_pins(&self, route: &Route) -> anyhow::Result<()> {
        let filter = Filter {
            kind: Some(Kind::ToolPinned),
            server: Some(route.name.clone()),
            ..Filter::default()
        };
        let replay = |stored: Stored| {
            route.pins.replay(&stored.entry()?);
            anyhow::Ok(())
        };
        self.kernel.journal().reader().walk(filter, replay).await
    }

    /// Reloads when the folder changes, and confirms now and then that it has not.
    async fn keep_current(self: Arc<Self>) {
        let (changed, mut changes) = tokio::sync::mpsc::channel::<()>(1);
        let watcher = watch(&self.config, changed);
        if let Err(error) = &watcher {
            tracing::warn!(%error, "changes of the folder are noticed only every 15 s");
        }
        let mut seen = stamp(&self.config);
        loop {
            tokio::select! {
                () = self.drain.cancelled() => return,
                Some(()) = changes.recv() => tokio::time::sleep(SETTLE).await,
                () = tokio::time::sleep(RECONFIRM) => {}
            }
            let current = stamp(&self.config);
            if current.is_none() {
                // Nothing is confirmed: after `maxStaleness`, sensitive actions are denied.
                *self.problems.lock() = vec![format!("{} cannot be read", self.config.display())];
                continue;
            }
            if current == seen {
                self.confirm().await;
                continue;
            }
            seen = current;
            match self.reload().await {
                Ok(()) => {
                    tracing::info!("configuration reloaded");
                    for problem in self.problems.lock().iter() {
                        tracing::warn!("{problem}");
                    }
                }
                Err(error) => {
                    tracing::error!("the configuration could not be reloaded: {error:#}");
                    self.problems.lock().push(format!("{error:#}"));
                }
            }
        }
    }

    async fn confirm(&self) {
        let mut state = (*self.kernel.state()).clone();
        state.confirmed_at = Some(now());
        self.kernel.confirm(state);
        self.kernel.forget_approvals(now().minus(REMEMBER));
        self.kernel.keep_trust().await;
    }
}

/// The kernel, with what people ordered before this start.
async fn start_kernel(
    args: &Args,
    journal: Journal,
    book: Arc<Mutex<TrustBook>>,
    mut state: State,
    authority: &IdentityManager,
) -> anyhow::Result<Arc<Kernel>> {
    let durability = match args.audit {
        AuditMode::Strict => Durability::Strict,
        AuditMode::Overlap => Durability::Overlap,
        AuditMode::Buffered => Durability::Buffered,
    };
    state.confirmed_at = Some(now());
    state.revoked = revoked(authority);
    state.quarantined = quarantined(&journal).await?;
    let engine = Arc::new(engine(args)?);
    let kernel = Kernel::start(journal, durability, engine, book, state, Arc::new(now)).await?;
    Ok(Arc::new(kernel))
}

/// Identities that the CA has revoked: they stay so.
fn revoked(authority: &IdentityManager) -> HashSet<AgentId> {
    let ids = authority.revoked().into_iter().filter_map(|revoked| match revoked.subject {
        Subject::Id(id) => AgentId::try_from(id).ok(),
        Subject::Serial(_) => None,
    });
    ids.collect()
}

/// Agents that people have quarantined and not released, as the ledger tells.
async fn quarantined(journal: &Journal) -> anyhow::Result<HashSet<AgentId>> {
    let mut agents = HashSet::new();
    let filter = Filter { kind: Some(Kind::Configuration), ..Filter::default() };
    let follow = |stored: Stored| {
        let entry = stored.entry()?;
        let order = entry.detail.get("order").and_then(serde_json::Value::as_str);
        let agent = entry.agent_id.as_deref().and_then(|id| id.parse::<AgentId>().ok());
        match (order, agent) {
            (Some("quarantine"), Some(agent)) => drop(agents.insert(agent)),
            (Some("release"), Some(agent)) => drop(agents.remove(&agent)),
            _ => {}
        }
        anyhow::Ok(())
    };
    journal.reader().walk(filter, follow).await?;
    Ok(agents)
}

/// Every file and folder below a folder. `None` if it cannot be read.
pub(super) fn files_of(folder: &Path) -> Option<Vec<PathBuf>> {
    stamp(folder).map(|stamps| stamps.into_iter().map(|(path, ..)| path).collect())
}

/// What the folder's files look like: names, sizes and times. `None` if it cannot be read.
fn stamp(folder: &Path) -> Option<Vec<(PathBuf, u64, std::time::SystemTime)>> {
    let mut stamps = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).ok()? {
            let entry = entry.ok()?;
            let meta = entry.metadata().ok()?;
            if meta.is_dir() && folders.len() < 256 {
                folders.push(entry.path());
            }
            stamps.push((entry.path(), meta.len(), meta.modified().ok()?));
        }
    }
    stamps.sort();
    Some(stamps)
}

fn watch(
    folder: &Path,
    changed: tokio::sync::mpsc::Sender<()>,
) -> notify::Result<notify::RecommendedWatcher> {
    use notify::Watcher as _;
    let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
        if event.is_ok_and(|event| !event.kind.is_access()) {
            let _ = changed.try_send(());
        }
    })?;
    watcher.watch(folder, notify::RecursiveMode::Recursive)?;
    Ok(watcher)
}

/// Creates a folder that only its owner can enter.
fn private_folder(folder: &Path) -> anyhow::Result<()> {
    if !folder.exists() {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(folder)
            .with_context(|| format!("cannot create the state folder {}", folder.display()))?;
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(folder)?.permissions());
    anyhow::ensure!(
        mode.trailing_zeros() >= 6 || mode & 0o077 == 0,
        "the state folder {} can be entered by others; run `chmod 700 {}`",
        folder.display(),
        folder.display()
    );
    Ok(())
}

/// Binds the control socket; one that answers belongs to another daemon.
///
/// A `shared` one can be connected to by everybody who can enter its folder: wrappers of agents of
/// other users must.
fn bind_control(path: &Path, shared: bool) -> anyhow::Result<UnixListener> {
    if path.exists() {
        anyhow::ensure!(
            std::os::unix::net::UnixStream::connect(path).is_err(),
            "another `aegis up` uses {}; stop it, or choose another folder with --state",
            path.display()
        );
        fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?;
    }
    let listener = UnixListener::bind(path)
        .with_context(|| format!("cannot bind the control socket {}", path.display()))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(if shared { 0o666 } else { 0o600 });
    fs::set_permissions(path, mode)
        .with_context(|| format!("cannot set the mode of {}", path.display()))?;
    Ok(listener)
}

async fn open_journal(
    args: &Args,
    observer: aegis_audit::Observer,
) -> anyhow::Result<(Journal, Location)> {
    let location = match &args.ledger {
        Some(place) => match place.parse::<Location>() {
            Ok(location) => location,
            Err(never) => match never {},
        },
        None => Location::Sqlite(args.state.join("ledger.db")),
    };
    let origin = format!("{}/ledger", args.trust_domain);
    let signer = Signer::load_or_create(&args.state.join("ledger.key"), &origin)?;
    let mut options = Options::new(format!("{}/daemon", args.trust_domain), signer);
    options.observers.push(observer);
    if matches!(location, Location::Postgres(_)) {
        options.saved_checkpoint = Some(args.state.join("ledger.checkpoint"));
    }
    let journal = Journal::open(&location, options)
        .await
        .with_context(|| format!("the ledger {location} cannot be opened"))?;
    Ok((journal, location))
}

fn engine(args: &Args) -> anyhow::Result<PolicyEngine> {
    let cache = ModuleCache::open(args.state.join("policies"))?;
    let budget = Duration::from_millis(args.policy_budget_ms);
    let host = Host::new(Limits { budget, ..Limits::default() }, Some(&cache.machine_code()?))?;
    Ok(PolicyEngine::new(Arc::new(host)))
}
