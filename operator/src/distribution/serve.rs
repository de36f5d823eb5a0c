//! Serves sidecars over mutual TLS, what they enforce and whom they ask: who has no SVID of this trust domain gets nothing, and a
//! stream ends with its follower's SVID.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use aegis_identity::{PeerRule, Revocations, SvidSource, TlsError, tls::server_config};
use aegis_mesh::{Peers, serve_tls};
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;
use tonic::service::Routes;

use super::Publisher;
use crate::{
    approvals::{Desk, Requests},
    mesh::Member,
};

/// How long streams may take to end once a stop is asked for.
const DRAIN: Duration = Duration::from_secs(2);
/// The wait after a failure.
const RETRY: Duration = Duration::from_secs(5);

/// What sidecars are served.
pub struct Served<R> {
    /// What they enforce.
    pub publisher: Publisher,
    /// Where their questions to people lie.
    pub desk: Desk<R>,
}

impl<R> Clone for Served<R> {
    fn clone(&self) -> Self {
        Self { publisher: self.publisher.clone(), desk: self.desk.clone() }
    }
}

impl<R> std::fmt::Debug for Served<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Served").finish_non_exhaustive()
    }
}

/// Serves agents of the source's trust domain until `stop`.
///
/// # Errors
/// When TLS cannot be configured.
pub async fn serve<R: Requests>(
    listener: TcpListener,
    source: &Arc<SvidSource>,
    revocations: watch::Receiver<Arc<Revocations>>,
    served: Served<R>,
    stop: CancellationToken,
) -> Result<(), TlsError> {
    let agents = PeerRule::agents_of(source.bundle().trust_domain().clone());
    let mut config = server_config(source, revocations.clone(), agents)?;
    config.alpn_protocols = vec![b"h2".to_vec()];
    let peers = Peers { revocations, clock: source.clock() };
    let routes = Routes::new(served.publisher.service(stop.clone()));
    let routes = routes.add_service(served.desk.service(stop.clone())).prepare();
    serve_tls(listener, config, Some(peers), routes, DRAIN, stop).await;
    Ok(())
}

/// The leader's part: listens as soon as the operator is somebody in the mesh, until `stop`.
pub async fn keep_serving<R: Requests>(
    address: SocketAddr,
    mut members: watch::Receiver<Option<Member>>,
    served: Served<R>,
    stop: CancellationToken,
) {
    loop {
        let member = tokio::select! {
            () = stop.cancelled() => return,
            member = members.wait_for(Option::is_some) => match member {
                Ok(member) => member.clone(),
                Err(_) => return,
            },
        };
        let Some(member) = member else { return };
        members.mark_unchanged();
        let ending = stop.child_token();
        let mut serving = std::pin::pin!(bound(address, &member, served.clone(), ending.clone()));
        let ended = tokio::select! {
            ended = &mut serving => ended,
            // Another SVID of another CA: whoever believes the new roots only would not believe the old.
            Ok(()) = members.changed() => {
                ending.cancel();
                serving.await
            }
        };
        if let Err(why) = ended {
            tracing::error!(why, "sidecars are told nothing; trying again");
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(RETRY) => {}
            }
        }
    }
}

async fn bound<R: Requests>(
    address: SocketAddr,
    member: &Member,
    served: Served<R>,
    stop: CancellationToken,
) -> Result<(), String> {
    let listener = TcpListener::bind(address).await.map_err(|error| {
        format!(
            "cannot listen on {address} for sidecars ({error}); choose another with --distribution"
        )
    })?;
    tracing::info!(%address, "sidecars are told what to enforce");
    let revocations = member.authority.revocations();
    let serving = serve(listener, &member.source, revocations, served, stop);
    serving.await.map_err(|error| error.to_string())
}
