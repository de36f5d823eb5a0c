//! Who acts: SPIFFE IDs, agents and their human sponsors.
//!
//! Refuses everything the SPIFFE-ID specification §2 refuses, so that no two texts name one
//! principal.

use std::{fmt, str::FromStr, sync::Arc};

/// The longest SPIFFE ID, in bytes (SPIFFE-ID §2.3).
const MAX_SPIFFE_ID_BYTES: usize = 2048;
/// The longest sponsor, in bytes (RFC 5321 §4.5.3.1.3, a path without its brackets).
const MAX_SPONSOR_BYTES: usize = 254;

/// A SPIFFE trust domain, such as `acme.example`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct TrustDomain(Arc<str>);

/// A SPIFFE ID with a path: `spiffe://<trust domain>/<segments>`.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct SpiffeId {
    text: Arc<str>,
    /// Where the path starts in `text`.
    path_at: usize,
}

/// A principal that acts: an agent, or a user at an editor.
///
/// Two forms exist: `/ns/<namespace>/sa/<service account>/agent/<name>` and
/// `/user/<user>/ide/<id>`. The application's own SVID, `…/agent/<name>/workload`, is not one: a
/// key stolen from the application cannot speak as governed traffic.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct AgentId(SpiffeId);

/// The human who answers for an agent: an e-mail address.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Sponsor(Arc<str>);

/// Why a text names nobody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIdentity {
    /// Not a trust domain.
    #[error("`{0}` is not a trust domain: lower-case letters, digits, `.`, `-` and `_` only")]
    TrustDomain(String),
    /// Not a SPIFFE ID.
    #[error("`{0}` is not a SPIFFE ID: expected `spiffe://<trust domain>/<segment>/…`")]
    SpiffeId(String),
    /// A SPIFFE ID that is not an agent's.
    #[error(
        "`{0}` is not an agent: expected `spiffe://<trust domain>/ns/<namespace>/sa/<service account>/agent/<name>` or `…/user/<user>/ide/<id>`"
    )]
    AgentId(String),
    /// Not a sponsor.
    #[error("`{0}` is not a sponsor: expected an e-mail address")]
    Sponsor(String),
}

fn clipped(text: &str) -> String {
    text.chars().take(120).collect()
}

// === impl TrustDomain ===

impl FromStr for TrustDomain {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let legal = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'-' | b'_');
        if text.is_empty() || text.len() > 255 || !text.bytes().all(legal) {
            return Err(InvalidIdentity::TrustDomain(clipped(text)));
        }
        Ok(Self(text.into()))
    }
}

impl TrustDomain {
    /// The text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The trust domain's own SPIFFE ID, `spiffe://<trust domain>`, as a signing certificate has it.
    #[must_use]
    pub fn uri(&self) -> String {
        format!("spiffe://{}", self.0)
    }

    /// The agent `name` of `service_account` in `namespace`.
    ///
    /// # Errors
    /// When a part is not a legal path segment.
    pub fn agent(
        &self,
        namespace: &str,
        service_account: &str,
        name: &str,
    ) -> Result<AgentId, InvalidIdentity> {
        format!("spiffe://{}/ns/{namespace}/sa/{service_account}/agent/{name}", self.0).parse()
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

// === impl SpiffeId ===

impl FromStr for SpiffeId {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidIdentity::SpiffeId(clipped(text));
        if text.len() > MAX_SPIFFE_ID_BYTES {
            return Err(invalid());
        }
        let rest = text.strip_prefix("spiffe://").ok_or_else(invalid)?;
        let (domain, path) = rest.split_once('/').ok_or_else(invalid)?;
        domain.parse::<TrustDomain>().map_err(|_| invalid())?;
        let legal = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        for segment in path.split('/') {
            if matches!(segment, "" | "." | "..") || !segment.bytes().all(legal) {
                return Err(invalid());
            }
        }
        Ok(Self { path_at: text.len() - path.len(), text: text.into() })
    }
}

impl SpiffeId {
    /// The whole ID.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> TrustDomain {
        let domain = self.text.get("spiffe://".len()..self.path_at - 1);
        TrustDomain(domain.unwrap_or_default().into())
    }

    /// The path's segments.
    pub fn segments(&self) -> impl Iterator<Item = &str> {
        self.text.get(self.path_at..).unwrap_or_default().split('/')
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

// === impl AgentId ===

impl TryFrom<SpiffeId> for AgentId {
    type Error = InvalidIdentity;

    fn try_from(id: SpiffeId) -> Result<Self, Self::Error> {
        let segments: Vec<&str> = id.segments().collect();
        match segments.as_slice() {
            ["ns", _, "sa", _, "agent", _] | ["user", _, "ide", _] => Ok(Self(id)),
            _ => Err(InvalidIdentity::AgentId(clipped(id.as_str()))),
        }
    }
}

impl FromStr for AgentId {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        SpiffeId::from_str(text)?.try_into()
    }
}

impl AgentId {
    /// The whole SPIFFE ID.
    #[must_use]
    pub fn as_str(&self) -> &str {
        self.0.as_str()
    }

    /// As a SPIFFE ID.
    #[must_use]
    pub const fn spiffe_id(&self) -> &SpiffeId {
        &self.0
    }

    /// The trust domain.
    #[must_use]
    pub fn trust_domain(&self) -> TrustDomain {
        self.0.trust_domain()
    }

    /// The namespace; `None` for a user at an editor.
    #[must_use]
    pub fn namespace(&self) -> Option<&str> {
        match self.0.segments().next() {
            Some("ns") => self.0.segments().nth(1),
            _ => None,
        }
    }

    /// The last segment: the agent's name, or the editor's id.
    #[must_use]
    pub fn name(&self) -> &str {
        self.0.segments().last().unwrap_or_default()
    }

    /// The ID under which the agent's application gets its own SVID.
    #[must_use]
    pub fn workload(&self) -> SpiffeId {
        SpiffeId { text: format!("{}/workload", self.0).into(), path_at: self.0.path_at }
    }
}

impl fmt::Display for AgentId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

// === impl Sponsor ===

impl FromStr for Sponsor {
    type Err = InvalidIdentity;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let graphic = |b: u8| b.is_ascii_graphic() && !matches!(b, b'<' | b'>' | b',' | b'"');
        let address = text
            .split_once('@')
            .filter(|(local, host)| !local.is_empty() && !host.is_empty() && !host.contains('@'));
        if address.is_none() || text.len() > MAX_SPONSOR_BYTES || !text.bytes().all(graphic) {
            return Err(InvalidIdentity::Sponsor(clipped(text)));
        }
        Ok(Self(text.into()))
    }
}

impl Sponsor {
    /// The address.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Sponsor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

crate::serde_text!(TrustDomain, "A SPIFFE trust domain", "maxLength": 255);
crate::serde_text!(SpiffeId, "A SPIFFE ID with a path", "maxLength": MAX_SPIFFE_ID_BYTES);
crate::serde_text!(AgentId, "An agent's SPIFFE ID", "maxLength": MAX_SPIFFE_ID_BYTES);
crate::serde_text!(
    Sponsor,
    "The e-mail address of the human who answers for an agent",
    "maxLength": MAX_SPONSOR_BYTES,
    "pattern": r#"^[!#-+\-.-;=?A-~]+@[!#-+\-.-;=?A-~]+$"#,
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn agents_and_users_are_principals() {
        let agent: AgentId = "spiffe://acme.example/ns/shop/sa/bot/agent/buyer".parse().unwrap();
        assert_eq!((agent.namespace(), agent.name()), (Some("shop"), "buyer"));
        assert_eq!(agent.trust_domain().as_str(), "acme.example");
        assert_eq!(
            agent.workload().as_str(),
            "spiffe://acme.example/ns/shop/sa/bot/agent/buyer/workload"
        );
        let user: AgentId = "spiffe://acme.example/user/ada/ide/vscode-1".parse().unwrap();
        assert_eq!((user.namespace(), user.name()), (None, "vscode-1"));
    }

    #[test]
    fn an_applications_own_svid_is_not_an_agent() {
        let id: SpiffeId = "spiffe://acme.example/ns/a/sa/b/agent/c/workload".parse().unwrap();
        assert!(AgentId::try_from(id).is_err());
    }

    #[test]
    fn look_alikes_are_refused() {
        for text in [
            "spiffe://acme.example",
            "spiffe://acme.example/",
            "spiffe://Acme.example/ns/a/sa/b/agent/c",
            "SPIFFE://acme.example/ns/a/sa/b/agent/c",
            "spiffe://acme.example/ns/a/sa/b/agent/../agent/c",
            "spiffe://acme.example/ns/a/sa/b//agent/c",
            "spiffe://acme.example/ns/a/sa/b/agent/c%2fd",
            "spiffe://acme.example/ns/a/sa/b/agent/c?x",
            "spiffe://acme.example:80/ns/a/sa/b/agent/c",
            "spiffe://acme.example/ns/a/sa/b/agent/c/",
            "spiffe://acme.example/ns/a/sa/b/agent/did:mesh:1",
        ] {
            assert!(text.parse::<AgentId>().is_err(), "{text}");
        }
    }

    #[test]
    fn sponsors_are_addresses() {
        assert!("ada@acme.example".parse::<Sponsor>().is_ok());
        for text in ["", "ada", "@x", "a@", "a@b@c", "a b@c", "Ada <ada@x>"] {
            assert!(text.parse::<Sponsor>().is_err(), "{text}");
        }
    }
}
