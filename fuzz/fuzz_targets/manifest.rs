//! What other sidecars show: never a panic, and nothing is believed that no SVID has signed.
#![no_main]

use aegis_core::{Digest, Timestamp, TrustDomain};
use aegis_identity::{
    Bundle, Revocations,
    delegation::{encode, read_delegation},
    manifest::read_manifest,
    verify_delegation, verify_manifest,
};
use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateDer;

fuzz_target!(|bytes: &[u8]| {
    let now = Timestamp::from_secs(1_800_000_000);
    let Ok(token) = std::str::from_utf8(bytes) else { return };
    let leaf = CertificateDer::from(&b"none"[..]);
    assert!(verify_manifest(token, &leaf, Digest::of(b"channel"), now).is_err());
    if let Ok(manifest) = read_manifest(token) {
        let _ = manifest.is_current(now, std::time::Duration::from_secs(30));
    }
    let acme: TrustDomain = "acme.example".parse().expect("legal");
    let holder = "spiffe://acme.example/ns/shop/sa/bot/agent/buyer".parse().expect("legal");
    if let Ok(bundle) = Bundle::from_jwks(acme, br#"{"keys":[],"spiffe_sequence":1}"#) {
        let believed = (&bundle, &Revocations::default());
        assert!(verify_delegation(token, &holder, believed, now, |_| Some(Vec::new())).is_err());
    }
    if let Ok(links) = read_delegation(token) {
        let written = encode(&links).expect("what was read can be written");
        assert_eq!(read_delegation(&written).as_ref(), Ok(&links));
    }
});
