//! Turning decisions and outcomes into audit entries.

use aegis_audit::{
    entry::{Draft, Kind, Outcome, PolicyRef},
    salt::Salt,
};
use aegis_core::{
    Timestamp,
    action::Action,
    canonical,
    decision::{Decision, Reason, Verdict},
    policy::{Effect, Mode, Obligation, ObligationKind},
};
use aegis_protocol::redact;
use serde_json::{Map, Value, json};

use crate::{permit::Receipt, principal::Principal, request::Request};

/// The largest arguments that are recorded in full; of larger ones only the digest is.
const MAX_RECORDED_ARGUMENTS: usize = 16 * 1024;

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

/// What an entry says of the action itself.
pub(crate) fn action_members(request: &Request<'_>, digest: &str) -> Map<String, Value> {
    let action = request.action;
    let mut members = Map::new();
    let mut text = |name: &str, value: &str| {
        members.insert(name.into(), Value::String(value.into()));
    };
    text("kind", action.kind.as_str());
    text("protocol", action.protocol.as_str());
    text("method", &action.method);
    text("server", &action.server);
    text("digest", digest);
    if let Some(endpoint) = request.context.endpoint {
        text("endpoint", &redact::text(endpoint));
    }
    if let Some(tool) = &action.tool {
        text("tool", tool);
    }
    if let Some(pin) = &action.tool_pin {
        text("tool_pin", &pin.to_string());
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
    draft.action = action_members(request, &decision.action.to_string());
    draft.resource = resource(request.action);
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
    draft.trace = request.context.trace.map(Into::into);
    for (name, value) in [("session", request.context.session), ("within", request.context.within)]
    {
        if let Some(value) = value {
            draft.detail.insert(name.into(), value.into());
        }
    }
    if !decision.rates.is_empty() {
        draft.detail.insert("rates".into(), json!(decision.rates));
    }
    with_arguments(draft, request.action, &decision.obligations)
}

/// What an entry says of the resource: its name, without what is certainly a secret in it.
pub(crate) fn resource(action: &Action) -> Option<String> {
    action.resource.as_deref().map(redact::text)
}

/// Adds the arguments, redacted, under a fresh salt.
pub(crate) fn with_arguments(draft: Draft, action: &Action, obligations: &[Obligation]) -> Draft {
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
        redacted(&action.arguments, obligations)
    };
    draft.with_arguments(redacted, &full, Salt::random())
}

/// The arguments as people may see them: without what obligations name, without the values of
/// members whose names speak of secrets, and without what has the shape of one.
fn redacted(arguments: &Value, obligations: &[Obligation]) -> Value {
    let paths: Vec<redact::Path> = obligations
        .iter()
        .filter(|obligation| obligation.kind == ObligationKind::RedactArgument)
        // Policies with a path that does not parse are refused when they are loaded.
        .filter_map(|obligation| obligation.target.parse().ok())
        .collect();
    redact::arguments(arguments, &paths)
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
