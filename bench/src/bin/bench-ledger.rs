//! Measures the audit log: durable appends, the wait for one, proofs, verification and, with the program
//! that `AEGIS_BIN` names, a compliance report over all of it.
//!
//! `bench-ledger [FOLDER] [ENTRIES]`: the database is made in FOLDER (default: the current one), so
//! that the disk that counts is measured. Figures are printed with the machine and the method.

use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use aegis_audit::{
    Draft, Journal, Kind, Location, Options, Outcome, PolicyRef, Reader, Signer, Trusted, verify,
};
use aegis_core::{Digest, Timestamp};
use serde_json::json;

const APPENDERS: u64 = 64;

type Failure = Box<dyn std::error::Error + Send + Sync>;

fn main() -> Result<(), Failure> {
    let mut arguments = std::env::args().skip(1);
    let folder = arguments.next().unwrap_or_else(|| ".".into());
    let entries: u64 = arguments.next().map_or(Ok(1_000_000), |text| text.parse())?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(run(Path::new(&folder), entries))
}

/// About 700 bytes once it is canonical.
fn draft(i: u64) -> Draft {
    let now = Timestamp::from_micros(1_700_000_000_000_000 + i);
    let mut draft = Draft::new(Kind::Decision, now, Outcome::Allow);
    draft.agent_id = Some("spiffe://acme.example/ns/shop/sa/bot/agent/buyer".into());
    draft.sponsor = Some("ada@acme.example".into());
    for (name, value) in [
        ("kind", "tool_call"),
        ("protocol", "mcp"),
        ("method", "tools/call"),
        ("server", "files"),
        ("tool", "read_file"),
    ] {
        draft.action.insert(name.into(), json!(value));
    }
    draft.reason = Some("policy_allowed".into());
    draft.decision_id = Some(format!("0198c0de-{i:012x}"));
    draft.policies = vec![PolicyRef {
        name: "shop/files".into(),
        digest: Digest::of(b"policy"),
        effect: "allow".into(),
        mode: "enforce".into(),
    }];
    draft.tier = Some("L1".into());
    draft.risk = Some(120);
    draft.trust = Some(700);
    draft.trust_as_of = Some(i);
    draft
}

/// Processor time of this process, callers and load included: it holds on a busy machine too.
fn processor() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split(' ').collect();
    let ticks = |at: usize| fields.get(at).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    Duration::from_millis((ticks(12) + ticks(13)) * 10)
}

fn percentile(sorted: &[Duration], per_mille: usize) -> Duration {
    let at = sorted.len().saturating_sub(1) * per_mille / 1_000;
    sorted.get(at).copied().unwrap_or_default()
}

fn show(name: &str, mut waits: Vec<Duration>) -> Duration {
    waits.sort_unstable();
    let (p50, p99) = (percentile(&waits, 500), percentile(&waits, 990));
    println!("{name}: p50 {} µs, p99 {} µs, n {}", p50.as_micros(), p99.as_micros(), waits.len());
    p50
}

/// What the disk takes for 4 KiB at the end of a growing file.
fn fdatasync(folder: &Path) -> Result<Duration, Failure> {
    let path = folder.join("fdatasync.tmp");
    let mut file = std::fs::File::create(&path)?;
    let mut waits = Vec::new();
    for _ in 0..1_000 {
        let started = Instant::now();
        file.write_all(&[7; 4_096])?;
        file.sync_data()?;
        waits.push(started.elapsed());
        std::thread::sleep(Duration::from_micros(500));
    }
    std::fs::remove_file(path)?;
    Ok(show("fdatasync of 4 KiB, growing file", waits))
}

async fn run(folder: &Path, entries: u64) -> Result<(), Failure> {
    let dir = tempfile::tempdir_in(folder)?;
    let path = dir.path().join("audit.db");
    let cpu = std::fs::read_to_string("/proc/cpuinfo")?;
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("unknown");
    let kernel = std::fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = std::fs::read_to_string("/proc/loadavg")?;
    println!(
        "machine: {cpu}, {} cores, Linux {}, load {}",
        std::thread::available_parallelism()?,
        kernel.trim(),
        load.trim()
    );
    println!(
        "method: one process; {APPENDERS} tasks, each waiting for its entry to be durable before the next; redo log before SQLite, one fdatasync for all that was written before it"
    );
    let sync = fdatasync(dir.path())?;
    let place = Location::Sqlite(path.clone());
    let signer = Signer::generate("bench.example/audit")?;
    let journal = Journal::open(&place, Options::new("bench", signer)).await?;
    let size = draft(1).render("bench")?.finish(1, Digest::of(b"")).len();
    println!("entry: {size} bytes");
    let p50 = open_loop(&journal, Duration::from_secs(10)).await?;
    println!("  = {:.2} × fdatasync", p50.as_secs_f64() / sync.as_secs_f64());
    closed_loop(&journal, entries).await?;
    proofs(&journal).await?;
    journal.close().await?;
    verification(&path).await?;
    match std::env::var_os("AEGIS_BIN") {
        Some(aegis) => report(Path::new(&aegis), &path),
        None => Ok(()),
    }
}

/// 1,000 entries a second at fixed times, whatever the answers do.
async fn open_loop(journal: &Journal, length: Duration) -> Result<Duration, Failure> {
    let mut ticks = tokio::time::interval(Duration::from_millis(1));
    let started = Instant::now();
    let mut tasks = Vec::new();
    let mut i = 0;
    while started.elapsed() < length {
        ticks.tick().await;
        i += 1;
        let journal = journal.clone();
        tasks.push(tokio::spawn(async move {
            let started = Instant::now();
            journal.append(draft(i)).await?.await?;
            Ok::<_, aegis_audit::AppendError>(started.elapsed())
        }));
    }
    let mut waits = Vec::new();
    for task in tasks {
        waits.push(task.await??);
    }
    Ok(show("append at 1,000/s", waits))
}

async fn closed_loop(journal: &Journal, entries: u64) -> Result<(), Failure> {
    let before = journal.statistics();
    let (started, cpu) = (Instant::now(), processor());
    let mut tasks = Vec::new();
    for task in 0..APPENDERS {
        let journal = journal.clone();
        tasks.push(tokio::spawn(async move {
            let mut waits = Vec::new();
            for i in 0..entries / APPENDERS {
                let started = Instant::now();
                journal.append(draft(i * APPENDERS + task)).await?.await?;
                waits.push(started.elapsed());
            }
            Ok::<_, aegis_audit::AppendError>(waits)
        }));
    }
    let mut waits = Vec::new();
    for task in tasks {
        waits.extend(task.await??);
    }
    let took = started.elapsed();
    let after = journal.statistics();
    let cpu = processor() - cpu;
    let (count, batches) = (after.committed - before.committed, after.batches - before.batches);
    println!(
        "durable appends, {APPENDERS} appenders: {:.0}/s ({count} in {:.2} s, {:.1} per transaction, {:.0} µs per transaction, {:.1} µs of processor per entry)",
        count as f64 / took.as_secs_f64(),
        took.as_secs_f64(),
        count as f64 / batches as f64,
        (after.committing - before.committing).as_micros() as f64 / batches as f64,
        cpu.as_micros() as f64 / count as f64,
    );
    show("append under that load", waits);
    Ok(())
}

async fn proofs(journal: &Journal) -> Result<(), Failure> {
    journal.checkpoint_now().await?;
    let size = journal.reader().head().await?.size;
    let mut waits = Vec::new();
    for i in 0..1_000_u64 {
        let index = i.wrapping_mul(2_654_435_761) % size;
        let started = Instant::now();
        journal.reader().prove(index, false).await?.ok_or("no proof")?;
        waits.push(started.elapsed());
    }
    show(&format!("proof among {size} entries"), waits);
    Ok(())
}

async fn verification(path: &Path) -> Result<(), Failure> {
    let reader = Reader::open_copy(path).await?;
    let (started, cpu) = (Instant::now(), processor());
    let report = verify::verify(&reader, &Trusted::default(), |_, _| {}).await?;
    let took = started.elapsed();
    let size = report.head.size;
    let cpu = processor() - cpu;
    println!(
        "verify: {:.0} entries/s ({size} in {:.2} s, {:.1} µs of processor per entry)",
        size as f64 / took.as_secs_f64(),
        took.as_secs_f64(),
        cpu.as_micros() as f64 / size as f64,
    );
    let bytes = std::fs::metadata(path)?.len();
    println!("database: {} bytes per entry", bytes / size);
    Ok(())
}

/// All four frameworks in one pass, as a page, by the program as anybody would start it.
fn report(aegis: &Path, path: &Path) -> Result<(), Failure> {
    let page = path.with_extension("html");
    let mut command = std::process::Command::new(aegis);
    command.args(["compliance", "report", "--database"]).arg(path).arg("-O").arg(&page);
    let started = Instant::now();
    let mut child = command.stdout(std::process::Stdio::null()).spawn()?;
    let mut peak = 0;
    let status = loop {
        if let Some(status) = child.try_wait()? {
            break status;
        }
        let told = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap_or_default();
        let line = told.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
        peak = peak.max(line.trim().trim_end_matches(" kB").parse().unwrap_or(0));
        std::thread::sleep(Duration::from_millis(20));
    };
    if !status.success() {
        return Err("the compliance report failed".into());
    }
    println!(
        "compliance report, four frameworks: {:.2} s, resident at most {} MB, page of {} kB",
        started.elapsed().as_secs_f64(),
        peak / 1_024,
        std::fs::metadata(&page)?.len() / 1_024,
    );
    Ok(())
}
