//! What waits for people at sidecars, shown as ApprovalRequests, and the people's answers on their
//! way back.
//!
//! The leader alone does this. A sidecar speaks only about its own cases: an object names who
//! enforces it, and nobody else changes it or hears its answers. How many one agent's sidecars can
//! have is bounded. An answer counts only if the object still asks what the sidecar asked.

mod case;
mod cluster;
mod ending;
mod stream;

use std::{collections::HashMap, sync::Arc};

use aegis_api::approvals::proto::approvals_server::ApprovalsServer;
use aegis_core::AgentId;
use aegis_resources::{
    approval::{ApprovalRequestSpec, ApprovalState, ApprovalStatus},
    kinds::ApprovalRequest,
};
use parking_lot::Mutex;
use tokio::sync::{Notify, broadcast, watch};
use tokio_util::sync::CancellationToken;

use crate::{
    clock,
    object::Stored,
    status::{Finding, conclude},
};

pub use case::{Invalid, spec_of};
pub use cluster::{ApiServer, follow};
pub use stream::Service;

/// An ApprovalRequest as the API server has it.
pub type Request = Stored<ApprovalRequest>;

/// How many requests of one agent may wait at a time.
pub const MAX_OPEN: usize = 128;
/// How many requests of one agent there may be, with those that have ended and are still shown.
pub const MAX_SHOWN: usize = 512;
/// How many changes a slow stream may lag behind before it looks at everything again.
const CHANGES: usize = 1024;

/// Where requests are written.
pub trait Requests: Send + Sync + 'static {
    /// Makes a request, or finds the one of that name.
    fn create(
        &self,
        namespace: &str,
        name: &str,
        spec: ApprovalRequestSpec,
    ) -> impl Future<Output = Result<Request, String>> + Send;

    /// Writes how one stands.
    fn write_status(
        &self,
        request: &Request,
        status: ApprovalStatus,
    ) -> impl Future<Output = Result<(), String>> + Send;

    /// Removes one.
    fn delete(&self, request: &Request) -> impl Future<Output = Result<(), String>> + Send;
}

/// Namespace and name.
type Key = (String, String);

/// The requests of a cluster, and the sidecars that wait for their answers.
pub struct Desk<R>(Arc<Inner<R>>);

struct Inner<R> {
    requests: R,
    known: Mutex<HashMap<Key, Arc<Request>>>,
    changes: broadcast::Sender<Key>,
    listed: watch::Sender<bool>,
    /// One is made at a time, so that bounds are exact.
    making: tokio::sync::Mutex<()>,
    /// Something may end sooner than what is waited for.
    sooner: Notify,
}

impl<R> Clone for Desk<R> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<R> std::fmt::Debug for Desk<R> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Desk").field("requests", &self.0.known.lock().len()).finish_non_exhaustive()
    }
}

fn key_of(request: &Request) -> Key {
    (request.namespace().to_owned(), request.name().to_owned())
}

impl<R: Requests> Desk<R> {
    /// Nothing is known yet, and nobody served, until [`Desk::all_listed`].
    #[must_use]
    pub fn new(requests: R) -> Self {
        Self(Arc::new(Inner {
            requests,
            known: Mutex::default(),
            changes: broadcast::channel(CHANGES).0,
            listed: watch::channel(false).0,
            making: tokio::sync::Mutex::default(),
            sooner: Notify::new(),
        }))
    }

    /// A request is there, or has changed.
    pub fn seen(&self, request: Request) {
        let key = key_of(&request);
        self.0.known.lock().insert(key.clone(), Arc::new(request));
        let _ = self.0.changes.send(key);
        self.0.sooner.notify_one();
    }

    /// A request is gone.
    pub fn gone(&self, request: &Request) {
        self.0.known.lock().remove(&key_of(request));
    }

    /// These are all that there are.
    pub fn all_listed(&self, requests: Vec<Request>) {
        let mut all = HashMap::new();
        for request in requests {
            all.insert(key_of(&request), Arc::new(request));
        }
        let keys: Vec<Key> = all.keys().cloned().collect();
        *self.0.known.lock() = all;
        for key in keys {
            let _ = self.0.changes.send(key);
        }
        self.0.listed.send_replace(true);
        self.0.sooner.notify_one();
    }

    /// As a gRPC service, until `stop`.
    #[must_use]
    pub fn service(&self, stop: CancellationToken) -> ApprovalsServer<Service<R>> {
        ApprovalsServer::new(Service::new(self.clone(), stop))
    }

    fn find(&self, key: &Key) -> Option<Arc<Request>> {
        self.0.known.lock().get(key).cloned()
    }

    /// The request of a case of `peer`, made if it is not there.
    async fn ensure(
        &self,
        peer: &AgentId,
        key: &Key,
        spec: &ApprovalRequestSpec,
    ) -> Result<Result<Arc<Request>, Invalid>, String> {
        let _making = self.0.making.lock().await;
        let request = match self.find(key) {
            Some(known) => known,
            None => {
                if let Err(full) = self.room(peer) {
                    return Ok(Err(full));
                }
                let made = self.0.requests.create(&key.0, &key.1, spec.clone()).await?;
                self.seen(made.clone());
                Arc::new(made)
            }
        };
        Ok(if asks(&request, spec) { Ok(request) } else { Err(Invalid::Another) })
    }

    fn room(&self, peer: &AgentId) -> Result<(), Invalid> {
        let (mut shown, mut open) = (0, 0);
        for request in self.0.known.lock().values() {
            if request.spec.as_ref().is_ok_and(|spec| spec.0.enforced_by == *peer) {
                shown += 1;
                open += usize::from(state_of(request) == ApprovalState::Pending);
            }
        }
        if open >= MAX_OPEN || shown >= MAX_SHOWN { Err(Invalid::TooMany) } else { Ok(()) }
    }

    /// Writes that a request stands so, unless it does already.
    async fn conclude(&self, request: &Request, state: ApprovalState) -> Result<(), String> {
        if request.status.as_ref().and_then(|status| status.state) == Some(state) {
            return Ok(());
        }
        let mut status = request.status.clone().unwrap_or_default();
        status.state = Some(state);
        conclude(&mut status.common, request.generation(), vec![finding(state)], clock::now());
        self.0.requests.write_status(request, status).await
    }
}

/// Whether a request asks exactly this, of people and for whoever enforces it.
fn asks(request: &Request, asked: &ApprovalRequestSpec) -> bool {
    request.spec.as_ref().is_ok_and(|spec| spec.0.asked() == *asked)
}

/// How a request stands; one without a status waits.
fn state_of(request: &Request) -> ApprovalState {
    let told = request.status.as_ref().and_then(|status| status.state);
    told.unwrap_or(ApprovalState::Pending)
}

fn finding(state: ApprovalState) -> Finding {
    const KIND: &str = "Approved";
    match state {
        ApprovalState::Pending => Finding::no(KIND, "Pending", "it waits for people to answer"),
        ApprovalState::Approved => {
            Finding::yes(KIND, "Approved", "enough people agreed; the action may happen once")
        }
        ApprovalState::Used => Finding::yes(KIND, "Used", "the action has happened"),
        ApprovalState::Denied => Finding::no(KIND, "Denied", "somebody refused it"),
        ApprovalState::Expired => Finding::no(KIND, "Expired", "it was not used in time"),
    }
}
