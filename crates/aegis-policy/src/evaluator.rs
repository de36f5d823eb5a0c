//! Evaluating the policies that match, on one thread: instances, buffers and the memory of
//! selections belong to the thread, so that nothing is locked.

use std::sync::Arc;

use aegis_core::{
    Digest,
    input::Input,
    policy::{Effect, Mode, Obligation},
};
use serde::Deserialize;

use crate::{
    host::{EvalError, Host, Instance},
    select::Memo,
    set::{LoadedPolicy, LoadedUnit, PolicySet},
    translate::check_obligation,
    verdict::{Combine, Evaluation, Finding, Side},
};

/// How to look at an action.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Look {
    /// It is to be done, with these arguments.
    Act,
    /// A list may name it; arguments are not known.
    List,
}

/// One thread's evaluator.
#[derive(Debug)]
pub(crate) struct Evaluator {
    host: Arc<Host>,
    pub(crate) set: Arc<PolicySet>,
    instances: Vec<(Digest, Option<Instance>)>,
    memo: Memo,
    buffer: Vec<u8>,
}

/// What a raw module's verdict holds.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawVerdict {
    #[serde(default)]
    allow: bool,
    #[serde(default)]
    deny: Reasons,
    #[serde(default)]
    require_approval: Reasons,
    #[serde(default)]
    obligations: Vec<Obligation>,
}

/// A boolean or reasons.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Reasons {
    Plain(bool),
    Texts(Vec<String>),
}

/// OPA's result set.
#[derive(Debug, Deserialize)]
struct Row<T> {
    result: T,
}

impl Default for Reasons {
    fn default() -> Self {
        Self::Plain(false)
    }
}

impl Reasons {
    /// The reason, if it speaks.
    fn spoken(self) -> Option<Option<String>> {
        match self {
            Self::Plain(false) => None,
            Self::Plain(true) => Some(None),
            Self::Texts(texts) if texts.is_empty() => None,
            Self::Texts(mut texts) => {
                // A set has no order; a record has one.
                texts.sort_unstable();
                Some(Some(texts.join("; ")))
            }
        }
    }
}

impl Evaluator {
    pub(crate) fn new(host: Arc<Host>, set: Arc<PolicySet>) -> Self {
        let mut evaluator =
            Self { host, set, instances: Vec::new(), memo: Memo::default(), buffer: Vec::new() };
        evaluator.renew(Arc::clone(&evaluator.set));
        evaluator
    }

    /// Changes to another set, keeping the instances of modules that both have.
    pub(crate) fn renew(&mut self, set: Arc<PolicySet>) {
        let mut before = std::mem::take(&mut self.instances);
        self.instances = set
            .modules
            .iter()
            .map(|module| {
                let kept = before.iter_mut().find(|(digest, _)| *digest == module.digest);
                (module.digest, kept.and_then(|(_, instance)| instance.take()))
            })
            .collect();
        self.memo = Memo::default();
        self.set = set;
    }

    /// Evaluates all policies that match.
    pub(crate) fn evaluate(
        &mut self,
        input: &Input<'_>,
        server_namespace: Option<&str>,
        look: Look,
        rate: &dyn Fn(&mut Finding),
    ) -> Evaluation {
        let set = Arc::clone(&self.set);
        let selected = self.memo.select(&set.index, input, server_namespace);
        let other = server_namespace.filter(|namespace| *namespace != input.principal.namespace);
        let mut enforced = Combine::new(other.is_some());
        let mut audited = Combine::new(other.is_some());
        let mut findings = Vec::new();
        for i in selected.iter().copied() {
            let Some(policy) = usize::try_from(i).ok().and_then(|i| set.policies.get(i)) else {
                continue;
            };
            if policy.has_paths && !set.index.admits_resource(i, input.action.resource) {
                continue;
            }
            let side = side(policy, input, other);
            let enforces = policy.mode == Mode::Enforce;
            if enforces {
                enforced.selected(side);
            }
            audited.selected(side);
            // An allow in general is about what can be looked into.
            let permits = !input.action.protocol.is_opaque() || policy.names_opaque;
            let first = findings.len();
            for unit in &policy.units {
                if let Err(error) = self.unit(&set, policy, unit, input, look, &mut findings) {
                    let mut finding = Finding::of(&policy.whole, Effect::Deny);
                    finding.error = Some(error);
                    findings.push(finding);
                }
            }
            for finding in findings.iter_mut().skip(first) {
                if look == Look::Act && finding.rule.rate_limit.is_some() {
                    rate(finding);
                }
                audited.add(side, finding.effect, permits);
                if enforces {
                    enforced.add(side, finding.effect, permits);
                }
            }
        }
        Evaluation { findings, effect: enforced.effect(), audited: audited.effect() }
    }

    /// Whether an enforcing policy could allow this agent something on this server.
    pub(crate) fn may_reach(&self, input: &Input<'_>, server_namespace: Option<&str>) -> bool {
        let other = server_namespace.filter(|namespace| *namespace != input.principal.namespace);
        let mut combine = Combine::new(other.is_some());
        for i in self.set.index.reaching(input, server_namespace) {
            let policy = usize::try_from(i).ok().and_then(|i| self.set.policies.get(i));
            let Some(policy) = policy.filter(|policy| policy.mode == Mode::Enforce) else {
                continue;
            };
            let side = side(policy, input, other);
            combine.selected(side);
            if policy.may_allow {
                combine.add(side, Effect::Allow, true);
            }
        }
        combine.effect() == Some(Effect::Allow)
    }

    fn unit(
        &mut self,
        set: &PolicySet,
        policy: &LoadedPolicy,
        unit: &LoadedUnit,
        input: &Input<'_>,
        look: Look,
        findings: &mut Vec<Finding>,
    ) -> Result<(), EvalError> {
        unit.projection
            .write(input, look == Look::Act, &mut self.buffer)
            .map_err(|error| EvalError::Result(error.to_string()))?;
        let entrypoint = match (look, unit.visible) {
            (Look::List, Some(visible)) => visible,
            _ => unit.verdict,
        };
        if !unit.raw {
            let mut bits = self.call(set, unit.module, entrypoint, |output| {
                read_indices(output).ok_or_else(|| unreadable(output))
            })??;
            while bits != 0 {
                let index = usize::try_from(bits.trailing_zeros()).unwrap_or(usize::MAX);
                bits &= bits - 1;
                let rule = policy.rules.get(index).ok_or_else(|| unreadable(b"no such rule"))?;
                findings.push(Finding::of(rule, rule.effect));
            }
            return Ok(());
        }
        if look == Look::List && unit.visible.is_some() {
            let visible = self.call(set, unit.module, entrypoint, |output| {
                serde_json::from_slice::<Vec<Row<bool>>>(output).map_err(|_| unreadable(output))
            })??;
            // An undefined `visible` is false.
            let shown = visible.first().is_some_and(|row| row.result);
            let effect = if shown { Effect::Allow } else { Effect::Deny };
            findings.push(Finding::of(&policy.whole, effect));
            return Ok(());
        }
        let rows = self.call(set, unit.module, entrypoint, |output| {
            serde_json::from_slice::<Vec<Row<RawVerdict>>>(output).map_err(|_| unreadable(output))
        })??;
        let verdict = rows.into_iter().next().map(|row| row.result).unwrap_or_default();
        raw_findings(policy, verdict, findings)
    }

    fn call<T>(
        &mut self,
        set: &PolicySet,
        module: usize,
        entrypoint: i32,
        read: impl FnOnce(&[u8]) -> T,
    ) -> Result<T, EvalError> {
        let missing = || EvalError::Trap("its module is not loaded".to_owned());
        let loaded = set.modules.get(module).ok_or_else(missing)?;
        let (_, slot) = self.instances.get_mut(module).ok_or_else(missing)?;
        // Taken out, so that whatever fails below leaves no half-used instance behind.
        let mut instance = match slot.take() {
            Some(instance) => instance,
            None => self
                .host
                .instantiate(&loaded.module, b"{}")
                .map_err(|error| EvalError::Trap(error.to_string()))?,
        };
        let result = instance.eval(&self.host, entrypoint, &self.buffer, read)?;
        if instance.is_small(&self.host) {
            *slot = Some(instance);
        }
        Ok(result)
    }
}

fn side(policy: &LoadedPolicy, input: &Input<'_>, other: Option<&str>) -> Side {
    match policy.id.namespace.as_deref() {
        None => Side::Cluster,
        Some(namespace) if Some(namespace) == other => Side::Server,
        Some(_) => {
            debug_assert_eq!(policy.id.namespace.as_deref(), Some(input.principal.namespace));
            Side::Agent
        }
    }
}

fn unreadable(output: &[u8]) -> EvalError {
    let shown: String = String::from_utf8_lossy(output).chars().take(80).collect();
    EvalError::Result(format!("it is not of the shape that Aegis reads: {shown}"))
}

/// Reads `[{"result":[2,0]}]`, the form that a set of small numbers has, in no order, as a set of
/// bits.
fn read_indices(output: &[u8]) -> Option<u64> {
    let list = output.strip_prefix(b"[{\"result\":[")?.strip_suffix(b"]}]")?;
    let mut bits = 0;
    if list.is_empty() {
        return Some(bits);
    }
    for item in list.split(|byte| *byte == b',') {
        if item.is_empty() || item.len() > 2 {
            return None;
        }
        let mut index = 0_u32;
        for digit in item {
            index = index * 10 + u32::from(digit.checked_sub(b'0').filter(|digit| *digit < 10)?);
        }
        bits |= 1_u64.checked_shl(index)?;
    }
    Some(bits)
}

fn raw_findings(
    policy: &LoadedPolicy,
    verdict: RawVerdict,
    findings: &mut Vec<Finding>,
) -> Result<(), EvalError> {
    for obligation in &verdict.obligations {
        check_obligation(obligation.kind, &obligation.target).map_err(EvalError::Result)?;
    }
    let mut speak = |effect, reason: Option<String>, obligations: &[Obligation]| {
        let mut finding = Finding::of(&policy.whole, effect);
        finding.reason = reason;
        finding.obligations = obligations.to_vec();
        findings.push(finding);
    };
    if let Some(reason) = verdict.deny.spoken() {
        speak(Effect::Deny, reason, &verdict.obligations);
    }
    if let Some(reason) = verdict.require_approval.spoken() {
        speak(Effect::RequireApproval, reason, &verdict.obligations);
    }
    if verdict.allow {
        speak(Effect::Allow, None, &verdict.obligations);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_lists_of_small_numbers_are_read() {
        let read = |text: &str| read_indices(text.as_bytes());
        assert_eq!(read(r#"[{"result":[]}]"#), Some(0));
        assert_eq!(read(r#"[{"result":[12,0]}]"#), Some(0b1_0000_0000_0001));
        for text in [
            "[]",
            "",
            r#"[{"result":[-1]}]"#,
            r#"[{"result":[1,]}]"#,
            r#"[{"result":[1]},{}]"#,
            r#"[{"result":{}}]"#,
            r#"[{"result":["0"]}]"#,
            r#"[{"result":[64]}]"#,
        ] {
            assert_eq!(read(text), None, "{text}");
        }
    }
}
