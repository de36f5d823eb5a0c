//! JSON paths into arguments: the subset of RFC 9535 that a policy may use.
//!
//! `$`, `.name`, `['name']`, `[0]`, `[*]`, `.*` and `..name`. Filters, slices and negative indices
//! are refused.

/// One step of a path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A member.
    Name(String),
    /// An item.
    Index(u32),
    /// Every item or member.
    Wild,
    /// The member of this name of the value itself and of everything in it.
    Deep(String),
}

/// A path.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct JsonPath {
    /// Its steps from the root.
    pub steps: Vec<Step>,
}

impl JsonPath {
    /// Reads a path.
    ///
    /// # Errors
    /// When it is none of the subset; the error is for people.
    pub fn parse(text: &str) -> Result<Self, String> {
        let invalid = |what: &str| {
            format!(
                "`{text}` is not a JSON path Aegis knows: {what}; use `$`, `.name`, `['name']`, `[0]`, `[*]` and `..name`"
            )
        };
        let mut rest = text.strip_prefix('$').ok_or_else(|| invalid("it must start with `$`"))?;
        let mut steps = Vec::new();
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix("..") {
                let (name, after) = name(after);
                if name.is_empty() {
                    return Err(invalid("`..` needs a name"));
                }
                steps.push(Step::Deep(name.to_owned()));
                rest = after;
            } else if let Some(after) = rest.strip_prefix(".*") {
                steps.push(Step::Wild);
                rest = after;
            } else if let Some(after) = rest.strip_prefix('.') {
                let (name, after) = name(after);
                if name.is_empty() {
                    return Err(invalid("`.` needs a name"));
                }
                steps.push(Step::Name(name.to_owned()));
                rest = after;
            } else if let Some(after) = rest.strip_prefix('[') {
                let (step, after) = bracket(after)
                    .ok_or_else(|| invalid("a bracket is not closed or holds something else"))?;
                steps.push(step);
                rest = after;
            } else {
                return Err(invalid("a step must start with `.` or `[`"));
            }
        }
        Ok(Self { steps })
    }

    /// Whether it selects at most one value.
    #[must_use]
    pub fn is_single(&self) -> bool {
        self.steps.iter().all(|step| matches!(step, Step::Name(_) | Step::Index(_)))
    }

    /// All values it selects.
    #[must_use]
    pub fn select<'a>(&self, root: &'a serde_json::Value) -> Vec<&'a serde_json::Value> {
        let mut nodes = vec![root];
        for step in &self.steps {
            nodes = nodes.into_iter().flat_map(|node| children(node, step)).collect();
        }
        nodes
    }
}

fn children<'a>(node: &'a serde_json::Value, step: &Step) -> Vec<&'a serde_json::Value> {
    use serde_json::Value;
    match (step, node) {
        (Step::Name(name), Value::Object(members)) => members.get(name).into_iter().collect(),
        (Step::Index(i), Value::Array(items)) => {
            usize::try_from(*i).ok().and_then(|i| items.get(i)).into_iter().collect()
        }
        (Step::Wild, Value::Array(items)) => items.iter().collect(),
        (Step::Wild, Value::Object(members)) => members.values().collect(),
        (Step::Deep(name), _) => {
            let mut found = Vec::new();
            descend(node, name, &mut found);
            found
        }
        _ => Vec::new(),
    }
}

fn descend<'a>(node: &'a serde_json::Value, name: &str, found: &mut Vec<&'a serde_json::Value>) {
    use serde_json::Value;
    match node {
        Value::Object(members) => {
            found.extend(members.get(name));
            members.values().for_each(|child| descend(child, name, found));
        }
        Value::Array(items) => items.iter().for_each(|child| descend(child, name, found)),
        _ => {}
    }
}

fn name(text: &str) -> (&str, &str) {
    let end =
        text.find(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-'))).unwrap_or(text.len());
    text.split_at(end)
}

/// The step after `[`, and what follows `]`.
fn bracket(text: &str) -> Option<(Step, &str)> {
    if let Some(after) = text.strip_prefix("*]") {
        return Some((Step::Wild, after));
    }
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'));
    if let Some(quote) = quote {
        let mut out = String::new();
        let mut chars = text.char_indices().skip(1);
        while let Some((i, c)) = chars.next() {
            match c {
                '\\' => out
                    .push(chars.next().map(|(_, c)| c).filter(|c| matches!(c, '\\' | '\'' | '"'))?),
                c if c == quote => {
                    let after = text.get(i + 1..)?.strip_prefix(']')?;
                    return Some((Step::Name(out), after));
                }
                c => out.push(c),
            }
        }
        return None;
    }
    let (digits, after) = text.split_once(']')?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((Step::Index(digits.parse().ok()?), after))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_subset_selects_as_the_rfc_says() {
        let root = json!({ "a": { "b": [1, { "c": 2 }] }, "c": 3, "x y": 4 });
        let cases = [
            ("$.a.b[0]", json!([1])),
            ("$.a.b[*]", json!([1, { "c": 2 }])),
            ("$..c", json!([3, 2])),
            ("$['x y']", json!([4])),
            ("$.a.b[1].c", json!([2])),
            ("$.*", json!([{ "b": [1, { "c": 2 }] }, 3, 4])),
            ("$.missing", json!([])),
            ("$", json!([root])),
        ];
        for (path, expected) in cases {
            let selected = JsonPath::parse(path).unwrap();
            assert_eq!(json!(selected.select(&root)), expected, "{path}");
        }
    }

    #[test]
    fn everything_else_is_refused() {
        for path in [
            "",
            "a",
            "$a",
            "$.",
            "$..",
            "$[",
            "$[-1]",
            "$[1:2]",
            "$[?(@.x)]",
            "$['a",
            "$.a b",
            "$[]",
        ] {
            assert!(JsonPath::parse(path).is_err(), "{path}");
        }
    }
}
