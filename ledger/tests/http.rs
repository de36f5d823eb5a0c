//! The ledger's routes against a real log.
#![expect(clippy::unwrap_used, reason = "a test ends at the first surprise")]

use std::time::Duration;

use aegis_audit::{
    Draft, Journal, Kind, Location, Options, Outcome, Signer, TlogProof, checkpoint, tree,
};
use aegis_core::{Digest, Timestamp};
use aegis_ledger::{Ledger, router};
use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode, header};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tower::ServiceExt as _;

struct Served {
    _dir: tempfile::TempDir,
    journal: Journal,
    router: Router,
}

async fn served(entries: u64) -> Served {
    let dir = tempfile::tempdir().unwrap();
    let place = Location::Sqlite(dir.path().join("audit.db"));
    let mut options =
        Options::new("test", Signer::from_seed("acme.example/audit", &[5; 32]).unwrap());
    options.checkpoint_interval = Duration::from_secs(3_600);
    let journal = Journal::open(&place, options).await.unwrap();
    for i in 0..entries {
        let result = if i % 10 == 0 { Outcome::Deny } else { Outcome::Allow };
        let mut draft = Draft::new(Kind::Decision, Timestamp::from_secs(i), result);
        draft.agent_id = Some("spiffe://acme.example/ns/a/sa/b/agent/c".into());
        draft.action.insert("tool".into(), json!("read_file"));
        journal.append(draft).await.unwrap().await.unwrap();
    }
    journal.checkpoint_now().await.unwrap();
    let router = router(Ledger::of_journal(journal.clone()).unwrap());
    Served { _dir: dir, journal, router }
}

impl Served {
    async fn get(&self, path: &str) -> (StatusCode, String, Vec<u8>) {
        let request = Request::get(path).body(Body::empty()).unwrap();
        let response = self.router.clone().oneshot(request).await.unwrap();
        let kind =
            response.headers().get(header::CONTENT_TYPE).unwrap().to_str().unwrap().to_owned();
        let status = response.status();
        (status, kind, response.into_body().collect().await.unwrap().to_bytes().to_vec())
    }

    async fn ok(&self, path: &str) -> Vec<u8> {
        let (status, _, body) = self.get(path).await;
        assert_eq!(status, StatusCode::OK, "{path}: {}", String::from_utf8_lossy(&body));
        body
    }

    async fn text(&self, path: &str) -> String {
        String::from_utf8(self.ok(path).await).unwrap()
    }

    async fn json(&self, path: &str) -> Value {
        serde_json::from_slice(&self.ok(path).await).unwrap()
    }
}

#[tokio::test]
async fn a_client_rebuilds_the_tree_from_what_is_served() {
    let served = served(299).await;
    let (_, kind, note) = served.get("/checkpoint").await;
    assert_eq!(kind, "text/plain; charset=utf-8");
    let key = served.text("/v1/key").await.parse().unwrap();
    let head = checkpoint::open(&key, &String::from_utf8(note).unwrap()).unwrap().head;
    assert_eq!(head.size, 300);
    let mut frontier = tree::Frontier::default();
    for (bundle, tile) in
        [("/tile/entries/000", "/tile/0/000"), ("/tile/entries/001.p/44", "/tile/0/001.p/44")]
    {
        let (_, kind, bundle) = served.get(bundle).await;
        assert_eq!(kind, "application/octet-stream");
        let mut rest = bundle.as_slice();
        let mut leaves = Vec::new();
        while let Some((length, after)) = rest.split_first_chunk::<2>() {
            let (entry, after) = after.split_at(usize::from(u16::from_be_bytes(*length)));
            let leaf = tree::leaf_hash(entry);
            leaves.extend_from_slice(leaf.as_bytes());
            frontier.push(leaf);
            rest = after;
        }
        assert_eq!(served.ok(tile).await, leaves);
    }
    assert_eq!(frontier.root(), head.root);
    let upper = served.ok("/tile/1/000.p/1").await;
    assert_eq!(upper.len(), 32);
    let proof = TlogProof::parse(&served.text("/v1/proof/123").await).unwrap();
    proof.verify(&key, &served.ok("/v1/entries/123").await).unwrap();
    let consistency = served.json("/v1/consistency/100/300").await;
    let hashes: Vec<Digest> = serde_json::from_value(consistency["proof"].clone()).unwrap();
    let old = served.journal.reader().root_at(100).await.unwrap();
    tree::verify_consistency(100, &old, 300, &head.root, &hashes).unwrap();
    served.journal.close().await.unwrap();
}

#[tokio::test]
async fn queries_are_filtered_and_paged() {
    let served = served(30).await;
    let page = served.json("/v1/entries?result=deny&order=oldest&limit=2").await;
    let indices: Vec<u64> =
        page["entries"].as_array().unwrap().iter().map(|e| e["index"].as_u64().unwrap()).collect();
    assert_eq!(indices, [1, 11]);
    assert_eq!(page["entries"][0]["entry"]["result"], "deny");
    assert_eq!(page["next"], 11);
    let rest = served.json("/v1/entries?result=deny&order=oldest&limit=2&after=11").await;
    assert_eq!((rest["entries"].as_array().unwrap().len(), &rest["next"]), (1, &Value::Null));
    let timed =
        served.json("/v1/entries?since=1970-01-01T00:00:05Z&until=1970-01-01T00:00:07Z").await;
    assert_eq!(timed["entries"].as_array().unwrap().len(), 2);
    served.journal.close().await.unwrap();
}

#[tokio::test]
async fn what_is_not_there_or_not_asked_properly_is_refused() {
    let served = served(3).await;
    // Committed, but no checkpoint covers it: its tile could still change owner.
    let draft = Draft::new(Kind::Outcome, Timestamp::from_secs(1), Outcome::Success);
    served.journal.append(draft).await.unwrap().await.unwrap();
    for path in [
        "/tile/0/000",
        "/tile/0/000.p/5",
        "/tile/0/001.p/1",
        "/tile/1/000.p/1",
        "/tile/0/0.p/4",
        "/tile/entries/000.p/5",
        "/tile/../checkpoint",
        "/v1/entries/99",
        "/v1/proof/4",
        "/v1/proof/99",
    ] {
        assert_eq!(served.get(path).await.0, StatusCode::NOT_FOUND, "{path}");
    }
    served.ok("/tile/0/000.p/4").await;
    for path in [
        "/v1/entries?agnet=x",
        "/v1/entries?kind=none",
        "/v1/entries?limit=0",
        "/v1/entries?limit=99999",
        "/v1/entries?since=yesterday",
        "/v1/entries?order=up",
        "/v1/entries/x",
        "/v1/consistency/0/3",
        "/v1/consistency/3/2",
        "/v1/consistency/1/99",
    ] {
        let (status, _, body) = served.get(path).await;
        assert_eq!(status, StatusCode::BAD_REQUEST, "{path}");
        assert!(!body.is_empty());
    }
    served.journal.close().await.unwrap();
}

#[tokio::test]
async fn health_and_metrics_show_the_log() {
    let served = served(3).await;
    assert_eq!(served.json("/healthz").await, json!({ "status": "ok", "entries": 4 }));
    let metrics = served.text("/metrics").await;
    for line in [
        "aegis_ledger_entries 4",
        "aegis_ledger_signed_entries 4",
        "aegis_ledger_appended_entries_total 4",
        "aegis_ledger_failed_entries_total 0",
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} in {metrics}");
    }
    served.journal.close().await.unwrap();
}
