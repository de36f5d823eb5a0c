//! SVIDs a second: what one core signs, and what is issued with its record durable.
//!
//! Signing alone counts the records and keeps none. Its rate is given twice: by the wall's clock,
//! and by this process' processor time, which holds on a busy machine too. The durable rate is that
//! of `IdentityManager::issue`, which the Workload API and the sidecar call, as `aegis up` wires it:
//! each issue is an entry of the audit log (SQLite, fdatasync before the SVID is handed out). The
//! Workload API's socket is not in the loop, because it admits 100 requests a second of a user.
//!
//! `bench-ca [FOLDER]`: the log is made in FOLDER (default: the current one), so that the disk that
//! counts is measured.

use std::{
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use aegis_audit::{Draft, Journal, Kind, Location, Options, Outcome, Signer};
use aegis_ca::{
    CaConfig, Directory, IdentityEvent, IdentityManager, Lifetimes, Recorder, RecorderError,
    Registration,
};
use aegis_core::{AgentId, Sponsor};
use aegis_identity::system_clock;
use anyhow::{Context as _, Result, ensure};
use futures::future::BoxFuture;
use serde_json::{Value, json};

/// How long each figure is measured.
const ROUND: Duration = Duration::from_secs(5);
const CALLERS: [usize; 2] = [1, 64];

/// Counts and keeps nothing.
#[derive(Default)]
struct Count(AtomicU64);

impl Recorder for Count {
    fn record<'a>(&'a self, _event: &'a IdentityEvent) -> BoxFuture<'a, Result<(), RecorderError>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Records as `aegis up` does: resolved once the entry is on disk.
struct Ledger(Journal);

impl Recorder for Ledger {
    fn record<'a>(&'a self, event: &'a IdentityEvent) -> BoxFuture<'a, Result<(), RecorderError>> {
        Box::pin(async move {
            let now = system_clock()();
            let mut draft = Draft::new(Kind::IdentityIssued, now, Outcome::Recorded);
            if let IdentityEvent::X509Issued { id, sponsor, .. } = event {
                draft.agent_id = Some(id.to_string());
                draft.sponsor = sponsor.as_ref().map(ToString::to_string);
            }
            if let Value::Object(members) = json!(event) {
                draft.detail = members;
            }
            self.0.append(draft).await?.await?;
            Ok(())
        })
    }
}

/// A CA with one registration, for a recorder.
struct Bench {
    ca: IdentityManager,
    id: AgentId,
    sponsor: Sponsor,
}

impl Bench {
    fn new(folder: &Path, recorder: impl Recorder) -> Result<Self> {
        let config =
            CaConfig { trust_domain: "bench.example".parse()?, lifetimes: Lifetimes::default() };
        let store = Directory::open(folder.join("ca"))?;
        let ca = IdentityManager::open(store, config, Arc::new(recorder), system_clock())?;
        let id: AgentId = "spiffe://bench.example/ns/a/sa/b/agent/c".parse()?;
        let sponsor: Sponsor = "ada@bench.example".parse()?;
        ca.register(vec![Registration {
            id: id.clone(),
            sponsor: sponsor.clone(),
            capabilities: vec![],
            selectors: vec![],
            ttl: None,
        }])?;
        Ok(Self { ca, id, sponsor })
    }
}

/// Processor time of this process, in steps of 10 ms.
fn processor() -> Result<Duration> {
    let stat = std::fs::read_to_string("/proc/self/stat")?;
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split(' ').collect();
    let ticks = |at: usize| -> Result<u64> {
        Ok(fields.get(at).context("/proc/self/stat is short")?.parse()?)
    };
    Ok(Duration::from_millis((ticks(12)? + ticks(13)?) * 10))
}

fn rate(count: u64, elapsed: Duration) -> u128 {
    u128::from(count) * 1_000_000 / elapsed.as_micros().max(1)
}

async fn signing() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let bench = Bench::new(folder.path(), Count::default())?;
    let key = rcgen::KeyPair::generate()?;
    let request = rcgen::CertificateParams::default().serialize_request(&key)?;
    for requested in [false, true] {
        let (start, used, mut count) = (Instant::now(), processor()?, 0_u64);
        while start.elapsed() < ROUND {
            if requested {
                bench.ca.sign_request(&bench.id, &bench.sponsor, request.der()).await?;
            } else {
                bench.ca.issue(&bench.id, &bench.sponsor).await?;
            }
            count += 1;
        }
        let what = if requested { "certificate request verified" } else { "key pair made" };
        let (wall, core) = (start.elapsed(), processor()?.saturating_sub(used));
        println!(
            "ca: P-256, {what} and signed: {} SVIDs/s by the clock, {} per second of one core (target 5000)",
            rate(count, wall),
            rate(count, core)
        );
    }
    Ok(())
}

/// Issues with each SVID's record on disk before it is handed out.
async fn durable(folder: &Path) -> Result<()> {
    let folder = tempfile::tempdir_in(folder)?;
    let place = Location::Sqlite(folder.path().join("audit.db"));
    let options = Options::new("bench", Signer::generate("bench.example/audit")?);
    let journal = Journal::open(&place, options).await?;
    let bench = Arc::new(Bench::new(folder.path(), Ledger(journal.clone()))?);
    for callers in CALLERS {
        let start = Instant::now();
        let mut running = tokio::task::JoinSet::new();
        for _ in 0..callers {
            let bench = Arc::clone(&bench);
            running.spawn(async move {
                let mut waits = Vec::new();
                while start.elapsed() < ROUND {
                    let asked = Instant::now();
                    bench.ca.issue(&bench.id, &bench.sponsor).await?;
                    waits.push(asked.elapsed());
                }
                anyhow::Ok(waits)
            });
        }
        let mut waits = Vec::new();
        while let Some(one) = running.join_next().await {
            waits.extend(one??);
        }
        waits.sort_unstable();
        ensure!(!waits.is_empty(), "nothing was issued");
        let at = |per_mille: usize| waits[(waits.len() - 1) * per_mille / 1_000].as_micros();
        println!(
            "ca: issued and durably recorded, {callers} callers: {} SVIDs/s, wait p50 {} µs, p99 {} µs",
            rate(waits.len() as u64, start.elapsed()),
            at(500),
            at(990)
        );
    }
    journal.close().await?;
    Ok(())
}

fn main() -> Result<()> {
    let folder = std::env::args_os().nth(1).map_or_else(|| PathBuf::from("."), PathBuf::from);
    println!(
        "method: one thread signs for {} s; then the same with the audit log's writer on its own thread, strict, each caller waiting for its SVID before the next",
        ROUND.as_secs()
    );
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        signing().await?;
        durable(&folder).await
    })
}
