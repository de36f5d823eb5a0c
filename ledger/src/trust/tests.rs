//! The fold over many journals, its snapshots and its pages.

use aegis_audit::{Draft, Foreign, Journal, Kind, Options, Outcome};
use aegis_core::Timestamp;
use serde_json::json;

use super::*;

const BUYER: &str = "spiffe://acme.example/ns/shop/sa/bot/agent/buyer";

fn signer() -> Signer {
    Signer::from_seed("acme.example/ledger", &[3; 32]).unwrap()
}

async fn opened_journal(place: &Location, source: &str) -> Journal {
    Journal::open(place, Options::new(source, signer())).await.unwrap()
}

fn conduct(of: &str, kind: Kind, result: Outcome) -> Draft {
    let mut draft = Draft::new(kind, Timestamp::from_secs(7_200), result);
    draft.agent_id = Some(of.into());
    draft.reason = Some("policy_denied".into());
    draft.risk = Some(500);
    draft.action.insert("kind".into(), json!("tool_call"));
    draft
}

/// A ledger with the journals of two pods of one agent, interleaved.
async fn filled(folder: &std::path::Path) -> (Location, Journal) {
    let place = Location::Sqlite(folder.join("ledger.db"));
    let ledger = opened_journal(&place, "spiffe://acme.example/aegis/ledger").await;
    let mut pods = Vec::new();
    for pod in ["1", "2"] {
        let own = Location::Sqlite(folder.join(format!("{pod}.db")));
        pods.push(opened_journal(&own, &format!("{BUYER}#{pod}")).await);
    }
    for round in 0..3 {
        for pod in &pods {
            let result = if round == 0 { Outcome::Deny } else { Outcome::Success };
            let kind = if round == 0 { Kind::Decision } else { Kind::Outcome };
            pod.append(conduct(BUYER, kind, result)).await.unwrap().await.unwrap();
            ship(pod, &ledger).await;
        }
    }
    for pod in pods {
        pod.close().await.unwrap();
    }
    (place, ledger)
}

async fn ship(pod: &Journal, ledger: &Journal) {
    let stored = pod.reader().entries(0..99).await.unwrap();
    let source = pod.source().to_owned();
    let entries = stored.into_iter().map(|one| Foreign::check(&source, one.body, &[]).unwrap());
    ledger.import(&source, entries.collect()).await.unwrap();
}

fn keep(trusted: &Trusted, place: &Location, folder: &std::path::Path) -> Keeping {
    let stop = CancellationToken::new();
    let kept = Kept { path: folder.join("trust.snapshot"), signer: signer() };
    let (keeping, place, until) = (trusted.clone(), place.clone(), stop.clone());
    let task = tokio::spawn(async move { keeping.keep(place, kept, until).await });
    Keeping { task, stop }
}

struct Keeping {
    task: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
}

impl Keeping {
    async fn end(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

async fn folded_to(trusted: &Trusted, size: u64) -> Page {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
    loop {
        match trusted.page(None, 10) {
            Ok(page) if page.as_of >= size => return page,
            other => assert!(tokio::time::Instant::now() < deadline, "{other:?}"),
        }
        trusted.wake();
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test]
async fn pods_of_an_agent_are_one_agent_across_restarts() {
    let folder = tempfile::tempdir().unwrap();
    let (place, ledger) = filled(folder.path()).await;
    let size = ledger.reader().head().await.unwrap().size;
    let trusted = Trusted::new().unwrap();
    assert!(matches!(trusted.page(None, 1), Err(TrustError::Folding { .. })), "nothing is known");
    let keeping = keep(&trusted, &place, folder.path());
    let page = folded_to(&trusted, size).await;
    // Two denials and four successes of 500 per mille: Beta(3, 2).
    let told = &page.agents[0];
    assert_eq!((told.agent.as_str(), told.a, told.b), (BUYER, 3_000_000, 2_000_000));
    assert_eq!((told.score, told.as_of, page.next), (600, size, None));
    keeping.end().await;

    // A snapshot was kept, and the next start goes on from it.
    let file = folder.path().join("trust.snapshot");
    assert!(file.exists());
    let restarted = Trusted::new().unwrap();
    let kept = Kept { path: file.clone(), signer: signer() };
    let reader = Reader::open(&place).await.unwrap();
    assert_eq!(restarted.restore(&reader, &kept).await, size);
    ledger.append(conduct(BUYER, Kind::Decision, Outcome::Deny)).await.unwrap().await.unwrap();
    restarted.catch_up(&reader).await.unwrap();
    let again = restarted.page(None, 10).unwrap();
    assert_eq!((again.agents[0].b, again.as_of), (2_500_000, size + 1));
    let (as_of, changed) = restarted.since(size);
    assert_eq!((as_of, changed[0].1.b, changed.len()), (size + 1, 2_500_000, 1));
    assert!(restarted.since(size + 1).1.is_empty(), "only changes are told");

    // One that was altered is refused, and all is folded anew, to the same.
    let altered = std::fs::read_to_string(&file).unwrap().replace("3000000", "9000000");
    std::fs::write(&file, altered).unwrap();
    let anew = Trusted::new().unwrap();
    assert_eq!(anew.restore(&reader, &kept).await, 0);
    anew.catch_up(&reader).await.unwrap();
    assert_eq!(anew.page(None, 10).unwrap().agents, again.agents);
}

#[tokio::test]
async fn pages_name_every_agent_once() {
    let folder = tempfile::tempdir().unwrap();
    let place = Location::Sqlite(folder.path().join("ledger.db"));
    let ledger = opened_journal(&place, "spiffe://acme.example/aegis/ledger").await;
    let name = |number: u32| format!("spiffe://acme.example/ns/a/sa/b/agent/x{number}");
    for number in 0..7 {
        let denial = conduct(&name(number), Kind::Decision, Outcome::Deny);
        ledger.append(denial).await.unwrap().await.unwrap();
    }
    let trusted = Trusted::new().unwrap();
    trusted.catch_up(ledger.reader()).await.unwrap();
    let (mut told, mut after) = (Vec::new(), None);
    loop {
        let page = trusted.page(after.as_ref(), 3).unwrap();
        assert!(page.agents.len() <= 3);
        told.extend(page.agents.into_iter().map(|view| view.agent.to_string()));
        after = page.next;
        if after.is_none() {
            break;
        }
    }
    assert_eq!(told, (0..7).map(name).collect::<Vec<_>>());
    assert_eq!(trusted.of(&name(3).parse().unwrap()).unwrap().agents.len(), 1);
    assert!(trusted.of(&BUYER.parse().unwrap()).unwrap().agents.is_empty());
}
