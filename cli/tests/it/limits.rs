//! How much one user may ask of the control socket, and what a wrong code costs.

use std::time::Duration;

use aegis_api::{Client, ClientError, control::WrapHello};
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::UnixStream,
};

use crate::live::{Live, PATIENCE, Server, code, enroll, until};

/// Connections of one user, and wrappers' sessions.
const MOST: usize = 128;

async fn ends(mut stream: UnixStream) {
    let mut rest = Vec::new();
    let ended = tokio::time::timeout(PATIENCE, stream.read_to_end(&mut rest)).await;
    // It may be cut with what it has sent unread.
    drop(ended.expect("it is closed"));
}

#[tokio::test]
async fn one_user_does_not_hold_all_connections() {
    let live = Live::start("", &[]).await;
    let socket = live.state().join("control.sock");
    let mut held = Vec::new();
    for _ in 0..MOST {
        let mut stream = UnixStream::connect(&socket).await.unwrap();
        stream.write_all(b"GET /v1/status HTTP/1.1\r\n").await.unwrap();
        held.push(stream);
    }
    ends(UnixStream::connect(&socket).await.unwrap()).await;
    let said = live.aegis(&["status"]).await.exits(1).stderr;
    assert!(said.contains("closed the connection without an answer"), "{said}");
    // Whoever never finishes a request's head is let go, so others get in again.
    until("there is room again", async || live.aegis(&["status"]).await.code == 0).await;
    for stream in held {
        ends(stream).await;
    }
    until("it is recorded", async || {
        let refused = live.entries("refusals").await;
        refused.iter().any(|entry| entry["action"]["server"] == "control")
    })
    .await;
}

#[tokio::test]
async fn servers_and_wrappers_are_bounded_and_named_properly() {
    let live = Live::start("", &[]).await;
    let client = Client::new(live.state().join("control.sock"));
    let wrap = async |server: &str| {
        let (server, command) = (server.to_owned(), vec!["true".to_owned()]);
        client.wrap(&WrapHello { server, namespace: None, command }).await
    };
    let refused = |error: ClientError, part: &str| {
        assert!(error.to_string().contains(part), "{error}");
    };
    for name in ["Notes", "a/b", "", "-x", "a\nb"] {
        refused(wrap(name).await.unwrap_err(), "cannot name a server");
    }
    let other =
        WrapHello { server: "a".into(), namespace: Some("B".into()), command: vec!["true".into()] };
    refused(client.wrap(&other).await.unwrap_err(), "cannot name a server");
    assert_eq!(live.status().await["upstreams"], json!([]));

    let mut held = Vec::new();
    for number in 0..MOST {
        held.push(wrap(&format!("s{number}")).await.unwrap());
    }
    refused(wrap("s0").await.unwrap_err(), "as many wrapped servers as may be");
    drop(held);
    until("there is room again", async || wrap("s0").await.is_ok()).await;
    let mut number = MOST;
    let full = loop {
        // A session that has ended gives its place back a moment later.
        match wrap(&format!("s{number}")).await {
            Ok(_) => number += 1,
            Err(error) if error.to_string().contains("as many wrapped") => {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            Err(error) => break error,
        }
        assert!(number <= 1_024, "names are not bounded");
    };
    refused(full, "there are 1024 servers already");
    assert!(wrap("s0").await.is_ok(), "those that are known go on");
}

#[tokio::test]
async fn wrong_codes_are_recorded_and_lock_no_stop() {
    let server = Server::start().await;
    let mut live = Live::start(&server.document, &[]).await;
    live.write(
        "ask.yaml",
        "apiVersion: aegis.dev/v1alpha1\nkind: AgentPolicy\nmetadata: { name: ask }\nspec: { rules: [{ name: a, effect: require_approval, tools: [never] }] }\n",
    );
    enroll(&mut live).await;
    assert_eq!(live.call("echo").await, None);
    let adjust = ["trust", "adjust", "bot", "--score", "700", "--reason", "test", "--totp"];
    for _ in 0..4 {
        live.aegis(&[&adjust[..], &["nonsense"]].concat()).await.refuses("the code is not valid");
    }
    // Now no code permits anything; but a stop is not locked out.
    let quarantine = ["agents", "quarantine", "bot", "--reason", "test", "--totp"];
    for _ in 0..4 {
        live.aegis(&[&quarantine[..], &["wrong"]].concat()).await.refuses("the code is not valid");
    }
    let right = code(&live, 0);
    live.aegis(&[&quarantine[..], &[&right]].concat()).await.exits(0);
    assert_eq!(live.call("echo").await.as_deref(), Some("agent_quarantined"));
    until("the guesses are recorded", async || {
        let refused = live.entries("refusals").await;
        let count = |to: &str| {
            let of = |entry: &&serde_json::Value| entry["detail"]["to"] == to;
            refused.iter().filter(of).filter_map(|entry| entry["detail"]["count"].as_u64()).sum()
        };
        let (more, stops): (u64, u64) = (count("permit"), count("stop"));
        (more, stops) == (4, 4)
    })
    .await;
    let refused = live.entries("refusals").await;
    assert!(refused.iter().all(|entry| entry["detail"]["who"].as_str().unwrap().contains(':')));
}

#[tokio::test]
async fn an_approval_needs_the_second_factor_that_is_enrolled() {
    let server = Server::start().await;
    let mut live = Live::start(
        &(server.document.clone() + "---\napiVersion: aegis.dev/v1alpha1\nkind: AgentPolicy\nmetadata: { name: ask }\nspec: { rules: [{ name: a, effect: require_approval, tools: [echo] }] }\n"),
        &[],
    )
    .await;
    enroll(&mut live).await;
    let asked = live.call("echo");
    let decided = async {
        let mut id = String::new();
        until("it is asked", async || {
            let list = live.aegis(&["approvals", "list", "-o", "json"]).await.exits(0).json();
            id = list[0]["id"].as_str().unwrap_or_default().to_owned();
            !id.is_empty()
        })
        .await;
        let approve = ["approvals", "approve", &id];
        live.aegis(&approve).await.refuses("a second factor is enrolled");
        let wrong = live.aegis(&[&approve[..], &["--totp", "000"]].concat()).await;
        wrong.refuses("the code is not valid");
        let shown = live.aegis(&["approvals", "show", &id, "-o", "json"]).await.exits(0).json();
        assert_eq!(shown["state"], "pending");
        assert_eq!(shown["votes"], json!([]));
        live.aegis(&[&approve[..], &["--totp", &code(&live, 0)]].concat()).await.exits(0);
    };
    let (reason, ()) = tokio::join!(asked, decided);
    assert_eq!(reason, None);
}
