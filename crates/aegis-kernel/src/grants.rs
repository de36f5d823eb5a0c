//! Grants at the callee: a grant that came with an action stands in for the approval that this
//! domain's policies ask for, once.
//!
//! It never turns a denial into anything. One that does not hold refuses the action, so that whoever
//! forged or replayed it is on record; one that holds and shows less than is asked for (people, a
//! second factor, the namespace whose people answer) changes nothing, and people are asked here.

use std::collections::HashMap;

use aegis_core::{
    AgentId, Digest, Timestamp,
    decision::Reason,
    grant::{Grant, GrantError},
};
use aegis_identity::CLOCK_SKEW;
use serde_json::{Value, json};

use crate::{Approved, Judgement, Kernel, Request};

/// How many used grants are remembered. Each is until nobody would take it any more; when there are
/// more, grants are refused rather than forgotten.
const MAX_USED: usize = 4096;

/// How an approval that is asked for was settled.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    /// The approval that was used or is waited for.
    pub(crate) approval: Option<String>,
    /// The approval of this domain that was used.
    pub(crate) approved: Option<Approved>,
    /// What is recorded of the grant.
    pub(crate) grant: Option<Value>,
}

impl Settled {
    pub(crate) fn waiting(approval: String) -> Self {
        Self { approval: Some(approval), ..Self::default() }
    }
}

/// The grants that were used.
#[derive(Debug)]
pub(crate) struct Used {
    /// Since when this is known.
    since: Timestamp,
    until: HashMap<(AgentId, String), Timestamp>,
}

impl Used {
    /// Nothing was used since then.
    pub(crate) fn since(now: Timestamp) -> Self {
        // Grants tell whole seconds.
        Self { since: Timestamp::from_secs(now.as_secs()), until: HashMap::new() }
    }

    /// Uses a grant for an action, once.
    fn take(&mut self, grant: &Grant, action: Digest, now: Timestamp) -> Result<(), GrantError> {
        if grant.action != action {
            return Err(GrantError::OtherAction);
        }
        // It may have been held since it was verified.
        if !grant.is_current(now, CLOCK_SKEW) {
            return Err(GrantError::Expired);
        }
        if grant.issued_at < self.since {
            return Err(GrantError::Unknowable);
        }
        self.until.retain(|_, until| *until > now);
        let key = (grant.issuer.clone(), grant.id.clone());
        if self.until.contains_key(&key) {
            return Err(GrantError::Replayed);
        }
        if self.until.len() >= MAX_USED {
            return Err(GrantError::Full);
        }
        self.until.insert(key, grant.expires_at.plus(CLOCK_SKEW));
        Ok(())
    }
}

impl Kernel {
    /// What the grant that came with the action makes of it; `None` where people are to be asked.
    pub(crate) fn settle_by_grant(
        &self,
        request: &Request<'_>,
        judgement: &mut Judgement,
        now: Timestamp,
    ) -> Option<Settled> {
        let shown = request.context.grant?;
        let need = judgement.decision.approval.clone().unwrap_or_default();
        let action = judgement.decision.action;
        let taken = match shown {
            Ok(verified) if !verified.grant().satisfies(&need) => return None,
            Ok(verified) if !same_people(request, verified.grant()) => return None,
            Ok(verified) => self.grants.lock().take(verified.grant(), action, now),
            Err(error) => Err(*error),
        };
        let grant = shown.as_ref().ok().map(|verified| verified.grant());
        if let Err(error) = taken {
            tracing::warn!(%error, "a grant does not hold");
            judgement.deny(Reason::GrantRefused);
        } else {
            judgement.allow(Reason::Granted);
        }
        Some(Settled {
            approval: grant.map(|grant| grant.approval.clone()),
            approved: None,
            grant: Some(told(grant, taken.err())),
        })
    }
}

/// Whether the people who answer the caller's questions are those who answer this side's: the API
/// server lets people answer by namespace, and a trust domain is one cluster.
fn same_people(request: &Request<'_>, grant: &Grant) -> bool {
    let asked = request.context.server_namespace;
    grant.issuer == request.context.principal.id
        && grant.issuer.trust_domain() == grant.audience.trust_domain()
        && grant.issuer.namespace() == Some(asked)
}

/// What is recorded of a grant.
fn told(grant: Option<&Grant>, problem: Option<GrantError>) -> Value {
    let mut told = match grant {
        Some(grant) => json!({
            "id": grant.id, "approvers": grant.approvers, "expires_at": grant.expires_at,
        }),
        None => json!({}),
    };
    if let (Some(problem), Some(members)) = (problem, told.as_object_mut()) {
        members.insert("problem".into(), problem.code().into());
    }
    told
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const NOW: Timestamp = Timestamp::from_secs(1_000);

    fn grant(id: usize) -> Grant {
        let agent = |name| format!("spiffe://acme.example/ns/a/sa/b/agent/{name}").parse().unwrap();
        Grant {
            id: id.to_string(),
            issuer: agent("caller"),
            audience: agent("callee"),
            action: Digest::of(b"action"),
            approval: "a".into(),
            approvers: Vec::new(),
            issued_at: NOW,
            expires_at: NOW.plus(Duration::from_secs(60)),
        }
    }

    fn take(used: &mut Used, grant: &Grant, now: Timestamp) -> Result<(), GrantError> {
        used.take(grant, Digest::of(b"action"), now)
    }

    #[test]
    fn a_grant_counts_once() {
        let mut used = Used::since(NOW);
        assert_eq!(take(&mut used, &grant(1), NOW), Ok(()));
        for later in [0, 59, 89] {
            let now = NOW.plus(Duration::from_secs(later));
            assert_eq!(take(&mut used, &grant(1), now), Err(GrantError::Replayed), "{later}");
        }
        let over = NOW.plus(Duration::from_secs(90));
        assert_eq!(take(&mut used, &grant(1), over), Err(GrantError::Expired));
    }

    #[test]
    fn a_grant_is_for_its_action() {
        let mut used = Used::since(NOW);
        let other = Digest::of(b"other");
        assert_eq!(used.take(&grant(1), other, NOW), Err(GrantError::OtherAction));
        assert_eq!(take(&mut used, &grant(1), NOW), Ok(()), "and is not used up by another's");
    }

    #[test]
    fn what_was_before_the_start_is_not_known() {
        let mut used = Used::since(NOW.plus(Duration::from_secs(1)));
        assert_eq!(take(&mut used, &grant(1), NOW), Err(GrantError::Unknowable));
    }

    #[test]
    fn when_all_are_remembered_that_can_be_none_is_forgotten() {
        let mut used = Used::since(NOW);
        for id in 0..MAX_USED {
            assert_eq!(take(&mut used, &grant(id), NOW), Ok(()));
        }
        assert_eq!(take(&mut used, &grant(MAX_USED), NOW), Err(GrantError::Full));
        assert_eq!(take(&mut used, &grant(0), NOW), Err(GrantError::Replayed));
        let over = NOW.plus(Duration::from_secs(90));
        let mut next = grant(MAX_USED);
        (next.issued_at, next.expires_at) = (over, over.plus(Duration::from_secs(60)));
        assert_eq!(take(&mut used, &next, over), Ok(()), "what nobody would take makes room");
    }
}
