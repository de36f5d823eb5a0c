//! Tests of the module `json`.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn read(text: &str) -> Result<Value, JsonError> {
    parse(text.as_bytes(), Limits::default())
}

fn code(bytes: &[u8]) -> &'static str {
    parse(bytes, Limits::default()).unwrap_err().reason().code()
}

#[test]
fn duplicate_keys_are_refused_at_any_depth() {
    assert_eq!(code(br#"{"a":1,"a":1}"#), "duplicate_key");
    assert_eq!(code(br#"[{"x":{"a":1,"b":2,"\u0061":1}}]"#), "duplicate_key");
    assert!(read(r#"{"a":{"a":1},"A":2}"#).is_ok());
}

#[test]
fn nesting_is_limited() {
    let nested = |n: usize| "[".repeat(n) + &"]".repeat(n);
    assert!(read(&nested(64)).is_ok());
    assert_eq!(code(nested(65).as_bytes()), "nesting_too_deep");
    assert_eq!(code("{\"a\":".repeat(100_000).as_bytes()), "nesting_too_deep");
}

#[test]
fn what_is_not_utf8_is_refused() {
    assert_eq!(code(b"\"\xff\""), "not_utf8");
    assert_eq!(code(b"\"\xed\xa0\x80\""), "not_utf8");
    for text in
        [r#""\ud800""#, r#""\udc00""#, r#""\ud800\u0041""#, r#""\ud800x""#, r#""\ud83d\ud83d""#]
    {
        assert_eq!(code(text.as_bytes()), "not_utf8", "{text}");
    }
    assert_eq!(read(r#""\ud83d\ude00\u00e9\n""#).unwrap(), json!("😀é\n"));
}

#[test]
fn numbers_a_double_cannot_hold_are_refused() {
    for text in [
        "9007199254740992",
        "-9007199254740992",
        "18446744073709551616",
        "1e400",
        "-1e400",
        "1e-400",
        "9007199254740993.0",
        "0.12345678901234567891",
        "3e-324",
        "123456789012345678e1",
    ] {
        assert_eq!(code(text.as_bytes()), "inexact_number", "{text}");
    }
    for text in [
        "9007199254740991",
        "0.1",
        "1e21",
        "5e-324",
        "0e999",
        "1.7976931348623157e308",
        "100.000",
        "-0",
    ] {
        assert!(read(text).is_ok(), "{text}");
    }
    let canonical = aegis_core::canonical::to_vec(&read("[-0, -0.0, 1.0]").unwrap()).unwrap();
    assert_eq!(canonical, b"[0,0,1]");
}

#[test]
fn sizes_are_limited() {
    let limits = Limits { size: 4, depth: 4 };
    assert!(parse(b"1234", limits).is_ok());
    assert_eq!(parse(b"12345", limits).unwrap_err().reason().code(), "message_too_large");
}

#[test]
fn what_is_not_json_is_refused() {
    for text in [
        "",
        " ",
        "\u{feff}{}",
        "{} {}",
        "{}x",
        "[1,]",
        "{,}",
        "{\"a\"}",
        "{a:1}",
        "'a'",
        "01",
        "-",
        "1.",
        ".5",
        "1e",
        "+1",
        "NaN",
        "Infinity",
        "tru",
        "nul",
        "\"a",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\t\"",
        "[1 2]",
        "// c\n1",
        "\u{a0}1",
        "{\"a\":1,}",
        "\0",
        "\"\\u00g0\"",
    ] {
        assert_eq!(code(text.as_bytes()), "malformed_message", "{text:?}");
    }
}

#[test]
fn messages_tell_where_and_never_what() {
    let error = read(r#"{"secret":1,"secret":2}"#).unwrap_err();
    assert_eq!(error, JsonError::DuplicateKey { at: 12 });
    assert!(!error.to_string().contains("secret"));
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-9_007_199_254_740_991_i64..=9_007_199_254_740_991).prop_map(Value::from),
        (proptest::num::f64::NORMAL | proptest::num::f64::SUBNORMAL | proptest::num::f64::ZERO)
            .prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(6, 64, 8, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..8).prop_map(Value::from),
            proptest::collection::hash_map(any::<String>(), inner, 0..8)
                .prop_map(|map| Value::Object(map.into_iter().collect())),
        ]
    })
}

/// Equal, but for the last bit of a double, which serde_json's default reader may get wrong.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            let (a, b) = (a.as_f64().unwrap(), b.as_f64().unwrap());
            a == b || a.to_bits().abs_diff(b.to_bits()) <= 2
        }
        (Value::Array(a), Value::Array(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b))
        }
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().all(|(key, a)| b.get(key).is_some_and(|b| same(a, b)))
        }
        _ => a == b,
    }
}

proptest! {
    #[test]
    fn agrees_with_serde_json_on_valid_documents(value in any_json()) {
        for text in [serde_json::to_string(&value).unwrap(), serde_json::to_string_pretty(&value).unwrap()] {
            prop_assert_eq!(&read(&text).unwrap(), &value);
            prop_assert!(same(&value, &serde_json::from_str(&text).unwrap()));
        }
    }

    #[test]
    fn accepts_nothing_that_serde_json_refuses(bytes in proptest::collection::vec(any::<u8>(), 0..40)) {
        if parse(&bytes, Limits::default()).is_ok() {
            prop_assert!(serde_json::from_slice::<Value>(&bytes).is_ok());
        }
    }

    #[test]
    fn agrees_on_mutated_documents(value in any_json(), at in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let mut bytes = serde_json::to_vec(&value).unwrap();
        let at = at.index(bytes.len());
        bytes[at] = byte;
        if let Ok(ours) = parse(&bytes, Limits::default()) {
            prop_assert!(same(&ours, &serde_json::from_slice(&bytes).unwrap()));
        }
    }
}
