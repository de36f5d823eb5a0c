//! Every kind of certificate that must not pass for an SVID.

use std::{collections::BTreeSet, time::Duration};

use crate::fixture::{AGENT, Ca, NOW, TTL, ca_params, leaf, uri};
use aegis_core::Timestamp;
use aegis_identity::{Revocations, Serial, VerifyError, verify_chain};
use proptest::prelude::*;
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose};
use rustls::pki_types::CertificateDer;

fn verify(ca: &Ca, chain: &[CertificateDer<'_>], now: Timestamp) -> Result<(), VerifyError> {
    verify_chain(chain, &ca.bundle(), &Revocations::default(), now).map(|_| ())
}

#[test]
fn an_honest_svid_is_accepted() {
    let ca = Ca::new("root");
    let peer =
        verify_chain(&ca.sign(&leaf(AGENT)), &ca.bundle(), &Revocations::default(), NOW).unwrap();
    assert_eq!(peer.id.as_str(), AGENT);
    assert_eq!(peer.not_after, NOW.plus(TTL));
    let through = ca.sign_through(ca_params("between"), &leaf(AGENT));
    assert_eq!(verify(&ca, &through, NOW), Ok(()));
}

#[test]
fn dishonest_leaves_are_refused() {
    type Change = fn(&mut CertificateParams);
    type Expected = fn(&VerifyError) -> bool;
    let table: &[(&str, Change, Expected)] = &[
        ("no SAN", |p| p.subject_alt_names.clear(), |e| *e == VerifyError::UriNames(0)),
        (
            "two URI SANs",
            |p| p.subject_alt_names.push(uri("spiffe://acme.example/ns/shop/sa/bot/agent/other")),
            |e| *e == VerifyError::UriNames(2),
        ),
        (
            "not SPIFFE",
            |p| p.subject_alt_names = vec![uri("https://acme.example/x")],
            |e| matches!(e, VerifyError::Name(_)),
        ),
        (
            "root path",
            |p| p.subject_alt_names = vec![uri("spiffe://acme.example")],
            |e| matches!(e, VerifyError::Name(_)),
        ),
        (
            "foreign trust domain",
            |p| p.subject_alt_names = vec![uri("spiffe://evil.example/ns/shop/sa/bot/agent/buyer")],
            |e| matches!(e, VerifyError::ForeignTrustDomain { .. }),
        ),
        (
            "CA bit",
            |p| p.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained),
            |e| *e == VerifyError::SigningCertificate,
        ),
        (
            "may sign certificates",
            |p| p.key_usages.push(KeyUsagePurpose::KeyCertSign),
            |e| *e == VerifyError::SigningCertificate,
        ),
        (
            "may sign CRLs",
            |p| p.key_usages.push(KeyUsagePurpose::CrlSign),
            |e| *e == VerifyError::SigningCertificate,
        ),
        ("no key usage", |p| p.key_usages.clear(), |e| *e == VerifyError::KeyUsage),
        (
            "other key usage",
            |p| p.key_usages = vec![KeyUsagePurpose::KeyAgreement],
            |e| *e == VerifyError::KeyUsage,
        ),
        ("no EKU", |p| p.extended_key_usages.clear(), |e| *e == VerifyError::ExtendedKeyUsage),
        (
            "server EKU only",
            |p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth],
            |e| *e == VerifyError::ExtendedKeyUsage,
        ),
    ];
    let ca = Ca::new("root");
    for (name, change, expected) in table {
        let mut params = leaf(AGENT);
        change(&mut params);
        let error = verify(&ca, &ca.sign(&params), NOW).expect_err(name);
        assert!(expected(&error), "{name}: {error}");
    }
}

#[test]
fn foreign_and_broken_chains_are_refused() {
    let (ca, stranger) = (Ca::new("root"), Ca::new("root"));
    let foreign = verify(&ca, &stranger.sign(&leaf(AGENT)), NOW);
    assert!(matches!(foreign, Err(VerifyError::Untrusted { .. })), "{foreign:?}");

    assert_eq!(verify(&ca, &[], NOW), Err(VerifyError::NoCertificate));
    let garbage = CertificateDer::from(vec![0x30, 0x03, 1, 2, 3]);
    assert!(matches!(verify(&ca, &[garbage], NOW), Err(VerifyError::Malformed(_))));

    let mut chain = ca.sign(&leaf(AGENT));
    let mut trailing = chain[0].to_vec();
    trailing.push(0);
    assert!(matches!(
        verify(&ca, &[CertificateDer::from(trailing)], NOW),
        Err(VerifyError::Malformed(_))
    ));
    chain.extend((0..8).map(|_| ca.root.clone()));
    assert_eq!(verify(&ca, &chain, NOW), Err(VerifyError::TooLarge));

    let mut not_signing = ca_params("between");
    not_signing.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let through = ca.sign_through(not_signing, &leaf(AGENT));
    assert_eq!(verify(&ca, &through, NOW), Err(VerifyError::Intermediate));
    // A leaf that signs another leaf.
    let through = ca.sign_through(leaf(AGENT), &leaf(AGENT));
    assert_eq!(verify(&ca, &through, NOW), Err(VerifyError::Intermediate));
}

/// SVIDs of 15 minutes between machines whose clocks differ by up to five.
#[test]
fn clocks_may_differ_by_the_allowance_only() {
    let ca = Ca::new("root");
    let chain = ca.sign(&leaf(AGENT));
    let at = |seconds: i64| {
        let offset = Duration::from_secs(seconds.unsigned_abs());
        verify(&ca, &chain, if seconds < 0 { NOW.minus(offset) } else { NOW.plus(offset) })
    };
    for seconds in [-60, 0, 300, 600, 900, 930] {
        assert_eq!(at(seconds), Ok(()), "{seconds}");
    }
    for seconds in [-300, -61] {
        assert!(matches!(at(seconds), Err(VerifyError::NotYetValid(_))), "{seconds}");
    }
    for seconds in [931, 1200] {
        assert!(matches!(at(seconds), Err(VerifyError::Expired(_))), "{seconds}");
    }
}

/// A trust anchor's own end counts, although path validation does not look at it.
#[test]
fn an_expired_root_vouches_for_nobody() {
    let ca = Ca::new("root");
    let mut params = leaf(AGENT);
    params.not_after = time::OffsetDateTime::from_unix_timestamp(2_000_000_000).unwrap();
    let late = NOW.plus(Duration::from_secs(8 * 86_400));
    let result = verify(&ca, &ca.sign(&params), late);
    assert!(matches!(result, Err(VerifyError::Untrusted { .. })), "{result:?}");
}

#[test]
fn revoked_peers_are_refused() {
    let ca = Ca::new("root");
    let (chain, own) = (ca.sign(&leaf(AGENT)), ca.sign(&leaf(&format!("{AGENT}/workload"))));
    let check = |chain: &[CertificateDer<'_>], revoked: &Revocations| {
        verify_chain(chain, &ca.bundle(), revoked, NOW).map(|peer| peer.serial)
    };
    let serial = check(&chain, &Revocations::default()).unwrap();
    let by_serial = Revocations { serials: BTreeSet::from([serial]), ..Revocations::default() };
    assert!(matches!(check(&chain, &by_serial), Err(VerifyError::Revoked(_))));
    assert!(check(&own, &by_serial).is_ok());
    let by_id =
        Revocations { ids: BTreeSet::from([AGENT.parse().unwrap()]), ..Revocations::default() };
    assert!(matches!(check(&chain, &by_id), Err(VerifyError::Revoked(_))));
    assert!(
        matches!(check(&own, &by_id), Err(VerifyError::Revoked(_))),
        "the application goes with its agent"
    );
    let other = Revocations {
        serials: BTreeSet::from(["ff01".parse::<Serial>().unwrap()]),
        ..Revocations::default()
    };
    assert!(check(&chain, &other).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever byte is changed, the certificate is no longer believed (and nothing panics).
    #[test]
    fn an_altered_certificate_is_refused(position in any::<prop::sample::Index>(), flip in 1_u8..) {
        let ca = Ca::new("root");
        let mut bytes = ca.sign(&leaf(AGENT))[0].to_vec();
        let at = position.index(bytes.len());
        bytes[at] ^= flip;
        prop_assert!(verify(&ca, &[CertificateDer::from(bytes)], NOW).is_err());
    }

    #[test]
    fn garbage_is_refused(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        let ca = Ca::new("root");
        prop_assert!(verify(&ca, &[CertificateDer::from(bytes)], NOW).is_err());
    }
}
