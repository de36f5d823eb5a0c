//! Raw Rego: what a policy's own module may say, and how it is wrapped.
//!
//! The module's package may be anything. It may define
//!
//! - `allow`: a boolean;
//! - `deny` and `require_approval`: a boolean, or a set or array of reasons (strings);
//! - `obligations`: a set or array of `{"kind": …, "target": …}`, as in declarative rules; where the
//!   module denies, those that redact arguments count;
//! - `visible`: a boolean: whether a list may show the thing. Without it, a list shows what the
//!   module's verdict allows for an action without arguments.
//!
//! Anything else of these names is a result that cannot be read, and that denies. `regex.match` is
//! answered by the host, which compiles a pattern once; the module's own text is not changed in
//! meaning: text that is not UTF-8 is matched as OPA matches it. An error of a builtin is undefined, as
//! in OPA unless it is told to be strict: modules rely on it, and the host sees the errors only of those
//! builtins that it answers itself. References to `input` are found in the parsed module, so that only what it reads is
//! written; a module that takes `input` as a whole, or replaces it, gets the whole document.

use std::collections::BTreeSet;

use serde_json::Value;

use crate::projection::Projection;

/// The names that a module may define.
const OUTPUTS: [&str; 5] = ["allow", "deny", "require_approval", "obligations", "visible"];

/// The package of the wrapper.
pub(crate) const WRAPPER: &str = "aegis.wrapper";

/// What is known of a module before it is compiled.
#[derive(Debug)]
pub(crate) struct RawModule {
    /// The module with `regex.match` handed to the host.
    pub(crate) module: String,
    /// The module that collects its outputs.
    pub(crate) wrapper: String,
    /// Whether it defines `visible`.
    pub(crate) has_visible: bool,
    /// What it reads.
    pub(crate) projection: Projection,
}

/// Reads a module from its text and its parsed form.
///
/// # Errors
/// What is wrong with it, for people.
pub(crate) fn analyse(rego: &str, ast: &Value) -> Result<RawModule, String> {
    let package = package(ast).ok_or("the module has no package")?;
    if package.first().is_some_and(|first| first == "aegis") {
        return Err("the package `aegis` is Aegis' own; choose another".to_owned());
    }
    let defined = defined_rules(ast);
    let outputs: Vec<&str> = OUTPUTS.into_iter().filter(|name| defined.contains(*name)).collect();
    if !outputs.iter().any(|name| matches!(*name, "allow" | "deny" | "require_approval")) {
        return Err("the module defines none of `allow`, `deny` and `require_approval`, so it would do nothing".to_owned());
    }
    let data: String =
        package.iter().map(|part| format!("[{}]", Value::from(part.as_str()))).collect();
    let mut wrapper = format!("package {WRAPPER}\n");
    for name in &outputs {
        if *name == "visible" {
            wrapper.push_str(&format!("visible := data{data}.visible\n"));
        } else {
            wrapper.push_str(&format!("verdict[\"{name}\"] := x if x := data{data}.{name}\n"));
        }
    }
    let mut walk = Walk::default();
    walk.visit(ast);
    let projection = if walk.whole { Projection::whole() } else { walk.projection };
    Ok(RawModule {
        module: answer_regexes(rego, &walk.regex_calls),
        wrapper,
        has_visible: outputs.contains(&"visible"),
        projection,
    })
}

fn package(ast: &Value) -> Option<Vec<String>> {
    let path = ast.get("package")?.get("path")?.as_array()?;
    path.iter().skip(1).map(|term| Some(term.get("value")?.as_str()?.to_owned())).collect()
}

fn defined_rules(ast: &Value) -> BTreeSet<String> {
    let rules = ast.get("rules").and_then(Value::as_array).into_iter().flatten();
    rules
        .filter_map(|rule| {
            let head = rule.get("head")?;
            let first =
                head.get("ref").and_then(|path| path.get(0)).and_then(|term| term.get("value"));
            first.or_else(|| head.get("name")).and_then(Value::as_str).map(str::to_owned)
        })
        .collect()
}

/// What a walk over the parsed module finds.
#[derive(Default)]
struct Walk {
    projection: Projection,
    whole: bool,
    /// Line and column, from 1, of each `regex.match`.
    regex_calls: Vec<(usize, usize)>,
}

impl Walk {
    fn visit(&mut self, node: &Value) {
        match node {
            Value::Array(items) => items.iter().for_each(|item| self.visit(item)),
            Value::Object(members) => {
                let kind = members.get("type").and_then(Value::as_str);
                let value = members.get("value");
                match (kind, value) {
                    (Some("ref"), Some(Value::Array(path))) => self.reference(node, path),
                    (Some("var"), Some(Value::String(name))) if name == "input" => {
                        self.whole = true
                    }
                    _ => members
                        .iter()
                        .filter(|(key, _)| *key != "location")
                        .for_each(|(_, child)| self.visit(child)),
                }
            }
            _ => {}
        }
    }

    fn reference(&mut self, node: &Value, path: &[Value]) {
        let constant = |term: &Value| {
            let is_string = term.get("type").and_then(Value::as_str) == Some("string");
            term.get("value").and_then(Value::as_str).filter(|_| is_string).map(str::to_owned)
        };
        let head = path.first().and_then(|term| term.get("value")).and_then(Value::as_str);
        let names: Vec<String> = path.iter().skip(1).map_while(constant).collect();
        if head == Some("regex")
            && names == ["match"]
            && let Some(at) = location(node).or_else(|| path.first().and_then(location))
        {
            self.regex_calls.push(at);
        }
        if head == Some("input") {
            self.projection.add(&names.iter().map(String::as_str).collect::<Vec<_>>());
        }
        // What stands in brackets may be a reference itself.
        path.iter().skip(1).for_each(|term| self.visit(term));
        if head.is_none() {
            path.iter().take(1).for_each(|term| self.visit(term));
        }
    }
}

fn location(node: &Value) -> Option<(usize, usize)> {
    let place = node.get("location")?;
    let part = |name| place.get(name)?.as_u64().and_then(|n| usize::try_from(n).ok());
    Some((part("row")?, part("col")?))
}

/// Replaces `regex.match` by `aegis.matches` at exactly these places, where it still stands so.
/// The line stays the same, so that later complaints name the right one.
fn answer_regexes(rego: &str, places: &[(usize, usize)]) -> String {
    const FROM: &str = "regex.match";
    const TO: &str = "aegis.matches";
    let mut lines: Vec<String> = rego.split('\n').map(str::to_owned).collect();
    let mut places: Vec<_> = places.to_vec();
    // From the end, so that what is still to be replaced does not move.
    places.sort_unstable();
    places.dedup();
    for (row, col) in places.into_iter().rev() {
        let Some(line) = row.checked_sub(1).and_then(|row| lines.get_mut(row)) else { continue };
        let at = col.saturating_sub(1);
        if line.get(at..).is_some_and(|rest| rest.starts_with(FROM)) {
            line.replace_range(at..at + FROM.len(), TO);
        }
    }
    lines.join("\n")
}
