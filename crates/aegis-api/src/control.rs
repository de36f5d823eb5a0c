//! Requests and answers of the control socket, JSON over HTTP/1.1.
//!
//! | method and path | asks | answers |
//! |---|---|---|
//! | `GET /v1/status` | | [`Status`] |
//! | `GET /v1/approvals` | | `[`[`ApprovalView`]`]` |
//! | `GET /v1/approvals/{id}` | | [`ApprovalView`] |
//! | `POST /v1/approvals/{id}` | [`VoteRequest`] | [`ApprovalView`] |
//! | `GET /v1/events` | | server-sent events: [`EntryNotice`], named as the entry's kind |
//! | `GET /v1/trust` | | `[`[`TrustView`]`]` |
//! | `POST /v1/trust` | [`TrustAdjustment`] | [`TrustView`] |
//! | `POST /v1/explain` | [`ActionQuestion`] | an explanation (see [`Explanation`]) |
//! | `GET /v1/tools` | | `[`[`ToolView`]`]` |
//! | `POST /v1/tools` | [`PinRequest`] | [`Done`] |
//! | `POST /v1/agents` | [`AgentOrder`] | [`Done`] |
//! | `POST /v1/glass` | [`GlassOrder`] | [`Done`] |
//! | `POST /v1/reload` | | [`Status`] |
//! | `POST /v1/console` | [`ConsoleRequest`] | [`ConsoleLink`] |
//! | `POST /v1/wrap` | [`WrapHello`], then an upgrade to `aegis-wrap` | frames ([`crate::frame`]) |
//!
//! Errors are [`Problem`] with a 4xx or 5xx status. The ledger's own paths (`/checkpoint`,
//! `/tile/…`, `/v1/entries`, `/v1/proof/{index}`) are served beside these.

pub use aegis_core::decision::Explanation;
use aegis_core::{AgentId, Digest, Timestamp, thresholds::Thresholds, trust::Trust};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// One sentence on what went wrong and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The sentence. The ledger's own paths call it `error`.
    #[serde(alias = "error")]
    pub message: String,
}

/// An order was carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Done {
    /// The ledger index of its record.
    pub index: u64,
}

/// How the daemon stands, never better than it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The daemon's version.
    pub version: String,
    /// Its process id.
    pub pid: u32,
    /// When it started.
    pub started_at: Timestamp,
    /// The trust domain.
    pub trust_domain: String,
    /// The folder that resources are read from.
    pub config: String,
    /// How durable a record is before its action: `strict`, `overlap` or `buffered`.
    pub audit: String,
    /// Why approvals and policies here are advisory; empty where they are not.
    pub advisory: Vec<String>,
    /// What is not covered; empty if everything that is configured is.
    pub not_covered: Vec<String>,
    /// The upstreams.
    pub upstreams: Vec<UpstreamStatus>,
    /// The policies.
    pub policies: Vec<PolicyStatus>,
    /// The agents that are registered.
    pub agents: Vec<AgentStatus>,
    /// The ledger.
    pub ledger: LedgerStatus,
    /// Resources that could not be read, one sentence each.
    pub problems: Vec<String>,
    /// What is probably not meant, such as a name in a policy that nothing is called by.
    #[serde(default)]
    pub warnings: Vec<String>,
}

/// One upstream.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UpstreamStatus {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// The address to give to clients, such as `http://127.0.0.1:7101/mcp`.
    pub address: String,
    /// Where Aegis forwards to: a URL or a command.
    pub target: String,
    /// How many definitions of tools are pinned.
    pub pinned: usize,
    /// How many are quarantined.
    pub quarantined: usize,
}

/// One policy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// `namespace/name`, or `name`.
    pub name: String,
    /// `ready`, `last_good` or `failed`.
    pub state: String,
    /// What is wrong; empty if nothing is.
    pub message: String,
}

/// One registered agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Its SPIFFE ID.
    pub id: AgentId,
    /// Its sponsor.
    pub sponsor: String,
    /// Its trust score.
    pub trust: u16,
    /// Whether it is quarantined.
    pub quarantined: bool,
    /// Whether its identity is revoked.
    pub revoked: bool,
    /// Until when a human has lifted the policies for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub glass_broken_until: Option<Timestamp>,
}

/// The ledger.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerStatus {
    /// Where it is.
    pub place: String,
    /// Its origin line.
    pub origin: String,
    /// How many entries it holds.
    pub size: u64,
    /// The key that verifies its checkpoints.
    pub verifier_key: String,
}

/// An approval as people see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ApprovalView {
    /// Its id.
    pub id: String,
    /// `pending`, `approved`, `denied`, `expired` or `consumed`.
    pub state: String,
    /// Who wants to act.
    pub agent: AgentId,
    /// The human behind it.
    pub sponsor: Option<String>,
    /// The upstream.
    pub server: String,
    /// The protocol's method.
    pub method: String,
    /// The tool, if one is named.
    pub tool: Option<String>,
    /// What it acts on, such as a file's path.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resource: Option<String>,
    /// The arguments, redacted.
    pub arguments: Value,
    /// The digest that it is bound to.
    pub digest: Digest,
    /// Why it was asked.
    pub message: String,
    /// The reason code.
    pub reason: String,
    /// Risk in per mille.
    pub risk: u64,
    /// Trust, 0..1000.
    pub trust: u64,
    /// `L1`, `L2` or `L3`.
    pub tier: String,
    /// How many approvers must agree.
    pub quorum: u8,
    /// Whether a second factor is needed.
    pub mfa: bool,
    /// The answers so far: who, and whether they agreed.
    pub votes: Vec<VoteView>,
    /// When it was asked.
    pub requested_at: Timestamp,
    /// When it expires, which denies.
    pub expires_at: Timestamp,
}

/// One answer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VoteView {
    /// Who.
    pub approver: String,
    /// Yes or no.
    pub approve: bool,
    /// `none`, `account` or `totp`.
    pub factor: String,
    /// Why.
    pub comment: Option<String>,
}

/// An answer to an approval. Who answers is taken from the socket.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VoteRequest {
    /// Yes or no.
    pub approve: bool,
    /// Why.
    #[serde(default)]
    pub comment: Option<String>,
    /// A one-time code.
    #[serde(default)]
    pub totp: Option<String>,
}

/// An entry of the ledger that was just committed and is about an agent: a decision, an outcome, an
/// approval that is asked for, answered or used.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct EntryNotice {
    /// The agent.
    pub agent: String,
    /// The entry, without its arguments.
    #[serde(flatten)]
    pub entry: crate::kernel::EntryEvent,
}

/// The trust in an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustView {
    /// Who.
    pub agent: AgentId,
    /// 0..1000.
    pub score: u16,
    /// AgentMesh's name for it.
    pub standing: String,
    /// FailSafe's name for it.
    pub stage: String,
    /// The posterior's a, in millionths of an observation.
    pub a: u64,
    /// The posterior's b, likewise.
    pub b: u64,
    /// The probability that the true score is below the critical one. Per mille.
    pub below_critical: u16,
    /// Whether that quarantines the agent.
    pub quarantined: bool,
    /// How many ledger entries it is folded from.
    pub as_of: u64,
}

impl TrustView {
    /// Of an agent that these thresholds are for, folded from `as_of` entries.
    #[must_use]
    pub fn of(agent: AgentId, trust: &Trust, thresholds: &Thresholds, as_of: u64) -> Self {
        let score = trust.score();
        let name = |value: Value| value.as_str().unwrap_or_default().to_owned();
        Self {
            agent,
            score: score.get(),
            standing: name(json!(score.standing())),
            stage: name(json!(score.stage())),
            a: trust.a,
            b: trust.b,
            below_critical: trust.probability_below(thresholds.critical_score).get(),
            quarantined: trust.is_critical(thresholds),
            as_of,
        }
    }
}

/// Sets a posterior by hand.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TrustAdjustment {
    /// Whose.
    pub agent: AgentId,
    /// The new a, in millionths of an observation.
    pub a: u64,
    /// The new b.
    pub b: u64,
    /// Why; recorded.
    pub reason: String,
    /// A one-time code; needed where a second factor is enrolled.
    #[serde(default)]
    pub totp: Option<String>,
}

/// A hypothetical action to be explained.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ActionQuestion {
    /// Who would act; if absent, the only registered agent.
    #[serde(default)]
    pub agent: Option<AgentId>,
    /// The upstream.
    pub server: String,
    /// The method; default `tools/call`.
    #[serde(default)]
    pub method: Option<String>,
    /// The tool.
    #[serde(default)]
    pub tool: Option<String>,
    /// The resource.
    #[serde(default)]
    pub resource: Option<String>,
    /// The arguments.
    #[serde(default)]
    pub arguments: Value,
}

/// A tool with its pin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ToolView {
    /// The upstream.
    pub server: String,
    /// The tool.
    pub tool: String,
    /// The digest that is pinned; absent if none is.
    pub pinned: Option<Digest>,
    /// The digest that was seen last.
    pub seen: Digest,
    /// Whether calls are refused because the two differ.
    pub quarantined: bool,
    /// What looks suspicious in the definition.
    pub warnings: Vec<String>,
}

/// Pins what was seen last.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinRequest {
    /// The upstream.
    pub server: String,
    /// The tool.
    pub tool: String,
    /// The digest that is agreed to; refused if another was seen meanwhile.
    pub digest: Digest,
    /// A one-time code; needed where a second factor is enrolled.
    #[serde(default)]
    pub totp: Option<String>,
}

/// Lifts the policies for one agent for a while, or ends that.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct GlassOrder {
    /// For whom.
    pub agent: AgentId,
    /// For how long: at most [`MAX_GLASS_MINUTES`]; 0 ends it now.
    pub minutes: u16,
    /// Why: at least [`MIN_GLASS_REASON`] characters where it begins.
    pub reason: String,
    /// A one-time code.
    #[serde(default)]
    pub totp: Option<String>,
}

/// The longest that policies are lifted. Minutes.
pub const MAX_GLASS_MINUTES: u16 = 480;
/// The shortest reason for it.
pub const MIN_GLASS_REASON: usize = 10;

/// Something to be done to an agent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct AgentOrder {
    /// Who.
    pub agent: AgentId,
    /// What.
    pub order: Order,
    /// Why; recorded.
    pub reason: String,
    /// A one-time code; needed where a second factor is enrolled.
    #[serde(default)]
    pub totp: Option<String>,
}

/// What can be done to an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Order {
    /// Every action is denied until released.
    Quarantine,
    /// Ends a quarantine by hand.
    Release,
    /// Its identity ends now.
    Revoke,
}

/// Asks for a link to the console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleRequest {
    /// Whether what it opens sees everything and decides nothing.
    pub read_only: bool,
}

/// A link to the console.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleLink {
    /// Works once. What signs in is its fragment, which no browser sends with a request.
    pub url: String,
    /// Until when it works.
    pub expires_at: Timestamp,
}

/// What the console's page has got from its link.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ConsoleToken {
    /// The link's code.
    pub token: String,
}

impl std::fmt::Debug for ConsoleToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ConsoleToken")
    }
}

/// A session of the console.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConsoleSession {
    /// What its requests bring as a bearer token; told once.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub token: Option<String>,
    /// Whether it decides nothing.
    pub read_only: bool,
}

impl std::fmt::Debug for ConsoleSession {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsoleSession").field("read_only", &self.read_only).finish_non_exhaustive()
    }
}

/// What a stdio wrapper says first.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrapHello {
    /// The name under which policies know the wrapped server.
    pub server: String,
    /// Its namespace; `default` if absent.
    #[serde(default)]
    pub namespace: Option<String>,
    /// The command that the client's configuration gives; empty if it gives none. Where an
    /// AgentUpstream registers a command, the daemon starts that one, and refuses another.
    #[serde(default)]
    pub command: Vec<String>,
}

/// The header of the daemon's answer to [`WrapHello`] that says who starts the server: `daemon`, or
/// `wrapper`.
pub const STARTED_BY: &str = "aegis-started-by";
