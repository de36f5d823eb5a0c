//! Times, as far as they are computed and not read from a clock. Zones come from a database in the
//! binary, so that every machine agrees.

use jiff::{
    Span, Timestamp, Zoned,
    civil::Weekday,
    tz::{Offset, TimeZone},
};

use super::{Function, one, two};
use crate::value::{Number, Value};

pub(super) const TABLE: &[(&str, Function)] = &[
    ("time.parse_rfc3339_ns", parse_rfc3339),
    ("time.parse_ns", parse),
    ("time.parse_duration_ns", parse_duration),
    ("time.format", format),
    ("time.date", date),
    ("time.clock", clock),
    ("time.weekday", weekday),
    ("time.add_date", add_date),
    ("time.diff", diff),
];

const DAY: i128 = 86_400_000_000_000;

/// Nanoseconds that fit 64 bits, as Go's `UnixNano` has them.
fn nanos(timestamp: Timestamp) -> Option<Value> {
    i64::try_from(timestamp.as_nanosecond()).ok().map(Value::int)
}

fn zone(name: &str) -> Option<TimeZone> {
    match name {
        "" | "UTC" => Some(TimeZone::UTC),
        // The zone of the machine is not the same everywhere.
        "Local" => None,
        other => TimeZone::get(other).ok(),
    }
}

/// A number of nanoseconds, or `[nanoseconds, zone]` with an optional layout.
fn moment(value: &Value) -> Option<Zoned> {
    let (number, name) = match value {
        Value::Number(number) => (number, ""),
        Value::Array(items) => match items.as_slice() {
            [Value::Number(number), name, ..] => (number, name.as_str()?),
            _ => return None,
        },
        _ => return None,
    };
    let timestamp = Timestamp::from_nanosecond(i128::from(exact(number)?)).ok()?;
    Some(timestamp.to_zoned(zone(name)?))
}

fn exact(number: &Number) -> Option<i64> {
    number.as_str().parse().ok().or_else(|| number.as_i64())
}

fn parse_rfc3339(args: &[Value]) -> Option<Value> {
    let text = one(args)?;
    // jiff reads more than RFC 3339.
    let separator = text.get(10..11)?;
    let zoned = text.ends_with(['Z', 'z']) || text.get(19..)?.contains(['+', '-']);
    if !matches!(separator, "T" | "t") || !zoned || text.contains('[') {
        return None;
    }
    nanos(text.parse().ok()?)
}

const LAYOUTS: [(&str, &str); 15] = [
    ("ANSIC", "Mon Jan _2 15:04:05 2006"),
    ("UnixDate", "Mon Jan _2 15:04:05 MST 2006"),
    ("RubyDate", "Mon Jan 02 15:04:05 -0700 2006"),
    ("RFC822", "02 Jan 06 15:04 MST"),
    ("RFC822Z", "02 Jan 06 15:04 -0700"),
    ("RFC850", "Monday, 02-Jan-06 15:04:05 MST"),
    ("RFC1123", "Mon, 02 Jan 2006 15:04:05 MST"),
    ("RFC1123Z", "Mon, 02 Jan 2006 15:04:05 -0700"),
    ("RFC3339", "2006-01-02T15:04:05Z07:00"),
    ("RFC3339Nano", "2006-01-02T15:04:05.999999999Z07:00"),
    ("Kitchen", "3:04PM"),
    ("Stamp", "Jan _2 15:04:05"),
    ("DateTime", "2006-01-02 15:04:05"),
    ("DateOnly", "2006-01-02"),
    ("TimeOnly", "15:04:05"),
];

fn layout(name: &str) -> &str {
    LAYOUTS.iter().find(|(known, _)| *known == name).map_or(name, |(_, layout)| layout)
}

/// Go's reference layout in `strftime`'s words; the longest word first.
const WORDS: [(&str, &str); 30] = [
    ("January", "%B"),
    ("Monday", "%A"),
    ("Z07:00", "\u{1}"),
    (".999999999", "%.f"),
    (".000000000", "%.9f"),
    (".000000", "%.6f"),
    (".000", "%.3f"),
    ("-07:00", "%:z"),
    ("-0700", "%z"),
    ("2006", "%Y"),
    ("Jan", "%b"),
    ("Mon", "%a"),
    ("MST", "%Z"),
    ("002", "%j"),
    ("_2", "%e"),
    ("01", "%m"),
    ("02", "%d"),
    ("03", "%I"),
    ("04", "%M"),
    ("05", "%S"),
    ("06", "%y"),
    ("15", "%H"),
    ("PM", "%p"),
    ("pm", "%P"),
    ("1", "%-m"),
    ("2", "%-d"),
    ("3", "%-I"),
    ("4", "%-M"),
    ("5", "%-S"),
    ("%", "%%"),
];

fn strftime(layout: &str) -> String {
    let mut out = String::new();
    let mut rest = layout;
    'next: while let Some(c) = rest.chars().next() {
        for (word, directive) in WORDS {
            if let Some(after) = rest.strip_prefix(word) {
                out.push_str(directive);
                rest = after;
                continue 'next;
            }
        }
        out.push(c);
        rest = rest.get(c.len_utf8()..).unwrap_or_default();
    }
    out
}

fn parse(args: &[Value]) -> Option<Value> {
    let (wanted, text) = two(args)?;
    let wanted = layout(wanted);
    if wanted.contains("Z07:00") {
        return parse_rfc3339(&[Value::string(text)]);
    }
    let form = strftime(wanted);
    let broken = jiff::fmt::strtime::parse(&form, text).ok()?;
    if let Ok(timestamp) = broken.to_timestamp() {
        return nanos(timestamp);
    }
    let date = broken.to_date().ok()?;
    let time = broken.to_time().unwrap_or_default();
    nanos(date.to_datetime(time).to_zoned(TimeZone::UTC).ok()?.timestamp())
}

/// A time, `[time, zone]` or `[time, zone, layout]`.
fn format(args: &[Value]) -> Option<Value> {
    let [value] = args else { return None };
    let at = moment(value)?;
    let wanted = match value {
        Value::Array(items) => match items.get(2) {
            Some(wanted) => layout(wanted.as_str()?),
            None => layout("RFC3339Nano"),
        },
        _ => layout("RFC3339Nano"),
    };
    let zulu =
        if at.offset() == Offset::UTC { "Z".to_owned() } else { at.strftime("%:z").to_string() };
    let text = jiff::fmt::strtime::format(strftime(wanted), &at).ok()?;
    Some(Value::String(text.replace('\u{1}', &zulu)))
}

fn ints(numbers: impl IntoIterator<Item = i64>) -> Value {
    Value::Array(numbers.into_iter().map(Value::int).collect())
}

fn date(args: &[Value]) -> Option<Value> {
    let at = moment(args.first()?)?;
    Some(ints([i64::from(at.year()), i64::from(at.month()), i64::from(at.day())]))
}

fn clock(args: &[Value]) -> Option<Value> {
    let at = moment(args.first()?)?;
    Some(ints([i64::from(at.hour()), i64::from(at.minute()), i64::from(at.second())]))
}

fn weekday(args: &[Value]) -> Option<Value> {
    Some(Value::string(match moment(args.first()?)?.weekday() {
        Weekday::Monday => "Monday",
        Weekday::Tuesday => "Tuesday",
        Weekday::Wednesday => "Wednesday",
        Weekday::Thursday => "Thursday",
        Weekday::Friday => "Friday",
        Weekday::Saturday => "Saturday",
        Weekday::Sunday => "Sunday",
    }))
}

/// As Go: the month is carried into the year, and a day beyond the month's end into the next.
fn add_date(args: &[Value]) -> Option<Value> {
    let [at, years, months, days] = args else { return None };
    let at = moment(at)?;
    let months = years.as_i64()?.checked_mul(12)?.checked_add(months.as_i64()?)?;
    let total = i64::from(at.year()).checked_mul(12)?.checked_add(i64::from(at.month()) - 1)?;
    let total = total.checked_add(months)?;
    let year = i16::try_from(total.div_euclid(12)).ok()?;
    let month = i8::try_from(total.rem_euclid(12) + 1).ok()?;
    let days = days.as_i64()?.checked_add(i64::from(at.day()) - 1)?;
    let first = jiff::civil::Date::new(year, month, 1).ok()?;
    let date = first.checked_add(Span::new().try_days(days).ok()?).ok()?;
    let moved = date.to_datetime(at.time()).to_zoned(at.time_zone().clone()).ok()?;
    nanos(moved.timestamp())
}

/// Years, months, days, hours, minutes and seconds between two times.
fn diff(args: &[Value]) -> Option<Value> {
    let [a, b] = args else { return None };
    let (mut a, mut b) = (moment(a)?, moment(b)?);
    if a.time_zone() != b.time_zone() {
        b = b.with_time_zone(a.time_zone().clone());
    }
    if a.timestamp() > b.timestamp() {
        std::mem::swap(&mut a, &mut b);
    }
    let part = |from: &Zoned| {
        [
            i64::from(from.year()),
            i64::from(from.month()),
            i64::from(from.day()),
            i64::from(from.hour()),
            i64::from(from.minute()),
            i64::from(from.second()),
        ]
    };
    let (from, to) = (part(&a), part(&b));
    let mut gap = [0_i64; 6];
    for ((gap, from), to) in gap.iter_mut().zip(from).zip(to) {
        *gap = to - from;
    }
    let [mut years, mut months, mut days, mut hours, mut minutes, mut seconds] = gap;
    let carry = |low: &mut i64, high: &mut i64, size: i64| {
        if *low < 0 {
            *low += size;
            *high -= 1;
        }
    };
    carry(&mut seconds, &mut minutes, 60);
    carry(&mut minutes, &mut hours, 60);
    carry(&mut hours, &mut days, 24);
    carry(&mut days, &mut months, i64::from(a.days_in_month()));
    carry(&mut months, &mut years, 12);
    Some(ints([years, months, days, hours, minutes, seconds]))
}

/// Go's durations: `1h15m30.918273645s`.
fn parse_duration(args: &[Value]) -> Option<Value> {
    let text = one(args)?;
    let (sign, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (-1, rest),
        None => (1, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(Value::int(0));
    }
    if rest.is_empty() {
        return None;
    }
    let mut total: i128 = 0;
    while !rest.is_empty() {
        let end = rest.find(|c: char| !(c.is_ascii_digit() || c == '.'))?;
        let (number, after) = rest.split_at(end);
        let stop = after.find(|c: char| c.is_ascii_digit() || c == '.').unwrap_or(after.len());
        let (unit, after) = after.split_at(stop);
        let factor: i128 = match unit {
            "ns" => 1,
            "us" | "µs" | "μs" => 1_000,
            "ms" => 1_000_000,
            "s" => 1_000_000_000,
            "m" => 60_000_000_000,
            "h" => DAY / 24,
            _ => return None,
        };
        let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
        if whole.is_empty() && fraction.is_empty() {
            return None;
        }
        let whole: i128 = if whole.is_empty() { 0 } else { whole.parse().ok()? };
        total = total.checked_add(whole.checked_mul(factor)?)?;
        let mut scale = factor;
        for digit in fraction.chars() {
            scale /= 10;
            total = total.checked_add(i128::from(digit.to_digit(10)?).checked_mul(scale)?)?;
        }
        rest = after;
    }
    i64::try_from(total * sign).ok().map(Value::int)
}
