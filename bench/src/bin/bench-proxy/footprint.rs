//! What a daemon takes: memory at rest and where it is, memory for each session, and the time from its
//! start to its first verdict.

use std::{
    collections::BTreeMap,
    fs,
    net::TcpStream,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use futures::StreamExt as _;

use crate::{
    load,
    system::{Kind, Programs, System},
    table::{median, verdict},
    upstream::Upstream,
    wire::{self, ALLOWED},
};

/// How often the daemon is started.
const STARTS: usize = 9;
/// When the memory at rest is read.
const REST: Duration = Duration::from_secs(60);
/// Sessions, of which each is a connection of its own that has made a call.
const SESSIONS: [usize; 2] = [1_000, 10_000];
/// A listener serves 4,096 connections: three take them all.
const LISTENERS: usize = 3;
/// How long the sessions of one system may take to open.
const OPENING: Duration = Duration::from_secs(60);

/// Measures and prints.
pub fn measure(folder: &Path, programs: &Programs, upstream: &Upstream) -> anyhow::Result<()> {
    let mut daemon =
        System::configure(Kind::Aegis("strict"), &folder.join("rest"), upstream.port, 1)?;
    let first = daemon.start(programs)?;
    let mut starts = Vec::new();
    for _ in 0..STARTS {
        daemon.stop()?;
        starts.push(daemon.start(programs)?.as_secs_f64() * 1_000.0);
    }
    let started = Instant::now();
    println!(
        "start: from exec to the first verdict, {STARTS} starts; the very first one, which compiles the policy and makes the keys: {first:?}"
    );
    verdict("cold start with compiled policies, ms", median(starts), 50.0, true);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let endpoint = format!("unix://{}", daemon.folder.join("state/workload/api.sock").display());
    // A workload holds its SVID as long as the stream is open; so does the daemon for it.
    let _held = runtime.block_on(async {
        let client = spiffe::WorkloadApiClient::connect_to(&endpoint).await?;
        let mut stream = Box::pin(client.stream_x509_contexts().await?);
        stream.next().await.context("no SVID")??;
        Ok::<_, anyhow::Error>((client, stream))
    })?;
    std::thread::sleep(REST.saturating_sub(started.elapsed()));
    rest(&daemon)?;
    daemon.stop()?;
    println!("sessions: one connection each, one call made; RSS before and after");
    for kind in [Kind::Haproxy, Kind::Envoy, Kind::Aegis("strict")] {
        let mut system =
            System::configure(kind, &folder.join("sessions"), upstream.port, LISTENERS)?;
        system.start(programs)?;
        sessions(&system)?;
        system.stop()?;
    }
    Ok(())
}

fn rest(daemon: &System) -> anyhow::Result<()> {
    let mib = |kib: u64| kib as f64 / 1_024.0;
    let rss = mib(daemon.memory("VmRSS")?);
    println!(
        "memory after {REST:?}, one policy, an SVID held, strict journal open: RSS {rss:.1} MiB, of it {:.1} anonymous, {:.1} of files; {} threads",
        mib(daemon.memory("RssAnon")?),
        mib(daemon.memory("RssFile")?),
        daemon.memory("Threads")?
    );
    for (what, kib) in mappings(daemon)? {
        println!("  {:8.2} MiB  {what}", mib(kib));
    }
    verdict("RSS at rest, MiB", rss, 15.0, true);
    Ok(())
}

/// What of the resident memory belongs to which mapping, the largest first.
fn mappings(daemon: &System) -> anyhow::Result<Vec<(String, u64)>> {
    let pid = daemon.pid().context("nothing is running")?;
    let mut sums: BTreeMap<String, u64> = BTreeMap::new();
    let mut current = String::new();
    for line in fs::read_to_string(format!("/proc/{pid}/smaps"))?.lines() {
        let fields: Vec<&str> = line.split_whitespace().collect();
        match fields.as_slice() {
            ["Rss:", kib, ..] => *sums.entry(current.clone()).or_default() += kib.parse::<u64>()?,
            [range, rights, _, _, _, rest @ ..] if range.contains('-') => {
                let name = rest.first().copied().unwrap_or("anonymous mappings");
                let name =
                    Path::new(name).file_name().map_or(name.into(), |name| name.to_string_lossy());
                current = if name == "aegis" {
                    format!("{name}, {}", &rights[..3])
                } else {
                    name.into_owned()
                };
            }
            _ => {}
        }
    }
    let mut sums: Vec<(String, u64)> = sums.into_iter().filter(|(_, kib)| *kib >= 64).collect();
    sums.sort_by_key(|(_, kib)| std::cmp::Reverse(*kib));
    Ok(sums)
}

/// Opens sessions up to each of [`SESSIONS`], and prints what one takes in between.
fn sessions(system: &System) -> anyhow::Result<()> {
    let started = Instant::now();
    let mut calls: Vec<_> =
        system.ports.iter().map(|&port| (port, wire::call(port, ALLOWED, ALLOWED))).collect();
    let mut open: Vec<TcpStream> = Vec::new();
    let mut marks: Vec<(usize, u64)> = Vec::new();
    for wanted in SESSIONS {
        while open.len() < wanted && started.elapsed() < OPENING {
            let listener = open.len() % LISTENERS;
            let (port, call) = calls.get_mut(listener).context("no listener")?;
            let stream = TcpStream::connect(("127.0.0.1", *port))?;
            let (status, body) = load::on(&stream, call, 1)?;
            ensure!(
                status == 200 && body == wire::expected().with_id(1),
                "session {} got {status}",
                open.len()
            );
            open.push(stream);
        }
        marks.push((open.len(), system.memory("VmRSS")?));
    }
    let (Some((few, before)), Some((many, after))) = (marks.first(), marks.last()) else {
        return Ok(());
    };
    ensure!(many > few, "{}: only {many} sessions in {OPENING:?}", system.kind.name());
    println!(
        "  {:15} {few} sessions {:.1} MiB, {many} sessions {:.1} MiB: {:.2} KiB a session; {:.1} ms to open one",
        system.kind.name(),
        *before as f64 / 1_024.0,
        *after as f64 / 1_024.0,
        (*after as f64 - *before as f64) / (many - few) as f64,
        started.elapsed().as_secs_f64() * 1_000.0 / *many as f64,
    );
    Ok(())
}
