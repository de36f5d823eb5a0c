//! Turning decisions and outcomes into audit entries.

use aegis_audit::{
    entry::{Draft, Kind, Outcome, PolicyRef},
    salt::Salt,
};
use aegis_core::{
    Digest, Timestamp,
    action::{Action, Protocol},
    canonical,
    decision::{Decision, Reason, Verdict},
    policy::{Effect, Mode, Obligation, ObligationKind},
};
use aegis_protocol::redact;
use serde_json::{Map, Value, json};

use crate::{permit::Receipt, principal::Principal, request::Request};

/// The largest arguments that are recorded in full; of larger ones only the digest is.
const MAX_RECORDED_ARGUMENTS: usize = 16 * 1024;

/// How long a `traceparent` is.
const MAX_TRACE: usize = 55;

/// How a permitted action ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ending {
    /// Success, failure, or nobody knows.
    pub result: Outcome,
    /// The reason code, where Aegis or the upstream is at fault.
    pub reason: Option<String>,
    /// The status as the protocol names it, such as an HTTP status or a JSON-RPC error code.
    pub status: Option<i64>,
    /// Bytes that went to the caller.
    pub bytes: u64,
    /// Bytes that came from the caller once it was decided, where there are any: of a connection.
    pub sent: u64,
    /// Events that went to the caller.
    pub events: u64,
    /// How long it took from the decision. Microseconds.
    pub micros: u64,
    /// How many texts of the result were redacted.
    pub redactions: u64,
}

/// The entry of something that `principal` did or asked for, answered for by its sponsor.
pub(crate) fn of_principal(
    kind: Kind,
    now: Timestamp,
    result: Outcome,
    principal: &Principal,
) -> Draft {
    let mut draft = Draft::new(kind, now, result);
    draft.agent_id = Some(principal.id.to_string());
    draft.sponsor = principal.sponsor.as_ref().map(ToString::to_string);
    if !principal.delegation.is_empty() {
        draft.detail.insert("delegation".into(), json!(principal.delegation));
    }
    if let Some(manifest) = &principal.manifest {
        let told = match manifest {
            Ok(shown) => json!({ "digest": shown.digest, "policies": shown.policies }),
            Err(problem) => json!({ "problem": problem.code() }),
        };
        draft.detail.insert("manifest".into(), told);
    }
    draft
}

/// Adds what an entry says of the action: its names, what it acts on, the arguments and the digest. Answers
/// the digest as it is recorded.
pub(crate) fn with_action(
    mut draft: Draft,
    request: &Request<'_>,
    decision: &Decision,
) -> (Draft, Digest) {
    draft.action = action_members(request);
    draft.resource = resource(request.action);
    let mut draft = with_arguments(draft, request.action, &decision.obligations);
    let mut digest = decision.action;
    if !tells_all(&draft, request) {
        // Everything else that it is made of stands in the entry: a reader could try what was left out.
        let salt = draft.salt.get_or_insert_with(Salt::random);
        digest = salt.digest(digest.as_bytes());
    }
    draft.action.insert("digest".into(), digest.to_string().into());
    (draft, digest)
}

/// Whether all that the digest is made of stands in the entry.
fn tells_all(draft: &Draft, request: &Request<'_>) -> bool {
    let action = request.action;
    let same = |member: &str, value: Option<&str>| draft.action_text(member) == value;
    same("method", Some(&action.method))
        && same("server", Some(&action.server))
        && same("tool", action.tool.as_deref())
        && same("endpoint", request.context.endpoint)
        && draft.resource == action.resource
        && draft
            .arguments
            .as_ref()
            .map_or(action.arguments.is_null(), |told| *told == action.arguments)
}

/// What an entry says of the names of the action.
fn action_members(request: &Request<'_>) -> Map<String, Value> {
    let action = request.action;
    let mut members = Map::new();
    let mut text = |name: &str, value: String| {
        members.insert(name.into(), Value::String(value));
    };
    text("kind", action.kind.as_str().into());
    text("protocol", action.protocol.as_str().into());
    // Names come from outside, too.
    text("method", redact::text(&action.method));
    text("server", redact::text(&action.server));
    if let Some(endpoint) = request.context.endpoint {
        text("endpoint", redact::text(endpoint));
    }
    if let Some(tool) = &action.tool {
        text("tool", redact::text(tool));
    }
    if let Some(pin) = &action.tool_pin {
        text("tool_pin", pin.to_string());
    }
    members
}

const fn outcome_of(verdict: Verdict) -> Outcome {
    match verdict {
        Verdict::Allow => Outcome::Allow,
        Verdict::RequireApproval => Outcome::RequireApproval,
        Verdict::Deny => Outcome::Deny,
    }
}

const fn effect_name(effect: Effect) -> &'static str {
    match effect {
        Effect::Allow => "allow",
        Effect::RequireApproval => "require_approval",
        Effect::Deny => "deny",
    }
}

/// The entry of a decision.
pub(crate) fn decision(
    request: &Request<'_>,
    decision: &Decision,
    decision_id: &str,
    now: Timestamp,
) -> Draft {
    let kind = if request.context.within.is_some() { Kind::ServerRequest } else { Kind::Decision };
    let principal = request.context.principal;
    let mut draft = of_principal(kind, now, outcome_of(decision.verdict), principal);
    draft.reason = Some(decision.reason.code().into());
    draft.decision_id = Some(decision_id.into());
    draft.policies = decision
        .findings
        .iter()
        .map(|finding| PolicyRef {
            name: format!("{}#{}", finding.policy, finding.rule),
            digest: finding.digest,
            effect: effect_name(finding.effect).into(),
            mode: if finding.mode == Mode::Audit { "audit" } else { "enforce" }.into(),
        })
        .collect();
    draft.tier = Some(decision.tier.as_str().into());
    draft.risk = Some(decision.risk.score.get().into());
    draft.trust = Some(decision.trust.get().into());
    draft.trust_as_of = Some(decision.trust_as_of);
    draft.trace = trace(request);
    for (name, value) in [("session", request.context.session), ("within", request.context.within)]
    {
        if let Some(value) = value {
            draft.detail.insert(name.into(), redact::text(value).into());
        }
    }
    if !decision.rates.is_empty() {
        draft.detail.insert("rates".into(), json!(decision.rates));
    }
    with_action(draft, request, decision).0
}

/// The caller's `traceparent`, unless it is something else: what a caller says of itself is no secret only
/// where it can be none.
pub(crate) fn trace(request: &Request<'_>) -> Option<String> {
    let digits = |part: &str| part.bytes().all(|b| b.is_ascii_hexdigit());
    let trace = request.context.trace?;
    (trace.len() <= MAX_TRACE && trace.split('-').all(digits)).then(|| trace.to_owned())
}

/// What an entry says of the resource: its name, without what is certainly a secret in it.
fn resource(action: &Action) -> Option<String> {
    action.resource.as_deref().map(redact::text)
}

/// Adds the arguments, redacted, under a fresh salt.
fn with_arguments(draft: Draft, action: &Action, obligations: &[Obligation]) -> Draft {
    if action.arguments.is_null() {
        return draft;
    }
    let mut full = Vec::with_capacity(512);
    if canonical::write_value(&mut full, &action.arguments).is_err() {
        return draft;
    }
    let redacted = if full.len() > MAX_RECORDED_ARGUMENTS {
        json!({ "omitted": format!("{} bytes; see arguments_digest", full.len()) })
    } else {
        redacted(action, obligations)
    };
    draft.with_arguments(redacted, &full, Salt::random())
}

/// The arguments as people may see them: without what obligations name, without the values of
/// members whose names speak of secrets, and without what has the shape of one.
fn redacted(action: &Action, obligations: &[Obligation]) -> Value {
    let paths = obligations
        .iter()
        .filter(|obligation| obligation.kind == ObligationKind::RedactArgument)
        .map(|obligation| obligation.target.as_str())
        // The digest of a body that is not in the entry would let a reader try what it may have been.
        .chain((action.protocol == Protocol::Http).then_some("$.content"));
    // Policies with a path that does not parse are refused when they are loaded.
    let paths: Vec<redact::Path> = paths.filter_map(|path| path.parse().ok()).collect();
    redact::arguments(&action.arguments, &paths)
}

/// The entry of an outcome.
pub(crate) fn outcome(receipt: &Receipt, ending: &Ending, now: Timestamp) -> Draft {
    let mut draft = Draft::new(Kind::Outcome, now, ending.result);
    draft.agent_id = Some(receipt.principal.to_string());
    draft.sponsor = receipt.sponsor.as_ref().map(ToString::to_string);
    draft.action.clone_from(&receipt.action);
    draft.decision_id = Some(receipt.decision_id.clone());
    // What was done while the policies were lifted stays told apart: it earns no trust.
    let lifted = receipt.decision.reason == Reason::GlassBroken;
    let by_itself = lifted.then(|| Reason::GlassBroken.code().to_owned());
    draft.reason = ending.reason.clone().or(by_itself);
    draft.tier = Some(receipt.decision.tier.as_str().into());
    draft.risk = Some(receipt.decision.risk.score.get().into());
    let mut number = |name: &str, value: i64| {
        draft.detail.insert(name.into(), value.into());
    };
    if let Some(status) = ending.status {
        number("status", status);
    }
    for (name, value) in [
        ("bytes", ending.bytes),
        ("sent", ending.sent),
        ("events", ending.events),
        ("micros", ending.micros),
        ("redactions", ending.redactions),
    ] {
        if value > 0 {
            number(name, i64::try_from(value).unwrap_or(i64::MAX));
        }
    }
    draft
}
