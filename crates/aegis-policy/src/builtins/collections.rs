//! Objects, sets, graphs and ranges.

use std::collections::BTreeSet;

use super::{Function, MAX_ITEMS};
use crate::value::Value;

pub(super) const TABLE: &[(&str, Function)] = &[
    ("object.subset", subset),
    ("numbers.range_step", range_step),
    ("graph.reachable_paths", reachable_paths),
    ("uuid.parse", uuid_parse),
];

/// Whether the second is part of the first: objects recursively, sets and arrays (contiguous) by
/// their items.
fn subset(args: &[Value]) -> Option<Value> {
    let [whole, part] = args else { return None };
    holds(whole, part).map(Value::Bool)
}

fn holds(whole: &Value, part: &Value) -> Option<bool> {
    match (whole, part) {
        (Value::Object(whole), Value::Object(part)) => Some(part.iter().all(|(key, wanted)| {
            let found = whole.get(key);
            found.is_some_and(|found| found == wanted || nested(found, wanted))
        })),
        (Value::Set(whole), Value::Set(part)) => Some(part.is_subset(whole)),
        (Value::Array(whole), Value::Array(part)) => Some(
            part.is_empty() || whole.windows(part.len()).any(|window| window == part.as_slice()),
        ),
        (Value::Array(whole), Value::Set(part)) => {
            Some(part.iter().all(|item| whole.contains(item)))
        }
        _ => None,
    }
}

fn nested(found: &Value, wanted: &Value) -> bool {
    let same = std::mem::discriminant(found) == std::mem::discriminant(wanted);
    same && holds(found, wanted) == Some(true)
}

fn range_step(args: &[Value]) -> Option<Value> {
    let [from, to, step] = args else { return None };
    let (from, to, step) = (from.as_i64()?, to.as_i64()?, step.as_i64()?);
    if step <= 0 {
        return None;
    }
    let count = usize::try_from(from.abs_diff(to) / step.unsigned_abs()).ok()?.checked_add(1)?;
    if count > MAX_ITEMS {
        return None;
    }
    let step = if from <= to { step } else { -step };
    let items = std::iter::successors(Some(from), |at| at.checked_add(step)).take(count);
    Some(Value::Array(items.map(Value::int).collect()))
}

fn reachable_paths(args: &[Value]) -> Option<Value> {
    let [Value::Object(graph), roots] = args else { return None };
    let mut paths = BTreeSet::new();
    for root in roots.items()? {
        if graph.contains_key(root) {
            let mut path = vec![root.clone()];
            follow(graph, &mut path, &mut paths)?;
        }
    }
    Some(Value::Set(paths))
}

/// Adds every path that ends at a node without further neighbours, or closes a circle.
fn follow(
    graph: &std::collections::BTreeMap<Value, Value>,
    path: &mut Vec<Value>,
    paths: &mut BTreeSet<Value>,
) -> Option<()> {
    if paths.len() >= MAX_ITEMS || path.len() > 1000 {
        return None;
    }
    let neighbours =
        path.last().and_then(|node| graph.get(node)).and_then(Value::items).unwrap_or_default();
    if neighbours.is_empty() {
        paths.insert(Value::Array(path.clone()));
    }
    for next in neighbours {
        if path.contains(next) || !graph.contains_key(next) {
            paths.insert(Value::Array(path.clone()));
        } else {
            path.push(next.clone());
            follow(graph, path, paths)?;
            path.pop();
        }
    }
    Some(())
}

/// The parts of a UUID that its version tells: the version and the variant, and for versions 1 and
/// 2 the time, the clock sequence and the node.
fn uuid_parse(args: &[Value]) -> Option<Value> {
    let text = super::one(args)?;
    let text = match text.len() {
        45 => text.get(9..).filter(|_| text.to_lowercase().starts_with("urn:uuid:"))?,
        // Whatever the brackets are.
        38 => text.get(1..37)?,
        _ => text,
    };
    let hex: String = match text.len() {
        32 => text.to_owned(),
        36 => {
            let dashes: Vec<usize> = text.match_indices('-').map(|(i, _)| i).collect();
            (dashes == [8, 13, 18, 23]).then(|| text.replace('-', ""))?
        }
        _ => return None,
    };
    let bits = u128::from_str_radix(&hex, 16).ok()?;
    let version = i64::try_from((bits >> 76) & 0xf).ok()?;
    let variant = match (bits >> 61) & 0b111 {
        0b000..=0b011 => "NCS",
        0b100 | 0b101 => "RFC4122",
        0b110 => "Microsoft",
        _ => "Future",
    };
    let variant = if (bits >> 62) & 0b11 == 0b10 { "RFC4122" } else { variant };
    let mut members = vec![("version", Value::int(version)), ("variant", Value::string(variant))];
    if version == 1 || version == 2 {
        let low = bits >> 96;
        let mid = (bits >> 80) & 0xffff;
        let high = (bits >> 64) & 0x0fff;
        let ticks = i64::try_from((high << 48) | (mid << 32) | low).ok()?;
        // 100 ns since 1582-10-15.
        let nanos = (ticks - 122_192_928_000_000_000).checked_mul(100)?;
        let node = hex
            .get(20..)?
            .as_bytes()
            .chunks(2)
            .map(|pair| String::from_utf8_lossy(pair).into_owned());
        members.push(("time", Value::int(nanos)));
        members.push(("nodeid", Value::string(node.collect::<Vec<_>>().join("-"))));
        members.push(("macvariables", Value::string(mac_variables(bits))));
        members.push(("clocksequence", Value::int(i64::try_from((bits >> 48) & 0x3fff).ok()?)));
    }
    if version == 2 {
        let domain = match (bits >> 48) & 0xff {
            0 => "Person",
            1 => "Group",
            2 => "Org",
            _ => return None,
        };
        members.push(("id", Value::int(i64::try_from(bits >> 96).ok()?)));
        members.push(("domain", Value::string(domain)));
    }
    Some(Value::object(members))
}

fn mac_variables(bits: u128) -> &'static str {
    match (bits >> 40) & 0b11 {
        0b00 => "global:unicast",
        0b01 => "global:multicast",
        0b10 => "local:unicast",
        _ => "local:multicast",
    }
}
