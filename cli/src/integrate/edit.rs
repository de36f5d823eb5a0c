//! Edits of a JSON file that somebody else wrote: a list gets an entry or loses one, and every other byte stays.

use std::ops::Range;

use aegis_protocol::json::edit;
use serde::Serialize as _;
use serde_json::{Map, Value};

/// The text with `item` at the end of the list that `path` leads to; what is missing of the path is made.
/// `None` where the path leads to something else than a list.
pub(super) fn append(text: &[u8], path: &[&str], item: &Value) -> Option<Vec<u8>> {
    let mut at = edit::root(text)?;
    for (depth, name) in path.iter().enumerate() {
        let members = edit::members(text, &at)?;
        match members.iter().find(|member| member.name == *name) {
            Some(member) => at = member.value.clone(),
            None => {
                let rest = path.get(depth + 1..)?;
                let value = nested(rest, Value::Array(vec![item.clone()]));
                let parts: Vec<_> = members.into_iter().map(|member| member.whole).collect();
                return add(text, &at, &parts, Some(name), &value);
            }
        }
    }
    let items = edit::items(text, &at)?;
    add(text, &at, &items, None, item)
}

/// The text with a member of the whole document, if it has none of that name.
pub(super) fn with_member(text: &[u8], name: &str, value: &Value) -> Option<Vec<u8>> {
    let root = edit::root(text)?;
    let members = edit::members(text, &root)?;
    if members.iter().any(|member| member.name == name) {
        return Some(text.to_vec());
    }
    let parts: Vec<_> = members.into_iter().map(|member| member.whole).collect();
    add(text, &root, &parts, Some(name), value)
}

fn nested(path: &[&str], innermost: Value) -> Value {
    path.iter()
        .rev()
        .fold(innermost, |inner, name| Value::Object(Map::from_iter([((*name).to_owned(), inner)])))
}

/// A part more, at the end of a list or an object, as its other parts are written.
fn add(
    text: &[u8],
    container: &Range<usize>,
    parts: &[Range<usize>],
    name: Option<&str>,
    value: &Value,
) -> Option<Vec<u8>> {
    let unit = unit(text);
    let part = |indent: &str| {
        let value = rendered(value, &unit, indent)?;
        Some(match name {
            Some(name) => format!("{}: {value}", Value::String(name.into())),
            None => value,
        })
    };
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else {
        let outer = indent_of(text, container.start);
        let inner = format!("{outer}{unit}");
        let (open, close) = if name.is_some() { ('{', '}') } else { ('[', ']') };
        let whole = format!("{open}\n{inner}{}\n{outer}{close}", part(&inner)?);
        return edit::splice(text, &[(container.clone(), whole.into_bytes())]);
    };
    let before = std::str::from_utf8(text.get(container.start + 1..first.start)?).ok()?;
    let added = match before.rsplit_once('\n') {
        Some((_, indent)) => format!(",\n{indent}{}", part(indent)?),
        None => format!(", {}", part(&indent_of(text, container.start))?),
    };
    edit::splice(text, &[(last.end..last.end, added.into_bytes())])
}

/// A value over several lines, those after the first at `indent`.
fn rendered(value: &Value, unit: &str, indent: &str) -> Option<String> {
    let mut out = Vec::new();
    let format = serde_json::ser::PrettyFormatter::with_indent(unit.as_bytes());
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut out, format)).ok()?;
    Some(String::from_utf8(out).ok()?.replace('\n', &format!("\n{indent}")))
}

/// What one level is indented by: as in the first line that is.
fn unit(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let indented = text.lines().find_map(|line| {
        let indent = line.len() - line.trim_start_matches([' ', '\t']).len();
        (indent > 0).then(|| line.chars().take(indent).collect::<String>())
    });
    indented.unwrap_or_else(|| "  ".into())
}

/// How the line is indented that holds the byte at `at`.
fn indent_of(text: &[u8], at: usize) -> String {
    let before = text.get(..at).unwrap_or_default();
    let start = before.iter().rposition(|byte| *byte == b'\n').map_or(0, |newline| newline + 1);
    let line = text.get(start..).unwrap_or_default();
    line.iter()
        .take_while(|byte| matches!(byte, b' ' | b'\t'))
        .map(|byte| char::from(*byte))
        .collect()
}

/// The text without those items of the list at `path` for which `ours` holds, and without what is then empty.
pub(super) fn remove(text: &[u8], path: &[&str], ours: impl Fn(&Value) -> bool) -> Option<Vec<u8>> {
    let list = edit::find(text, path)?;
    let items = edit::items(text, &list)?;
    let mut edits = Vec::new();
    let mut gone = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let value: Value = serde_json::from_slice(text.get(item.clone())?).ok()?;
        if ours(&value) {
            gone.push(index);
        } else if let Some(inner) = without_inner(text, item, &value, &ours) {
            // Somebody has put hooks of their own beside ours: those stay.
            edits.push(inner);
        }
    }
    if gone.is_empty() {
        return edit::splice(text, &edits);
    }
    if gone.len() == items.len() {
        return remove_member(text, path);
    }
    let mut text = edit::splice(text, &edits)?;
    let list = edit::find(&text, path)?;
    let items = edit::items(&text, &list)?;
    let kept = edit::retain(&text, &list, &items, |index| !gone.contains(&index))?;
    text = edit::splice(&text, &[(list, kept)])?;
    Some(text)
}

fn without_inner(
    text: &[u8],
    item: &Range<usize>,
    value: &Value,
    ours: &impl Fn(&Value) -> bool,
) -> Option<(Range<usize>, Vec<u8>)> {
    let hooks = value.get("hooks")?.as_array()?;
    let keep: Vec<bool> = hooks.iter().map(|hook| !ours(hook)).collect();
    if keep.iter().all(|keep| *keep) {
        return None;
    }
    let member = edit::members(text, item)?.into_iter().find(|member| member.name == "hooks")?;
    let parts = edit::items(text, &member.value)?;
    let kept = edit::retain(text, &member.value, &parts, |index| keep.get(index) == Some(&true))?;
    Some((member.value, kept))
}

/// The text without the member at `path`, nor objects on the way that are then empty.
fn remove_member(text: &[u8], path: &[&str]) -> Option<Vec<u8>> {
    let (name, outer) = path.split_last()?;
    let object = edit::find(text, outer)?;
    let members = edit::members(text, &object)?;
    if members.len() == 1 {
        if outer.is_empty() {
            return edit::splice(text, &[(object, b"{}".to_vec())]);
        }
        return remove_member(text, outer);
    }
    let parts: Vec<_> = members.iter().map(|member| member.whole.clone()).collect();
    let keep = |index: usize| members.get(index).is_some_and(|member| member.name != *name);
    let kept = edit::retain(text, &object, &parts, keep)?;
    edit::splice(text, &[(object, kept)])
}
