//! `aegis.authority.v1.Authority`: issues to whom a token names, and tells what to believe.
//!
//! Callers learn that they are refused and not why; the log says why, without the token.

use std::{pin::Pin, sync::Arc, time::Duration};

use aegis_api::authority::proto::{
    FollowTrustRequest, IssueJwtRequest, IssueRequest, Issued, IssuedJwt, Trust,
    authority_server::{Authority, AuthorityServer},
};
use aegis_core::SpiffeId;
use futures::Stream;
use rustls::pki_types::CertificateDer;
use tokio::sync::{Semaphore, SemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status};

use super::{Attested, Metrics, Refused, TokenAttestor};
use crate::{CaError, IdentityManager, IssueError, issue::MAX_CSR_BYTES};

/// The largest request: a token, two requests for certificates.
const MAX_MESSAGE_BYTES: usize = 64 * 1024;
/// How many requests are worked on, or wait for the API server, at a time.
const MAX_REQUESTS: usize = 1024;
/// How many streams are served.
const MAX_FOLLOWERS: usize = 20_000;
/// The most audiences of one JWT-SVID, and the longest.
const MAX_AUDIENCES: (usize, usize) = (8, 255);
/// How long a request may take, waiting included.
const DEADLINE: Duration = Duration::from_secs(5);

/// The service.
pub struct AuthorityService {
    manager: IdentityManager,
    attestor: Arc<TokenAttestor>,
    metrics: Metrics,
    requests: Semaphore,
    followers: Arc<Semaphore>,
    stop: CancellationToken,
}

impl std::fmt::Debug for AuthorityService {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AuthorityService").field("manager", &self.manager).finish_non_exhaustive()
    }
}

impl AuthorityService {
    /// Issues from `manager` to those whom `attestor` recognises.
    #[must_use]
    pub fn new(
        manager: IdentityManager,
        attestor: Arc<TokenAttestor>,
        metrics: Metrics,
        stop: CancellationToken,
    ) -> Self {
        Self {
            manager,
            attestor,
            metrics,
            requests: Semaphore::new(MAX_REQUESTS),
            followers: Arc::new(Semaphore::new(MAX_FOLLOWERS)),
            stop,
        }
    }

    /// As a gRPC service.
    #[must_use]
    pub fn into_service(self) -> AuthorityServer<Self> {
        AuthorityServer::new(self).max_decoding_message_size(MAX_MESSAGE_BYTES)
    }

    fn turn(&self) -> Result<SemaphorePermit<'_>, Status> {
        self.requests.try_acquire().map_err(|_| {
            self.metrics.refuse("busy");
            Status::resource_exhausted("the CA has too much to do; try again in a second")
        })
    }

    async fn within<T>(
        &self,
        work: impl Future<Output = Result<T, Status>> + Send,
    ) -> Result<T, Status> {
        tokio::time::timeout(DEADLINE, work).await.unwrap_or_else(|_| {
            self.metrics.refuse("deadline");
            Err(Status::deadline_exceeded("the CA did not come to it in time; try again"))
        })
    }

    async fn attest(&self, token: &str) -> Result<Attested, Status> {
        self.attestor.attest(token).await.map_err(|refused| {
            self.metrics.refuse(refused.reason());
            tracing::warn!(reason = refused.reason(), %refused, "nobody is recognised by a token");
            match refused {
                Refused::Lookup(_) => Status::unavailable("the API server does not answer"),
                Refused::Rate(_) => Status::resource_exhausted("this pod asks too often"),
                Refused::Malformed | Refused::Invalid(_) | Refused::Audience => {
                    Status::unauthenticated("the token is not accepted")
                }
                _ => Status::permission_denied(
                    "there is no identity for this pod; the CA's log says why",
                ),
            }
        })
    }

    fn refused(&self, error: &CaError) -> Status {
        let (reason, status) = match error {
            CaError::Issue(IssueError::Request(cause)) => {
                ("certificate_request", Status::invalid_argument(cause.clone()))
            }
            CaError::Issue(IssueError::Jwt(cause)) => {
                ("jwt_request", Status::invalid_argument(cause.to_string()))
            }
            CaError::Revoked(_) => {
                ("revoked", Status::permission_denied("the identity is revoked"))
            }
            CaError::Unrecorded(_) => {
                ("unrecorded", Status::unavailable("nothing can be recorded, so nothing is issued"))
            }
            _ => ("failed", Status::internal("the CA cannot sign; its log says why")),
        };
        self.metrics.refuse(reason);
        tracing::warn!(reason, %error, "nothing was issued");
        status
    }

    async fn sign(&self, request: IssueRequest) -> Result<Issued, Status> {
        if request.request.len().max(request.workload_request.len()) > MAX_CSR_BYTES {
            self.metrics.refuse("certificate_request");
            return Err(Status::invalid_argument("a certificate request has at most 8 KiB"));
        }
        let attested = self.attest(&request.token).await?;
        let issued = match attested {
            Attested::Agent(agent) => self.sign_agent(&agent, &request).await?,
            Attested::Component(_) if !request.workload_request.is_empty() => {
                self.metrics.refuse("certificate_request");
                let told = "a component has no application; leave `workload_request` out";
                return Err(Status::invalid_argument(told));
            }
            Attested::Component(name) => {
                let chain = self.manager.sign_component(&name, &request.request).await;
                let chain = chain.map_err(|error| self.refused(&error))?;
                self.metrics.issued.with_label_values(&["x509"]).inc();
                (chain, Vec::new())
            }
        };
        let der =
            |chain: Vec<CertificateDer<'static>>| chain.iter().map(|one| one.to_vec()).collect();
        let trust = Some(self.trust()?);
        Ok(Issued { chain: der(issued.0), workload_chain: der(issued.1), trust })
    }

    async fn sign_agent(
        &self,
        agent: &crate::Registration,
        request: &IssueRequest,
    ) -> Result<(Vec<CertificateDer<'static>>, Vec<CertificateDer<'static>>), Status> {
        let sign = async |id: &SpiffeId, request: &[u8]| {
            let signed = self.manager.sign_registered(id, agent, request).await;
            signed.inspect(|_| self.metrics.issued.with_label_values(&["x509"]).inc())
        };
        let chain = sign(agent.id.spiffe_id(), &request.request).await;
        let chain = chain.map_err(|error| self.refused(&error))?;
        if request.workload_request.is_empty() {
            return Ok((chain, Vec::new()));
        }
        let workload = sign(&agent.id.workload(), &request.workload_request).await;
        Ok((chain, workload.map_err(|error| self.refused(&error))?))
    }

    fn trust(&self) -> Result<Trust, Status> {
        trust(&self.manager)
    }
}

/// What is to be believed now.
fn trust(manager: &IdentityManager) -> Result<Trust, Status> {
    let bundle = manager.bundle().to_jwks().map_err(|error| {
        tracing::error!(%error, "the bundle cannot be written");
        Status::internal("the bundle cannot be written")
    })?;
    let revocations = manager.revocations();
    let revocations = revocations.borrow();
    // The wire has the bytes of a serial number; hex digits of it are what Aegis made itself.
    let bytes = |serial: &aegis_identity::Serial| hex::decode(serial.as_str()).unwrap_or_default();
    Ok(Trust {
        bundle,
        revoked_serials: revocations.serials.iter().map(bytes).collect(),
        revoked_ids: revocations.ids.iter().map(ToString::to_string).collect(),
    })
}

#[tonic::async_trait]
impl Authority for AuthorityService {
    type FollowTrustStream = Pin<Box<dyn Stream<Item = Result<Trust, Status>> + Send>>;

    async fn issue(&self, request: Request<IssueRequest>) -> Result<Response<Issued>, Status> {
        let _turn = self.turn()?;
        self.within(self.sign(request.into_inner())).await.map(Response::new)
    }

    async fn issue_jwt(
        &self,
        request: Request<IssueJwtRequest>,
    ) -> Result<Response<IssuedJwt>, Status> {
        let _turn = self.turn()?;
        let IssueJwtRequest { token, audience } = request.into_inner();
        let (most, longest) = MAX_AUDIENCES;
        if audience.is_empty()
            || audience.len() > most
            || audience.iter().any(|a| a.len() > longest)
        {
            self.metrics.refuse("jwt_request");
            return Err(Status::invalid_argument(
                "a JWT-SVID has 1 to 8 audiences of up to 255 bytes",
            ));
        }
        let issuing = async {
            let Attested::Agent(agent) = self.attest(&token).await? else {
                self.metrics.refuse("jwt_request");
                return Err(Status::permission_denied("a component has no application"));
            };
            let issued = self.manager.issue_jwt(&agent, &audience).await;
            issued.map_err(|error| self.refused(&error))
        };
        let svid = self.within(issuing).await?;
        self.metrics.issued.with_label_values(&["jwt"]).inc();
        Ok(Response::new(IssuedJwt { token: svid.token, expires_at: svid.expires.as_micros() }))
    }

    async fn follow_trust(
        &self,
        request: Request<FollowTrustRequest>,
    ) -> Result<Response<Self::FollowTrustStream>, Status> {
        let permit = Arc::clone(&self.followers).try_acquire_owned().map_err(|_| {
            self.metrics.refuse("busy");
            Status::resource_exhausted("the CA has too many followers; try again later")
        })?;
        let turn = self.turn()?;
        self.within(self.attest(&request.into_inner().token)).await?;
        drop(turn);
        let (send, told) = mpsc::channel(1);
        let (manager, metrics, stop) =
            (self.manager.clone(), self.metrics.clone(), self.stop.clone());
        tokio::spawn(async move {
            metrics.followers.inc();
            tell(manager, send, stop).await;
            metrics.followers.dec();
            drop(permit);
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(told))))
    }
}

/// Tells one follower what to believe, now and after every change.
async fn tell(
    manager: IdentityManager,
    send: mpsc::Sender<Result<Trust, Status>>,
    stop: CancellationToken,
) {
    let (mut issuing, mut revocations) = (manager.watch_issuing(), manager.revocations());
    loop {
        // Marked as seen before it is read: a change in between is told again.
        issuing.mark_unchanged();
        revocations.mark_unchanged();
        let told = trust(&manager);
        let failed = told.is_err();
        if send.send(told).await.is_err() || failed {
            return;
        }
        let open = tokio::select! {
            () = stop.cancelled() => false,
            () = send.closed() => false,
            changed = issuing.changed() => changed.is_ok(),
            changed = revocations.changed() => changed.is_ok(),
        };
        if !open {
            return;
        }
    }
}
