//! Who is told of every identity that is issued or revoked, and of every change of authorities.

use std::{error::Error, fmt};

use aegis_audit::{Draft, Journal, Kind as Recorded, Outcome};
use aegis_core::{SpiffeId, Sponsor, Timestamp};
use aegis_identity::{Clock, Serial};
use futures::future::BoxFuture;
use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    revoke::Subject,
    state::{Kind, Status},
};

/// Something that belongs into the audit log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum IdentityEvent {
    /// An X.509-SVID was signed and is handed out once this is recorded.
    X509Issued {
        /// Whose it is.
        id: SpiffeId,
        /// Who answers for it; none for a component of Aegis itself.
        sponsor: Option<Sponsor>,
        /// Its serial number.
        serial: Serial,
        /// When it ends.
        not_after: Timestamp,
    },
    /// A JWT-SVID was signed and is handed out once this is recorded.
    JwtIssued {
        /// Whose it is.
        id: SpiffeId,
        /// Who answers for it.
        sponsor: Option<Sponsor>,
        /// Whom it is for.
        audience: Vec<String>,
        /// When it ends.
        not_after: Timestamp,
    },
    /// A certificate or an identity was revoked.
    Revoked {
        /// What was revoked.
        subject: Subject,
        /// Why.
        reason: String,
    },
    /// An authority has come, has another status or is gone: rotated, tainted or revoked. In force
    /// before it is recorded; nothing is issued until it is.
    AuthorityChanged {
        /// Its name.
        authority: String,
        /// What it signs.
        kind: Kind,
        /// Where it is in its life now; none once it is gone.
        status: Option<Status>,
        /// When it ends.
        not_after: Timestamp,
    },
    /// A revoked identity may be issued again.
    Reinstated {
        /// What was revoked before.
        subject: Subject,
        /// Why.
        reason: String,
    },
}

/// What a [`Recorder`] says when it cannot record.
pub type RecorderError = Box<dyn Error + Send + Sync>;

/// Appends events to the audit log. What cannot be recorded is not issued.
pub trait Recorder: Send + Sync + 'static {
    /// Resolves once the event is as durable as the log's mode promises.
    fn record<'a>(&'a self, event: &'a IdentityEvent) -> BoxFuture<'a, Result<(), RecorderError>>;
}

/// Writes events to the process log only: for a CA that runs alone, and for tests.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unrecorded;

impl Recorder for Unrecorded {
    fn record<'a>(&'a self, event: &'a IdentityEvent) -> BoxFuture<'a, Result<(), RecorderError>> {
        tracing::info!(?event, "identity");
        Box::pin(std::future::ready(Ok(())))
    }
}

/// Appends to a journal; each event is on disk before it has effect.
#[derive(Clone)]
pub struct JournalRecorder {
    /// The journal.
    pub journal: Journal,
    /// Tells when.
    pub clock: Clock,
}

impl fmt::Debug for dyn Recorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Recorder")
    }
}

impl IdentityEvent {
    /// As the audit log has it.
    #[must_use]
    pub fn draft(&self, now: Timestamp) -> Draft {
        let kind = match self {
            Self::X509Issued { .. } | Self::JwtIssued { .. } => Recorded::IdentityIssued,
            Self::Revoked { .. } | Self::Reinstated { .. } => Recorded::IdentityRevoked,
            Self::AuthorityChanged { .. } => Recorded::Configuration,
        };
        let mut draft = Draft::new(kind, now, Outcome::Recorded);
        if let Self::X509Issued { id, sponsor, .. } | Self::JwtIssued { id, sponsor, .. } = self {
            draft.agent_id = Some(id.to_string());
            draft.sponsor = sponsor.as_ref().map(ToString::to_string);
        }
        if let Value::Object(members) = json!(self) {
            draft.detail = members;
        }
        draft
    }
}

impl Recorder for JournalRecorder {
    fn record<'a>(&'a self, event: &'a IdentityEvent) -> BoxFuture<'a, Result<(), RecorderError>> {
        Box::pin(async move {
            self.journal.append(event.draft((self.clock)())).await?.await?;
            Ok(())
        })
    }
}

impl fmt::Debug for JournalRecorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JournalRecorder").field("journal", &self.journal).finish_non_exhaustive()
    }
}
