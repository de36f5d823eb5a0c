//! Who acts on whose behalf: an agent lends what it may do to whom it calls, who acts on it by showing it.

use std::{sync::Arc, time::Duration};

use aegis_audit::entry::{Entry, Kind};
use aegis_core::{AgentId, Timestamp, delegation::Link};
use aegis_identity::{
    SvidSource, X509Svid,
    delegation::{SignedLink, encode, read_delegation, sign_link},
};
use aegis_sidecar::{MESH_PROTOCOL, transparent::Ports};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::SendRequest;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::{
    mesh::{
        Authority, LAX, Mesh, NAMESAKE, Pod, SERVER, connect, exchange, post, reason, register,
    },
    upstream::Upstream,
    world::{AGENT, OTHER, PATIENCE, call, now},
};

/// Who acts for somebody may not call `own`.
const FOR_OTHERS: &[&str] = &[
    "rules: [{ name: all, effect: allow }, { name: own, effect: deny, tools: [own], when: [{ field: principal.delegation, operator: longerThan, value: 0 }] }]",
];

fn message(tool: &str, headers: &[(&'static str, &str)]) -> Request<Full<Bytes>> {
    let mut request = post("/mcp", &call(1, tool).to_string());
    for (name, value) in headers {
        request.headers_mut().insert(*name, value.parse().unwrap());
    }
    request
}

/// The decisions on tools: by whom, on whose behalf, and why so.
async fn decided(pod: &Pod) -> Vec<(String, Value, String)> {
    let all = pod.entries().await;
    let of_tools =
        |entry: &&Entry| entry.kind == Kind::Decision && entry.action_text("tool").is_some();
    all.iter()
        .filter(of_tools)
        .map(|entry| {
            let delegation = entry.detail.get("delegation").cloned().unwrap_or_default();
            (entry.agent_id.clone().unwrap(), delegation, entry.reason.clone().unwrap())
        })
        .collect()
}

/// What its application was given that a caller lends, with the last call of a tool.
fn lent(upstream: &Upstream) -> Option<String> {
    let calls = upstream.seen().into_iter().filter(|seen| seen.json()["method"] == "tools/call");
    let last = calls.last().unwrap();
    for ours in ["x-aegis-lend", "x-aegis-delegation"] {
        assert!(!last.headers.contains_key(ours), "{ours} is between sidecars");
    }
    last.headers.get("x-aegis-lent").map(|value| value.to_str().unwrap().to_owned())
}

/// A pod of a caller, whose connections go there.
async fn caller(authority: &Authority, id: &str, to: &Pod) -> Pod {
    let pod = Pod::start(authority, id, LAX, Ports::default()).await;
    pod.destination.set(to.inbound).unwrap();
    pod
}

async fn callee(
    authority: &Authority,
    id: &str,
    policies: &'static [&'static str],
) -> (Pod, Upstream) {
    let upstream = Upstream::start().await;
    upstream.results(json!({ "content": [] }));
    let mcp = [upstream.address.port()].into();
    let pod = Pod::start(authority, id, policies, Ports { mcp, ..Ports::default() }).await;
    pod.destination.set(upstream.address).unwrap();
    (pod, upstream)
}

async fn ask(pod: &Pod, request: Request<Full<Bytes>>) -> (StatusCode, Value) {
    exchange(TcpStream::connect(pod.outbound).await.unwrap(), request).await
}

/// `buyer` calls `calc`, which calls `rival` for it.
#[tokio::test]
async fn what_an_agent_lends_is_carried_checked_and_shrinks() {
    let authority = Authority::new();
    let (calc, calc_app) = callee(&authority, SERVER, LAX).await;
    let (rival, rival_app) = callee(&authority, OTHER, FOR_OTHERS).await;
    let buyer = caller(&authority, AGENT, &calc).await;
    let calc_out = caller(&authority, SERVER, &rival).await;
    let rival_out = caller(&authority, OTHER, &calc).await;

    // Nothing is lent that nobody has said.
    assert_eq!(ask(&buyer, message("echo", &[])).await.0, StatusCode::OK);
    assert_eq!(lent(&calc_app), None);
    let lend = [("x-aegis-lend", "call:rival/echo, call:rival/own")];
    let (status, said) = ask(&buyer, message("echo", &lend)).await;
    assert_eq!((status, &said["result"]["content"]), (StatusCode::OK, &json!([])), "{said}");
    let first = lent(&calc_app).unwrap();
    assert_eq!(decided(&calc).await.pop().unwrap().1, Value::Null, "the buyer acts for itself");

    // In its own name the calculator does what it may; for the buyer, what that has lent it.
    assert_eq!(ask(&calc_out, message("other", &[])).await.0, StatusCode::OK);
    let acts = [("x-aegis-delegation", first.as_str())];
    let (status, said) = ask(&calc_out, message("echo", &acts)).await;
    assert_eq!((status, &said["result"]["content"]), (StatusCode::OK, &json!([])), "{said}");
    assert_eq!(lent(&rival_app), None);
    let for_buyer = |reason: &str| (SERVER.to_owned(), json!([AGENT]), reason.to_owned());
    assert_eq!(decided(&calc_out).await.pop().unwrap(), for_buyer("policy_allowed"));
    assert_eq!(decided(&rival).await.pop().unwrap(), for_buyer("policy_allowed"));
    let before = rival_app.count("tools/call");
    let (_, said) = ask(&calc_out, message("other", &acts)).await;
    assert_eq!(reason(&said), "delegation_insufficient", "{said}");
    // The callee's policies see on whose behalf it is.
    let (_, said) = ask(&calc_out, message("own", &acts)).await;
    assert_ne!(said["result"]["content"], json!([]), "{said}");
    assert_eq!(rival_app.count("tools/call"), before);

    // What was lent can be lent on, and not more of it.
    let more = [acts[0], ("x-aegis-lend", "call:rival/*")];
    let (_, said) = ask(&calc_out, message("echo", &more)).await;
    assert_eq!(reason(&said), "delegation_invalid", "{said}");
    let on = [acts[0], ("x-aegis-lend", "call:rival/echo")];
    assert_eq!(ask(&calc_out, message("echo", &on)).await.0, StatusCode::OK);
    let second = lent(&rival_app).unwrap();
    let chain = read_delegation(&second).unwrap();
    let names: Vec<_> = chain.iter().map(|one| one.link.delegator.name().to_owned()).collect();
    assert_eq!(names, ["buyer", "calc"]);
    let (_, said) = ask(&rival_out, message("echo", &[("x-aegis-delegation", &second)])).await;
    assert_eq!(
        reason(&said),
        "delegation_insufficient",
        "of the calculator nothing was lent: {said}"
    );
    assert_eq!(decided(&rival_out).await.pop().unwrap().1, json!([AGENT, SERVER]));
    // What was lent to one is of no use to another.
    let (_, said) = ask(&rival_out, message("echo", &acts)).await;
    assert_eq!(reason(&said), "delegation_invalid", "{said}");
}

#[tokio::test]
async fn an_application_lends_no_more_than_it_holds_and_to_nobody_but_agents() {
    let authority = Authority::new();
    let (calc, calc_app) = callee(&authority, SERVER, LAX).await;
    let buyer = caller(&authority, AGENT, &calc).await;
    for pod in [&buyer, &calc] {
        register(&pod.kernel, &[AGENT], &["call:calc/*"]).await;
    }
    let many = vec!["call:calc/echo"; 33].join(",");
    for (problem, lends) in [
        ("widened", "call:**"),
        ("widened", "call:calc/echo,call:other/echo"),
        ("malformed", ""),
        ("malformed", "call:calc/echo,"),
        ("malformed", &many),
    ] {
        let (_, said) = ask(&buyer, message("echo", &[("x-aegis-lend", lends)])).await;
        assert_eq!(reason(&said), "delegation_invalid", "{lends}: {said}");
        let last = buyer.entries().await.pop().unwrap();
        assert_eq!(last.detail["delegation"]["problem"], problem, "{lends}");
    }
    assert_eq!(calc_app.seen().len(), 0);
    // Its own server, and one outside, are no agents to lend to.
    let own = Upstream::start().await;
    let ports = Ports { mcp: [own.address.port()].into(), ..Ports::default() };
    let pod = Pod::start(&authority, AGENT, LAX, ports).await;
    pod.destination.set(own.address).unwrap();
    let (_, said) = ask(&pod, message("echo", &[("x-aegis-lend", "call:calc/echo")])).await;
    assert_eq!(reason(&said), "delegation_invalid", "{said}");
    assert_eq!(own.seen().len(), 0);
}

/// What a link of a chain is to say, and who signs it.
struct Made<'a> {
    by: &'a X509Svid,
    delegator: &'a str,
    delegate: &'a str,
    capabilities: &'a [&'a str],
    until: Timestamp,
}

/// A chain as somebody may make it who does not mind the rules.
fn chain(links: &[Made<'_>]) -> String {
    let mut made: Vec<SignedLink> = Vec::new();
    for link in links {
        let plain = Link {
            delegator: link.delegator.parse().unwrap(),
            delegate: link.delegate.parse().unwrap(),
            capabilities: link.capabilities.iter().map(|one| one.parse().unwrap()).collect(),
            not_after: link.until,
            previous: made.last().map(|last| last.link.digest()),
            signature: String::new(),
        };
        made.push(sign_link(link.by, plain).unwrap());
    }
    encode(&made).unwrap()
}

/// A caller's sidecar that is not what it was built as.
async fn rogue(mesh: &Mesh, source: &Arc<SvidSource>) -> SendRequest<Full<Bytes>> {
    let stream = connect(mesh, source, &[MESH_PROTOCOL]).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn send(
    sender: &mut SendRequest<Full<Bytes>>,
    tool: &str,
    name: &'static str,
    token: &str,
) -> String {
    let asked = sender.send_request(message(tool, &[(name, token)]));
    let body = tokio::time::timeout(PATIENCE, asked).await.unwrap().unwrap().into_body();
    let body = body.collect().await.unwrap().to_bytes();
    let said: Value = serde_json::from_slice(&body).unwrap();
    reason(&said).to_owned()
}

#[tokio::test]
async fn a_chain_that_does_not_hold_is_refused_and_on_record() {
    let mesh = Mesh::with(LAX, FOR_OTHERS).await;
    mesh.upstream.results(json!({ "content": [] }));
    register(&mesh.server.kernel, &[OTHER], &["call:calc/*"]).await;
    let source = mesh.authority.source(AGENT).await;
    let svid = |source: &Arc<SvidSource>| source.current().unwrap().svid.clone();
    let (own, rival) = (svid(&source), svid(&mesh.authority.source(OTHER).await));
    let evil = svid(&mesh.authority.source(NAMESAKE).await);
    let foreign = svid(&Authority::new().source(OTHER).await);
    let (soon, later) = (now().plus(Duration::from_secs(60)), now().plus(Duration::from_secs(120)));
    let past = now().minus(Duration::from_secs(1));
    let echo: &[&str] = &["call:calc/echo"];
    let from = |by, delegator, delegate, capabilities, until| Made {
        by,
        delegator,
        delegate,
        capabilities,
        until,
    };
    let good = || from(&rival, OTHER, AGENT, echo, soon);
    let after = |first: Made<'_>| chain(&[first, good()]);
    let mut long = Vec::new();
    for _ in 0..6 {
        long.push(good());
    }
    let mut unsigned = read_delegation(&chain(&[good()])).unwrap();
    unsigned[0].link.capabilities = vec!["call:calc/own".parse().unwrap()];
    let refused = [
        ("malformed", "garbage".to_owned()),
        ("malformed", "A".repeat(30_000)),
        ("expired", chain(&[from(&rival, OTHER, AGENT, echo, past)])),
        ("unheld", chain(&[from(&rival, OTHER, AGENT, &["call:**"], soon)])),
        ("widened", after(from(&evil, NAMESAKE, OTHER, &["call:calc/other"], soon))),
        ("empty", chain(&[from(&rival, OTHER, AGENT, &[], soon)])),
        (
            "outlives",
            after(from(&evil, NAMESAKE, OTHER, echo, now().plus(Duration::from_secs(30)))),
        ),
        (
            "outlives",
            chain(&[from(&rival, OTHER, AGENT, echo, later.plus(Duration::from_secs(3600)))]),
        ),
        ("signature", encode(&unsigned).unwrap()),
        ("svid", chain(&[from(&own, OTHER, AGENT, echo, soon)])),
        ("svid", chain(&[from(&foreign, OTHER, AGENT, echo, soon)])),
        ("cycle", after(from(&own, AGENT, OTHER, echo, soon))),
        ("broken", after(from(&evil, NAMESAKE, SERVER, echo, soon))),
        ("depth", chain(&long)),
        ("holder", chain(&[from(&rival, OTHER, NAMESAKE, echo, soon)])),
    ];
    let mut sender = rogue(&mesh, &source).await;
    for (problem, token) in refused {
        let said = send(&mut sender, "echo", "x-aegis-delegation", &token).await;
        // Faults that are the lenders' do not count against who holds it.
        let lenders = ["expired", "unheld", "unregistered", "svid"].contains(&problem);
        let expected = if lenders { "delegation_ended" } else { "delegation_invalid" };
        assert_eq!(said, expected, "{problem}");
        let last = mesh.server.entries().await.pop().unwrap();
        assert_eq!(last.detail["delegation"]["problem"], problem);
        assert_eq!(last.agent_id.as_deref(), Some(AGENT));
    }
    // Nobody hands over what another has lent.
    let others = chain(&[from(&rival, OTHER, SERVER, echo, soon)]);
    assert_eq!(send(&mut sender, "echo", "x-aegis-lent", &others).await, "delegation_invalid");
    assert_eq!(mesh.upstream.count("tools/call"), 0);
    // The connection is none the worse for it.
    let token = chain(&[good()]);
    assert_eq!(send(&mut sender, "echo", "x-aegis-delegation", &token).await, "");
    assert_eq!(mesh.upstream.count("tools/call"), 1);
    let last = decided(&mesh.server).await.pop().unwrap();
    assert_eq!(last, (AGENT.into(), json!([OTHER]), "policy_allowed".into()));
    assert_eq!(
        send(&mut sender, "other", "x-aegis-delegation", &token).await,
        "delegation_insufficient"
    );
}

#[tokio::test]
async fn what_a_stopped_agent_has_lent_is_gone() {
    let mesh = Mesh::with(LAX, LAX).await;
    mesh.upstream.results(json!({ "content": [] }));
    let source = mesh.authority.source(AGENT).await;
    let rival = mesh.authority.source(OTHER).await.current().unwrap().svid.clone();
    let until = now().plus(Duration::from_secs(60));
    let link =
        Made { by: &rival, delegator: OTHER, delegate: AGENT, capabilities: &["call:**"], until };
    let token = chain(&[link]);
    let mut sender = rogue(&mesh, &source).await;
    assert_eq!(send(&mut sender, "echo", "x-aegis-delegation", &token).await, "");
    let other: AgentId = OTHER.parse().unwrap();
    mesh.server
        .kernel
        .update_with(|state| {
            state.quarantined.insert(other.clone());
        })
        .await
        .unwrap();
    assert_eq!(send(&mut sender, "echo", "x-aegis-delegation", &token).await, "delegation_ended");
    assert_eq!(mesh.upstream.count("tools/call"), 1);
}
