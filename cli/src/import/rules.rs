//! Rules on the way from "the first that matches decides" to "deny overrides asking overrides allow".
//!
//! A rule of another system is a union of cases, a case a conjunction of atoms. A later rule speaks
//! only where no earlier one has: what an earlier, milder rule covers is taken out of the stricter one
//! ([`in_order`]), case by case. The result says in Aegis' order what the list said in its own.

use aegis_core::policy::{Effect, Mode, Obligation, RateLimit};

use super::cases::{Atom, Case, a_tool_call, apart, without};

/// The most cases of one rule: more is not readable, and a policy holds 64 rules.
pub(crate) const MAX_CASES: usize = 48;

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

#[cfg(test)]
mod tests {
    use aegis_core::policy::Operator;

    use super::{
        super::cases::{argument, presence, stated},
        *,
    };

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
}
