//! What narrows an entry of a template: paths, hosts, methods, tables, operations. Each is a condition
//! that means at least as much as the template says when it refuses, and no more when it allows.

use aegis_core::policy::{Effect, Operator};
use serde_json::json;

use super::{
    cases::{Case, argument, field, glob_pattern, presence, quoted},
    template::Field,
};

pub(super) const NO_APPROVERS: &str = "who may approve is not said by a policy in Aegis: see `--operator` on one machine and the verb `approve` in a cluster";

/// The arguments in which tools are given a path, and a URL.
const PATHS: [&str; 2] = ["$.path", "$.file_path"];
const URLS: [&str; 2] = ["$.url", "$.uri"];
/// Where tools are given SQL.
const STATEMENTS: [&str; 3] = ["$..sql", "$..query", "$..statement"];

/// Narrowing fields that Aegis has no means to look at; `*` narrows nothing.
const OPEN: [&str; 6] = ["models", "languages", "roles", "regions", "scope", "commands"];

/// What one field of an entry says, as alternatives; `None` where it narrows nothing.
pub(super) fn narrowed(
    key: &str,
    given: &Field<'_>,
    effect: Effect,
    resource: Option<&str>,
) -> Option<Vec<Case>> {
    let texts = || -> Vec<String> { given.items().iter().filter_map(Field::text).collect() };
    match key {
        "action" | "message" => None,
        "approval_level" => {
            if given.text().as_deref() != Some("dual") {
                given.refuse(NO_APPROVERS);
            }
            None
        }
        "timeout_minutes" => {
            given.refuse(
                "how long an approval is waited for is said by the TrustThreshold, for all",
            );
            None
        }
        "paths" => {
            let globs = texts();
            if globs.iter().any(|glob| glob == "/**" || glob == "*") {
                return None;
            }
            match paths(&globs, effect) {
                Ok(alternatives) => Some(places(&PATHS, resource, effect, alternatives)),
                Err(why) => {
                    given.refuse(why);
                    None
                }
            }
        }
        "domains" => {
            let hosts = texts();
            (!hosts.iter().any(|host| host == "*")).then(|| {
                let hosts: Vec<String> = hosts.iter().map(|host| host_pattern(host)).collect();
                let user = if effect == Effect::Allow { "" } else { "([^/?#]*@)?" };
                let end =
                    if effect == Effect::Allow { r"(:[0-9]+)?([/?#]|$)" } else { r"([:/?#\\]|$)" };
                let pattern = format!("(?i)^[a-z][a-z0-9+.-]*://{user}({}){end}", hosts.join("|"));
                places(&URLS, resource, effect, vec![(Operator::Matches, json!(pattern))])
            })
        }
        "methods" => {
            let methods = texts();
            let pattern = format!("(?i)^({})$", methods.join("|"));
            let atom = match resource {
                Some(_) => field("action.method", Operator::Matches, pattern),
                None => argument("$.method", Operator::Matches, pattern),
            };
            Some(vec![vec![atom]])
        }
        "tables" if effect == Effect::Allow => {
            let tables = texts();
            (!tables.iter().any(|table| table == "*"))
                .then(|| vec![vec![argument("$.table", Operator::In, json!(tables))]])
        }
        "tables" => {
            let tables = texts();
            (!tables.iter().any(|table| table == "*")).then(|| {
                let names: Vec<String> = tables.iter().map(|table| glob_pattern(table)).collect();
                let names = names.join("|");
                let within = format!(
                    r#"(?i)\b(from|into|update|join|table)\s+([\w"`\[\]]+\.)?["`\[]?({names})\b"#
                );
                let mut cases = statements(&within);
                cases.push(vec![argument("$..table", Operator::In, json!(tables))]);
                cases
            })
        }
        "operations" if effect != Effect::Allow => {
            Some(statements(&format!(r"(?i)\b({})\b", texts().join("|"))))
        }
        open if OPEN.contains(&open) => {
            let any = given.items().iter().all(|item| item.value().as_str() == Some("*"));
            if any {
                texts();
            } else {
                given.refuse("Aegis does not see it, so what it narrows is left out");
            }
            None
        }
        _ => {
            given.refuse("nothing in Aegis enforces it, so what it narrows is left out");
            None
        }
    }
}

fn statements(pattern: &str) -> Vec<Case> {
    STATEMENTS.iter().map(|path| vec![argument(path, Operator::Matches, pattern)]).collect()
}

/// Globs over paths, as conditions of which any must hold. Folders and files are compared where `..`
/// has been resolved; what another glob stands for is good enough to refuse, and not to allow.
fn paths(globs: &[String], effect: Effect) -> Result<Vec<(Operator, serde_json::Value)>, String> {
    let mut folders = Vec::new();
    let mut others = Vec::new();
    for glob in globs {
        let folder = glob.strip_suffix("/**").unwrap_or(glob);
        if !folder.contains(['*', '?', '[', '{']) {
            folders.push(folder);
        } else if effect == Effect::Allow {
            return Err(format!(
                "`{glob}` could be met by a path that leads elsewhere; to allow, give folders (`/srv/**`) or whole paths"
            ));
        } else {
            let part = |part: &str| part.split('*').map(quoted).collect::<Vec<_>>().join("[^/]*");
            let pattern = glob.split("**").map(part).collect::<Vec<_>>().join(".*");
            others.push((Operator::Matches, json!(format!("^{pattern}$"))));
        }
    }
    if !folders.is_empty() {
        others.insert(0, (Operator::Within, json!(folders)));
    }
    Ok(others)
}

/// `*.acme.example` is every name below it; anything else is a host of that name.
fn host_pattern(host: &str) -> String {
    match host.strip_prefix("*.") {
        Some(rest) => format!(r"[a-z0-9_.-]+\.{}", glob_pattern(rest)),
        None => glob_pattern(host),
    }
}

/// A condition on where an action leads, wherever a call says it. To be allowed, it must be said, and
/// each place that says it must meet the condition; one that does is enough to be refused or asked about.
fn places(
    arguments: &[&str],
    resource: Option<&str>,
    effect: Effect,
    alternatives: Vec<(Operator, serde_json::Value)>,
) -> Vec<Case> {
    let mut cases = Vec::new();
    for (operator, value) in alternatives {
        if let Some(name) = resource {
            cases.push(vec![field(name, operator, value)]);
            continue;
        }
        let holds = |path: &str| argument(path, operator, value.clone());
        if effect != Effect::Allow {
            cases.extend(arguments.iter().map(|path| vec![holds(path)]));
            continue;
        }
        for present in 1..1_u8 << arguments.len() {
            let atom = |(number, path): (usize, &&str)| match present >> number & 1 {
                1 => holds(path),
                _ => presence(path, false),
            };
            cases.push(arguments.iter().enumerate().map(atom).collect());
        }
    }
    cases
}
