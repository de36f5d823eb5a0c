//! Journals come from their owners, over mutual TLS, and from nobody else.

use std::{os::unix::fs::PermissionsExt as _, sync::atomic::Ordering};

use aegis_api::journal::proto::{Shipment, ledger_client::LedgerClient};
use aegis_audit::Location;
use aegis_mesh::channel;
use nix::sys::signal::Signal;
use tonic::Status;

use crate::{
    ca::World,
    fixture::{AGENT, PATIENCE, Root, revocations, until},
    process::{Process, eventually},
};

fn place(world: &World) -> Location {
    Location::Sqlite(world.path("ledger.db"))
}

/// What a ledger answers to whoever `root` calls `id`.
async fn knock(root: &Root, id: &str, address: &str) -> Result<(), Status> {
    let (source, unaware) = (root.source(id).await, revocations());
    let channel = channel(address, "ledger", &source, unaware.subscribe()).unwrap();
    let hello = Shipment { source: format!("{id}#1"), ..Shipment::default() };
    // The stream stays open until the answer is there.
    let shipments = futures::StreamExt::chain(
        futures::stream::iter([hello]),
        futures::stream::pending::<Shipment>(),
    );
    let asking = async {
        let mut answers = LedgerClient::new(channel).ship(shipments).await?.into_inner();
        answers.message().await.map(drop)
    };
    tokio::time::timeout(PATIENCE, asking).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_journal_arrives_and_is_served() {
    let world = World::new().await;
    let mut ledger = Process::start(&world, "state", &place(&world), &world.address);
    let address = ledger.writes().await;
    ledger.is(true, "writing").await;
    let seed = std::fs::metadata(world.path("seed")).unwrap();
    assert_eq!(seed.permissions().mode() & 0o777, 0o600);
    let journal = world.journal(5).await;
    world.ship(&journal, &address, AGENT).await;
    until(&mut world.acknowledged.subscribe(), |arrived| *arrived == 6).await;
    let entries = ledger.entries(journal.source()).await;
    assert_eq!(entries.len(), 6);
    let (_, metrics) = ledger.get("/metrics").await;
    for line in ["aegis_ledger_imported_entries_total 6", "aegis_ledger_writing 1"] {
        assert!(metrics.lines().any(|one| one == line), "{line}: {metrics}");
    }
    // A second process on the same file stands by, and writes when the first has ended in order.
    let second = Process::start(&world, "state", &place(&world), &world.address);
    second.is(true, "standing by").await;
    assert_eq!(second.entries(journal.source()).await.len(), 6);
    let (_, metrics) = second.get("/metrics").await;
    assert!(metrics.lines().any(|one| one == "aegis_ledger_writing 0"), "{metrics}");
    assert!(!second.has_told("writing the log; journals are taken"));
    ledger.signal(Signal::SIGTERM);
    assert!(ledger.ended().await.success());
    second.writes().await;
    second.is(true, "writing").await;
    let own = second.entries("spiffe://acme.example/aegis/ledger").await;
    let kinds = own.iter().map(|entry| entry["kind"].as_str().unwrap());
    // Beside what marks the hours of shipping.
    let kinds: Vec<_> = kinds.filter(|kind| *kind != "configuration").collect();
    assert_eq!(kinds, ["journal_opened", "journal_closed", "journal_opened"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strangers_ship_nothing() {
    let world = World::new().await;
    let ledger = Process::start(&world, "state", &place(&world), &world.address);
    let address = ledger.writes().await;
    for id in [AGENT, "spiffe://acme.example/aegis/ca", "spiffe://acme.example/aegis/operator"] {
        knock(&world.root, id, &address).await.unwrap();
    }
    let workload = format!("{AGENT}/workload");
    for id in [
        workload.as_str(),
        "spiffe://acme.example/aegis/ledger",
        "spiffe://acme.example/aegis/other",
        "spiffe://acme.example/user/ada",
    ] {
        assert!(knock(&world.root, id, &address).await.is_err(), "{id}");
    }
    // The right name, vouched for by somebody else.
    assert!(knock(&Root::new(1), AGENT, &address).await.is_err());
    assert_eq!(ledger.get("/v1/entries?kind=gap").await.0, 200);
    let (_, metrics) = ledger.get("/metrics").await;
    assert!(!metrics.contains("aegis_ledger_refused_shipments_total{"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_is_revoked_is_cut_off() {
    let world = World::new().await;
    let ledger = Process::start(&world, "state", &place(&world), &world.address);
    let address = ledger.writes().await;
    let journal = world.journal(2).await;
    let counters = world.ship(&journal, &address, AGENT).await;
    until(&mut world.acknowledged.subscribe(), |arrived| *arrived == 3).await;
    world.revoke(&[AGENT]);
    let cut = eventually("the end", async || {
        (!counters.connected.load(Ordering::Relaxed) && counters.broken.load(Ordering::Relaxed) > 1)
            .then_some(())
    });
    assert!(cut.await.is_some(), "the stream stays open: {counters:?}");
    assert!(knock(&world.root, AGENT, &address).await.is_err());
    world.revoke(&[]);
    crate::ca::fill(&journal, 1).await;
    until(&mut world.acknowledged.subscribe(), |arrived| *arrived == 4).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_is_read_while_the_ca_is_away() {
    let world = World::new().await;
    let mut first = Process::start(&world, "state", &place(&world), &world.address);
    first.writes().await;
    first.signal(Signal::SIGTERM);
    assert!(first.ended().await.success());
    // Nobody listens there.
    let second = Process::start(&world, "state", &place(&world), "127.0.0.1:1");
    let source = "spiffe://acme.example/aegis/ledger";
    let read =
        eventually("the log", async || (second.get("/checkpoint").await.0 == 200).then_some(()));
    assert!(read.await.is_some());
    assert_eq!(second.entries(source).await.len(), 2);
    second.is(false, "starting or stopping").await;
    assert!(!second.has_told("writing the log; journals are taken"));
}
