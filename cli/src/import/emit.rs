//! From drafted rules to the text of policies, as `kubectl apply` and `aegis up` take it.

use aegis_core::policy::{Condition, Effect, Mode, Operator, PolicySpec, Rule};
use aegis_policy::translate::translate;
use aegis_resources::API_VERSION;
use serde_json::{Map, Value, json};

use super::cases::{Atom, Case, glob_pattern};
use super::rules::Drafted;

/// Rules of one policy, at most.
const MAX_RULES: usize = 64;

/// Texts that are looked for in everything that a call says.
#[derive(Clone, Debug)]
pub(crate) struct Search {
    pub(crate) effect: Effect,
    pub(crate) reason: String,
    pub(crate) patterns: Vec<String>,
    /// Only in calls of these tools, where any are named.
    pub(crate) tools: Vec<String>,
    pub(crate) mode: Mode,
}

/// What a file comes to.
#[derive(Clone, Debug, Default)]
pub(crate) struct Imported {
    /// What the file calls itself.
    pub(crate) name: String,
    /// Whom it is about, by names of agents; everybody where none is named.
    pub(crate) agents: Vec<String>,
    pub(crate) rules: Vec<Drafted>,
    pub(crate) searches: Vec<Search>,
}

/// One policy.
#[derive(Clone, Debug, serde::Serialize)]
pub(crate) struct Document {
    pub(crate) name: String,
    pub(crate) spec: PolicySpec,
}

/// A text as the name of something: an RFC 1123 label.
pub(crate) fn label(text: &str) -> String {
    let mut out = String::new();
    for c in text.chars().flat_map(char::to_lowercase) {
        if c.is_ascii_alphanumeric() {
            out.push(c);
        } else if !out.ends_with('-') && !out.is_empty() {
            out.push('-');
        }
    }
    let cut: String = out.chars().take(50).collect();
    let cut = cut.trim_matches('-');
    if cut.is_empty() { "imported".to_owned() } else { cut.to_owned() }
}

/// A text that is no longer than a field may be.
fn cut(text: &str, most: usize) -> String {
    text.trim().chars().take(most).collect()
}

/// The policies of a file. Each mode has its own, and so have searches, which are raw Rego.
pub(crate) fn documents(imported: &Imported) -> Vec<Document> {
    let base = label(&imported.name);
    let mut all = Vec::new();
    let mut add = |spec: PolicySpec| {
        let name = match all.len() {
            0 => base.clone(),
            more => format!("{base}-{}", more + 1),
        };
        all.push(Document { name, spec });
    };
    for mode in [Mode::Enforce, Mode::Audit] {
        let rules = rules_of(imported.rules.iter().filter(|rule| rule.mode == mode));
        for some in rules.chunks(MAX_RULES) {
            add(PolicySpec { rules: some.to_vec(), ..with(imported, mode) });
        }
        let searches: Vec<&Search> =
            imported.searches.iter().filter(|search| search.mode == mode).collect();
        if !searches.is_empty() {
            let package = base.replace('-', "_");
            add(PolicySpec { rego: Some(rego(&package, &searches)), ..with(imported, mode) });
        }
    }
    all
}

fn with(imported: &Imported, mode: Mode) -> PolicySpec {
    let mut spec = PolicySpec { mode, ..PolicySpec::default() };
    spec.selector.agents.clone_from(&imported.agents);
    spec
}

fn rules_of<'a>(drafted: impl Iterator<Item = &'a Drafted>) -> Vec<Rule> {
    let mut rules: Vec<Rule> = Vec::new();
    for draft in drafted {
        for case in &draft.cases {
            let mut limits: Vec<_> = draft.limits.iter().cloned().map(Some).collect();
            if limits.is_empty() {
                limits.push(None);
            }
            for limit in limits {
                let mut rule = rule(draft, case);
                rule.rate_limit = limit;
                rule.name = unique(&rules, &label(&draft.name));
                rules.push(rule);
            }
        }
    }
    rules
}

fn unique(rules: &[Rule], name: &str) -> String {
    let taken = |name: &str| rules.iter().any(|rule| rule.name == name);
    let mut number = 1;
    let mut candidate = name.to_owned();
    while taken(&candidate) {
        number += 1;
        candidate = format!("{name}-{number}");
    }
    candidate
}

fn rule(draft: &Drafted, case: &Case) -> Rule {
    let mut tools = Vec::new();
    let mut when = Vec::new();
    for atom in case {
        match atom {
            Atom::Tools(globs) if tools.is_empty() && globs.iter().all(|glob| glob != "*") => {
                tools.clone_from(globs);
            }
            Atom::Tools(globs) if globs.iter().any(|glob| glob == "*") => {}
            Atom::Tools(globs) => when.push(named(globs, true)),
            Atom::NotTools(globs) => when.push(named(globs, false)),
            Atom::When(condition) => when.push(condition.clone()),
        }
    }
    let asks = draft.effect == Effect::RequireApproval;
    Rule {
        name: String::new(),
        effect: draft.effect,
        tools,
        methods: Vec::new(),
        when,
        rate_limit: None,
        require_mfa: false,
        approvals: draft.approvals.filter(|_| asks),
        obligations: if draft.effect == Effect::Deny {
            Vec::new()
        } else {
            draft.obligations.clone()
        },
        reason: draft
            .reason
            .as_deref()
            .map(|reason| cut(reason, 500))
            .filter(|text| !text.is_empty()),
    }
}

/// The tool is, or is not, named so.
fn named(globs: &[String], is: bool) -> Condition {
    let plain = globs.iter().all(|glob| !glob.contains('*'));
    let (operator, value) = match (plain, is) {
        (true, true) => (Operator::In, json!(globs)),
        (true, false) => (Operator::NotIn, json!(globs)),
        (false, is) => {
            let alternatives: Vec<String> = globs.iter().map(|glob| glob_pattern(glob)).collect();
            let operator = if is { Operator::Matches } else { Operator::NotMatches };
            (operator, json!(format!("^({})$", alternatives.join("|"))))
        }
    };
    Condition {
        argument: None,
        field: Some("action.tool".to_owned()),
        operator,
        value: Some(value),
    }
}

fn rego(package: &str, searches: &[&Search]) -> String {
    let mut text = format!(
        "package imported.{package}\n\n# Every text that the call says, at any depth, and the names of members.\ntexts contains text if {{\n\twalk(input.action.arguments, [_, text])\n\tis_string(text)\n}}\n\ntexts contains key if {{\n\twalk(input.action.arguments, [path, _])\n\tsome key in path\n\tis_string(key)\n}}\n\ntexts contains input.action.resource\n"
    );
    for search in searches {
        let head = match search.effect {
            Effect::Deny => "deny",
            Effect::RequireApproval => "require_approval",
            Effect::Allow => continue,
        };
        let reason = Value::String(cut(&search.reason, 500));
        for pattern in &search.patterns {
            text.push_str(&format!("\n{head} contains {reason} if {{\n"));
            if !search.tools.is_empty() {
                let named: Vec<String> =
                    search.tools.iter().map(|glob| glob_pattern(glob)).collect();
                let named = Value::String(format!("^({})$", named.join("|")));
                text.push_str(&format!("\tregex.match({named}, input.action.tool)\n"));
            }
            let pattern = Value::String(pattern.clone());
            text.push_str(&format!("\tsome text in texts\n\tregex.match({pattern}, text)\n}}\n"));
        }
    }
    text
}

/// Why a regular expression is none that Aegis knows.
pub(crate) fn wrong_pattern(pattern: &str) -> Option<String> {
    let condition = Condition {
        argument: None,
        field: Some("action.tool".to_owned()),
        operator: Operator::Matches,
        value: Some(json!(pattern)),
    };
    let draft = Drafted::new("x", Effect::Deny, vec![vec![Atom::When(condition)]]);
    let spec = PolicySpec { rules: rules_of(std::iter::once(&draft)), ..PolicySpec::default() };
    let error = translate(&spec).err()?;
    let said = error.to_string();
    Some(said.split_once(": ").map_or(said.clone(), |(_, rest)| rest.to_owned()))
}

/// The text of policies, each with what it comes from.
///
/// # Errors
/// When a policy cannot be rendered.
pub(crate) fn text(
    documents: &[Document],
    namespace: Option<&str>,
    head: &[String],
) -> anyhow::Result<String> {
    let mut out = String::new();
    for line in head {
        out.push_str(format!("# {}", crate::output::clean(line)).trim_end());
        out.push('\n');
    }
    for (number, document) in documents.iter().enumerate() {
        if number > 0 {
            out.push_str("---\n");
        }
        let mut metadata = Map::new();
        metadata.insert("name".into(), document.name.clone().into());
        if let Some(namespace) = namespace {
            metadata.insert("namespace".into(), namespace.into());
        }
        let kind = if namespace.is_some() { "AgentPolicy" } else { "ClusterAgentPolicy" };
        let resource = json!({
            "apiVersion": API_VERSION, "kind": kind, "metadata": metadata,
            "spec": without_empty(json!(document.spec)),
        });
        out.push_str(&serde_yaml_ng::to_string(&resource)?);
    }
    Ok(out)
}

/// Without members that say nothing.
fn without_empty(mut value: Value) -> Value {
    if let Value::Object(members) = &mut value {
        members.retain(|_, member| !matches!(member, Value::Object(inner) if inner.is_empty()));
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_becomes_a_label() {
        for (text, expected) in
            [("Block PII!", "block-pii"), ("__", "imported"), ("é", "imported"), ("A--b", "a-b")]
        {
            assert_eq!(label(text), expected);
            assert!(aegis_resources::is_label(&label(text)));
        }
    }

    #[test]
    fn a_pattern_of_another_dialect_is_told() {
        assert_eq!(wrong_pattern(r"(?i)drop\s+table"), None);
        assert!(wrong_pattern("a(?!b)").is_some(), "RE2 has no look-ahead");
    }
}
