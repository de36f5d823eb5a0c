//! An approval is asked once: the caller's sidecar tells the callee's of it by a signed grant, and
//! whatever does not hold is refused and on record.

use std::{sync::Arc, time::Duration};

use aegis_audit::entry::{Entry, Kind};
use aegis_core::{
    AgentId, Digest,
    approval::{Factor, Vote},
    grant::{Approver, Grant},
};
use aegis_identity::{SvidSource, X509Svid, sign_grant};
use aegis_sidecar::MESH_PROTOCOL;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

use crate::{
    mesh::{Authority, LAX, Mesh, NAMESAKE, Pod, SERVER, connect, get, post, reason},
    upstream::json as answer,
    world::{AGENT, PATIENCE, STANDARD, call, now},
};

/// One person is not enough.
const TWO: &[&str] = &[
    "rules: [{ name: all, effect: allow }, { name: two, effect: require_approval, tools: [risky], approvals: 2 }]",
];
/// A person without a second factor is not enough.
const CODE: &[&str] = &[
    "rules: [{ name: all, effect: allow }, { name: code, effect: allow, tools: [risky], requireMfa: true }]",
];
/// Other HTTP needs a person too.
const ITEMS: &[&str] = &[
    "rules: [{ name: all, effect: allow }]",
    "match: { paths: ['/items/**'] }\nrules: [{ name: items, effect: require_approval }]",
];

/// A call that is held without a stream.
fn quiet(tool: &str) -> Request<Full<Bytes>> {
    let mut request = post("/mcp", &call(1, tool).to_string());
    request.headers_mut().insert("accept", "application/json".parse().unwrap());
    request
}

/// Waits until something waits for a person in the pod, and gives its id.
pub(crate) async fn waits(pod: &Pod) -> String {
    let mut changes = pod.kernel.changes();
    let waiting = async {
        loop {
            if let Some(case) = pod.kernel.approvals().first() {
                return case.approval.request.id.clone();
            }
            changes.changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap()
}

pub(crate) async fn approve(pod: &Pod, id: &str) {
    let (approver, factor) = ("ada@acme.example".to_owned(), Factor::Account);
    let vote = Vote { approver, approve: true, factor, comment: None, at: now() };
    pod.kernel.vote(id, vote).await.unwrap();
}

/// The decisions on a tool, the oldest first.
async fn decided(pod: &Pod, tool: &str) -> Vec<Entry> {
    let all = pod.entries().await;
    let of_tool =
        |entry: &Entry| entry.kind == Kind::Decision && entry.action_text("tool") == Some(tool);
    all.into_iter().filter(of_tool).collect()
}

#[tokio::test]
async fn an_approval_is_asked_once() {
    let mesh = Mesh::with(STANDARD, STANDARD).await;
    mesh.upstream.results(json!({ "content": [] }));
    // A connection that is kept shows an SVID of before.
    assert_eq!(mesh.call("echo").await.0, StatusCode::OK);
    let asking = async {
        let id = waits(&mesh.client).await;
        approve(&mesh.client, &id).await;
        id
    };
    let ((status, said), approval) = tokio::join!(mesh.ask(quiet("risky")), asking);
    assert_eq!(status, StatusCode::OK, "{said}");
    assert_eq!(said["result"]["content"], json!([]), "{said}");
    assert_eq!(mesh.upstream.count("tools/call"), 2);
    assert!(mesh.server.kernel.approvals().is_empty(), "nobody was asked twice");
    let (client, server) =
        (decided(&mesh.client, "risky").await, decided(&mesh.server, "risky").await);
    let used = client.last().unwrap();
    assert_eq!(used.reason.as_deref(), Some("approved"));
    let [granted] = &server[..] else { panic!("{server:#?}") };
    assert_eq!(granted.reason.as_deref(), Some("granted"));
    assert_eq!(granted.approval.as_deref(), Some(approval.as_str()));
    assert_eq!(granted.detail["grant"]["approvers"][0]["name"], "ada@acme.example");
    assert_eq!(granted.action_text("digest"), used.action_text("digest"), "one action, one digest");
    let leaked = mesh.upstream.seen().iter().any(|seen| seen.headers.contains_key("x-aegis-grant"));
    assert!(!leaked, "the application sees no grant");
}

#[tokio::test]
async fn other_http_is_asked_once_too() {
    let mesh = Mesh::undeclared(ITEMS).await;
    mesh.upstream.answers(|_| async { answer(200, &json!({ "done": true })) });
    assert_eq!(reason(&mesh.ask(get("/items/5")).await.1), "approval_by_policy");
    let id = waits(&mesh.client).await;
    approve(&mesh.client, &id).await;
    let (status, said) = mesh.ask(get("/items/5")).await;
    assert_eq!((status, said), (StatusCode::OK, json!({ "done": true })));
    assert!(mesh.server.kernel.approvals().is_empty());
    assert_eq!(reason(&mesh.ask(get("/items/5")).await.1), "approval_by_policy", "once");
    assert_eq!(mesh.upstream.seen().len(), 1);
}

/// What a person saw is what goes: method, path, query and body.
#[tokio::test]
async fn an_approval_of_other_http_is_for_what_it_carries() {
    let mesh = Mesh::undeclared(ITEMS).await;
    mesh.upstream.answers(|_| async { answer(200, &json!({ "done": true })) });
    let send = |method: &str, path: &str, body: &'static str| {
        let request = Request::builder().method(method).uri(path).header("host", "calc.shop:8080");
        request.body(Full::new(Bytes::from_static(body.as_bytes()))).unwrap()
    };
    let approved = || send("PUT", "/items/5?token=x&dry=1", "three");
    assert_eq!(reason(&mesh.ask(approved()).await.1), "approval_by_policy");
    let id = waits(&mesh.client).await;
    let shown = mesh.client.kernel.approvals()[0].question.clone();
    assert_eq!(shown.arguments["query"]["dry"], json!(["1"]));
    assert_ne!(shown.arguments["query"]["token"], json!(["x"]), "what speaks of secrets is not");
    assert_eq!(shown.arguments["bytes"], 5);
    let port = mesh.upstream.address.port();
    assert_eq!(shown.action["endpoint"], json!(format!("{port}/items/5")), "of the application");
    approve(&mesh.client, &id).await;
    for other in [
        send("POST", "/items/5?token=x&dry=1", "three"),
        send("PUT", "/items/6?token=x&dry=1", "three"),
        send("PUT", "/items/5?token=x&dry=0", "three"),
        send("PUT", "/items/5?dry=1&token=x", "three"),
        send("PUT", "/items/5", "three"),
        send("PUT", "/items/5?token=x&dry=1", "four"),
        send("PUT", "/items/5?token=x&dry=1", ""),
    ] {
        let asked = format!("{} {}", other.method(), other.uri());
        assert_eq!(reason(&mesh.ask(other).await.1), "approval_by_policy", "{asked}");
    }
    assert_eq!(mesh.upstream.seen().len(), 0);
    let (status, said) = mesh.ask(approved()).await;
    assert_eq!((status, said), (StatusCode::OK, json!({ "done": true })));
    assert!(mesh.server.kernel.approvals().is_empty(), "the grant is for the same");
}

/// Under another path of the same agent may be another server with a tool of that name.
#[tokio::test]
async fn an_approval_of_a_call_is_for_one_port_and_path() {
    let mesh = Mesh::with(STANDARD, STANDARD).await;
    mesh.upstream.results(json!({ "content": [] }));
    let at = |path: &str| {
        let mut request = quiet("risky");
        *request.uri_mut() = path.parse().unwrap();
        request
    };
    let asking = async {
        let id = waits(&mesh.client).await;
        let case = mesh.client.kernel.approvals().remove(0);
        let port = mesh.upstream.address.port();
        assert_eq!(case.question.action["endpoint"], json!(format!("{port}/mcp")));
        id
    };
    let id = tokio::select! {
        id = asking => id,
        said = mesh.ask(at("/mcp")) => panic!("{said:?}"),
    };
    // The caller of before has gone; what it asked for is approved, and still to be used.
    approve(&mesh.client, &id).await;
    let another = async {
        let mut changes = mesh.client.kernel.changes();
        while mesh.client.kernel.approvals().len() < 2 {
            changes.changed().await.unwrap();
        }
    };
    tokio::select! {
        done = tokio::time::timeout(PATIENCE, another) => done.unwrap(),
        said = mesh.ask(at("/other")) => panic!("{said:?}"),
    }
    assert_eq!(mesh.upstream.count("tools/call"), 0);
    let (status, said) = mesh.ask(at("/mcp")).await;
    assert_eq!((status, &said["result"]["content"]), (StatusCode::OK, &json!([])), "{said}");
    assert_eq!(mesh.upstream.count("tools/call"), 1);
}

/// A request for one port of an agent is not taken at another.
#[tokio::test]
async fn what_was_approved_for_one_port_is_not_taken_at_another() {
    let mut rogue = Rogue::new(Mesh::with(LAX, LAX).await).await;
    rogue.mesh.upstream.results(json!({ "content": [] }));
    let port = rogue.mesh.upstream.address.port();
    for (meant, status) in [
        (port.to_string(), StatusCode::OK),
        ((port ^ 1).to_string(), StatusCode::MISDIRECTED_REQUEST),
        ("none".to_owned(), StatusCode::MISDIRECTED_REQUEST),
    ] {
        let mut request = quiet("echo");
        request.headers_mut().insert("x-aegis-port", meant.parse().unwrap());
        let sent = tokio::time::timeout(PATIENCE, rogue.sender.send_request(request)).await;
        let (head, body) = sent.unwrap().unwrap().into_parts();
        body.collect().await.unwrap();
        assert_eq!(head.status, status, "{meant}");
    }
    assert_eq!(rogue.mesh.upstream.count("tools/call"), 1);
    let seen = rogue.mesh.upstream.seen();
    assert!(seen.iter().all(|seen| !seen.headers.contains_key("x-aegis-port")), "{seen:?}");
}

/// The sidecar of a caller that is not what it was built as: it signs what it likes.
struct Rogue {
    mesh: Mesh,
    svid: X509Svid,
    sender: SendRequest<Full<Bytes>>,
}

impl Rogue {
    async fn new(mesh: Mesh) -> Self {
        let source = mesh.authority.source(AGENT).await;
        let sender = dial(&mesh, &source).await;
        let svid = source.current().unwrap().svid.clone();
        Self { mesh, svid, sender }
    }

    /// Sends a call on the one connection; gives the status and what is said.
    async fn send(&mut self, tool: &str, grant: Option<&str>) -> (StatusCode, Value) {
        let mut request = quiet(tool);
        if let Some(grant) = grant {
            request.headers_mut().insert("x-aegis-grant", grant.parse().unwrap());
        }
        let sent = tokio::time::timeout(PATIENCE, self.sender.send_request(request)).await;
        let (head, body) = sent.unwrap().unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        (head.status, serde_json::from_slice(&body).unwrap_or_default())
    }

    /// The digest of a call, as the callee has recorded it.
    async fn digest(&mut self, tool: &str) -> Digest {
        // The head of a held stream comes at once; then nobody waits.
        let source = self.mesh.authority.source(AGENT).await;
        let mut sender = dial(&self.mesh, &source).await;
        let asked = sender.send_request(post("/mcp", &call(1, tool).to_string()));
        drop(tokio::time::timeout(PATIENCE, asked).await.unwrap().unwrap());
        let decided = decided(&self.mesh.server, tool).await;
        decided.last().unwrap().action_text("digest").unwrap().parse().unwrap()
    }

    fn grant(&self, action: Digest) -> Grant {
        Grant {
            id: uuid::Uuid::new_v4().to_string(),
            issuer: AGENT.parse().unwrap(),
            audience: self.mesh.server_id(),
            action,
            approval: "a1b2c3d4".into(),
            approvers: vec![Approver { name: "ada@acme.example".into(), factor: Factor::Account }],
            issued_at: now(),
            expires_at: now().plus(Duration::from_secs(60)),
        }
    }

    fn signed(&self, grant: &Grant) -> String {
        sign_grant(&self.svid, grant).unwrap()
    }

    /// The last decision on the tool: its reason, and what was wrong with the grant.
    async fn recorded(&self, tool: &str) -> (String, Option<String>) {
        let decided = decided(&self.mesh.server, tool).await;
        let last = decided.last().unwrap();
        let problem = last.detail.get("grant").and_then(|grant| grant["problem"].as_str());
        (last.reason.clone().unwrap(), problem.map(str::to_owned))
    }
}

impl Mesh {
    fn server_id(&self) -> AgentId {
        SERVER.parse().unwrap()
    }
}

async fn dial(mesh: &Mesh, source: &Arc<SvidSource>) -> SendRequest<Full<Bytes>> {
    let stream = connect(mesh, source, &[MESH_PROTOCOL]).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

#[tokio::test]
async fn a_grant_that_does_not_hold_is_refused_and_on_record() {
    let mesh = Mesh::with(LAX, STANDARD).await;
    mesh.upstream.results(json!({ "content": [] }));
    let mut rogue = Rogue::new(mesh).await;
    let action = rogue.digest("risky").await;
    let good = rogue.grant(action);
    let another = rogue.mesh.authority.source(AGENT).await.current().unwrap().svid.clone();
    let with = |change: &dyn Fn(&mut Grant)| {
        let mut grant = good.clone();
        change(&mut grant);
        rogue.signed(&grant)
    };
    let altered = {
        let (signed, signature) = with(&|g| g.action = Digest::of(b"x"))
            .rsplit_once('.')
            .map(|(a, b)| (a.to_owned(), b.to_owned()))
            .unwrap();
        let (header, payload) = signed.split_once('.').unwrap();
        let text = String::from_utf8(BASE64_URL_SAFE_NO_PAD.decode(payload).unwrap()).unwrap();
        let text = text.replace(&Digest::of(b"x").to_string(), &action.to_string());
        format!("{header}.{}.{signature}", BASE64_URL_SAFE_NO_PAD.encode(text))
    };
    let early = now().minus(Duration::from_secs(600));
    let cases = [
        ("malformed", "nonsense".to_owned()),
        ("signature", altered),
        // Another SVID of the same agent: not the one that this connection has shown.
        ("signature", sign_grant(&another, &good).unwrap()),
        ("issuer", with(&|g| g.issuer = NAMESAKE.parse().unwrap())),
        ("audience", with(&|g| g.audience = NAMESAKE.parse().unwrap())),
        (
            "expired",
            with(&|g| {
                (g.issued_at, g.expires_at) = (early, early.plus(Duration::from_secs(60)));
            }),
        ),
        ("expired", with(&|g| g.expires_at = now().plus(Duration::from_secs(3600)))),
        ("other_action", with(&|g| g.action = Digest::of(b"another"))),
    ];
    for (problem, grant) in cases {
        let (_, said) = rogue.send("risky", Some(&grant)).await;
        assert_eq!(reason(&said), "grant_refused", "{problem}: {said}");
        assert_eq!(said["id"], 1, "in the call's own form");
        let recorded = rogue.recorded("risky").await;
        assert_eq!(recorded, ("grant_refused".into(), Some(problem.into())));
    }
    assert_eq!(rogue.mesh.upstream.count("tools/call"), 0);
    // The connection is none the worse for it, and a grant counts once.
    let grant = rogue.signed(&good);
    let (status, said) = rogue.send("risky", Some(&grant)).await;
    assert_eq!((status, &said["result"]["content"]), (StatusCode::OK, &json!([])), "{said}");
    let (_, said) = rogue.send("risky", Some(&grant)).await;
    assert_eq!(reason(&said), "grant_refused");
    assert_eq!(rogue.recorded("risky").await.1.as_deref(), Some("replayed"));
    assert_eq!(rogue.mesh.upstream.count("tools/call"), 1);
}

#[tokio::test]
async fn a_grant_turns_no_denial_into_anything() {
    let mut rogue = Rogue::new(Mesh::with(LAX, STANDARD).await).await;
    let action = rogue.digest("forbidden").await;
    let grant = rogue.signed(&rogue.grant(action));
    let (_, said) = rogue.send("forbidden", Some(&grant)).await;
    assert_eq!(reason(&said), "policy_denied", "{said}");
    assert_eq!(rogue.mesh.upstream.count("tools/call"), 0);
}

/// Where more is asked for than the caller's side has, people are asked again, by this side's rules.
#[tokio::test]
async fn a_grant_that_shows_too_little_changes_nothing() {
    for policies in [TWO, CODE] {
        let mesh = Mesh::with(STANDARD, policies).await;
        let asking = async {
            let id = waits(&mesh.client).await;
            approve(&mesh.client, &id).await;
            waits(&mesh.server).await
        };
        let request = mesh.ask(quiet("risky"));
        let asked = tokio::select! {
            id = asking => id,
            said = request => panic!("{said:?}"),
        };
        assert_ne!(asked, mesh.client.kernel.approvals()[0].approval.request.id);
        assert_eq!(mesh.upstream.count("tools/call"), 0);
    }
}

/// Another namespace's people answer for another namespace.
#[tokio::test]
async fn another_namespace_asks_its_own_people() {
    let mesh = Mesh::of(Authority::new(), NAMESAKE, (STANDARD, STANDARD), true).await;
    let asking = async {
        let id = waits(&mesh.client).await;
        approve(&mesh.client, &id).await;
        waits(&mesh.server).await
    };
    tokio::select! {
        _ = asking => {}
        said = mesh.ask(quiet("risky")) => panic!("{said:?}"),
    }
    assert_eq!(mesh.upstream.count("tools/call"), 0);
}

#[tokio::test]
async fn an_application_cannot_show_a_grant() {
    let mesh = Mesh::with(LAX, STANDARD).await;
    let mut request = quiet("risky");
    request.headers_mut().insert("x-aegis-grant", "nonsense".parse().unwrap());
    tokio::select! {
        _ = waits(&mesh.server) => {}
        said = mesh.ask(request) => panic!("{said:?}"),
    }
    assert_eq!(mesh.upstream.count("tools/call"), 0);
}
