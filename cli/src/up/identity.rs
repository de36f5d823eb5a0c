//! The CA of this machine, and its events in the ledger.

use std::{path::Path, sync::Arc};

use aegis_audit::Journal;
use aegis_ca::{CaConfig, Directory, IdentityManager, JournalRecorder, Lifetimes};
use aegis_core::TrustDomain;
use anyhow::Context as _;

/// Opens the CA in `folder`.
pub(super) fn open(
    folder: &Path,
    trust_domain: &TrustDomain,
    journal: &Journal,
) -> anyhow::Result<IdentityManager> {
    let store = Directory::open(folder)?;
    let config = CaConfig { trust_domain: trust_domain.clone(), lifetimes: Lifetimes::default() };
    let clock = aegis_identity::system_clock();
    let recorder = Arc::new(JournalRecorder { journal: journal.clone(), clock: clock.clone() });
    IdentityManager::open(store, config, recorder, clock)
        .with_context(|| format!("the CA in {} cannot be opened", folder.display()))
}
