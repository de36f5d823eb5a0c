//! Replicas that share one store: none overwrites another, and none begins anew by mistake.

use std::{collections::BTreeMap, sync::Arc};

use aegis_ca::{
    Asked, CaConfig, IdentityManager, Kind, Lifetimes, Store, StoreError, Subject, Unrecorded,
};
use aegis_identity::system_clock;
use parking_lot::Mutex;
use zeroize::Zeroizing;

type Pieces = BTreeMap<String, Vec<u8>>;

/// What all replicas share: a version, and what is stored.
type Shared = Arc<Mutex<(u64, Pieces)>>;
/// The piece that stands for the annotation.
const ASKED: &str = "asked";

/// One replica's view, as of a Secret: it writes only onto what it has seen last.
struct View {
    shared: Shared,
    held: Mutex<(u64, Pieces)>,
}

impl View {
    fn change(&self, change: impl FnOnce(&mut Pieces)) -> Result<(), StoreError> {
        let (mut shared, mut held) = (self.shared.lock(), self.held.lock());
        if shared.0 != held.0 {
            return Err(StoreError::Conflict("shared".into()));
        }
        shared.0 += 1;
        change(&mut shared.1);
        *held = shared.clone();
        Ok(())
    }
}

impl Store for View {
    fn names(&self) -> Result<Vec<String>, StoreError> {
        Ok(self.held.lock().1.keys().cloned().collect())
    }

    fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        Ok(self.held.lock().1.get(name).cloned().map(Zeroizing::new))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.write_all(&[(name, bytes)])
    }

    fn write_all(&self, pieces: &[(&str, &[u8])]) -> Result<(), StoreError> {
        self.change(|all| {
            all.extend(pieces.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())));
        })
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        self.change(|all| drop(all.remove(name)))
    }

    fn reload(&self) -> Result<(), StoreError> {
        *self.held.lock() = self.shared.lock().clone();
        Ok(())
    }

    fn asked(&self) -> Option<String> {
        let asked = self.held.lock().1.get(ASKED).cloned();
        asked.map(|bytes| String::from_utf8(bytes).unwrap())
    }

    fn answer(&self, pieces: &[(&str, &[u8])]) -> Result<(), StoreError> {
        self.change(|all| {
            all.remove(ASKED);
            all.extend(pieces.iter().map(|(name, bytes)| ((*name).to_owned(), bytes.to_vec())));
        })
    }
}

fn ask(shared: &Shared, what: &str) {
    let mut shared = shared.lock();
    shared.0 += 1;
    shared.1.insert(ASKED.to_owned(), what.as_bytes().to_vec());
}

fn replica(shared: &Shared) -> IdentityManager {
    let held = Mutex::new(shared.lock().clone());
    let store = View { shared: Arc::clone(shared), held };
    let config =
        CaConfig { trust_domain: "acme.example".parse().unwrap(), lifetimes: Lifetimes::default() };
    IdentityManager::open(store, config, Arc::new(Unrecorded), system_clock()).unwrap()
}

fn agent(name: &str) -> Subject {
    Subject::Id(format!("spiffe://acme.example/ns/shop/sa/bot/agent/{name}").parse().unwrap())
}

#[tokio::test]
async fn a_revocation_is_made_on_what_others_have_written() {
    let shared = Shared::default();
    let (one, two) = (replica(&shared), replica(&shared));
    one.revoke(agent("a"), "stolen").await.unwrap();
    one.rotate(Kind::Root).unwrap();
    // Neither of these has heard of what came before.
    two.revoke(agent("b"), "stolen").await.unwrap();
    assert!(one.reinstate(&agent("a"), "found").await.unwrap());
    let subjects = |ca: &IdentityManager| -> Vec<Subject> {
        ca.revoked().into_iter().map(|revoked| revoked.subject).collect()
    };
    assert_eq!(subjects(&one), [agent("b")]);
    two.reload().unwrap();
    assert_eq!(subjects(&two), [agent("b")]);
    assert_eq!(one.bundle(), two.bundle());
}

#[tokio::test]
async fn a_state_that_is_gone_is_not_begun_anew() {
    let shared = Shared::default();
    let ca = replica(&shared);
    let (bundle, authorities) = (ca.bundle(), ca.authorities());
    *shared.lock() = (7, Pieces::new());
    let error = ca.reload().unwrap_err().to_string();
    assert!(error.contains("restore it from a backup"), "{error}");
    assert_eq!((ca.bundle(), ca.authorities()), (bundle, authorities));
    assert!(ca.issue_component("operator").await.is_ok(), "it goes on with what it has");
    assert!(shared.lock().1.is_empty(), "nothing is written");
}

#[test]
fn what_is_asked_for_is_rotated_once() {
    let shared = Shared::default();
    let replicas: Vec<_> = (0..4).map(|_| replica(&shared)).collect();
    for (asked, kind) in [("x509", Kind::Root), ("jwt", Kind::Jwt)] {
        let before = replicas[0].authorities().len();
        let (serials, own) = (replicas[0].bundle().sequence(), replicas[0].authorities());
        ask(&shared, asked);
        let told: Vec<Asked> = std::thread::scope(|scope| {
            let asking = replicas.iter().map(|ca| scope.spawn(|| ca.rotate_as_asked().unwrap()));
            let asking: Vec<_> = asking.collect();
            asking.into_iter().map(|one| one.join().unwrap()).collect()
        });
        let done = told.iter().filter(|one| **one == Asked::Rotated(kind)).count();
        assert_eq!(done, 1, "{told:?}");
        assert!(told.iter().all(|one| matches!(one, Asked::Rotated(_) | Asked::Nothing)));
        for ca in &replicas {
            ca.reload().unwrap();
            assert_eq!(ca.authorities(), replicas[0].authorities());
            // With a new root comes a new intermediate, in the same change.
            assert_eq!(ca.bundle().sequence(), serials + 1);
        }
        let grown = replicas[0].authorities().len() - before;
        assert_eq!(grown, if kind == Kind::Root { 2 } else { 1 });
        let kept =
            own.iter().all(|old| replicas[0].authorities().iter().any(|now| now.id == old.id));
        assert!(kept, "what the old one signed stays valid");
        assert!(!shared.lock().1.contains_key(ASKED));
    }
}

#[test]
fn what_no_authority_is_called_changes_nothing_and_is_taken_away() {
    let shared = Shared::default();
    let (one, two) = (replica(&shared), replica(&shared));
    let before = one.authorities();
    ask(&shared, "everything");
    assert_eq!(one.rotate_as_asked().unwrap(), Asked::Unknown("everything".into()));
    assert_eq!(two.rotate_as_asked().unwrap(), Asked::Nothing);
    assert_eq!((one.authorities(), two.authorities()), (before.clone(), before));
}

#[test]
fn what_cannot_be_written_is_asked_for_still() {
    let shared = Shared::default();
    let ca = replica(&shared);
    let before = ca.authorities();
    ask(&shared, "x509");
    let good = shared.lock().1.remove("state.json").unwrap();
    assert!(ca.rotate_as_asked().is_err(), "its state is gone");
    assert_eq!(ca.authorities(), before);
    shared.lock().1.insert("state.json".to_owned(), good);
    assert_eq!(ca.rotate_as_asked().unwrap(), Asked::Rotated(Kind::Root));
}
