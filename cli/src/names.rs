//! Names in policies that nothing is called by: a misspelt server or tool in a `match` or a rule
//! makes a policy silent, and nothing else tells.
//!
//! Globs are never doubted. A tool that is not known is doubted where the policy names its servers
//! and these have told their tools; elsewhere only if a known name is near.

use std::collections::{BTreeMap, BTreeSet};

use aegis_policy::Policy;
use aegis_resources::nearest;

/// What is known of a server's tools.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tools {
    /// Those that are known.
    pub(crate) names: BTreeSet<String>,
    /// Whether these are all.
    pub(crate) complete: bool,
}

/// One sentence for each name that nothing is called by. `servers`: those that are known.
pub(crate) fn warnings(policies: &[Policy], servers: &BTreeMap<String, Tools>) -> Vec<String> {
    let mut told = Vec::new();
    if servers.is_empty() {
        return told;
    }
    for policy in policies {
        let named = &policy.spec.matches.servers;
        for server in named.iter().filter(|server| is_plain(server)) {
            if !servers.contains_key(server) {
                let near = nearest(server, servers.keys().map(String::as_str));
                let near =
                    near.map_or_else(String::new, |near| format!("; did you mean `{near}`?"));
                let id = &policy.id;
                told.push(format!(
                    "policy {id}: no server is called `{server}`, which its `match.servers` names{near}"
                ));
            }
        }
        tools(policy, servers, &mut told);
    }
    told
}

/// Whether a pattern matches nothing but itself.
fn is_plain(pattern: &str) -> bool {
    !pattern.contains(['*', '?', '[', ']', '{', '}', '!', '\\'])
}

fn tools(policy: &Policy, servers: &BTreeMap<String, Tools>, told: &mut Vec<String>) {
    let named = &policy.spec.matches.servers;
    let explicit = !named.is_empty() && named.iter().all(|server| is_plain(server));
    let meant: Vec<&Tools> = match explicit {
        true => named.iter().filter_map(|server| servers.get(server)).collect(),
        false => servers.values().collect(),
    };
    let all_known = explicit && meant.len() == named.len() && meant.iter().all(|t| t.complete);
    let known: BTreeSet<&str> =
        meant.iter().flat_map(|tools| tools.names.iter().map(String::as_str)).collect();
    let own = policy.spec.matches.tools.iter();
    let used: BTreeSet<&str> = own
        .chain(policy.spec.rules.iter().flat_map(|rule| &rule.tools))
        .map(String::as_str)
        .filter(|tool| is_plain(tool))
        .collect();
    for tool in used.iter().filter(|tool| !known.contains(*tool)) {
        // A name that the policy uses too was not meant by this one.
        let near = nearest(tool, known.iter().copied().filter(|near| !used.contains(near)));
        let id = &policy.id;
        match near {
            Some(near) => told.push(format!(
                "policy {id}: no tool that is known is called `{tool}`; did you mean `{near}`?"
            )),
            None if all_known => told
                .push(format!("policy {id}: no tool of {} is called `{tool}`", named.join(", "))),
            None => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use aegis_policy::PolicyId;
    use serde_json::{Value, json};

    use super::*;

    fn told(spec: Value, complete: bool) -> Vec<String> {
        let spec = serde_json::from_value(spec).unwrap();
        let policy = Policy { id: PolicyId::namespaced("default", "p"), spec };
        let names = ["read_file", "write_file"].map(str::to_owned).into();
        let servers = BTreeMap::from([
            ("notes".to_owned(), Tools { names, complete }),
            ("calc".to_owned(), Tools::default()),
        ]);
        warnings(&[policy], &servers)
    }

    #[test]
    fn a_misspelt_server_is_told_with_the_one_that_was_meant() {
        let told = told(json!({ "match": { "servers": ["nots", "n*", "calc", "other"] } }), true);
        assert_eq!(told.len(), 2, "{told:?}");
        assert!(told[0].contains("`nots`") && told[0].ends_with("did you mean `notes`?"));
        assert!(told[1].contains("`other`") && !told[1].contains("mean"), "{told:?}");
    }

    #[test]
    fn a_misspelt_tool_is_told() {
        let rule = |tools: &[&str]| json!([{ "name": "a", "effect": "deny", "tools": tools }]);
        let near = told(json!({ "rules": rule(&["read_fil", "drop_*"]) }), false);
        assert_eq!(near.len(), 1, "{near:?}");
        assert!(near[0].ends_with("did you mean `read_file`?"), "{near:?}");
        // The policy knows the near name, and so means another.
        let both = told(json!({ "rules": rule(&["write_file", "write_files"]) }), true);
        assert_eq!(both, [""; 0]);
        // A tool of a server that nobody asked is not doubted.
        let far = json!({ "match": { "servers": ["notes"] }, "rules": rule(&["exec"]) });
        assert_eq!(told(far.clone(), false), [""; 0]);
        let told_far = told(far, true);
        assert_eq!(told_far, ["policy default/p: no tool of notes is called `exec`"]);
        assert_eq!(told(json!({ "rules": rule(&["exec"]) }), true), [""; 0]);
    }
}
