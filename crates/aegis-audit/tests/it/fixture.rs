//! What the tests share: a log in a scratch folder and entries to put into it.

use std::path::{Path, PathBuf};
use std::time::Duration;

use aegis_audit::{Draft, Journal, Kind, Location, Options, Outcome, Reader, Salt, Signer};
use aegis_core::Timestamp;
use serde_json::json;
use tempfile::TempDir;

pub(crate) const ORIGIN: &str = "acme.example/audit";

pub(crate) struct Log {
    pub(crate) dir: TempDir,
    pub(crate) path: PathBuf,
    pub(crate) signer: Signer,
}

impl Log {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("audit.db");
        Self { dir, path, signer: Signer::from_seed(ORIGIN, &[9; 32]).unwrap() }
    }

    pub(crate) fn place(&self) -> Location {
        Location::Sqlite(self.path.clone())
    }

    pub(crate) fn options(&self) -> Options {
        let mut options = Options::new("test", self.signer.clone());
        // Checkpoints are signed when a test asks for one.
        options.checkpoint_interval = Duration::from_secs(3_600);
        options
    }

    pub(crate) async fn open(&self) -> Journal {
        Journal::open(&self.place(), self.options()).await.unwrap()
    }

    pub(crate) async fn reader(&self) -> Reader {
        Reader::open_copy(&self.path).await.unwrap()
    }

    /// A closed log of `entries` entries and its two of opening and closing.
    pub(crate) async fn with_entries(entries: u64) -> Self {
        let log = Self::new();
        let journal = log.open().await;
        fill(&journal, entries).await;
        journal.close().await.unwrap();
        log
    }

    pub(crate) fn saved_checkpoint(&self) -> PathBuf {
        beside(&self.path, ".checkpoint")
    }
}

pub(crate) fn beside(path: &Path, ending: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(ending);
    name.into()
}

/// A decision with every field set.
pub(crate) fn draft(i: u64) -> Draft {
    let action = json!({
        "kind": "tool_call", "protocol": "mcp", "method": "tools/call", "server": "files",
        "tool": if i.is_multiple_of(3) { "write_file" } else { "read_file" },
    });
    let result = if i.is_multiple_of(5) { Outcome::Deny } else { Outcome::Allow };
    let mut draft = Draft::new(Kind::Decision, Timestamp::from_secs(1_700_000_000 + i), result)
        .with_arguments(json!({ "path": "/tmp/…" }), b"{\"path\":\"/tmp/x\"}", Salt::random());
    draft.action = action.as_object().unwrap().clone();
    draft.agent_id = Some(format!("spiffe://acme.example/ns/shop/sa/bot/agent/a{}", i % 4));
    draft.sponsor = Some("ada@acme.example".into());
    draft.resource = Some(format!("file:///tmp/{i}"));
    draft.reason =
        Some(if result == Outcome::Deny { "policy_denied" } else { "policy_allowed" }.into());
    draft.decision_id = Some(format!("d{i}"));
    draft.policies = vec![aegis_audit::PolicyRef {
        name: "shop/files".into(),
        digest: aegis_core::Digest::of(b"policy"),
        effect: result.to_string(),
        mode: "enforce".into(),
    }];
    draft.approval = Some("ap1".into());
    draft.tier = Some("L2".into());
    draft.risk = Some(120);
    draft.trust = Some(700);
    draft.trust_as_of = Some(0);
    draft.detail = json!({ "status": 200, "bytes": i }).as_object().unwrap().clone();
    draft.trace = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
    draft
}

/// Appends and waits for all.
pub(crate) async fn fill(journal: &Journal, entries: u64) {
    let mut tickets = Vec::new();
    for i in 0..entries {
        tickets.push(journal.append(draft(i)).await.unwrap());
    }
    for ticket in tickets {
        ticket.await.unwrap();
    }
}
