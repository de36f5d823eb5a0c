//! How an upstream's OAuth metadata looks to clients.

use aegis_audit::Kind;
use http::Method;
use serde_json::json;

use crate::{
    upstream,
    world::{Answer, World, world_with},
};

const DOCUMENT: &str = r#"{"resource":"https://tickets.example/mcp","authorization_servers":["https://login.example"], "x":1.0}"#;

/// A server that wants a token and says where its metadata is.
fn wants_token(world: &World) {
    world.upstream.answers(|seen| async move {
        if seen.method == Method::GET {
            return upstream::raw(200, "application/json", DOCUMENT);
        }
        let mut answer = upstream::status(401);
        let says = r#"Bearer scope="a", resource_metadata="https://tickets.example/.well-known/oauth-protected-resource/mcp", error="x""#;
        answer.headers_mut().insert("www-authenticate", says.parse().unwrap());
        answer
    });
}

async fn metadata(world: &World, path: &str) -> Answer {
    world.send_to(Method::GET, path, &[], "").await
}

#[tokio::test]
async fn challenges_and_metadata_are_served_at_aegis_address() {
    let world = world_with(json!({})).await;
    wants_token(&world);
    let answer = world.call("echo").await;
    assert_eq!(answer.status, 401);
    let path = "/.well-known/oauth-protected-resource/mcp";
    assert_eq!(
        answer.headers["www-authenticate"],
        format!(
            "Bearer scope=\"a\", resource_metadata=\"http://{}{path}\", error=\"x\"",
            world.address
        )
    );
    let document = metadata(&world, path).await;
    assert_eq!((document.status.as_u16(), document.body.as_ref()), (200, DOCUMENT.as_bytes()));
    assert_eq!(metadata(&world, "/.well-known/oauth-protected-resource").await.body, DOCUMENT);
    assert_eq!(metadata(&world, "/.well-known/oauth-protected-resource/other").await.status, 404);
    let asked = world.upstream.seen().pop().unwrap();
    assert!(!asked.headers.contains_key("authorization"));
    let decided = world.recorded(Kind::Outcome, 3).await;
    assert!(decided.iter().any(|entry| entry.action_text("method") == Some("session/metadata")));
}

#[tokio::test]
async fn the_resource_can_be_aegis_own_address() {
    let world = world_with(json!({ "oauthMetadata": "own" })).await;
    wants_token(&world);
    let document = metadata(&world, "/.well-known/oauth-protected-resource/mcp").await.json();
    assert_eq!(document["resource"], format!("http://{}/mcp", world.address));
    assert_eq!(document["authorization_servers"], json!(["https://login.example"]));
}

#[tokio::test]
async fn where_aegis_adds_a_credential_no_client_is_asked_for_a_token() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("token");
    std::fs::write(&file, "secret").unwrap();
    let world = world_with(json!({ "credential": { "prefix": "Bearer ", "file": file } })).await;
    wants_token(&world);
    // Before the first list and after it.
    world.upstream.lists(|_| async { upstream::status(401) });
    assert_eq!(world.call("echo").await.reason(), "upstream_unavailable");
    assert_eq!(world.upstream.seen().len(), 0);
    world.upstream.lists(|seen| async move { upstream::page(&seen, &[&["echo"]]) });
    let answer = world.call("echo").await;
    assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (502, "upstream_unavailable"));
    assert!(!answer.headers.contains_key("www-authenticate"));
    let before = world.upstream.seen().len();
    assert_eq!(metadata(&world, "/.well-known/oauth-protected-resource/mcp").await.status, 404);
    assert_eq!(world.upstream.seen().len(), before, "it is not even asked");
}

#[tokio::test]
async fn a_document_that_is_none_is_not_served() {
    let world = world_with(json!({})).await;
    let path = "/.well-known/oauth-protected-resource/mcp";
    for (status, kind, body, expected) in [
        (404, "text/plain", "", 404),
        (200, "text/html", "<p>", 502),
        (200, "application/json", "[]", 502),
        (200, "application/json", r#"{"resource":"a","resource":"b"}"#, 502),
    ] {
        world.upstream.says(status, kind, body);
        assert_eq!(metadata(&world, path).await.status.as_u16(), expected, "{body}");
    }
}
