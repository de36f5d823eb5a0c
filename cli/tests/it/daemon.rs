//! The subcommands against a control socket: a real ledger, and fixed answers where only the
//! printing is of interest.

use std::{path::PathBuf, sync::Arc};

use aegis_api::control::{
    AgentStatus, ApprovalView, Explanation, LedgerStatus, PolicyStatus, Problem, Status, ToolView,
    TrustAdjustment, TrustView, VoteRequest,
};
use aegis_audit::{Location, Reader};
use aegis_core::{AgentId, Digest, Timestamp};
use axum::{
    Json, Router,
    http::StatusCode,
    routing::{get, post},
};
use serde_json::{Value, json};
use tokio::net::UnixListener;

use crate::{
    evidence::check_line,
    fixture::{AGENT, Ledger, Run, command, text},
};

/// A control socket over a ledger.
struct Daemon {
    ledger: Ledger,
    socket: PathBuf,
}

impl Daemon {
    async fn with(calls: u64, more: Router) -> Self {
        let ledger = Ledger::with(calls).await;
        let reader = Reader::open(&Location::Sqlite(ledger.path.clone())).await.unwrap();
        let served = aegis_ledger::Ledger::of_reader(reader).unwrap();
        let socket = ledger.file("control.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let router = aegis_ledger::router(served).merge(more);
        tokio::spawn(async move { axum::serve(listener, router).await });
        Self { ledger, socket }
    }

    async fn aegis(&self, args: &[&str]) -> Run {
        let mut command = tokio::process::Command::from(command(args));
        Run::of(&command.env("AEGIS_SOCKET", &self.socket).output().await.unwrap())
    }
}

fn agent() -> AgentId {
    AGENT.parse().unwrap()
}

fn trust(a: u64, b: u64, as_of: u64) -> TrustView {
    let score = u16::try_from(a * 1000 / (a + b)).unwrap();
    TrustView {
        agent: agent(),
        score,
        standing: "trusted".into(),
        stage: "KBT".into(),
        a,
        b,
        below_critical: 12,
        quarantined: false,
        as_of,
    }
}

fn status() -> Status {
    Status {
        version: "0.1.0".into(),
        pid: 7,
        started_at: Timestamp::from_secs(1_700_000_000),
        trust_domain: "acme.example".into(),
        config: "/etc/aegis".into(),
        audit: "strict".into(),
        advisory: vec![],
        not_covered: vec!["the upstream `files` is down".into()],
        upstreams: vec![],
        policies: vec![PolicyStatus {
            name: "default/starter".into(),
            state: "ready".into(),
            message: String::new(),
        }],
        agents: vec![AgentStatus {
            id: agent(),
            sponsor: "ada@acme.example".into(),
            trust: 740,
            quarantined: true,
            revoked: false,
            glass_broken_until: None,
        }],
        ledger: LedgerStatus {
            place: "/var/ledger.db".into(),
            origin: "acme.example/audit".into(),
            size: 3,
            verifier_key: "key".into(),
        },
        problems: vec![],
        warnings: vec!["policy default/starter: no server is called `fils`".into()],
    }
}

#[tokio::test]
async fn the_ledger_is_read_over_the_socket() {
    let daemon = Daemon::with(300, Router::new()).await;
    let lines = daemon.aegis(&["audit", "query", "--limit", "1500", "-o", "json"]).await.exits(0);
    assert_eq!(lines.stdout.lines().count(), 602);
    let run = daemon.aegis(&["audit", "query", "--text", "entry-7-end"]).await.exits(0);
    assert!(run.stdout.contains("file:///srv/entry-7-end"), "{}", run.stdout);
    let named = ["audit", "query", "--agent", "buyer", "--limit", "7", "-o", "json"];
    assert_eq!(daemon.aegis(&named).await.exits(0).stdout.lines().count(), 7);
    let none = daemon.aegis(&["audit", "query", "--agent", "buy"]).await.exits(0);
    assert_eq!((none.stdout.as_str(), none.stderr.as_str()), ("", "aegis: no entry matches\n"));
    let lines = daemon.aegis(&["audit", "export", "--jsonl"]).await.exits(0);
    assert_eq!(lines.stdout.lines().count(), 602);
    lines.stdout.lines().enumerate().for_each(|(i, line)| check_line(i as u64, line));
}

#[tokio::test]
async fn what_the_daemon_says_of_itself_is_verified_here() {
    let daemon = Daemon::with(300, Router::new()).await;
    let key = daemon.ledger.key();
    let run = daemon.aegis(&["audit", "verify"]).await.exits(0);
    assert!(run.stdout.contains("the key was read from the daemon itself"), "{}", run.stdout);
    let run = daemon.aegis(&["audit", "verify", "--key", &key]).await.exits(0);
    assert!(run.stdout.starts_with("verified: 602 entries") && !run.stdout.contains("note:"));
    let tiles = daemon.ledger.file("tiles");
    daemon.aegis(&["audit", "export", "--tiles", text(&tiles)]).await.exits(0);
    daemon.aegis(&["audit", "verify", "--tiles", text(&tiles), "--key", &key]).await.exits(0);
    let proof = daemon.ledger.file("9.proof");
    daemon.aegis(&["audit", "prove", "9", "-O", text(&proof)]).await.exits(0);
    daemon.aegis(&["audit", "check-proof", text(&proof), "--key", &key]).await.exits(0);
    let beyond = daemon.aegis(&["audit", "prove", "9999"]).await;
    beyond.refuses("there is no entry 9999: the log holds 602 of them, counted from 0");
    let other = aegis_audit::Signer::from_seed("acme.example/audit", &[1; 32]).unwrap();
    let other = other.verifier().to_string();
    daemon.aegis(&["audit", "verify", "--key", &other]).await.refuses("is refused");
}

#[tokio::test]
async fn replay_compares_with_the_daemons_integers() {
    for (a, code) in [(3_700_000, 0), (3_700_001, 1)] {
        let views = Json(vec![trust(a, 1_300_000, 22)]);
        let more = Router::new().route("/v1/trust", get(async move || views));
        let daemon = Daemon::with(10, more).await;
        let run = daemon.aegis(&["trust", "replay"]).await.exits(code);
        let said = if code == 0 { "the same integers for all 1 agents" } else { "other integers" };
        assert!(run.stdout.contains(said), "{}", run.stdout);
        let told = daemon.aegis(&["trust", "replay", "-o", "json"]).await.exits(code).json();
        assert_eq!((&told["compared"], told["ok"] == json!(true)), (&json!(1), code == 0));
        let database = text(&daemon.ledger.path);
        daemon.aegis(&["trust", "replay", "--database", database]).await.exits(code);
        let run = daemon.aegis(&["trust", "show", "buyer"]).await.exits(0);
        assert!(run.stdout.contains("1.300000") && run.stdout.contains("KBT"), "{}", run.stdout);
        daemon.aegis(&["trust", "show", "seller"]).await.refuses("no agent is called `seller`");
    }
}

#[tokio::test]
async fn adjusting_keeps_the_weight_of_the_evidence() {
    let seen = Arc::new(parking_lot::Mutex::new(None));
    let keep = Arc::clone(&seen);
    let adjust = async move |Json(order): Json<TrustAdjustment>| {
        let view = trust(order.a, order.b, 23);
        *keep.lock() = Some(order);
        Json(view)
    };
    let more = Router::new()
        .route("/v1/status", get(async || Json(status())))
        .route("/v1/trust", get(async || Json(vec![trust(3_700_000, 1_300_000, 22)])).post(adjust));
    let daemon = Daemon::with(1, more).await;
    let args = ["trust", "adjust", "buyer", "--score", "300", "--reason", "an incident"];
    let run = daemon.aegis(&args).await.exits(0);
    assert!(run.stdout.contains("is 300; recorded"), "{}", run.stdout);
    let order = seen.lock().take().unwrap();
    assert_eq!((order.a, order.b, order.reason.as_str()), (1_500_000, 3_500_000, "an incident"));
}

#[tokio::test]
async fn status_checks_what_is_covered() {
    let more = Router::new().route("/v1/status", get(async || Json(status())));
    let daemon = Daemon::with(1, more).await;
    let run = daemon.aegis(&["status"]).await.exits(0);
    assert!(run.stdout.contains("Not covered:\n  the upstream `files` is down"), "{}", run.stdout);
    assert!(run.stdout.contains("Probably not meant:\n  policy default/starter"), "{}", run.stdout);
    daemon.aegis(&["status", "--check"]).await.exits(0);
    daemon.aegis(&["status", "--check", "--coverage"]).await.exits(1);
    daemon.aegis(&["status", "--coverage"]).await.exits(2);
    let told = daemon.aegis(&["status", "-o", "json"]).await.exits(0).json();
    assert_eq!(told, serde_json::to_value(status()).unwrap());
    let run = daemon.aegis(&["agents", "list"]).await.exits(0);
    assert!(run.stdout.contains("quarantined"), "{}", run.stdout);
}

#[tokio::test]
async fn status_checks_what_does_not_work() {
    let mut broken = status();
    broken.not_covered.clear();
    broken.policies[0].state = "last_good".into();
    let mut unread = status();
    unread.problems.push("aegis.d/x.yaml: not YAML".into());
    for status in [broken, unread] {
        let more = Router::new().route("/v1/status", get(async move || Json(status)));
        let daemon = Daemon::with(1, more).await;
        daemon.aegis(&["status", "--check"]).await.exits(1);
        daemon.aegis(&["status"]).await.exits(0);
    }
}

fn approval(state: &str, arguments: Value) -> ApprovalView {
    ApprovalView {
        id: "0198".into(),
        state: state.into(),
        agent: agent(),
        sponsor: None,
        server: "files".into(),
        method: "tools/call".into(),
        tool: Some("write_file".into()),
        resource: None,
        arguments,
        digest: Digest::of(b"x"),
        message: "Changes wait for a human.".into(),
        reason: "approval_by_policy".into(),
        risk: 300,
        trust: 740,
        tier: "L2".into(),
        quorum: 1,
        mfa: true,
        votes: vec![],
        requested_at: Timestamp::from_secs(1_700_000_000),
        expires_at: Timestamp::from_secs(1_700_000_900),
    }
}

#[tokio::test]
async fn approvals_are_shown_unable_to_deceive_and_answered() {
    let hostile = json!({ "path": "x\u{202e}fdp\u{1b}[2J" });
    let shown = approval("pending", hostile);
    let list = Json(vec![approval("denied", json!({})), shown.clone()]);
    let answer = async |Json(vote): Json<VoteRequest>| {
        let right = vote.totp.as_deref() == Some("123456");
        let refused = Problem { message: "the one-time code is wrong; try the next one".into() };
        if right {
            Ok(Json(approval("approved", json!({}))))
        } else {
            Err((StatusCode::FORBIDDEN, Json(refused)))
        }
    };
    let more = Router::new()
        .route("/v1/approvals", get(async move || list))
        .route("/v1/approvals/{id}", get(async move || Json(shown)).post(answer));
    let daemon = Daemon::with(1, more).await;
    let run = daemon.aegis(&["approvals", "list"]).await.exits(0);
    let lines: Vec<&str> = run.stdout.lines().collect();
    assert!(lines[1].contains("pending") && lines[2].contains("denied"), "{}", run.stdout);
    let run = daemon.aegis(&["approvals", "list", "--pending"]).await.exits(0);
    assert_eq!(run.stdout.lines().count(), 2);
    let run = daemon.aegis(&["approvals", "show", "0198"]).await.exits(0);
    assert!(run.stdout.contains("1 approver, one with a second factor"), "{}", run.stdout);
    assert!(run.stdout.contains("\\u{202e}") && !run.stdout.contains(['\u{202e}', '\u{1b}']));
    let run = daemon.aegis(&["approvals", "approve", "0198", "--totp", "123456"]).await.exits(0);
    assert!(run.stdout.contains("approved"), "{}", run.stdout);
    let run = daemon.aegis(&["approvals", "approve", "0198"]).await;
    run.refuses("aegis: the one-time code is wrong; try the next one\n");
}

#[tokio::test]
async fn tools_and_explanations_are_printed() {
    let tool = ToolView {
        server: "files".into(),
        tool: "read_file".into(),
        pinned: None,
        seen: Digest::of(b"definition"),
        quarantined: true,
        warnings: vec!["its description gives orders to the model".into()],
    };
    let told = Explanation {
        verdict: "deny".into(),
        reason: "policy_denied".into(),
        message: "Destroying things is not for agents.".into(),
        digest: Digest::of(b"action").to_string(),
        computation: vec!["tier = L1".into()],
        rules: vec!["default/starter#destroying denies".into()],
        would_allow: vec!["an action to which it does not apply".into()],
        notes: vec!["no server is called `fils`; did you mean `files`?".into()],
    };
    let more = Router::new()
        .route("/v1/tools", get(async move || Json(vec![tool])))
        .route("/v1/explain", post(async move || Json(told)));
    let daemon = Daemon::with(1, more).await;
    let run = daemon.aegis(&["tools", "list", "files"]).await.exits(0);
    assert!(run.stdout.contains("quarantined") && run.stdout.contains("gives orders"));
    let none = daemon.aegis(&["tools", "list", "other", "-o", "json"]).await.exits(0).json();
    assert_eq!(none, json!([]));
    let run =
        daemon.aegis(&["explain", "--server", "files", "--tool", "delete_file"]).await.exits(0);
    let expected = "deny: Destroying things is not for agents. (policy_denied)\n";
    assert!(run.stdout.starts_with(expected), "{}", run.stdout);
    assert!(run.stdout.contains("What would have allowed it:\n  an action"), "{}", run.stdout);
    assert!(run.stdout.contains("\nno server is called `fils`; did you mean"), "{}", run.stdout);
}

#[tokio::test]
async fn a_followed_tail_shows_what_comes() {
    use tokio::io::{AsyncBufReadExt as _, BufReader};
    let daemon = Daemon::with(1, Router::new()).await;
    let mut command = tokio::process::Command::from(command(&["audit", "tail", "-f", "-n", "1"]));
    command.env("AEGIS_SOCKET", &daemon.socket).stdout(std::process::Stdio::piped());
    let mut child = command.kill_on_drop(true).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let limit = std::time::Duration::from_secs(60);
    let first = tokio::time::timeout(limit, lines.next_line()).await.unwrap().unwrap().unwrap();
    assert!(first.contains("journal_closed"), "{first}");
    daemon.ledger.grow(1..2).await;
    let next = tokio::time::timeout(limit, lines.next_line()).await.unwrap().unwrap().unwrap();
    assert!(next.contains("journal_opened"), "{next}");
    child.kill().await.unwrap();
}
