//! Running the binary, and a ledger to run it on.

use std::{
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use aegis_audit::{Draft, Journal, Kind, Location, Options, Outcome, Salt, Signer};
use aegis_core::{Timestamp, canonical};
use serde_json::{Value, json};

pub(crate) const AGENT: &str = "spiffe://acme.example/ns/shop/sa/bot/agent/buyer";

/// The binary, told of no daemon.
pub(crate) fn command(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_aegis"));
    command.args(args).env("AEGIS_SOCKET", "/nonexistent/control.sock").env_remove("NO_COLOR");
    command
}

pub(crate) struct Run {
    pub(crate) code: i32,
    pub(crate) stdout: String,
    pub(crate) stderr: String,
}

impl Run {
    pub(crate) fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
        Self {
            code: output.status.code().expect("it ends by itself"),
            stdout: text(&output.stdout),
            stderr: text(&output.stderr),
        }
    }

    pub(crate) fn json(&self) -> Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|e| panic!("{e}: {}", self.stdout))
    }

    /// Fails unless this is the exit code.
    pub(crate) fn exits(self, code: i32) -> Self {
        assert_eq!(self.code, code, "stdout: {}\nstderr: {}", self.stdout, self.stderr);
        self
    }

    /// Fails unless standard error is one clear sentence with this in it.
    pub(crate) fn refuses(self, part: &str) -> Self {
        let run = self.exits(1);
        assert!(run.stderr.contains(part), "lacks `{part}`: {}", run.stderr);
        assert!(run.stderr.starts_with("aegis: "), "{}", run.stderr);
        assert_eq!(run.stderr.trim_end().lines().count(), 1, "{}", run.stderr);
        run
    }
}

pub(crate) fn aegis(args: &[&str]) -> Run {
    Run::of(&command(args).output().unwrap())
}

/// A code of the secret in a file, by another implementation. `step`: of this half minute, or of
/// one before or after it.
pub(crate) fn code(secret: &Path, step: i8) -> String {
    const PROGRAM: &str = "import hmac,sys,time,struct
left=30-time.time()%30
if left<10: time.sleep(left+0.01)
key=bytes.fromhex(open(sys.argv[1]).read().strip())
h=hmac.new(key,struct.pack('>Q',int(time.time())//30+int(sys.argv[2])),'sha1').digest()
o=h[-1]&15
print('%06d'%((struct.unpack('>I',h[o:o+4])[0]&0x7fffffff)%1000000),end='')";
    let output = Command::new("python3")
        .args(["-c", PROGRAM, text(secret), &step.to_string()])
        .output()
        .unwrap();
    String::from_utf8(output.stdout).unwrap()
}

pub(crate) fn text(path: &Path) -> &str {
    path.to_str().unwrap()
}

/// A ledger in a folder of its own.
pub(crate) struct Ledger {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) path: PathBuf,
    pub(crate) signer: Signer,
}

impl Ledger {
    /// A closed ledger with so many decisions and as many outcomes.
    pub(crate) async fn with(calls: u64) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.db");
        let ledger =
            Self { dir, path, signer: Signer::from_seed("acme.example/audit", &[9; 32]).unwrap() };
        ledger.grow(0..calls).await;
        ledger
    }

    /// Opens the journal, appends, closes it.
    pub(crate) async fn grow(&self, calls: std::ops::Range<u64>) {
        let journal = self.journal().await;
        let mut tickets = Vec::new();
        for call in calls {
            tickets.push(journal.append(decision(call)).await.unwrap());
            tickets.push(journal.append(outcome(call)).await.unwrap());
        }
        for ticket in tickets {
            ticket.await.unwrap();
        }
        journal.close().await.unwrap();
    }

    /// Opens the journal, appends these, closes it.
    pub(crate) async fn append(&self, drafts: impl IntoIterator<Item = Draft>) {
        let journal = self.journal().await;
        for draft in drafts {
            journal.append(draft).await.unwrap().await.unwrap();
        }
        journal.close().await.unwrap();
    }

    async fn journal(&self) -> Journal {
        let mut options = Options::new("daemon", self.signer.clone());
        // Closing signs; nothing else does.
        options.checkpoint_interval = Duration::from_secs(3_600);
        Journal::open(&Location::Sqlite(self.path.clone()), options).await.unwrap()
    }

    pub(crate) fn key(&self) -> String {
        self.signer.verifier().to_string()
    }

    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }
}

/// The arguments of a call, as they were.
pub(crate) fn arguments(call: u64) -> Value {
    json!({ "path": format!("/srv/{call}.txt") })
}

fn entry(call: u64, kind: Kind, result: Outcome) -> Draft {
    let mut draft = Draft::new(kind, Timestamp::from_secs(1_700_000_000 + call), result);
    let action = json!({
        "kind": "tool_call", "protocol": "mcp", "method": "tools/call", "server": "files",
        "tool": "read_file",
    });
    draft.action = action.as_object().unwrap().clone();
    draft.agent_id = Some(AGENT.into());
    draft.decision_id = Some(format!("d{call}"));
    draft.risk = Some(300);
    draft.tier = Some("L1".into());
    draft
}

/// Every tenth call is refused by a policy.
fn decision(call: u64) -> Draft {
    let refused = call % 10 == 9;
    let full = canonical::to_vec(&arguments(call)).unwrap();
    let mut draft =
        entry(call, Kind::Decision, if refused { Outcome::Deny } else { Outcome::Allow })
            .with_arguments(
                json!({ "path": "[redacted]" }),
                &full,
                Salt::from_bytes([call as u8; 32]),
            );
    draft.reason = Some(if refused { "policy_denied" } else { "policy_allowed" }.into());
    draft.resource = Some(format!("file:///srv/entry-{call}-end"));
    draft
}

fn outcome(call: u64) -> Draft {
    entry(call, Kind::Outcome, if call % 10 == 9 { Outcome::Unknown } else { Outcome::Success })
}
