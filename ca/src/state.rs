//! The document that says which authorities there are and what each may do.

use std::fmt;

use aegis_core::{Timestamp, TrustDomain};
use serde::{Deserialize, Serialize};

/// The version of the document; another one is not guessed at.
pub(crate) const FORMAT: &str = "aegis-ca/1";

/// What an authority signs.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Kind {
    /// Intermediates. Its certificate is in the trust bundle.
    Root,
    /// X.509-SVIDs.
    Intermediate,
    /// JWT-SVIDs. Its public key is in the trust bundle.
    Jwt,
}

/// Where an authority is in its life. Removed from the document, it has expired or was revoked.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// In the bundle, not signing yet, so that everybody knows it before it signs.
    Prepared,
    /// Signing.
    Active,
    /// Signed in the past; in the bundle until all that it signed has expired. Its key is gone.
    Retired,
    /// As retired, and distrusted: everything under it is to be replaced now.
    Tainted,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct State {
    pub(crate) format: String,
    pub(crate) trust_domain: TrustDomain,
    pub(crate) sequence: u64,
    pub(crate) authorities: Vec<Record>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Record {
    pub(crate) id: String,
    pub(crate) kind: Kind,
    pub(crate) status: Status,
    /// The root that signed an intermediate.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parent: Option<String>,
    /// A certificate in DER, or the public point of a JWT key; base64.
    pub(crate) public: String,
    pub(crate) not_before: Timestamp,
    pub(crate) not_after: Timestamp,
    /// Since when it is retired or tainted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) retired_at: Option<Timestamp>,
}

impl Record {
    /// The name of the file with its private key.
    pub(crate) fn key_file(&self) -> String {
        key_file(self.kind, &self.id)
    }

    /// Whether its private key is still needed.
    pub(crate) const fn signs(&self) -> bool {
        matches!(self.status, Status::Prepared | Status::Active)
    }

    pub(crate) fn is_valid_at(&self, now: Timestamp) -> bool {
        self.not_before <= now && now < self.not_after
    }
}

pub(crate) fn key_file(kind: Kind, id: &str) -> String {
    format!("{kind}-{id}.key")
}

/// Whether a file is one of ours that the state must account for.
pub(crate) fn is_key_file(name: &str) -> bool {
    let kind = [Kind::Root, Kind::Intermediate, Kind::Jwt]
        .into_iter()
        .any(|kind| name.starts_with(&format!("{kind}-")));
    kind && name.ends_with(".key")
}

impl State {
    pub(crate) fn find(&self, kind: Kind, status: Status) -> Option<&Record> {
        self.authorities.iter().find(|record| record.kind == kind && record.status == status)
    }

    pub(crate) fn by_id(&self, id: &str) -> Option<&Record> {
        self.authorities.iter().find(|record| record.id == id)
    }

    /// Changes the status of one authority.
    pub(crate) fn set(&mut self, id: &str, status: Status, now: Timestamp) {
        for record in self.authorities.iter_mut().filter(|record| record.id == id) {
            record.status = status;
            if matches!(status, Status::Retired | Status::Tainted) {
                record.retired_at.get_or_insert(now);
            }
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::Intermediate => "intermediate",
            Self::Jwt => "jwt",
        })
    }
}
