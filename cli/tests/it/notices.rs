//! Notices of approvals: told by webhook, without what they are about, again where a webhook was away, and how they end.

use std::{os::unix::fs::PermissionsExt as _, sync::Arc};

use axum::{Router, http::StatusCode, response::IntoResponse, routing::post};
use parking_lot::Mutex;
use serde_json::Value;

use crate::{
    check::EDITOR,
    fixture::{Run, command, text},
    live::{Live, until},
};

/// A webhook: it fails the first time, then takes everything.
struct Hook {
    address: std::net::SocketAddr,
    told: Arc<Mutex<Vec<Value>>>,
    calls: Arc<Mutex<u32>>,
}

impl Hook {
    async fn start() -> Self {
        let (told, calls) = (Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(0)));
        let (heard, counted) = (Arc::clone(&told), Arc::clone(&calls));
        let answer = async move |axum::Json(notice): axum::Json<Value>| {
            *counted.lock() += 1;
            if *counted.lock() == 1 {
                return StatusCode::SERVICE_UNAVAILABLE.into_response();
            }
            heard.lock().push(notice);
            StatusCode::OK.into_response()
        };
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let router = Router::new().route("/of-the-address", post(answer));
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { address, told, calls }
    }

    fn texts(&self) -> Vec<String> {
        let text = |notice: &Value| notice["text"].as_str().unwrap().to_owned();
        self.told.lock().iter().map(text).collect()
    }
}

async fn check(live: &Live, name: &str, content: &str) -> Run {
    let file = live.folder.path().join(name);
    std::fs::write(&file, content).unwrap();
    let kernel = live.state().join("kernel.sock");
    let args = ["check", "-o", "json", "--kernel-socket", text(&kernel), text(&file)];
    Run::of(&tokio::process::Command::from(command(&args)).output().await.unwrap())
}

#[tokio::test]
async fn who_is_asked_is_told_and_what_about_is_not() {
    let hook = Hook::start().await;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), format!("http://{}/of-the-address\n", hook.address)).unwrap();
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(0o600)).unwrap();
    let place = hook.address.to_string();
    let more = ["--notify", text(file.path()), "--notify-reach", &place];
    let live = Live::start(EDITOR, &more).await;
    let asked = check(&live, "of-the-path.txt", "ASKME of-the-arguments").await.exits(1).json();
    let id = asked["files"][0]["approval"].as_str().unwrap().to_owned();
    // Refused and allowed writes tell nobody.
    check(&live, "other.txt", "FORBIDDEN").await.exits(1);
    check(&live, "third.txt", "fine").await.exits(0);
    until("the notice is there", async || !hook.texts().is_empty()).await;
    let first = hook.texts().remove(0);
    for part in
        [&format!("approval {id}"), "/agent/bot", "file.write at editor", "denied in 15 min"]
    {
        assert!(first.contains(part), "lacks `{part}`: {first}");
    }
    assert!(!first.contains("of-the"), "{first}");
    assert_eq!(*hook.calls.lock(), 2, "tried again, and told once");
    live.aegis(&["approvals", "approve", &id]).await.exits(0);
    until("the end is told", async || hook.texts().len() == 2).await;
    assert_eq!(hook.texts()[1], format!("Aegis: approval {id} was approved."));
    // What nobody answers in time is denied, and that is told.
    live.write("thresholds.yaml", "apiVersion: aegis.dev/v1alpha1\nkind: ClusterTrustThreshold\nmetadata: { name: all }\nspec: { tMin: 1, tau: 1000, approvalTtlSecs: 1 }\n");
    let expired = " has expired: nobody answered in time, which denies.";
    let mut late = None;
    until("an approval expires", async || {
        // Those that were asked for before the change wait longer.
        check(&live, "late.txt", &format!("ASKME {}", rand::random::<u64>())).await.exits(1);
        late = hook.texts().into_iter().find(|text| text.ends_with(expired));
        late.is_some()
    })
    .await;
    let late = late.unwrap();
    let late = late.strip_prefix("Aegis: approval ").unwrap().strip_suffix(expired).unwrap();
    let vote = live.aegis(&["approvals", "approve", late]).await;
    assert_ne!(vote.code, 0, "{}", vote.stdout);
    assert!(hook.texts().iter().all(|text| !text.contains("of-the")));
    // The address is a secret, in the log as well.
    let log = std::fs::read_to_string(live.folder.path().join("log")).unwrap();
    assert!(log.contains("a webhook did not take a notice"), "{log}");
    assert!(!log.contains("of-the-address"), "{log}");
}
