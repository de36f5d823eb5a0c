//! Which agents exist, who answers for them, and how each is recognised.

use std::{collections::BTreeSet, fmt, path::PathBuf, time::Duration};

use aegis_core::{AgentId, Digest, Sponsor, TrustDomain};

use crate::issue::{MAX_SVID_TTL, MIN_SVID_TTL};

/// One agent that may have an identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Its identity: trust domain, namespace, service account and name.
    pub id: AgentId,
    /// The human who answers for it.
    pub sponsor: Sponsor,
    /// What it may do, as `action:resource`. Kept for those who ask; the CA does not judge it.
    pub capabilities: Vec<String>,
    /// What a process must show to be recognised as this agent. Without any, no process is, and
    /// SVIDs are issued only to parts of this process.
    pub selectors: Vec<Selector>,
    /// The life of its SVIDs, if not the CA's usual one.
    pub ttl: Option<Duration>,
}

/// Something that the kernel says about a process.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Selector {
    /// Its effective user.
    Uid(u32),
    /// Its effective group.
    Gid(u32),
    /// The absolute path of its executable. For a script this is the interpreter, which says
    /// little: register its launcher too.
    Path(PathBuf),
    /// The SHA-256 digest of its executable.
    Sha256(Digest),
    /// The absolute path of its parent's executable: who launched it.
    Launcher(PathBuf),
}

/// Why registrations are refused as a whole.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RegistrationError {
    /// The same agent twice.
    #[error("{0} is registered twice; keep one AgentIdentity")]
    Twice(AgentId),
    /// Another trust domain's agent.
    #[error("{id} is not in the trust domain {expected}")]
    ForeignTrustDomain {
        /// The agent.
        id: AgentId,
        /// Ours.
        expected: TrustDomain,
    },
    /// A relative path, which every process resolves in its own way.
    #[error("{id}: the path `{}` is not absolute", path.display())]
    RelativePath {
        /// The agent.
        id: AgentId,
        /// The path.
        path: PathBuf,
    },
    /// A lifetime out of bounds.
    #[error("{id}: an SVID lives 1 minute to 24 hours, not {ttl:?}")]
    Ttl {
        /// The agent.
        id: AgentId,
        /// The lifetime.
        ttl: Duration,
    },
}

/// Checks a whole set of registrations.
pub(crate) fn check(
    registrations: &[Registration],
    domain: &TrustDomain,
) -> Result<(), RegistrationError> {
    let mut seen = BTreeSet::new();
    for registration in registrations {
        let id = &registration.id;
        if !seen.insert(id) {
            return Err(RegistrationError::Twice(id.clone()));
        }
        if id.trust_domain() != *domain {
            let expected = domain.clone();
            return Err(RegistrationError::ForeignTrustDomain { id: id.clone(), expected });
        }
        for selector in &registration.selectors {
            if let Selector::Path(path) | Selector::Launcher(path) = selector
                && !path.is_absolute()
            {
                return Err(RegistrationError::RelativePath { id: id.clone(), path: path.clone() });
            }
        }
        if let Some(ttl) = registration.ttl
            && !(MIN_SVID_TTL..=MAX_SVID_TTL).contains(&ttl)
        {
            return Err(RegistrationError::Ttl { id: id.clone(), ttl });
        }
    }
    Ok(())
}

impl fmt::Display for Selector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Uid(uid) => write!(f, "unix:uid:{uid}"),
            Self::Gid(gid) => write!(f, "unix:gid:{gid}"),
            Self::Path(path) => write!(f, "unix:path:{}", path.display()),
            Self::Sha256(digest) => write!(f, "unix:sha256:{}", digest.to_hex()),
            Self::Launcher(path) => write!(f, "unix:launcher:{}", path.display()),
        }
    }
}
