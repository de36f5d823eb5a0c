//! Certificates, trust bundles and tokens of strangers: never a panic, and nothing is believed.
#![no_main]

use std::sync::LazyLock;

use aegis_core::{Timestamp, TrustDomain};
use aegis_identity::{Bundle, Revocations, X509Svid, jwt, verify_chain};
use libfuzzer_sys::fuzz_target;
use rustls_pki_types::CertificateDer;

static ACME: LazyLock<TrustDomain> = LazyLock::new(|| "acme.example".parse().expect("legal"));

fuzz_target!(|bytes: &[u8]| {
    let now = Timestamp::from_secs(1_800_000_000);
    let empty = Bundle::from_jwks(ACME.clone(), br#"{"keys":[],"spiffe_sequence":1}"#);
    // The first two bytes say where the leaf ends, the rest is its issuer.
    let at = bytes.first_chunk().map_or(0, |length| usize::from(u16::from_be_bytes(*length)));
    let rest = bytes.get(2..).unwrap_or_default();
    let (leaf, issuer) = rest.split_at(at.min(rest.len()));
    let chain = vec![CertificateDer::from(leaf.to_vec()), CertificateDer::from(issuer.to_vec())];
    if let Ok(bundle) = &empty {
        assert!(verify_chain(&chain, bundle, &Revocations::default(), now).is_err());
        let token = String::from_utf8_lossy(bytes);
        assert!(jwt::verify_jwt(&token, "ledger", bundle, now).is_err());
    }
    let _ = X509Svid::new(chain, vec![].into());
    if let Ok(bundle) = Bundle::from_jwks(ACME.clone(), bytes) {
        let written = bundle.to_jwks().expect("what was read can be written");
        let again = Bundle::from_jwks(ACME.clone(), &written).expect("and read again");
        assert_eq!(again.certificates_der(), bundle.certificates_der());
    }
});
