//! Recognises the process at the other end of a unix socket among the registrations.
//!
//! All selectors of a registration must hold. Of several that do, the one with the most selectors
//! wins; two with equally many are ambiguous, and then nobody is recognised.

use std::{collections::BTreeMap, sync::Arc};

use aegis_core::{AgentId, Digest};
use parking_lot::Mutex;

use crate::{
    Registration, Selector,
    peer::{Evidence, FileId, Peer, PeerError},
};

/// How many digests of executables are remembered.
const MAX_DIGESTS: usize = 256;

/// Why a process is not recognised.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// The process cannot be examined.
    #[error(transparent)]
    Peer(#[from] PeerError),
    /// No registration fits.
    #[error("process {pid} of user {uid} ({program}) fits no AgentIdentity")]
    Stranger {
        /// Its id.
        pid: i32,
        /// Its user.
        uid: u32,
        /// Its executable.
        program: String,
    },
    /// Several registrations fit equally well.
    #[error("process {pid} fits {first} and {second} equally well; add a selector to one of them")]
    Ambiguous {
        /// Its id.
        pid: i32,
        /// One.
        first: AgentId,
        /// The other.
        second: AgentId,
    },
}

/// Recognises processes and remembers the digests of their executables.
#[derive(Debug, Default)]
pub struct Attestor {
    digests: Mutex<BTreeMap<FileId, Digest>>,
}

impl Attestor {
    /// The registration of a connected process. Blocks: it reads `/proc` and may hash a file.
    ///
    /// # Errors
    /// When the process cannot be examined, fits no registration, or several equally well.
    pub fn attest(
        &self,
        peer: &Peer,
        registrations: &[Registration],
    ) -> Result<Registration, AttestError> {
        let evidence = peer.evidence()?;
        let wants_digest = |r: &Registration| {
            r.selectors.iter().any(|s| matches!(s, Selector::Sha256(_))) && fits(r, &evidence, None)
        };
        // Hashing is the expensive part: only for a registration that fits in all else.
        let digest = match registrations.iter().any(wants_digest) {
            true => Some(self.digest(peer, evidence.executable)?),
            false => None,
        };
        choose(peer, &evidence, digest, registrations)
    }

    fn digest(&self, peer: &Peer, executable: FileId) -> Result<Digest, PeerError> {
        if let Some(known) = self.digests.lock().get(&executable) {
            return Ok(*known);
        }
        let digest = peer.executable_digest()?;
        let mut digests = self.digests.lock();
        if digests.len() >= MAX_DIGESTS {
            digests.clear();
        }
        digests.insert(executable, digest);
        Ok(digest)
    }
}

/// Whether all selectors hold. Without a digest at hand, those that need one are taken as held.
fn fits(registration: &Registration, evidence: &Evidence, digest: Option<Digest>) -> bool {
    !registration.selectors.is_empty()
        && registration.selectors.iter().all(|selector| match selector {
            Selector::Uid(uid) => *uid == evidence.uid,
            Selector::Gid(gid) => *gid == evidence.gid,
            Selector::Path(path) => evidence.path.as_ref() == Some(path),
            Selector::Launcher(path) => evidence.launcher.as_ref() == Some(path),
            Selector::Sha256(wanted) => digest.is_none_or(|digest| digest == *wanted),
        })
}

fn choose(
    peer: &Peer,
    evidence: &Evidence,
    digest: Option<Digest>,
    registrations: &[Registration],
) -> Result<Registration, AttestError> {
    let mut fitting: Vec<&Registration> =
        registrations.iter().filter(|r| fits(r, evidence, digest)).collect();
    fitting.sort_by_key(|r| std::cmp::Reverse(specificity(r)));
    match fitting.as_slice() {
        [] => Err(AttestError::Stranger {
            pid: peer.pid(),
            uid: peer.uid(),
            program: evidence.path.as_ref().map_or_else(
                || "its executable cannot be named".to_owned(),
                |path| path.display().to_string(),
            ),
        }),
        [first, second, ..] if specificity(first) == specificity(second) => {
            Err(AttestError::Ambiguous {
                pid: peer.pid(),
                first: first.id.clone(),
                second: second.id.clone(),
            })
        }
        [best, ..] => Ok((*best).clone()),
    }
}

fn specificity(registration: &Registration) -> usize {
    let mut selectors: Vec<&Selector> = registration.selectors.iter().collect();
    selectors.sort();
    selectors.dedup();
    selectors.len()
}

/// The registrations in force, swapped as a whole.
pub(crate) type Registrations = Arc<[Registration]>;
