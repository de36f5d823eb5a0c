//! What the kernel API answers, JSON over HTTP/1.1 on `kernel.sock`.
//!
//! | method and path | asks | answers |
//! |---|---|---|
//! | `POST /access/v1/evaluation` | AuthZEN's access evaluation | [`Evaluation`] |
//! | `POST /access/v1/evaluations` | AuthZEN's access evaluations | [`Evaluations`], or [`Evaluation`] |
//! | `GET /.well-known/authzen-configuration` | | [`Configuration`] |
//! | `POST /v1/data/aegis/decision` | OPA's `{"input": …}` | [`DataResult`] |
//! | `POST /v1/hooks/AGENT` | the payload of a coding agent's hook | [`Evaluation`] |
//! | `POST /v1/refusals` | as AuthZEN's access evaluation, with a reason in its context | [`Evaluation`] |
//! | `POST /v1/preview` | as AuthZEN's access evaluation | [`Preview`] |
//! | `GET /v1/self` | | [`Caller`] |
//! | `GET /v1/policies` | | [`Policies`] |
//! | `POST /v1/outcomes` | [`OutcomeReport`] | [`OutcomeTaken`] |
//! | `GET /v1/events` | | server-sent events: [`PolicyEvent`] and [`EntryEvent`] |
//!
//! Errors are [`Refused`] with a 4xx or 5xx status. `Prefer: wait=SECONDS` holds a question that needs
//! a human's approval for so long.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// The longest that a question is held for a human. Seconds.
pub const MAX_WAIT_SECS: u64 = 60;

/// An answer to one evaluation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evaluation {
    /// Whether it may happen now. Nothing else permits.
    pub decision: bool,
    /// Why.
    pub context: DecisionContext,
}

/// The answers to a batch, in its order. Fewer than asked where its semantic stops early.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Evaluations {
    /// One for each question that was decided.
    pub evaluations: Vec<Evaluation>,
}

/// Why a decision came out as it did.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DecisionContext {
    /// `allow`, `require_approval` or `deny`.
    pub verdict: String,
    /// The reason's stable code.
    pub reason: String,
    /// One sentence. Never quotes arguments.
    pub message: String,
    /// Names the decision; its outcome is reported by it. Absent for what could not be judged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision_id: Option<String>,
    /// The approval that is waited for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<String>,
    /// The place of its record in the ledger, once it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub index: Option<u64>,
}

/// What a question would be answered now. It permits nothing: it has no effect and no record, and an
/// answer to the same question may be another one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Preview {
    /// `allow`, `require_approval` or `deny`.
    pub verdict: String,
    /// The reason's stable code.
    pub reason: String,
    /// One sentence. Never quotes arguments.
    pub message: String,
    /// The approval that there is for this very action, waited for or given.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<String>,
}

/// Who asks, as the daemon has it: who the operating system says is at the other end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// The agent.
    pub agent: String,
    /// The human who answers for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sponsor: Option<String>,
    /// Its trust, 0..1000.
    pub trust: u16,
    /// AgentMesh's name for that.
    pub standing: String,
    /// Whether it is stopped: quarantined, suspended or revoked.
    pub stopped: bool,
    /// The lowest tier that an action of it has now: `L1`, `L2` or `L3`.
    pub tier: String,
    /// Whether decisions hold against the agent's own user.
    pub mode: Mode,
}

/// Whether decisions hold against the agent's own user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// They do.
    Enforced,
    /// The agent's user could undo them; `aegis status` says how.
    Advisory,
}

/// The policies in force that can speak about the caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Policies {
    /// Counts up with every change of any.
    pub version: u64,
    /// In order.
    pub policies: Vec<PolicyView>,
}

/// One of them: what it is called and consists of. Conditions are not told.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyView {
    /// `NAME`, or `NAMESPACE/NAME`.
    pub policy: String,
    /// The digest by which the ledger names this version of it.
    pub digest: String,
    /// `enforce` or `audit`.
    pub mode: String,
    /// Its rules; raw Rego is one, named `rego`.
    pub rules: Vec<RuleView>,
}

/// A rule of a policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RuleView {
    /// Its name.
    pub name: String,
    /// `allow`, `require_approval` or `deny`; raw Rego may do each of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub effect: Option<String>,
    /// The sentence for who is refused or asked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// OPA's answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataResult {
    /// The decision's id, where OPA has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision_id: Option<String>,
    /// The document.
    pub result: DataDocument,
}

/// The document at `data.aegis.decision`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DataDocument {
    /// Whether it may happen now.
    pub allow: bool,
    /// Why.
    #[serde(flatten)]
    pub context: DecisionContext,
}

/// Where everything is. AuthZEN asks for HTTPS addresses; a socket of one machine has none.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Configuration {
    /// The decision point.
    pub policy_decision_point: String,
    /// Access evaluation.
    pub access_evaluation_endpoint: String,
    /// Access evaluations.
    pub access_evaluations_endpoint: String,
}

/// How an allowed action ended, told once by whoever was allowed it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct OutcomeReport {
    /// Which decision.
    pub decision_id: String,
    /// How it ended.
    pub result: Ended,
}

/// How an action ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ended {
    /// As it should.
    Success,
    /// It did not.
    Failure,
    /// Nobody can tell.
    Unknown,
}

/// The outcome will be recorded.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutcomeTaken {
    /// Of which decision.
    pub decision_id: String,
}

/// One sentence on what went wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// The sentence.
    pub message: String,
    /// The reason's stable code.
    pub reason: String,
}

/// The event `policy`: the policies in force. The first on every stream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyEvent {
    /// Counts up with every change.
    pub version: u64,
    /// The digest over all of them.
    pub digest: String,
}

/// An event named as the entry's kind, such as `decision`, `outcome` or `approval_vote`: an entry
/// of the ledger that is about the caller.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryEvent {
    /// Its place in the ledger; also the event's id.
    pub index: u64,
    /// How it came out.
    pub result: String,
    /// The action, without its arguments.
    pub action: Map<String, Value>,
    /// The reason's stable code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The decision.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub decision_id: Option<String>,
    /// The approval.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub approval: Option<String>,
}
