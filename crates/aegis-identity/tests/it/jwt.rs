//! JWT-SVIDs: what is accepted, and every way to be refused.

use std::time::Duration;

use aegis_core::{SpiffeId, Timestamp};
use aegis_identity::{Bundle, JwtError, JwtSigner, jwt::verify_jwt};
use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use serde_json::{Value, json};

const NOW: Timestamp = Timestamp::from_secs(1_800_000_000);
const ID: &str = "spiffe://acme.example/ns/shop/sa/bot/agent/buyer/workload";
const DOMAIN: &str = "acme.example";

struct Issuer {
    key: EcdsaKeyPair,
    signer: JwtSigner,
}

impl Issuer {
    fn new() -> Self {
        let kind = &ECDSA_P256_SHA256_FIXED_SIGNING;
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(kind, &SystemRandom::new()).unwrap();
        let key = EcdsaKeyPair::from_pkcs8(kind, pkcs8.as_ref()).unwrap();
        Self { signer: JwtSigner::from_pkcs8(pkcs8.as_ref()).unwrap(), key }
    }

    fn bundle(&self) -> Bundle {
        let keys = vec![self.signer.public().clone()];
        Bundle::new(DOMAIN.parse().unwrap(), vec![], keys, 1, Duration::from_secs(300)).unwrap()
    }

    /// A token with any header and any payload, properly signed.
    fn token(&self, header: &str, payload: &str) -> String {
        let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
        let signed = format!("{}.{}", part(header), part(payload));
        let signature = self.key.sign(&SystemRandom::new(), signed.as_bytes()).unwrap();
        format!("{signed}.{}", BASE64_URL_SAFE_NO_PAD.encode(signature))
    }

    fn header(&self) -> Value {
        json!({ "alg": "ES256", "kid": self.signer.public().kid(), "typ": "JWT" })
    }
}

fn claims() -> Value {
    json!({ "sub": ID, "aud": ["ledger"], "exp": NOW.as_secs() + 300 })
}

#[test]
fn a_signed_token_is_accepted() {
    let issuer = Issuer::new();
    let id: SpiffeId = ID.parse().unwrap();
    let ttl = Duration::from_secs(300);
    let svid =
        issuer.signer.sign(&id, &["ledger".to_owned(), "other".to_owned()], NOW, ttl).unwrap();
    assert!(!format!("{svid:?}").contains(&svid.token), "a bearer token stays out of the logs");
    let claims = verify_jwt(&svid.token, "other", &issuer.bundle(), NOW).unwrap();
    assert_eq!((claims.id, claims.expires), (id.clone(), NOW.plus(ttl)));
    for audience in [vec![], vec![String::new()], vec!["x".repeat(1025)], vec!["x".to_owned(); 17]]
    {
        assert!(matches!(issuer.signer.sign(&id, &audience, NOW, ttl), Err(JwtError::Audiences)));
    }
}

#[test]
fn the_bundle_round_trips() {
    let issuer = Issuer::new();
    let document = issuer.bundle().to_jwks().unwrap();
    let read = Bundle::from_jwks(DOMAIN.parse().unwrap(), &document).unwrap();
    assert_eq!(read, issuer.bundle());
    let token = issuer.token(&issuer.header().to_string(), &claims().to_string());
    assert!(verify_jwt(&token, "ledger", &read, NOW).is_ok());
}

#[test]
fn wrong_headers_are_refused() {
    let issuer = Issuer::new();
    let with = |name: &str, value: Value| {
        let mut header = issuer.header();
        header[name] = value;
        issuer.token(&header.to_string(), &claims().to_string())
    };
    let table = [
        ("none", with("alg", json!("none")), "signed with `none`"),
        ("HS256", with("alg", json!("HS256")), "signed with `HS256`"),
        ("typ", with("typ", json!("at+jwt")), "typ is"),
        ("kid", with("kid", json!("another")), "no JWT key"),
        ("jwk", with("jwk", json!({})), "unknown field"),
        ("crit", with("crit", json!(["exp"])), "unknown field"),
        (
            "no kid",
            issuer.token(r#"{"alg":"ES256"}"#, &claims().to_string()),
            "missing field `kid`",
        ),
        (
            "two algs",
            issuer.token(r#"{"alg":"none","alg":"ES256","kid":"x"}"#, "{}"),
            "duplicate field",
        ),
    ];
    for (name, token, expected) in table {
        let error =
            verify_jwt(&token, "ledger", &issuer.bundle(), NOW).expect_err(name).to_string();
        assert!(error.contains(expected), "{name}: {error}");
    }
}

#[test]
fn wrong_claims_are_refused() {
    let issuer = Issuer::new();
    let table = [
        (json!({ "aud": ["ledger"], "exp": 1_900_000_000 }), "missing field `sub`"),
        (json!({ "sub": ID, "exp": 1_900_000_000 }), "missing field `aud`"),
        (json!({ "sub": ID, "aud": "ledger" }), "missing field `exp`"),
        (json!({ "sub": ID, "aud": [], "exp": 1_900_000_000 }), "not for the audience"),
        (json!({ "sub": ID, "aud": "another", "exp": 1_900_000_000 }), "not for the audience"),
        (json!({ "sub": "ada", "aud": "ledger", "exp": 1_900_000_000 }), "not a SPIFFE ID"),
        (
            json!({ "sub": "spiffe://evil.example/a", "aud": "ledger", "exp": 1_900_000_000 }),
            "not in the trust domain",
        ),
        (json!({ "sub": ID, "aud": "ledger", "exp": NOW.as_secs() - 30 }), "expired"),
        (json!({ "sub": ID, "aud": "ledger", "exp": -1 }), "invalid value"),
        (
            json!({ "sub": ID, "aud": "ledger", "exp": 1_900_000_000, "nbf": NOW.as_secs() + 31 }),
            "not valid before",
        ),
        (
            json!({ "sub": ID, "aud": "ledger", "exp": 1_900_000_000, "iat": NOW.as_secs() + 300 }),
            "not valid before",
        ),
    ];
    for (claims, expected) in table {
        let token = issuer.token(&issuer.header().to_string(), &claims.to_string());
        let error =
            verify_jwt(&token, "ledger", &issuer.bundle(), NOW).expect_err(expected).to_string();
        assert!(error.contains(expected), "{expected}: {error}");
    }
    let twice = format!(r#"{{"sub":"{ID}","sub":"{ID}","aud":"ledger","exp":1900000000}}"#);
    assert!(
        verify_jwt(
            &issuer.token(&issuer.header().to_string(), &twice),
            "ledger",
            &issuer.bundle(),
            NOW
        )
        .is_err()
    );
}

#[test]
fn wrong_signatures_are_refused() {
    let (issuer, stranger) = (Issuer::new(), Issuer::new());
    // The stranger claims the issuer's key id.
    let forged = stranger.token(&issuer.header().to_string(), &claims().to_string());
    assert!(matches!(
        verify_jwt(&forged, "ledger", &issuer.bundle(), NOW),
        Err(JwtError::Signature)
    ));
    let token = issuer.token(&issuer.header().to_string(), &claims().to_string());
    let (signed, _) = token.rsplit_once('.').unwrap();
    for broken in [
        format!("{signed}."),
        signed.to_owned(),
        "a.b.c".to_owned(),
        String::new(),
        "x".repeat(20_000),
    ] {
        assert!(verify_jwt(&broken, "ledger", &issuer.bundle(), NOW).is_err());
    }
}

#[test]
fn unusable_bundles_are_refused() {
    let domain = || DOMAIN.parse().unwrap();
    for document in [
        "",
        "[]",
        "{}",
        r#"{"keys":[{"kty":"EC","use":"x509-svid"}]}"#,
        r#"{"keys":[{"kty":"EC","use":"x509-svid","x5c":["AAAA","AAAA"]}]}"#,
        r#"{"keys":[{"kty":"EC","use":"x509-svid","x5c":["AAAA"]}]}"#,
        r#"{"keys":[{"kty":"EC","use":"jwt-svid","crv":"P-256","kid":"a","x":"AAAA","y":"AAAA"}]}"#,
        r#"{"keys":[{"kty":"EC","use":"jwt-svid","crv":"P-256","x":"AAAA","y":"AAAA"}]}"#,
    ] {
        assert!(Bundle::from_jwks(domain(), document.as_bytes()).is_err(), "{document}");
    }
    let unknown = r#"{"keys":[{"kty":"OKP","use":"jwt-svid","kid":"a"},{"kty":"EC","use":"sig"}]}"#;
    assert_eq!(Bundle::from_jwks(domain(), unknown.as_bytes()).unwrap().jwt_keys(), []);
}
