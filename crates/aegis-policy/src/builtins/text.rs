//! Strings, regular expressions and globs.

use std::sync::Mutex;
use std::{collections::HashMap, sync::LazyLock};

use regex::Regex;

use super::{Function, MAX_ITEMS, one, one_or_many, two};
use crate::{regex_dialect, value::Value};

pub(super) const TABLE: &[(&str, Function)] = &[
    ("indexof_n", indexof_n),
    ("strings.any_prefix_match", any_prefix_match),
    ("strings.any_suffix_match", any_suffix_match),
    ("strings.count", count),
    ("strings.split_n", split_n),
    ("regex.find_n", find_n),
    ("regex.replace", replace),
    ("regex.split", split),
    ("regex.template_match", template_match),
    ("glob.quote_meta", quote_meta),
];

/// The most compiled patterns that are kept.
const MAX_KEPT: usize = 512;
static KEPT: LazyLock<Mutex<HashMap<String, Regex>>> = LazyLock::new(Mutex::default);

fn compiled(pattern: &str) -> Option<Regex> {
    let mut kept = KEPT.lock().ok()?;
    if let Some(regex) = kept.get(pattern) {
        return Some(regex.clone());
    }
    let regex = regex_dialect::compile(pattern).ok()?;
    if kept.len() >= MAX_KEPT {
        kept.clear();
    }
    kept.insert(pattern.to_owned(), regex.clone());
    Some(regex)
}

fn strings<'a>(items: impl Iterator<Item = &'a str>) -> Value {
    Value::Array(items.take(MAX_ITEMS).map(Value::string).collect())
}

/// Positions in characters.
fn indexof_n(args: &[Value]) -> Option<Value> {
    let (text, wanted) = two(args)?;
    if wanted.is_empty() {
        return None;
    }
    let (text, wanted): (Vec<char>, Vec<char>) = (text.chars().collect(), wanted.chars().collect());
    let found = text.windows(wanted.len()).enumerate().filter(|(_, w)| *w == wanted.as_slice());
    found
        .map(|(i, _)| i64::try_from(i).ok().map(Value::int))
        .collect::<Option<_>>()
        .map(Value::Array)
}

fn any_prefix_match(args: &[Value]) -> Option<Value> {
    any_match(args, |text, part| text.starts_with(part))
}

fn any_suffix_match(args: &[Value]) -> Option<Value> {
    any_match(args, |text, part| text.ends_with(part))
}

fn any_match(args: &[Value], test: fn(&str, &str) -> bool) -> Option<Value> {
    let [texts, parts] = args else { return None };
    let (texts, parts) = (one_or_many(texts)?, one_or_many(parts)?);
    Some(Value::Bool(texts.iter().any(|text| parts.iter().any(|part| test(text, part)))))
}

fn count(args: &[Value]) -> Option<Value> {
    let (text, part) = two(args)?;
    let count = if part.is_empty() { text.chars().count() + 1 } else { text.matches(part).count() };
    i64::try_from(count).ok().map(Value::int)
}

/// The first `count` parts, or, where it is negative, the last.
fn split_n(args: &[Value]) -> Option<Value> {
    let [text, delimiter, count] = args else { return None };
    let (text, delimiter, count) = (text.as_str()?, delimiter.as_str()?, count.as_i64()?);
    let parts: Vec<String> = if delimiter.is_empty() {
        text.chars().map(String::from).collect()
    } else {
        text.split(delimiter).map(str::to_owned).collect()
    };
    let most = usize::try_from(count.unsigned_abs()).unwrap_or(usize::MAX);
    let skipped = if count < 0 { parts.len().saturating_sub(most) } else { 0 };
    Some(strings(parts.iter().skip(skipped).take(most).map(String::as_str)))
}

fn find_n(args: &[Value]) -> Option<Value> {
    let [pattern, text, count] = args else { return None };
    let regex = compiled(pattern.as_str()?)?;
    let limit = usize::try_from(count.as_i64()?).unwrap_or(usize::MAX);
    Some(strings(regex.find_iter(text.as_str()?).take(limit).map(|found| found.as_str())))
}

/// Go's template has `$1`, `${1}` and `$name`, as Rust's.
fn replace(args: &[Value]) -> Option<Value> {
    let [text, pattern, with] = args else { return None };
    let regex = compiled(pattern.as_str()?)?;
    Some(Value::string(regex.replace_all(text.as_str()?, with.as_str()?).into_owned()))
}

fn split(args: &[Value]) -> Option<Value> {
    let (pattern, text) = two(args)?;
    Some(strings(compiled(pattern)?.split(text)))
}

/// Regular expressions between delimiters in otherwise plain text.
fn template_match(args: &[Value]) -> Option<Value> {
    let [template, text, start, end] = args else { return None };
    let (template, text) = (template.as_str()?, text.as_str()?);
    let single = |value: &Value| {
        let mut chars = value.as_str()?.chars();
        chars.next().filter(|_| chars.next().is_none())
    };
    let (start, end) = (single(start)?, single(end)?);
    let mut pattern = String::from("^");
    let mut rest = template;
    while let Some((plain, after)) = rest.split_once(start) {
        // Go's library ends a group at the delimiter that balances it.
        let mut depth = 1;
        let close = after.char_indices().find(|(_, c)| {
            if *c == end {
                depth -= 1;
            } else if *c == start {
                depth += 1;
            }
            depth == 0
        })?;
        pattern.push_str(&regex::escape(plain));
        pattern.push_str(&format!("({})", after.get(..close.0)?));
        rest = after.get(close.0 + end.len_utf8()..)?;
    }
    if rest.contains(end) {
        return None;
    }
    pattern.push_str(&regex::escape(rest));
    pattern.push('$');
    Some(Value::Bool(compiled(&pattern)?.is_match(text)))
}

fn quote_meta(args: &[Value]) -> Option<Value> {
    let mut out = String::new();
    for c in one(args)?.chars() {
        if matches!(c, '*' | '?' | '\\' | '[' | ']' | '{' | '}') {
            out.push('\\');
        }
        out.push(c);
    }
    Some(Value::string(out))
}
