//! Manifests on the wire: the one form that is read, by whom it is signed and what it is bound to.

use std::time::Duration;

use aegis_core::{
    Digest,
    manifest::{MANIFEST_LIFE, Manifest, ManifestError},
};
use aegis_identity::{
    X509Svid,
    manifest::{MAX_MANIFEST_BYTES, certificate},
    sign_manifest, verify_manifest,
};
use serde_json::{Value, json};

use crate::{
    fixture::{AGENT, Ca, NOW, leaf},
    grant::token,
};

const CHANNEL: &[u8] = b"channel";

fn svid() -> X509Svid {
    Ca::new("root").svid(&leaf(AGENT))
}

fn manifest(svid: &X509Svid) -> Manifest {
    Manifest {
        agent: AGENT.parse().unwrap(),
        sponsor: "ada@acme.example".parse().unwrap(),
        capabilities: vec!["call:calc/*".parse().unwrap()],
        policies: Digest::of(b"policies"),
        state: 1 << 60,
        svid: certificate(&svid.chain()[0]),
        channel: Digest::of(CHANNEL),
        issued_at: NOW,
        expires_at: NOW.plus(MANIFEST_LIFE),
    }
}

fn verify(token: &str, svid: &X509Svid) -> Result<Manifest, ManifestError> {
    let channel = Digest::of(CHANNEL);
    verify_manifest(token, &svid.chain()[0], channel, NOW).map(|known| known.manifest().clone())
}

#[test]
fn a_manifest_is_of_one_svid_and_one_connection() {
    let (own, another) = (svid(), svid());
    let good = manifest(&own);
    let signed = |manifest: &Manifest| sign_manifest(&own, manifest).unwrap();
    assert_eq!(verify(&signed(&good), &own), Ok(good.clone()), "as it was signed");
    assert_eq!(verify(&signed(&good), &another), Err(ManifestError::Signature));
    let other = |change: fn(&mut Manifest)| {
        let mut manifest = good.clone();
        change(&mut manifest);
        verify(&signed(&manifest), &own).unwrap_err()
    };
    assert_eq!(other(|m| m.channel = Digest::of(b"another")), ManifestError::Channel);
    assert_eq!(other(|m| m.svid = Digest::of(b"another")), ManifestError::Svid);
    let namesake = |m: &mut Manifest| m.agent = AGENT.replace("shop", "evil").parse().unwrap();
    assert_eq!(other(namesake), ManifestError::Agent);
    assert_eq!(
        other(|m| m.expires_at = NOW.minus(Duration::from_secs(60))),
        ManifestError::Expired
    );
    assert_eq!(other(|m| m.expires_at = NOW.plus(MANIFEST_LIFE * 2)), ManifestError::Expired);
}

#[test]
fn one_form_is_read() {
    let own = svid();
    let header = json!({ "alg": "ES256", "typ": "aegis-manifest+jwt" }).to_string();
    let claims = |change: &dyn Fn(&mut Value)| {
        let good = manifest(&own);
        let mut claims = json!({
            "iss": good.agent, "sponsor": good.sponsor, "capabilities": good.capabilities,
            "policies": good.policies, "state": good.state, "svid": good.svid,
            "channel": good.channel, "iat": NOW.as_secs(), "exp": good.expires_at.as_secs(),
        });
        change(&mut claims);
        claims.to_string()
    };
    let good = claims(&|_| {});
    assert_eq!(verify(&token(&own, &header, &good), &own), Ok(manifest(&own)));
    let twice = good.replacen('{', "{\"state\":1,", 1);
    for payload in [
        claims(&|c| c["more"] = json!(1)),
        claims(&|c| c["capabilities"] = json!(["everything"])),
        claims(&|c| c["state"] = json!(1.5)),
        claims(&|c| c["sponsor"] = Value::Null),
        twice,
        "[]".to_owned(),
    ] {
        let said = verify(&token(&own, &header, &payload), &own);
        assert_eq!(said, Err(ManifestError::Malformed), "{payload}");
    }
    for header in [
        json!({ "alg": "none", "typ": "aegis-manifest+jwt" }),
        json!({ "alg": "ES256", "typ": "aegis-grant+jwt" }),
        json!({ "alg": "ES256", "typ": "aegis-manifest+jwt", "jwk": {} }),
    ] {
        let said = verify(&token(&own, &header.to_string(), &good), &own);
        assert_eq!(said, Err(ManifestError::Malformed), "{header}");
    }
    for garbage in ["", ".", "..", "a.b.c", "\u{fffd}"] {
        assert_eq!(verify(garbage, &own), Err(ManifestError::Malformed), "{garbage:?}");
    }
    let long = "a".repeat(MAX_MANIFEST_BYTES + 1);
    assert_eq!(verify(&long, &own), Err(ManifestError::TooLarge));
}
