//! JSON documents: patches, and writing with options.

use super::Function;
use crate::value::Value;

pub(super) const TABLE: &[(&str, Function)] =
    &[("json.patch", patch), ("json.marshal_with_options", marshal_with_options)];

/// RFC 6902, on Rego values; all operations or none.
fn patch(args: &[Value]) -> Option<Value> {
    let [document, Value::Array(operations)] = args else { return None };
    let mut document = document.clone();
    for operation in operations {
        let name = operation.member("op")?.as_str()?;
        let path = pointer(operation.member("path")?)?;
        match name {
            "add" => add(&mut document, &path, operation.member("value")?.clone())?,
            "remove" => {
                remove(&mut document, &path)?;
            }
            "replace" => {
                remove(&mut document, &path)?;
                add(&mut document, &path, operation.member("value")?.clone())?;
            }
            "move" => {
                let from = pointer(operation.member("from")?)?;
                let value = remove(&mut document, &from)?;
                add(&mut document, &path, value)?;
            }
            "copy" => {
                let from = pointer(operation.member("from")?)?;
                let value = get(&document, &from)?.clone();
                add(&mut document, &path, value)?;
            }
            "test" => {
                if get(&document, &path)? != operation.member("value")? {
                    return None;
                }
            }
            _ => return None,
        }
    }
    Some(document)
}

/// A pointer as text or as an array of keys.
fn pointer(value: &Value) -> Option<Vec<Value>> {
    match value {
        Value::String(text) => {
            if text.is_empty() {
                return Some(Vec::new());
            }
            let text = text.strip_prefix('/').unwrap_or(text);
            let part = |part: &str| Value::string(part.replace("~1", "/").replace("~0", "~"));
            Some(text.split('/').map(part).collect())
        }
        Value::Array(parts) => Some(parts.clone()),
        _ => None,
    }
}

/// An index into an array; `-` and the length are one past the end.
fn index(key: &Value, len: usize) -> Option<usize> {
    match key {
        Value::String(text) if text == "-" => Some(len),
        Value::String(text) => {
            let canonical = text == "0" || !text.starts_with(['0', '+', '-']);
            text.parse().ok().filter(|_| canonical)
        }
        other => usize::try_from(other.as_i64()?).ok(),
    }
}

fn get<'a>(document: &'a Value, path: &[Value]) -> Option<&'a Value> {
    let Some((key, rest)) = path.split_first() else { return Some(document) };
    let child = match document {
        Value::Object(members) => members.get(key)?,
        Value::Array(items) => items.get(index(key, items.len())?)?,
        Value::Set(items) => items.get(key)?,
        _ => return None,
    };
    get(child, rest)
}

fn add(document: &mut Value, path: &[Value], value: Value) -> Option<()> {
    let Some((key, rest)) = path.split_first() else {
        *document = value;
        return Some(());
    };
    match (document, rest.is_empty()) {
        (Value::Object(members), true) => {
            members.insert(key.clone(), value);
            Some(())
        }
        (Value::Object(members), false) => add(members.get_mut(key)?, rest, value),
        (Value::Array(items), true) => {
            let at = index(key, items.len()).filter(|at| *at <= items.len())?;
            items.insert(at, value);
            Some(())
        }
        (Value::Array(items), false) => {
            let at = index(key, items.len())?;
            add(items.get_mut(at)?, rest, value)
        }
        (Value::Set(items), true) => {
            if *key != value {
                return None;
            }
            items.insert(value);
            Some(())
        }
        (Value::Set(items), false) => {
            let mut child = items.take(key)?;
            add(&mut child, rest, value)?;
            items.insert(child);
            Some(())
        }
        _ => None,
    }
}

fn remove(document: &mut Value, path: &[Value]) -> Option<Value> {
    let Some((key, rest)) = path.split_first() else {
        return Some(std::mem::replace(document, Value::Null));
    };
    match (document, rest.is_empty()) {
        (Value::Object(members), true) => members.remove(key),
        (Value::Object(members), false) => remove(members.get_mut(key)?, rest),
        (Value::Array(items), true) => {
            let at = index(key, items.len()).filter(|at| *at < items.len())?;
            Some(items.remove(at))
        }
        (Value::Array(items), false) => {
            let at = index(key, items.len())?;
            remove(items.get_mut(at)?, rest)
        }
        (Value::Set(items), true) => items.take(key),
        (Value::Set(items), false) => {
            let mut child = items.take(key)?;
            let removed = remove(&mut child, rest)?;
            items.insert(child);
            Some(removed)
        }
        _ => None,
    }
}

fn marshal_with_options(args: &[Value]) -> Option<Value> {
    let [value, options] = args else { return None };
    let Value::Object(members) = options else { return None };
    let known = ["pretty", "prefix", "indent"];
    if members.keys().any(|key| !key.as_str().is_some_and(|key| known.contains(&key))) {
        return None;
    }
    let text = |name: &str, default: &str| match options.member(name) {
        None => Some(default.to_owned()),
        Some(value) => value.as_str().map(str::to_owned),
    };
    let (prefix, indent) = (text("prefix", "")?, text("indent", "\t")?);
    let pretty = match options.member("pretty") {
        Some(Value::Bool(pretty)) => *pretty,
        Some(_) => return None,
        None => options.member("prefix").is_some() || options.member("indent").is_some(),
    };
    if !pretty {
        return Some(Value::String(value.to_json()));
    }
    let mut out = prefix.clone();
    indented(value, &format!("\n{prefix}"), &indent, &mut out);
    Some(Value::String(out))
}

fn indented(value: &Value, line: &str, indent: &str, out: &mut String) {
    let inner = format!("{line}{indent}");
    let mut list = |open: char, close: char, items: Vec<(Option<String>, &Value)>| {
        if items.is_empty() {
            out.extend([open, close]);
            return;
        }
        out.push(open);
        for (i, (key, item)) in items.into_iter().enumerate() {
            if i > 0 {
                out.push(',');
            }
            out.push_str(&inner);
            if let Some(key) = key {
                out.push_str(&key);
                out.push_str(": ");
            }
            indented(item, &inner, indent, out);
        }
        out.push_str(line);
        out.push(close);
    };
    match value {
        Value::Array(items) => list('[', ']', items.iter().map(|item| (None, item)).collect()),
        Value::Set(items) => list('[', ']', items.iter().map(|item| (None, item)).collect()),
        Value::Object(members) => {
            let member = |(key, item)| (Some(Value::to_json(key)), item);
            list('{', '}', members.iter().map(member).collect());
        }
        other => out.push_str(&other.to_json()),
    }
}
