//! The builtins that the host answers: those of Rego's that OPA's WebAssembly runtime leaves to
//! its host and that are deterministic, and Aegis' own tests on strings.
//!
//! Left out, and so refused when a policy that calls them is loaded: the network, the clock, chance
//! and the runtime; x509, GraphQL, JSON schemas and JWT signatures by public keys.

mod collections;
mod digests;
mod documents;
mod encodings;
mod format;
mod native;
mod net;
mod text;
mod time;
mod units;

pub(crate) use native::is_native;

use crate::{predicate::Kind, value::Value};

/// A builtin: its arguments in, its result out, `None` for undefined. In Rego's non-strict mode,
/// which is that of modules, an error is undefined too.
pub(crate) type Function = fn(&[Value]) -> Option<Value>;

/// What answers a call.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Callee {
    /// A test on strings, answered without copying them.
    Predicate(Kind),
    /// A function over values.
    Function(Function),
}

/// The most items a builtin may produce, so that one call cannot take the memory that belongs to
/// the whole evaluation.
const MAX_ITEMS: usize = 65_536;

/// The builtin of this name.
#[must_use]
pub(crate) fn named(name: &str) -> Option<Callee> {
    if let Some(kind) = Kind::named(name) {
        return Some(Callee::Predicate(kind));
    }
    let tables = [
        text::TABLE,
        format::TABLE,
        encodings::TABLE,
        digests::TABLE,
        collections::TABLE,
        documents::TABLE,
        net::TABLE,
        time::TABLE,
        units::TABLE,
    ];
    let found = tables.into_iter().flatten().find(|(known, _)| *known == name);
    found.map(|(_, function)| Callee::Function(*function))
}

/// Two strings.
fn two(args: &[Value]) -> Option<(&str, &str)> {
    match args {
        [a, b] => a.as_str().zip(b.as_str()),
        _ => None,
    }
}

/// One string.
fn one(args: &[Value]) -> Option<&str> {
    match args {
        [a] => a.as_str(),
        _ => None,
    }
}

/// A string, or an array or set of strings.
fn one_or_many(value: &Value) -> Option<Vec<&str>> {
    match value {
        Value::String(text) => Some(vec![text]),
        other => other.items()?.into_iter().map(Value::as_str).collect(),
    }
}
