//! The daemon: wiring, reloading, and an orderly end.

mod folder;
mod opening;
mod upstreams;

use std::{
    collections::BTreeMap,
    fs,
    net::SocketAddr,
    path::PathBuf,
    sync::{Arc, Weak},
    time::Duration,
};

use aegis_audit::{Draft, Kind, Location, Outcome};
use aegis_ca::{Applications, IdentityManager, WorkloadSocket};
use aegis_core::{Timestamp, TrustDomain, policy::ComplianceTag};
use aegis_kernel::{Kernel, State, trust_book};
use aegis_policy::{Compiler, ModuleCache, Opa, Policy, PolicyState, PolicyStatus};
use aegis_runtime::telemetry::Telemetry;
use aegis_sidecar::{
    Attest, KernelApi, Reachable, Route, Shared,
    kernel_api::{Door, Feed, IsAdvisory, feed},
    metrics::Metrics,
    refusals::Refusals,
};
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
    control,
    guesses::Guesses,
    identity, kernel,
    notices::Notices,
    operators::Operators,
};
use crate::output::Several;

pub(super) use folder::files_of;
pub(super) use opening::bind_socket;

use folder::{stamp, watch};
use opening::StateLock;

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
    /// Whether an AgentUpstream asked for it; otherwise a wrapper with a command of its own.
    pub(super) configured: bool,
}

/// Everything of the process.
pub(super) struct Daemon {
    pub(super) config: PathBuf,
    /// Where the control socket, that of the kernel API and that of the Workload API are.
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
    /// Wrong one-time codes that are not recorded yet.
    pub(super) guesses: Arc<Guesses>,
    /// How many connect and wrap at a time.
    pub(super) gates: control::Gates,
    /// Who is signed in to the console.
    pub(super) sessions: control::Sessions,
    pub(super) totp: Mutex<Option<control::Enrolled>>,
    pub(super) metrics: Registry,
    /// What was put in force last.
    pub(super) last: Mutex<Configuration>,
    /// One reload at a time: what was read later is in force later.
    reloading: tokio::sync::Mutex<()>,
    _lock: StateLock,
    compiler: Compiler,
    /// Metrics and health, and the console where it is of loopback.
    pub(super) admin: TcpListener,
    control: UnixListener,
    kernel_api: Arc<KernelApi>,
    /// What the ledger has committed, as it comes.
    pub(super) feed: Feed,
    /// Where the kernel API is on loopback, if it was asked for.
    kernel_address: Option<SocketAddr>,
    doors: Mutex<Vec<Door>>,
    workload: Mutex<Option<WorkloadSocket>>,
    tasks: TaskTracker,
    drain: CancellationToken,
}

/// Whether the daemon's decisions are advisory; one that is not there any more decides nothing.
fn is_advisory(daemon: &Weak<Daemon>) -> IsAdvisory {
    let daemon = Weak::clone(daemon);
    Box::new(move || daemon.upgrade().is_none_or(|daemon| !control::advisory(&daemon).is_empty()))
}

/// What the folder says at the start, when nothing is in force yet that a broken document could leave standing.
fn first_configuration(args: &Args) -> anyhow::Result<(PathBuf, Configuration)> {
    let folder = opening::folder(&args.config)?;
    let configuration = Configuration::read(&folder, &args.trust_domain)?;
    if configuration.incomplete {
        return Err(nothing_to_keep("documents", configuration.problems));
    }
    Ok((folder, configuration))
}

impl Daemon {
    /// Opens and binds everything; nothing is served yet.
    pub(super) async fn build(
        args: &Args,
        telemetry: &Telemetry,
        drain: CancellationToken,
    ) -> anyhow::Result<Arc<Self>> {
        opening::private_folder(&args.state)?;
        let lock = opening::lock(&args.state)?;
        let sockets = args.sockets.clone().unwrap_or_else(|| args.state.clone());
        let operators = Operators::new(&args.operators)?;
        let (config, configuration) = first_configuration(args)?;
        let admin = opening::bind_admin(args.admin).await?;
        let control = opening::bind_socket(&sockets.join("control.sock"), args.sockets.is_some())?;
        let doors = kernel::doors(args, &sockets).await?;
        let ((book, observer), (feed, tells)) = (trust_book(), feed());
        let (journal, location) = opening::open_journal(args, telemetry, [observer, tells]).await?;
        let compiler =
            Compiler::new(Opa::locate()?, Some(ModuleCache::open(args.state.join("policies"))?));
        let authority = identity::open(&args.state.join("ca"), &args.trust_domain, &journal)?;
        let state = configuration.state.clone();
        let kernel = opening::start_kernel(args, journal, book, state, &authority).await?;
        let (metrics, attest) = (Registry::new(), Arc::new(LocalAttest::default()));
        let shared = Arc::new(Shared {
            kernel: Arc::clone(&kernel),
            attest: Arc::clone(&attest) as Arc<dyn Attest>,
            refusals: Arc::new(Refusals::default()),
            metrics: Metrics::register(&metrics)?,
            tracer: telemetry.tracer(),
            reachable: Reachable::Everything,
            drain: drain.clone(),
        });
        let totp = Mutex::new(control::read_totp(&args.state)?);
        let workload = WorkloadSocket::bind(sockets.join("workload").join("api.sock")).await?;
        let daemon = Arc::new_cyclic(|this: &Weak<Self>| Self {
            config,
            sockets,
            operators,
            trust_domain: args.trust_domain.clone(),
            audit: args.audit,
            started_at: now(),
            location,
            kernel,
            attest,
            authority,
            shared: Arc::clone(&shared),
            routes: Mutex::default(),
            policies: Mutex::default(),
            problems: Mutex::default(),
            guesses: Arc::default(),
            gates: control::Gates::default(),
            sessions: control::Sessions::default(),
            totp,
            metrics,
            last: Mutex::default(),
            reloading: tokio::sync::Mutex::default(),
            _lock: lock,
            compiler,
            admin,
            control,
            kernel_api: KernelApi::new(Arc::clone(&shared), feed.clone(), is_advisory(this)),
            feed,
            kernel_address: doors.address,
            doors: Mutex::new(doors.all),
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
        if broken.is_empty() { Ok(()) } else { Err(nothing_to_keep("policies", broken)) }
    }

    /// Completes when the process begins to drain.
    pub(super) fn draining(&self) -> impl Future<Output = ()> + Send + use<> {
        self.drain.clone().cancelled_owned()
    }

    /// Tells of approvals from now on.
    pub(super) fn tell_by(&self, notices: Notices) {
        self.tasks.spawn(notices.keep_telling(Arc::clone(&self.kernel), self.drain.clone()));
    }

    /// Says where everything is.
    #[expect(clippy::print_stdout, reason = "this is what the user waits for")]
    pub(super) fn announce(&self) {
        println!("aegis {} is up, trust domain {}", env!("CARGO_PKG_VERSION"), self.trust_domain);
        println!("  control    {}", self.sockets.join("control.sock").display());
        println!("  kernel     {}", self.sockets.join("kernel.sock").display());
        if let Some(address) = self.kernel_address {
            println!("  kernel     http://{address}");
        }
        println!("  ledger     {} ({:?})", self.location, self.audit);
        println!("  workload   unix://{}", self.sockets.join("workload/api.sock").display());
        if let Ok(address) = self.admin.local_addr() {
            println!("  metrics    http://{address}/metrics");
        }
        if let Some(link) = control::console_link(self, false) {
            println!("  console    {}  (works once; another: aegis console)", link.url);
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
        let guesses = Arc::clone(&self.guesses);
        tasks.spawn(guesses.keep_recording(Arc::clone(&self.kernel), self.drain.clone()));
        tasks.spawn(Arc::clone(&self).keep_current());
        if let Some(workload) = self.workload.lock().take() {
            let serving =
                workload.serve(Applications::new(self.authority.clone()), self.drain.clone());
            tasks.spawn(async move {
                if let Err(error) = serving.await {
                    tracing::error!(%error, "the Workload API has stopped");
                }
            });
        }
        tasks.spawn(Arc::clone(&self.kernel_api).serve(std::mem::take(&mut self.doors.lock())));
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
        for socket in ["control.sock", "kernel.sock"] {
            let _ = fs::remove_file(self.sockets.join(socket));
        }
        Ok(())
    }

    /// Reads the folder again and puts it in force.
    pub(super) async fn reload(self: &Arc<Self>) -> anyhow::Result<()> {
        let _turn = self.reloading.lock().await;
        let (folder, trust_domain) = (self.config.clone(), self.trust_domain.clone());
        let read = tokio::task::spawn_blocking(move || Configuration::read(&folder, &trust_domain))
            .await?;
        self.apply(read?).await
    }

    async fn apply(self: &Arc<Self>, mut configuration: Configuration) -> anyhow::Result<()> {
        configuration.keep_missing(&self.last.lock());
        *self.last.lock() = configuration.clone();
        let Configuration { policies, state, registrations, upstreams, mut problems, .. } =
            configuration.clone();
        let before: BTreeMap<String, String> = self.digests();
        let tags = tags(&policies)?;
        let daemon = Arc::clone(self);
        let mut statuses = tokio::task::spawn_blocking(move || {
            daemon.kernel.engine().reload(&daemon.compiler, &policies)
        })
        .await??;
        statuses.iter_mut().for_each(|status| configuration.place(status));
        self.record_policies(&before, &statuses, &tags).await?;
        self.authority.register(registrations.clone())?;
        self.attest.register(registrations);
        let at = now();
        self.kernel.update_with(|current| put_in_force(current, &state, at)).await?;
        for status in statuses.iter().filter(|status| status.state != PolicyState::Ready) {
            problems.push(format!("policy {}: {}", status.policy, status.message));
        }
        *self.policies.lock() = statuses;
        self.close_removed(&upstreams);
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
        tags: &BTreeMap<String, Vec<ComplianceTag>>,
    ) -> anyhow::Result<()> {
        let after = self.digests();
        for (name, digest) in
            after.iter().filter(|(name, digest)| before.get(*name) != Some(digest))
        {
            let mut draft = Draft::new(Kind::PolicyLoaded, now(), Outcome::Recorded);
            draft.detail.insert("policy".into(), json!(name));
            draft.detail.insert("digest".into(), json!(digest));
            if let Some(tags) = tags.get(digest) {
                draft.detail.insert("compliance".into(), json!(tags));
            }
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
        self.kernel.confirm(now());
        self.kernel.forget_approvals(now().minus(REMEMBER));
        self.kernel.keep_trust().await;
    }
}

/// The controls that policies help to meet, by the digests of their versions.
fn tags(policies: &[Policy]) -> anyhow::Result<BTreeMap<String, Vec<ComplianceTag>>> {
    let tagged = policies.iter().filter(|policy| !policy.spec.compliance.is_empty());
    tagged
        .map(|policy| Ok((policy.digest()?.to_string(), policy.spec.compliance.clone())))
        .collect()
}

/// Puts what a folder says in force. What people have ordered stays.
fn put_in_force(current: &mut State, read: &State, at: Timestamp) {
    *current = State {
        revoked: std::mem::take(&mut current.revoked),
        quarantined: std::mem::take(&mut current.quarantined),
        confirmed_at: Some(at),
        ..read.clone()
    };
}

/// At the start there is no last good version.
fn nothing_to_keep(what: &str, problems: Vec<String>) -> anyhow::Error {
    let advice = format!(
        "nothing was in force before, so nothing could stay in force: mend or remove these {what}"
    );
    Several { problems, advice }.into()
}
