//! Journals on their way into the ledger: in order, once, each from its owner.

#![expect(
    clippy::unwrap_used,
    clippy::indexing_slicing,
    reason = "what sets a test up may end it; the exemption of tests does not reach these functions"
)]

use std::{ops::Range, path::Path, time::Duration};

use aegis_api::journal::proto::{Acknowledgement, Shipment, ledger_client::LedgerClient};
use aegis_audit::{Draft, Filter, Journal, Kind, Location, Options, Outcome, Signer};
use aegis_core::Timestamp;
use aegis_identity::{PeerIdentity, Serial};
use aegis_ledger::ship::{ShipMetrics, Shipping};
use prometheus::Registry;
use tokio::net::TcpListener;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tokio_util::sync::CancellationToken;
use tonic::{Code, Status, Streaming, transport::Server};

const BUYER: &str = "spiffe://acme.example/ns/shop/sa/bot/agent/buyer";
const SOURCE: &str = "spiffe://acme.example/ns/shop/sa/bot/agent/buyer#1";

async fn journal(folder: &Path, name: &str, source: &str) -> Journal {
    let signer = Signer::from_seed("acme.example/audit", &[9; 32]).unwrap();
    let place = Location::Sqlite(folder.join(name));
    Journal::open(&place, Options::new(source, signer)).await.unwrap()
}

async fn fill(journal: &Journal, entries: u64) {
    for second in 0..entries {
        let draft = Draft::new(Kind::Decision, Timestamp::from_secs(second), Outcome::Allow);
        journal.append(draft).await.unwrap().await.unwrap();
    }
}

async fn shipment(journal: &Journal, range: Range<u64>) -> Shipment {
    let stored = journal.reader().entries(range).await.unwrap();
    let entries = stored.into_iter().map(|entry| entry.body).collect();
    Shipment { source: journal.source().to_owned(), entries, salts: vec![] }
}

struct Served {
    address: String,
    metrics: ShipMetrics,
    stop: CancellationToken,
}

/// Serves `journal` to one peer, as the TLS layer would name it.
async fn serve(journal: &Journal, peer: &str) -> Served {
    let metrics = ShipMetrics::register(&Registry::new()).unwrap();
    let stop = CancellationToken::new();
    let service = Shipping::new(journal.clone(), metrics.clone(), stop.clone()).into_service();
    let peer = PeerIdentity {
        id: peer.parse().unwrap(),
        serial: Serial::from_bytes(&[1]),
        not_after: Timestamp::from_secs(u64::from(u32::MAX)),
    };
    let layer = tonic::service::InterceptorLayer::new(move |mut request: tonic::Request<()>| {
        request.extensions_mut().insert(peer.clone());
        Ok::<_, Status>(request)
    });
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let serving = Server::builder().layer(layer).add_service(service);
    let stopped = stop.clone().cancelled_owned();
    tokio::spawn(serving.serve_with_incoming_shutdown(TcpListenerStream::new(listener), stopped));
    Served { address, metrics, stop }
}

struct Ship {
    send: tokio::sync::mpsc::Sender<Shipment>,
    answers: Streaming<Acknowledgement>,
}

impl Ship {
    async fn connect(served: &Served) -> Self {
        let mut client = LedgerClient::connect(served.address.clone()).await.unwrap();
        let (send, shipments) = tokio::sync::mpsc::channel(4);
        let answers = client.ship(ReceiverStream::new(shipments)).await.unwrap().into_inner();
        Self { send, answers }
    }

    async fn ask(&mut self, shipment: Shipment) -> Result<u64, Status> {
        self.send.send(shipment).await.unwrap();
        let answer = tokio::time::timeout(Duration::from_secs(30), self.answers.message());
        Ok(answer.await.unwrap()?.unwrap().next_sequence)
    }
}

async fn recorded(ledger: &Journal) -> Vec<String> {
    let filter = Filter { kind: Some(Kind::Gap), oldest_first: true, ..Filter::default() };
    let page = ledger.reader().query(&filter).await.unwrap();
    let refusal = |entry: &aegis_audit::Stored| {
        entry.entry().unwrap().detail["refusal"].as_str().unwrap().to_owned()
    };
    page.entries.iter().map(refusal).collect()
}

#[tokio::test]
async fn a_journal_arrives_in_order_and_once() {
    let folder = tempfile::tempdir().unwrap();
    let own = journal(folder.path(), "own.db", SOURCE).await;
    let ledger = journal(folder.path(), "ledger.db", "ledger").await;
    fill(&own, 9).await;
    let served = serve(&ledger, BUYER).await;
    let mut ship = Ship::connect(&served).await;
    assert_eq!(ship.ask(shipment(&own, 0..0).await).await.unwrap(), 1);
    assert_eq!(ship.ask(shipment(&own, 0..4).await).await.unwrap(), 5);
    // What was sent is durable with the answer, and sent again it is there once.
    let held = async || ledger.reader().query(&Filter::default()).await.unwrap().entries.len();
    let before = held().await;
    assert_eq!(ship.ask(shipment(&own, 0..4).await).await.unwrap(), 5);
    assert_eq!(held().await, before);
    let mut again = Ship::connect(&served).await;
    assert_eq!(again.ask(shipment(&own, 4..10).await).await.unwrap(), 11);
    assert_eq!(served.metrics.gaps.get(), 0);
    let stored = ledger.reader().entries(0..99).await.unwrap();
    let bodies: Vec<_> =
        stored.into_iter().filter(|one| one.source == SOURCE).map(|one| one.body).collect();
    let sent = own.reader().entries(0..99).await.unwrap();
    assert_eq!(bodies, sent.into_iter().map(|one| one.body).collect::<Vec<_>>());
    served.stop.cancel();
}

#[tokio::test]
async fn what_does_not_continue_or_is_somebody_elses_is_refused_and_recorded() {
    let folder = tempfile::tempdir().unwrap();
    let own = journal(folder.path(), "own.db", SOURCE).await;
    let ledger = journal(folder.path(), "ledger.db", "ledger").await;
    fill(&own, 9).await;
    let served = serve(&ledger, BUYER).await;
    Ship::connect(&served).await.ask(shipment(&own, 0..3).await).await.unwrap();
    // A gap, twice: recorded once.
    for _ in 0..2 {
        let gap = Ship::connect(&served).await.ask(shipment(&own, 5..6).await).await.unwrap_err();
        assert_eq!(gap.code(), Code::FailedPrecondition, "{gap}");
    }
    assert_eq!((served.metrics.gaps.get(), recorded(&ledger).await), (2, vec!["gap".to_owned()]));
    // Another journal under the same name.
    let forged = journal(folder.path(), "forged.db", SOURCE).await;
    fill(&forged, 5).await;
    let fork = Ship::connect(&served).await.ask(shipment(&forged, 3..5).await).await.unwrap_err();
    assert_eq!(fork.code(), Code::FailedPrecondition, "{fork}");
    // Another agent's journal, one whose name only begins alike, and a second one in a stream.
    for source in [
        "spiffe://acme.example/ns/shop/sa/bot/agent/buyer2#1",
        "spiffe://acme.example/ns/shop/sa/bot/agent/buyer",
        "spiffe://acme.example/ns/shop/sa/bot/agent/buyer#",
        "ledger",
        "",
    ] {
        let hello = Shipment { source: source.into(), ..Shipment::default() };
        let refused = Ship::connect(&served).await.ask(hello).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{source}: {refused}");
    }
    let mut ship = Ship::connect(&served).await;
    ship.ask(shipment(&own, 0..0).await).await.unwrap();
    let second = Shipment { source: format!("{BUYER}#2"), ..Shipment::default() };
    assert_eq!(ship.ask(second).await.unwrap_err().code(), Code::PermissionDenied);
    // Entries that are not what they should be.
    let mut odd = shipment(&own, 3..4).await;
    odd.entries[0].insert(1, b' ');
    assert_eq!(
        Ship::connect(&served).await.ask(odd).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let mut many = shipment(&own, 3..4).await;
    many.entries = vec![many.entries[0].clone(); 513];
    assert_eq!(
        Ship::connect(&served).await.ask(many).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let mut salted = shipment(&own, 3..5).await;
    salted.salts = vec![vec![7; 32]];
    assert_eq!(
        Ship::connect(&served).await.ask(salted).await.unwrap_err().code(),
        Code::InvalidArgument
    );
    let told = recorded(&ledger).await;
    assert_eq!(told[..3], ["gap", "fork", "foreign_source"]);
    // And what continues is still taken.
    assert_eq!(Ship::connect(&served).await.ask(shipment(&own, 3..10).await).await.unwrap(), 11);
    served.stop.cancel();
}
