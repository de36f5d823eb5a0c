//! Entries reach the ledger in order, each once, whatever breaks on the way.

use std::{
    pin::Pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use aegis_api::journal::proto::{
    Acknowledgement, Shipment,
    ledger_server::{Ledger as Service, LedgerServer},
};
use aegis_audit::{
    Acknowledged, AppendError, Draft, Durability, Entry, Journal, Kind, Location, Options, Outcome,
    Reader, Salt, Signer,
};
use aegis_core::Timestamp;
use aegis_identity::{PeerRule, SvidSource, system_clock, tls::server_config};
use aegis_mesh::{Peers, ShipCounters, Shipper, channel, serve_tls};
use futures::Stream;
use parking_lot::Mutex;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, service::Routes};

use crate::fixture::{AGENT, Root, domain, listener, revocations, until};

/// An entry and its salt.
type Taken = (Vec<u8>, Vec<u8>);

/// A ledger that takes entries in order, and breaks every stream after `breaks_after` shipments.
#[derive(Clone, Default)]
struct Ledger {
    entries: Arc<Mutex<Vec<Taken>>>,
    breaks_after: Option<usize>,
}

#[tonic::async_trait]
impl Service for Ledger {
    type ShipStream = Pin<Box<dyn Stream<Item = Result<Acknowledgement, Status>> + Send>>;

    async fn ship(
        &self,
        request: Request<Streaming<Shipment>>,
    ) -> Result<Response<Self::ShipStream>, Status> {
        let (tell, told) = mpsc::channel(4);
        let ledger = self.clone();
        let mut shipments = request.into_inner();
        tokio::spawn(async move {
            let mut count = 0;
            while let Ok(Some(shipment)) = shipments.message().await {
                assert_eq!(shipment.source, SOURCE);
                assert_eq!(shipment.entries.len(), shipment.salts.len());
                count += 1;
                if ledger.breaks_after.is_some_and(|most| count > most) {
                    let _ = tell.send(Err(Status::unavailable("restarting"))).await;
                    return;
                }
                let next_sequence = {
                    let mut entries = ledger.entries.lock();
                    entries.extend(shipment.entries.into_iter().zip(shipment.salts));
                    entries.len() as u64 + 1
                };
                if tell.send(Ok(Acknowledgement { next_sequence })).await.is_err() {
                    return;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(told))))
    }
}

const SOURCE: &str = "spiffe://acme.example/ns/shop/sa/bot/agent/buyer#uid/1";

struct World {
    ledger: Ledger,
    channel: tonic::transport::Channel,
    folder: tempfile::TempDir,
    counters: Arc<ShipCounters>,
    acknowledged: watch::Sender<u64>,
    stop: CancellationToken,
    _kept: (watch::Sender<Arc<aegis_identity::Revocations>>, Arc<SvidSource>),
}

impl Drop for World {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

async fn world(breaks_after: Option<usize>) -> World {
    let ledger = Ledger { breaks_after, ..Ledger::default() };
    let (root, revoked, stop) = (Root::new(1), revocations(), CancellationToken::new());
    let server = root.source("spiffe://acme.example/aegis/ledger").await;
    let tls = server_config(&server, revoked.subscribe(), PeerRule::agents_of(domain())).unwrap();
    let peers = Peers { revocations: revoked.subscribe(), clock: system_clock() };
    let (listener, address) = listener().await;
    let service = Routes::new(LedgerServer::new(ledger.clone())).prepare();
    tokio::spawn(serve_tls(listener, tls, Some(peers), service, Duration::ZERO, stop.clone()));
    let source = root.source(AGENT).await;
    let channel = channel(&address.to_string(), "ledger", &source, revoked.subscribe()).unwrap();
    World {
        ledger,
        channel,
        folder: tempfile::tempdir().unwrap(),
        counters: Arc::default(),
        acknowledged: watch::Sender::new(0),
        stop,
        _kept: (revoked, source),
    }
}

impl World {
    fn place(&self) -> Location {
        Location::Sqlite(self.folder.path().join("journal.db"))
    }

    async fn journal(&self) -> Journal {
        self.opened(None).await
    }

    async fn opened(&self, acknowledged: Option<Acknowledged>) -> Journal {
        let signer = Signer::from_seed("acme.example/buyer", &[9; 32]).unwrap();
        let mut options = Options::new(SOURCE, signer);
        options.acknowledged = acknowledged;
        Journal::open(&self.place(), options).await.unwrap()
    }

    fn ship(&self, shipper: Shipper) -> tokio::task::JoinHandle<()> {
        let (counters, told) = (Arc::clone(&self.counters), self.acknowledged.clone());
        tokio::spawn(shipper.run(self.channel.clone(), counters, told, self.stop.clone()))
    }

    /// Whether the ledger has each entry of the log once, in order.
    fn is_whole(&self) {
        let entries = self.ledger.entries.lock();
        for ((body, _), sequence) in entries.iter().zip(1..) {
            assert_eq!(Entry::parse(body).unwrap().sequence, sequence);
        }
    }
}

async fn fill(journal: &Journal, count: u64) {
    for i in 0..count {
        let draft = Draft::new(Kind::Decision, Timestamp::from_secs(i), Outcome::Allow);
        let draft = match i % 2 {
            0 => draft.with_arguments(json!({}), b"{}", Salt::random()),
            _ => draft,
        };
        journal.append(draft).await.unwrap().await.unwrap();
    }
}

#[tokio::test]
async fn what_is_recorded_arrives_and_is_acknowledged() {
    let world = world(None).await;
    let journal = world.journal().await;
    let _shipping = world.ship(Shipper::of(&journal));
    fill(&journal, 20).await;
    // `journal_opened` comes first.
    until(&mut world.acknowledged.subscribe(), |acknowledged| *acknowledged == 21).await;
    world.is_whole();
    let salts = world.ledger.entries.lock().iter().filter(|(_, salt)| salt.len() == 32).count();
    assert_eq!(salts, 10);
    // An idle journal that grows again is shipped again.
    fill(&journal, 1).await;
    until(&mut world.acknowledged.subscribe(), |acknowledged| *acknowledged == 22).await;
}

#[tokio::test]
async fn a_broken_stream_loses_and_repeats_nothing() {
    let world = world(Some(2)).await;
    let journal = world.journal().await;
    fill(&journal, 1500).await;
    let _shipping = world.ship(Shipper::of(&journal));
    until(&mut world.acknowledged.subscribe(), |acknowledged| *acknowledged == 1501).await;
    world.is_whole();
    assert!(world.counters.broken.load(Ordering::Relaxed) > 0);
}

#[tokio::test]
async fn a_journal_that_was_left_behind_is_shipped_to_its_end() {
    let world = world(None).await;
    let journal = world.journal().await;
    fill(&journal, 5).await;
    journal.close().await.unwrap();
    let Location::Sqlite(path) = world.place() else { unreachable!() };
    let left = Shipper::of_left(Reader::open_copy(&path).await.unwrap()).await.unwrap().unwrap();
    assert_eq!(left.source(), SOURCE);
    let shipping = world.ship(left);
    tokio::time::timeout(crate::fixture::PATIENCE, shipping).await.unwrap().unwrap();
    assert_eq!(world.ledger.entries.lock().len(), 7);
    world.is_whole();
}

#[tokio::test]
async fn a_ledger_that_has_more_acknowledges_nothing() {
    let world = world(None).await;
    world.ledger.entries.lock().extend(vec![(vec![], vec![]); 1000]);
    let journal = world.journal().await;
    let _shipping = world.ship(Shipper::of(&journal));
    let deadline = tokio::time::Instant::now() + crate::fixture::PATIENCE;
    while world.counters.rollbacks.load(Ordering::Relaxed) == 0 {
        assert!(tokio::time::Instant::now() < deadline);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(*world.acknowledged.borrow(), 0);
}

#[tokio::test]
async fn strict_means_that_the_ledger_has_it() {
    let world = world(None).await;
    let size = world.acknowledged.subscribe();
    let patience = Duration::from_millis(100);
    let journal = world.opened(Some(Acknowledged { size: size.clone(), patience })).await;
    let draft = || Draft::new(Kind::Decision, Timestamp::from_secs(1), Outcome::Allow);
    // Nobody ships: what is on this disk alone does not count.
    let error = journal.record(draft(), Durability::Strict).await.unwrap_err();
    assert!(matches!(error, AppendError::Unacknowledged(_)), "{error}");
    assert!(journal.record(draft(), Durability::Overlap).await.is_ok());
    journal.close().await.unwrap();

    let patience = crate::fixture::PATIENCE;
    let journal = world.opened(Some(Acknowledged { size, patience })).await;
    let _shipping = world.ship(Shipper::of(&journal));
    journal.record(draft(), Durability::Strict).await.unwrap();
    let last = world.ledger.entries.lock().last().unwrap().0.clone();
    assert_eq!(Entry::parse(&last).unwrap().kind, Kind::Decision);
}
