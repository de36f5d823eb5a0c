//! Mutual TLS with SVIDs, renewal, and what happens when either ends.

use std::{
    collections::BTreeSet,
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::fixture::{AGENT, Ca, NOW, TTL, leaf};
use aegis_core::{SpiffeId, Timestamp};
use aegis_identity::{
    Clock, Fetched, PeerIdentity, PeerRule, Revocations, SvidFetcher, SvidSource, VerifyError,
    source::Jitter,
    tls::{
        Roots, TlsError, client_config, https_client_config, peer_ended, peer_identity,
        server_config,
    },
};
use futures::future::BoxFuture;
use rustls::{NamedGroup, ProtocolVersion, pki_types::ServerName};
use time::OffsetDateTime;
use tokio::sync::{Notify, watch};
use tokio_rustls::{TlsAcceptor, TlsConnector};

const OTHER: &str = "spiffe://acme.example/ns/shop/sa/bot/agent/seller";

/// Issues an SVID of 15 minutes from now on each fetch, unless it is told to fail.
struct Issuing {
    ca: Arc<Ca>,
    id: String,
    clock: Clock,
    fetched: Arc<AtomicU64>,
    failing: watch::Receiver<bool>,
    changed: Arc<Notify>,
}

impl SvidFetcher for Issuing {
    fn fetch(&self) -> BoxFuture<'_, Result<Fetched, Box<dyn Error + Send + Sync>>> {
        Box::pin(async {
            self.fetched.fetch_add(1, Ordering::SeqCst);
            if *self.failing.borrow() {
                return Err("the CA is down".into());
            }
            let mut params = leaf(&self.id);
            let end = i64::try_from((self.clock)().plus(TTL).as_secs()).unwrap();
            params.not_after = OffsetDateTime::from_unix_timestamp(end).unwrap();
            Ok(Fetched { svid: self.ca.svid(&params), bundle: self.ca.bundle() })
        })
    }

    fn changed(&self) -> BoxFuture<'_, ()> {
        Box::pin(self.changed.notified())
    }
}

struct Party {
    source: Arc<SvidSource>,
    fetched: Arc<AtomicU64>,
    failing: watch::Sender<bool>,
    changed: Arc<Notify>,
}

/// Tokio's clock, which tests can pause and move.
fn clock() -> Clock {
    let start = tokio::time::Instant::now();
    Arc::new(move || NOW.plus(start.elapsed()))
}

async fn party(ca: &Arc<Ca>, id: &str, clock: Clock) -> Party {
    let (failing, receiver) = watch::channel(false);
    let (fetched, changed) = (Arc::new(AtomicU64::new(0)), Arc::new(Notify::new()));
    let fetcher = Issuing {
        ca: Arc::clone(ca),
        id: id.to_owned(),
        clock: Arc::clone(&clock),
        fetched: Arc::clone(&fetched),
        failing: receiver,
        changed: Arc::clone(&changed),
    };
    let steady: Jitter = Arc::new(|| 0);
    let source = SvidSource::start(Arc::new(fetcher), clock, steady).await.unwrap();
    Party { source: Arc::new(source), fetched, failing, changed }
}

fn nothing_revoked() -> watch::Receiver<Arc<Revocations>> {
    // The sender may go: the last value stays readable.
    watch::channel(Arc::default()).1
}

fn agents() -> PeerRule {
    PeerRule::agents_of("acme.example".parse().unwrap())
}

struct Seen {
    peer: PeerIdentity,
    version: ProtocolVersion,
    group: NamedGroup,
}

/// Connects; the server's view and the client's.
async fn connect(
    (server, server_rule): (&Party, PeerRule),
    (client, client_rule): (&Party, PeerRule),
    revocations: watch::Receiver<Arc<Revocations>>,
) -> Result<(Seen, Seen), String> {
    let acceptor = TlsAcceptor::from(Arc::new(
        server_config(&server.source, revocations, server_rule).unwrap(),
    ));
    let connector = TlsConnector::from(Arc::new(
        client_config(&client.source, nothing_revoked(), client_rule).unwrap(),
    ));
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = ServerName::try_from("agent.invalid").unwrap();
    let (accepted, connected) = tokio::join!(acceptor.accept(far), connector.connect(name, near));
    let accepted = accepted.map_err(|error| error.to_string())?;
    let connected = connected.map_err(|error| error.to_string())?;
    let seen = |connection: &rustls::CommonState| Seen {
        peer: peer_identity(connection.peer_certificates()).unwrap(),
        version: connection.protocol_version().unwrap(),
        group: connection.negotiated_key_exchange_group().unwrap().name(),
    };
    Ok((seen(accepted.get_ref().1), seen(connected.get_ref().1)))
}

#[tokio::test]
async fn both_ends_know_each_other() {
    let ca = Arc::new(Ca::new("root"));
    let (server, client) = (party(&ca, AGENT, clock()).await, party(&ca, OTHER, clock()).await);
    let (at_server, at_client) =
        connect((&server, agents()), (&client, agents()), nothing_revoked()).await.unwrap();
    assert_eq!(at_server.peer.id.as_str(), OTHER);
    assert_eq!(at_client.peer.id.as_str(), AGENT);
    assert_eq!(at_client.version, ProtocolVersion::TLSv1_3);
    assert_eq!(at_client.group, NamedGroup::X25519MLKEM768);
}

#[tokio::test]
async fn others_are_refused() {
    let (ca, foreign) = (Arc::new(Ca::new("root")), Arc::new(Ca::new("root")));
    let server = party(&ca, AGENT, clock()).await;
    let client = party(&ca, OTHER, clock()).await;
    let stranger = party(&foreign, OTHER, clock()).await;
    let application = party(&ca, &format!("{OTHER}/workload"), clock()).await;
    let expecting = |id: &str| PeerRule::exactly(id.parse::<SpiffeId>().unwrap());

    let anyone = || PeerRule::new(|_| true);
    assert!(
        connect((&server, agents()), (&stranger, anyone()), nothing_revoked()).await.is_err(),
        "another CA's"
    );
    assert!(
        connect((&stranger, anyone()), (&client, agents()), nothing_revoked()).await.is_err(),
        "another CA's server"
    );
    assert!(
        connect((&server, agents()), (&application, anyone()), nothing_revoked()).await.is_err(),
        "an application"
    );
    assert!(
        connect((&server, agents()), (&client, expecting(OTHER)), nothing_revoked()).await.is_err(),
        "another server"
    );
    assert!(
        connect((&server, agents()), (&client, expecting(AGENT)), nothing_revoked()).await.is_ok()
    );
}

#[tokio::test]
async fn a_client_without_an_svid_is_refused() {
    let ca = Arc::new(Ca::new("root"));
    let server = party(&ca, AGENT, clock()).await;
    let acceptor = TlsAcceptor::from(Arc::new(
        server_config(&server.source, nothing_revoked(), agents()).unwrap(),
    ));
    let roots = Roots::WebPki;
    let connector = TlsConnector::from(Arc::new(https_client_config(&roots).unwrap()));
    let (near, far) = tokio::io::duplex(64 * 1024);
    let name = ServerName::try_from("agent.invalid").unwrap();
    let (accepted, connected) = tokio::join!(acceptor.accept(far), connector.connect(name, near));
    assert!(accepted.is_err() && connected.is_err());
}

#[tokio::test]
async fn a_revocation_refuses_new_connections_and_ends_open_ones() {
    let ca = Arc::new(Ca::new("root"));
    let (server, client) = (party(&ca, AGENT, clock()).await, party(&ca, OTHER, clock()).await);
    let (publish, revocations) = watch::channel(Arc::<Revocations>::default());
    let (seen, _) =
        connect((&server, agents()), (&client, agents()), revocations.clone()).await.unwrap();

    let open = tokio::spawn({
        let (peer, revocations, clock) =
            (seen.peer.clone(), revocations.clone(), server.source.clock());
        async move { peer_ended(&peer, revocations, clock).await }
    });
    let serials = BTreeSet::from([seen.peer.serial.clone()]);
    publish.send_replace(Arc::new(Revocations { serials, ..Revocations::default() }));
    let ended = tokio::time::timeout(Duration::from_secs(30), open).await.unwrap().unwrap();
    assert!(matches!(ended, VerifyError::Revoked(_)));
    assert!(connect((&server, agents()), (&client, agents()), revocations).await.is_err());
}

#[tokio::test(start_paused = true)]
async fn an_open_connection_ends_with_its_peers_svid() {
    let peer = PeerIdentity {
        id: AGENT.parse().unwrap(),
        serial: "01".parse().unwrap(),
        not_after: NOW.plus(TTL),
    };
    let (_keep, revocations) = watch::channel(Arc::default());
    let clock = clock();
    let ended = peer_ended(&peer, revocations, Arc::clone(&clock)).await;
    assert_eq!(ended, VerifyError::Expired(peer.not_after));
    assert!(clock() >= peer.not_after);
}

async fn next(
    party: &Party,
    updates: &mut watch::Receiver<Arc<aegis_identity::source::Identity>>,
) -> Timestamp {
    tokio::time::timeout(Duration::from_secs(86_400), updates.changed()).await.unwrap().unwrap();
    let _ = updates.borrow_and_update();
    (party.source.clock())()
}

#[tokio::test(start_paused = true)]
async fn renewal_comes_at_half_life_and_when_the_authorities_change() {
    let ca = Arc::new(Ca::new("root"));
    let party = party(&ca, AGENT, clock()).await;
    let mut updates = party.source.watch();
    let at = next(&party, &mut updates).await.since(NOW).as_secs();
    assert_eq!(at, 450);
    party.changed.notify_one();
    let again = next(&party, &mut updates).await.since(NOW).as_secs();
    assert_eq!(again, 450, "at once");
}

#[tokio::test(start_paused = true)]
async fn a_failing_ca_is_survived_until_the_svid_expires_and_no_longer() {
    let ca = Arc::new(Ca::new("root"));
    let time = clock();
    let server = party(&ca, AGENT, Arc::clone(&time)).await;
    let client = party(&ca, OTHER, Arc::clone(&time)).await;
    server.failing.send_replace(true);

    tokio::time::sleep(Duration::from_secs(890)).await;
    assert!(server.source.current().is_ok(), "half-life has passed, expiry has not");
    assert!(connect((&server, agents()), (&client, agents()), nothing_revoked()).await.is_ok());
    let tries = server.fetched.load(Ordering::SeqCst);
    assert!((5..60).contains(&tries), "{tries} tries in 440 s of backing off");

    tokio::time::sleep(Duration::from_secs(11)).await;
    assert!(server.source.current().is_err());
    assert!(
        connect((&server, agents()), (&client, agents()), nothing_revoked()).await.is_err(),
        "as a server"
    );
    assert!(
        connect((&client, agents()), (&server, agents()), nothing_revoked()).await.is_err(),
        "as a client"
    );

    server.failing.send_replace(false);
    let mut updates = server.source.watch();
    next(&server, &mut updates).await;
    assert!(
        connect((&server, agents()), (&client, agents()), nothing_revoked()).await.is_ok(),
        "it recovers"
    );
}

#[test]
fn roots_come_from_a_file_or_not_at_all() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("roots.pem");
    let pem = Roots::Pem(path.clone());
    assert!(matches!(https_client_config(&pem), Err(TlsError::Roots { .. })), "no file");
    std::fs::write(&path, "").unwrap();
    assert!(matches!(https_client_config(&pem), Err(TlsError::Roots { .. })), "no certificate");
    std::fs::write(&path, "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        .unwrap();
    assert!(
        matches!(https_client_config(&pem), Err(TlsError::Roots { .. })),
        "no real certificate"
    );
    let key = rcgen::KeyPair::generate().unwrap();
    std::fs::write(&path, crate::fixture::ca_params("own").self_signed(&key).unwrap().pem())
        .unwrap();
    assert!(https_client_config(&pem).is_ok());
}
