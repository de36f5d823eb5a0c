//! The ledger computes trust, whoever writes, and tells it to the operator alone.

use aegis_api::trust::{
    Weighing,
    proto::{self, Changes, FollowRequest, trust_client::TrustClient},
};
use aegis_audit::{Draft, Journal, Kind, Location, Outcome};
use aegis_identity::system_clock;
use aegis_mesh::channel;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tonic::{Code, Status, Streaming};

use crate::{
    ca::World,
    fixture::{AGENT, PATIENCE, revocations, until},
    process::{Process, eventually},
};

const OPERATOR: &str = "spiffe://acme.example/aegis/operator";

async fn deny(journal: &Journal) {
    let mut draft = Draft::new(Kind::Decision, system_clock()(), Outcome::Deny);
    draft.agent_id = Some(AGENT.into());
    draft.reason = Some("policy_denied".into());
    draft.risk = Some(1_000);
    draft.action.insert("kind".into(), json!("tool_call"));
    journal.append(draft).await.unwrap().await.unwrap();
}

/// Waits until a replica says that the agent has this score; the whole answer.
async fn scored(ledger: &Process, score: u16) -> Value {
    let mut told = Value::Null;
    let found = eventually("the score", async || {
        let (status, body) = ledger.get("/v1/trust").await;
        told = serde_json::from_str(&body).unwrap();
        (status == 200 && told["agents"][0]["score"] == score).then(|| told.clone())
    });
    found.await.unwrap_or_else(|| panic!("not {score}: {told}"))
}

/// What a peer of this name is told.
async fn follow(world: &World, id: &str, address: &str) -> Result<Streaming<Changes>, Status> {
    let (source, unaware) = (world.root.source(id).await, revocations());
    let channel = channel(address, "ledger", &source, unaware.subscribe()).unwrap();
    let told = TrustClient::new(channel).follow(FollowRequest {}).await?.into_inner();
    // The connection is its owner's, until the test ends.
    std::mem::forget((source, unaware));
    Ok(told)
}

/// Whether a peer of this name may say by what to weigh.
async fn weigh(world: &World, id: &str, address: &str) -> Result<(), Status> {
    let (source, unaware) = (world.root.source(id).await, revocations());
    let channel = channel(address, "ledger", &source, unaware.subscribe()).unwrap();
    let told = proto::Weighing::of(&Weighing::default()).unwrap();
    TrustClient::new(channel).weigh(told).await.map(drop)
}

async fn next(told: &mut Streaming<Changes>) -> Changes {
    tokio::time::timeout(PATIENCE, told.message()).await.unwrap().unwrap().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn trust_is_computed_whoever_writes_and_told_to_the_operator() {
    let world = World::new().await;
    let place = Location::Sqlite(world.path("ledger.db"));
    let mut ledger = Process::start(&world, "state", &place, &world.address);
    let address = ledger.writes().await;
    let journal = world.journal(0).await;
    deny(&journal).await;
    world.ship(&journal, &address, AGENT).await;
    until(&mut world.acknowledged.subscribe(), |arrived| *arrived == 2).await;
    let told = scored(&ledger, 333).await;
    assert_eq!((&told["role"], &told["next"]), (&json!("writing"), &Value::Null));
    assert_eq!(told["agents"][0]["agent"], AGENT);
    assert_eq!(told["agents"][0]["as_of"], told["as_of"]);
    for (path, status) in [
        ("/v1/trust?limit=0", 400),
        ("/v1/trust?limit=1001", 400),
        ("/v1/trust?agents=x", 400),
        ("/v1/trust?agent=x", 400),
        ("/v1/trust?agent=spiffe://acme.example/ns/a/sa/b/agent/nobody", 200),
    ] {
        assert_eq!(ledger.get(path).await.0, status, "{path}");
    }

    // The operator is told all, then changes; nobody else is told anything.
    let mut changes = follow(&world, OPERATOR, &address).await.unwrap();
    let first = next(&mut changes).await;
    assert_eq!((first.agents[0].agent.as_str(), first.agents[0].b), (AGENT, 2_000_000));
    deny(&journal).await;
    let second = next(&mut changes).await;
    assert_eq!((second.agents.len(), second.agents[0].b), (1, 3_000_000));
    assert!(second.as_of > first.as_of);
    for id in [AGENT, "spiffe://acme.example/aegis/ca"] {
        let refused = follow(&world, id, &address).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{id}");
        let refused = weigh(&world, id, &address).await.unwrap_err();
        assert_eq!(refused.code(), Code::PermissionDenied, "{id}");
    }
    weigh(&world, OPERATOR, &address).await.unwrap();

    // Who stands by says the same, that he stands by, and goes on when the other has ended.
    let second = Process::start(&world, "standby", &place, &world.address);
    second.is(true, "standing by").await;
    assert_eq!(scored(&second, 250).await["role"], "standing by");
    ledger.signal(Signal::SIGTERM);
    assert!(ledger.ended().await.success());
    assert!(world.path("state").join("trust.snapshot").exists());
    let address = second.writes().await;
    world.ship(&journal, &address, AGENT).await;
    deny(&journal).await;
    let told = scored(&second, 200).await;
    assert_eq!(told["role"], "writing");
    let (_, metrics) = second.get("/metrics").await;
    assert!(metrics.lines().any(|line| line == "aegis_ledger_trust_agents 1"), "{metrics}");
}
