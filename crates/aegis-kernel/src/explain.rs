//! The whole computation of a decision, for people.

use aegis_core::{
    decision::{Explanation, Reason, Verdict},
    policy::{Effect, Mode},
    thresholds::Thresholds,
    tier::Escalation,
};

use crate::{judge::Judgement, request::Request};

/// Explains a judgement.
#[must_use]
pub fn explain(
    request: &Request<'_>,
    judgement: &Judgement,
    thresholds: &Thresholds,
) -> Explanation {
    let decision = &judgement.decision;
    Explanation {
        verdict: decision.verdict.as_str().into(),
        reason: decision.reason.code().into(),
        message: decision.message.clone(),
        digest: decision.action.to_string(),
        computation: computation(judgement, thresholds),
        rules: decision
            .findings
            .iter()
            .map(|finding| {
                let effect = match finding.effect {
                    Effect::Allow => "allows",
                    Effect::RequireApproval => "asks for approval",
                    Effect::Deny => "denies",
                };
                let mode =
                    if finding.mode == Mode::Audit { " (audit mode: does not count)" } else { "" };
                let message =
                    finding.message.as_deref().map_or(String::new(), |m| format!(": {m}"));
                format!("{}#{} {effect}{mode}{message}", finding.policy, finding.rule)
            })
            .collect(),
        would_allow: would_allow(request, judgement, thresholds),
        notes: Vec::new(),
    }
}

fn computation(judgement: &Judgement, thresholds: &Thresholds) -> Vec<String> {
    let (decision, facts, weights) = (&judgement.decision, &judgement.facts, &thresholds.weights);
    let risk = &decision.risk;
    let trust = decision.trust.get();
    let compare = |holds: bool| if holds { "yes" } else { "no" };
    vec![
        format!(
            "S  scope        = {} ‰   ({} files, {} bytes of arguments)",
            risk.scope.get(),
            facts.files,
            facts.bytes
        ),
        format!("C  sensitivity  = {} ‰   (grade {:?})", risk.sensitivity.get(), risk.grade),
        format!(
            "T  trust        = {trust}   (folded from {} ledger entries)",
            decision.trust_as_of
        ),
        format!(
            "R = w_s·S + w_c·C + w_t·(1 − T/1000) = ({}·{} + {}·{} + {}·{}) / 1000 = {} ‰",
            weights.scope.get(),
            risk.scope.get(),
            weights.sensitivity.get(),
            risk.sensitivity.get(),
            weights.trust.get(),
            1000 - u32::from(trust),
            risk.score.get(),
        ),
        format!(
            "R > τ ({} ‰)?                        {}",
            thresholds.tau.get(),
            compare(decision.escalations.contains(&Escalation::Risk))
        ),
        format!(
            "C ≥ {} ‰ and T < T_min ({})?       {}",
            thresholds.sensitive_at.get(),
            thresholds.t_min.get(),
            compare(decision.escalations.contains(&Escalation::Trust)),
        ),
        format!(
            "more than {} files?                  {}",
            thresholds.file_limit,
            compare(decision.escalations.contains(&Escalation::Files))
        ),
        format!("tier = {}", decision.tier.as_str()),
    ]
}

fn would_allow(
    request: &Request<'_>,
    judgement: &Judgement,
    thresholds: &Thresholds,
) -> Vec<String> {
    let decision = &judgement.decision;
    let action = request.action;
    let what = action.tool.as_deref().or(action.resource.as_deref()).unwrap_or(&action.method);
    let denying = || {
        let rules: Vec<String> = decision
            .findings
            .iter()
            .filter(|finding| finding.effect == Effect::Deny && finding.mode == Mode::Enforce)
            .map(|finding| format!("`{}` of policy {}", finding.rule, finding.policy))
            .collect();
        rules.join(" and ")
    };
    match (decision.verdict, decision.reason) {
        (Verdict::Allow, _) => vec![],
        (Verdict::RequireApproval, _) => {
            let quorum = decision.approval.as_ref().map_or(1, |need| need.quorum);
            let what = if quorum == 1 { "approval" } else { "approvals" };
            let mut ways = vec![format!("{quorum} {what}: `aegis approvals list`")];
            for escalation in &decision.escalations {
                ways.push(match escalation {
                    Escalation::Risk => format!(
                        "or a risk of at most {} ‰; it is {} ‰",
                        thresholds.tau.get(),
                        decision.risk.score.get()
                    ),
                    Escalation::Trust => format!(
                        "or a trust of at least {}; it is {}",
                        thresholds.t_min.get(),
                        decision.trust.get()
                    ),
                    Escalation::Files => format!(
                        "or at most {} files; there are {}",
                        thresholds.file_limit, judgement.facts.files
                    ),
                    Escalation::Cost => "or a known cost below the limit".into(),
                });
            }
            ways
        }
        (Verdict::Deny, Reason::NoPolicyAllows) => vec![format!(
            "a policy with an `allow` rule for `{what}` on server `{}` that selects agent `{}`",
            action.server,
            request.context.principal.id.name(),
        )],
        (Verdict::Deny, Reason::PolicyDenied) => {
            vec![format!("an action to which {} does not apply", denying())]
        }
        (Verdict::Deny, Reason::CapabilityMissing) => vec![format!(
            "the capability `{}:{}` in the AgentIdentity",
            action.kind.capability_verb(),
            action.capability_segments().join("/"),
        )],
        (Verdict::Deny, Reason::RateLimited) => {
            vec!["waiting until the rate limit has room again".into()]
        }
        (Verdict::Deny, Reason::IdentityUnknown) => {
            vec!["an AgentIdentity whose selector matches the caller".into()]
        }
        (Verdict::Deny, Reason::AgentQuarantined) => {
            vec!["a human who lifts the quarantine: `aegis agents release` where it was set by hand, `suspended: false` where the AgentIdentity or a threshold says so, `aegis trust adjust` where the trust has fallen so low".into()]
        }
        (Verdict::Deny, reason) => {
            vec![format!("nothing that a policy could change: {}", reason.sentence())]
        }
    }
}
