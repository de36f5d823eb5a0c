//! The policies of AgentMesh's MCP proxy: rules on tools and their arguments, of which the first that
//! matches decides; rate limits; what is kept out of the record.

use aegis_core::policy::{Effect, Mode, Obligation, ObligationKind, Operator};

use super::{
    cases::{Atom, Case, a_tool_call, all_of, argument, field, member, presence, quoted, stated},
    emit::{Imported, wrong_pattern},
    listed::{Placed, incomplete, ordered, rate},
    rules::Drafted,
    template::Field,
};

/// `{version, mode, rules, rate_limits, audit}` of AgentMesh's MCP proxy.
pub(crate) fn read(root: &Field<'_>) -> Imported {
    root.describe(&["version"]);
    let name = root.text_of("name").unwrap_or_else(|| "mcp-proxy".into());
    let mode = match root.get("mode").and_then(|mode| Some((mode.text()?, mode))) {
        Some((word, _)) if word == "shadow" => Mode::Audit,
        Some((word, mode)) if word != "enforce" => {
            mode.refuse("expected enforce or shadow");
            Mode::Enforce
        }
        _ => Mode::Enforce,
    };
    let obligations = redactions(root);
    let mut rules = Vec::new();
    for rule in root.list("rules") {
        let Some(mut draft) = proxy_rule(&rule) else {
            incomplete(&rule);
            continue;
        };
        draft.obligations.clone_from(&obligations);
        draft.mode = mode;
        rules.push(Placed { at: rule, priority: 0, draft });
    }
    if let Some(default) = root.get("default_action") {
        default.must_be(&["deny"], "what no rule speaks of is refused, there too");
    }
    let limits = root.get("rate_limits");
    for (tool, limit) in
        limits.iter().flat_map(|limits| limits.get("per_tool")).flat_map(|per| per.members())
    {
        per_tool(&tool, &limit, &mut rules);
    }
    let mut kept = ordered(rules, Vec::new(), true);
    if let Some(global) = limits.and_then(|limits| limits.get("global")) {
        kept.extend(in_total(&global, mode));
    }
    root.note("Of several paths in one call, each must be one that the rule speaks of.");
    Imported { name, rules: kept, ..Imported::default() }
}

/// Arguments that are kept out of the record.
fn redactions(root: &Field<'_>) -> Vec<Obligation> {
    let Some(audit) = root.get("audit") else { return Vec::new() };
    for key in ["log_all", "include_arguments"] {
        if let Some(field) = audit.get(key) {
            field.must_be(&["true"], "Aegis records every decision with its arguments, redacted");
        }
    }
    let names = audit.texts_of("redact_fields");
    let target = |name: &String| format!("$..{name}");
    let one =
        |name: &String| Obligation { kind: ObligationKind::RedactArgument, target: target(name) };
    names.iter().map(one).collect()
}

/// So many actions of an agent a minute, whatever they are.
fn in_total(global: &Field<'_>, mode: Mode) -> Option<Drafted> {
    let requests = global.get("requests")?.number()?;
    let per = global.get("per")?;
    if per.text().as_deref() != Some("minute") {
        per.refuse("all actions of an agent together are counted by the minute");
        return None;
    }
    let case = vec![a_tool_call(), field("context.rate", Operator::GreaterThan, requests)];
    let mut draft = Drafted::new("rate-limit", Effect::Deny, vec![case]);
    draft.reason = Some("Too many actions in a minute.".into());
    draft.mode = mode;
    Some(draft)
}

/// A limit on a tool that a rule allows by its very name.
fn per_tool(tool: &str, limit: &Field<'_>, rules: &mut [Placed<'_>]) {
    let requests = limit.get("requests").and_then(|requests| requests.number());
    let per = limit.text_of("per");
    let Some(rate) = requests.zip(per).and_then(|(requests, per)| rate(requests, &per)) else {
        return limit.refuse("expected requests and per: second, minute, hour or day");
    };
    let named = Atom::Tools(vec![tool.to_owned()]);
    let mut found = false;
    for rule in rules.iter_mut().filter(|rule| rule.draft.effect == Effect::Allow) {
        if rule.draft.cases.iter().any(|case| case.contains(&named)) {
            rule.draft.limits.push(rate.clone());
            found = true;
        }
    }
    if !found {
        limit.refuse("a limit belongs to what allows, and no rule allows this tool by its name");
    }
}

fn proxy_rule(rule: &Field<'_>) -> Option<Drafted> {
    let tool = rule.text_of("tool")?;
    let action = rule.get("action")?;
    let effect = match action.text()?.as_str() {
        "allow" => Effect::Allow,
        "deny" => Effect::Deny,
        _ => {
            action.refuse("expected allow or deny");
            return None;
        }
    };
    let mut parts = vec![vec![vec![a_tool_call(), Atom::Tools(vec![tool.clone()])]]];
    for condition in rule.list("conditions") {
        for (key, field) in condition.members() {
            parts.push(proxy_condition(&key, &field, effect)?);
        }
    }
    let mut draft = Drafted::new(
        format!(
            "{} {}",
            if effect == Effect::Allow { "allow" } else { "deny" },
            tool.replace('*', "any")
        ),
        effect,
        all_of(parts),
    );
    draft.reason = rule.text_of("reason");
    if let Some(limit) = rule.get("rate_limit") {
        let requests = limit.get("requests")?.number()?;
        match limit.text_of("per").and_then(|per| rate(requests, &per)) {
            Some(rate) if effect == Effect::Allow => draft.limits.push(rate),
            Some(_) => {
                limit.refuse("a limit says how often a rule allows, and this one denies");
                return None;
            }
            None => {
                limit.refuse("expected a period: second, minute, hour or day");
                return None;
            }
        }
    }
    Some(draft)
}

/// The arguments in which the proxy looks for a path.
const PATHS: [&str; 3] = ["$.path", "$.file_path", "$.filename"];

fn proxy_condition(key: &str, given: &Field<'_>, effect: Effect) -> Option<Vec<Case>> {
    match key {
        "path_starts_with" => {
            let start = given.text()?;
            Some(paths(effect, true, Operator::Matches, &format!("^{}", quoted(&start))))
        }
        "path_not_contains" => {
            let items = given.items();
            let parts: Option<Vec<String>> = items.iter().map(Field::text).collect();
            let parts: Vec<String> = parts?.iter().map(|part| quoted(part)).collect();
            let pattern = format!("(?i)({})", parts.join("|"));
            Some(paths(effect, false, Operator::NotMatches, &pattern))
        }
        "argument_matches" | "argument_not_matches" => {
            let mut parts = Vec::new();
            for (name, pattern) in given.members() {
                let text = pattern.text()?;
                if let Some(why) = wrong_pattern(&text) {
                    pattern.refuse(why);
                    return None;
                }
                let path = member(&name);
                parts.push(if key == "argument_matches" {
                    vec![vec![argument(&path, Operator::Matches, text)]]
                } else {
                    vec![stated(&path, Operator::NotMatches, text), vec![presence(&path, false)]]
                });
            }
            Some(all_of(parts))
        }
        _ => {
            given.refuse("expected path_starts_with, path_not_contains, argument_matches or argument_not_matches");
            None
        }
    }
}

/// A condition on the path, wherever a call has it: each that is there must meet it to be allowed, and
/// one that does is enough to be refused.
fn paths(effect: Effect, needed: bool, operator: Operator, pattern: &str) -> Vec<Case> {
    let holds = |path: &str| stated(path, operator, pattern);
    let mut cases: Vec<Case> = Vec::new();
    if effect == Effect::Deny && needed {
        return PATHS.iter().map(|path| holds(path)).collect();
    }
    for present in 0..1_u8 << PATHS.len() {
        if needed && present == 0 {
            continue;
        }
        let atom = |(number, path): (usize, &&str)| match present >> number & 1 {
            1 => holds(path),
            _ => vec![presence(path, false)],
        };
        cases.push(PATHS.iter().enumerate().flat_map(atom).collect());
    }
    cases
}
