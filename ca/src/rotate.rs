//! The authorities and their rotation.
//!
//! Of each kind (root, intermediate, JWT key) one signs and at most one is prepared. The next is
//! prepared when half of the active one's life is left, and signs when a sixth is left; the old one
//! stays in the bundle until it ends, by when all that it signed has ended too. A forced rotation
//! does the same at once, and tainting and revoking the old authority follow.
//!
//! New keys are written first, then the one state document, then keys that are no longer needed
//! are removed. Whatever step a crash hits, the state document on disk is whole, and opening it
//! again removes the leftovers and goes on from there. Time is an argument.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use aegis_core::{Timestamp, TrustDomain};
use aegis_identity::{Bundle, BundleError, CLOCK_SKEW, JwtError, JwtKey, JwtSigner};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::pki_types::CertificateDer;
use zeroize::Zeroizing;

use crate::{
    Store, StoreError,
    issue::{IssueError, Lifetimes, MAX_SVID_TTL, Signer, date, random_serial, uri},
    state::{FORMAT, Kind, Record, State, Status, is_key_file, key_file},
};

const STATE: &str = "state.json";
/// How often federated trust domains ask for the bundle.
const REFRESH_HINT: Duration = Duration::from_secs(300);

/// Why the authorities cannot be used or changed.
#[derive(Debug, thiserror::Error)]
pub enum RotateError {
    /// The directory.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The state document is not one that the CA wrote.
    #[error(
        "state.json is corrupt: {0}; restore it from a backup, or move the directory away to start a new CA that nobody trusts yet"
    )]
    Corrupt(String),
    /// A CA of another trust domain.
    #[error(
        "this directory belongs to the CA of {found}, not of {expected}; choose another directory or trust domain"
    )]
    OtherTrustDomain {
        /// What the directory says.
        found: TrustDomain,
        /// What was asked for.
        expected: TrustDomain,
    },
    /// A key that the state speaks of is gone or is not the right one.
    #[error(
        "the key file {file} {cause}; restore it from a backup, or move the directory away to start a new CA that nobody trusts yet"
    )]
    Key {
        /// Which file.
        file: String,
        /// What is wrong with it.
        cause: String,
    },
    /// Lifetimes that leave no room for overlap.
    #[error("the lifetimes do not fit: {0}")]
    Lifetimes(String),
    /// Not a step that is possible now.
    #[error("{0}")]
    Refused(String),
    /// A certificate or key cannot be made.
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// The bundle cannot be made.
    #[error(transparent)]
    Bundle(#[from] BundleError),
}

/// One authority, for status and the command line.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct AuthorityInfo {
    /// Its name in the state document.
    pub id: String,
    /// What it signs.
    pub kind: Kind,
    /// Where it is in its life.
    pub status: Status,
    /// When it ends.
    pub not_after: Timestamp,
}

/// The state and the keys that still sign.
pub(crate) struct Authorities {
    store: Arc<dyn Store>,
    lifetimes: Lifetimes,
    state: State,
    keys: BTreeMap<String, Zeroizing<Vec<u8>>>,
}

/// A change that is not yet on disk.
struct Draft {
    state: State,
    new_keys: BTreeMap<String, Zeroizing<Vec<u8>>>,
    /// Whether it is what somebody asked for in the store.
    answers: bool,
}

fn rcgen_error(error: rcgen::Error) -> RotateError {
    RotateError::Issue(IssueError::Signing(error))
}

fn jwt_error(error: JwtError) -> RotateError {
    RotateError::Issue(IssueError::Jwt(error))
}

impl Authorities {
    /// Opens the state, or starts a new one, and brings it up to `now`.
    pub(crate) fn open(
        store: Arc<dyn Store>,
        trust_domain: &TrustDomain,
        lifetimes: Lifetimes,
        now: Timestamp,
    ) -> Result<Self, RotateError> {
        lifetimes.check().map_err(RotateError::Lifetimes)?;
        let state = match store.read(STATE)? {
            Some(bytes) => read_state(&bytes, trust_domain)?,
            None => State {
                format: FORMAT.to_owned(),
                trust_domain: trust_domain.clone(),
                sequence: 0,
                authorities: Vec::new(),
            },
        };
        let mut keys = BTreeMap::new();
        for record in state.authorities.iter().filter(|record| record.signs()) {
            keys.insert(record.id.clone(), read_key(&*store, record)?);
        }
        let mut authorities = Self { store, lifetimes, state, keys };
        authorities.remove_unneeded_keys()?;
        authorities.tick(now)?;
        Ok(authorities)
    }

    /// Reads again what another replica may have changed, and goes on from there.
    pub(crate) fn reopen(&mut self, now: Timestamp) -> Result<(), RotateError> {
        let (store, domain) = (Arc::clone(&self.store), self.state.trust_domain.clone());
        // Opening nothing would make new authorities, and end everything that these have signed.
        if store.read(STATE)?.is_none() {
            let gone = "the CA's state is gone; what is in memory stays in force: restore it from a backup";
            return Err(RotateError::Refused(gone.to_owned()));
        }
        *self = Self::open(store, &domain, self.lifetimes, now)?;
        Ok(())
    }

    /// Does what is due at `now`. Returns whether anything changed.
    pub(crate) fn tick(&mut self, now: Timestamp) -> Result<bool, RotateError> {
        let mut draft = self.draft();
        self.advance_all(&mut draft, now)?;
        if draft.state == self.state {
            return Ok(false);
        }
        self.commit(draft)?;
        Ok(true)
    }

    fn advance_all(&self, draft: &mut Draft, now: Timestamp) -> Result<(), RotateError> {
        for kind in [Kind::Root, Kind::Intermediate, Kind::Jwt] {
            self.advance(draft, kind, now)?;
        }
        draft
            .state
            .authorities
            .retain(|record| record.signs() || now <= record.not_after.plus(CLOCK_SKEW));
        Ok(())
    }

    /// Prepares a new authority of `kind` and lets it sign at once, with what must follow it, in one
    /// change. What the old one signed stays valid until the old one is revoked. `asked`: it is what
    /// somebody asked for in the store, which is gone with this change.
    pub(crate) fn force(
        &mut self,
        kind: Kind,
        asked: bool,
        now: Timestamp,
    ) -> Result<(), RotateError> {
        let mut draft = self.draft();
        draft.answers = asked;
        draft.state.authorities.retain(|r| !(r.kind == kind && r.status == Status::Prepared));
        self.prepare(&mut draft, kind, now)?;
        activate(&mut draft.state, kind, now);
        self.advance_all(&mut draft, now)?;
        self.commit(draft)
    }

    /// Distrusts a retired authority: everything under it is to be replaced now.
    pub(crate) fn taint(&mut self, id: &str, now: Timestamp) -> Result<(), RotateError> {
        let mut draft = self.draft();
        retired(&draft.state, id)?;
        draft.state.set(id, Status::Tainted, now);
        self.commit(draft)
    }

    /// Takes a retired or tainted authority out of the bundle. Refused while SVIDs under it may
    /// still be in use, unless `at_once`.
    pub(crate) fn revoke(
        &mut self,
        id: &str,
        at_once: bool,
        now: Timestamp,
    ) -> Result<(), RotateError> {
        let mut draft = self.draft();
        let record = retired(&draft.state, id)?;
        let safe = record.retired_at.unwrap_or(now).plus(MAX_SVID_TTL + CLOCK_SKEW);
        if !at_once && now < safe {
            return Err(RotateError::Refused(format!(
                "SVIDs under {id} may be in use until {safe}; taint it and wait, or revoke it at once and cut them off"
            )));
        }
        let gone = |r: &Record| r.id == id || (r.parent.as_deref() == Some(id) && !r.signs());
        draft.state.authorities.retain(|r| !gone(r));
        self.commit(draft)
    }

    pub(crate) fn info(&self) -> Vec<AuthorityInfo> {
        let info = |record: &Record| AuthorityInfo {
            id: record.id.clone(),
            kind: record.kind,
            status: record.status,
            not_after: record.not_after,
        };
        self.state.authorities.iter().map(info).collect()
    }

    /// What others need to verify what is signed here.
    pub(crate) fn bundle(&self) -> Result<Bundle, RotateError> {
        let (mut certificates, mut jwt_keys) = (Vec::new(), Vec::new());
        for record in &self.state.authorities {
            match record.kind {
                Kind::Root => certificates.push(certificate(record)?),
                Kind::Jwt => jwt_keys
                    .push(JwtKey::new(record.id.clone(), public(record)?).map_err(jwt_error)?),
                Kind::Intermediate => {}
            }
        }
        let state = &self.state;
        let domain = state.trust_domain.clone();
        Ok(Bundle::new(domain, certificates, jwt_keys, state.sequence, REFRESH_HINT)?)
    }

    /// The active authorities.
    pub(crate) fn signer(&self) -> Result<Signer, RotateError> {
        let active = |kind| {
            self.state
                .find(kind, Status::Active)
                .ok_or_else(|| RotateError::Corrupt(format!("it has no active {kind} authority")))
        };
        let (intermediate, jwt) = (active(Kind::Intermediate)?, active(Kind::Jwt)?);
        let der = certificate(intermediate)?;
        let key = KeyPair::try_from(self.key(intermediate)?).map_err(rcgen_error)?;
        Ok(Signer {
            trust_domain: self.state.trust_domain.clone(),
            issuer: Issuer::from_ca_cert_der(&der, key).map_err(rcgen_error)?,
            intermediate: der,
            not_before: intermediate.not_before,
            not_after: intermediate.not_after,
            jwt: JwtSigner::from_pkcs8(self.key(jwt)?).map_err(jwt_error)?,
            jwt_not_after: jwt.not_after,
            lifetimes: self.lifetimes,
        })
    }

    fn key(&self, record: &Record) -> Result<&[u8], RotateError> {
        self.keys.get(&record.id).map(|key| key.as_slice()).ok_or_else(|| RotateError::Key {
            file: record.key_file(),
            cause: "was not loaded".to_owned(),
        })
    }

    fn draft(&self) -> Draft {
        Draft { state: self.state.clone(), new_keys: BTreeMap::new(), answers: false }
    }

    /// Moves one kind forward, if it is time.
    fn advance(&self, draft: &mut Draft, kind: Kind, now: Timestamp) -> Result<(), RotateError> {
        let root = draft.state.find(Kind::Root, Status::Active).map(|root| root.id.clone());
        // A prepared intermediate under a root that no longer signs has lost its use.
        draft.state.authorities.retain(|record| {
            let orphan = record.kind == Kind::Intermediate && record.parent != root;
            !(record.kind == kind
                && record.status == Status::Prepared
                && (orphan || !record.is_valid_at(now)))
        });
        let prepared = draft.state.find(kind, Status::Prepared).is_some();
        let active = draft.state.find(kind, Status::Active).filter(|record| {
            record.is_valid_at(now) && (kind != Kind::Intermediate || record.parent == root)
        });
        let (due_to_prepare, due_to_sign) = match active {
            None => (true, true),
            Some(record) => {
                let life = record.not_after.since(record.not_before);
                let left = record.not_after.since(now);
                (left <= life / 2, left <= life / 6)
            }
        };
        if due_to_prepare && !prepared {
            self.prepare(draft, kind, now)?;
        }
        if due_to_sign {
            activate(&mut draft.state, kind, now);
        }
        Ok(())
    }

    fn prepare(&self, draft: &mut Draft, kind: Kind, now: Timestamp) -> Result<(), RotateError> {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(rcgen_error)?;
        let pkcs8 = Zeroizing::new(key.serialize_der());
        let id = JwtSigner::from_pkcs8(&pkcs8).map_err(jwt_error)?.public().kid().to_owned();
        let (life, parent) = match kind {
            Kind::Root => (self.lifetimes.root, None),
            Kind::Jwt => (self.lifetimes.jwt_key, None),
            Kind::Intermediate => (self.lifetimes.intermediate, Some(self.active_root(draft)?)),
        };
        let (mut not_before, mut not_after) = (now.minus(CLOCK_SKEW), now.plus(life));
        if let Some((root, _)) = &parent {
            not_before = not_before.max(root.not_before);
            not_after = not_after.min(root.not_after);
        }
        let mut record = Record {
            id: id.clone(),
            kind,
            status: Status::Prepared,
            parent: parent.as_ref().map(|(root, _)| root.id.clone()),
            public: String::new(),
            // A certificate counts whole seconds.
            not_before: Timestamp::from_secs(not_before.as_secs()),
            not_after: Timestamp::from_secs(not_after.as_secs()),
            retired_at: None,
        };
        let public = match kind {
            Kind::Jwt => key.public_key_raw().to_vec(),
            _ => authority_certificate(&draft.state.trust_domain, &record, &key, parent.as_ref())?,
        };
        record.public = BASE64_STANDARD.encode(public);
        draft.state.authorities.push(record);
        draft.new_keys.insert(id, pkcs8);
        Ok(())
    }

    fn active_root(&self, draft: &Draft) -> Result<(Record, Zeroizing<Vec<u8>>), RotateError> {
        let root = draft.state.find(Kind::Root, Status::Active);
        let root = root.ok_or_else(|| RotateError::Corrupt("it has no active root".to_owned()))?;
        let key = match draft.new_keys.get(&root.id) {
            Some(key) => key.clone(),
            None => Zeroizing::new(self.key(root)?.to_vec()),
        };
        Ok((root.clone(), key))
    }

    /// Makes a draft durable, then current. After an error the old state is still the current one.
    fn commit(&mut self, mut draft: Draft) -> Result<(), RotateError> {
        draft.state.sequence = self.state.sequence + 1;
        let text = serde_json::to_vec_pretty(&draft.state)
            .map_err(|error| RotateError::Corrupt(error.to_string()))?;
        let mut files = Vec::new();
        for (id, key) in &draft.new_keys {
            if let Some(record) = draft.state.by_id(id) {
                files.push((record.key_file(), key.as_slice()));
            }
        }
        let mut pieces: Vec<(&str, &[u8])> =
            files.iter().map(|(name, key)| (name.as_str(), *key)).collect();
        pieces.push((STATE, &text));
        match draft.answers {
            true => self.store.answer(&pieces)?,
            false => self.store.write_all(&pieces)?,
        }
        self.state = draft.state;
        self.keys.append(&mut draft.new_keys);
        let state = &self.state;
        self.keys.retain(|id, _| state.by_id(id).is_some_and(Record::signs));
        // The change is in force; a key that could not be removed goes with the next opening.
        if let Err(error) = self.remove_unneeded_keys() {
            tracing::warn!(%error, "a key that is no longer needed could not be removed");
        }
        Ok(())
    }

    fn remove_unneeded_keys(&self) -> Result<(), StoreError> {
        let needed: Vec<String> =
            self.state.authorities.iter().filter(|r| r.signs()).map(Record::key_file).collect();
        for name in self.store.names()? {
            if is_key_file(&name) && !needed.contains(&name) {
                self.store.remove(&name)?;
            }
        }
        Ok(())
    }
}

/// Lets the prepared authority of a kind sign and retires the one that did.
fn activate(state: &mut State, kind: Kind, now: Timestamp) {
    let Some(next) = state.find(kind, Status::Prepared).map(|record| record.id.clone()) else {
        return;
    };
    if let Some(old) = state.find(kind, Status::Active).map(|record| record.id.clone()) {
        state.set(&old, Status::Retired, now);
    }
    state.set(&next, Status::Active, now);
}

fn retired<'a>(state: &'a State, id: &str) -> Result<&'a Record, RotateError> {
    match state.by_id(id) {
        Some(record) if !record.signs() => Ok(record),
        Some(record) => Err(RotateError::Refused(format!(
            "{id} is {:?}; rotate {} first, so that another one signs",
            record.status, record.kind
        ))),
        None => Err(RotateError::Refused(format!("there is no authority {id}"))),
    }
}

/// A signing certificate: self-signed, or signed by its parent.
fn authority_certificate(
    domain: &TrustDomain,
    record: &Record,
    key: &KeyPair,
    parent: Option<&(Record, Zeroizing<Vec<u8>>)>,
) -> Result<Vec<u8>, RotateError> {
    let params = authority_params(domain, record)?;
    let signed = match parent {
        None => params.self_signed(key),
        Some((root, root_key)) => {
            let root_key = KeyPair::try_from(root_key.as_slice()).map_err(rcgen_error)?;
            let issuer =
                Issuer::from_ca_cert_der(&certificate(root)?, root_key).map_err(rcgen_error)?;
            params.signed_by(key, &issuer)
        }
    };
    Ok(signed.map_err(rcgen_error)?.der().to_vec())
}

fn authority_params(
    domain: &TrustDomain,
    record: &Record,
) -> Result<CertificateParams, RotateError> {
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Aegis");
    let short: String = record.id.chars().take(16).collect();
    name.push(DnType::CommonName, format!("{} {short}", record.kind));
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    params.subject_alt_names = vec![uri(&domain.uri()).map_err(rcgen_error)?];
    params.serial_number = Some(random_serial()?);
    params.not_before = date(record.not_before);
    params.not_after = date(record.not_after);
    let below = u8::from(record.kind == Kind::Root);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(below));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn read_state(bytes: &[u8], expected: &TrustDomain) -> Result<State, RotateError> {
    let state: State =
        serde_json::from_slice(bytes).map_err(|error| RotateError::Corrupt(error.to_string()))?;
    if state.format != FORMAT {
        return Err(RotateError::Corrupt(format!(
            "its format is `{}`, not `{FORMAT}`",
            state.format
        )));
    }
    if state.trust_domain != *expected {
        let found = state.trust_domain;
        return Err(RotateError::OtherTrustDomain { found, expected: expected.clone() });
    }
    for record in &state.authorities {
        public(record)?;
        // It becomes a file name.
        if record.id.is_empty() || !record.id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(RotateError::Corrupt("an authority has an impossible id".to_owned()));
        }
    }
    Ok(state)
}

/// Reads a private key and checks that it is the one that the state speaks of.
fn read_key(store: &dyn Store, record: &Record) -> Result<Zeroizing<Vec<u8>>, RotateError> {
    let file = key_file(record.kind, &record.id);
    let bad = |cause: &str| RotateError::Key { file: file.clone(), cause: cause.to_owned() };
    let bytes = store.read(&file)?.ok_or_else(|| bad("is missing"))?;
    let signer = JwtSigner::from_pkcs8(&bytes).map_err(|_| bad("is not a P-256 key in PKCS#8"))?;
    if signer.public().kid() != record.id {
        return Err(bad("holds another key"));
    }
    Ok(bytes)
}

fn public(record: &Record) -> Result<Vec<u8>, RotateError> {
    BASE64_STANDARD
        .decode(&record.public)
        .map_err(|error| RotateError::Corrupt(format!("authority {}: {error}", record.id)))
}

fn certificate(record: &Record) -> Result<CertificateDer<'static>, RotateError> {
    public(record).map(CertificateDer::from)
}
