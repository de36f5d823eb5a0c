//! Memory with an end: what clients and servers can make Aegis remember is forgotten again, the
//! oldest first.

use std::{
    collections::{HashMap, VecDeque},
    hash::Hash,
};

/// How many open questions, parked exchanges or listed sessions a route remembers.
pub(crate) const MAX_REMEMBERED: usize = 1_024;

/// A map that forgets its oldest entry when it is full.
#[derive(Debug)]
pub(crate) struct Bounded<K, T> {
    map: HashMap<K, T>,
    order: VecDeque<K>,
}

impl<K, T> Default for Bounded<K, T> {
    fn default() -> Self {
        Self { map: HashMap::new(), order: VecDeque::new() }
    }
}

impl<K: Clone + Eq + Hash, T> Bounded<K, T> {
    /// Puts a value and returns what had to be forgotten for it.
    pub(crate) fn put(&mut self, key: K, value: T) -> Option<T> {
        if let Some(previous) = self.map.insert(key.clone(), value) {
            return Some(previous);
        }
        self.order.push_back(key);
        while self.order.len() > MAX_REMEMBERED {
            let oldest = self.order.pop_front()?;
            if let Some(forgotten) = self.map.remove(&oldest) {
                return Some(forgotten);
            }
        }
        None
    }

    /// Takes a value out.
    pub(crate) fn take(&mut self, key: &K) -> Option<T> {
        let taken = self.map.remove(key)?;
        self.order.retain(|other| other != key);
        Some(taken)
    }

    /// Whether there is a value.
    pub(crate) fn contains(&self, key: &K) -> bool {
        self.map.contains_key(key)
    }

    /// A value.
    pub(crate) fn get(&self, key: &K) -> Option<&T> {
        self.map.get(key)
    }

    /// Every value with its key, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&K, &T)> {
        self.map.iter()
    }

    /// The same, to be changed.
    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (&K, &mut T)> {
        self.map.iter_mut()
    }

    /// Forgets everything.
    pub(crate) fn clear(&mut self) {
        self.map.clear();
        self.order.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_is_forgotten_first() {
        let mut bounded = Bounded::default();
        for key in 0..MAX_REMEMBERED {
            assert_eq!(bounded.put(key, key), None);
        }
        assert_eq!(bounded.put(MAX_REMEMBERED, 7), Some(0));
        assert_eq!(bounded.take(&1), Some(1));
        assert_eq!(bounded.put(0, 8), None, "there is room for one");
        assert!(bounded.contains(&2) && !bounded.contains(&1));
        bounded.clear();
        assert_eq!(bounded.iter().count(), 0);
    }
}
