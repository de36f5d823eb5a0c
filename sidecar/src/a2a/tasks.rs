//! Whose tasks an agent works on.
//!
//! A task is its maker's: to everybody else it does not exist (A2A specification §13.1). Aegis alone
//! can tell its callers apart, since to the agent they may all be one client. What is not remembered
//! is nobody's: after a restart, or once a caller has made [`MAX_TASKS`] newer ones, a task is not
//! found any more, and neither is a context: whoever joined one that somebody else had opened would
//! read what was said there. Only where the upstream's owner lets clients name contexts of their own
//! is one that nobody is known to have taken for a new one.

use std::collections::{HashMap, VecDeque};

use aegis_core::AgentId;
use aegis_protocol::a2a::answer::Spoken;
use parking_lot::Mutex;

use crate::exchange::Unfinished;

/// How many tasks and contexts of one caller are remembered.
const MAX_TASKS: usize = 4_096;
/// How many messages of one task await its end.
const MAX_UNFINISHED: usize = 16;

/// The tasks of one agent.
#[derive(Debug, Default)]
pub(crate) struct Tasks(Mutex<Inner>);

#[derive(Debug, Default)]
struct Inner {
    known: HashMap<Key, Known>,
    /// What each caller has, the oldest first.
    order: HashMap<AgentId, VecDeque<Key>>,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Key {
    Task(String),
    Context(String),
}

#[derive(Debug)]
struct Known {
    owner: AgentId,
    unfinished: Vec<Unfinished>,
}

impl Tasks {
    /// Notes that a task, and its context, are `agent`'s; `false` if either is another's.
    pub(crate) fn claim(&self, agent: &AgentId, spoken: &Spoken) -> bool {
        let context = spoken.context.clone().map(Key::Context);
        let keys = [spoken.task.clone().map(Key::Task), context];
        let mut inner = self.0.lock();
        let foreign = |key: &Key| inner.known.get(key).is_some_and(|known| known.owner != *agent);
        if keys.iter().flatten().any(foreign) {
            return false;
        }
        let mut forgotten = Vec::new();
        for key in keys.into_iter().flatten() {
            if inner.known.contains_key(&key) {
                continue;
            }
            let known = Known { owner: agent.clone(), unfinished: Vec::new() };
            inner.known.insert(key.clone(), known);
            let order = inner.order.entry(agent.clone()).or_default();
            order.push_back(key);
            if order.len() > MAX_TASKS
                && let Some(oldest) = order.pop_front()
            {
                forgotten.push(inner.known.remove(&oldest));
            }
        }
        drop(inner);
        drop(forgotten);
        true
    }

    /// Whether a task is known to be `agent`'s.
    pub(crate) fn owns(&self, agent: &AgentId, task: &str) -> bool {
        let inner = self.0.lock();
        inner.known.get(&Key::Task(task.to_owned())).is_some_and(|known| known.owner == *agent)
    }

    /// Whether `agent` may speak in a context: it is its own, or `new` and nobody's.
    pub(crate) fn may_join(&self, agent: &AgentId, context: &str, new: bool) -> bool {
        let inner = self.0.lock();
        let known = inner.known.get(&Key::Context(context.to_owned()));
        known.map_or(new, |known| known.owner == *agent)
    }

    /// How many tasks `agent` is known to have.
    pub(crate) fn count(&self, agent: &AgentId) -> usize {
        let inner = self.0.lock();
        let task = |key: &&Key| matches!(key, Key::Task(_));
        inner.order.get(agent).map_or(0, |order| order.iter().filter(task).count())
    }

    /// Keeps what ends when a task does.
    pub(crate) fn await_end(&self, task: &str, unfinished: Unfinished) {
        let mut inner = self.0.lock();
        // What has no room has an outcome that nobody will know: dropping it records that.
        if let Some(known) = inner.known.get_mut(&Key::Task(task.to_owned()))
            && known.unfinished.len() < MAX_UNFINISHED
        {
            known.unfinished.push(unfinished);
        }
    }

    /// Takes what has ended with a task.
    pub(crate) fn ended(&self, task: &str) -> Vec<Unfinished> {
        let mut inner = self.0.lock();
        let known = inner.known.get_mut(&Key::Task(task.to_owned()));
        known.map(|known| std::mem::take(&mut known.unfinished)).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent(name: &str) -> AgentId {
        format!("spiffe://acme.example/ns/a/sa/b/agent/{name}").parse().unwrap()
    }

    fn spoken(task: &str, context: &str) -> Spoken {
        Spoken { task: Some(task.into()), context: Some(context.into()), phase: None }
    }

    #[test]
    fn a_task_is_its_makers_alone() {
        let (tasks, one, other) = (Tasks::default(), agent("one"), agent("other"));
        assert!(tasks.claim(&one, &spoken("t", "c")));
        assert!(tasks.claim(&one, &spoken("t", "c")));
        assert!(tasks.owns(&one, "t") && !tasks.owns(&other, "t"));
        for new in [false, true] {
            assert!(tasks.may_join(&one, "c", new) && !tasks.may_join(&other, "c", new));
            assert_eq!(tasks.may_join(&other, "unknown", new), new);
        }
        assert!(!tasks.claim(&other, &spoken("t", "c2")));
        assert!(!tasks.claim(&other, &spoken("t2", "c")));
        assert!(!tasks.owns(&other, "t2"), "nothing of a refused claim is kept");
        assert_eq!((tasks.count(&one), tasks.count(&other)), (1, 0));
    }

    #[test]
    fn a_caller_forgets_its_own_oldest_and_nobody_elses() {
        let (tasks, one, other) = (Tasks::default(), agent("one"), agent("other"));
        assert!(tasks.claim(&other, &spoken("kept", "k")));
        for at in 0..=MAX_TASKS {
            let spoken = Spoken { task: Some(at.to_string()), context: None, phase: None };
            assert!(tasks.claim(&one, &spoken));
        }
        assert!(!tasks.owns(&one, "0") && tasks.owns(&one, "1") && tasks.owns(&other, "kept"));
        assert_eq!(tasks.count(&one), MAX_TASKS);
    }

    #[test]
    fn a_context_that_is_forgotten_is_nobodys() {
        let (tasks, one, other) = (Tasks::default(), agent("one"), agent("other"));
        let context = |at: usize| Spoken { task: None, context: Some(at.to_string()), phase: None };
        for at in 0..=MAX_TASKS {
            assert!(tasks.claim(&one, &context(at)));
        }
        assert!(tasks.may_join(&one, "1", false) && !tasks.may_join(&other, "1", false));
        assert!(!tasks.may_join(&other, "0", false), "another would read what was said there");
        assert!(!tasks.may_join(&one, "0", false), "and nobody can tell whose it was");
    }
}
