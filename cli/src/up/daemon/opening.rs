//! What a start opens: the state folder and its lock, the control socket, the ledger, the policies,
//! and what people ordered before.

use std::{
    collections::HashSet,
    fs::{self, File, TryLockError},
    io::{Read as _, Write as _},
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::Path,
    sync::Arc,
    time::Duration,
};

use aegis_audit::{Durability, Filter, Journal, Kind, Location, Options, Signer, Stored};
use aegis_ca::{IdentityManager, Subject};
use aegis_core::AgentId;
use aegis_kernel::{Kernel, State, trust_book::TrustBook};
use aegis_policy::{Host, Limits, ModuleCache, PolicyEngine};
use aegis_runtime::telemetry::Telemetry;
use anyhow::Context as _;
use parking_lot::Mutex;
use tokio::net::UnixListener;

use crate::up::{Args, AuditMode, attest::now};

/// The state folder is this process' own for as long as this lives.
pub(super) struct StateLock(#[expect(dead_code, reason = "the lock ends with the file")] File);

/// Takes the state folder, or names the daemon that has it.
pub(super) fn lock(state: &Path) -> anyhow::Result<StateLock> {
    let path = state.join("daemon.lock");
    let mut options = File::options();
    let mut file = options
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("cannot open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut process = String::new();
            let _ = file.read_to_string(&mut process);
            anyhow::bail!(
                "another `aegis up` (process {}) uses the state folder {}; stop it, or choose another folder with --state",
                process.trim(),
                state.display()
            );
        }
        Err(TryLockError::Error(error)) => {
            return Err(error).with_context(|| format!("cannot lock {}", path.display()));
        }
    }
    file.set_len(0)
        .and_then(|()| writeln!(file, "{}", std::process::id()))
        .with_context(|| format!("cannot write {}", path.display()))?;
    Ok(StateLock(file))
}

/// The configuration folder, as a path that does not depend on where the daemon was started.
pub(super) fn folder(given: &Path) -> anyhow::Result<std::path::PathBuf> {
    let shown = given.display();
    if given.is_file() {
        let parent = given.parent().filter(|parent| !parent.as_os_str().is_empty());
        let parent = parent.unwrap_or(Path::new(".")).display();
        anyhow::bail!(
            "--config takes a folder, and {shown} is a file; give the folder that holds it: `aegis up --config {parent}`"
        );
    }
    anyhow::ensure!(
        given.is_dir(),
        "the configuration folder {shown} does not exist; write one with `aegis init {shown}`"
    );
    std::path::absolute(given).with_context(|| format!("cannot tell where {shown} is"))
}

/// The kernel, with what people ordered before this start.
pub(super) async fn start_kernel(
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

/// Creates a folder that only its owner can enter.
pub(super) fn private_folder(folder: &Path) -> anyhow::Result<()> {
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

/// Listens for metrics and health.
pub(super) async fn bind_admin(
    address: std::net::SocketAddr,
) -> anyhow::Result<tokio::net::TcpListener> {
    tokio::net::TcpListener::bind(address).await.with_context(|| {
        format!("cannot listen on {address} for metrics and health; choose another with --admin")
    })
}

/// Binds the control socket, or that of the kernel API; one that answers belongs to another daemon.
///
/// A `shared` one can be connected to by everybody who can enter its folder: wrappers and functions of
/// agents of other users must.
pub(in crate::up) fn bind_socket(path: &Path, shared: bool) -> anyhow::Result<UnixListener> {
    if path.exists() {
        anyhow::ensure!(
            std::os::unix::net::UnixStream::connect(path).is_err(),
            "another `aegis up` uses {}; stop it, or choose another folder with --state",
            path.display()
        );
        fs::remove_file(path).with_context(|| format!("cannot replace {}", path.display()))?;
    }
    let listener = UnixListener::bind(path)
        .with_context(|| format!("cannot bind the socket {}", path.display()))?;
    let mode = std::os::unix::fs::PermissionsExt::from_mode(if shared { 0o666 } else { 0o600 });
    fs::set_permissions(path, mode)
        .with_context(|| format!("cannot set the mode of {}", path.display()))?;
    Ok(listener)
}

pub(super) async fn open_journal(
    args: &Args,
    telemetry: &Telemetry,
    observers: [aegis_audit::Observer; 2],
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
    options.observers.extend(observers);
    options.observers.extend(telemetry.logger().map(aegis_sidecar::records::records));
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
