//! A Postgres server of a test's own, in a scratch folder and on a unix socket only.
//!
//! Needs the server's binaries (Debian: `postgresql`); where CI is set, their absence fails the test.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use aegis_audit::Location;
use tempfile::TempDir;

/// A server, ended with this.
pub(crate) struct Cluster {
    bin: PathBuf,
    dir: TempDir,
}

fn binaries() -> Option<PathBuf> {
    let mut found: Vec<PathBuf> = std::fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .map(|version| version.path().join("bin"))
        .filter(|bin| bin.join("initdb").exists())
        .collect();
    found.sort();
    found.pop()
}

/// Postgres refuses to run as root.
fn as_server(program: &Path, args: &[&str], dir: &Path) -> Command {
    let mut command = if nix::unistd::geteuid().is_root() {
        let mut command = Command::new("runuser");
        command.args(["-u", "postgres", "--"]).arg(program);
        command
    } else {
        Command::new(program)
    };
    command.args(args).current_dir(dir).stdin(Stdio::null());
    command
}

impl Cluster {
    fn start() -> Option<Self> {
        let bin = binaries()?;
        let dir = tempfile::Builder::new().prefix("aegis-pg").tempdir_in("/tmp").unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o777)).unwrap();
        let cluster = Self { bin, dir };
        cluster.run("initdb", &["-D", "data", "-A", "trust", "-U", "audit", "-N", "-E", "UTF8"]);
        cluster.up();
        Some(cluster)
    }

    fn run(&self, program: &str, args: &[&str]) {
        let dir = self.dir.path();
        let out = as_server(&self.bin.join(program), args, dir)
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(dir.join("stderr")).unwrap())
            .status()
            .unwrap();
        let said = std::fs::read_to_string(dir.join("stderr")).unwrap_or_default();
        assert!(out.success(), "{program} failed: {said}");
    }

    pub(crate) fn up(&self) {
        let socket = self.dir.path().display().to_string();
        let options = format!("-c listen_addresses='' -c unix_socket_directories='{socket}'");
        self.run("pg_ctl", &["-D", "data", "-w", "-l", "log", "-o", &options, "start"]);
    }

    /// As a crash: no shutdown checkpoint, sessions cut.
    pub(crate) fn crash(&self) {
        self.run("pg_ctl", &["-D", "data", "-w", "-m", "immediate", "stop"]);
    }

    /// Asks the server something in a database.
    pub(crate) fn query(&self, database: &str, sql: &str) {
        let socket = self.dir.path().display().to_string();
        self.run("psql", &["-h", &socket, "-U", "audit", "-d", database, "-c", sql]);
    }

    /// A new database, as every test needs its own.
    pub(crate) fn database(&self, name: &str) -> Location {
        let socket = self.dir.path().display().to_string();
        self.run("createdb", &["-h", &socket, "-U", "audit", name]);
        let encoded = socket.replace('/', "%2F");
        format!("postgres://audit@{encoded}/{name}").parse().unwrap()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        let program = self.bin.join("pg_ctl");
        let args = ["-D", "data", "-w", "-m", "immediate", "stop"];
        let _ = as_server(&program, &args, self.dir.path()).output();
    }
}

/// A server of the test's own; none where its programs are not installed.
pub(crate) fn cluster() -> Option<Cluster> {
    static SAID: OnceLock<()> = OnceLock::new();
    let cluster = Cluster::start();
    if cluster.is_none() {
        assert!(
            std::env::var_os("CI").is_none(),
            "no Postgres server binaries; install `postgresql`"
        );
        SAID.get_or_init(|| {
            eprintln!("skipped: no Postgres server binaries; install `postgresql`")
        });
    }
    cluster
}
