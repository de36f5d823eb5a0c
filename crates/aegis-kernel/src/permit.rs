//! The proof that a message has been decided on and recorded.

use std::sync::Arc;

use aegis_audit::journal::{Committed, Recorded, Ticket};
use aegis_core::{AgentId, Sponsor, decision::Decision, grant::Approver};
use serde_json::{Map, Value};

/// How far the record of a decision is.
#[derive(Debug)]
pub enum Record {
    /// On disk.
    Durable(Committed),
    /// Queued; whoever answers the caller awaits it first.
    Pending(Ticket),
    /// Queued; nobody waits.
    Buffered,
}

/// An approval that was used.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Approved {
    /// Its id.
    pub approval: String,
    /// Who gave it.
    pub approvers: Vec<Approver>,
}

/// What the outcome of a permitted action is recorded with.
#[derive(Debug)]
pub struct Receipt {
    /// Unique; ties the outcome to the decision.
    pub decision_id: String,
    /// The decision.
    pub decision: Arc<Decision>,
    /// How far its record is.
    pub record: Record,
    /// The approval of this decision domain that was used for it.
    pub approved: Option<Arc<Approved>>,
    pub(crate) principal: AgentId,
    pub(crate) sponsor: Option<Sponsor>,
    pub(crate) action: Map<String, Value>,
}

/// A message that may be forwarded. Only [`crate::Kernel::decide`] makes one, and it owns the very
/// message that was judged: what is sent is what was decided on. In strict mode there is no permit
/// before its record is on disk.
///
/// Nobody else can make one:
///
/// ```compile_fail,E0451
/// fn forge(receipt: aegis_kernel::Receipt) -> aegis_kernel::Permit<()> {
///     aegis_kernel::Permit { message: (), receipt }
/// }
/// ```
///
/// and it cannot be used twice:
///
/// ```compile_fail,E0599
/// fn twice(permit: aegis_kernel::Permit<()>) {
///     let _ = permit.clone();
/// }
/// ```
#[derive(Debug)]
#[must_use = "a permit that is dropped is a recorded decision without an outcome"]
pub struct Permit<M> {
    message: M,
    receipt: Receipt,
}

impl<M> Permit<M> {
    pub(crate) const fn new(message: M, receipt: Receipt) -> Self {
        Self { message, receipt }
    }

    /// What is recorded of it.
    pub const fn receipt(&self) -> &Receipt {
        &self.receipt
    }

    /// Gives up the permit: the message to send, and the receipt for its outcome.
    pub fn into_parts(self) -> (M, Receipt) {
        (self.message, self.receipt)
    }
}

impl From<Recorded> for Record {
    fn from(recorded: Recorded) -> Self {
        match recorded {
            Recorded::Durable(committed) => Self::Durable(committed),
            Recorded::Pending(ticket) => Self::Pending(ticket),
            Recorded::Buffered => Self::Buffered,
        }
    }
}

impl Record {
    /// The index in the ledger, once it is known.
    #[must_use]
    pub const fn index(&self) -> Option<u64> {
        match self {
            Self::Durable(committed) => Some(committed.index),
            Self::Pending(_) | Self::Buffered => None,
        }
    }

    /// Waits until the record is on disk, where somebody is to wait.
    ///
    /// # Errors
    /// When it did not get there: the answer must then be withheld.
    pub async fn settle(self) -> Result<Option<u64>, aegis_audit::journal::AppendError> {
        match self {
            Self::Durable(committed) => Ok(Some(committed.index)),
            Self::Pending(ticket) => Ok(Some(ticket.await?.index)),
            Self::Buffered => Ok(None),
        }
    }
}
