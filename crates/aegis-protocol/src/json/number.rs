//! Numbers that every reader sees alike: those that a double holds exactly.
//!
//! An integer must lie within ±(2^53 − 1). A decimal must survive the trip through a double: the
//! double, rounded to as many significant digits as were written, is what was written. Whatever a
//! machine prints for a double passes; `9007199254740993.0`, `1e400` and `1e-400` do not.

use std::fmt::Write as _;

use aegis_core::canonical;
use serde_json::Number;

use super::JsonError;

/// Every decimal of so many digits survives a double, subnormals apart.
const ALWAYS_EXACT_DIGITS: usize = 15;
/// No double needs more digits than these to be told from its neighbours.
const MOST_DIGITS: usize = 17;

/// Reads the number that starts at `start`; returns it and where it ends.
pub(super) fn read(bytes: &[u8], text: &str, start: usize) -> Result<(Number, usize), JsonError> {
    let digits_from = |mut at: usize| {
        while bytes.get(at).is_some_and(u8::is_ascii_digit) {
            at += 1;
        }
        at
    };
    let malformed = |at| JsonError::Malformed { at, expected: "a digit" };
    let negative = bytes.get(start) == Some(&b'-');
    let first = start + usize::from(negative);
    let mut end = digits_from(first);
    match (end - first, bytes.get(first)) {
        (0, _) => return Err(malformed(first)),
        (2.., Some(b'0')) => {
            return Err(JsonError::Malformed { at: first, expected: "no leading zero" });
        }
        _ => {}
    }
    let mut integer = true;
    if bytes.get(end) == Some(&b'.') {
        integer = false;
        let fraction = end + 1;
        end = digits_from(fraction);
        if end == fraction {
            return Err(malformed(end));
        }
    }
    if matches!(bytes.get(end), Some(b'e' | b'E')) {
        integer = false;
        let sign = usize::from(matches!(bytes.get(end + 1), Some(b'+' | b'-')));
        let exponent = end + 1 + sign;
        end = digits_from(exponent);
        if end == exponent {
            return Err(malformed(end));
        }
    }
    let literal = text.get(start..end).unwrap_or_default();
    let inexact = JsonError::InexactNumber { at: start };
    if integer && literal != "-0" {
        // An i64 that does not parse is far beyond ±(2^53 − 1).
        let value: i64 = literal.parse().map_err(|_| inexact)?;
        let number = Number::from(value);
        canonical::check_number(&number).map_err(|_| inexact)?;
        return Ok((number, end));
    }
    let value: f64 = literal.parse().map_err(|_| inexact)?;
    if !survives(literal, value) {
        return Err(inexact);
    }
    Ok((Number::from_f64(value).ok_or(inexact)?, end))
}

/// Whether `value`, which `literal` was read as, is what `literal` says.
fn survives(literal: &str, value: f64) -> bool {
    if !value.is_finite() {
        return false;
    }
    let mantissa = literal.split(['e', 'E']).next().unwrap_or_default();
    let digits = mantissa.bytes().filter(u8::is_ascii_digit).skip_while(|&digit| digit == b'0');
    let written: String = digits.map(char::from).collect();
    let written = written.trim_end_matches('0');
    if written.is_empty() || value == 0.0 {
        return written.is_empty();
    }
    if written.len() <= ALWAYS_EXACT_DIGITS && value.abs() >= f64::MIN_POSITIVE {
        return true;
    }
    if written.len() > MOST_DIGITS {
        return false;
    }
    let mut printed = String::with_capacity(32);
    if write!(printed, "{:.*e}", written.len() - 1, value.abs()).is_err() {
        return false;
    }
    let mantissa = printed.split('e').next().unwrap_or_default();
    mantissa.bytes().filter(u8::is_ascii_digit).eq(written.bytes())
}
