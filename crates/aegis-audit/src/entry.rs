//! What is recorded: one entry per fact, every field under its hash.
//!
//! A caller writes a [`Draft`]; the journal adds `sequence` and `parent_hash`, which chain the
//! entries of one source, and renders the whole as RFC 8785 canonical JSON. Those bytes are the
//! leaf of the tree, so there is no field that can change unseen. The canonical form is written
//! directly, member by member in sorted order: a caller renders all but the two chained members on
//! its own thread ([`Draft::render`]), the writer splices them in.
//!
//! Refused: numbers that a double cannot hold exactly, and entries above [`MAX_ENTRY_BYTES`], which
//! an entry bundle (c2sp.org/tlog-tiles) could not carry.

use std::fmt::Write as _;

use aegis_core::canonical::{self, CanonicalError};
use aegis_core::{Digest, Timestamp};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use crate::kind::{Kind, Outcome, UnknownWord};
use crate::salt::Salt;

/// The layout of an entry, its member `version`.
pub const ENTRY_VERSION: u64 = 1;

/// The longest canonical form: entry bundles frame entries with 16 bits.
pub const MAX_ENTRY_BYTES: usize = 65_535;

/// What `sequence` and `parent_hash` may add to a rendered draft.
const CHAIN_BYTES: usize = 130;

/// Why a draft cannot become an entry.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EntryError {
    /// A number without a canonical form.
    #[error("the entry has no canonical form: {0}; record the number as a string")]
    NotCanonical(String),
    /// Longer than an entry bundle can frame.
    #[error(
        "the entry takes {size} bytes and the limit is {MAX_ENTRY_BYTES}; record digests instead of long values"
    )]
    TooLarge {
        /// Its length.
        size: usize,
    },
    /// Bytes that are not an entry.
    #[error("not an audit entry: {0}")]
    Malformed(String),
}

impl From<CanonicalError> for EntryError {
    fn from(error: CanonicalError) -> Self {
        Self::NotCanonical(error.to_string())
    }
}

/// A policy that spoke, and how.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PolicyRef {
    /// Its name.
    pub name: String,
    /// The digest of its compiled form.
    pub digest: Digest,
    /// Its verdict: `allow`, `deny` or `require_approval`.
    pub effect: String,
    /// `enforce` or `audit`.
    pub mode: String,
}

/// An entry before the journal gives it its place. All of it is recorded except `salt`, which is
/// stored beside the log.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft {
    /// What is recorded.
    pub kind: Kind,
    /// When it happened.
    pub timestamp: Timestamp,
    /// How it ended.
    pub result: Outcome,
    /// The acting agent's SPIFFE ID.
    pub agent_id: Option<String>,
    /// The human who answers for it.
    pub sponsor: Option<String>,
    /// Kind, protocol, method, server, tool, digest …; `server` and `tool` can be queried.
    pub action: Map<String, Value>,
    /// What it acts on.
    pub resource: Option<String>,
    /// A stable code of the closed list of reasons. Never quotes arguments.
    pub reason: Option<String>,
    /// Ties an outcome to its decision.
    pub decision_id: Option<String>,
    /// The policies that spoke.
    pub policies: Vec<PolicyRef>,
    /// The approval that was asked for or used.
    pub approval: Option<String>,
    /// `L1`, `L2` or `L3`.
    pub tier: Option<String>,
    /// Risk in per mille.
    pub risk: Option<u64>,
    /// Trust, 0 to 1000.
    pub trust: Option<u64>,
    /// The tree size up to which trust had been folded.
    pub trust_as_of: Option<u64>,
    /// The arguments, redacted.
    pub arguments: Option<Value>,
    /// [`Salt::digest`] of the arguments as they were.
    pub arguments_digest: Option<Digest>,
    /// Facts of this kind: status, bytes, events, evidence weight, vote …
    pub detail: Map<String, Value>,
    /// W3C `traceparent`.
    pub trace: Option<String>,
    /// The salt of `arguments_digest`; stored outside the log, erasable.
    pub salt: Option<Salt>,
}

impl Draft {
    /// A draft with nothing but what every entry has.
    #[must_use]
    pub fn new(kind: Kind, timestamp: Timestamp, result: Outcome) -> Self {
        Self {
            kind,
            timestamp,
            result,
            agent_id: None,
            sponsor: None,
            action: Map::new(),
            resource: None,
            reason: None,
            decision_id: None,
            policies: Vec::new(),
            approval: None,
            tier: None,
            risk: None,
            trust: None,
            trust_as_of: None,
            arguments: None,
            arguments_digest: None,
            detail: Map::new(),
            trace: None,
            salt: None,
        }
    }

    /// Records `redacted` as the arguments and commits to `full`, the canonical bytes of the
    /// arguments as they were, under `salt`.
    #[must_use]
    pub fn with_arguments(mut self, redacted: Value, full: &[u8], salt: Salt) -> Self {
        self.arguments = Some(redacted);
        self.arguments_digest = Some(salt.digest(full));
        self.salt = Some(salt);
        self
    }

    /// Renders the canonical form, all but the two chained members.
    ///
    /// # Errors
    /// When a number has no canonical form, or the entry would be too large.
    pub fn render(&self, source: &str) -> Result<Rendered, EntryError> {
        let mut out = Members::new();
        out.object("action", &self.action)?;
        out.optional("agent_id", self.agent_id.as_deref());
        out.optional("approval", self.approval.as_deref());
        if let Some(arguments) = &self.arguments {
            out.key("arguments");
            canonical::write_value(&mut out.bytes, arguments)?;
        }
        out.digest("arguments_digest", self.arguments_digest);
        out.optional("decision_id", self.decision_id.as_deref());
        out.object("detail", &self.detail)?;
        out.text("kind", self.kind.as_str());
        let parent_at = out.bytes.len();
        out.policies(&self.policies);
        out.optional("reason", self.reason.as_deref());
        out.optional("resource", self.resource.as_deref());
        out.text("result", self.result.as_str());
        out.number("risk", self.risk)?;
        let sequence_at = out.bytes.len();
        out.text("source", source);
        out.optional("sponsor", self.sponsor.as_deref());
        out.optional("tier", self.tier.as_deref());
        out.key("timestamp");
        let _ = write!(out, "\"{}\"", self.timestamp);
        out.optional("trace", self.trace.as_deref());
        out.number("trust", self.trust)?;
        out.number("trust_as_of", self.trust_as_of)?;
        out.number("version", Some(ENTRY_VERSION))?;
        out.bytes.push(b'}');
        let size = out.bytes.len() + CHAIN_BYTES;
        if size > MAX_ENTRY_BYTES {
            return Err(EntryError::TooLarge { size });
        }
        Ok(Rendered { bytes: out.bytes, parent_at, sequence_at })
    }

    /// A text member of `action`.
    #[must_use]
    pub fn action_text(&self, member: &str) -> Option<&str> {
        self.action.get(member).and_then(Value::as_str)
    }
}

/// A rendered draft that waits for its place in the chain.
#[derive(Debug, Clone)]
pub struct Rendered {
    bytes: Vec<u8>,
    parent_at: usize,
    sequence_at: usize,
}

impl Rendered {
    /// The canonical bytes of the entry at `sequence` after `parent`.
    #[must_use]
    pub fn finish(&self, sequence: u64, parent: Digest) -> Vec<u8> {
        let (head, rest) = self.bytes.split_at(self.parent_at);
        let (middle, tail) = rest.split_at(self.sequence_at - self.parent_at);
        let mut text = String::with_capacity(CHAIN_BYTES);
        let _ = write!(text, ",\"parent_hash\":\"{parent}\"");
        let chain = text.len();
        let _ = write!(text, ",\"sequence\":{sequence}");
        let (parent_hash, sequence) = text.split_at(chain);
        [head, parent_hash.as_bytes(), middle, sequence.as_bytes(), tail].concat()
    }
}

/// Writes the members of an object in the order in which they are called.
struct Members {
    bytes: Vec<u8>,
}

impl std::fmt::Write for Members {
    fn write_str(&mut self, text: &str) -> std::fmt::Result {
        self.bytes.extend_from_slice(text.as_bytes());
        Ok(())
    }
}

impl Members {
    fn new() -> Self {
        let mut bytes = Vec::with_capacity(1_024);
        bytes.push(b'{');
        Self { bytes }
    }

    fn key(&mut self, key: &str) {
        if self.bytes.len() > 1 {
            self.bytes.push(b',');
        }
        canonical::write_string(&mut self.bytes, key);
        self.bytes.push(b':');
    }

    fn text(&mut self, key: &str, value: &str) {
        self.key(key);
        canonical::write_string(&mut self.bytes, value);
    }

    fn optional(&mut self, key: &str, value: Option<&str>) {
        if let Some(value) = value {
            self.text(key, value);
        }
    }

    fn digest(&mut self, key: &str, value: Option<Digest>) {
        if let Some(value) = value {
            self.key(key);
            let _ = write!(self, "\"{value}\"");
        }
    }

    fn number(&mut self, key: &str, value: Option<u64>) -> Result<(), EntryError> {
        if let Some(value) = value {
            canonical::check_number(&value.into())?;
            self.key(key);
            let _ = write!(self, "{value}");
        }
        Ok(())
    }

    fn object(&mut self, key: &str, members: &Map<String, Value>) -> Result<(), EntryError> {
        if members.is_empty() {
            return Ok(());
        }
        self.key(key);
        let mut sorted: Vec<_> = members.iter().collect();
        sorted.sort_by(|a, b| a.0.encode_utf16().cmp(b.0.encode_utf16()));
        self.bytes.push(b'{');
        for (i, (name, value)) in sorted.into_iter().enumerate() {
            if i > 0 {
                self.bytes.push(b',');
            }
            canonical::write_string(&mut self.bytes, name);
            self.bytes.push(b':');
            canonical::write_value(&mut self.bytes, value)?;
        }
        self.bytes.push(b'}');
        Ok(())
    }

    fn policies(&mut self, policies: &[PolicyRef]) {
        if policies.is_empty() {
            return;
        }
        self.key("policies");
        for (i, policy) in policies.iter().enumerate() {
            self.bytes.extend_from_slice(if i == 0 { b"[{" } else { b",{" });
            let _ = write!(self, "\"digest\":\"{}\",\"effect\":", policy.digest);
            canonical::write_string(&mut self.bytes, &policy.effect);
            self.bytes.extend_from_slice(b",\"mode\":");
            canonical::write_string(&mut self.bytes, &policy.mode);
            self.bytes.extend_from_slice(b",\"name\":");
            canonical::write_string(&mut self.bytes, &policy.name);
            self.bytes.push(b'}');
        }
        self.bytes.push(b']');
    }
}

/// A recorded entry, read back from its canonical bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[expect(missing_docs, reason = "the members are those of `Draft`, which documents them")]
pub struct Entry {
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub action: Map<String, Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments: Option<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arguments_digest: Option<Digest>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision_id: Option<String>,
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub detail: Map<String, Value>,
    pub kind: Kind,
    /// The leaf hash of the source's previous entry; 32 zero bytes for its first.
    pub parent_hash: Digest,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub policies: Vec<PolicyRef>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    pub result: Outcome,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub risk: Option<u64>,
    /// The entry's place among its source's, from 1.
    pub sequence: u64,
    /// Whose journal wrote it.
    pub source: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sponsor: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tier: Option<String>,
    pub timestamp: Timestamp,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trace: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub trust_as_of: Option<u64>,
    /// [`ENTRY_VERSION`].
    pub version: u64,
}

impl Entry {
    /// Reads an entry from its canonical bytes.
    ///
    /// # Errors
    /// When the bytes are not an entry of this version.
    pub fn parse(bytes: &[u8]) -> Result<Self, EntryError> {
        let entry: Self =
            serde_json::from_slice(bytes).map_err(|e| EntryError::Malformed(e.to_string()))?;
        if entry.version != ENTRY_VERSION {
            return Err(EntryError::Malformed(format!(
                "it has version {} and this program reads version {ENTRY_VERSION}; use a newer one",
                entry.version
            )));
        }
        Ok(entry)
    }

    /// A text member of `action`.
    #[must_use]
    pub fn action_text(&self, member: &str) -> Option<&str> {
        self.action.get(member).and_then(Value::as_str)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn full() -> Draft {
        let Value::Object(action) =
            json!({ "tool": "write_file", "server": "fs", "method": "tools/call", "é": 1 })
        else {
            unreachable!("an object literal")
        };
        let policy = PolicyRef {
            name: "no \"drop\"".into(),
            digest: Digest::of(b"p"),
            effect: "deny".into(),
            mode: "enforce".into(),
        };
        let mut draft = Draft::new(Kind::Decision, Timestamp::from_secs(1), Outcome::Deny)
            .with_arguments(json!({ "b": 1, "a": "…" }), b"{}", Salt::from_bytes([7; 32]));
        draft.agent_id = Some("spiffe://acme.example/ns/a/sa/b/agent/c".into());
        draft.sponsor = Some("ada@acme.example".into());
        draft.action = action.clone();
        draft.resource = Some("file:///tmp/x\n".into());
        draft.reason = Some("policy_denied".into());
        draft.decision_id = Some("d1".into());
        draft.policies = vec![policy.clone(), policy];
        draft.approval = Some("a1".into());
        draft.tier = Some("L3".into());
        draft.risk = Some(700);
        draft.trust = Some(512);
        draft.trust_as_of = Some(3);
        draft.detail = action;
        draft.trace = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
        draft
    }

    fn check(draft: &Draft) {
        let bytes =
            draft.render("spiffe://acme.example/x").unwrap().finish(12, Digest::of(b"parent"));
        let value: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(bytes, canonical::to_vec(&value).unwrap(), "written directly, yet canonical");
        let entry = Entry::parse(&bytes).unwrap();
        assert_eq!(canonical::to_vec(&entry).unwrap(), bytes);
        assert_eq!((entry.sequence, entry.parent_hash), (12, Digest::of(b"parent")));
        assert_eq!(entry.arguments_digest, draft.arguments_digest);
        assert_eq!((entry.risk, entry.detail), (draft.risk, draft.detail.clone()));
    }

    #[test]
    fn the_direct_rendering_is_canonical() {
        check(&full());
        check(&Draft::new(Kind::Gap, Timestamp::from_secs(0), Outcome::Recorded));
    }

    #[test]
    fn the_salt_is_not_recorded() {
        let bytes = full().render("s").unwrap().finish(1, Digest::from_bytes([0; 32]));
        let text = String::from_utf8(bytes).unwrap();
        assert!(!text.contains("salt") && !text.contains(&hex::encode([7; 32])));
    }

    #[test]
    fn what_has_no_place_is_refused() {
        let mut draft = full();
        draft.trust_as_of = Some(u64::MAX);
        assert!(matches!(draft.render("s"), Err(EntryError::NotCanonical(_))));
        let mut draft = full();
        draft.resource = Some("x".repeat(MAX_ENTRY_BYTES));
        assert!(matches!(draft.render("s"), Err(EntryError::TooLarge { .. })));
        assert!(Entry::parse(b"{}").is_err());
        let bytes = full().render("s").unwrap().finish(1, Digest::of(b""));
        let text = String::from_utf8(bytes).unwrap();
        let newer = text.replace("\"version\":1", "\"version\":2");
        assert!(Entry::parse(newer.as_bytes()).unwrap_err().to_string().contains("version 2"));
        let extra = text.replace("\"version\":1", "\"version\":1,\"x\":1");
        assert!(Entry::parse(extra.as_bytes()).is_err());
    }

    proptest! {
        #[test]
        fn any_text_renders_canonically(
            text in ".{0,40}", name in ".{1,12}", number in -1_000_000_000_i64..1_000_000_000,
            kind in 0..Kind::ALL.len(), bits in any::<u32>(),
        ) {
            let mut draft = full();
            draft.kind = Kind::ALL[kind];
            draft.resource = (bits & 1 == 0).then(|| text.clone());
            draft.agent_id = (bits & 2 == 0).then(|| text.clone());
            draft.risk = (bits & 4 == 0).then_some(u64::from(bits));
            draft.policies.truncate((bits >> 3) as usize & 1);
            draft.detail.insert(name, json!([number, text]));
            check(&draft);
        }
    }
}
