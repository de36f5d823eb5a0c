//! HTTPS upstreams must prove who they are.

use std::sync::Arc;

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::{
    upstream::Upstream,
    world::{Plan, World},
};

/// An upstream with a certificate of its own, and that certificate.
async fn upstream() -> (Upstream, String) {
    let own = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(own.signing_key.serialize_der()));
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![own.cert.der().clone()], key)
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = Upstream::on(listener.local_addr().unwrap());
    let serving = upstream.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            if let Ok(stream) = acceptor.accept(stream).await {
                tokio::spawn(serving.clone().serve(stream));
            }
        }
    });
    (upstream, own.cert.pem())
}

#[tokio::test]
async fn https_upstream_with_foreign_certificate_is_refused() {
    let (upstream, _) = upstream().await;
    let url = format!("https://localhost:{}/mcp", upstream.address.port());
    let plan = Plan { spec: json!({ "url": url }), ..Plan::default() };
    let world = World::around(upstream, plan).await;
    let answer = world.call("echo").await;
    assert_eq!((answer.status.as_u16(), answer.reason().as_str()), (502, "upstream_unverified"));
    assert_eq!(world.upstream.seen().len(), 0);
}

#[tokio::test]
async fn https_upstream_with_its_own_roots_is_reached() {
    let (upstream, pem) = upstream().await;
    let folder = tempfile::tempdir().unwrap();
    let roots = folder.path().join("roots.pem");
    std::fs::write(&roots, pem).unwrap();
    let port = upstream.address.port();
    for (host, status) in [("localhost", 200), ("127.0.0.1", 502)] {
        let spec = json!({ "url": format!("https://{host}:{port}/mcp"), "roots": roots });
        let world = World::around(upstream.clone(), Plan { spec, ..Plan::default() }).await;
        assert_eq!(world.call("echo").await.status.as_u16(), status, "{host}");
    }
}
