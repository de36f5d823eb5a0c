//! Serving the control socket and the admin port: bounded connections, each attested once, beside
//! the decisions and not among them.
//!
//! Attestation reads `/proc` and may hash a program: it happens on the threads for blocking work,
//! a few at a time. Whoever is slow to send a request's head is let go.

use std::{sync::Arc, time::Duration};

use aegis_core::decision::Reason;
use aegis_sidecar::{Attest as _, Attested};
use anyhow::Context as _;
use axum::{Router, body::Body, extract::ConnectInfo, http::Extensions};
use hyper::{Request, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener, UnixStream},
    sync::Semaphore,
};
use tower::ServiceExt as _;

use super::{Asker, console::Ends, control, health};
use crate::up::daemon::Daemon;

/// How long a client may take to send a request's head, and how long a connection may idle.
pub(super) const HEAD_TIMEOUT: Duration = Duration::from_secs(10);
/// How many callers are attested at once: a burst of connections is no burst of threads.
static ATTESTING: Semaphore = Semaphore::const_new(2);
/// How long to wait when no connection can be accepted, as when descriptors run out.
const PAUSE: Duration = Duration::from_millis(50);

/// Serves the control socket and the admin port; ends only on an error.
pub(in crate::up) fn serve(
    daemon: Arc<Daemon>,
    socket: &UnixListener,
    admin: &TcpListener,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + use<>> {
    use std::os::fd::AsFd as _;
    let socket = std::os::unix::net::UnixListener::from(socket.as_fd().try_clone_to_owned()?);
    let admin = std::net::TcpListener::from(admin.as_fd().try_clone_to_owned()?);
    let (socket, admin) = (UnixListener::from_std(socket)?, TcpListener::from_std(admin)?);
    let (orders, health) = (control(&daemon)?, health(&daemon)?);
    Ok(async move {
        let people = tokio::spawn(serve_control(Arc::clone(&daemon), socket, orders));
        let metrics = tokio::spawn(serve_admin(daemon, admin, health));
        tokio::select! {
            ended = people => ended.context("the control socket has stopped"),
            ended = metrics => ended.context("the admin port has stopped"),
        }
    })
}

async fn serve_control(daemon: Arc<Daemon>, listener: UnixListener, app: Router) {
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "the control socket cannot accept");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // Who the kernel cannot name is nobody, and there is no place for nobodies.
        let Some(uid) = stream.peer_cred().ok().map(|credentials| credentials.uid()) else {
            continue;
        };
        let operator = daemon.operators.includes(Some(uid));
        let Some(pass) = daemon.gates.connections.enter(uid, operator) else {
            daemon.shared.refusals.count("control", Reason::Overloaded);
            continue;
        };
        let (daemon, app) = (Arc::clone(&daemon), app.clone());
        tokio::spawn(async move {
            if let Some((stream, attested)) = attest(daemon, stream).await {
                let asker = ConnectInfo(Asker { uid: Some(uid), attested });
                connection(stream, app, move |about| drop(about.insert(asker.clone()))).await;
            }
            drop(pass);
        });
    }
}

async fn serve_admin(daemon: Arc<Daemon>, listener: TcpListener, app: Router) {
    loop {
        match listener.accept().await {
            Ok((stream, remote)) => {
                let Some(pass) = daemon.gates.admin.enter(0, false) else { continue };
                let Ok(local) = stream.local_addr() else { continue };
                let app = app.clone();
                tokio::spawn(async move {
                    let ends = Ends::new(local, remote);
                    connection(stream, app, move |about| drop(about.insert(ends.clone()))).await;
                    drop(pass);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "the admin port cannot accept");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Asks once per connection who is at the other end.
async fn attest(
    daemon: Arc<Daemon>,
    stream: UnixStream,
) -> Option<(UnixStream, Result<Attested, Reason>)> {
    let asked = attesting(move || {
        let attested = daemon.attest.unix(&stream);
        (stream, attested)
    });
    asked.await
}

/// Looks at a process, a few at a time.
pub(super) async fn attesting<T: Send + 'static>(
    ask: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let _turn = ATTESTING.acquire().await.ok()?;
    tokio::task::spawn_blocking(ask).await.ok()
}

/// `about` puts what is known of the other end beside each request.
async fn connection<S>(stream: S, app: Router, about: impl Fn(&mut Extensions))
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = service_fn(move |mut request: Request<Incoming>| {
        about(request.extensions_mut());
        app.clone().oneshot(request.map(Body::new))
    });
    let served = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .max_headers(64)
        .max_buf_size(64 * 1024)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await;
    if let Err(error) = served {
        tracing::debug!(%error, "a connection of the control socket ended early");
    }
}
