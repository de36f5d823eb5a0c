//! The audit log in three verbs, for callers that need no more: append, verify, query.

use crate::entry::Draft;
use crate::journal::{AppendError, Committed, Journal, Options};
use crate::query::{Filter, Page};
use crate::store::{Location, StoreError};
use crate::verify::{self, Report, Trusted, VerifyError};

/// A log that is open for appending.
#[derive(Clone, Debug)]
pub struct AuditLog {
    journal: Journal,
}

impl AuditLog {
    /// Opens or creates a log.
    ///
    /// # Errors
    /// As [`Journal::open`].
    pub async fn open(place: &Location, options: Options) -> Result<Self, StoreError> {
        Ok(Self { journal: Journal::open(place, options).await? })
    }

    /// Records an entry and returns when it is durable.
    ///
    /// # Errors
    /// When it was not recorded.
    pub async fn append(&self, draft: Draft) -> Result<Committed, AppendError> {
        self.journal.append(draft).await?.await
    }

    /// Verifies the whole log against the journal's own key.
    ///
    /// # Errors
    /// The first thing that is wrong.
    pub async fn verify_integrity(&self) -> Result<Report, VerifyError> {
        let verifier = Some(self.journal.verifier().clone());
        let trusted = Trusted { verifier, checkpoint: None };
        verify::verify(self.journal.reader(), &trusted, |_, _| {}).await
    }

    /// Finds entries.
    ///
    /// # Errors
    /// When the log cannot be read.
    pub async fn query(&self, filter: &Filter) -> Result<Page, StoreError> {
        self.journal.reader().query(filter).await
    }

    /// The journal behind it.
    #[must_use]
    pub const fn journal(&self) -> &Journal {
        &self.journal
    }
}
