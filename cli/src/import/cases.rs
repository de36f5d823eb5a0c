//! What a rule applies to, as a union of cases: a case is a conjunction of atoms, an atom a condition or
//! a set of tools. Cases can be joined, compared and taken out of each other.
//!
//! A condition on an argument holds only where there is one: beside a negative one stands that there is,
//! because Aegis lets negative conditions of rules that deny hold of what is absent too.

use aegis_core::policy::{Condition, Operator};
use serde_json::{Value, json};

/// One condition of a case.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Atom {
    /// The tool is named by one of these globs.
    Tools(Vec<String>),
    /// It is named by none of them.
    NotTools(Vec<String>),
    /// Anything else.
    When(Condition),
}

/// Atoms that must all hold.
pub(crate) type Case = Vec<Atom>;

/// A condition on a field of the input document.
pub(crate) fn field(field: &str, operator: Operator, value: impl Into<Value>) -> Atom {
    let (field, value) = (Some(field.to_owned()), Some(value.into()));
    Atom::When(Condition { argument: None, field, operator, value })
}

/// A condition on an argument.
pub(crate) fn argument(path: &str, operator: Operator, value: impl Into<Value>) -> Atom {
    let (argument, value) = (Some(path.to_owned()), Some(value.into()));
    Atom::When(Condition { argument, field: None, operator, value })
}

/// Whether an operator holds of what is not there, in rules that deny or ask.
const fn is_negative(operator: Operator) -> bool {
    matches!(
        operator,
        Operator::NotEquals
            | Operator::NotIn
            | Operator::NotMatches
            | Operator::NotContains
            | Operator::NotWithin
    )
}

/// A condition on an argument that holds only where there is one, whatever the rule's effect.
pub(crate) fn stated(path: &str, operator: Operator, value: impl Into<Value>) -> Case {
    let mut case = vec![argument(path, operator, value)];
    if is_negative(operator) {
        case.push(presence(path, true));
    }
    case
}

/// There is, or is not, such an argument.
pub(crate) fn presence(path: &str, there: bool) -> Atom {
    let operator = if there { Operator::Exists } else { Operator::Absent };
    Atom::When(Condition { argument: Some(path.to_owned()), field: None, operator, value: None })
}

/// An argument of this name, as a path.
pub(crate) fn member(name: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
    match name.chars().all(plain) && !name.is_empty() {
        true => format!("$.{name}"),
        false => format!("$['{}']", name.replace('\\', "\\\\").replace('\'', "\\'")),
    }
}

/// A text as a regular expression that matches nothing else.
pub(crate) fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            out.push('\\');
        }
        out.push(c);
    }
    out
}

/// A glob over names as a regular expression.
pub(crate) fn glob_pattern(glob: &str) -> String {
    glob.split('*').map(quoted).collect::<Vec<_>>().join(".*")
}

fn is_literal(glob: &str) -> bool {
    !glob.contains(['*', '?', '[', '{', '\\'])
}

/// Whether a name is one that a glob of `*` stands for.
fn covers(glob: &str, name: &str) -> bool {
    let mut parts = glob.split('*');
    let first = parts.next().unwrap_or_default();
    let Some(mut rest) = name.strip_prefix(first) else { return false };
    let mut parts: Vec<&str> = parts.collect();
    let Some(last) = parts.pop() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = rest.get(at + part.len()..).unwrap_or_default(),
            None => return false,
        }
    }
    rest.ends_with(last)
}

/// Whether two globs can stand for one name; two that hold wildcards are taken to.
fn meet(a: &str, b: &str) -> bool {
    match (is_literal(a), is_literal(b)) {
        (true, true) => a == b,
        (true, false) => covers(b, a),
        (false, true) => covers(a, b),
        (false, false) => true,
    }
}

/// What is left where an atom does not hold; any of these. `None` where that cannot be said.
fn negated(atom: &Atom) -> Option<Vec<Case>> {
    let condition = match atom {
        Atom::Tools(globs) => return Some(vec![vec![Atom::NotTools(globs.clone())]]),
        Atom::NotTools(globs) => return Some(vec![vec![Atom::Tools(globs.clone())]]),
        Atom::When(condition) => condition,
    };
    let operator = match condition.operator {
        Operator::Equals => Operator::NotEquals,
        Operator::NotEquals => Operator::Equals,
        Operator::In => Operator::NotIn,
        Operator::NotIn => Operator::In,
        Operator::Matches => Operator::NotMatches,
        Operator::NotMatches => Operator::Matches,
        Operator::Contains => Operator::NotContains,
        Operator::NotContains => Operator::Contains,
        Operator::Within => Operator::NotWithin,
        Operator::NotWithin => Operator::Within,
        Operator::LessThan => Operator::AtLeast,
        Operator::AtLeast => Operator::LessThan,
        Operator::AtMost => Operator::GreaterThan,
        Operator::GreaterThan => Operator::AtMost,
        Operator::Exists => Operator::Absent,
        Operator::Absent => Operator::Exists,
        Operator::StartsWith
        | Operator::EndsWith
        | Operator::Glob
        | Operator::HasWord
        | Operator::LongerThan => return None,
    };
    let single = |path: &str| !path.contains("..") && !path.contains('*');
    let opposite = Atom::When(Condition { operator, ..condition.clone() });
    let Some(path) = &condition.argument else { return Some(vec![vec![opposite]]) };
    if !single(path) {
        // Where one of several values fails a condition, another may meet it.
        return None;
    }
    if matches!(operator, Operator::Exists | Operator::Absent) {
        return Some(vec![vec![opposite]]);
    }
    let mut there = vec![opposite];
    if is_negative(operator) {
        there.push(presence(path, true));
    }
    Some(vec![there, vec![presence(path, false)]])
}

/// A case with one more atom; `None` where the two cannot hold together.
fn and(case: &Case, atom: Atom) -> Option<Case> {
    let mut out = case.clone();
    if out.contains(&atom) {
        return Some(out);
    }
    if let Some([only]) = negated(&atom).as_deref()
        && only.iter().all(|atom| out.contains(atom))
    {
        return None;
    }
    let said = match &atom {
        Atom::NotTools(excluded) => exclude(&mut out, excluded)?,
        Atom::Tools(wanted) => include(&mut out, wanted)?,
        Atom::When(condition) => is_said(&out, condition)?,
    };
    if !said {
        out.push(atom);
    }
    Some(out)
}

/// Takes tools out of those that a case names; whether that says it all. `None` where none is left.
fn exclude(case: &mut Case, excluded: &[String]) -> Option<bool> {
    if excluded.iter().any(|glob| glob == "*") {
        return None;
    }
    let is_out = |name: &String| {
        excluded.contains(name)
            || is_literal(name) && excluded.iter().any(|glob| covers(glob, name))
    };
    for known in case {
        let Atom::Tools(globs) = known else { continue };
        globs.retain(|name| !is_out(name));
        if globs.is_empty() {
            return None;
        }
        if !globs.iter().any(|name| excluded.iter().any(|glob| meet(glob, name))) {
            return Some(true);
        }
    }
    Some(false)
}

/// Keeps of the tools that a case names those that are wanted; whether that says it all. `None` where
/// none is left.
fn include(case: &mut Case, wanted: &[String]) -> Option<bool> {
    let apart = |known: &Atom| match known {
        Atom::Tools(globs) => !globs.iter().any(|name| wanted.iter().any(|glob| meet(glob, name))),
        Atom::NotTools(globs) => wanted
            .iter()
            .all(|name| is_literal(name) && globs.iter().any(|glob| covers(glob, name))),
        Atom::When(_) => false,
    };
    if case.iter().any(apart) {
        return None;
    }
    let inside = |names: &[String], others: &[String]| {
        let covered = |name: &&String| others.iter().any(|glob| covers(glob, name));
        names
            .iter()
            .all(|name| is_literal(name))
            .then(|| names.iter().filter(covered).cloned().collect::<Vec<_>>())
    };
    for known in case {
        let Atom::Tools(globs) = known else { continue };
        if let Some(both) = inside(wanted, globs).or_else(|| inside(globs, wanted)) {
            *globs = both;
            return Some(true);
        }
    }
    Some(false)
}

/// Whether a case says already that there is an argument; `None` where it says the contrary.
fn is_said(case: &Case, condition: &Condition) -> Option<bool> {
    let of_same = |atom: &Atom| match atom {
        Atom::When(known) if known.argument.is_some() && known.argument == condition.argument => {
            Some(known.operator)
        }
        _ => None,
    };
    let known: Vec<Operator> = case.iter().filter_map(of_same).collect();
    // Every condition on an argument but that there is none holds only where there is one; a negative
    // one says so only beside another.
    let there = known.iter().any(|operator| *operator != Operator::Absent);
    let said = known.iter().any(|op| *op != Operator::Absent && !is_negative(*op));
    match condition.operator {
        Operator::Absent if there => None,
        Operator::Exists if said => Some(true),
        Operator::Absent => Some(false),
        _ if known.contains(&Operator::Absent) => None,
        _ => Some(false),
    }
}

/// Whether two cases surely have nothing in common.
pub(super) fn apart(a: &Case, b: &Case) -> bool {
    b.iter().try_fold(a.clone(), |case, atom| and(&case, atom.clone())).is_none()
}

/// What is left of a case outside another, as cases without overlap.
pub(super) fn without(case: &Case, other: &Case) -> Result<Vec<Case>, String> {
    if apart(case, other) {
        return Ok(vec![case.clone()]);
    }
    let mut left = Vec::new();
    let mut inside = Some(case.clone());
    for atom in other {
        let Some(here) = inside else { break };
        if here.contains(atom) {
            inside = Some(here);
            continue;
        }
        let outside = negated(atom)
            .ok_or("an earlier rule covers part of it by a condition that has no opposite")?;
        let all =
            |more: Case| more.into_iter().try_fold(here.clone(), |case, atom| and(&case, atom));
        left.extend(outside.into_iter().filter_map(all));
        inside = and(&here, atom.clone());
    }
    Ok(left)
}

/// The cases in which all of these hold, each any of its alternatives.
pub(crate) fn all_of(parts: Vec<Vec<Case>>) -> Vec<Case> {
    let mut cases: Vec<Case> = vec![Vec::new()];
    for alternatives in parts {
        let mut next = Vec::new();
        for case in &cases {
            for alternative in &alternatives {
                let mut all = Some(case.clone());
                for atom in alternative {
                    all = all.and_then(|case| and(&case, atom.clone()));
                }
                next.extend(all);
            }
        }
        cases = next;
    }
    cases
}

/// Any tool.
pub(crate) fn a_tool_call() -> Atom {
    field("action.kind", Operator::Equals, json!("tool_call"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_stand_for_names() {
        for (glob, name, expected) in [
            ("git_*", "git_log", true),
            ("git_*", "git", false),
            ("*", "", true),
            ("a*b*c", "aXbYc", true),
            ("a*b*c", "aXc", false),
            ("a", "a", true),
            ("a", "ab", false),
            ("*b", "ab", true),
        ] {
            assert_eq!(covers(glob, name), expected, "{glob} {name}");
        }
        assert_eq!(glob_pattern("a.b*"), r"a\.b.*");
        assert_eq!(member("a-b"), "$['a-b']");
    }

    #[test]
    fn alternatives_multiply_and_contradictions_vanish() {
        let there = |there| vec![presence("$.x", there)];
        let value = argument("$.x", Operator::NotMatches, "a");
        assert_eq!(and(&vec![value.clone()], presence("$.x", false)), None);
        assert_eq!(and(&there(false), value.clone()), None);
        let stated = stated("$.x", Operator::NotMatches, "a");
        assert_eq!(and(&vec![value], presence("$.x", true)), Some(stated));
        let cases = all_of(vec![vec![there(true), there(false)], vec![there(true)]]);
        assert_eq!(cases, [there(true)]);
    }
}
