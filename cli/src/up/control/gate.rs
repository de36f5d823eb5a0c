//! How many may be in at a time: of one user, and of all. Nobody keeps others out of the control
//! socket by holding connections or wrappers, and the daemon does not run out of descriptors.

use std::{collections::BTreeMap, sync::Arc};

use parking_lot::Mutex;

/// The gates of the daemon.
#[derive(Debug)]
pub(in crate::up) struct Gates {
    /// Connections of the control socket.
    pub(super) connections: Gate,
    /// Wrappers' sessions: each holds a connection and, often, a server with its pipes.
    pub(super) wrappers: Gate,
    /// Connections of the admin port.
    pub(super) admin: Gate,
}

impl Default for Gates {
    fn default() -> Self {
        Self {
            connections: Gate::new(128, 512),
            wrappers: Gate::new(128, 256),
            admin: Gate::new(64, 64),
        }
    }
}

/// Counts who is in.
#[derive(Debug)]
pub(super) struct Gate {
    of_one: usize,
    of_all: usize,
    inside: Arc<Mutex<BTreeMap<u32, usize>>>,
}

/// A place inside, given back when dropped.
#[derive(Debug)]
pub(super) struct Pass {
    uid: u32,
    inside: Arc<Mutex<BTreeMap<u32, usize>>>,
}

impl Gate {
    pub(super) fn new(of_one: usize, of_all: usize) -> Self {
        Self { of_one, of_all, inside: Arc::default() }
    }

    /// Lets one of a user in. An operator is kept out by none but its own user's: who can stop an
    /// agent must get in when agents hold every place.
    pub(super) fn enter(&self, uid: u32, operator: bool) -> Option<Pass> {
        let mut inside = self.inside.lock();
        let all: usize = inside.values().sum();
        let own = inside.get(&uid).copied().unwrap_or_default();
        if own >= self.of_one || (all >= self.of_all && !operator) {
            return None;
        }
        inside.insert(uid, own + 1);
        Some(Pass { uid, inside: Arc::clone(&self.inside) })
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        let mut inside = self.inside.lock();
        match inside.get_mut(&self.uid) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(inside.remove(&self.uid)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_keeps_others_out() {
        let gate = Gate::new(2, 3);
        let first = gate.enter(1, false).unwrap();
        let _second = gate.enter(1, false).unwrap();
        assert!(gate.enter(1, false).is_none(), "no more of one user");
        let _third = gate.enter(2, false).unwrap();
        assert!(gate.enter(3, false).is_none(), "no more of all");
        let _operator = gate.enter(3, true).unwrap();
        drop(first);
        assert!(gate.enter(1, true).is_some(), "a place is given back");
        assert_eq!(gate.inside.lock().values().sum::<usize>(), 3);
    }
}
