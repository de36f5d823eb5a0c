//! Rego values outside a module: what the host's builtins take and give.
//!
//! JSON plus sets, any value as a key, and numbers as text, because a Rego number may be one that
//! no double holds.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

/// A Rego value. Its order is Rego's: null, booleans, numbers, strings, arrays, objects, sets.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Value {
    /// `null`
    Null,
    /// A boolean.
    Bool(bool),
    /// A number.
    Number(Number),
    /// A string.
    String(String),
    /// An array.
    Array(Vec<Self>),
    /// An object.
    Object(BTreeMap<Self, Self>),
    /// A set.
    Set(BTreeSet<Self>),
}

/// A number as its JSON text.
#[derive(Clone, Debug)]
pub(crate) struct Number(String);

// === impl Number ===

impl Number {
    /// From JSON text.
    #[must_use]
    pub(crate) fn new(text: &str) -> Self {
        Self(text.to_owned())
    }

    /// As text.
    #[must_use]
    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }

    /// As an integer, if it is one that fits; `1.0` and `1e2` are integers.
    #[must_use]
    pub(crate) fn as_i64(&self) -> Option<i64> {
        if let Ok(int) = self.0.parse() {
            return Some(int);
        }
        let float = self.as_f64();
        #[expect(clippy::cast_possible_truncation, reason = "checked to be integral and small")]
        (float.fract() == 0.0 && float.abs() < 9e15).then_some(float as i64)
    }

    /// As the nearest double.
    #[must_use]
    pub(crate) fn as_f64(&self) -> f64 {
        self.0.parse().unwrap_or(f64::NAN)
    }
}

impl Ord for Number {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.0.parse::<i128>(), other.0.parse::<i128>()) {
            (Ok(a), Ok(b)) => a.cmp(&b),
            _ => self.as_f64().total_cmp(&other.as_f64()),
        }
    }
}

impl PartialOrd for Number {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Number {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Number {}

// === impl Value ===

impl Value {
    /// An integer.
    #[must_use]
    pub(crate) fn int(int: i64) -> Self {
        Self::Number(Number(int.to_string()))
    }

    /// A string.
    #[must_use]
    pub(crate) fn string(text: impl Into<String>) -> Self {
        Self::String(text.into())
    }

    /// The text of a string.
    #[must_use]
    pub(crate) fn as_str(&self) -> Option<&str> {
        match self {
            Self::String(text) => Some(text),
            _ => None,
        }
    }

    /// The integer of an integral number.
    #[must_use]
    pub(crate) fn as_i64(&self) -> Option<i64> {
        match self {
            Self::Number(number) => number.as_i64(),
            _ => None,
        }
    }

    /// The items of an array or a set.
    #[must_use]
    pub(crate) fn items(&self) -> Option<Vec<&Self>> {
        match self {
            Self::Array(items) => Some(items.iter().collect()),
            Self::Set(items) => Some(items.iter().collect()),
            _ => None,
        }
    }

    /// The member of an object under a string.
    #[must_use]
    pub(crate) fn member(&self, key: &str) -> Option<&Self> {
        match self {
            Self::Object(members) => members.get(&Self::String(key.to_owned())),
            _ => None,
        }
    }

    /// An object with string keys.
    #[must_use]
    pub(crate) fn object<K: Into<String>>(members: impl IntoIterator<Item = (K, Self)>) -> Self {
        Self::Object(members.into_iter().map(|(k, v)| (Self::String(k.into()), v)).collect())
    }

    /// Rego's text form, which the module parses: JSON, `{a, b}` and `set()`.
    #[must_use]
    pub(crate) fn to_rego(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, Style::Rego);
        out
    }

    /// Rego's text form as `opa` prints it, with spaces.
    #[must_use]
    pub(crate) fn to_term(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, Style::Term);
        out
    }

    /// JSON: sets become arrays, keys that are no strings become their JSON text.
    #[must_use]
    pub(crate) fn to_json(&self) -> String {
        let mut out = String::new();
        self.write(&mut out, Style::Json);
        out
    }

    fn write(&self, out: &mut String, style: Style) {
        let json = style == Style::Json;
        match self {
            Self::Null => out.push_str("null"),
            Self::Bool(yes) => out.push_str(if *yes { "true" } else { "false" }),
            Self::Number(number) => out.push_str(&number.0),
            Self::String(text) => write_string(text, out),
            Self::Array(items) => write_list(items.iter(), ('[', ']'), out, style),
            Self::Set(items) if json => write_list(items.iter(), ('[', ']'), out, style),
            Self::Set(items) if items.is_empty() => out.push_str("set()"),
            Self::Set(items) => write_list(items.iter(), ('{', '}'), out, style),
            Self::Object(members) => {
                out.push('{');
                for (i, (key, value)) in members.iter().enumerate() {
                    if i > 0 {
                        out.push(',');
                    }
                    match key {
                        Self::String(_) => key.write(out, style),
                        other if json => write_string(&other.to_json(), out),
                        other => other.write(out, style),
                    }
                    out.push_str(if style == Style::Term { ": " } else { ":" });
                    value.write(out, style);
                }
                out.push('}');
            }
        }
    }
}

/// How a value is written.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Style {
    Rego,
    Term,
    Json,
}

impl Style {
    fn comma(self) -> &'static str {
        if self == Self::Term { ", " } else { "," }
    }
}

fn write_list<'a>(
    items: impl Iterator<Item = &'a Value>,
    brackets: (char, char),
    out: &mut String,
    style: Style,
) {
    out.push(brackets.0);
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.push_str(style.comma());
        }
        item.write(out, style);
    }
    out.push(brackets.1);
}

fn write_string(text: &str, out: &mut String) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            c if u32::from(c) < 0x20 => {
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

impl From<&serde_json::Value> for Value {
    fn from(json: &serde_json::Value) -> Self {
        match json {
            serde_json::Value::Null => Self::Null,
            serde_json::Value::Bool(yes) => Self::Bool(*yes),
            serde_json::Value::Number(number) => Self::Number(Number(number.to_string())),
            serde_json::Value::String(text) => Self::String(text.clone()),
            serde_json::Value::Array(items) => Self::Array(items.iter().map(Self::from).collect()),
            serde_json::Value::Object(members) => {
                Self::object(members.iter().map(|(k, v)| (k.clone(), Self::from(v))))
            }
        }
    }
}

impl From<&Value> for serde_json::Value {
    fn from(value: &Value) -> Self {
        serde_json::from_str(&value.to_json()).unwrap_or(Self::Null)
    }
}
