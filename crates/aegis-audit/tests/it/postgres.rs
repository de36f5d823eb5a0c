//! The same log in a real Postgres: appends, proofs, queries, fencing, recovery.
//!
//! Starts a cluster of its own in a scratch folder, on a unix socket only. Needs the server's
//! binaries (Debian: `postgresql`); where CI is set, their absence fails the test.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use aegis_audit::{
    AppendError, Draft, Durability, Journal, Kind, Location, Options, Outcome, Reader, Recorded,
    StoreError, Trusted, checkpoint, export, verify,
};
use aegis_core::Timestamp;
use tempfile::TempDir;

use crate::fixture::{Log, draft, fill};

struct Cluster {
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

    fn up(&self) {
        let socket = self.dir.path().display().to_string();
        let options = format!("-c listen_addresses='' -c unix_socket_directories='{socket}'");
        self.run("pg_ctl", &["-D", "data", "-w", "-l", "log", "-o", &options, "start"]);
    }

    /// As a crash: no shutdown checkpoint, sessions cut.
    fn crash(&self) {
        self.run("pg_ctl", &["-D", "data", "-w", "-m", "immediate", "stop"]);
    }

    /// A new database, as every test needs its own.
    fn database(&self, name: &str) -> Location {
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

fn cluster() -> Option<Cluster> {
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

fn options(log: &Log) -> Options {
    let mut options = log.options();
    options.saved_checkpoint = Some(log.dir.path().join("checkpoint"));
    options
}

#[tokio::test]
async fn a_log_in_postgres() {
    let Some(cluster) = cluster() else { return };
    appends_proofs_and_queries(&cluster).await;
    an_overtaken_sequencer_stops(&cluster).await;
    let ledger = Log::new();
    crate::import::holds_other_journals(&cluster.database("others"), &ledger).await;
    rollbacks_are_noticed(&cluster).await;
    a_crash_of_the_server_is_survived(&cluster).await;
}

async fn appends_proofs_and_queries(cluster: &Cluster) {
    let log = Log::new();
    let place = cluster.database("plain");
    let journal = Journal::open(&place, options(&log)).await.unwrap();
    fill(&journal, 40).await;
    journal.close().await.unwrap();
    let reader = Reader::open(&place).await.unwrap();
    crate::query::every_condition(&reader).await;
    crate::query::pages_cover_everything(&reader).await;
    let journal = Journal::open(&place, options(&log)).await.unwrap();
    fill(&journal, 600).await;
    let at = journal.append(draft(1)).await.unwrap().await.unwrap().index;
    let note = journal.checkpoint_now().await.unwrap();
    let proof = reader.prove(at, true).await.unwrap().unwrap();
    let stored = reader.entry(at).await.unwrap().unwrap();
    proof.verify(journal.verifier(), &stored.body).unwrap();
    assert!(proof.extra.is_some());
    assert_eq!(journal.erase_salts(vec![at]).await.unwrap(), 1);
    assert!(reader.prove(at, true).await.unwrap().unwrap().extra.is_none());
    journal.close().await.unwrap();
    let trusted = Trusted { verifier: Some(log.signer.verifier().clone()), checkpoint: Some(note) };
    let report = verify::verify(&reader, &trusted, |_, _| {}).await.unwrap();
    assert_eq!((report.head.size, report.warnings), (42 + 603, vec![]));
    let dir = log.dir.path().join("export");
    export::write_directory(&reader, &dir).await.unwrap();
    let report = verify::verify_directory(&dir, log.signer.verifier().clone(), None, |_, _| {})
        .await
        .unwrap();
    assert_eq!(report.head.size, 645);
}

async fn an_overtaken_sequencer_stops(cluster: &Cluster) {
    let log = Log::new();
    let place = cluster.database("fenced");
    let first = Journal::open(&place, log.options()).await.unwrap();
    fill(&first, 3).await;
    let second = Journal::open(&place, log.options()).await.unwrap();
    let fenced = |result: Result<_, AppendError>| match result {
        Err(AppendError::Store(error)) => {
            assert!(matches!(*error, StoreError::Fenced { .. }), "{error}");
        }
        other => panic!("{other:?}"),
    };
    fenced(first.append(draft(1)).await.unwrap().await.map(drop));
    fenced(first.append(draft(2)).await.unwrap().await.map(drop));
    fenced(first.checkpoint_now().await.map(drop));
    fill(&second, 3).await;
    second.checkpoint_now().await.unwrap();
    let report = verify::verify(second.reader(), &Trusted::default(), |_, _| {}).await.unwrap();
    assert_eq!(report.head.size, 4 + 4);
    assert!(first.close().await.is_err());
    second.close().await.unwrap();
}

async fn rollbacks_are_noticed(cluster: &Cluster) {
    let log = Log::new();
    let place = cluster.database("rolled");
    let journal = Journal::open(&place, options(&log)).await.unwrap();
    fill(&journal, 10).await;
    journal.close().await.unwrap();
    let empty = cluster.database("replaced");
    let error = Journal::open(&empty, options(&log)).await.unwrap_err();
    assert!(matches!(error, StoreError::Rollback { .. }), "{error}");
}

async fn a_crash_of_the_server_is_survived(cluster: &Cluster) {
    let log = Log::new();
    let place = cluster.database("crashed");
    let journal = Journal::open(&place, options(&log)).await.unwrap();
    fill(&journal, 20).await;
    cluster.crash();
    assert!(journal.append(draft(1)).await.unwrap().await.is_err());
    let lost = Draft::new(Kind::Outcome, Timestamp::from_secs(1), Outcome::Unknown);
    let buffered = journal.record(lost, Durability::Buffered).await.unwrap();
    assert!(matches!(buffered, Recorded::Buffered));
    assert!(journal.append(draft(1)).await.unwrap().await.is_err());
    cluster.up();
    let at = journal.append(draft(2)).await.unwrap().await.unwrap();
    assert_eq!(at.index, 22, "20 entries, the opening one, and a gap entry before it");
    let note = journal.checkpoint_now().await.unwrap();
    assert_eq!(checkpoint::open(journal.verifier(), &note).unwrap().head.size, 23);
    let report = verify::verify(journal.reader(), &Trusted::default(), |_, _| {}).await.unwrap();
    assert_eq!(report.gaps, vec![21]);
    journal.close().await.unwrap();
}
