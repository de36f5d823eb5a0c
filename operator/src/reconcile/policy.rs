//! AgentPolicy and ClusterAgentPolicy: compiled, and in force as last good.

use std::{marker::PhantomData, sync::Arc};

use aegis_core::policy::PolicySpec;
use aegis_policy::PolicyId;
use aegis_resources::{
    kinds::{AgentPolicy, ClusterAgentPolicy},
    status::{PolicyInForce, PolicyStatus},
};
use kube::core::object::{HasSpec, HasStatus};

use crate::{
    book::{Book, Looked},
    clock,
    controller::{Reconcile, ReconcileError, Shared},
    object::{Kind, Stored},
    status::{Finding, conclude},
};

/// A kind that holds a policy.
pub trait PolicyObject: Kind + HasStatus<Status = PolicyStatus> {
    /// The controller's name.
    const CONTROLLER: &'static str;
    /// The policy's name.
    fn id(object: &Stored<Self>) -> PolicyId;
    /// What it says.
    fn policy(spec: &<Self as HasSpec>::Spec) -> &PolicySpec;
}

impl PolicyObject for AgentPolicy {
    const CONTROLLER: &'static str = "agentpolicy";

    fn id(object: &Stored<Self>) -> PolicyId {
        PolicyId::namespaced(object.namespace(), object.name())
    }

    fn policy(spec: &<Self as HasSpec>::Spec) -> &PolicySpec {
        &spec.0
    }
}

impl PolicyObject for ClusterAgentPolicy {
    const CONTROLLER: &'static str = "clusteragentpolicy";

    fn id(object: &Stored<Self>) -> PolicyId {
        PolicyId::cluster(object.name())
    }

    fn policy(spec: &<Self as HasSpec>::Spec) -> &PolicySpec {
        &spec.0
    }
}

impl<K: PolicyObject> Stored<K> {
    /// What the status says is in force.
    #[must_use]
    pub fn known_in_force(&self) -> Option<&PolicyInForce> {
        self.status.as_ref().and_then(|status| status.in_force.as_ref())
    }
}

/// Reconciles policies of one kind.
#[derive(Debug)]
pub struct Policies<K> {
    book: Arc<Book>,
    shared: Shared,
    kind: PhantomData<fn() -> K>,
}

impl<K> Policies<K> {
    /// Over a book that both kinds share.
    #[must_use]
    pub const fn new(book: Arc<Book>, shared: Shared) -> Self {
        Self { book, shared, kind: PhantomData }
    }
}

impl<K: PolicyObject> Reconcile for Policies<K> {
    type Kind = K;
    const CONTROLLER: &'static str = K::CONTROLLER;

    async fn status(&self, object: Arc<Stored<K>>) -> Result<PolicyStatus, ReconcileError> {
        let spec = object.spec.as_ref().map(|spec| K::policy(spec).clone()).map_err(Clone::clone);
        let version = (object.uid(), object.generation());
        let looked =
            self.book.look(&K::id(&object), version, &spec, object.known_in_force()).await?;
        self.shared.touch();
        let mut status = object.status.clone().unwrap_or_default();
        status.in_force.clone_from(&looked.in_force);
        conclude(&mut status.common, object.generation(), findings(&looked), clock::now());
        Ok(status)
    }
}

fn findings(looked: &Looked) -> Vec<Finding> {
    let generation = looked.generation;
    let Some(problem) = &looked.problem else {
        return vec![
            Finding::yes("Compiled", "Compiled", format!("generation {generation} compiles")),
            Finding::yes("Ready", "InForce", format!("generation {generation} is in force")),
        ];
    };
    let (reason, consequence) = match &looked.in_force {
        Some(good) => ("LastGoodInForce", format!("generation {} stays in force", good.generation)),
        None => ("NothingInForce", "no version ever compiled, so it has no effect".to_owned()),
    };
    vec![
        Finding::no("Compiled", problem.reason, problem.message.clone()),
        Finding::no("Ready", reason, format!("{}; {consequence}", problem.message)),
    ]
}

#[cfg(test)]
mod tests {
    use aegis_core::Digest;

    use super::*;
    use crate::book::Problem;

    #[test]
    fn a_broken_version_says_what_stays_in_force() {
        let problem =
            Some(Problem { reason: "DoesNotCompile", message: "line 4: undefined".into() });
        let good =
            PolicyInForce { generation: 2, digest: Digest::of(b""), spec: PolicySpec::default() };
        let mut looked = Looked { uid: "u".into(), generation: 3, problem, in_force: Some(good) };
        let told = findings(&looked);
        assert_eq!((told[0].kind, told[0].message.as_str()), ("Compiled", "line 4: undefined"));
        assert_eq!(told[1].message, "line 4: undefined; generation 2 stays in force");
        looked.in_force = None;
        assert_eq!(findings(&looked)[1].reason, "NothingInForce");
    }
}
