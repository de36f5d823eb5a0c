//! Rules on the way from "the first that matches decides" to "deny overrides asking overrides allow".
//!
//! A rule of another system is a union of cases, a case a conjunction of atoms. A later rule speaks
//! only where no earlier one has: what an earlier, milder rule covers is taken out of the stricter one
//! ([`in_order`]), case by case. The result says in Aegis' order what the list said in its own.

use aegis_core::policy::{Condition, Effect, Mode, Obligation, Operator, RateLimit};
use serde_json::{Value, json};

/// The most cases of one rule: more is not readable, and a policy holds 64 rules.
pub(crate) const MAX_CASES: usize = 48;

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

/// A rule as it was read.
#[derive(Clone, Debug)]
pub(crate) struct Drafted {
    /// Its name; made unique when it is written.
    pub(crate) name: String,
    pub(crate) effect: Effect,
    /// Any of which makes it apply.
    pub(crate) cases: Vec<Case>,
    pub(crate) limits: Vec<RateLimit>,
    pub(crate) approvals: Option<u8>,
    pub(crate) obligations: Vec<Obligation>,
    pub(crate) reason: Option<String>,
    pub(crate) mode: Mode,
    /// Which rule of the file it is, where that matters.
    pub(crate) origin: usize,
}

impl Drafted {
    pub(crate) fn new(name: impl Into<String>, effect: Effect, cases: Vec<Case>) -> Self {
        Self {
            name: name.into(),
            effect,
            cases,
            limits: Vec::new(),
            approvals: None,
            obligations: Vec::new(),
            reason: None,
            mode: Mode::Enforce,
            origin: usize::MAX,
        }
    }

    fn is_limited(&self) -> bool {
        !self.limits.is_empty()
    }
}

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
    match &atom {
        Atom::NotTools(excluded) => {
            for known in &mut out {
                let Atom::Tools(globs) = known else { continue };
                globs.retain(|name| {
                    !(is_literal(name) && excluded.iter().any(|glob| covers(glob, name)))
                        && !excluded.contains(name)
                });
                if globs.is_empty() || excluded.iter().any(|glob| glob == "*") {
                    return None;
                }
                if !globs.iter().any(|name| excluded.iter().any(|glob| meet(glob, name))) {
                    return Some(out);
                }
            }
            if excluded.iter().any(|glob| glob == "*") {
                return None;
            }
        }
        Atom::Tools(wanted) => {
            let apart = |known: &Atom| match known {
                Atom::Tools(globs) => {
                    !globs.iter().any(|name| wanted.iter().any(|glob| meet(glob, name)))
                }
                Atom::NotTools(globs) => wanted
                    .iter()
                    .all(|name| is_literal(name) && globs.iter().any(|glob| covers(glob, name))),
                Atom::When(_) => false,
            };
            if out.iter().any(apart) {
                return None;
            }
            for known in &mut out {
                let Atom::Tools(globs) = known else { continue };
                let inside = |names: &[String], others: &[String]| {
                    names.iter().all(|name| is_literal(name)).then(|| {
                        let covered = |name: &&String| others.iter().any(|glob| covers(glob, name));
                        names.iter().filter(covered).cloned().collect::<Vec<_>>()
                    })
                };
                if let Some(both) = inside(wanted, globs).or_else(|| inside(globs, wanted)) {
                    *globs = both;
                    return Some(out);
                }
            }
        }
        Atom::When(condition) => {
            let of_same = |known: &Condition| {
                known.argument.is_some() && known.argument == condition.argument
            };
            let known: Vec<Operator> = out
                .iter()
                .filter_map(|atom| match atom {
                    Atom::When(known) if of_same(known) => Some(known.operator),
                    _ => None,
                })
                .collect();
            // Every condition on an argument but that there is none holds only where there is one.
            let there = known.iter().any(|operator| *operator != Operator::Absent);
            // A negative one says so only beside another.
            let said = known.iter().any(|op| *op != Operator::Absent && !is_negative(*op));
            match condition.operator {
                Operator::Absent if there => return None,
                Operator::Exists if said => return Some(out),
                Operator::Absent => {}
                _ if known.contains(&Operator::Absent) => return None,
                _ => {}
            }
        }
    }
    out.push(atom);
    Some(out)
}

/// Whether a rule denies every call of a tool, which Aegis does where nothing allows it.
pub(crate) fn is_catch_all(rule: &Drafted) -> bool {
    let all = |case: &Case| {
        case.iter().all(|atom| match atom {
            Atom::Tools(globs) => globs.iter().any(|glob| glob == "*"),
            other => *other == a_tool_call(),
        })
    };
    rule.effect == Effect::Deny && rule.cases.iter().any(all)
}

/// Whether two cases surely have nothing in common.
fn apart(a: &Case, b: &Case) -> bool {
    b.iter().try_fold(a.clone(), |case, atom| and(&case, atom.clone())).is_none()
}

/// What is left of a case outside another, as cases without overlap.
fn without(case: &Case, other: &Case) -> Result<Vec<Case>, String> {
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

/// Takes out of each rule what earlier rules have decided otherwise, where Aegis' own order would not.
/// Rules for which that cannot be said are left out of the first list; the second has their numbers,
/// and why.
pub(crate) fn in_order(rules: Vec<Drafted>) -> (Vec<Drafted>, Vec<(usize, String)>) {
    let mut done: Vec<Drafted> = Vec::new();
    let mut failed = Vec::new();
    let originals = rules.clone();
    for (number, mut rule) in rules.into_iter().enumerate() {
        let mut cases = std::mem::take(&mut rule.cases);
        let mut problem = None;
        for earlier in originals.iter().take(number) {
            // Stricter ones override anyhow. A limit that is not this call's must not count for it.
            let milder = earlier.effect < rule.effect;
            let limited = earlier.effect == Effect::Allow && rule.is_limited();
            let asks = earlier.effect == rule.effect && earlier.approvals != rule.approvals;
            if earlier.mode != rule.mode || !(milder || limited || asks) {
                continue;
            }
            for other in &earlier.cases {
                let mut left = Vec::new();
                for case in &cases {
                    match without(case, other) {
                        Ok(more) => left.extend(more),
                        Err(why) => problem = Some(why),
                    }
                }
                cases = left;
                if cases.len() > MAX_CASES {
                    problem = Some("earlier rules cut it into too many pieces".to_owned());
                    cases.clear();
                }
            }
        }
        match problem {
            Some(why) => failed.push((number, why)),
            None => {
                rule.cases = cases;
                done.push(rule);
            }
        }
    }
    (done, failed)
}

/// A limited rule of several cases as one: a limit counts for the rule that it stands on, so the cases
/// become one rule on what they share, and a ban of what they leave out of that. `None` where they share
/// no tool, where another rule allows some of it, or where too many pieces are left.
pub(crate) fn with_one_limit(rule: &Drafted, others: &[Drafted]) -> Option<(Drafted, Drafted)> {
    let first = rule.cases.first()?;
    let shared: Case = first
        .iter()
        .filter(|atom| rule.cases.iter().all(|case| case.contains(atom)))
        .cloned()
        .collect();
    let on_tools = shared.iter().any(|atom| matches!(atom, Atom::Tools(_)));
    let allowed_elsewhere = others
        .iter()
        .filter(|other| other.origin != rule.origin && other.effect != Effect::Deny)
        .any(|other| other.cases.iter().any(|case| !apart(&shared, case)));
    if !on_tools || allowed_elsewhere {
        return None;
    }
    let mut left = vec![shared.clone()];
    for case in &rule.cases {
        let mut next = Vec::new();
        for piece in &left {
            next.extend(without(piece, case).ok()?);
        }
        left = next;
        if left.len() > MAX_CASES / 2 {
            return None;
        }
    }
    let mut ban = Drafted::new(format!("{} otherwise", rule.name), Effect::Deny, left);
    ban.mode = rule.mode;
    Some((Drafted { cases: vec![shared], ..rule.clone() }, ban))
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

    fn tools(names: &[&str]) -> Atom {
        Atom::Tools(names.iter().map(|name| (*name).to_owned()).collect())
    }

    fn rule(effect: Effect, cases: Vec<Case>) -> Drafted {
        Drafted::new("r", effect, cases)
    }

    #[test]
    fn an_exception_before_a_ban_is_taken_out_of_it() {
        let list = vec![
            rule(Effect::Allow, vec![vec![tools(&["read_file"])]]),
            rule(Effect::Deny, vec![vec![tools(&["*"])]]),
        ];
        let (rules, failed) = in_order(list);
        assert!(failed.is_empty());
        assert_eq!(rules[1].cases, [vec![tools(&["*"]), Atom::NotTools(vec!["read_file".into()])]]);
    }

    #[test]
    fn a_ban_before_an_exception_needs_nothing() {
        let list = vec![
            rule(Effect::Deny, vec![vec![tools(&["rm"])]]),
            rule(Effect::Allow, vec![vec![tools(&["*"])]]),
        ];
        assert_eq!(in_order(list).0[1].cases, [vec![tools(&["*"])]]);
    }

    #[test]
    fn a_conditional_exception_leaves_the_rest_banned() {
        let path = argument("$.path", Operator::Within, "/app");
        let list = vec![
            rule(Effect::Allow, vec![vec![tools(&["read"]), path]]),
            rule(Effect::Deny, vec![vec![tools(&["read", "write"])]]),
        ];
        let cases = in_order(list).0[1].cases.clone();
        assert_eq!(
            cases,
            [
                vec![tools(&["write"])],
                [vec![tools(&["read"])], stated("$.path", Operator::NotWithin, "/app")].concat(),
                vec![tools(&["read"]), presence("$.path", false)],
            ]
        );
    }

    #[test]
    fn what_has_no_opposite_is_told() {
        let deep = argument("$..path", Operator::Matches, "x");
        let list = vec![
            rule(Effect::Allow, vec![vec![deep]]),
            rule(Effect::Deny, vec![vec![tools(&["a"])]]),
        ];
        let (rules, failed) = in_order(list);
        assert_eq!((rules.len(), failed[0].0), (1, 1));
    }

    #[test]
    fn a_limit_is_counted_once_for_all_cases_of_its_rule() {
        let present = stated("$.sql", Operator::NotMatches, "drop");
        let absent = vec![presence("$.sql", false)];
        let with = |case: &Case| [vec![tools(&["query"])], case.clone()].concat();
        let query = rule(Effect::Allow, vec![with(&present), with(&absent)]);
        let (one, ban) = with_one_limit(&query, &[]).unwrap();
        assert_eq!(one.cases, [vec![tools(&["query"])]]);
        let matching = argument("$.sql", Operator::Matches, "drop");
        assert_eq!(ban.cases, [vec![tools(&["query"]), matching]]);
        let mut other = rule(Effect::Allow, vec![vec![tools(&["*"])]]);
        other.origin = 1;
        assert!(with_one_limit(&query, &[other]).is_none(), "the ban would take its calls too");
    }

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
