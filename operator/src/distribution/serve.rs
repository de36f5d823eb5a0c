//! Serves the distribution over mutual TLS: who has no SVID of this trust domain gets nothing.

use std::{sync::Arc, time::Duration};

use hyper_util::{
    rt::{TokioExecutor, TokioIo},
    server::conn::auto,
    service::TowerToHyperService,
};
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tonic::service::Routes;

use super::Publisher;

/// How long a handshake may take.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// How long streams may take to end once a stop is asked for.
const DRAIN: Duration = Duration::from_secs(2);

/// Serves until `stop`. `config` is that of `aegis_identity::tls::server_config`: it checks the
/// peer's SVID in the handshake.
pub async fn serve(
    listener: TcpListener,
    mut config: ServerConfig,
    publisher: Publisher,
    stop: CancellationToken,
) {
    config.alpn_protocols = vec![b"h2".to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let routes = Routes::new(publisher.service(stop.clone()));
    let tasks = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, _)) => {
                let _ = stream.set_nodelay(true);
                tasks.spawn(connection(stream, acceptor.clone(), routes.clone(), stop.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "a sidecar's connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
    tasks.close();
    aegis_runtime::drained(tasks.wait(), DRAIN).await;
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    routes: Routes,
    stop: CancellationToken,
) {
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::info!(%error, "a sidecar without a valid SVID was turned away");
            return;
        }
        Err(_) => return,
    };
    let service = TowerToHyperService::new(routes.prepare());
    let builder = auto::Builder::new(TokioExecutor::new()).http2_only();
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    tokio::pin!(serving);
    tokio::select! {
        _ = serving.as_mut() => return,
        () = stop.cancelled() => serving.as_mut().graceful_shutdown(),
    }
    let _ = serving.await;
}
