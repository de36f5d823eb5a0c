//! The console of the real daemon, as a browser and those who are none would ask it.

use std::net::SocketAddr;

use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::live::{Live, PATIENCE, Server, until};

/// A link to the console: where it is, and its code.
pub(crate) async fn link(live: &Live, more: &[&str]) -> (SocketAddr, String) {
    let mut args = vec!["console", "-o", "json"];
    args.extend(more);
    parse(&live.aegis(&args).await.exits(0).json())
}

fn parse(link: &Value) -> (SocketAddr, String) {
    let url = link["url"].as_str().unwrap().strip_prefix("http://").unwrap().to_owned();
    let (address, code) = url.split_once("/console/#").unwrap();
    (address.parse().unwrap(), code.to_owned())
}

/// What was answered: the status, the head, the body.
struct Answer {
    status: u16,
    head: String,
    body: String,
}

impl Answer {
    fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|e| panic!("{e}: {}", self.body))
    }
}

/// A browser at the console.
struct Page {
    address: SocketAddr,
    headers: Vec<String>,
}

impl Page {
    fn at(address: SocketAddr) -> Self {
        Self { address, headers: Vec::new() }
    }

    fn with(&self, header: String) -> Self {
        let mut headers = self.headers.clone();
        headers.push(header);
        Self { address: self.address, headers }
    }

    /// One that is signed in.
    async fn enter(address: SocketAddr, code: &str) -> (Self, Value) {
        let page = Self::at(address);
        let answer = page.post("session", &json!({ "token": code })).await;
        assert_eq!(answer.status, 200, "{}", answer.body);
        let session = answer.json();
        let token = session["token"].as_str().unwrap();
        (page.with(format!("authorization: Bearer {token}")), session)
    }

    async fn get(&self, path: &str) -> Answer {
        self.ask("GET", &format!("/console/api/{path}"), "").await
    }

    async fn post(&self, path: &str, body: &Value) -> Answer {
        self.ask("POST", &format!("/console/api/{path}"), &body.to_string()).await
    }

    async fn ask(&self, method: &str, path: &str, body: &str) -> Answer {
        let mut request = format!("{method} {path} HTTP/1.1\r\nconnection: close\r\n");
        if !self.headers.iter().any(|header| header.starts_with("host:")) {
            request.push_str(&format!("host: {}\r\n", self.address));
        }
        for header in &self.headers {
            request.push_str(&format!("{header}\r\n"));
        }
        let length = body.len();
        request.push_str(&format!(
            "content-type: application/json\r\ncontent-length: {length}\r\n\r\n{body}"
        ));
        let mut stream = TcpStream::connect(self.address).await.unwrap();
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        tokio::time::timeout(PATIENCE, stream.read_to_string(&mut text)).await.unwrap().unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        Answer { status, head: head.to_ascii_lowercase(), body: body.to_owned() }
    }
}

/// What the pages ask.
const ASKED: [&str; 9] = [
    "v1/status",
    "v1/approvals",
    "v1/trust",
    "v1/tools",
    "v1/events",
    "v1/entries",
    "v1/entries/0",
    "v1/proof/0",
    "checkpoint",
];

#[tokio::test]
async fn who_has_no_session_of_the_console_sees_nothing() {
    let live = Live::start("", &[]).await;
    let (address, code) = link(&live, &[]).await;
    let stranger = Page::at(address);
    let guessed = stranger.with(format!("authorization: Bearer {}", "0".repeat(64)));
    let unopened = stranger.with(format!("authorization: Bearer {code}"));
    for path in ASKED {
        for page in [&stranger, &guessed, &unopened] {
            let answer = page.get(path).await;
            assert_eq!(answer.status, 401, "{path}: {}", answer.body);
        }
        let answer = stranger.get(&format!("{path}?token={code}")).await;
        assert_eq!(answer.status, 401, "an address is no place for a token");
    }
    assert_eq!(stranger.post("session", &json!({ "token": "guess" })).await.status, 401);

    let (page, session) = Page::enter(address, &code).await;
    assert_eq!(session["read_only"], false);
    let status = page.get("v1/status").await;
    assert_eq!((status.status, status.json()["pid"].is_u64()), (200, true));
    assert!(status.head.contains("cache-control: no-store"), "{}", status.head);
    let entry = page.get("v1/entries/0").await;
    assert!(entry.head.contains("cache-control: no-store"), "{}", entry.head);
    let again = stranger.post("session", &json!({ "token": code })).await;
    assert_eq!(again.status, 401, "a link works once");

    // What the pages do not use is not there, and neither is what wrappers use.
    for path in ["v1/glass", "v1/agents", "v1/trust", "v1/reload", "v1/console", "v1/wrap"] {
        let status = page.post(path, &json!({})).await.status;
        assert!(status == 404 || status == 405, "{path}: {status}");
    }
    assert_eq!(page.ask("DELETE", "/console/api/v1/session", "").await.status, 204);
    assert_eq!(page.get("v1/status").await.status, 401, "it was left");
}

#[tokio::test]
async fn the_console_answers_its_own_page_alone() {
    let live = Live::start("", &[]).await;
    let (address, code) = link(&live, &[]).await;
    let (page, _) = Page::enter(address, &code).await;
    let port = address.port();
    for own in [
        format!("origin: http://{address}"),
        format!("host: localhost:{port}"),
        format!("host: localhost:{port}\r\norigin: http://localhost:{port}"),
    ] {
        assert_eq!(page.with(own.clone()).get("v1/status").await.status, 200, "{own}");
    }
    for foreign in [
        "origin: http://rebound.example".to_owned(),
        "origin: null".to_owned(),
        format!("origin: http://127.0.0.1:{}", port ^ 1),
        format!("origin: https://{address}"),
        format!("host: rebound.example:{port}"),
        format!("host: rebound.example:{port}\r\norigin: http://rebound.example:{port}"),
        format!("host: 127.0.0.1:{}", port ^ 1),
    ] {
        let page = page.with(foreign.clone());
        for path in ["/console/api/v1/status", "/console/", "/console/console.js"] {
            assert_eq!(page.ask("GET", path, "").await.status, 403, "{foreign} {path}");
        }
    }
    // Metrics are asked for by other names too.
    let scraper = Page::at(address).with("host: node:7100".into());
    assert_eq!(scraper.ask("GET", "/metrics", "").await.status, 200);

    let shown = Page::at(address).ask("GET", "/console/", "").await;
    for header in [
        "content-security-policy: default-src 'none'; script-src 'self';",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "x-content-type-options: nosniff",
        "referrer-policy: no-referrer",
    ] {
        assert!(shown.head.contains(header), "{header}: {}", shown.head);
    }
}

#[tokio::test]
async fn a_session_that_reads_decides_nothing() {
    let server = Server::start().await;
    let asks = "---\napiVersion: aegis.dev/v1alpha1\nkind: AgentPolicy\nmetadata: { name: ask }\nspec: { rules: [{ name: a, effect: require_approval, tools: [echo] }] }\n";
    let live = Live::start(&(server.document.clone() + asks), &[]).await;
    let (address, code) = link(&live, &["--read-only"]).await;
    let (reader, session) = Page::enter(address, &code).await;
    assert_eq!(session["read_only"], true);
    let (address, code) = link(&live, &[]).await;
    let (operator, _) = Page::enter(address, &code).await;

    let decided = async {
        let mut waiting = Value::Null;
        until("a call waits", async || {
            let all = reader.get("v1/approvals").await.json();
            waiting = all.get(0).cloned().unwrap_or_default();
            waiting["state"] == "pending"
        })
        .await;
        let path = format!("v1/approvals/{}", waiting["id"].as_str().unwrap());
        let vote = json!({ "approve": true, "comment": "looked at it" });
        assert_eq!(reader.post(&path, &vote).await.status, 403);
        assert_eq!(reader.post("v1/explain", &json!({ "server": "calc" })).await.status, 403);
        assert_eq!(*server.calls.lock(), 0, "nothing runs while it waits");
        let voted = operator.post(&path, &vote).await;
        assert_eq!((voted.status, &voted.json()["state"]), (200, &json!("approved")));
        assert_eq!(voted.json()["votes"][0]["comment"], "looked at it");
    };
    let (refused, ()) = tokio::join!(live.call("echo"), decided);
    assert_eq!((refused, *server.calls.lock()), (None, 1));
}

#[tokio::test]
async fn there_is_no_console_beyond_this_machine() {
    let live = Live::start("", &["--admin", "0.0.0.0:0"]).await;
    live.aegis(&["console"]).await.refuses("where --admin is an address of loopback");
}

/// The browser's verifier is tested with what stands here; ours agrees with it.
#[test]
fn a_proof_that_the_console_is_tested_with_is_ours() {
    let text = include_str!("../../../ide-bridge/web/test/fixture.json");
    let fixture: Value = serde_json::from_str(text).unwrap();
    let key: aegis_audit::Verifier = fixture["key"].as_str().unwrap().parse().unwrap();
    for one in fixture["entries"].as_array().unwrap() {
        let proof = aegis_audit::TlogProof::parse(one["proof"].as_str().unwrap()).unwrap();
        assert_eq!(json!(proof.index), one["index"]);
        let entry = one["body"].as_str().unwrap();
        proof.verify(&key, entry.as_bytes()).unwrap();
        let altered = entry.replace("recorded", "success");
        assert!(proof.verify(&key, altered.as_bytes()).is_err());
    }
}

/// A program that is recognised as an agent, here `aegis` itself, is no person at a browser.
#[tokio::test]
async fn an_agent_gets_no_link_and_no_session() {
    let live = Live::start("", &[]).await;
    let (address, code) = link(&live, &[]).await;
    let own = std::env::current_exe().unwrap();
    let identity = |name: &str, program: &str| {
        format!(
            "apiVersion: aegis.dev/v1alpha1\nkind: AgentIdentity\nmetadata: {{ name: {name} }}\nspec: {{ sponsor: ada@acme.example, selector: {{ unix: {{ executable: {program} }} }} }}\n---\n"
        )
    };
    // The command line, and this test, which speaks as a browser would.
    let both = identity("bot", env!("CARGO_BIN_EXE_aegis"))
        + &identity("page", crate::fixture::text(&own));
    live.write("identity.yaml", &both);
    until("they are registered", async || {
        live.status().await["agents"].as_array().unwrap().len() == 2
    })
    .await;
    live.aegis(&["console"]).await.refuses("an agent cannot decide about agents");
    let page = Page::at(address);
    let refused = page.post("session", &json!({ "token": code })).await;
    assert_eq!(refused.status, 403, "{}", refused.body);
    // It is not used up: a person can still follow it.
    live.write("identity.yaml", "");
    until("they are gone", async || live.status().await["agents"].as_array().unwrap().is_empty())
        .await;
    Page::enter(address, &code).await;
}
