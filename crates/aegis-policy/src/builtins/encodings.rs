//! Base64, hex, URLs, YAML, JSON with options, and tokens as far as they are encodings.

use base64::{
    Engine as _,
    engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig},
    prelude::BASE64_URL_SAFE_NO_PAD,
};

use super::{Function, one};
use crate::value::Value;

pub(super) const TABLE: &[(&str, Function)] = &[
    ("base64url.encode_no_pad", base64url_encode_no_pad),
    ("hex.encode", hex_encode),
    ("hex.decode", hex_decode),
    ("urlquery.encode", urlquery_encode),
    ("urlquery.decode", urlquery_decode),
    ("urlquery.encode_object", urlquery_encode_object),
    ("urlquery.decode_object", urlquery_decode_object),
    ("yaml.marshal", yaml_marshal),
    ("yaml.unmarshal", yaml_unmarshal),
    ("yaml.is_valid", yaml_is_valid),
    ("io.jwt.decode", jwt_decode),
];

/// Base64url with or without padding.
pub(super) const LENIENT: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

fn base64url_encode_no_pad(args: &[Value]) -> Option<Value> {
    Some(Value::string(BASE64_URL_SAFE_NO_PAD.encode(one(args)?)))
}

fn hex_encode(args: &[Value]) -> Option<Value> {
    Some(Value::string(hex::encode(one(args)?)))
}

fn hex_decode(args: &[Value]) -> Option<Value> {
    String::from_utf8(hex::decode(one(args)?).ok()?).ok().map(Value::String)
}

fn escape(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => {
                out.push(char::from(byte));
            }
            b' ' => out.push('+'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

fn unescape(text: &str) -> Option<String> {
    let mut out = Vec::new();
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        match byte {
            b'+' => out.push(b' '),
            b'%' => {
                let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
                out.push(u8::try_from(digit()? * 16 + digit()?).ok()?);
            }
            other => out.push(other),
        }
    }
    String::from_utf8(out).ok()
}

fn urlquery_encode(args: &[Value]) -> Option<Value> {
    one(args).map(|text| Value::String(escape(text)))
}

fn urlquery_decode(args: &[Value]) -> Option<Value> {
    one(args).and_then(unescape).map(Value::String)
}

fn urlquery_encode_object(args: &[Value]) -> Option<Value> {
    let [Value::Object(members)] = args else { return None };
    let mut pairs = Vec::new();
    for (key, value) in members {
        for item in super::one_or_many(value)? {
            pairs.push(format!("{}={}", escape(key.as_str()?), escape(item)));
        }
    }
    Some(Value::String(pairs.join("&")))
}

fn urlquery_decode_object(args: &[Value]) -> Option<Value> {
    let mut members: std::collections::BTreeMap<String, Vec<Value>> = Default::default();
    for pair in one(args)?.split('&').filter(|pair| !pair.is_empty()) {
        if pair.contains(';') {
            return None;
        }
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        members.entry(unescape(key)?).or_default().push(Value::String(unescape(value)?));
    }
    Some(Value::object(members.into_iter().map(|(key, list)| (key, Value::Array(list)))))
}

fn yaml_marshal(args: &[Value]) -> Option<Value> {
    let [value] = args else { return None };
    let json = sorted(&serde_json::Value::from(value));
    serde_yaml_ng::to_string(&json).ok().map(Value::String)
}

fn sorted(value: &serde_json::Value) -> serde_json::Value {
    match value {
        serde_json::Value::Object(members) => {
            let members: std::collections::BTreeMap<_, _> =
                members.iter().map(|(k, v)| (k.clone(), sorted(v))).collect();
            members.into_iter().collect()
        }
        serde_json::Value::Array(items) => items.iter().map(sorted).collect(),
        other => other.clone(),
    }
}

fn yaml(text: &str) -> Option<Value> {
    let parsed: serde_json::Value = serde_yaml_ng::from_str(text).ok()?;
    Some(Value::from(&parsed))
}

fn yaml_unmarshal(args: &[Value]) -> Option<Value> {
    one(args).and_then(yaml)
}

fn yaml_is_valid(args: &[Value]) -> Option<Value> {
    Some(Value::Bool(one(args).and_then(yaml).is_some()))
}

/// The header, the payload and the signature of a compact JWS; nothing is verified.
fn jwt_decode(args: &[Value]) -> Option<Value> {
    let mut parts = one(args)?.split('.');
    let (header, payload, signature) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() {
        return None;
    }
    let object = |part: &str| {
        let parsed: serde_json::Value = serde_json::from_slice(&LENIENT.decode(part).ok()?).ok()?;
        parsed.is_object().then(|| Value::from(&parsed))
    };
    let header = object(header)?;
    // A token in a token: the inner one is what it says.
    if header.member("cty").and_then(Value::as_str) == Some("JWT") {
        let inner = String::from_utf8(LENIENT.decode(payload).ok()?).ok()?;
        return jwt_decode(&[Value::string(inner.trim_matches(['"', '\'']))]);
    }
    let signature = hex::encode(LENIENT.decode(signature).ok()?);
    // An encrypted or nested token is none that can be read here.
    if header.member("enc").is_some() {
        return None;
    }
    Some(Value::Array(vec![header, object(payload)?, Value::String(signature)]))
}
