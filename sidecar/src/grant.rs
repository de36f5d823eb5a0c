//! Grants between sidecars: an approval that was used here is told the other side, and one that was
//! used there is taken in, so that nobody is asked twice.
//!
//! A grant goes out on a connection of its own, which shows the very SVID that signs it. It is taken
//! from a peer's connection alone; from anybody else the header means nothing, and no application
//! ever sees it ([`crate::forward::end_to_end`]).

use std::sync::Arc;

use aegis_core::{
    AgentId, Digest, Timestamp,
    grant::{GRANT_LIFE, Grant, GrantError},
};
use aegis_identity::{Identity, sign_grant, verify_grant};
use aegis_kernel::{Approved, Receipt, Shown};
use http::{HeaderMap, HeaderName, HeaderValue};
use rustls::pki_types::CertificateDer;

use crate::{delegation::Carried, inbound::one};

/// Where a grant travels.
pub(crate) static HEADER: HeaderName = HeaderName::from_static("x-aegis-grant");

/// What whoever gets a message is told with it: the approval that was used for it, and on whose behalf it
/// is sent.
#[derive(Clone, Debug, Default)]
pub(crate) struct Told {
    approved: Option<(Arc<Approved>, Digest)>,
    pub(crate) carried: Arc<Carried>,
}

impl Told {
    /// What there is to tell of a permitted message.
    pub(crate) fn of(receipt: &Receipt, carried: &Arc<Carried>) -> Self {
        let approved = receipt.approved.as_ref().map(Arc::clone);
        let approved = approved.map(|approved| (approved, receipt.decision.action));
        Self { approved, carried: Arc::clone(carried) }
    }

    /// Whether there is an approval to tell of, on a connection of its own.
    pub(crate) const fn is_granted(&self) -> bool {
        self.approved.is_some()
    }

    /// The grant as the header for `audience`; `None` where there is none or it cannot be made, and the
    /// other side asks.
    pub(crate) fn header(
        &self,
        identity: &Identity,
        audience: &AgentId,
        now: Timestamp,
    ) -> Option<HeaderValue> {
        let (approved, action) = self.approved.as_ref()?;
        let issuer = AgentId::try_from(identity.svid.id().clone()).ok()?;
        let grant = Grant {
            id: uuid::Uuid::new_v4().to_string(),
            issuer,
            audience: audience.clone(),
            action: *action,
            approval: approved.approval.clone(),
            approvers: approved.approvers.clone(),
            issued_at: now,
            expires_at: now.plus(GRANT_LIFE),
        };
        let signed = sign_grant(&identity.svid, &grant)
            .inspect_err(|error| tracing::error!(%error, "an approval cannot be told"));
        HeaderValue::from_str(&signed.ok()?).ok()
    }
}

/// The grant in a request that came over a connection whose peer has shown `leaf`.
pub(crate) fn shown(
    headers: &HeaderMap,
    leaf: &CertificateDer<'_>,
    own: &AgentId,
    now: Timestamp,
) -> Option<Arc<Shown>> {
    match one(headers, HEADER.as_str()) {
        Ok(None) => None,
        Ok(Some(token)) => Some(Arc::new(verify_grant(token, leaf, own, now))),
        Err(_) => Some(Arc::new(Err(GrantError::Malformed))),
    }
}
