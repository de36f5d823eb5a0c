//! A sidecar as far as the operator sees one: it follows, and tells the test what it hears.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use aegis_api::distribution::{Distributed, Followed, Statement, ToldTrust, Verifier, follow};
use aegis_identity::{Revocations, source::SvidSource};
use aegis_mesh::channel;
use aegis_operator::clock;
use tokio::{
    sync::{mpsc, watch},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

pub(crate) const OPERATOR: &str = "spiffe://acme.example/aegis/operator";
pub(crate) const SIDECAR: &str = "spiffe://acme.example/ns/shop/sa/bot/agent/buyer";
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

pub(crate) fn nothing_revoked() -> watch::Receiver<Arc<Revocations>> {
    // The sender lives as long as the test.
    Box::leak(Box::new(watch::channel(Arc::default()).0)).subscribe()
}

/// A channel to the operator that shows the source's SVID, as sidecars have it.
pub(crate) fn to(address: SocketAddr, source: &Arc<SvidSource>) -> Channel {
    channel(&address.to_string(), "operator", source, nothing_revoked()).unwrap()
}

/// What a sidecar was told.
pub(crate) enum Heard {
    State(Box<Distributed>),
    Confirmed,
    Trust(ToldTrust),
    Lost(String),
}

struct Ear(mpsc::UnboundedSender<Heard>);

impl Followed for Ear {
    fn put(&mut self, statement: &Statement) -> Result<(), String> {
        let heard = match statement {
            Statement::State(state) => Heard::State(state.clone()),
            Statement::Confirmation(_) => Heard::Confirmed,
            Statement::Trust(told) => Heard::Trust(told.clone()),
        };
        self.0.send(heard).map_err(|error| error.to_string())
    }

    fn lost(&mut self, why: &str) {
        let _ = self.0.send(Heard::Lost(why.to_owned()));
    }
}

pub(crate) struct Sidecar {
    heard: mpsc::UnboundedReceiver<Heard>,
    stop: CancellationToken,
    following: JoinHandle<Verifier>,
}

impl Sidecar {
    pub(crate) fn follow(channel: Channel, verifier: Verifier) -> Self {
        let (tell, heard) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        let following = tokio::spawn(async move {
            follow(channel, verifier, clock::now, &mut Ear(tell), stopping).await
        });
        Self { heard, stop, following }
    }

    pub(crate) async fn next(&mut self) -> Heard {
        tokio::time::timeout(PATIENCE, self.heard.recv()).await.unwrap().unwrap()
    }

    /// Waits for what is asked for, whatever comes before: confirmations never end.
    async fn wait<T>(&mut self, what: &str, mut found: impl FnMut(Heard) -> Option<T>) -> T {
        let waiting = async {
            loop {
                let heard = self.heard.recv().await.unwrap();
                if let Some(found) = found(heard) {
                    return found;
                }
            }
        };
        let waited = tokio::time::timeout(PATIENCE, waiting).await;
        assert!(waited.is_ok(), "{what} did not come");
        waited.unwrap()
    }

    /// The next state.
    pub(crate) async fn state(&mut self) -> (u64, u16) {
        let state = self.until(|_| true).await;
        (state.serial, state.thresholds.t_min.get())
    }

    /// A state of which this holds.
    pub(crate) async fn until(&mut self, holds: impl Fn(&Distributed) -> bool) -> Distributed {
        let fits = |heard| match heard {
            Heard::State(state) => holds(&state).then_some(*state),
            _ => None,
        };
        self.wait("the state", fits).await
    }

    /// The next that it is told of agents' trust.
    pub(crate) async fn trust(&mut self) -> ToldTrust {
        let trust = |heard| match heard {
            Heard::Trust(told) => Some(told),
            _ => None,
        };
        self.wait("the trust in agents", trust).await
    }

    /// The next time that the operator is lost, and why.
    pub(crate) async fn lost(&mut self) -> String {
        let lost = |heard| match heard {
            Heard::Lost(why) => Some(why),
            _ => None,
        };
        self.wait("the end of the stream", lost).await
    }

    pub(crate) async fn end(self) -> Verifier {
        self.stop.cancel();
        self.following.await.unwrap()
    }
}
