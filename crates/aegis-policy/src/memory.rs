//! Reading Rego values straight from a module's memory, without a round trip through JSON.
//!
//! The layout is that of OPA's `value.h`, ABI 1.2, 32 bits, little-endian. Every read is bounds
//! checked and the depth is bounded: what a module leaves in its memory is not trusted.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet},
};

use crate::value::{Number, Value};

const NULL: u8 = 1;
const BOOLEAN: u8 = 2;
const NUMBER: u8 = 3;
const STRING: u8 = 4;
const ARRAY: u8 = 5;
const OBJECT: u8 = 6;
const SET: u8 = 7;
const STRING_INTERNED: u8 = 8;
const BOOLEAN_INTERNED: u8 = 9;

const NUMBER_INT: u8 = 1;
const MAX_DEPTH: u32 = 128;
/// The most elements one value may hold, so that a cyclic structure ends.
const MAX_NODES: usize = 1 << 20;

fn bytes<const N: usize>(memory: &[u8], at: u32) -> Option<[u8; N]> {
    let at = usize::try_from(at).ok()?;
    memory.get(at..at.checked_add(N)?)?.try_into().ok()
}

fn word(memory: &[u8], at: u32, offset: u32) -> Option<u32> {
    Some(u32::from_le_bytes(bytes(memory, at.checked_add(offset)?)?))
}

fn slice(memory: &[u8], at: u32, len: u32) -> Option<&[u8]> {
    let at = usize::try_from(at).ok()?;
    memory.get(at..at.checked_add(usize::try_from(len).ok()?)?)
}

/// The text of a string value, borrowed; `None` if it is not a string, or not UTF-8.
#[must_use]
pub(crate) fn text(memory: &[u8], at: u32) -> Option<&str> {
    std::str::from_utf8(string(memory, at)?).ok()
}

/// As [`text`], with U+FFFD for each byte that is not UTF-8, as Go's regular expressions read it:
/// what `base64.decode` gives may be any bytes, and one wrong byte must not hide the others.
#[must_use]
pub(crate) fn readable(memory: &[u8], at: u32) -> Option<Cow<'_, str>> {
    let raw = string(memory, at)?;
    if let Ok(text) = std::str::from_utf8(raw) {
        return Some(Cow::Borrowed(text));
    }
    let mut text = String::with_capacity(raw.len());
    for chunk in raw.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|_| char::REPLACEMENT_CHARACTER));
    }
    Some(Cow::Owned(text))
}

/// The bytes of a string value; `None` if it is not a string.
fn string(memory: &[u8], at: u32) -> Option<&[u8]> {
    let [kind] = bytes::<1>(memory, at)?;
    if kind != STRING && kind != STRING_INTERNED {
        return None;
    }
    slice(memory, word(memory, at, 8)?, word(memory, at, 4)?)
}

/// A NUL-terminated text.
#[must_use]
pub(crate) fn c_string(memory: &[u8], at: u32, limit: usize) -> Option<&[u8]> {
    let rest = memory.get(usize::try_from(at).ok()?..)?;
    let rest = rest.get(..rest.len().min(limit.checked_add(1)?))?;
    rest.get(..rest.iter().position(|byte| *byte == 0)?)
}

/// Reads a value.
#[must_use]
pub(crate) fn value(memory: &[u8], at: u32) -> Option<Value> {
    let mut nodes = MAX_NODES;
    read(memory, at, 0, &mut nodes)
}

fn read(memory: &[u8], at: u32, depth: u32, nodes: &mut usize) -> Option<Value> {
    if depth > MAX_DEPTH {
        return None;
    }
    *nodes = nodes.checked_sub(1)?;
    let [kind] = bytes::<1>(memory, at)?;
    match kind {
        NULL => Some(Value::Null),
        BOOLEAN | BOOLEAN_INTERNED => Some(Value::Bool(bytes::<2>(memory, at)?.last() != Some(&0))),
        NUMBER => number(memory, at),
        STRING | STRING_INTERNED => text(memory, at).map(|text| Value::String(text.to_owned())),
        ARRAY => {
            let (elems, len) = (word(memory, at, 4)?, word(memory, at, 8)?);
            let mut items = Vec::new();
            for i in 0..len {
                let elem = elems.checked_add(i.checked_mul(8)?)?;
                items.push(read(memory, word(memory, elem, 4)?, depth + 1, nodes)?);
            }
            Some(Value::Array(items))
        }
        OBJECT => {
            let mut members = BTreeMap::new();
            for elem in buckets(memory, at, 8)? {
                let key = read(memory, word(memory, elem, 0)?, depth + 1, nodes)?;
                members.insert(key, read(memory, word(memory, elem, 4)?, depth + 1, nodes)?);
            }
            Some(Value::Object(members))
        }
        SET => {
            let mut items = BTreeSet::new();
            for elem in buckets(memory, at, 4)? {
                items.insert(read(memory, word(memory, elem, 0)?, depth + 1, nodes)?);
            }
            Some(Value::Set(items))
        }
        _ => None,
    }
}

/// The elements of a hash table: `{hdr, buckets, n, len}`, each bucket a list linked at `next`.
fn buckets(memory: &[u8], at: u32, next: u32) -> Option<Vec<u32>> {
    let (table, count) = (word(memory, at, 4)?, word(memory, at, 8)?);
    let mut elems = Vec::new();
    for i in 0..count {
        let mut elem = word(memory, table.checked_add(i.checked_mul(4)?)?, 0)?;
        while elem != 0 {
            if elems.len() >= MAX_NODES {
                return None;
            }
            elems.push(elem);
            elem = word(memory, elem, next)?;
        }
    }
    Some(elems)
}

/// `{hdr, repr, union {i64, {ptr, len}} at 8}`.
fn number(memory: &[u8], at: u32) -> Option<Value> {
    let [_, repr] = bytes::<2>(memory, at)?;
    if repr == NUMBER_INT {
        let int = i64::from_le_bytes(bytes(memory, at.checked_add(8)?)?);
        return Some(Value::int(int));
    }
    let raw = slice(memory, word(memory, at, 8)?, word(memory, at, 12)?)?;
    std::str::from_utf8(raw).ok().map(|text| Value::Number(Number::new(text)))
}
