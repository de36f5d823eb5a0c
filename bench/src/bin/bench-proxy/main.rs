//! Aegis beside other proxies, in the same rounds: what it adds to a call, what a call costs, how
//! many there can be; and what the process takes when nothing happens.
//!
//! `bench-proxy [SECONDS] [ROUNDS]` measures the calls; `bench-proxy footprint` measures memory and start.
//! Programs are taken from AEGIS_BIN, ENVOY_BIN and HAPROXY_BIN, and AEGIS_OPA for compiling; everything
//! is written below AEGIS_BENCH_CACHE, whose disk is the one that counts. A round is void, and the run fails, if one
//! answer is wrong, if a forbidden call arrives at the upstream, or if the ledger does not hold what has happened.

mod footprint;
mod ledger;
mod load;
mod system;
mod table;
mod upstream;
mod wire;

use std::{
    env,
    ffi::OsString,
    fs,
    io::Write as _,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use nix::{
    sched::{CpuSet, sched_setaffinity},
    unistd::Pid,
};

use crate::{
    load::{Load, Pace, Refusal},
    system::{Kind, LOAD_CORE, Programs, System},
    table::{Figures, Sample},
    upstream::Upstream,
};

/// Calls a second in the open loop.
const RATE: u64 = 1_000;
/// Calls before a round counts.
const WARM: Duration = Duration::from_millis(300);
/// Calls whose header lies, for each system that has a policy; each way.
const SPOOFS: u64 = 20;

const KINDS: [Kind; 5] =
    [Kind::Direct, Kind::Haproxy, Kind::Envoy, Kind::Aegis("buffered"), Kind::Aegis("strict")];

fn main() -> anyhow::Result<()> {
    let mut cores = CpuSet::new();
    cores.set(LOAD_CORE)?;
    sched_setaffinity(Pid::from_raw(0), &cores).context("two cores are needed")?;
    let base = path("AEGIS_BENCH_CACHE", ".");
    let folder = tempfile::Builder::new().prefix("proxy-").tempdir_in(&base)?;
    let programs = Programs {
        aegis: path("AEGIS_BIN", "aegis"),
        envoy: path("ENVOY_BIN", "envoy"),
        haproxy: path("HAPROXY_BIN", "haproxy"),
    };
    machine()?;
    let upstream = Upstream::start()?;
    let mut arguments = env::args().skip(1);
    match arguments.next().as_deref() {
        Some("footprint") => footprint::measure(folder.path(), &programs, &upstream),
        seconds => {
            let seconds = seconds.map_or(Ok(2), str::parse::<u64>)?;
            let rounds = arguments.next().map_or(Ok(5), |text| text.parse::<usize>())?;
            calls(folder.path(), &programs, &upstream, Duration::from_secs(seconds), rounds)
        }
    }
}

fn path(name: &str, default: &str) -> PathBuf {
    env::var_os(name).unwrap_or_else(|| OsString::from(default)).into()
}

fn machine() -> anyhow::Result<()> {
    let cpu = fs::read_to_string("/proc/cpuinfo")?;
    let cpu = cpu.lines().find_map(|line| line.strip_prefix("model name\t: ")).unwrap_or("unknown");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let load = fs::read_to_string("/proc/loadavg")?;
    println!(
        "machine: {cpu}, {} cores, Linux {}, load {}",
        fs::read_to_string("/proc/cpuinfo")?.matches("processor\t").count(),
        kernel.trim(),
        load.trim()
    );
    println!(
        "method: system under test on core {} (taskset), generator and upstream on core {LOAD_CORE}; HTTP/1.1, {} kept \
         connections; one tools/call of {} bytes, answer of {} bytes; 5 % of the calls forbidden; every answer compared",
        system::SYSTEM_CORE,
        load::CONNECTIONS,
        wire::call(10_000, wire::ALLOWED, wire::ALLOWED).len(),
        wire::answer().len(),
    );
    Ok(())
}

fn calls(
    folder: &Path,
    programs: &Programs,
    upstream: &Upstream,
    length: Duration,
    rounds: usize,
) -> anyhow::Result<()> {
    println!(
        "calls: {rounds} interleaved rounds in rotated order; open loop {RATE}/s for {length:?} with latencies from the due time, \
         then closed loop for {length:?}; medians of rounds; CPU from /proc/PID/stat"
    );
    let mut systems = Vec::new();
    for kind in KINDS {
        let mut system = System::configure(kind, folder, upstream.port, 1)?;
        system.start(programs)?;
        if kind.refusal() != Refusal::None {
            let (_, before) = upstream.seen();
            let refused = load::spoof(port(&system)?, SPOOFS)?;
            ensure!(
                refused == 2 * SPOOFS,
                "{}: only {refused} of {} lying headers were refused",
                kind.name(),
                2 * SPOOFS
            );
            ensure!(upstream.seen().1 == before, "{} let a lying header through", kind.name());
        }
        systems.push(system);
    }
    let mut figures: Vec<Figures> = KINDS.iter().map(|kind| Figures::new(*kind)).collect();
    let mut sync = Vec::new();
    for round in 0..rounds {
        sync.push(fdatasync(folder)?);
        for at in 0..systems.len() {
            let at = (at + round) % systems.len();
            let (Some(system), Some(figures)) = (systems.get(at), figures.get_mut(at)) else {
                continue;
            };
            figures.samples.push(measure(system, upstream, length)?);
        }
    }
    for (system, figures) in systems.iter_mut().zip(&mut figures) {
        if system.kind != Kind::Direct {
            figures.rss = Some(system.memory("VmRSS")?);
        }
        system.stop()?;
    }
    for system in &systems {
        if let Kind::Aegis(_) = system.kind {
            let sent: u64 = figures
                .iter()
                .filter(|f| f.kind == system.kind)
                .flat_map(|f| &f.samples)
                .map(|s| s.calls)
                .sum();
            ledger::check(&system.folder.join("state/ledger.db"), sent)?;
        }
    }
    table::print(&figures, &sync);
    Ok(())
}

fn port(system: &System) -> anyhow::Result<u16> {
    system.ports.first().copied().context("a system without a port")
}

/// One round of one system.
fn measure(system: &System, upstream: &Upstream, length: Duration) -> anyhow::Result<Sample> {
    let mut load = Load::connect(port(system)?, system.kind.refusal())?;
    let mut sample = Sample::default();
    for pace in [Pace::Open(RATE), Pace::Closed] {
        let warm = load.run(pace, WARM)?;
        let (seen, forbidden) = upstream.seen();
        let cpu = system.cpu()?;
        let busy = busy(LOAD_CORE)?;
        let started = Instant::now();
        let round = load.run(pace, length)?;
        let per_call =
            (system.cpu()? - cpu).as_nanos() as f64 / round.latencies.len() as f64 / 1_000.0;
        let busy = (self::busy(LOAD_CORE)? - busy).as_secs_f64() / started.elapsed().as_secs_f64();
        let wrong = round.wrong + warm.wrong;
        ensure!(wrong == 0, "{}: {wrong} wrong answers", system.kind.name());
        let now = upstream.seen();
        let calls = round.latencies.len() as u64;
        let (passed, through) = match system.kind.refusal() {
            Refusal::None => (calls, round.forbidden),
            _ => (calls - round.forbidden, 0),
        };
        ensure!(
            (now.0 - seen, now.1 - forbidden) == (passed, through),
            "{}: {passed} calls, {through} of them forbidden, should have arrived; {} and {} did",
            system.kind.name(),
            now.0 - seen,
            now.1 - forbidden,
        );
        sample.calls += calls + warm.latencies.len() as u64;
        sample.take(pace, &round, per_call, busy);
    }
    Ok(sample)
}

/// The time that a core has been busy since the start.
fn busy(core: usize) -> anyhow::Result<Duration> {
    let stat = fs::read_to_string("/proc/stat")?;
    let name = format!("cpu{core} ");
    let line = stat.lines().find_map(|line| line.strip_prefix(&name)).context("no such core")?;
    let ticks: Vec<u64> = line.split_whitespace().filter_map(|field| field.parse().ok()).collect();
    // All but idle, iowait, and steal.
    let busy = ticks
        .iter()
        .enumerate()
        .filter(|(at, _)| ![3, 4, 7, 8, 9].contains(at))
        .map(|(_, ticks)| ticks);
    Ok(Duration::from_millis(busy.sum::<u64>() * 10))
}

/// The median of writing 4 KiB within a file and syncing its data. Microseconds.
fn fdatasync(folder: &Path) -> anyhow::Result<f64> {
    use std::io::{Seek as _, SeekFrom};
    let mut file = tempfile::tempfile_in(folder)?;
    file.write_all(&[0; 65_536])?;
    file.sync_all()?;
    let mut waits = Vec::new();
    for at in 0..200 {
        let started = Instant::now();
        file.seek(SeekFrom::Start(at % 16 * 4_096))?;
        file.write_all(&[7; 4_096])?;
        file.sync_data()?;
        waits.push(started.elapsed().as_nanos() as f64 / 1_000.0);
    }
    Ok(table::median(waits))
}
