//! CIDR blocks. Names are never looked up.

use std::{collections::BTreeSet, net::IpAddr};

use super::{Function, MAX_ITEMS, one};
use crate::value::Value;

pub(super) const TABLE: &[(&str, Function)] = &[
    ("net.cidr_is_valid", is_valid),
    ("net.cidr_expand", expand),
    ("net.cidr_merge", merge),
    ("net.cidr_contains_matches", contains_matches),
];

/// A block: its first address as a number, its prefix length, and whether it is of IPv6.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Block {
    v6: bool,
    first: u128,
    prefix: u32,
}

impl Block {
    fn bits(v6: bool) -> u32 {
        if v6 { 128 } else { 32 }
    }

    fn address(text: &str) -> Option<(bool, u128)> {
        Some(match text.parse().ok()? {
            IpAddr::V4(v4) => (false, u128::from(u32::from(v4))),
            IpAddr::V6(v6) => (true, u128::from(v6)),
        })
    }

    fn parse(text: &str) -> Option<Self> {
        let (address, prefix) = text.split_once('/')?;
        let (v6, address) = Self::address(address)?;
        let plain = !prefix.is_empty() && prefix.bytes().all(|b| b.is_ascii_digit());
        let prefix: u32 = prefix.parse().ok().filter(|p| plain && *p <= Self::bits(v6))?;
        let mut block = Self { v6, first: address, prefix };
        block.first &= !block.span();
        Some(block)
    }

    /// A block, or an address as a block of one.
    fn parse_either(text: &str) -> Option<Self> {
        Self::parse(text).or_else(|| {
            let (v6, first) = Self::address(text)?;
            Some(Self { v6, first, prefix: Self::bits(v6) })
        })
    }

    /// An IPv4 address without a prefix stands for the network of its class, as in Go.
    fn classful(text: &str) -> Option<Self> {
        let address: std::net::Ipv4Addr = text.parse().ok()?;
        let prefix = match address.octets() {
            [0..=127, ..] => 8,
            [128..=191, ..] => 16,
            [192..=223, ..] => 24,
            _ => return None,
        };
        Self::parse(&format!("{text}/{prefix}"))
    }

    /// The last address minus the first.
    fn span(&self) -> u128 {
        let free = Self::bits(self.v6) - self.prefix;
        u128::MAX.checked_shr(128 - free).unwrap_or(0)
    }

    fn last(&self) -> u128 {
        self.first | self.span()
    }

    fn holds(&self, other: &Self) -> bool {
        self.v6 == other.v6 && self.first <= other.first && other.last() <= self.last()
    }

    fn text(v6: bool, address: u128) -> String {
        match u32::try_from(address) {
            Ok(v4) if !v6 => std::net::Ipv4Addr::from(v4).to_string(),
            _ => std::net::Ipv6Addr::from(address).to_string(),
        }
    }
}

fn is_valid(args: &[Value]) -> Option<Value> {
    Some(Value::Bool(one(args).and_then(Block::parse).is_some()))
}

fn expand(args: &[Value]) -> Option<Value> {
    let block = Block::parse(one(args)?)?;
    let most = u128::try_from(MAX_ITEMS).ok()?;
    if block.span() >= most {
        return None;
    }
    let all = (0..=block.span()).map(|i| Value::string(Block::text(block.v6, block.first + i)));
    Some(Value::Set(all.collect()))
}

/// The fewest blocks that cover the same addresses.
fn merge(args: &[Value]) -> Option<Value> {
    let [blocks] = args else { return None };
    let parse = |item: &&Value| {
        let text = item.as_str()?;
        Block::parse(text).or_else(|| Block::classful(text))
    };
    let mut ranges: Vec<(bool, u128, u128)> = blocks
        .items()?
        .iter()
        .map(|item| parse(item).map(|block| (block.v6, block.first, block.last())))
        .collect::<Option<_>>()?;
    ranges.sort_unstable();
    let mut merged: Vec<(bool, u128, u128)> = Vec::new();
    for (v6, first, last) in ranges {
        match merged.last_mut() {
            Some((of, _, end)) if *of == v6 && first <= end.saturating_add(1) => {
                *end = last.max(*end)
            }
            _ => merged.push((v6, first, last)),
        }
    }
    let mut out = BTreeSet::new();
    for (v6, first, last) in merged {
        cover(v6, first, last, &mut out);
    }
    Some(Value::Set(out))
}

/// Adds the blocks of a range, each as large as its first address and the range's end allow.
fn cover(v6: bool, mut first: u128, last: u128, out: &mut BTreeSet<Value>) {
    let bits = Block::bits(v6);
    loop {
        let aligned = first.trailing_zeros().min(bits);
        let mut prefix = bits - aligned;
        let mut block = Block { v6, first, prefix };
        while block.last() > last {
            prefix += 1;
            block.prefix = prefix;
        }
        out.insert(Value::string(format!("{}/{prefix}", Block::text(v6, first))));
        if block.last() >= last {
            return;
        }
        first = block.last() + 1;
    }
}

fn contains_matches(args: &[Value]) -> Option<Value> {
    let [blocks, candidates] = args else { return None };
    let (blocks, candidates) = (entries(blocks)?, entries(candidates)?);
    let mut out = BTreeSet::new();
    for (key, block) in &blocks {
        let block = Block::parse_either(block)?;
        for (of, candidate) in &candidates {
            if block.holds(&Block::parse_either(candidate)?) {
                out.insert(Value::Array(vec![key.clone(), of.clone()]));
            }
        }
    }
    Some(Value::Set(out))
}

/// Texts with the keys by which they are told: the text itself, an index or a key.
fn entries(value: &Value) -> Option<Vec<(Value, &str)>> {
    /// A string, or an array that starts with one.
    fn text(value: &Value) -> Option<&str> {
        match value {
            Value::Array(items) => items.first()?.as_str(),
            other => other.as_str(),
        }
    }
    match value {
        Value::String(found) => Some(vec![(value.clone(), found)]),
        Value::Array(items) => items
            .iter()
            .enumerate()
            .map(|(i, item)| Some((Value::int(i64::try_from(i).ok()?), text(item)?)))
            .collect(),
        Value::Set(items) => items.iter().map(|item| Some((item.clone(), text(item)?))).collect(),
        Value::Object(members) => {
            members.iter().map(|(key, item)| Some((key.clone(), text(item)?))).collect()
        }
        _ => None,
    }
}
