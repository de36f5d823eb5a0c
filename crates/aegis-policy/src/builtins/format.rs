//! `sprintf`, with the verbs and flags of Go's `fmt` that Rego values can be asked for.

use super::Function;
use crate::value::Value;

pub(super) const TABLE: &[(&str, Function)] = &[("sprintf", sprintf)];

/// The widest field; a wider one is a way to use up memory.
const MAX_WIDTH: usize = 10_000;

#[derive(Default)]
struct Spec {
    minus: bool,
    plus: bool,
    zero: bool,
    space: bool,
    sharp: bool,
    width: usize,
    precision: Option<usize>,
}

fn sprintf(args: &[Value]) -> Option<Value> {
    let [format, Value::Array(values)] = args else { return None };
    let mut values = values.iter();
    let mut out = String::new();
    let mut chars = format.as_str()?.chars().peekable();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let mut spec = Spec::default();
        while let Some(flag) = chars.next_if(|c| matches!(c, '-' | '+' | '0' | ' ' | '#')) {
            match flag {
                '-' => spec.minus = true,
                '+' => spec.plus = true,
                '0' => spec.zero = true,
                ' ' => spec.space = true,
                _ => spec.sharp = true,
            }
        }
        spec.width = number(&mut chars)?.unwrap_or(0);
        if chars.next_if_eq(&'.').is_some() {
            spec.precision = Some(number(&mut chars)?.unwrap_or(0));
        }
        match chars.next() {
            Some('%') => out.push('%'),
            Some(verb) => match values.next() {
                Some(value) => pad(&one(verb, value, &spec), &spec, value, &mut out),
                None => out.push_str(&format!("%!{verb}(MISSING)")),
            },
            None => out.push_str("%!(NOVERB)"),
        }
    }
    let extra: Vec<String> =
        values.map(|value| format!("{}={}", kind(value), plain(value))).collect();
    if !extra.is_empty() {
        out.push_str(&format!("%!(EXTRA {})", extra.join(", ")));
    }
    Some(Value::String(out))
}

/// A number in a format; `None` where it is too large.
fn number(chars: &mut std::iter::Peekable<std::str::Chars<'_>>) -> Option<Option<usize>> {
    let mut digits = String::new();
    while let Some(digit) = chars.next_if(char::is_ascii_digit) {
        digits.push(digit);
    }
    if digits.is_empty() {
        return Some(None);
    }
    digits.parse().ok().filter(|width| *width <= MAX_WIDTH).map(Some)
}

fn pad(text: &str, spec: &Spec, value: &Value, out: &mut String) {
    let missing = spec.width.saturating_sub(text.chars().count());
    if spec.minus {
        out.push_str(text);
        out.extend(std::iter::repeat_n(' ', missing));
    } else if spec.zero && matches!(value, Value::Number(_)) {
        let (sign, digits) = text.split_at(usize::from(text.starts_with(['-', '+'])));
        out.push_str(sign);
        out.extend(std::iter::repeat_n('0', missing));
        out.push_str(digits);
    } else {
        out.extend(std::iter::repeat_n(' ', missing));
        out.push_str(text);
    }
}

fn kind(value: &Value) -> &'static str {
    match value {
        Value::Number(number) if number.as_i64().is_some() => "int",
        Value::Number(_) => "float64",
        _ => "string",
    }
}

fn plain(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        other => other.to_term(),
    }
}

/// A value under a verb. Rego hands integers over as Go ints, other numbers as floats, all else as
/// strings.
fn one(verb: char, value: &Value, spec: &Spec) -> String {
    let bad = || format!("%!{verb}({}={})", kind(value), plain(value));
    if let Value::Number(number) = value {
        // Whether it is an integer depends on the verb: `%f` takes 100 as a float.
        let int = match verb {
            'f' | 'F' | 'e' | 'E' | 'g' | 'G' => number.as_str().parse().ok(),
            _ => number.as_i64(),
        };
        let float = number.as_f64();
        let large = number.as_str().trim_start_matches('-').bytes().all(|b| b.is_ascii_digit());
        return match (verb, int) {
            ('d', Some(int)) | ('v', Some(int)) => sign(int.to_string(), spec),
            ('v', None) => number.as_str().to_owned(),
            // An integer beyond 64 bits is a text in Go.
            ('s' | 'd', None) if large => number.as_str().to_owned(),
            ('x', Some(int)) => radix(int, spec, |n| format!("{n:x}"), "0x"),
            ('X', Some(int)) => radix(int, spec, |n| format!("{n:X}"), "0X"),
            ('o', Some(int)) => radix(int, spec, |n| format!("{n:o}"), "0"),
            ('b', Some(int)) => radix(int, spec, |n| format!("{n:b}"), "0b"),
            ('c', Some(int)) => {
                u32::try_from(int).ok().and_then(char::from_u32).unwrap_or('\u{fffd}').to_string()
            }
            ('f' | 'F', None) => sign(format!("{float:.*}", spec.precision.unwrap_or(6)), spec),
            ('e' | 'E', None) => exponent(float, spec.precision.unwrap_or(6), verb),
            ('g' | 'G', None) => number.as_str().to_owned(),
            ('T', _) => kind(value).to_owned(),
            _ => bad(),
        };
    }
    let text = plain(value);
    let cut = |text: String| match spec.precision {
        Some(most) => text.chars().take(most).collect(),
        None => text,
    };
    match verb {
        's' | 'v' if verb == 'v' && spec.sharp => Value::string(text).to_json(),
        's' | 'v' => cut(text),
        'q' => Value::string(cut(text)).to_json(),
        'x' => hex::encode(text),
        'X' => hex::encode_upper(text),
        'T' => "string".to_owned(),
        _ => bad(),
    }
}

fn sign(text: String, spec: &Spec) -> String {
    match (text.starts_with('-'), spec.plus, spec.space) {
        (false, true, _) => format!("+{text}"),
        (false, false, true) => format!(" {text}"),
        _ => text,
    }
}

fn radix(int: i64, spec: &Spec, write: fn(u64) -> String, prefix: &str) -> String {
    let prefix = if spec.sharp { prefix } else { "" };
    let minus = if int < 0 { "-" } else { "" };
    sign(format!("{minus}{prefix}{}", write(int.unsigned_abs())), spec)
}

/// Go writes at least two digits of exponent, with a sign.
fn exponent(float: f64, precision: usize, verb: char) -> String {
    let text = format!("{float:.precision$e}");
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, digits) = match exponent.strip_prefix('-') {
        Some(digits) => ('-', digits),
        None => ('+', exponent),
    };
    let e = if verb == 'E' { 'E' } else { 'e' };
    format!("{mantissa}{e}{sign}{digits:0>2}")
}
