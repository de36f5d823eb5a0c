//! `aegis.trust.v1.Trust`: tells the operator what agents are trusted, first all, then what changes.
//!
//! Nobody else is told: who is trusted how much is no agent's business. The peer's SVID says who asks.
//! The operator also tells by what thresholds evidence is weighed, and nobody else does.

use std::{pin::Pin, time::Duration};

use aegis_api::trust::{
    MAX_AGENTS,
    proto::{
        Changes, FollowRequest, Posterior, Weighed, Weighing,
        trust_server::{Trust, TrustServer},
    },
};
use aegis_core::SpiffeId;
use aegis_identity::PeerIdentity;
use tokio::sync::mpsc;
use tokio_stream::{Stream, wrappers::ReceiverStream};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{Trusted, scales::Scales};

/// Changes within this time are told at once.
const GATHER: Duration = Duration::from_millis(200);

/// The service. Each request has to carry its peer's [`PeerIdentity`].
#[derive(Clone, Debug)]
pub struct Feed {
    trusted: Trusted,
    scales: Scales,
    /// Who is told, and tells by what it is weighed.
    operator: SpiffeId,
    stop: CancellationToken,
}

impl Feed {
    /// Tells `operator` until `stop`.
    #[must_use]
    pub const fn new(
        trusted: Trusted,
        scales: Scales,
        operator: SpiffeId,
        stop: CancellationToken,
    ) -> Self {
        Self { trusted, scales, operator, stop }
    }

    /// As a gRPC service.
    #[must_use]
    pub fn into_service(self) -> TrustServer<Self> {
        TrustServer::new(self)
    }

    /// What is told somebody who is not the operator.
    fn refusal<T>(&self, request: &Request<T>) -> Option<Status> {
        let Some(peer) = request.extensions().get::<PeerIdentity>() else {
            return Some(Status::unauthenticated("nobody has shown an SVID"));
        };
        if peer.id == self.operator {
            return None;
        }
        tracing::warn!(peer = %peer.id, "trust is between the ledger and the operator alone");
        Some(Status::permission_denied("only the operator is told, and tells"))
    }

    async fn tell(self, send: mpsc::Sender<Result<Changes, Status>>) {
        let mut moved = self.trusted.0.moved.subscribe();
        let mut told = 0;
        loop {
            // Half a history is another trust: nothing is told before all is folded.
            let news = async {
                let told_first = moved.wait_for(Option::is_some).await.is_ok();
                moved.mark_unchanged();
                told_first
            };
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = send.closed() => return,
                alive = news => if !alive { return },
            }
            let (as_of, agents) = self.trusted.since(told);
            let mut parts = agents.chunks(MAX_AGENTS).peekable();
            loop {
                let part = parts.next().unwrap_or_default();
                let agents = part.iter().map(|(agent, trust)| Posterior::of(agent, trust));
                let more = parts.peek().is_some();
                let changes = Changes { as_of, agents: agents.collect(), more };
                if send.send(Ok(changes)).await.is_err() {
                    return;
                }
                if !more {
                    break;
                }
            }
            told = as_of;
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = send.closed() => return,
                changed = moved.changed() => if changed.is_err() { return },
            }
            tokio::time::sleep(GATHER).await;
        }
    }
}

#[tonic::async_trait]
impl Trust for Feed {
    type FollowStream = Pin<Box<dyn Stream<Item = Result<Changes, Status>> + Send>>;

    async fn follow(
        &self,
        request: Request<FollowRequest>,
    ) -> Result<Response<Self::FollowStream>, Status> {
        if let Some(refusal) = self.refusal(&request) {
            return Err(refusal);
        }
        let (send, changes) = mpsc::channel(4);
        tokio::spawn(self.clone().tell(send));
        Ok(Response::new(Box::pin(ReceiverStream::new(changes))))
    }

    async fn weigh(&self, request: Request<Weighing>) -> Result<Response<Weighed>, Status> {
        if let Some(refusal) = self.refusal(&request) {
            return Err(refusal);
        }
        let told = request.into_inner().read();
        let told = told.map_err(|error| Status::invalid_argument(error.to_string()))?;
        match self.scales.weigh(told).await {
            Ok(()) => Ok(Response::new(Weighed {})),
            Err(error) => {
                tracing::error!(%error, "thresholds could not be recorded");
                Err(Status::unavailable("the ledger cannot write now; nothing is in force"))
            }
        }
    }
}
