//! Canonical JSON after RFC 8785 (JCS): the bytes that are hashed and signed.
//!
//! Numbers that an IEEE 754 double cannot hold exactly are refused: a digest, a policy and the
//! server behind the proxy would each see another value.

use std::cmp::Ordering;

use serde::Serialize;
use serde_json::{Map, Number, Value};

/// The largest magnitude up to which every integer is exactly a double: 2^53 − 1.
pub const MAX_SAFE_INTEGER: u64 = (1 << 53) - 1;

/// Why a value has no canonical form.
#[derive(Debug, thiserror::Error)]
pub enum CanonicalError {
    /// An integer beyond ±(2^53 − 1).
    #[error("the number `{0}` cannot be held exactly by a double; send it as a string")]
    InexactNumber(String),
    /// A value that is not JSON (a map with non-string keys, a failing `Serialize`).
    #[error("not representable as JSON: {0}")]
    Unrepresentable(#[from] serde_json::Error),
}

/// The canonical bytes of anything serialisable.
///
/// # Errors
/// When the value holds a number that a double cannot hold exactly, or is not JSON at all.
pub fn to_vec<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>, CanonicalError> {
    let value = serde_json::to_value(value)?;
    let mut out = Vec::with_capacity(256);
    write_value(&mut out, &value)?;
    Ok(out)
}

/// Appends the canonical bytes of `value` to `out`.
///
/// # Errors
/// When the value holds a number that a double cannot hold exactly.
pub fn write_value(out: &mut Vec<u8>, value: &Value) -> Result<(), CanonicalError> {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::Number(number) => write_number(out, number)?,
        Value::String(text) => write_string(out, text),
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_value(out, item)?;
            }
            out.push(b']');
        }
        Value::Object(members) => write_object(out, members)?,
    }
    Ok(())
}

/// Checks that a number is one that a double holds exactly (an integer) or is a double already.
///
/// # Errors
/// [`CanonicalError::InexactNumber`] otherwise.
pub fn check_number(number: &Number) -> Result<(), CanonicalError> {
    let exact = match (number.as_u64(), number.as_i64(), number.as_f64()) {
        (Some(n), _, _) => n <= MAX_SAFE_INTEGER,
        (_, Some(n), _) => n.unsigned_abs() <= MAX_SAFE_INTEGER,
        // Between 2^53 and 1e21 ECMAScript prints a double as an integer literal, which other
        // parsers read as another, exact integer.
        (_, _, Some(x)) => x.is_finite() && !(9_007_199_254_740_992.0..1e21).contains(&x.abs()),
        _ => false,
    };
    if exact { Ok(()) } else { Err(CanonicalError::InexactNumber(number.to_string())) }
}

fn write_number(out: &mut Vec<u8>, number: &Number) -> Result<(), CanonicalError> {
    check_number(number)?;
    if number.is_f64() {
        // RFC 8785 §3.2.2.3: ECMAScript's Number::toString, so 1.0 is "1" and -0 is "0".
        let x = number.as_f64().unwrap_or_default();
        out.extend_from_slice(ryu_js::Buffer::new().format(x).as_bytes());
    } else {
        out.extend_from_slice(number.to_string().as_bytes());
    }
    Ok(())
}

/// Appends `text` as a JSON string with RFC 8785's minimal escapes.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    let mut rest = text.as_bytes();
    // Most texts have nothing to escape: they are copied in one piece.
    while let Some(at) = rest.iter().position(|&byte| byte < 0x20 || byte == b'"' || byte == b'\\')
    {
        let (plain, escaped) = rest.split_at(at);
        out.extend_from_slice(plain);
        let Some((&byte, after)) = escaped.split_first() else { break };
        match byte {
            b'"' => out.extend_from_slice(b"\\\""),
            b'\\' => out.extend_from_slice(b"\\\\"),
            0x08 => out.extend_from_slice(b"\\b"),
            0x09 => out.extend_from_slice(b"\\t"),
            0x0a => out.extend_from_slice(b"\\n"),
            0x0c => out.extend_from_slice(b"\\f"),
            0x0d => out.extend_from_slice(b"\\r"),
            control => {
                out.extend_from_slice(b"\\u00");
                for digit in [control >> 4, control & 0xf] {
                    out.push(HEX.get(usize::from(digit)).copied().unwrap_or(b'0'));
                }
            }
        }
        rest = after;
    }
    out.extend_from_slice(rest);
    out.push(b'"');
}

fn write_object(out: &mut Vec<u8>, members: &Map<String, Value>) -> Result<(), CanonicalError> {
    let mut sorted: Vec<(&String, &Value)> = members.iter().collect();
    sorted.sort_by(|a, b| utf16_order(a.0, b.0));
    out.push(b'{');
    for (i, (key, value)) in sorted.into_iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        write_string(out, key);
        out.push(b':');
        write_value(out, value)?;
    }
    out.push(b'}');
    Ok(())
}

/// RFC 8785 §3.2.3 sorts keys by UTF-16 code units, which differs from UTF-8 order only where
/// surrogates are involved.
fn utf16_order(a: &str, b: &str) -> Ordering {
    if a.is_ascii() && b.is_ascii() { a.cmp(b) } else { a.encode_utf16().cmp(b.encode_utf16()) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    fn canonical(text: &str) -> String {
        let value: Value = serde_json::from_str(text).unwrap();
        String::from_utf8(to_vec(&value).unwrap()).unwrap()
    }

    /// The examples of RFC 8785 §3.2.2 and §3.2.3.
    #[test]
    fn rfc_8785_examples() {
        assert_eq!(
            canonical(
                r#"{"numbers":[333333333.33333329,1E30,4.50,2e-3,0.000000000000000000000000001],"string":"\u20ac$\u000F\u000aA'\u0042\u0022\u005c\\\"\/","literals":[null,true,false]}"#
            ),
            "{\"literals\":[null,true,false],\"numbers\":[333333333.3333333,1e+30,4.5,0.002,1e-27],\"string\":\"€$\\u000f\\nA'B\\\"\\\\\\\\\\\"/\"}"
        );
        assert_eq!(
            canonical(
                r#"{"\u20ac":"Euro","\r":"CR","\ufb33":"Hebrew","1":"One","\ud83d\ude00":"Smiley","\u0080":"Control","\u00f6":"o"}"#
            ),
            "{\"\\r\":\"CR\",\"1\":\"One\",\"\u{80}\":\"Control\",\"ö\":\"o\",\"€\":\"Euro\",\"😀\":\"Smiley\",\"\u{fb33}\":\"Hebrew\"}"
        );
        assert_eq!(canonical("[-0.0, 1.0, 100]"), "[0,1,100]");
    }

    #[test]
    fn inexact_integers_are_refused() {
        assert!(to_vec(&json!(MAX_SAFE_INTEGER)).is_ok());
        assert!(to_vec(&json!(MAX_SAFE_INTEGER + 1)).is_err());
        assert!(to_vec(&json!(-9_007_199_254_740_993_i64)).is_err());
        assert!(to_vec(&json!(3.229_077_992_927_179e17)).is_err());
        assert!(to_vec(&json!(1e30)).is_ok());
    }

    proptest! {
        #[test]
        fn canonical_form_is_a_fixed_point(
            map in proptest::collection::btree_map(".{0,8}", -1_000_000_i64..1_000_000, 0..6),
            x in proptest::num::f64::NORMAL.prop_filter("exact", |x| !(9.007_199_254_740_992e15..1e21).contains(&x.abs())),
        ) {
            let value = json!({ "map": map, "x": x });
            let once = to_vec(&value).unwrap();
            let again = to_vec(&serde_json::from_slice::<Value>(&once).unwrap()).unwrap();
            prop_assert_eq!(once, again);
        }
    }
}
