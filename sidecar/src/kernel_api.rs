//! The kernel API: code that is not on the wire asks whether it may act, and obeys.
//!
//! An evaluation is an enforcement: whoever asks promises to act on `decision: true` alone, so every
//! question is decided, recorded and, if allowed, waits for its one outcome. Who asks is who the
//! operating system says is at the other end of the connection; what a body says of its subject is
//! compared with that and never believed. Served on a unix socket and, where it is asked for, on
//! loopback with a token beside the attestation, by the daemon of one machine or a pod's sidecar.
//!
//! `request` reads one, bounded; `evaluate` decides; `outcomes` keeps what is
//! allowed and not concluded; [`Feed`] tells agents what is recorded about them. `preview` answers what
//! would be decided, without any effect, and who the caller is.

mod evaluate;
mod events;
mod outcomes;
mod preview;
mod request;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use aegis_core::decision::Reason;
use aegis_mesh::limits::{Held, Hold};
use tokio::{
    net::{TcpListener, UnixListener, UnixStream},
    sync::Semaphore,
    task::JoinSet,
};
use tokio_util::task::TaskTracker;

use crate::{attest::Attested, route::Shared};

pub use events::{Feed, Told, feed};
pub use request::Token;

use outcomes::OpenDecisions;
use preview::Previews;

/// The name under which strangers are counted, and decisions: what a caller names is no label.
const NAME: &str = "kernel";
/// Connections of one user at a time.
const OF_ONE: usize = 256;
/// Connections of all users at a time.
const OF_ALL: usize = 1_024;
/// How many callers are attested at once: a burst of connections is no burst of threads.
static ATTESTING: Semaphore = Semaphore::const_new(2);
/// How long to wait when no connection can be accepted, as when descriptors run out.
const PAUSE: Duration = Duration::from_millis(50);

/// Whether an agent's own user could undo here what is decided.
pub type IsAdvisory = Box<dyn Fn() -> bool + Send + Sync>;

/// The kernel API of one decision domain.
pub struct KernelApi {
    shared: Arc<Shared>,
    feed: Feed,
    advisory: IsAdvisory,
    previews: Previews,
    open: OpenDecisions,
    held: Held<u32>,
}

/// Where it listens.
#[derive(Debug)]
pub enum Door {
    /// On a unix socket.
    Unix(UnixListener),
    /// On loopback, for whoever has the token too.
    Loopback(TcpListener, Token),
}

/// One connection: who is at the other end, and what it came through.
struct Session {
    api: Arc<KernelApi>,
    attested: Result<Attested, Reason>,
    number: u64,
    /// The port and the token, on loopback.
    loopback: Option<(u16, Token)>,
}

impl std::fmt::Debug for KernelApi {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelApi").finish_non_exhaustive()
    }
}

impl KernelApi {
    /// One that decides by `shared`'s kernel, tells agents what `feed` has seen, and says to callers
    /// whether its decisions are `advisory`.
    #[must_use]
    pub fn new(shared: Arc<Shared>, feed: Feed, advisory: IsAdvisory) -> Arc<Self> {
        let (open, held) = (OpenDecisions::default(), Held::new(OF_ONE));
        Arc::new(Self { shared, feed, advisory, previews: Previews::default(), open, held })
    }

    /// Serves until the process drains; returns when every connection has ended, and whatever was
    /// allowed and not concluded has `unknown` for its outcome.
    pub async fn serve(self: Arc<Self>, doors: Vec<Door>) {
        let mut listening = JoinSet::new();
        for door in doors {
            let api = Arc::clone(&self);
            match door {
                Door::Unix(listener) => listening.spawn(api.serve_unix(listener)),
                Door::Loopback(listener, token) => listening.spawn(api.serve_tcp(listener, token)),
            };
        }
        let kernel = &self.shared.kernel;
        tokio::select! {
            () = async { while listening.join_next().await.is_some() {} } => {}
            never = self.open.keep_concluding(kernel) => match never {},
        }
        self.open.conclude_all(kernel).await;
    }

    async fn serve_unix(self: Arc<Self>, listener: UnixListener) {
        let connections = TaskTracker::new();
        loop {
            let accepted = tokio::select! {
                accepted = listener.accept() => accepted,
                () = self.shared.drain.cancelled() => break,
            };
            let stream = match accepted {
                Ok((stream, _)) => stream,
                Err(error) => {
                    tracing::warn!(%error, "the kernel API cannot accept");
                    tokio::time::sleep(PAUSE).await;
                    continue;
                }
            };
            // Who the operating system cannot name is nobody, and there is no place for nobodies.
            let Some(uid) = stream.peer_cred().ok().map(|credentials| credentials.uid()) else {
                continue;
            };
            match self.held.take(uid).filter(|_| connections.len() < OF_ALL) {
                Some(hold) => drop(connections.spawn(Arc::clone(&self).unix(stream, hold))),
                None => self.shared.refusals.count(NAME, Reason::Overloaded),
            }
        }
        drop(listener);
        connections.close();
        connections.wait().await;
    }

    async fn unix(self: Arc<Self>, stream: UnixStream, hold: Hold<u32>) {
        let shared = Arc::clone(&self.shared);
        let asked = attesting(move || {
            let attested = shared.attest.unix(&stream);
            (stream, attested)
        });
        if let Some((stream, attested)) = asked.await {
            self.session(attested, None).run(stream).await;
        }
        drop(hold);
    }

    async fn serve_tcp(self: Arc<Self>, listener: TcpListener, token: Token) {
        let full = || self.shared.refusals.count(NAME, Reason::Overloaded);
        let serve = |stream: tokio::net::TcpStream, remote: SocketAddr| {
            let (api, token) = (Arc::clone(&self), token.clone());
            async move {
                let Ok(local) = stream.local_addr() else { return };
                let shared = Arc::clone(&api.shared);
                let asked = attesting(move || shared.attest.tcp(local, remote)).await;
                let attested = asked.unwrap_or(Err(Reason::IdentityMissing));
                api.session(attested, Some((local.port(), token))).run(stream).await;
            }
        };
        crate::accept::accept(listener, &self.shared.drain, OF_ONE, full, serve).await;
    }

    fn session(
        self: Arc<Self>,
        attested: Result<Attested, Reason>,
        loopback: Option<(u16, Token)>,
    ) -> Session {
        let number = self.open.next_connection();
        Session { api: self, attested, number, loopback }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        self.api.open.disconnected(self.number);
    }
}

/// Attestation reads `/proc` and may hash a program: it happens on the threads for blocking work, a
/// few at a time, once per connection.
async fn attesting<T: Send + 'static>(ask: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let _turn = ATTESTING.acquire().await.ok()?;
    tokio::task::spawn_blocking(ask).await.ok()
}
