//! What a policy says: the shape of `spec` in AgentPolicy and ClusterAgentPolicy.
//!
//! Only data. `aegis-policy` turns it into Rego and evaluates it; `aegis-resources` wraps it in the
//! Kubernetes envelope.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The specification of a policy.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    { "rule": "has(self.rego) || (has(self.rules) && size(self.rules) > 0)",
      "message": "a policy with neither `rules` nor `rego` would do nothing; add one" },
]))]
pub struct PolicySpec {
    /// Which agents it applies to. Empty: every agent of its namespace (of the cluster, for a
    /// ClusterAgentPolicy).
    #[serde(default)]
    pub selector: AgentSelector,
    /// Where it is enforced. Empty: everywhere.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 3))]
    pub scopes: Vec<Scope>,
    /// Whether its verdicts bind (`enforce`) or are only recorded (`audit`).
    #[serde(default)]
    pub mode: Mode,
    /// Which actions it speaks about. Empty: all.
    #[serde(default, rename = "match")]
    pub matches: ActionMatch,
    /// Declarative rules.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub rules: Vec<Rule>,
    /// Raw Rego: one module that may define `allow`, `deny`, `require_approval`, `obligations` and
    /// `visible`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 262_144))]
    pub rego: Option<String>,
    /// The controls it helps to meet.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub compliance: Vec<ComplianceTag>,
}

/// Which agents a policy applies to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AgentSelector {
    /// Globs over the agent's name or, where one starts with `spiffe://`, over the whole ID.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 512)))]
    pub agents: Vec<String>,
    /// Globs over the agent's namespace; only in a ClusterAgentPolicy.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    pub namespaces: Vec<String>,
}

/// Where an enforcement point stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    /// The editor and coding agents' hooks.
    Ide,
    /// The network: sidecar and stdio wrapper.
    Mesh,
    /// Inside the agent's process: the kernel API.
    Kernel,
}

/// Whether a policy's verdicts bind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Mode {
    /// They bind.
    #[default]
    Enforce,
    /// They are recorded and do not count: an audited deny does not refuse, an audited allow does
    /// not permit.
    Audit,
}

/// Which actions a policy speaks about. Each list holds globs; an empty list is no restriction.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ActionMatch {
    /// `mcp`, `a2a`, `http`, `tls`, `kernel`, `ide`. What cannot be looked into, which is `tls`, is
    /// allowed by policies alone that list it here.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 8))]
    pub protocols: Vec<crate::action::Protocol>,
    /// Upstream names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 253)))]
    pub servers: Vec<String>,
    /// Protocol methods, such as `tools/call`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 128)))]
    pub methods: Vec<String>,
    /// Tool or prompt names.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256), inner(length(min = 1, max = 256)))]
    pub tools: Vec<String>,
    /// Resources: URIs and paths; `*` stays within a segment, `**` does not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 1024)))]
    pub paths: Vec<String>,
}

/// One declarative rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    { "rule": "!has(self.rateLimit) || self.effect == 'allow'",
      "message": "`rateLimit` says how often a rule allows; remove it or make the effect `allow`" },
    { "rule": "!has(self.approvals) || self.effect == 'require_approval' || (has(self.requireMfa) && self.requireMfa)",
      "message": "`approvals` counts approvers; it needs the effect `require_approval` or `requireMfa: true`" },
    { "rule": "self.effect != 'deny' || !has(self.requireMfa) || !self.requireMfa",
      "message": "`requireMfa` has no meaning in a deny; remove it or use `require_approval`" },
    { "rule": "self.effect != 'deny' || !has(self.obligations) || self.obligations.all(o, o.kind != 'redactResult')",
      "message": "`redactResult` says what to do with the result of an allowed message; a deny has none" },
]))]
pub struct Rule {
    /// The rule's name, unique in its policy; shown with every decision it determines.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,
    /// What it does when it applies.
    pub effect: Effect,
    /// Globs that narrow the policy's own `match.tools`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 256)))]
    pub tools: Vec<String>,
    /// Globs that narrow the policy's own `match.methods`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64), inner(length(min = 1, max = 128)))]
    pub methods: Vec<String>,
    /// Conditions, all of which must hold.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub when: Vec<Condition>,
    /// For `allow`: how often.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_limit: Option<RateLimit>,
    /// Requires an approval confirmed by a second factor; makes an `allow` a `require_approval`.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub require_mfa: bool,
    /// For `require_approval`: how many approvers must agree. Default 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 10))]
    pub approvals: Option<u8>,
    /// What must be done to a message that this rule allows.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub obligations: Vec<Obligation>,
    /// One sentence for the person or model that is refused or asked. Never quotes arguments.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 500))]
    pub reason: Option<String>,
}

/// What a rule does.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
#[serde(rename_all = "snake_case")]
pub enum Effect {
    /// Permits, unless another rule denies or asks.
    Allow,
    /// Asks a human; overrides `allow`.
    RequireApproval,
    /// Refuses; overrides everything.
    Deny,
}

/// One condition: where to look, one operator, a value.
///
/// An argument of another type than the operator expects fails closed: it counts as met in `deny`
/// and `require_approval`, as unmet in `allow`. Where a path selects several values, `deny` and
/// `require_approval` look for any, `allow` demands all (and at least one).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[schemars(extend("x-kubernetes-validations" = [
    { "rule": "has(self.argument) != has(self.field)",
      "message": "a condition looks at either `argument` (a JSON path) or `field` (of the input document); keep exactly one" },
]))]
pub struct Condition {
    /// A JSON path into the arguments, such as `$.query`, `$.files[*].path` or `$..path`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256))]
    pub argument: Option<String>,
    /// A field of the input document, such as `principal.trust` or `context.risk.score`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 128))]
    pub field: Option<String>,
    /// The operator.
    pub operator: Operator,
    /// What it compares with; absent for `exists` and `absent`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-preserve-unknown-fields" = true))]
    pub value: Option<Value>,
}

/// The typed operators of conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum Operator {
    /// Any type; deep equality.
    Equals,
    /// Any type.
    NotEquals,
    /// `value` is a list that holds it.
    In,
    /// `value` is a list that does not hold it.
    NotIn,
    /// String; a regular expression (RE2 syntax) found anywhere in it.
    Matches,
    /// String; the regular expression is not found.
    NotMatches,
    /// String that contains the string, or list that contains the value.
    Contains,
    /// The opposite.
    NotContains,
    /// String.
    StartsWith,
    /// String.
    EndsWith,
    /// String; a glob over `/`-separated segments.
    Glob,
    /// String: a path that, once `.` and `..` are resolved, lies in the directory `value` (or one of
    /// a list).
    Within,
    /// String: a path that does not.
    NotWithin,
    /// String; one of its segments, split at every character that is neither letter nor digit and
    /// at camelCase humps, equals one of the words. `author.ts` does not hold `auth`.
    HasWord,
    /// Number.
    LessThan,
    /// Number.
    AtMost,
    /// Number.
    GreaterThan,
    /// Number.
    AtLeast,
    /// String longer than this many characters, or list than this many items.
    LongerThan,
    /// There is such a value.
    Exists,
    /// There is none.
    Absent,
}

/// How often a rule allows: the generic cell rate algorithm (GCRA), kept by the host.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct RateLimit {
    /// How many actions.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub requests: u32,
    /// In what time.
    pub per: RatePeriod,
    /// How many at once. Default: `requests`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1_000_000))]
    pub burst: Option<u32>,
    /// Who shares the allowance.
    #[serde(default)]
    pub scope: RateScope,
}

/// The period of a rate limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RatePeriod {
    /// One second.
    Second,
    /// 60 seconds.
    Minute,
    /// 3,600 seconds.
    Hour,
    /// 86,400 seconds.
    Day,
}

/// Who shares a rate limit's allowance.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum RateScope {
    /// Each agent has its own in this enforcement point.
    #[default]
    Agent,
    /// All agents of this enforcement point share it.
    Instance,
}

/// What must be done to an allowed message, and what is kept out of the record of any. An enforcement
/// point that cannot, denies.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Obligation {
    /// What to do.
    pub kind: ObligationKind,
    /// A JSON path (`redactArgument`) or a regular expression (`redactResult`).
    #[schemars(length(min = 1, max = 512))]
    pub target: String,
}

/// The kinds of obligation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum ObligationKind {
    /// Keep these arguments out of the record, also where the rule denies or only audits.
    RedactArgument,
    /// Replace what matches in every text of the result by `[redacted]`.
    RedactResult,
}

/// A control that a policy helps to meet.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct ComplianceTag {
    /// The framework, such as `soc2`.
    #[schemars(length(min = 1, max = 63))]
    pub framework: String,
    /// The control, such as `CC6.1`.
    #[schemars(length(min = 1, max = 63))]
    pub control: String,
}

impl RatePeriod {
    /// The period in microseconds.
    #[must_use]
    pub const fn micros(self) -> u64 {
        match self {
            Self::Second => 1_000_000,
            Self::Minute => 60_000_000,
            Self::Hour => 3_600_000_000,
            Self::Day => 86_400_000_000,
        }
    }
}
