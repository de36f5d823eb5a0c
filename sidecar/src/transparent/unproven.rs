//! Room for those who have proven nothing. Whoever reaches the pod is among them, and so is the kubelet
//! with its probes: an application that is not probed in time is taken for dead.
//!
//! There are so many places for all and fewer for each address, so that nobody holds them all from one.
//! Beside them some are kept for the node: a probe finds one there also when all others are taken.

use std::{net::IpAddr, sync::Arc};

use aegis_core::address;
use aegis_mesh::limits::{Held, Hold};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Places for everybody.
const ALL: usize = 256;
/// Of those, how many for each address.
const OF_ONE: usize = 32;
/// Places that are kept for the node: every container of a large pod is probed at once.
const KEPT: usize = 64;

/// The places of one pod.
#[derive(Debug)]
pub(super) struct Unproven {
    all: Arc<Semaphore>,
    of_one: Held<IpAddr>,
    kept: Arc<Semaphore>,
    node: Vec<IpAddr>,
}

/// One of them, given back when dropped.
#[derive(Debug)]
pub(super) struct Place {
    _permit: OwnedSemaphorePermit,
    _hold: Option<Hold<IpAddr>>,
}

impl Default for Unproven {
    fn default() -> Self {
        Self::keeping_room_for(&[])
    }
}

impl Unproven {
    /// Keeps some for whoever comes from these addresses.
    pub(super) fn keeping_room_for(node: &[IpAddr]) -> Self {
        Self {
            all: Arc::new(Semaphore::new(ALL)),
            of_one: Held::new(OF_ONE),
            kept: Arc::new(Semaphore::new(KEPT)),
            node: node.iter().filter_map(|own| address::unpacked(*own)).collect(),
        }
    }

    /// A place for somebody from there, if there is one.
    pub(super) fn take(&self, from: IpAddr) -> Option<Place> {
        let from = address::unpacked(from)?;
        let common = || {
            let hold = self.of_one.take(from)?;
            let permit = Arc::clone(&self.all).try_acquire_owned().ok()?;
            Some(Place { _permit: permit, _hold: Some(hold) })
        };
        common().or_else(|| {
            let permit = self.node.contains(&from).then(|| Arc::clone(&self.kept))?;
            Some(Place { _permit: permit.try_acquire_owned().ok()?, _hold: None })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(last: u8) -> IpAddr {
        [10, 0, 0, last].into()
    }

    #[test]
    fn nobody_takes_all_places_from_one_address() {
        let unproven = Unproven::default();
        let held: Vec<Place> = std::iter::from_fn(|| unproven.take(at(1))).take(ALL).collect();
        assert_eq!(held.len(), OF_ONE);
        assert!(unproven.take("::ffff:10.0.0.1".parse().unwrap()).is_none(), "nor by a spelling");
        assert!(unproven.take(at(2)).is_some());
        drop(held);
        assert!(unproven.take(at(1)).is_some());
    }

    #[test]
    fn the_node_finds_a_place_when_all_others_are_taken() {
        let unproven = Unproven::keeping_room_for(&[at(9)]);
        let strangers = (1..9).flat_map(|last| (0..OF_ONE).map(move |_| at(last)));
        let held: Vec<Place> = strangers.filter_map(|from| unproven.take(from)).collect();
        assert_eq!(held.len(), ALL);
        assert!(unproven.take(at(10)).is_none());
        let probes: Vec<Place> = std::iter::from_fn(|| unproven.take(at(9))).take(ALL).collect();
        assert_eq!(probes.len(), KEPT);
    }
}
