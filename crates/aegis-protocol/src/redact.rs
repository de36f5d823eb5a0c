//! Keeping secrets out of records and results.
//!
//! Arguments are redacted for the record, never for the server: by key, where a key's words name a
//! secret, by JSON path, where a policy's `redactArgument` says so, and by what a text looks like
//! ([`text`]), whatever the policies say. Results are redacted on
//! their way to the client: what a policy's `redactResult` pattern matches, in every text. A path
//! that cannot be read is an error, since redacting nothing would disclose.

mod named;
mod shapes;

use std::collections::HashMap;

use regex::Regex;
use serde_json::{Map, Value};

pub use shapes::text;

/// What stands where something was.
pub const REDACTED: &str = "[redacted]";

/// Words that name a secret wherever they stand in a key, and pairs that do so together.
const SECRET_WORDS: [&str; 13] = [
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "token",
    "secret",
    "secrets",
    "credential",
    "credentials",
    "authorization",
    "apikey",
    "cookie",
    "tokens",
];
const SECRET_PAIRS: [(&str, &str); 8] = [
    ("api", "key"),
    ("private", "key"),
    ("access", "key"),
    ("signing", "key"),
    ("encryption", "key"),
    ("client", "key"),
    ("secret", "key"),
    ("session", "key"),
];

/// Why a path is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a path: expected `$` and steps `.name`, `['name']`, `[0]`, `[*]`, `.*` or `..name`"
)]
pub struct InvalidPath(String);

/// A JSON path (the part of RFC 9535 without filters and slices).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Path(Vec<Step>);

#[derive(Clone, Debug, PartialEq, Eq)]
enum Step {
    Name(String),
    Index(usize),
    Any,
    /// The next step applies at any depth.
    Descend,
}

impl std::str::FromStr for Path {
    type Err = InvalidPath;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidPath(text.chars().take(80).collect());
        let mut rest = text.strip_prefix('$').ok_or_else(invalid)?;
        let mut steps = Vec::new();
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix("..") {
                steps.push(Step::Descend);
                if after.starts_with('[') {
                    rest = after;
                    continue;
                }
                rest = name_step(after, &mut steps).ok_or_else(invalid)?;
            } else if let Some(after) = rest.strip_prefix('.') {
                rest = name_step(after, &mut steps).ok_or_else(invalid)?;
            } else {
                rest = bracket_step(rest, &mut steps).ok_or_else(invalid)?;
            }
        }
        if steps.last() == Some(&Step::Descend) { Err(invalid()) } else { Ok(Self(steps)) }
    }
}

fn name_step<'a>(text: &'a str, steps: &mut Vec<Step>) -> Option<&'a str> {
    let (name, rest) = text.split_at_checked(text.find(['.', '[']).unwrap_or(text.len()))?;
    match name {
        "" => return None,
        "*" => steps.push(Step::Any),
        name => steps.push(Step::Name(name.to_owned())),
    }
    Some(rest)
}

fn bracket_step<'a>(text: &'a str, steps: &mut Vec<Step>) -> Option<&'a str> {
    let inner = text.strip_prefix('[')?;
    for quote in ['\'', '"'] {
        if let Some(name) = inner.strip_prefix(quote) {
            let (name, rest) = name.split_once(quote)?;
            steps.push(Step::Name(name.to_owned()));
            return rest.strip_prefix(']');
        }
    }
    let (inner, rest) = inner.split_once(']')?;
    steps.push(if inner == "*" { Step::Any } else { Step::Index(inner.parse().ok()?) });
    Some(rest)
}

/// Arguments for the record: every member whose key names a secret and everything that `paths` lead
/// to becomes [`REDACTED`], whatever its type; so does what has the shape of a secret in any text or
/// key.
#[must_use]
pub fn arguments(arguments: &Value, paths: &[Path]) -> Value {
    let mut copy = arguments.clone();
    for path in paths {
        redact_path(&mut copy, &path.0);
    }
    redact_secrets(&mut copy);
    copy
}

fn redact_secrets(value: &mut Value) {
    match value {
        Value::String(text) => shapes::redact(text),
        Value::Array(items) => items.iter_mut().for_each(redact_secrets),
        Value::Object(members) => {
            for (key, member) in members.iter_mut() {
                if names_secret(key) { *member = REDACTED.into() } else { redact_secrets(member) }
            }
            if members.keys().any(|key| shapes::holds(key)) {
                *members = renamed(std::mem::take(members));
            }
        }
        _ => {}
    }
}

/// The members under names without secrets. Names that have become the same are numbered: no value stands in
/// for another's.
fn renamed(members: Map<String, Value>) -> Map<String, Value> {
    let mut told = Map::new();
    let mut numbers: HashMap<String, usize> = HashMap::new();
    for (key, member) in members {
        let name = text(&key);
        let mut numbered = name.clone();
        let number = numbers.entry(name.clone()).or_insert(1);
        while told.contains_key(&numbered) {
            *number += 1;
            numbered = format!("{name} ({number})");
        }
        told.insert(numbered, member);
    }
    told
}

fn redact_path(value: &mut Value, steps: &[Step]) {
    let Some((step, rest)) = steps.split_first() else {
        *value = REDACTED.into();
        return;
    };
    match (step, value) {
        (Step::Name(name), Value::Object(members)) => {
            if let Some(member) = members.get_mut(name) {
                redact_path(member, rest);
            }
        }
        (Step::Index(index), Value::Array(items)) => {
            if let Some(item) = items.get_mut(*index) {
                redact_path(item, rest);
            }
        }
        (Step::Any, Value::Array(items)) => {
            items.iter_mut().for_each(|item| redact_path(item, rest))
        }
        (Step::Any, Value::Object(members)) => {
            members.values_mut().for_each(|member| redact_path(member, rest));
        }
        (Step::Descend, value) => {
            // Deepest first: what is redacted above need not be searched.
            match &mut *value {
                Value::Array(items) => items.iter_mut().for_each(|item| redact_path(item, steps)),
                Value::Object(members) => {
                    members.values_mut().for_each(|member| redact_path(member, steps))
                }
                _ => {}
            }
            redact_path(value, rest);
        }
        _ => {}
    }
}

/// Whether the words of a key name a secret: split at everything that is neither letter nor digit
/// and at camelCase humps, so that `apiKey` and `x-api-key` do and `monkey` and `tokenizer` do not.
#[must_use]
pub fn names_secret(key: &str) -> bool {
    let words = words(key);
    words.iter().any(|word| SECRET_WORDS.contains(&word.as_str()))
        || words.windows(2).any(|pair| match pair {
            [first, second] => SECRET_PAIRS.contains(&(first.as_str(), second.as_str())),
            _ => false,
        })
}

fn words(key: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    let mut characters = key.chars().peekable();
    let mut before = ' ';
    while let Some(c) = characters.next() {
        // A hump: `aB`, or the last capital of `ABc`.
        let hump = c.is_uppercase()
            && (before.is_lowercase()
                || (before.is_uppercase() && characters.peek().is_some_and(|n| n.is_lowercase())));
        if !c.is_alphanumeric() || hump {
            words.push(String::new());
        }
        if c.is_alphanumeric()
            && let Some(word) = words.last_mut()
        {
            word.extend(c.to_lowercase());
        }
        before = c;
    }
    words.retain(|word| !word.is_empty());
    words
}

/// A result for the client: what `patterns` match in any string value becomes [`REDACTED`]. Texts in
/// `content`, strings in `structuredContent` and everything else are treated alike, since clients
/// show both. Answers how many places were redacted; keys and `_meta` stay.
pub fn result(result: &mut Value, patterns: &[Regex]) -> usize {
    match result {
        Value::String(text) => {
            let mut places = 0;
            for pattern in patterns {
                let found = pattern.find_iter(text).filter(|found| !found.is_empty()).count();
                if found > 0 {
                    places += found;
                    *text = pattern
                        .replace_all(text, |found: &regex::Captures<'_>| {
                            let empty = found.get(0).is_none_or(|whole| whole.is_empty());
                            if empty { "" } else { REDACTED }
                        })
                        .into_owned();
                }
            }
            places
        }
        Value::Array(items) => items.iter_mut().map(|item| self::result(item, patterns)).sum(),
        Value::Object(members) => members
            .iter_mut()
            .filter(|(key, _)| key.as_str() != "_meta")
            .map(|(_, member)| self::result(member, patterns))
            .sum(),
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn keys_are_judged_by_words_and_not_by_parts_of_words() {
        for key in [
            "password",
            "userPassword",
            "API_KEY",
            "x-api-key",
            "apiKey",
            "APIKey",
            "accessToken",
            "Authorization",
            "privateKey",
            "client.secret",
            "PRIVATE-KEY",
        ] {
            assert!(names_secret(key), "{key}");
        }
        for key in [
            "monkey",
            "tokenizer",
            "keyboard",
            "author",
            "key",
            "secretary",
            "api",
            "private",
            "passwordless",
        ] {
            assert!(!names_secret(key), "{key}");
        }
    }

    #[test]
    fn arguments_are_redacted_by_key_and_path() {
        let value = json!({ "q": "x", "auth": { "token": { "a": 1 } }, "files": [{ "path": "p", "body": "b" }, { "body": 2 }], "a.b": 1 });
        let paths: Vec<Path> =
            ["$.files[*].body", "$['a.b']"].iter().map(|p| p.parse().unwrap()).collect();
        assert_eq!(
            arguments(&value, &paths),
            json!({ "q": "x", "auth": { "token": REDACTED }, "files": [{ "path": "p", "body": REDACTED }, { "body": REDACTED }], "a.b": REDACTED })
        );
        let all = |path: &str| arguments(&value, &[path.parse().unwrap()]);
        assert_eq!(all("$"), json!(REDACTED));
        assert_eq!(
            all("$..body")["files"],
            json!([{ "path": "p", "body": REDACTED }, { "body": REDACTED }])
        );
        assert_eq!(all("$.files[1]")["files"][1], json!(REDACTED));
        assert_eq!(all("$..[0]")["files"][0], json!(REDACTED));
        assert_eq!(all("$.*")["q"], json!(REDACTED));
    }

    #[test]
    fn no_value_is_lost_where_keys_become_the_same() {
        let (one, two) = ("AKIAIOSFODNN7EXAMPLE", "AKIAIOSFODNN8EXAMPLE");
        let value = json!({ one: 1, REDACTED: 2, two: 3, "[redacted] (2)": 4, "x": 5 });
        let told = arguments(&value, &[]);
        let mut values: Vec<u64> =
            told.as_object().unwrap().values().map(|v| v.as_u64().unwrap()).collect();
        values.sort_unstable();
        assert_eq!(values, [1, 2, 3, 4, 5], "{told}");
        assert!(!told.to_string().contains("AKIA"), "{told}");
        assert_eq!(arguments(&told, &[]), told);
    }

    #[test]
    fn paths_that_cannot_be_read_are_refused() {
        for path in
            ["", "q", "$q", "$.", "$..", "$[", "$[-1]", "$[a]", "$['a", "$[?(@.x)]", "$[1:2]"]
        {
            assert!(path.parse::<Path>().is_err(), "{path}");
        }
    }

    #[test]
    fn results_are_redacted_in_every_text() {
        let patterns = [Regex::new(r"\b\d{4}-\d{4}\b").unwrap(), Regex::new("s*").unwrap()];
        let mut value = json!({
            "content": [{ "type": "text", "text": "card 1234-5678." }, { "type": "resource", "resource": { "text": "1234-5678" } }],
            "structuredContent": { "n": 1, "card": ["1234-5678"] }, "_meta": { "k": "1234-5678" },
        });
        assert_eq!(result(&mut value, &patterns[..1]), 3);
        assert_eq!(value["content"][0]["text"], "card [redacted].");
        assert_eq!(value["content"][1]["resource"]["text"], REDACTED);
        assert_eq!(value["structuredContent"], json!({ "n": 1, "card": [REDACTED] }));
        assert_eq!(value["_meta"]["k"], "1234-5678");
        let mut text = json!("abssc");
        assert_eq!((result(&mut text, &patterns[1..]), text), (1, json!("ab[redacted]c")));
    }
}
