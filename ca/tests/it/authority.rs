//! Issuing, revoking, rotating and recovering.

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::{PermissionsExt as _, symlink},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use crate::fixture::{AGENT, Log, agent, registration, sponsor};
use aegis_ca::{
    CaConfig, CaError, Directory, IdentityManager, Kind, Lifetimes, RegistrationError, Selector,
    Status, Store, StoreError, Subject, federation,
};
use aegis_core::{SpiffeId, Timestamp};
use aegis_identity::{Bundle, Clock, Revocations, SvidFetcher, VerifyError, verify_chain};
use axum::{body::Body, http::Request};
use parking_lot::Mutex;
use proptest::prelude::*;
use rcgen::{CertificateParams, KeyPair, KeyUsagePurpose};
use tower::ServiceExt as _;
use zeroize::Zeroizing;

const START: Timestamp = Timestamp::from_secs(1_800_000_000);
const DAY: Duration = Duration::from_secs(86_400);

/// A store in memory that fails at the step it is told to, and forgets nothing.
#[derive(Clone, Default)]
struct Memory {
    files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    /// Steps until it fails; `usize::MAX` for never.
    left: Arc<AtomicUsize>,
}

impl Memory {
    fn new() -> Self {
        let memory = Self::default();
        memory.fail_after(usize::MAX);
        memory
    }

    fn fail_after(&self, steps: usize) {
        self.left.store(steps, Ordering::SeqCst);
    }

    /// A crash: from the failing step on, nothing is done any more.
    fn step(&self, name: &str) -> Result<(), StoreError> {
        let left = self.left.load(Ordering::SeqCst);
        if left == 0 {
            let cause = io::Error::other("crash");
            return Err(StoreError::Io { action: "write", path: PathBuf::from(name), cause });
        }
        if left < usize::MAX {
            self.left.store(left - 1, Ordering::SeqCst);
        }
        Ok(())
    }
}

impl Store for Memory {
    fn names(&self) -> Result<Vec<String>, StoreError> {
        Ok(self.files.lock().keys().cloned().collect())
    }

    fn read(&self, name: &str) -> Result<Option<Zeroizing<Vec<u8>>>, StoreError> {
        Ok(self.files.lock().get(name).cloned().map(Zeroizing::new))
    }

    fn write(&self, name: &str, bytes: &[u8]) -> Result<(), StoreError> {
        self.step(name)?;
        self.files.lock().insert(name.to_owned(), bytes.to_vec());
        Ok(())
    }

    fn remove(&self, name: &str) -> Result<(), StoreError> {
        self.step(name)?;
        self.files.lock().remove(name);
        Ok(())
    }
}

/// A clock that stands until it is moved.
#[derive(Clone)]
struct Hand(Arc<AtomicU64>);

impl Hand {
    fn new() -> Self {
        Self(Arc::new(AtomicU64::new(START.as_micros())))
    }

    fn now(&self) -> Timestamp {
        Timestamp::from_micros(self.0.load(Ordering::SeqCst))
    }

    fn advance(&self, by: Duration) {
        self.0.store(self.now().plus(by).as_micros(), Ordering::SeqCst);
    }

    fn clock(&self) -> Clock {
        let hand = self.clone();
        Arc::new(move || hand.now())
    }
}

fn open(store: impl Store, hand: &Hand) -> Result<IdentityManager, CaError> {
    let config =
        CaConfig { trust_domain: "acme.example".parse().unwrap(), lifetimes: Lifetimes::default() };
    let manager = IdentityManager::open(store, config, Arc::new(Log::default()), hand.clock())?;
    manager.register(vec![registration(vec![])]).unwrap();
    Ok(manager)
}

fn active(manager: &IdentityManager, kind: Kind) -> String {
    let all = manager.authorities();
    let mut active = all.iter().filter(|a| a.kind == kind && a.status == Status::Active);
    let id = active.next().unwrap().id.clone();
    assert!(active.next().is_none(), "one {kind} signs");
    id
}

#[tokio::test]
async fn issue_verify_revoke() {
    let hand = Hand::new();
    let store = Memory::new();
    let ca = open(store.clone(), &hand).unwrap();
    let svid = ca.issue(&agent(), &sponsor()).await.unwrap();
    assert_eq!(svid.id().as_str(), AGENT);
    assert_eq!(svid.serial().as_str().len(), 32, "128 bits");
    assert_eq!(svid.not_before(), START.minus(Duration::from_secs(30)));
    assert_eq!(svid.not_after(), START.plus(Duration::from_secs(900)));
    assert!(!format!("{svid:?}").contains("key"));
    assert_eq!(ca.verify(svid.chain()).unwrap().id.as_str(), AGENT);
    assert!(svid.certified_key().is_ok());

    let stranger = "spiffe://acme.example/ns/shop/sa/bot/agent/stranger".parse().unwrap();
    assert!(matches!(ca.issue(&stranger, &sponsor()).await, Err(CaError::NotRegistered(_))));
    let other = "eve@acme.example".parse().unwrap();
    assert!(matches!(ca.issue(&agent(), &other).await, Err(CaError::OtherSponsor { .. })));

    let mut revocations = ca.revocations();
    ca.revoke(Subject::Serial(svid.serial().clone()), "leaked").await.unwrap();
    assert!(
        revocations.has_changed().unwrap() && !revocations.borrow_and_update().serials.is_empty()
    );
    assert!(matches!(ca.verify(svid.chain()), Err(VerifyError::Revoked(_))));
    let next = ca.issue(&agent(), &sponsor()).await.unwrap();
    assert!(ca.verify(next.chain()).is_ok(), "one certificate, not the agent");

    let id = Subject::Id(AGENT.parse().unwrap());
    ca.revoke(id.clone(), "misbehaves").await.unwrap();
    assert!(matches!(ca.verify(next.chain()), Err(VerifyError::Revoked(_))));
    assert!(matches!(ca.issue(&agent(), &sponsor()).await, Err(CaError::Revoked(_))));
    drop(ca);
    let ca = open(store, &hand).unwrap();
    assert!(matches!(ca.verify(next.chain()), Err(VerifyError::Revoked(_))), "after a restart too");
    assert!(ca.reinstate(&id, "cleared").await.unwrap());
    assert!(ca.verify(next.chain()).is_ok());
    assert!(ca.verify(svid.chain()).is_err(), "its certificate stays revoked");
}

#[tokio::test]
async fn a_revocation_that_cannot_be_stored_is_reported() {
    let (hand, store) = (Hand::new(), Memory::new());
    let ca = open(store.clone(), &hand).unwrap();
    let svid = ca.issue(&agent(), &sponsor()).await.unwrap();
    store.fail_after(0);
    assert!(ca.revoke(Subject::Serial(svid.serial().clone()), "leaked").await.is_err());
    store.fail_after(usize::MAX);
    ca.revoke(Subject::Serial(svid.serial().clone()), "leaked").await.unwrap();
    store.files.lock().insert("revocations.json".to_owned(), b"[".to_vec());
    let error = open(store, &hand).unwrap_err().to_string();
    assert!(error.contains("revocations.json is corrupt"), "{error}");
}

#[tokio::test]
async fn crafted_requests_are_refused() {
    let ca = open(Memory::new(), &Hand::new()).unwrap();
    let request = |params: CertificateParams, key: &KeyPair| {
        params.serialize_request(key).unwrap().der().to_vec()
    };
    let plain = CertificateParams::default;
    let key = || KeyPair::generate().unwrap();
    for kind in
        [&rcgen::PKCS_ECDSA_P256_SHA256, &rcgen::PKCS_ECDSA_P384_SHA384, &rcgen::PKCS_ED25519]
    {
        let key = KeyPair::generate_for(kind).unwrap();
        let chain = ca.sign_request(&agent(), &sponsor(), &request(plain(), &key)).await.unwrap();
        assert_eq!(ca.verify(&chain).unwrap().id.as_str(), AGENT);
    }

    let mut names = plain();
    names.subject_alt_names =
        vec![rcgen::SanType::URI("spiffe://acme.example/admin".try_into().unwrap())];
    let mut usage = plain();
    usage.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    let mut authority = plain();
    authority.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    let rsa = KeyPair::generate_rsa_for(&rcgen::PKCS_RSA_SHA256, rcgen::RsaKeySize::_2048).unwrap();
    let mut broken = request(plain(), &key());
    let last = broken.len() - 1;
    broken[last] ^= 1;
    let mut trailing = request(plain(), &key());
    trailing.push(0);
    for (name, bytes, expected) in [
        ("a name", request(names, &key()), "asks for extensions"),
        ("a key usage", request(usage, &key()), "asks for extensions"),
        ("an authority", request(authority, &key()), "refused"),
        ("RSA", request(plain(), &rsa), "P-256, P-384 or Ed25519"),
        ("a broken proof", broken, "does not prove"),
        ("trailing bytes", trailing, "bytes follow"),
        ("too large", vec![0x30; 8193], "8 KiB"),
        ("empty", vec![], "not a PKCS#10"),
        ("garbage", b"-----BEGIN CERTIFICATE REQUEST-----".to_vec(), "not a PKCS#10"),
    ] {
        match ca.sign_request(&agent(), &sponsor(), &bytes).await {
            Ok(chain) => {
                // rcgen leaves basic constraints out of a request: then there is nothing to refuse.
                assert_eq!(name, "an authority");
                assert!(ca.verify(&chain).is_ok());
            }
            Err(error) => assert!(error.to_string().contains(expected), "{name}: {error}"),
        }
    }
}

#[test]
fn contradictory_registrations_are_refused_as_a_whole() {
    let ca = open(Memory::new(), &Hand::new()).unwrap();
    let one = registration(vec![]);
    let refused = |registrations| ca.register(registrations).unwrap_err();
    assert!(matches!(refused(vec![one.clone(), one.clone()]), RegistrationError::Twice(_)));
    let mut foreign = one.clone();
    foreign.id = "spiffe://evil.example/ns/a/sa/b/agent/c".parse().unwrap();
    assert!(matches!(refused(vec![foreign]), RegistrationError::ForeignTrustDomain { .. }));
    let relative = registration(vec![Selector::Path("bin/agent".into())]);
    assert!(matches!(refused(vec![relative]), RegistrationError::RelativePath { .. }));
    for seconds in [59, 86_401] {
        let mut ttl = one.clone();
        ttl.ttl = Some(Duration::from_secs(seconds));
        assert!(matches!(refused(vec![ttl]), RegistrationError::Ttl { .. }));
    }
    assert!(ca.registration(&agent()).is_some(), "the old set is still in force");
}

#[tokio::test]
async fn rotation_prepares_at_half_life_and_signs_in_the_last_sixth() {
    let hand = Hand::new();
    let ca = open(Memory::new(), &hand).unwrap();
    let (first, jwt) = (active(&ca, Kind::Intermediate), active(&ca, Kind::Jwt));
    let statuses = |kind| {
        let all = ca.authorities();
        all.into_iter().filter(|a| a.kind == kind).map(|a| a.status).collect::<Vec<_>>()
    };
    hand.advance(3 * DAY);
    ca.tick().unwrap();
    assert_eq!(statuses(Kind::Jwt), [Status::Active]);
    hand.advance(DAY);
    ca.tick().unwrap();
    assert_eq!(statuses(Kind::Intermediate), [Status::Active, Status::Prepared]);
    assert_eq!(statuses(Kind::Jwt), [Status::Active, Status::Prepared]);
    assert_eq!(ca.bundle().jwt_keys().len(), 2, "known before it signs");
    assert_eq!(active(&ca, Kind::Intermediate), first);
    let old = ca.issue(&agent(), &sponsor()).await.unwrap();

    hand.advance(DAY + DAY * 9 / 10);
    ca.tick().unwrap();
    assert_ne!(active(&ca, Kind::Intermediate), first);
    assert_ne!(active(&ca, Kind::Jwt), jwt);
    assert_eq!(statuses(Kind::Jwt), [Status::Retired, Status::Active]);
    assert!(ca.verify(old.chain()).is_err(), "it has expired by now");
    hand.advance(2 * DAY);
    ca.tick().unwrap();
    assert_eq!(
        statuses(Kind::Jwt),
        [Status::Active, Status::Prepared],
        "the retired one has ended"
    );
}

/// Two years, looked at every six hours: at each moment there is one of each kind that signs, and
/// what was issued stays valid for its whole life.
#[tokio::test]
async fn two_years_of_rotation_leave_no_gap() {
    let hand = Hand::new();
    let ca = open(Memory::new(), &hand).unwrap();
    let mut long = registration(vec![]);
    long.ttl = Some(DAY);
    ca.register(vec![long]).unwrap();
    let mut issued: Vec<aegis_identity::X509Svid> = Vec::new();
    let mut roots = std::collections::BTreeSet::new();
    for _ in 0..4 * 730 {
        hand.advance(DAY / 4);
        ca.tick().unwrap();
        roots.insert(active(&ca, Kind::Root));
        issued.retain(|svid| svid.not_after() > hand.now());
        for svid in &issued {
            ca.verify(svid.chain()).unwrap();
        }
        let svid = ca.issue(&agent(), &sponsor()).await.unwrap();
        assert_eq!(svid.not_after(), hand.now().plus(DAY), "never cut short");
        issued.push(svid);
        assert!(ca.bundle().certificates().count() <= 3 && ca.bundle().jwt_keys().len() <= 3);
    }
    // The first signs for 304 days; each next one, prepared halfway through, for 182.
    assert_eq!(roots.len(), 4);
}

#[tokio::test]
async fn a_ca_that_slept_past_everything_starts_again() {
    let (hand, store) = (Hand::new(), Memory::new());
    let ca = open(store.clone(), &hand).unwrap();
    let root = active(&ca, Kind::Root);
    drop(ca);
    hand.advance(400 * DAY);
    let ca = open(store, &hand).unwrap();
    assert_ne!(active(&ca, Kind::Root), root);
    let svid = ca.issue(&agent(), &sponsor()).await.unwrap();
    assert!(ca.verify(svid.chain()).is_ok());
}

/// Crashes at every single step that a change takes, reopens, and looks whether all is well.
#[tokio::test]
async fn a_crash_at_any_step_converges() {
    type Change = fn(&IdentityManager, &Hand) -> Result<(), CaError>;
    let forced: Change = |ca, _| ca.rotate(Kind::Root);
    let due: Change = |ca, hand| {
        hand.advance(6 * DAY + DAY / 2);
        ca.tick()
    };
    let tainted: Change = |ca, _| {
        let root = active(ca, Kind::Root);
        ca.rotate(Kind::Root)?;
        ca.taint(&root)?;
        ca.revoke_authority(&root, true)
    };
    for change in [forced, due, tainted] {
        let mut steps = 0;
        loop {
            let (hand, store) = (Hand::new(), Memory::new());
            let ca = open(store.clone(), &hand).unwrap();
            let before = ca.issue(&agent(), &sponsor()).await.unwrap();
            store.fail_after(steps);
            let outcome = change(&ca, &hand);
            let exhausted = store.left.load(Ordering::SeqCst) > 0;
            // The running CA goes on with what it has.
            let still = ca.issue(&agent(), &sponsor()).await.unwrap();
            assert!(ca.verify(still.chain()).is_ok(), "step {steps}: {outcome:?}");
            drop(ca);

            store.fail_after(usize::MAX);
            let ca = open(store.clone(), &hand).unwrap();
            for kind in [Kind::Root, Kind::Intermediate, Kind::Jwt] {
                active(&ca, kind);
            }
            let after = ca.issue(&agent(), &sponsor()).await.unwrap();
            assert!(ca.verify(after.chain()).is_ok());
            let revoked = outcome.is_ok() && std::ptr::fn_addr_eq(change, tainted);
            if before.not_after() > hand.now() && !revoked && !std::ptr::fn_addr_eq(change, tainted)
            {
                assert!(ca.verify(before.chain()).is_ok(), "step {steps}");
            }
            let keys = store.names().unwrap().iter().filter(|name| name.ends_with(".key")).count();
            let signing = ca
                .authorities()
                .iter()
                .filter(|a| matches!(a.status, Status::Prepared | Status::Active))
                .count();
            assert_eq!(keys, signing, "step {steps} leaves no key behind");
            if exhausted {
                assert!(outcome.is_ok() && steps >= 3);
                break;
            }
            steps += 1;
        }
    }
}

fn corrupt(change: impl FnOnce(&mut BTreeMap<String, Vec<u8>>)) -> String {
    let (hand, store) = (Hand::new(), Memory::new());
    drop(open(store.clone(), &hand).unwrap());
    change(&mut store.files.lock());
    open(store, &hand).unwrap_err().to_string()
}

#[test]
fn corrupt_and_foreign_state_is_a_clear_error() {
    let edit = |from: &'static str, to: &'static str| {
        corrupt(move |files| {
            let text = String::from_utf8(files["state.json"].clone()).unwrap();
            files.insert("state.json".to_owned(), text.replacen(from, to, 1).into_bytes());
        })
    };
    let key = |files: &BTreeMap<String, Vec<u8>>| {
        files.keys().find(|name| name.starts_with("root-")).unwrap().clone()
    };
    for (error, expected) in [
        (
            corrupt(|f| drop(f.insert("state.json".to_owned(), b"{\"format\"".to_vec()))),
            "state.json is corrupt",
        ),
        (edit("aegis-ca/1", "aegis-ca/2"), "its format is"),
        (edit("acme.example", "evil.example"), "belongs to the CA of evil.example"),
        (edit("\"sequence\"", "\"extra\": 1, \"sequence\""), "unknown field"),
        (corrupt(|f| drop(f.remove(&key(f)))), "is missing"),
        (corrupt(|f| drop(f.insert(key(f), b"garbage".to_vec()))), "is not a P-256 key"),
        (
            corrupt(|f| drop(f.insert(key(f), KeyPair::generate().unwrap().serialize_der()))),
            "holds another key",
        ),
    ] {
        assert!(error.contains(expected), "{expected}: {error}");
    }
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
}

#[test]
fn exposed_key_files_are_refused() {
    let temporary = tempfile::tempdir().unwrap();
    let path = temporary.path().join("ca");
    let hand = Hand::new();
    drop(open(Directory::open(&path).unwrap(), &hand).unwrap());
    assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
    let files: Vec<PathBuf> =
        fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert!(files.len() >= 5, "three keys, the state, the lock");
    for file in &files {
        assert_eq!(
            fs::metadata(file).unwrap().permissions().mode() & 0o777,
            0o600,
            "{}",
            file.display()
        );
        for mode in [0o640, 0o604, 0o620] {
            chmod(file, mode);
            let error = Directory::open(&path).unwrap_err().to_string();
            assert!(error.contains(&format!("chmod 600 {}", file.display())), "{error}");
        }
        chmod(file, 0o600);
    }
    chmod(&path, 0o755);
    let error = Directory::open(&path).unwrap_err().to_string();
    assert!(error.contains("chmod 700"), "{error}");
    chmod(&path, 0o700);

    let held = Directory::open(&path).unwrap();
    assert!(matches!(Directory::open(&path), Err(StoreError::InUse(_))));
    drop(held);
    fs::write(path.join("state.json.tmp"), "half").unwrap();
    drop(open(Directory::open(&path).unwrap(), &hand).unwrap());
    assert!(!path.join("state.json.tmp").exists(), "an unfinished write is cleared away");
    symlink("/etc/passwd", path.join("root-00.key")).unwrap();
    assert!(matches!(Directory::open(&path), Err(StoreError::NotAFile(_))));
}

#[tokio::test]
async fn the_bundle_endpoint_serves_what_verifies() {
    let hand = Hand::new();
    let ca = open(Memory::new(), &hand).unwrap();
    ca.rotate(Kind::Root).unwrap();
    let request = Request::get("/").body(Body::empty()).unwrap();
    let answer = federation::router(ca.clone()).oneshot(request).await.unwrap();
    assert_eq!(answer.headers()["content-type"], "application/json");
    let document = axum::body::to_bytes(answer.into_body(), 1 << 20).await.unwrap();
    let bundle = Bundle::from_jwks("acme.example".parse().unwrap(), &document).unwrap();
    assert_eq!(bundle, ca.bundle());
    let svid = ca.issue(&agent(), &sponsor()).await.unwrap();
    assert!(verify_chain(svid.chain(), &bundle, &Revocations::default(), hand.now()).is_ok());
}

#[tokio::test]
async fn parts_of_aegis_have_names_of_their_own() {
    let ca = open(Memory::new(), &Hand::new()).unwrap();
    let svid = ca.issue_component("ledger").await.unwrap();
    assert_eq!(svid.id().as_str(), "spiffe://acme.example/aegis/ledger");
    assert!(ca.issue_component("../admin").await.is_err());
}

#[tokio::test]
async fn a_source_in_this_process_learns_of_a_rotation() {
    let ca = open(Memory::new(), &Hand::new()).unwrap();
    let svids = ca.svids_of(agent(), sponsor());
    let first = svids.fetch().await.unwrap();
    ca.rotate(Kind::Intermediate).unwrap();
    tokio::time::timeout(Duration::from_secs(60), svids.changed()).await.unwrap();
    let second = svids.fetch().await.unwrap();
    assert_ne!(first.svid.chain()[1], second.svid.chain()[1]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    /// Whatever happens in whatever order, the CA signs, and what it signs verifies.
    #[test]
    fn any_history_leaves_a_working_ca(steps in prop::collection::vec((0_u8..6, 0_usize..8), 1..12)) {
        let (hand, store) = (Hand::new(), Memory::new());
        let mut ca = open(store.clone(), &hand).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        let mut sequence = ca.bundle().sequence();
        for (step, number) in steps {
            let some = ca.authorities().get(number).map(|a| a.id.clone()).unwrap_or_default();
            // A step may be refused; it may not break anything.
            let _ = match step {
                0 => ca.rotate(Kind::Root),
                1 => ca.rotate(Kind::Intermediate),
                2 => ca.taint(&some),
                3 => ca.revoke_authority(&some, number % 2 == 0),
                4 => { hand.advance(DAY * u32::try_from(number).unwrap()); ca.tick() }
                _ => { drop(ca); ca = open(store.clone(), &hand).unwrap(); Ok(()) }
            };
            ca.tick().unwrap();
            prop_assert!(ca.bundle().sequence() >= sequence);
            sequence = ca.bundle().sequence();
            let svid = runtime.block_on(ca.issue(&agent(), &sponsor())).unwrap();
            let id: SpiffeId = AGENT.parse().unwrap();
            prop_assert_eq!(ca.verify(svid.chain()).unwrap().id, id);
        }
    }
}
