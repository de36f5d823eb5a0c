//! What two sidecars show each other before anything else passes: who answers for an agent, what it may
//! ever do, by which policies it is governed. It is of one SVID and one connection.

use std::{io, sync::Arc, time::Duration};

use aegis_audit::entry::{Entry, Kind};
use aegis_core::{
    AgentId, Digest,
    manifest::{MANIFEST_LIFE, Manifest},
};
use aegis_identity::{
    PeerRule, SvidSource, X509Svid,
    manifest::{MAX_MANIFEST_BYTES, Side, certificate, channel},
    sign_manifest,
    tls::server_config,
};
use aegis_sidecar::{BARE_MESH_PROTOCOL, MESH_PROTOCOL, ManifestMode, transparent::Ports};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};
use tokio_rustls::{TlsAcceptor, client::TlsStream};

use crate::{
    mesh::{
        Authority, LAX, Mesh, NAMESAKE, Pod, SERVER, connect, exchange, open, post, reason,
        register,
    },
    upstream::Upstream,
    world::{AGENT, PATIENCE, call, now},
};

/// What its sidecar would say of an agent on this connection.
pub(crate) fn manifest(stream: &TlsStream<TcpStream>, svid: &X509Svid) -> Manifest {
    let agent = AgentId::try_from(svid.id().clone());
    Manifest {
        agent: agent.unwrap_or_else(|_| AGENT.parse().unwrap()),
        sponsor: "ada@acme.example".parse().unwrap(),
        capabilities: Vec::new(),
        policies: Digest::of(b"policies"),
        state: 0,
        svid: certificate(&svid.chain()[0]),
        channel: channel(stream.get_ref().1, Side::Client).unwrap(),
        issued_at: now(),
        expires_at: now().plus(MANIFEST_LIFE),
    }
}

/// Sends a frame, and reads the one that answers it; `None` if that refuses it.
pub(crate) async fn show(
    stream: &mut (impl AsyncRead + AsyncWrite + Unpin),
    token: &[u8],
) -> io::Result<Option<Vec<u8>>> {
    stream.write_all(&u32::try_from(token.len()).unwrap().to_be_bytes()).await?;
    stream.write_all(token).await?;
    answer(stream).await
}

async fn answer(stream: &mut (impl AsyncRead + Unpin)) -> io::Result<Option<Vec<u8>>> {
    let length = tokio::time::timeout(PATIENCE, stream.read_u32()).await.unwrap()?;
    let mut said = vec![0; usize::try_from(length).unwrap()];
    stream.read_exact(&mut said).await?;
    Ok((!said.is_empty()).then_some(said))
}

async fn decided(pod: &Pod) -> Vec<Entry> {
    let all = pod.entries().await;
    all.into_iter().filter(|entry| entry.kind == Kind::Decision).collect()
}

/// A decision by its number: the peer is told before it is on record.
async fn nth(pod: &Pod, number: usize) -> Entry {
    let there = async {
        loop {
            if let Some(entry) = decided(pod).await.into_iter().nth(number) {
                return entry;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, there).await.unwrap()
}

/// The manifest that the last call of a tool came with, as the server's sidecar has recorded it.
async fn recorded(mesh: &Mesh) -> Value {
    let calls = decided(&mesh.server).await;
    let last = calls.iter().rfind(|entry| entry.action_text("tool").is_some());
    last.unwrap().detail.get("manifest").cloned().unwrap_or_default()
}

fn message(tool: &str) -> Request<Full<Bytes>> {
    post("/mcp", &call(1, tool).to_string())
}

#[tokio::test]
async fn a_record_names_the_manifest_that_the_caller_has_shown() {
    let mesh = Mesh::with(LAX, LAX).await;
    mesh.upstream.results(json!({ "content": [] }));
    let (status, said) = mesh.call("echo").await;
    assert_eq!(status, StatusCode::OK, "{said}");
    let shown = recorded(&mesh).await;
    let policies = mesh.client.kernel.engine().policies().digest().to_string();
    assert_eq!(shown["policies"], json!(policies), "by which the caller's side has decided");
    assert!(shown["digest"].as_str().unwrap().parse::<Digest>().is_ok());
    assert_eq!(mesh.call("echo").await.0, StatusCode::OK);
    assert_eq!(recorded(&mesh).await, shown, "once for each connection");
}

/// Without its capability, and with the signature of before.
fn altered(token: &str, change: impl FnOnce(&mut Value)) -> String {
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let (header, payload) = signed.split_once('.').unwrap();
    let bytes = BASE64_URL_SAFE_NO_PAD.decode(payload).unwrap();
    let mut claims: Value = serde_json::from_slice(&bytes).unwrap();
    change(&mut claims);
    format!("{header}.{}.{signature}", BASE64_URL_SAFE_NO_PAD.encode(claims.to_string()))
}

/// One thing that a caller's sidecar may show which is not what it was built as.
type Case = (&'static str, Forge);
/// Makes it of a manifest that would hold.
type Forge = Box<dyn Fn(&Manifest, &X509Svid) -> Vec<u8>>;

fn cases(foreign: X509Svid, replayed: String) -> Vec<Case> {
    fn with(change: impl Fn(&mut Manifest) + 'static) -> Forge {
        Box::new(move |good, svid| {
            let mut manifest = good.clone();
            change(&mut manifest);
            sign_manifest(svid, &manifest).unwrap().into_bytes()
        })
    }
    let early = now().minus(Duration::from_secs(3_600));
    vec![
        ("malformed", Box::new(|_, _| b"garbage".to_vec())),
        ("malformed", Box::new(|_, _| vec![0xff; 64])),
        ("too_large", Box::new(|_, _| vec![b'x'; MAX_MANIFEST_BYTES + 1])),
        (
            "signature",
            Box::new(|good, svid| {
                let token = sign_manifest(svid, good).unwrap();
                altered(&token, |claims| claims["capabilities"] = json!(["call:**"])).into_bytes()
            }),
        ),
        // Another SVID of the same agent: not the one that this connection has shown.
        ("signature", Box::new(move |good, _| sign_manifest(&foreign, good).unwrap().into_bytes())),
        ("channel", Box::new(move |_, _| replayed.clone().into_bytes())),
        ("channel", with(|m| m.channel = Digest::of(b"another"))),
        ("svid", with(|m| m.svid = Digest::of(b"another"))),
        ("agent", with(|m| m.agent = NAMESAKE.parse().unwrap())),
        ("sponsor", with(|m| m.sponsor = "grace@acme.example".parse().unwrap())),
        ("exceeds", with(|m| m.capabilities = vec!["call:**".parse().unwrap()])),
        ("exceeds", with(|m| m.capabilities.clear())),
        ("too_large", with(|m| m.capabilities = vec!["call:a/b".parse().unwrap(); 257])),
        (
            "expired",
            with(move |m| (m.issued_at, m.expires_at) = (early, early.plus(MANIFEST_LIFE))),
        ),
        ("expired", with(|m| m.expires_at = m.issued_at.plus(MANIFEST_LIFE * 2))),
    ]
}

#[tokio::test]
async fn a_manifest_that_does_not_hold_is_refused_and_on_record() {
    let mesh = Mesh::with(LAX, LAX).await;
    mesh.upstream.results(json!({ "content": [] }));
    let held = ["call:calc/*"];
    register(&mesh.server.kernel, &[AGENT], &held).await;
    let source = mesh.authority.source(AGENT).await;
    let svid = source.current().unwrap().svid.clone();
    let foreign = mesh.authority.source(AGENT).await.current().unwrap().svid.clone();
    let good = |stream: &TlsStream<TcpStream>| Manifest {
        capabilities: held.iter().map(|one| one.parse().unwrap()).collect(),
        ..manifest(stream, &svid)
    };
    // One that is good is good on its own connection, and on no other.
    let mut first = open(&mesh, &source, &[MESH_PROTOCOL]).await.unwrap();
    let token = sign_manifest(&svid, &good(&first)).unwrap();
    let theirs = show(&mut first, token.as_bytes()).await.unwrap().unwrap();
    let mut refused = cases(foreign, token);
    refused.push(("absent", Box::new(|_, _| Vec::new())));
    // What the server's sidecar has shown is not taken back from whom it was shown to.
    refused.push(("signature", Box::new(move |_, _| theirs.clone())));
    for (number, (problem, made)) in refused.into_iter().enumerate() {
        let mut stream = open(&mesh, &source, &[MESH_PROTOCOL]).await.unwrap();
        let shown = made(&good(&stream), &svid);
        let said = show(&mut stream, &shown).await;
        assert!(!matches!(said, Ok(Some(_))), "{problem}: taken");
        let ended = tokio::time::timeout(PATIENCE, stream.read(&mut [0; 1])).await.unwrap();
        assert!(!matches!(ended, Ok(count) if count > 0), "{problem}: it is answered");
        let last = nth(&mesh.server, number).await;
        assert_eq!(last.reason.as_deref(), Some("manifest_refused"), "{problem}");
        assert_eq!(last.agent_id.as_deref(), Some(AGENT));
        assert_eq!(last.detail["manifest"]["problem"], problem);
    }
    assert_eq!(mesh.upstream.seen().len(), 0);
    // Others' connections are none the worse for it.
    let (status, said) = exchange(first, message("echo")).await;
    assert_eq!((status, &said["result"]["content"]), (StatusCode::OK, &json!([])), "{said}");
}

/// Policies of the callee see what the manifest claims, and nobody does more than that.
#[tokio::test]
async fn a_caller_holds_no_more_than_it_has_shown() {
    let mesh = Mesh::with(LAX, LAX).await;
    mesh.upstream.results(json!({ "content": [] }));
    let source = mesh.authority.source(AGENT).await;
    let svid = source.current().unwrap().svid.clone();
    for (claimed, expected) in [("call:calc/echo", ""), ("call:calc/other", "capability_missing")] {
        let mut stream = open(&mesh, &source, &[MESH_PROTOCOL]).await.unwrap();
        let capabilities = vec![claimed.parse().unwrap()];
        let less = Manifest { capabilities, ..manifest(&stream, &svid) };
        let token = sign_manifest(&svid, &less).unwrap();
        assert!(show(&mut stream, token.as_bytes()).await.unwrap().is_some());
        let (_, said) = exchange(stream, message("echo")).await;
        assert_eq!(reason(&said), expected, "{claimed}: {said}");
    }
}

#[tokio::test]
async fn a_changed_manifest_is_shown_on_the_next_connection_and_no_call_fails() {
    let mesh = Mesh::with(LAX, LAX).await;
    mesh.upstream.results(json!({ "content": [] }));
    assert_eq!(mesh.call("echo").await.0, StatusCode::OK);
    let before = recorded(&mesh).await;
    // The two sides hear of a new state one after the other.
    for pod in [&mesh.client, &mesh.server] {
        register(&pod.kernel, &[AGENT], &["call:calc/echo"]).await;
        pod.kernel.update_with(|state| state.serial += 1).await.unwrap();
        assert_eq!(mesh.call("echo").await.0, StatusCode::OK);
    }
    let after = recorded(&mesh).await;
    assert_ne!(before["digest"], after["digest"], "asked for again");
    // The callee's own has another connection come for it too.
    register(&mesh.server.kernel, &[SERVER], &["call:**"]).await;
    mesh.server.kernel.update_with(|state| state.serial += 1).await.unwrap();
    for _ in 0..2 {
        assert_eq!(mesh.call("echo").await.0, StatusCode::OK);
    }
    assert_ne!(recorded(&mesh).await["digest"], after["digest"]);
}

/// What was registered when a connection was opened does not outlive its registration.
#[tokio::test]
async fn a_capability_that_is_taken_away_is_gone_on_open_connections() {
    let mesh = Mesh::with(LAX, LAX).await;
    mesh.upstream.results(json!({ "content": [] }));
    let source = mesh.authority.source(AGENT).await;
    let stream = connect(&mesh, &source, &[MESH_PROTOCOL]).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut ask = async || {
        let (head, body) = sender.send_request(message("echo")).await.unwrap().into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let said: Value = serde_json::from_slice(&body).unwrap();
        let closes = head.headers.get("connection").is_some_and(|value| value == "close");
        (reason(&said).to_owned(), closes)
    };
    assert_eq!(ask().await, (String::new(), false));
    // A state that the caller's side has not heard of yet: it holds what is left.
    register(&mesh.server.kernel, &[AGENT], &["call:calc/other"]).await;
    mesh.server.kernel.update_with(|state| state.serial = 1).await.unwrap();
    assert_eq!(ask().await, ("capability_missing".to_owned(), false));
    // By the state that it says to go by, it claims too much: it has to come anew.
    mesh.server.kernel.update_with(|state| state.serial = 0).await.unwrap();
    assert_eq!(ask().await, ("manifest_refused".to_owned(), true));
}

#[tokio::test]
async fn a_manifest_that_is_over_ends_its_connection_and_another_is_asked_for() {
    let mesh = Mesh::with(LAX, LAX).await;
    mesh.upstream.results(json!({ "content": [] }));
    let source = mesh.authority.source(AGENT).await;
    let svid = source.current().unwrap().svid.clone();
    let mut stream = open(&mesh, &source, &[MESH_PROTOCOL]).await.unwrap();
    // Clocks may differ by half a minute: it holds for some seconds more.
    let (from, until) =
        (now().minus(Duration::from_secs(60)), now().minus(Duration::from_secs(27)));
    let over = Manifest { issued_at: from, expires_at: until, ..manifest(&stream, &svid) };
    let token = sign_manifest(&svid, &over).unwrap();
    assert!(show(&mut stream, token.as_bytes()).await.unwrap().is_some());
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let refused = async {
        loop {
            let (head, body) = sender.send_request(message("echo")).await.unwrap().into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let said: Value = serde_json::from_slice(&body).unwrap();
            if reason(&said) == "manifest_refused" {
                return head.headers["connection"] == "close";
            }
            assert_eq!(head.status, StatusCode::OK, "{said}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    assert!(tokio::time::timeout(PATIENCE, refused).await.unwrap());
    let last = decided(&mesh.server).await.pop().unwrap();
    assert_eq!(last.detail["manifest"]["problem"], "expired");
    let again = connect(&mesh, &source, &[MESH_PROTOCOL]).await.unwrap();
    assert_eq!(exchange(again, message("echo")).await.0, StatusCode::OK);
}

#[tokio::test]
async fn where_manifests_are_only_recorded_the_record_says_what_is_wrong() {
    let (authority, upstream) = (Authority::new(), Upstream::start().await);
    upstream.results(json!({ "content": [] }));
    let client = Pod::start(&authority, AGENT, LAX, Ports::default()).await;
    let ports = Ports { mcp: [upstream.address.port()].into(), ..Ports::default() };
    let mode = ManifestMode::Recorded;
    let server = Pod::start_asking(&authority, SERVER, LAX, ports, mode).await;
    client.destination.set(server.inbound).unwrap();
    server.destination.set(upstream.address).unwrap();
    let mesh = Mesh { authority, client, server, upstream };
    let source = mesh.authority.source(AGENT).await;
    let bare = open(&mesh, &source, &[BARE_MESH_PROTOCOL]).await.unwrap();
    assert_eq!(exchange(bare, message("echo")).await.0, StatusCode::OK);
    assert_eq!(recorded(&mesh).await, json!({ "problem": "absent" }));
    let mut stream = open(&mesh, &source, &[MESH_PROTOCOL]).await.unwrap();
    assert!(show(&mut stream, b"garbage").await.unwrap().is_some());
    assert_eq!(exchange(stream, message("echo")).await.0, StatusCode::OK);
    assert_eq!(recorded(&mesh).await, json!({ "problem": "malformed" }));
    assert_eq!(mesh.call("echo").await.0, StatusCode::OK, "one that holds is taken as ever");
    assert!(recorded(&mesh).await["digest"].is_string());
    // Where they are required, nobody gets in without.
    let strict = Mesh::with(LAX, LAX).await;
    let source = strict.authority.source(AGENT).await;
    let without = open(&strict, &source, &[BARE_MESH_PROTOCOL]).await;
    let answered = match without {
        Ok(mut stream) => {
            let asked = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n";
            stream.write_all(asked).await.is_ok()
                && matches!(stream.read(&mut [0; 1]).await, Ok(count) if count > 0)
        }
        Err(_) => false,
    };
    assert!(!answered);
}

/// Somebody with the callee's SVID that shows this.
async fn callee(mesh: &Mesh, source: Arc<SvidSource>, shown: Vec<u8>) -> std::net::SocketAddr {
    let revoked = mesh.authority.manager.revocations();
    let rule = PeerRule::exactly(AGENT.parse().unwrap());
    let mut config = server_config(&source, revoked, rule).unwrap();
    config.alpn_protocols = vec![MESH_PROTOCOL.to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let mut stream = acceptor.accept(stream).await.unwrap();
            answer(&mut stream).await.unwrap();
            let length = u32::try_from(shown.len()).unwrap().to_be_bytes();
            stream.write_all(&[&length, shown.as_slice()].concat()).await.unwrap();
            let mut rest = Vec::new();
            let _ = stream.read_to_end(&mut rest).await;
            assert_eq!(rest, b"", "it is asked nothing");
        }
    });
    address
}

#[tokio::test]
async fn a_callee_without_a_manifest_that_holds_is_asked_nothing() {
    let mesh = Mesh::with(LAX, LAX).await;
    let source = mesh.authority.source(SERVER).await;
    // What the true one has shown on another connection.
    let agent = mesh.authority.source(AGENT).await;
    let mut stream = open(&mesh, &agent, &[MESH_PROTOCOL]).await.unwrap();
    let svid = agent.current().unwrap().svid.clone();
    let token = sign_manifest(&svid, &manifest(&stream, &svid)).unwrap();
    let replayed = show(&mut stream, token.as_bytes()).await.unwrap().unwrap();
    for shown in [replayed, b"garbage".to_vec(), Vec::new()] {
        let client = Pod::start(&mesh.authority, AGENT, LAX, Ports::default()).await;
        client.destination.set(callee(&mesh, Arc::clone(&source), shown).await).unwrap();
        let stream = TcpStream::connect(client.outbound).await.unwrap();
        let (status, said) = exchange(stream, message("echo")).await;
        assert_eq!((status, reason(&said)), (StatusCode::FORBIDDEN, "manifest_refused"));
    }
}
