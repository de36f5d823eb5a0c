//! The policies in force: the last version of each that compiled.
//!
//! A version that does not compile changes nothing here. After a restart, the version that the
//! status names is in force until the operator has looked at the object itself.

use std::{collections::BTreeMap, sync::Arc};

use aegis_core::{Digest, policy::PolicySpec};
use aegis_policy::{Compiler, OpaError, Policy, PolicyId};
use aegis_resources::status::PolicyInForce;
use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::controller::ReconcileError;

/// What became of one version of a policy.
#[derive(Clone, Debug, PartialEq)]
pub struct Looked {
    /// Its object.
    pub uid: String,
    /// Its generation.
    pub generation: i64,
    /// What is wrong with it; `None` if nothing is.
    pub problem: Option<Problem>,
    /// What is in force: this version, or the last that compiled.
    pub in_force: Option<PolicyInForce>,
}

/// What is wrong with a version of a policy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// In one word.
    pub reason: &'static str,
    /// In a sentence, with the line where there is one.
    pub message: String,
}

/// The book.
#[derive(Debug)]
pub struct Book {
    compiler: Arc<Compiler>,
    /// Compiling takes a processor each.
    slots: Semaphore,
    looked: Mutex<BTreeMap<PolicyId, Looked>>,
}

impl Book {
    /// An empty book.
    #[must_use]
    pub fn new(compiler: Arc<Compiler>) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        Self { compiler, slots: Semaphore::new(processors), looked: Mutex::default() }
    }

    /// Looks at a version of a policy, once: compiles it alone, to tell what is wrong with it.
    ///
    /// # Errors
    /// When nobody can tell, because `opa` is of no use.
    pub async fn look(
        &self,
        id: &PolicyId,
        (uid, generation): (&str, i64),
        spec: &Result<PolicySpec, String>,
        known: Option<&PolicyInForce>,
    ) -> Result<Looked, ReconcileError> {
        let before = self.looked.lock().get(id).cloned();
        let before = before.filter(|looked| looked.uid == uid);
        if let Some(looked) = before.as_ref().filter(|looked| looked.generation == generation) {
            return Ok(looked.clone());
        }
        let earlier = before.map_or_else(|| known.cloned(), |looked| looked.in_force);
        let problem = match spec {
            Err(message) => Some(Problem { reason: "Unreadable", message: message.clone() }),
            Ok(spec) => self.compile(id, spec).await?,
        };
        let in_force = match (&problem, spec) {
            (None, Ok(spec)) => {
                Some(PolicyInForce { generation, digest: digest(id, spec), spec: spec.clone() })
            }
            _ => earlier,
        };
        let looked = Looked { uid: uid.to_owned(), generation, problem, in_force };
        self.looked.lock().insert(id.clone(), looked.clone());
        Ok(looked)
    }

    async fn compile(
        &self,
        id: &PolicyId,
        spec: &PolicySpec,
    ) -> Result<Option<Problem>, ReconcileError> {
        let _slot = self.slots.acquire().await;
        let compiler = Arc::clone(&self.compiler);
        let policy = Policy { id: id.clone(), spec: spec.clone() };
        let compiled = tokio::task::spawn_blocking(move || compiler.compile(&[policy])).await??;
        Ok(compiled.failures.into_iter().next().map(|failure| {
            let at = failure.line.filter(|_| !failure.message.starts_with("line "));
            let at = at.map_or_else(String::new, |line| format!("line {line}: "));
            Problem { reason: "DoesNotCompile", message: format!("{at}{}", failure.message) }
        }))
    }

    /// What is in force of a policy whose object is there.
    #[must_use]
    pub fn in_force(
        &self,
        id: &PolicyId,
        uid: &str,
        known: Option<&PolicyInForce>,
    ) -> Option<PolicyInForce> {
        match self.looked.lock().get(id).filter(|looked| looked.uid == uid) {
            Some(looked) => looked.in_force.clone(),
            None => known.cloned(),
        }
    }

    /// Forgets the policies that are not there any more.
    pub fn keep_only(&self, there: impl Fn(&PolicyId) -> bool) {
        self.looked.lock().retain(|id, _| there(id));
    }

    /// Compiles all that is in force into one bundle.
    ///
    /// # Errors
    /// When `opa` is of no use.
    pub fn compile_all(&self, policies: &[Policy]) -> Result<aegis_policy::Compiled, OpaError> {
        self.compiler.compile(policies)
    }
}

/// The digest of a policy with its name.
fn digest(id: &PolicyId, spec: &PolicySpec) -> Digest {
    Digest::of(&serde_json::to_vec(&(id, spec)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use aegis_policy::Opa;
    use serde_json::json;

    use super::*;

    fn spec(value: serde_json::Value) -> Result<PolicySpec, String> {
        serde_json::from_value(value).map_err(|error| error.to_string())
    }

    #[tokio::test]
    async fn a_version_that_does_not_compile_leaves_the_last_good_one() {
        let book = Book::new(Arc::new(Compiler::new(Opa::locate().unwrap(), None)));
        let id = PolicyId::namespaced("shop", "reads");
        let sound =
            spec(json!({ "rules": [{ "name": "r", "effect": "allow", "tools": ["read_*"] }] }));
        let first = book.look(&id, ("u", 1), &sound, None).await.unwrap();
        assert_eq!(first.problem, None);
        assert_eq!(first.in_force.as_ref().unwrap().generation, 1);

        let rego = "package shop.reads\n\nallow if {\n\tnonsense(input)\n}\n";
        let broken = book.look(&id, ("u", 2), &spec(json!({ "rego": rego })), None).await.unwrap();
        let problem = broken.problem.unwrap();
        assert_eq!(problem.reason, "DoesNotCompile");
        assert!(problem.message.starts_with("line 4: "), "{}", problem.message);
        assert_eq!(broken.in_force, first.in_force);

        let unreadable = book.look(&id, ("u", 3), &Err("no".into()), None).await.unwrap();
        assert_eq!(unreadable.problem.unwrap().reason, "Unreadable");
        assert_eq!(book.in_force(&id, "u", None), first.in_force);
        // Another object of the same name owes nothing to the one before.
        assert_eq!(book.in_force(&id, "v", None), None);
    }

    #[tokio::test]
    async fn after_a_restart_the_status_tells_what_is_in_force() {
        let book = Book::new(Arc::new(Compiler::new(Opa::locate().unwrap(), None)));
        let id = PolicyId::cluster("c");
        let known =
            PolicyInForce { generation: 4, digest: Digest::of(b""), spec: PolicySpec::default() };
        assert_eq!(book.in_force(&id, "u", Some(&known)), Some(known.clone()));
        let looked = book.look(&id, ("u", 5), &Err("no".into()), Some(&known)).await.unwrap();
        assert_eq!(looked.in_force, Some(known));
    }
}
