//! Channels to Aegis' own components, over mutual TLS.
//!
//! A channel connects when it is used, and anew by itself. Each connection shows the SVID that the
//! source holds at that moment and ends with the server's.

use std::{io, sync::Arc, time::Duration};

use aegis_identity::{
    Clock, PeerRule, Revocations, SvidSource, TlsError,
    tls::{client_config, peer_identity},
};
use hyper_util::rt::TokioIo;
use rustls::{ClientConfig, pki_types::ServerName};
use tokio::{net::TcpStream, sync::watch};
use tokio_rustls::TlsConnector;
use tonic::transport::{Channel, Endpoint};

use crate::{PeerBound, component};

/// How long a connection may take, TLS included.
const CONNECT: Duration = Duration::from_secs(5);
/// How often a connection is asked whether it is alive, and how long the answer may take: a server
/// that vanished without a word is noticed within their sum.
const ALIVE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(5));

/// Why there is no channel.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The component's name.
    #[error(transparent)]
    Name(#[from] aegis_core::identity::InvalidIdentity),
}

/// A channel to `component` (such as `operator`) of the source's own trust domain at `address`
/// (`host:port`). Needs a tokio runtime.
///
/// # Errors
/// When `component` is no name, or TLS cannot be configured.
pub fn channel(
    address: &str,
    name: &str,
    source: &Arc<SvidSource>,
    revocations: watch::Receiver<Arc<Revocations>>,
) -> Result<Channel, ChannelError> {
    let id = component(source.bundle().trust_domain(), name)?;
    let config = client_config(source, revocations.clone(), PeerRule::exactly(id))?;
    Ok(connecting(address, config, revocations, source.clock()))
}

/// A channel that connects with `config`, whose verifier says who answers there.
pub(crate) fn connecting(
    address: &str,
    mut config: ClientConfig,
    revocations: watch::Receiver<Arc<Revocations>>,
    clock: Clock,
) -> Channel {
    config.alpn_protocols = vec![b"h2".to_vec()];
    let connector = TlsConnector::from(Arc::new(config));
    let address: Arc<str> = address.into();
    let connect = tower::service_fn(move |_: http::Uri| {
        let (connector, address) = (connector.clone(), Arc::clone(&address));
        let (revocations, clock) = (revocations.clone(), Arc::clone(&clock));
        async move {
            let connecting = async {
                let stream = TcpStream::connect(&*address).await?;
                stream.set_nodelay(true)?;
                // The verifier looks at the SPIFFE ID; SNI is off.
                let name = ServerName::try_from("aegis").map_err(io::Error::other)?;
                let stream = connector.connect(name, stream).await?;
                let peer = peer_identity(stream.get_ref().1.peer_certificates())
                    .map_err(io::Error::other)?;
                Ok::<_, io::Error>(TokioIo::new(PeerBound::new(stream, peer, revocations, clock)))
            };
            let late = |_| io::Error::new(io::ErrorKind::TimedOut, "connecting took too long");
            tokio::time::timeout(CONNECT, connecting).await.map_err(late)?
        }
    });
    let (every, patience) = ALIVE;
    Endpoint::from_static("http://aegis")
        .http2_keep_alive_interval(every)
        .keep_alive_timeout(patience)
        .keep_alive_while_idle(true)
        .connect_with_connector_lazy(connect)
}
