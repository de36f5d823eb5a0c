//! Rotation that somebody asks for in the store, which replicas share.
//!
//! The request goes with the very write that answers it, so however many replicas have seen it, one
//! rotates. It refuses what it does not know, and takes that away too: it would be asked for ever.

use crate::{CaError, IdentityManager, Kind, RotateError, StoreError};

use super::MAX_CONFLICTS;

/// What has become of what was asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    /// Nobody asks, or another replica has answered.
    Nothing,
    /// This authority was rotated, here and now.
    Rotated(Kind),
    /// There is no such authority; the request is gone.
    Unknown(String),
}

/// The authority that is asked for: with a root comes everything that X.509-SVIDs are signed with.
fn kind(asked: &str) -> Option<Kind> {
    match asked {
        "x509" => Some(Kind::Root),
        "jwt" => Some(Kind::Jwt),
        _ => None,
    }
}

impl IdentityManager {
    /// Answers what is asked for in the store, as it is now.
    ///
    /// # Errors
    /// When the store cannot be read or written; the request is still there then.
    pub fn rotate_as_asked(&self) -> Result<Asked, CaError> {
        let mut tries = 0;
        loop {
            match self.answer() {
                Err(CaError::Rotate(RotateError::Store(StoreError::Conflict(_))))
                    if tries < MAX_CONFLICTS =>
                {
                    tries += 1;
                }
                answered => return answered,
            }
        }
    }

    /// One try, on what others have written until now.
    fn answer(&self) -> Result<Asked, CaError> {
        self.reload()?;
        let Some(asked) = self.0.store.asked() else { return Ok(Asked::Nothing) };
        let Some(kind) = kind(&asked) else {
            self.0.store.answer(&[]).map_err(RotateError::from)?;
            return Ok(Asked::Unknown(asked));
        };
        self.change(|authorities| authorities.force(kind, true, (self.0.clock)()))?;
        Ok(Asked::Rotated(kind))
    }
}
