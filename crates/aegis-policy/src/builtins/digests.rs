//! Digests, and what is verified by a shared secret.

use hmac::{Hmac, KeyInit, Mac};
use md5::Md5;
use sha1::Sha1;
use sha2::{Digest, Sha256, Sha384, Sha512};

use super::{Function, encodings::LENIENT, one, two};
use crate::value::Value;
use base64::Engine as _;

pub(super) const TABLE: &[(&str, Function)] = &[
    ("crypto.md5", md5),
    ("crypto.sha1", sha1),
    ("crypto.sha256", sha256),
    ("crypto.hmac.md5", hmac_md5),
    ("crypto.hmac.sha1", hmac_sha1),
    ("crypto.hmac.sha256", hmac_sha256),
    ("crypto.hmac.sha512", hmac_sha512),
    ("crypto.hmac.equal", hmac_equal),
    ("io.jwt.verify_hs256", verify_hs256),
    ("io.jwt.verify_hs384", verify_hs384),
    ("io.jwt.verify_hs512", verify_hs512),
];

fn md5(args: &[Value]) -> Option<Value> {
    Some(Value::string(hex::encode(Md5::digest(one(args)?))))
}

fn sha1(args: &[Value]) -> Option<Value> {
    Some(Value::string(hex::encode(Sha1::digest(one(args)?))))
}

fn sha256(args: &[Value]) -> Option<Value> {
    Some(Value::string(hex::encode(Sha256::digest(one(args)?))))
}

fn mac<M: Mac + KeyInit>(key: &[u8], message: &[u8]) -> Option<M> {
    let mut mac = <M as KeyInit>::new_from_slice(key).ok()?;
    mac.update(message);
    Some(mac)
}

fn hmac_of<M: Mac + KeyInit>(args: &[Value]) -> Option<Value> {
    let (message, key) = two(args)?;
    let tag = mac::<M>(key.as_bytes(), message.as_bytes())?.finalize().into_bytes();
    Some(Value::string(hex::encode(tag)))
}

fn hmac_md5(args: &[Value]) -> Option<Value> {
    hmac_of::<Hmac<Md5>>(args)
}

fn hmac_sha1(args: &[Value]) -> Option<Value> {
    hmac_of::<Hmac<Sha1>>(args)
}

fn hmac_sha256(args: &[Value]) -> Option<Value> {
    hmac_of::<Hmac<Sha256>>(args)
}

fn hmac_sha512(args: &[Value]) -> Option<Value> {
    hmac_of::<Hmac<Sha512>>(args)
}

/// In constant time.
fn hmac_equal(args: &[Value]) -> Option<Value> {
    let (a, b) = two(args)?;
    let differ = a.bytes().zip(b.bytes()).fold(0, |differ, (a, b)| differ | (a ^ b));
    Some(Value::Bool(a.len() == b.len() && differ == 0))
}

/// Whether a compact JWS carries this secret's tag. Says nothing about its claims.
fn verify<M: Mac + KeyInit>(args: &[Value]) -> Option<Value> {
    let (token, secret) = two(args)?;
    let (signed, signature) = token.rsplit_once('.')?;
    if signed.matches('.').count() != 1 {
        return None;
    }
    let Ok(signature) = LENIENT.decode(signature) else { return Some(Value::Bool(false)) };
    let mac = mac::<M>(secret.as_bytes(), signed.as_bytes())?;
    Some(Value::Bool(mac.verify_slice(&signature).is_ok()))
}

fn verify_hs256(args: &[Value]) -> Option<Value> {
    verify::<Hmac<Sha256>>(args)
}

fn verify_hs384(args: &[Value]) -> Option<Value> {
    verify::<Hmac<Sha384>>(args)
}

fn verify_hs512(args: &[Value]) -> Option<Value> {
    verify::<Hmac<Sha512>>(args)
}
