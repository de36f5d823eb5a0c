//! Quantities with units, and semantic versions.

use std::cmp::Ordering;

use super::{Function, one, two};
use crate::value::{Number, Value};

pub(super) const TABLE: &[(&str, Function)] = &[
    ("units.parse", parse),
    ("units.parse_bytes", parse_bytes),
    ("semver.compare", semver_compare),
    ("semver.is_valid", semver_is_valid),
];

/// The number and the unit after it; quotes around the whole are dropped.
fn quantity(text: &str) -> Option<(String, String)> {
    let text = text.replace('"', "");
    if text.is_empty() || text.contains(' ') {
        return None;
    }
    let end = text
        .char_indices()
        .find(|(i, c)| {
            let after = text.get(i + 1..).unwrap_or_default();
            let digit = c.is_ascii_digit() || *c == '.' || (*i == 0 && matches!(c, '-' | '+'));
            // An exponent, and not the unit E.
            let exponent = matches!(c, 'e' | 'E')
                && after.trim_start_matches(['-', '+']).starts_with(|c: char| c.is_ascii_digit());
            let sign =
                matches!(c, '-' | '+') && text.get(..*i).is_some_and(|t| t.ends_with(['e', 'E']));
            !(digit || exponent || sign)
        })
        .map_or(text.len(), |(i, _)| i);
    let (number, unit) = text.split_at(end);
    number.bytes().any(|b| b.is_ascii_digit()).then(|| (number.to_owned(), unit.to_owned()))
}

/// `number × factor` as decimal text, exact where it is an integer.
fn times(number: &str, factor: i128) -> Option<Number> {
    if let Ok(int) = number.parse::<i128>() {
        return Some(Number::new(&int.checked_mul(factor)?.to_string()));
    }
    let (mantissa, exponent) = match number.split_once(['e', 'E']) {
        Some((mantissa, exponent)) => (mantissa, exponent.parse::<i32>().ok()?),
        None => (number, 0),
    };
    let (whole, fraction) = mantissa.split_once('.').unwrap_or((mantissa, ""));
    if fraction.contains('.') {
        return None;
    }
    let digits: i128 = format!("{whole}{fraction}").parse().ok()?;
    let scale = exponent.checked_sub(i32::try_from(fraction.len()).ok()?)?;
    let scaled = digits.checked_mul(factor)?;
    let power = 10_i128.checked_pow(scale.unsigned_abs())?;
    if scale >= 0 {
        return Some(Number::new(&scaled.checked_mul(power)?.to_string()));
    }
    let (int, rest) = (scaled / power, (scaled % power).unsigned_abs());
    if rest == 0 {
        return Some(Number::new(&int.to_string()));
    }
    let width = usize::try_from(scale.unsigned_abs()).ok()?;
    let sign = if scaled < 0 && int == 0 { "-" } else { "" };
    let fraction = format!("{rest:0>width$}");
    Some(Number::new(&format!("{sign}{int}.{}", fraction.trim_end_matches('0'))))
}

fn parse(args: &[Value]) -> Option<Value> {
    let (number, unit) = quantity(one(args)?)?;
    if unit == "m" {
        let (mantissa, exponent) = number.split_once(['e', 'E']).unwrap_or((&number, "0"));
        let exponent = exponent.parse::<i32>().ok()?.checked_sub(3)?;
        return times(&format!("{mantissa}e{exponent}"), 1).map(Value::Number);
    }
    // `m` is milli and `M` mega; the others are read in any case.
    let unit = if unit.len() == 1 && unit != "M" { unit.to_lowercase() } else { unit };
    let factor = match unit.as_str() {
        "" => 1,
        "k" => 1_000,
        "M" => 1_000_000,
        "g" => 1_000_000_000,
        "t" => 1_000_000_000_000,
        "p" => 1_000_000_000_000_000,
        "e" => 1_000_000_000_000_000_000,
        other => match other.to_lowercase().as_str() {
            "ki" => 1 << 10,
            "mi" => 1 << 20,
            "gi" => 1 << 30,
            "ti" => 1 << 40,
            "pi" => 1 << 50,
            "ei" => 1 << 60,
            _ => return None,
        },
    };
    times(&number, factor).map(Value::Number)
}

fn parse_bytes(args: &[Value]) -> Option<Value> {
    let (number, unit) = quantity(one(args)?)?;
    let factor: i128 = match unit.to_lowercase().as_str() {
        "" => 1,
        "kb" | "k" => 1_000,
        "mb" | "m" => 1_000_000,
        "gb" | "g" => 1_000_000_000,
        "tb" | "t" => 1_000_000_000_000,
        "pb" | "p" => 1_000_000_000_000_000,
        "eb" | "e" => 1_000_000_000_000_000_000,
        "kib" | "ki" => 1 << 10,
        "mib" | "mi" => 1 << 20,
        "gib" | "gi" => 1 << 30,
        "tib" | "ti" => 1 << 40,
        "pib" | "pi" => 1 << 50,
        "eib" | "ei" => 1 << 60,
        _ => return None,
    };
    let exact = times(&number, factor)?;
    // A fraction of a byte is dropped.
    let whole = exact.as_str().split('.').next().unwrap_or_default();
    Some(Value::Number(Number::new(if whole == "-0" { "0" } else { whole })))
}

/// A semantic version, compared by its precedence.
#[derive(PartialEq, Eq)]
struct Version<'a> {
    core: [u64; 3],
    pre: Vec<&'a str>,
}

impl<'a> Version<'a> {
    fn parse(text: &'a str) -> Option<Self> {
        let legal = |part: &str| {
            !part.is_empty() && part.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
        };
        let (text, build) = text.split_once('+').map_or((text, None), |(t, b)| (t, Some(b)));
        if build.is_some_and(|build| !build.split('.').all(legal)) {
            return None;
        }
        let (core, pre) = text.split_once('-').map_or((text, None), |(c, p)| (c, Some(p)));
        let pre: Vec<&str> = pre.map(|pre| pre.split('.').collect()).unwrap_or_default();
        let numeric = |part: &str| part.bytes().all(|b| b.is_ascii_digit());
        let padded = |part: &str| part.len() > 1 && part.starts_with('0') && numeric(part);
        if !pre.iter().all(|part| legal(part) && !padded(part)) {
            return None;
        }
        let mut numbers = core.split('.');
        let mut next = || {
            let part = numbers.next()?;
            part.parse().ok().filter(|_| numeric(part) && !padded(part))
        };
        let core = [next()?, next()?, next()?];
        numbers.next().is_none().then_some(Self { core, pre })
    }

    fn cmp(&self, other: &Self) -> Ordering {
        let core = self.core.cmp(&other.core);
        let release = match (self.pre.is_empty(), other.pre.is_empty()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Greater,
            (false, true) => Ordering::Less,
            (false, false) => {
                let parts = self.pre.iter().zip(&other.pre).map(|(a, b)| part(a, b));
                let first = parts.into_iter().find(|order| order.is_ne());
                first.unwrap_or_else(|| self.pre.len().cmp(&other.pre.len()))
            }
        };
        core.then(release)
    }
}

fn part(a: &str, b: &str) -> Ordering {
    match (a.parse::<u64>(), b.parse::<u64>()) {
        (Ok(a), Ok(b)) => a.cmp(&b),
        (Ok(_), Err(_)) => Ordering::Less,
        (Err(_), Ok(_)) => Ordering::Greater,
        _ => a.cmp(b),
    }
}

fn semver_compare(args: &[Value]) -> Option<Value> {
    let (a, b) = two(args)?;
    let order = Version::parse(a)?.cmp(&Version::parse(b)?);
    Some(Value::int(order as i64))
}

fn semver_is_valid(args: &[Value]) -> Option<Value> {
    Some(Value::Bool(one(args).and_then(Version::parse).is_some()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_exact() {
        let cases = [
            ("-3.5E2m", "-0.35"),
            ("100m", "0.1"),
            ("1.5Gi", "1610612736"),
            ("2E", "2000000000000000000"),
            ("1e3K", "1000000"),
        ];
        for (text, expected) in cases {
            let Some(Value::Number(number)) = parse(&[Value::string(text)]) else {
                panic!("{text}")
            };
            assert_eq!(number.as_str(), expected, "{text}");
        }
    }
}
