//! Declarative rules in Rego.
//!
//! One package a policy, with two entry points. `verdict` is the set of the indices of the rules
//! that apply. `visible` is the same for a list, where the arguments are not known yet: conditions
//! on arguments count as met in `allow` and as unmet in `deny` and `require_approval`, so a list
//! shows what may be allowed. Everything else about a rule (effect, reason, obligations, rate limit)
//! stays with the host, which maps the indices back.
//!
//! Refused, with the rule and the condition named: whatever could never apply or has no meaning.

use std::collections::BTreeSet;

use aegis_core::policy::{Effect, Obligation, ObligationKind, PolicySpec, Rule};

use crate::{
    condition,
    json_path::JsonPath,
    predicate::{Kind, Predicate},
    projection::Projection,
};

/// The most rules of one policy: its verdict is a set of 64 bits.
const MAX_RULES: usize = 64;

/// Why rules cannot be translated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TranslateError {
    /// The policy as a whole.
    #[error("{0}")]
    Policy(String),
    /// One rule.
    #[error("rule `{rule}`: {message}")]
    Rule {
        /// Its name.
        rule: String,
        /// What is wrong, and what to do.
        message: String,
    },
    /// One condition of a rule.
    #[error("rule `{rule}`, condition {condition}: {message}")]
    Condition {
        /// The rule's name.
        rule: String,
        /// Which, counted from 1.
        condition: usize,
        /// What is wrong, and what to do.
        message: String,
    },
}

/// The rules of a policy in Rego.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Translation {
    /// The module's text after its `package` line.
    pub body: String,
    /// Whether `visible` differs from `verdict` and is defined.
    pub has_visible: bool,
    /// What `verdict` reads.
    pub projection: Projection,
}

/// Checks all of a policy and translates its declarative rules.
///
/// # Errors
/// The first thing that is wrong.
pub fn translate(spec: &PolicySpec) -> Result<Translation, TranslateError> {
    check_policy(spec)?;
    let mut projection = Projection::flat();
    let mut verdict = Vec::new();
    let mut visible = Vec::new();
    let mut helpers = Vec::new();
    let has_visible =
        spec.rules.iter().any(|rule| rule.when.iter().any(condition::reads_arguments));
    for (i, rule) in spec.rules.iter().enumerate() {
        check_rule(rule)?;
        let mut parts = Vec::new();
        parts.extend(names(&rule.tools, "tool", &format!("t{i}"), &mut projection));
        parts.extend(names(&rule.methods, "method", &format!("n{i}"), &mut projection));
        let mut seen_possible = true;
        for (j, condition) in rule.when.iter().enumerate() {
            let id = format!("{i}_{j}");
            let translated = condition::translate(condition, rule.effect, &id, &mut projection)
                .map_err(|message| TranslateError::Condition {
                    rule: rule.name.clone(),
                    condition: j + 1,
                    message,
                })?;
            let seen = !condition::reads_arguments(condition);
            seen_possible &= seen || rule.effect == Effect::Allow;
            parts.push(Part { helper: format!("c{id}"), bodies: translated.bodies, seen });
            helpers.extend(translated.helpers);
        }
        gather(&mut parts, &mut helpers);
        verdict.push(heads("verdict", i, &rule.name, parts.iter()));
        if has_visible && seen_possible {
            visible.push(heads("visible", i, &rule.name, parts.iter().filter(|part| part.seen)));
        }
    }
    if has_visible && visible.is_empty() {
        visible.push("visible := set()".to_owned());
    }
    let mut lines = verdict;
    lines.extend(visible);
    lines.extend(helpers);
    Ok(Translation { body: lines.join("\n"), has_visible, projection })
}

/// One of the parts of a rule that must all hold: any of its bodies, each in lines.
struct Part {
    /// The name of a helper rule that may stand for it.
    helper: String,
    bodies: Vec<Vec<String>>,
    /// Whether it is known in a list.
    seen: bool,
}

/// Gives parts with several bodies a helper rule each, where writing out all combinations would
/// take too many rules. A helper costs a call, and its answer is looked up.
fn gather(parts: &mut [Part], helpers: &mut Vec<String>) {
    if parts.iter().map(|part| part.bodies.len()).product::<usize>() <= condition::FEW {
        return;
    }
    for part in parts.iter_mut().filter(|part| part.bodies.len() > 1) {
        let name = &part.helper;
        let rules =
            part.bodies.iter().map(|body| format!("{name} if {{\n\t{}\n}}", body.join("\n\t")));
        helpers.extend(rules);
        part.bodies = vec![vec![name.clone()]];
    }
}

/// A rule for each combination of its parts' bodies.
fn heads<'a>(
    entry: &str,
    index: usize,
    name: &str,
    parts: impl Iterator<Item = &'a Part>,
) -> String {
    let mut combined: Vec<Vec<&str>> = vec![Vec::new()];
    for part in parts {
        let mut longer = Vec::new();
        for lines in &combined {
            for body in &part.bodies {
                let body = body.iter().map(String::as_str);
                longer.push(lines.iter().copied().chain(body).collect());
            }
        }
        combined = longer;
    }
    let comment = name.replace(['\n', '\r'], " ");
    let mut out = format!("# {comment}");
    for lines in combined {
        out.push_str(&format!("\n{entry} contains {index}"));
        if !lines.is_empty() {
            out.push_str(&format!(" if {{\n\t{}\n}}", lines.join("\n\t")));
        }
    }
    out
}

/// Whether a text is a glob rather than a plain name.
pub(crate) fn is_glob(text: &str) -> bool {
    text.contains(['*', '?', '[', '{', '\\'])
}

/// A rule's own narrowing to tools or methods.
fn names(globs: &[String], field: &str, helper: &str, projection: &mut Projection) -> Option<Part> {
    if globs.is_empty() {
        return None;
    }
    projection.add(&["action", field]);
    let reference = format!("input.{field}");
    let plain: Vec<String> =
        globs.iter().filter(|name| !is_glob(name)).map(|name| condition::text(name)).collect();
    let mut bodies = Vec::new();
    if plain.len() <= condition::FEW {
        bodies.extend(plain.iter().map(|name| vec![format!("{reference} == {name}")]));
    } else {
        bodies.push(vec![format!("{reference} in {{{}}}", plain.join(", "))]);
    }
    for glob in globs.iter().filter(|name| is_glob(name)) {
        bodies.push(vec![format!("aegis.name_glob({}, {reference})", condition::text(glob))]);
    }
    Some(Part { helper: helper.to_owned(), bodies, seen: true })
}

// === checks ===

fn check_policy(spec: &PolicySpec) -> Result<(), TranslateError> {
    let policy = |message: String| Err(TranslateError::Policy(message));
    if spec.rules.is_empty() && spec.rego.is_none() {
        return policy(
            "the policy has neither `rules` nor `rego`, so it would do nothing; add one".into(),
        );
    }
    if spec.rego.as_deref().is_some_and(|rego| rego.trim().is_empty()) {
        return policy("`rego` is empty; write a module or remove it".into());
    }
    if spec.rules.len() > MAX_RULES {
        return policy(format!("a policy has at most {MAX_RULES} rules; divide it"));
    }
    let mut seen = BTreeSet::new();
    for rule in &spec.rules {
        if !seen.insert(&rule.name) {
            return policy(format!("two rules are named `{}`; give each its own name", rule.name));
        }
    }
    let lists = [
        ("selector.agents", &spec.selector.agents, false),
        ("selector.namespaces", &spec.selector.namespaces, false),
        ("match.servers", &spec.matches.servers, false),
        ("match.methods", &spec.matches.methods, false),
        ("match.tools", &spec.matches.tools, false),
        ("match.paths", &spec.matches.paths, true),
    ];
    for (field, globs, path) in lists {
        if let Some(message) = bad_glob(globs, path) {
            return policy(format!("`{field}`: {message}"));
        }
    }
    Ok(())
}

fn bad_glob(globs: &[String], path: bool) -> Option<String> {
    let kind = if path { Kind::PathGlob } else { Kind::NameGlob };
    globs.iter().find_map(|glob| {
        if glob.is_empty() {
            return Some("an empty text matches nothing; remove it".to_owned());
        }
        Predicate::compile(kind, glob).err().map(|error| format!("`{glob}` is not a glob: {error}"))
    })
}

fn check_rule(rule: &Rule) -> Result<(), TranslateError> {
    let wrong = |message: String| Err(TranslateError::Rule { rule: rule.name.clone(), message });
    if rule.name.is_empty() {
        return wrong("a rule needs a name".into());
    }
    for (field, globs) in [("tools", &rule.tools), ("methods", &rule.methods)] {
        if let Some(message) = bad_glob(globs, false) {
            return wrong(format!("`{field}`: {message}"));
        }
    }
    let allows = rule.effect == Effect::Allow;
    if rule.rate_limit.is_some() && !allows {
        return wrong(
            "`rateLimit` says how often a rule allows; move it to a rule with `effect: allow`"
                .into(),
        );
    }
    if let Some(limit) = &rule.rate_limit
        && (limit.requests == 0 || limit.burst == Some(0))
    {
        return wrong("a rate limit of 0 allows nothing; use `effect: deny`".into());
    }
    let denies = rule.effect == Effect::Deny;
    if rule.require_mfa && denies {
        return wrong(
            "`requireMfa` has no meaning in a deny; remove it or use `require_approval`".into(),
        );
    }
    if rule.approvals.is_some() && !(rule.effect == Effect::RequireApproval || rule.require_mfa) {
        return wrong("`approvals` needs `effect: require_approval` or `requireMfa`".into());
    }
    if rule.approvals == Some(0) {
        return wrong("`approvals: 0` asks nobody; use `effect: allow`".into());
    }
    let of_result = |one: &Obligation| one.kind == ObligationKind::RedactResult;
    if denies && rule.obligations.iter().any(of_result) {
        return wrong(
            "`redactResult` says what to do with the result of an allowed message; a deny has none"
                .into(),
        );
    }
    for obligation in &rule.obligations {
        check_obligation(obligation.kind, &obligation.target).or_else(&wrong)?;
    }
    Ok(())
}

/// Checks what an obligation aims at.
///
/// # Errors
/// What is wrong with it, for people.
pub(crate) fn check_obligation(kind: ObligationKind, target: &str) -> Result<(), String> {
    match kind {
        ObligationKind::RedactArgument => JsonPath::parse(target).map(|_| ()),
        ObligationKind::RedactResult => crate::regex_dialect::compile(target)
            .map(|_| ())
            .map_err(|error| format!("obligation `{target}` is not a regular expression: {error}")),
    }
}
