//! The systems under test: how each is configured, started on its core, watched and ended.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use nix::{sys::signal, unistd::Pid};

use crate::{
    load::{self, Refusal},
    wire::{ALLOWED, FORBIDDEN, PATH},
};

/// The core of the system under test; everything else is on [`LOAD_CORE`].
pub const SYSTEM_CORE: usize = 0;
/// The core of the generator and the upstream.
pub const LOAD_CORE: usize = 1;
/// How long a system may take to answer its first call.
const START: Duration = Duration::from_secs(60);

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// The upstream itself.
    Direct,
    /// A plain hop without any policy.
    Haproxy,
    /// `mcp` (verify) and `rbac`, without a log.
    Envoy,
    /// `aegis up` with this durability.
    Aegis(&'static str),
}

impl Kind {
    /// The name in tables and of its folder.
    pub fn name(self) -> String {
        match self {
            Self::Direct => "direct".into(),
            Self::Haproxy => "haproxy".into(),
            Self::Envoy => "envoy".into(),
            Self::Aegis(audit) => format!("aegis-{audit}"),
        }
    }

    /// How it answers what is forbidden.
    pub const fn refusal(self) -> Refusal {
        match self {
            Self::Direct | Self::Haproxy => Refusal::None,
            Self::Envoy => Refusal::Status,
            Self::Aegis(_) => Refusal::Answer,
        }
    }
}

/// Where programs are.
#[derive(Clone, Debug)]
pub struct Programs {
    /// `aegis`, as it ships.
    pub aegis: PathBuf,
    /// `envoy`.
    pub envoy: PathBuf,
    /// `haproxy`.
    pub haproxy: PathBuf,
}

/// A running system.
#[derive(Debug)]
pub struct System {
    /// What it is.
    pub kind: Kind,
    /// Where it listens: one port for each upstream it stands before.
    pub ports: Vec<u16>,
    /// Its folder.
    pub folder: PathBuf,
    child: Option<Child>,
}

impl System {
    /// Writes the configuration of a system before `upstream` into `folder`, with `listeners`.
    pub fn configure(
        kind: Kind,
        folder: &Path,
        upstream: u16,
        listeners: usize,
    ) -> anyhow::Result<Self> {
        let folder = folder.join(kind.name());
        fs::create_dir_all(&folder)?;
        let ports = match kind {
            Kind::Direct => vec![upstream],
            _ => (0..listeners).map(|_| free_port()).collect::<anyhow::Result<_>>()?,
        };
        match kind {
            Kind::Direct => {}
            Kind::Haproxy => fs::write(folder.join("haproxy.cfg"), haproxy(&ports, upstream))?,
            Kind::Envoy => fs::write(folder.join("envoy.json"), envoy(&ports, upstream))?,
            Kind::Aegis(_) => {
                fs::create_dir_all(folder.join("aegis.d"))?;
                fs::write(folder.join("aegis.d/bench.yaml"), aegis(&ports, upstream))?;
            }
        }
        Ok(Self { kind, ports, folder, child: None })
    }

    /// Starts it and waits for the first right answer; how long that took.
    pub fn start(&mut self, programs: &Programs) -> anyhow::Result<Duration> {
        let started = Instant::now();
        if self.kind == Kind::Direct {
            return Ok(Duration::ZERO);
        }
        let folder = &self.folder;
        let core = SYSTEM_CORE.to_string();
        let mut command = Command::new("taskset");
        command.args(["-c", &core]);
        match self.kind {
            Kind::Direct => {}
            Kind::Haproxy => {
                command.arg(&programs.haproxy).args(["-db", "-f"]).arg(folder.join("haproxy.cfg"));
            }
            Kind::Envoy => {
                command.arg(&programs.envoy).args([
                    "--concurrency",
                    "1",
                    "--disable-hot-restart",
                    "-l",
                    "error",
                    "-c",
                ]);
                command.arg(folder.join("envoy.json"));
            }
            Kind::Aegis(audit) => {
                command.arg(&programs.aegis).args([
                    "up",
                    "--admin",
                    "127.0.0.1:0",
                    "--audit",
                    audit,
                    "--config",
                ]);
                command.arg(folder.join("aegis.d")).arg("--state").arg(folder.join("state"));
            }
        }
        let log = File::create(folder.join("log"))?;
        command.stdout(log.try_clone()?).stderr(log).stdin(std::process::Stdio::null());
        let child =
            command.spawn().with_context(|| format!("cannot start {}", self.kind.name()))?;
        self.child = Some(child);
        let port = self.ports.first().copied().context("no port")?;
        while !load::is_ready(port) {
            let ended = self.child.as_mut().map_or(Ok(None), Child::try_wait)?;
            ensure!(
                ended.is_none() && started.elapsed() < START,
                "{} does not answer; see {}",
                self.kind.name(),
                self.folder.join("log").display()
            );
            std::thread::sleep(Duration::from_micros(500));
        }
        Ok(started.elapsed())
    }

    /// Its process.
    pub fn pid(&self) -> Option<u32> {
        self.child.as_ref().map(Child::id)
    }

    /// The processor time that it has used, its children's not included.
    pub fn cpu(&self) -> anyhow::Result<Duration> {
        let Some(pid) = self.pid() else { return Ok(Duration::ZERO) };
        let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
        let fields: Vec<&str> =
            stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks =
            |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok()).unwrap_or(0);
        Ok(Duration::from_millis((ticks(11) + ticks(12)) * 10))
    }

    /// A member of its `/proc/PID/status`. KiB.
    pub fn memory(&self, member: &str) -> anyhow::Result<u64> {
        let pid = self.pid().context("nothing is running")?;
        let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
        let line = status.lines().find_map(|line| line.strip_prefix(member)?.strip_prefix(':'));
        let number =
            line.and_then(|line| line.split_whitespace().next()).context("no such member")?;
        Ok(number.parse()?)
    }

    /// Asks it to end, and waits.
    pub fn stop(&mut self) -> anyhow::Result<()> {
        let Some(mut child) = self.child.take() else { return Ok(()) };
        signal::kill(Pid::from_raw(child.id().try_into()?), signal::Signal::SIGTERM)?;
        let asked = Instant::now();
        while child.try_wait()?.is_none() {
            if asked.elapsed() > Duration::from_secs(10) {
                child.kill()?;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        Ok(())
    }
}

impl Drop for System {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A port that is free now.
fn free_port() -> anyhow::Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A hop that keeps connections open on both sides and looks at nothing.
fn haproxy(ports: &[u16], upstream: u16) -> String {
    let binds: String = ports.iter().map(|port| format!("  bind 127.0.0.1:{port}\n")).collect();
    format!(
        "global\n  nbthread 1\n  maxconn 24000\n  no strict-limits\ndefaults\n  mode http\n  timeout connect 5s\n  timeout client 300s\n  \
         timeout server 300s\n  option http-keep-alive\n  http-reuse always\nfrontend agents\n{binds}  default_backend server\n\
         backend server\n  server one 127.0.0.1:{upstream}\n"
    )
}

/// The `mcp` filter compares headers with the body; `rbac` allows calls of one tool by what the body says.
fn envoy(ports: &[u16], upstream: u16) -> String {
    use serde_json::json;
    let metadata = |path: &[&str], value: &str| {
        let path: Vec<_> = path.iter().map(|key| json!({ "key": key })).collect();
        json!({ "metadata": { "filter": "envoy.filters.http.mcp", "path": path, "value": { "string_match": { "exact": value } } } })
    };
    let rules =
        json!([metadata(&["method"], "tools/call"), metadata(&["params", "name"], ALLOWED)]);
    let of = |name: &str| format!("type.googleapis.com/envoy.extensions.filters.{name}");
    let http = json!({
        "@type": of("network.http_connection_manager.v3.HttpConnectionManager"),
        "stat_prefix": "agents",
        "generate_request_id": false,
        "route_config": { "virtual_hosts": [{ "name": "all", "domains": ["*"], "routes": [
            { "match": { "prefix": "/" }, "route": { "cluster": "server", "timeout": "30s" } }] }] },
        "http_filters": [
            { "name": "envoy.filters.http.mcp", "typed_config": {
                "@type": of("http.mcp.v3.Mcp"),
                "traffic_mode": "REJECT_NO_MCP", "attribute_source": "VERIFY",
                "request_storage_mode": "DYNAMIC_METADATA", "reject_duplicate_keys": true } },
            { "name": "envoy.filters.http.rbac", "typed_config": {
                "@type": of("http.rbac.v3.RBAC"),
                "rules": { "action": "ALLOW", "policies": { "read": {
                    "permissions": [{ "and_rules": { "rules": rules } }],
                    "principals": [{ "any": true }] } } } } },
            { "name": "envoy.filters.http.router", "typed_config": { "@type": of("http.router.v3.Router") } },
        ],
    });
    let address =
        |port: u16| json!({ "socket_address": { "address": "127.0.0.1", "port_value": port } });
    let listeners: Vec<_> = ports
        .iter()
        .map(|&port| {
            json!({ "name": format!("agents-{port}"), "address": address(port), "filter_chains": [{ "filters": [
                { "name": "envoy.filters.network.http_connection_manager", "typed_config": http }] }] })
        })
        .collect();
    json!({ "static_resources": {
        "listeners": listeners,
        "clusters": [{
            "name": "server", "type": "STATIC", "connect_timeout": "5s",
            "circuit_breakers": { "thresholds": [{ "max_connections": 24000, "max_requests": 24000, "max_pending_requests": 24000 }] },
            "load_assignment": { "cluster_name": "server", "endpoints": [{ "lb_endpoints": [
                { "endpoint": { "address": address(upstream) } }] }] } }],
    } })
    .to_string()
}

/// One policy; the agent is whoever runs under this user. With the default thresholds, an agent of whose
/// calls 5 % are refused would be quarantined within a minute.
fn aegis(ports: &[u16], upstream: u16) -> String {
    let uid = nix::unistd::getuid();
    let upstreams: String = ports
        .iter()
        .enumerate()
        .map(|(at, port)| {
            format!(
                "---\napiVersion: aegis.dev/v1alpha1\nkind: AgentUpstream\nmetadata: {{ name: records{at} }}\n\
                 spec: {{ url: \"http://127.0.0.1:{upstream}{PATH}\", listen: \"127.0.0.1:{port}\" }}\n"
            )
        })
        .collect();
    format!(
        "apiVersion: aegis.dev/v1alpha1\nkind: AgentIdentity\nmetadata: {{ name: bench }}\n\
         spec: {{ sponsor: ada@acme.example, selector: {{ unix: {{ uid: {uid} }} }} }}\n---\n\
         apiVersion: aegis.dev/v1alpha1\nkind: AgentPolicy\nmetadata: {{ name: records }}\nspec:\n  rules:\n    \
         - {{ name: read, effect: allow, tools: [{ALLOWED}] }}\n    \
         - {{ name: delete, effect: deny, tools: [{FORBIDDEN}], reason: Records stay. }}\n---\n\
         apiVersion: aegis.dev/v1alpha1\nkind: ClusterTrustThreshold\nmetadata: {{ name: default }}\n\
         spec: {{ tau: 1000, criticalScore: 0 }}\n{upstreams}"
    )
}
