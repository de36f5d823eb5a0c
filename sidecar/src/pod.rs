//! The sidecar of a pod: who it is, what it enforces, what it has caught, and where its record goes.
//!
//! Nothing passes before it has an SVID and a state of the operator's. Then it goes on with what it
//! has: without the CA until its SVID expires, without the operator until the state is too old for
//! sensitive actions, without the ledger not at all where records are strict.

mod admin;
pub mod approvals;
mod gateways;
mod journal;
mod options;
mod roots;
mod state;
mod workload;

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use aegis_api::distribution::{Verifier, follow};
use aegis_core::{AgentId, Timestamp, decision::Reason};
use aegis_identity::{SvidSource, source::random_jitter, system_clock};
use aegis_kernel::{Kernel, State, trust_book};
use aegis_mesh::{Authority, AuthorityConfig, channel};
use aegis_policy::PolicyEngine;
use aegis_runtime::telemetry::Telemetry;
use anyhow::Context as _;
use prometheus::Registry;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::net::{TcpListener, UnixStream};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    Attest, Attested, Reachable, Shared,
    metrics::Metrics,
    names,
    refusals::Refusals,
    transparent::{Asked, Own, Transparent, original_destination, serve_inbound, serve_outbound},
};

use admin::Admin;
use gateways::gateways;
use journal::{Ledger, Shipping};
pub use options::{AuditMode, Options};
use state::InForce;

/// How long a first SVID that was refused or could not be had is waited for before the next try.
const RETRY: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(5));
/// How long open exchanges may take once the pod ends.
const DRAIN: Duration = Duration::from_secs(20);
/// How long the last entries may take to reach the ledger.
const LAST_ENTRIES: Duration = Duration::from_secs(5);

/// Nobody connects to a pod's sidecar by name: who is at the other end is settled where a connection
/// is caught.
struct Nobody;

impl Attest for Nobody {
    fn tcp(&self, _: SocketAddr, _: SocketAddr) -> Result<Attested, Reason> {
        Err(Reason::IdentityMissing)
    }

    fn unix(&self, _: &UnixStream) -> Result<Attested, Reason> {
        Err(Reason::IdentityMissing)
    }
}

/// Who this pod is.
struct Joined {
    authority: Authority,
    source: Arc<SvidSource>,
    agent: AgentId,
}

/// Runs until `stop`, and then ends in order.
///
/// # Errors
/// When the options cannot be used, a port is taken, or the journal cannot be opened.
pub async fn run(options: Options, stop: CancellationToken) -> anyhow::Result<()> {
    let telemetry = Telemetry::from_env("aegis-sidecar");
    let ran = enforce(options, &telemetry, stop).await;
    telemetry.end().await;
    ran
}

async fn enforce(
    options: Options,
    telemetry: &Telemetry,
    stop: CancellationToken,
) -> anyhow::Result<()> {
    let (ports, keys, node) = (options.ports()?, options.operator_keys()?, options.node()?);
    let (admin, registry, asked) = (Admin::default(), Registry::new(), Asked::default());
    admin.serve(listeners(options.health_port, Reach::Everywhere)?, registry.clone(), &asked);
    let outbound = listeners(options.outbound_port, Reach::Pod)?;
    let inbound = listeners(options.inbound_port, Reach::Everywhere)?;
    let Some(joined) = join(&options, &admin, &stop).await? else { return Ok(()) };
    let (tasks, following) = (TaskTracker::new(), CancellationToken::new());
    let (kernel, shipping) = kernel(&options, telemetry, &joined, &tasks, &following).await?;
    let Joined { authority, source, agent } = joined;
    let (client, followed, until) = (authority.clone(), Arc::clone(&source), following.clone());
    tasks.spawn(async move { client.follow(&followed, until).await });
    workload::serve(&options, &authority, &agent, &tasks, &following).await?;
    tasks.spawn(roots::keep(options.state.clone(), authority.bundle(), following.clone()));

    let drain = CancellationToken::new();
    let shared = Arc::new(Shared {
        kernel: Arc::clone(&kernel),
        attest: Arc::new(Nobody),
        refusals: Arc::new(Refusals::default()),
        metrics: Metrics::register(&registry)?,
        tracer: telemetry.tracer(),
        reachable: Reachable::OtherHosts(node.as_slice().into()),
        drain: drain.clone(),
    });
    let own = own(&options, &agent, &source, &authority);
    let destination = Arc::new(original_destination);
    let caught = Transparent::new(Arc::clone(&shared), own, ports, destination)?;
    let probed_by = [node, gateways()].concat();
    let caught = caught.with_names(names::of_pod()).with_node(&probed_by).with_asked(asked);
    let caught = Arc::new(caught);
    admin.watch(&registry, &source, &kernel, &shipping)?;

    let operator = channel(&options.operator, "operator", &source, authority.revocations())?;
    let mut in_force = InForce::new(Arc::clone(&kernel), Arc::clone(&caught), agent, admin.clone());
    tasks.spawn(approvals::ask(operator.clone(), Arc::clone(&kernel), following.clone()));
    let until = following.clone();
    tasks.spawn(async move {
        let clock = system_clock();
        follow(operator, Verifier::new(keys), move || clock(), &mut in_force, until).await;
    });
    let refusals = Arc::clone(&shared.refusals);
    let flushing = tasks.spawn(refusals.keep_flushing(Arc::clone(&kernel), drain.clone()));
    let exchanges = TaskTracker::new();
    for listener in outbound {
        exchanges.spawn(serve_outbound(Arc::clone(&caught), listener));
    }
    for listener in inbound {
        exchanges.spawn(serve_inbound(Arc::clone(&caught), listener));
    }
    exchanges.close();
    stop.cancelled().await;
    tracing::info!("draining");
    admin.set_state("the pod ends");
    drain.cancel();
    if !aegis_runtime::drained(exchanges.wait(), DRAIN).await {
        tracing::warn!(seconds = DRAIN.as_secs(), "open exchanges did not end in time");
    }
    let _ = flushing.await;
    kernel.journal().close().await.context("the journal did not close in order")?;
    if !aegis_runtime::drained(shipping.finish(), LAST_ENTRIES).await {
        tracing::warn!("the last entries have not reached the ledger; a restart ships them");
    }
    following.cancel();
    tasks.close();
    let _ = aegis_runtime::drained(tasks.wait(), LAST_ENTRIES).await;
    Ok(())
}

/// Whose pod this is, and what it asks of others.
fn own(options: &Options, agent: &AgentId, source: &Arc<SvidSource>, authority: &Authority) -> Own {
    Own {
        agent: agent.clone(),
        source: Arc::clone(source),
        revocations: authority.revocations(),
        manifests: options.manifests,
    }
}

/// Asks the CA who this is; `None` if the pod ends before it has said so.
async fn join(
    options: &Options,
    admin: &Admin,
    stop: &CancellationToken,
) -> anyhow::Result<Option<Joined>> {
    let authority = Authority::new(AuthorityConfig {
        trust_domain: options.trust_domain.clone(),
        address: options.ca.clone(),
        roots: roots::first(&options.state, &options.trust_domain, &options.ca_roots)?,
        token: options.token.clone(),
        application: true,
        clock: system_clock(),
    })?;
    let Some(source) = first_svid(&authority, admin, stop).await else { return Ok(None) };
    let source = Arc::new(source);
    let agent = AgentId::try_from(source.current()?.svid.id().clone())
        .context("the CA has issued an SVID that is no agent's")?;
    tracing::info!(%agent, "this pod is an agent");
    admin.set_state("without a state of the operator's");
    Ok(Some(Joined { authority, source, agent }))
}

/// A kernel that has no policies yet, and so denies everything, and its journal on the way to the
/// ledger.
async fn kernel(
    options: &Options,
    telemetry: &Telemetry,
    joined: &Joined,
    tasks: &TaskTracker,
    following: &CancellationToken,
) -> anyhow::Result<(Arc<Kernel>, Shipping)> {
    let (book, observer) = trust_book();
    let exports = telemetry.logger().map(crate::records::records);
    let observers = std::iter::once(observer).chain(exports).collect();
    let Joined { authority, source, agent } = joined;
    let ledger = Ledger::open(options, agent, source, authority, observers).await?;
    let journal = ledger.journal.clone();
    // Its first entries wait for the ledger too.
    let shipping = ledger.ship(tasks, following);
    let engine = Arc::new(PolicyEngine::with_defaults()?);
    let never = Some(Timestamp::from_secs(0));
    let state = State { confirmed_at: never, ..State::default() };
    let durability = options.audit.durability();
    let kernel = Kernel::start(journal, durability, engine, book, state, system_clock()).await?;
    Ok((Arc::new(kernel), shipping))
}

/// The first SVID; `None` if the pod ends before there is one.
async fn first_svid(
    authority: &Authority,
    admin: &Admin,
    stop: &CancellationToken,
) -> Option<SvidSource> {
    let (mut wait, longest) = RETRY;
    loop {
        let fetcher = Arc::new(authority.clone());
        let starting = SvidSource::start(fetcher, system_clock(), random_jitter());
        let started = tokio::select! {
            () = stop.cancelled() => return None,
            started = starting => started,
        };
        match started {
            Ok(source) => return Some(source),
            Err(error) => {
                tracing::warn!(%error, "there is no SVID yet; nothing passes");
                admin.set_state(&format!("without an SVID: {error}"));
            }
        }
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(wait) => {}
        }
        wait = wait.saturating_mul(2).min(longest);
    }
}

/// Whom a port is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// The containers of this pod.
    Pod,
    /// Other pods too.
    Everywhere,
}

/// A listener for each family that the pod has: a redirect keeps the family, and the original
/// destination is asked for by it.
fn listeners(port: u16, reach: Reach) -> anyhow::Result<Vec<TcpListener>> {
    let (v4, v6) = match reach {
        Reach::Pod => (Ipv4Addr::LOCALHOST, Ipv6Addr::LOCALHOST),
        Reach::Everywhere => (Ipv4Addr::UNSPECIFIED, Ipv6Addr::UNSPECIFIED),
    };
    let v4 = listener(SocketAddr::new(IpAddr::V4(v4), port))
        .with_context(|| format!("port {port} cannot be listened on"))?;
    match listener(SocketAddr::new(IpAddr::V6(v6), port)) {
        Ok(v6) => Ok(vec![v4, v6]),
        Err(error) => {
            tracing::info!(%error, port, "this pod has no IPv6");
            Ok(vec![v4])
        }
    }
}

fn listener(address: SocketAddr) -> std::io::Result<TcpListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    if address.is_ipv6() {
        socket.set_only_v6(true)?;
    }
    // A restart does not wait for connections of the one before.
    socket.set_reuse_address(true)?;
    socket.set_nonblocking(true)?;
    socket.bind(&address.into())?;
    socket.listen(1024)?;
    TcpListener::from_std(socket.into())
}
