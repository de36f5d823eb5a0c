//! One sidecar's stream: its cases are shown, and the answers to them are told.
//!
//! Whatever the API server does not take ends the stream: the sidecar connects again and tells
//! everything anew.

use std::{collections::HashMap, pin::Pin};

use aegis_api::approvals::proto::{
    Answer, Case, Refused, Reply, approvals_server::Approvals, reply::What,
};
use aegis_core::AgentId;
use aegis_identity::PeerIdentity;
use aegis_resources::approval::{AnswerVerdict, ApprovalRequestSpec, ApprovalState};
use futures::Stream;
use tokio::sync::{broadcast::error::RecvError, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Response, Status, Streaming};

use super::{
    Desk, Invalid, Key, Requests, asks,
    case::{spec_of, state_of},
};
use crate::clock;

/// How many replies may be on their way.
const WINDOW: usize = 64;

/// The gRPC service.
#[derive(Debug)]
pub struct Service<R> {
    desk: Desk<R>,
    stop: CancellationToken,
}

impl<R> Service<R> {
    pub(super) const fn new(desk: Desk<R>, stop: CancellationToken) -> Self {
        Self { desk, stop }
    }
}

#[tonic::async_trait]
impl<R: Requests> Approvals for Service<R> {
    type AskStream = Pin<Box<dyn Stream<Item = Result<Reply, Status>> + Send>>;

    async fn ask(
        &self,
        request: tonic::Request<Streaming<Case>>,
    ) -> Result<Response<Self::AskStream>, Status> {
        let peer = request.extensions().get::<PeerIdentity>().map(|peer| peer.id.clone());
        let peer = peer.and_then(|id| AgentId::try_from(id).ok());
        let peer = peer.ok_or_else(|| Status::permission_denied("only agents' sidecars ask"))?;
        if peer.namespace().is_none() {
            return Err(Status::permission_denied(Invalid::Namespace.to_string()));
        }
        if !*self.desk.0.listed.borrow() {
            return Err(Status::unavailable("this operator has just started; try again"));
        }
        let (tell, told) = mpsc::channel(WINDOW);
        let told_by = Attended {
            desk: self.desk.clone(),
            peer,
            open: HashMap::new(),
            tell,
            stop: self.stop.clone(),
        };
        tokio::spawn(told_by.attend(request.into_inner()));
        Ok(Response::new(Box::pin(ReceiverStream::new(told))))
    }
}

/// A case that the sidecar waits for.
struct Open {
    asked: ApprovalRequestSpec,
    /// How many answers it has been told.
    told: usize,
}

/// A sidecar that is attended to.
struct Attended<R> {
    desk: Desk<R>,
    peer: AgentId,
    open: HashMap<String, Open>,
    tell: mpsc::Sender<Result<Reply, Status>>,
    stop: CancellationToken,
}

impl<R: Requests> Attended<R> {
    async fn attend(mut self, mut cases: Streaming<Case>) {
        let mut changes = self.desk.0.changes.subscribe();
        let (stop, tell) = (self.stop.clone(), self.tell.clone());
        loop {
            let attended = tokio::select! {
                () = stop.cancelled() => return,
                () = tell.closed() => return,
                case = cases.message() => match case {
                    Ok(Some(case)) => self.told(case).await,
                    Ok(None) | Err(_) => return,
                },
                changed = changes.recv() => match changed {
                    Ok((namespace, name)) if Some(&*namespace) == self.peer.namespace() => {
                        self.answers(&name).await
                    }
                    Ok(_) => Ok(()),
                    Err(RecvError::Lagged(_)) => self.all_answers().await,
                    Err(RecvError::Closed) => return,
                },
            };
            if let Err(status) = attended {
                tracing::warn!(peer = %self.peer, %status, "a sidecar's cases cannot be attended to");
                let _ = tell.send(Err(status)).await;
                return;
            }
        }
    }

    fn key(&self, id: &str) -> Key {
        (self.peer.namespace().unwrap_or_default().to_owned(), id.to_owned())
    }

    /// The sidecar tells of a case.
    async fn told(&mut self, case: Case) -> Result<(), Status> {
        let id = case.id.clone();
        let read = spec_of(&case, &self.peer, clock::now());
        let (asked, state) = match read.and_then(|spec| Ok((spec, state_of(&case)?))) {
            Ok(read) => read,
            Err(invalid) => return self.refuse(id, invalid).await,
        };
        let key = self.key(&id);
        let waits = matches!(state, ApprovalState::Pending | ApprovalState::Approved);
        let request = if waits {
            match self.desk.ensure(&self.peer, &key, &asked).await.map_err(Status::unavailable)? {
                Ok(request) => request,
                Err(invalid) => return self.refuse(id, invalid).await,
            }
        } else {
            self.open.remove(&id);
            // What has ended is not shown for the first time.
            match self.desk.find(&key) {
                Some(request) if asks(&request, &asked) => request,
                _ => return Ok(()),
            }
        };
        self.desk.conclude(&request, state).await.map_err(Status::unavailable)?;
        if waits {
            self.open.entry(id.clone()).or_insert(Open { asked, told: 0 });
            self.answers(&id).await?;
        }
        Ok(())
    }

    /// Nobody is shown this; so it expires, which denies.
    async fn refuse(&self, id: String, invalid: Invalid) -> Result<(), Status> {
        tracing::warn!(peer = %self.peer, id, %invalid, "a sidecar's case is shown to nobody");
        self.reply(What::Refused(Refused { id, why: invalid.to_string() })).await
    }

    async fn reply(&self, what: What) -> Result<(), Status> {
        let reply = Reply { what: Some(what) };
        self.tell.send(Ok(reply)).await.map_err(|_| Status::cancelled("the sidecar has gone"))
    }

    async fn all_answers(&mut self) -> Result<(), Status> {
        let ids: Vec<String> = self.open.keys().cloned().collect();
        for id in ids {
            self.answers(&id).await?;
        }
        Ok(())
    }

    /// Tells what people have answered since it was told last.
    async fn answers(&mut self, id: &str) -> Result<(), Status> {
        let Some(open) = self.open.get(id) else { return Ok(()) };
        let Some(request) = self.desk.find(&self.key(id)) else { return Ok(()) };
        let Ok(spec) = &request.spec else { return Ok(()) };
        // People must have seen exactly what the sidecar asks.
        if !asks(&request, &open.asked) {
            return Ok(());
        }
        let told = open.told;
        for answer in spec.0.answers.iter().skip(told) {
            let answer = Answer {
                id: id.to_owned(),
                approver: answer.by.clone(),
                approve: answer.verdict == AnswerVerdict::Approve,
            };
            self.reply(What::Answer(answer)).await?;
        }
        if let Some(open) = self.open.get_mut(id) {
            open.told = told.max(spec.0.answers.len());
        }
        Ok(())
    }
}
