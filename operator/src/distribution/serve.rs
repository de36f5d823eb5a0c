//! Serves the distribution over mutual TLS: who has no SVID of this trust domain gets nothing.

use std::time::Duration;

use aegis_mesh::serve_tls;
use rustls::ServerConfig;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::Publisher;

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
    let routes = Routes::new(publisher.service(stop.clone())).prepare();
    serve_tls(listener, config, None, routes, DRAIN, stop).await;
}
