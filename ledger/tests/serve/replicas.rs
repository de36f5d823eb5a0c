//! Several replicas on one Postgres: one writes, and the next takes over whatever has become of it.

use aegis_audit::Location;
use nix::sys::signal::Signal;

use crate::{
    ca::{World, fill},
    fixture::{AGENT, until},
    process::Process,
    server::cluster,
};

fn seed(world: &World) {
    std::fs::write(world.path("seed"), [7_u8; 32]).unwrap();
    let private = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o440);
    std::fs::set_permissions(world.path("seed"), private).unwrap();
}

fn start(world: &World, name: &str, place: &Location) -> Process {
    Process::start(world, name, place, &world.address)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_next_takes_over() {
    let Some(cluster) = cluster() else { return };
    let world = World::new().await;
    let place = cluster.database("ledger");
    // Replicas share a key, so none of them makes one.
    let mut keyless = start(&world, "keyless", &place);
    assert!(!keyless.ended().await.success());
    seed(&world);
    let journal = world.journal(4).await;

    let mut first = start(&world, "first", &place);
    let address = first.writes().await;
    let mut second = start(&world, "second", &place);
    second.is(true, "standing by").await;
    first.is(true, "writing").await;
    world.ship(&journal, &address, AGENT).await;
    until(&mut world.acknowledged.subscribe(), |arrived| *arrived == 5).await;
    assert_eq!(second.entries(journal.source()).await.len(), 5, "a standby serves the log");

    // Killed: nothing that was acknowledged is lost.
    first.signal(Signal::SIGKILL);
    first.ended().await;
    let address = second.writes().await;
    world.ship(&journal, &address, AGENT).await;
    fill(&journal, 3).await;
    until(&mut world.acknowledged.subscribe(), |arrived| *arrived == 8).await;
    let sequences: Vec<_> = second
        .entries(journal.source())
        .await
        .iter()
        .map(|entry| entry["sequence"].clone())
        .collect();
    assert_eq!(sequences, (1..=8).collect::<Vec<u64>>());

    // Paused, and its session ended by the server: when it wakes up, another one writes, and it ends.
    let third = start(&world, "third", &place);
    third.is(true, "standing by").await;
    second.signal(Signal::SIGSTOP);
    let locks = "SELECT pg_terminate_backend(pid) FROM pg_locks WHERE locktype = 'advisory'";
    cluster.query("ledger", locks);
    let address = third.writes().await;
    second.signal(Signal::SIGCONT);
    assert!(!second.ended().await.success());
    third.is(true, "writing").await;

    // The database goes and comes back: who wrote writes on.
    world.ship(&journal, &address, AGENT).await;
    cluster.crash();
    fill(&journal, 2).await;
    third.is(false, "writing").await;
    cluster.up();
    until(&mut world.acknowledged.subscribe(), |arrived| *arrived == 10).await;
    third.is(true, "writing").await;
}
