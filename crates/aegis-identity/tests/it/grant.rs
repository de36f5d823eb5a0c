//! Grants on the wire: the one form that is read.

use std::time::Duration;

use aegis_core::{
    Digest,
    approval::Factor,
    grant::{Approver, Grant, GrantError},
};
use aegis_identity::{X509Svid, sign_grant, verify_grant};
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};

use crate::fixture::{AGENT, Ca, NOW, leaf};

const CALLEE: &str = "spiffe://acme.example/ns/shop/sa/tools/agent/calc";

const HOUR: Duration = Duration::from_secs(3600);

fn grant() -> Grant {
    Grant {
        id: "g1".into(),
        issuer: AGENT.parse().unwrap(),
        audience: CALLEE.parse().unwrap(),
        action: Digest::of(b"action"),
        approval: "a1".into(),
        approvers: vec![Approver { name: "ada@acme.example".into(), factor: Factor::Totp }],
        issued_at: NOW,
        expires_at: NOW.plus(Duration::from_secs(60)),
    }
}

fn svid() -> X509Svid {
    Ca::new("root").svid(&leaf(AGENT))
}

fn verify(token: &str, svid: &X509Svid) -> Result<Grant, GrantError> {
    let own = CALLEE.parse().unwrap();
    verify_grant(token, &svid.chain()[0], &own, NOW).map(|verified| verified.grant().clone())
}

/// Any header and payload, properly signed.
pub(crate) fn token(svid: &X509Svid, header: &str, payload: &str) -> String {
    let kind = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let key = EcdsaKeyPair::from_pkcs8(kind, svid.key_pkcs8()).unwrap();
    let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
    let signed = format!("{}.{}", part(header), part(payload));
    let signature = key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
    format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
}

fn header() -> Value {
    json!({ "alg": "ES256", "typ": "aegis-grant+jwt" })
}

fn claims() -> Value {
    json!({
        "iss": AGENT, "aud": CALLEE, "iat": NOW.as_secs(), "exp": NOW.as_secs() + 60, "jti": "g1",
        "action": Digest::of(b"action"), "approval": "a1",
        "approvers": [{ "name": "ada@acme.example", "factor": "totp" }],
    })
}

#[test]
fn what_was_signed_is_what_is_read() {
    let svid = svid();
    assert_eq!(verify(&sign_grant(&svid, &grant()).unwrap(), &svid), Ok(grant()));
    let plain = token(&svid, &header().to_string(), &claims().to_string());
    assert_eq!(verify(&plain, &svid), Ok(grant()));
}

#[test]
fn only_the_very_svid_signs() {
    let token = sign_grant(&svid(), &grant()).unwrap();
    assert_eq!(verify(&token, &svid()), Err(GrantError::Signature));
}

#[test]
fn another_form_is_none() {
    let svid = svid();
    for (name, value) in [("alg", "none"), ("alg", "HS256"), ("typ", "JWT"), ("kid", "x")] {
        let mut header = header();
        header[name] = value.into();
        let token = token(&svid, &header.to_string(), &claims().to_string());
        assert_eq!(verify(&token, &svid), Err(GrantError::Malformed), "{name}={value}");
    }
    let whole = claims().to_string();
    let twice = whole.replacen('{', "{\"aud\":\"x\",", 1);
    let more = whole.replacen('{', "{\"more\":1,", 1);
    let unnamed = whole.replace("\"g1\"", "\"\"");
    let long = whole.replace("\"g1\"", &format!("\"{}\"", "g".repeat(65)));
    for payload in [twice, more, unnamed, long, "{}".into()] {
        let token = token(&svid, &header().to_string(), &payload);
        assert_eq!(verify(&token, &svid), Err(GrantError::Malformed), "{payload}");
    }
    let good = token(&svid, &header().to_string(), &whole);
    for text in ["", "a.b", "..", good.get(..good.len() - 90).unwrap(), &"x".repeat(10_000)] {
        assert!(verify(text, &svid).is_err(), "{text}");
    }
}

#[test]
fn it_is_for_one_callee_from_the_peer_for_a_minute() {
    let svid = svid();
    let changed = |change: fn(&mut Grant)| {
        let mut grant = grant();
        change(&mut grant);
        verify(&sign_grant(&svid, &grant).unwrap(), &svid)
    };
    assert_eq!(changed(|g| g.audience = AGENT.parse().unwrap()), Err(GrantError::Audience));
    assert_eq!(changed(|g| g.issuer = CALLEE.parse().unwrap()), Err(GrantError::Issuer));
    assert_eq!(changed(|g| g.expires_at = NOW.plus(HOUR)), Err(GrantError::Expired));
    let late = |g: &mut Grant| {
        (g.issued_at, g.expires_at) = (g.issued_at.minus(HOUR), g.expires_at.minus(HOUR));
    };
    assert_eq!(changed(late), Err(GrantError::Expired));
}
