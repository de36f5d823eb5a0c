//! What an agent may ask without acting: what would be decided, and who it is here.
//!
//! A preview has no effect and no record, so it costs no trust: it is counted, and so many a minute are
//! answered to one agent that typing is served and a search for what policies leave open is slow.

use std::collections::HashMap;

use aegis_api::kernel::{Caller as CallerView, Mode, Policies, PolicyView, Preview, RuleView};
use aegis_core::{
    AgentId, Timestamp,
    action::{Action, ActionKind, Protocol},
    approval::ApprovalState,
    cost::Cost,
    decision::{Reason, Verdict},
    risk::{Facts, Risk},
    tier::Tier,
};
use aegis_protocol::kernel::Question;
use parking_lot::Mutex;
use serde_json::{Value, json};

use super::{
    KernelApi,
    evaluate::{Caller, context},
};

/// How many previews one agent is answered in a minute.
pub(super) const A_MINUTE: u32 = 240;

/// How many each agent was answered in its current minute. As many agents as are registered.
#[derive(Debug, Default)]
pub(super) struct Previews(Mutex<HashMap<AgentId, (u64, u32)>>);

impl Previews {
    fn take(&self, agent: &AgentId, now: Timestamp) -> bool {
        let minute = now.as_secs() / 60;
        let mut agents = self.0.lock();
        let (of, count) = agents.entry(agent.clone()).or_default();
        if *of != minute {
            (*of, *count) = (minute, 0);
        }
        *count += 1;
        *count <= A_MINUTE
    }
}

impl KernelApi {
    /// What the question would be answered now, without any effect.
    ///
    /// # Errors
    /// When the agent asks too often.
    pub(super) fn preview(&self, caller: &Caller, question: &Question) -> Result<Preview, Reason> {
        let kernel = &self.shared.kernel;
        if !self.previews.take(&caller.principal.id, kernel.now()) {
            return Err(Reason::Overloaded);
        }
        let preview = match self.refuses_outright(caller, question) {
            Some(reason) => refused(reason, reason.sentence().into()),
            None => {
                let request = context(caller, question).about(&question.action);
                let would = kernel.preview(&request);
                let state = would.approval.as_deref().and_then(|id| kernel.approval_state(id));
                Preview {
                    verdict: would.decision.verdict.as_str().into(),
                    reason: would.decision.reason.code().into(),
                    message: would.decision.message,
                    approval: would.approval.filter(|_| state != Some(ApprovalState::Expired)),
                }
            }
        };
        self.shared.metrics.previews.with_label_values(&[&preview.verdict]).inc();
        Ok(preview)
    }

    /// What the caller is governed by.
    pub(super) fn policies_of(&self, caller: &Caller) -> Policies {
        let engine = self.shared.kernel.engine();
        let set = engine.policies();
        let text = |value: Value| value.as_str().map(str::to_owned).unwrap_or_default();
        let policies = set.of_agent(&caller.principal.id).map(|loaded| {
            let rules = loaded.rules.iter().map(|rule| RuleView {
                name: rule.name.clone(),
                effect: (rule.name != "rego").then(|| text(json!(rule.effect))),
                reason: rule.reason.clone(),
            });
            PolicyView {
                policy: loaded.id.to_string(),
                digest: loaded.digest.to_string(),
                mode: text(json!(loaded.mode)),
                rules: rules.collect(),
            }
        });
        Policies { version: engine.version(), policies: policies.collect() }
    }

    /// Who the caller is here.
    pub(super) fn about(&self, caller: &Caller) -> CallerView {
        let (kernel, principal) = (&self.shared.kernel, &caller.principal);
        let state = kernel.state();
        let (trust, _) = kernel.trust(&principal.id);
        let thresholds = state.thresholds.of(principal.id.namespace());
        let standing = json!(trust.score().standing());
        let harmless = Facts::of(&harmless());
        let risk = Risk::compute(&harmless, trust.score(), thresholds);
        let delegated = !principal.delegation.is_empty();
        let (tier, _) =
            Tier::of(&risk, &harmless, trust.score(), Cost::NotApplicable, delegated, thresholds);
        CallerView {
            agent: principal.id.to_string(),
            sponsor: principal.sponsor.as_ref().map(ToString::to_string),
            trust: trust.score().get(),
            standing: standing.as_str().unwrap_or_default().into(),
            stopped: state.is_stopped(&principal.id)
                || trust.is_critical(thresholds)
                || state.revoked.contains(&principal.id),
            tier: tier.as_str().into(),
            mode: if (self.advisory)() { Mode::Advisory } else { Mode::Enforced },
        }
    }
}

/// A preview of a refusal.
pub(super) fn refused(reason: Reason, message: String) -> Preview {
    let verdict = Verdict::Deny.as_str().into();
    Preview { verdict, reason: reason.code().into(), message, approval: None }
}

/// The least that an agent can do: what no fact speaks against.
fn harmless() -> Action {
    Action {
        kind: ActionKind::FileRead,
        protocol: Protocol::Kernel,
        method: "file.read".into(),
        server: String::new(),
        tool: None,
        tool_pin: None,
        resource: None,
        arguments: Value::Null,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_agent_is_answered_so_many_previews_a_minute() {
        let previews = Previews::default();
        let agent = |name: &str| -> AgentId {
            format!("spiffe://acme.example/ns/a/sa/b/agent/{name}").parse().unwrap()
        };
        let at = Timestamp::from_secs;
        for _ in 0..A_MINUTE {
            assert!(previews.take(&agent("x"), at(60)));
        }
        assert!(!previews.take(&agent("x"), at(119)));
        assert!(previews.take(&agent("y"), at(119)), "another agent is not held up");
        assert!(previews.take(&agent("x"), at(120)));
    }
}
