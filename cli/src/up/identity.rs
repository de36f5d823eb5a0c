//! The CA of this machine, and its events in the ledger.

use std::{path::Path, sync::Arc};

use aegis_audit::{Draft, Journal, Kind, Outcome};
use aegis_ca::{
    CaConfig, Directory, IdentityEvent, IdentityManager, Lifetimes, Recorder, RecorderError,
};
use aegis_core::TrustDomain;
use anyhow::Context as _;
use futures::future::BoxFuture;
use serde_json::{Value, json};

/// Records identities before they are handed out.
struct LedgerRecorder(Journal);

impl Recorder for LedgerRecorder {
    fn record<'a>(&'a self, event: &'a IdentityEvent) -> BoxFuture<'a, Result<(), RecorderError>> {
        Box::pin(async move {
            let kind = match event {
                IdentityEvent::X509Issued { .. } | IdentityEvent::JwtIssued { .. } => {
                    Kind::IdentityIssued
                }
                IdentityEvent::Revoked { .. } | IdentityEvent::Reinstated { .. } => {
                    Kind::IdentityRevoked
                }
                IdentityEvent::AuthorityChanged { .. } => Kind::Configuration,
            };
            let mut draft = Draft::new(kind, super::attest::now(), Outcome::Recorded);
            if let IdentityEvent::X509Issued { id, sponsor, .. }
            | IdentityEvent::JwtIssued { id, sponsor, .. } = event
            {
                draft.agent_id = Some(id.to_string());
                draft.sponsor = sponsor.as_ref().map(ToString::to_string);
            }
            if let Value::Object(members) = json!(event) {
                draft.detail = members;
            }
            self.0.append(draft).await?.await?;
            Ok(())
        })
    }
}

/// Opens the CA in `folder`.
pub(super) fn open(
    folder: &Path,
    trust_domain: &TrustDomain,
    journal: &Journal,
) -> anyhow::Result<IdentityManager> {
    let store = Directory::open(folder)?;
    let config = CaConfig { trust_domain: trust_domain.clone(), lifetimes: Lifetimes::default() };
    let recorder = Arc::new(LedgerRecorder(journal.clone()));
    IdentityManager::open(store, config, recorder, aegis_identity::system_clock())
        .with_context(|| format!("the CA in {} cannot be opened", folder.display()))
}
