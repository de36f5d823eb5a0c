//! The operator's own SVID: got as soon as the CA can be had, renewed, and got anew from a CA that
//! has lost its keys and started over.

use std::{collections::BTreeSet, path::PathBuf, sync::Arc, time::Duration};

use aegis_core::{AgentId, TrustDomain};
use aegis_identity::{
    SvidSource,
    source::{SourceError, random_jitter},
    system_clock,
};
use aegis_mesh::{Authority, AuthorityConfig, AuthorityError};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{Mesh, Revoked, Roots};
use crate::metrics::Metrics;

/// The shortest and the longest wait after a failure.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(30));

/// Where the CA is, and how it knows the operator.
#[derive(Clone, Debug)]
pub struct MeshConfig {
    /// The trust domain that the CA issues for.
    pub trust_domain: TrustDomain,
    /// The CA: `host:port`.
    pub ca: String,
    /// The file with the operator's token.
    pub token: PathBuf,
    /// How long the CA may be away before other roots in the ConfigMap mean that it is another CA.
    pub patience: Duration,
}

/// Somebody in the mesh.
#[derive(Clone, Debug)]
pub struct Member {
    /// The CA, as this operator sees it.
    pub authority: Authority,
    /// This operator's SVID.
    pub source: Arc<SvidSource>,
}

/// Why the operator has no SVID yet.
#[derive(Debug, thiserror::Error)]
pub enum JoinError {
    /// The CA cannot be talked to.
    #[error(transparent)]
    Authority(#[from] AuthorityError),
    /// It gives no SVID.
    #[error(transparent)]
    Svid(#[from] SourceError),
}

/// Keeps the operator in the mesh.
#[derive(Debug)]
pub struct Joining {
    config: MeshConfig,
    roots: watch::Receiver<Option<Arc<Roots>>>,
    member: watch::Sender<Option<Member>>,
    revoked: watch::Sender<Revoked>,
    metrics: Metrics,
}

impl Joining {
    /// By the CA that these roots vouch for, and what the rest of the operator sees of it.
    #[must_use]
    pub fn new(
        config: MeshConfig,
        roots: watch::Receiver<Option<Arc<Roots>>>,
        metrics: Metrics,
    ) -> (Self, Mesh) {
        let ((member, members), (revoked, revocations)) =
            (watch::channel(None), watch::channel(None));
        let mesh = Mesh { roots: roots.clone(), member: members, revoked: revocations };
        (Self { config, roots, member, revoked, metrics }, mesh)
    }

    /// Gets an SVID and keeps it, until `stop`.
    pub async fn keep(mut self, stop: CancellationToken) {
        let (shortest, longest) = BACKOFF;
        let mut wait = shortest;
        let followed = self.metrics.mesh.with_label_values(&["ca"]);
        followed.set(0);
        loop {
            let joined = tokio::select! {
                () = stop.cancelled() => return,
                joined = self.join() => joined,
            };
            match joined {
                Ok(Some(member)) => {
                    wait = shortest;
                    tracing::info!("the operator has its SVID");
                    self.member.send_replace(Some(member.clone()));
                    self.stay(&member, &stop).await;
                    if stop.is_cancelled() {
                        return;
                    }
                    tracing::warn!(
                        "the CA has been away, and other roots are to be believed: asking that CA for an SVID"
                    );
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(%error, "the operator has no SVID, so sidecars are told nothing; trying again");
                    tokio::select! {
                        () = stop.cancelled() => return,
                        () = tokio::time::sleep(wait) => {}
                        Ok(()) = self.roots.changed() => {}
                    }
                    wait = wait.saturating_mul(2).min(longest);
                }
            }
        }
    }

    /// Waits for roots and asks for an SVID; `None` when there will be no roots any more.
    async fn join(&mut self) -> Result<Option<Member>, JoinError> {
        let roots = match self.roots.wait_for(Option::is_some).await {
            Ok(roots) => roots.clone(),
            Err(_) => None,
        };
        let Some(roots) = roots else { return Ok(None) };
        let authority = Authority::new(AuthorityConfig {
            trust_domain: self.config.trust_domain.clone(),
            address: self.config.ca.clone(),
            roots: roots.bundle.clone(),
            token: self.config.token.clone(),
            application: false,
            clock: system_clock(),
        })?;
        let fetcher = Arc::new(authority.clone());
        let source = SvidSource::start(fetcher, system_clock(), random_jitter()).await?;
        Ok(Some(Member { authority, source: Arc::new(source) }))
    }

    /// Follows the CA until `stop`, or until it is another one.
    async fn stay(&self, member: &Member, stop: &CancellationToken) {
        let mut following = member.authority.following();
        let mut revocations = member.authority.revocations();
        let mut identity = member.source.watch();
        let followed = self.metrics.mesh.with_label_values(&["ca"]);
        let mut follow = std::pin::pin!(member.authority.follow(&member.source, stop.clone()));
        let mut away = std::pin::pin!(tokio::time::sleep(self.config.patience));
        loop {
            self.revoke(&revocations.borrow_and_update().ids);
            let expires = identity.borrow_and_update().svid.not_after().as_secs();
            self.metrics.svid_expiry.set(i64::try_from(expires).unwrap_or(i64::MAX));
            let follows = *following.borrow_and_update();
            followed.set(follows.into());
            tokio::select! {
                () = &mut follow => return,
                Ok(()) = revocations.changed() => {}
                Ok(()) = identity.changed() => {}
                Ok(()) = following.changed() => {
                    away.as_mut().reset(tokio::time::Instant::now() + self.config.patience);
                }
                () = &mut away, if !follows => {
                    if self.is_another_ca(member) {
                        followed.set(0);
                        return;
                    }
                    away.as_mut().reset(tokio::time::Instant::now() + self.config.patience);
                }
            }
        }
    }

    /// Whether the ConfigMap names roots that the CA which this operator follows has never spoken of.
    fn is_another_ca(&self, member: &Member) -> bool {
        let believed = member.authority.bundle().borrow().clone();
        let roots = self.roots.borrow().clone();
        roots.is_some_and(|roots| {
            let known = |root| believed.certificates().any(|one| one == root);
            !roots.bundle.certificates().all(known)
        })
    }

    fn revoke(&self, ids: &BTreeSet<aegis_core::SpiffeId>) {
        let agents = ids.iter().filter_map(|id| AgentId::try_from(id.clone()).ok());
        let agents: BTreeSet<AgentId> =
            agents.filter(|agent| agent.trust_domain() == self.config.trust_domain).collect();
        self.revoked.send_if_modified(|known| {
            let new = known.as_ref().is_none_or(|known| **known != agents);
            if new {
                *known = Some(Arc::new(agents));
            }
            new
        });
    }
}
