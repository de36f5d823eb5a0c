//! SVIDs signed per second on one core, key generation included, and from certificate requests.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use aegis_ca::{
    CaConfig, Directory, IdentityEvent, IdentityManager, Lifetimes, Recorder, RecorderError,
    Registration,
};
use aegis_core::{AgentId, Sponsor};
use aegis_identity::system_clock;
use futures::future::BoxFuture;

/// How long each figure is measured.
const ROUND: Duration = Duration::from_secs(3);

/// Counts and keeps nothing: what a log costs is measured elsewhere.
#[derive(Default)]
struct Count(AtomicU64);

impl Recorder for Count {
    fn record<'a>(&'a self, _event: &'a IdentityEvent) -> BoxFuture<'a, Result<(), RecorderError>> {
        self.0.fetch_add(1, Ordering::Relaxed);
        Box::pin(std::future::ready(Ok(())))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let directory = tempfile::tempdir()?;
    let config =
        CaConfig { trust_domain: "bench.example".parse()?, lifetimes: Lifetimes::default() };
    let store = Directory::open(directory.path().join("ca"))?;
    let ca = IdentityManager::open(store, config, Arc::new(Count::default()), system_clock())?;
    let id: AgentId = "spiffe://bench.example/ns/a/sa/b/agent/c".parse()?;
    let sponsor: Sponsor = "ada@bench.example".parse()?;
    let registration = Registration {
        id: id.clone(),
        sponsor: sponsor.clone(),
        capabilities: vec![],
        selectors: vec![],
        ttl: None,
    };
    ca.register(vec![registration])?;

    let (start, mut issued) = (Instant::now(), 0_u64);
    while start.elapsed() < ROUND {
        ca.issue(&id, &sponsor).await?;
        issued += 1;
    }
    report("key made here, P-256", issued, start.elapsed());

    let key = rcgen::KeyPair::generate()?;
    let request = rcgen::CertificateParams::default().serialize_request(&key)?;
    let (start, mut signed) = (Instant::now(), 0_u64);
    while start.elapsed() < ROUND {
        ca.sign_request(&id, &sponsor, request.der()).await?;
        signed += 1;
    }
    report("certificate request, P-256", signed, start.elapsed());
    Ok(())
}

fn report(what: &str, count: u64, elapsed: Duration) {
    let per_second = u128::from(count) * 1_000_000 / elapsed.as_micros().max(1);
    println!("ca: {what}: {per_second} SVIDs/s on one core (target 5000)");
}
