//! `/policy`: what the agent is governed by, as the daemon tells it; a document for each policy, and nothing is
//! kept of it here.

use aegis_api::kernel::{Policies, PolicyView};

use super::tree::{Name, Place, TreeError};

/// The policies at one time.
#[derive(Debug)]
pub(super) struct View(Policies);

impl View {
    /// Of these.
    pub(super) const fn new(policies: Policies) -> Self {
        Self(policies)
    }

    /// How policies see a name there.
    pub(super) fn judged(name: &Name) -> String {
        let folder = Place::Policy.as_str().to_owned();
        name.segments().iter().fold(folder, |path, segment| format!("{path}/{segment}"))
    }

    /// One of them.
    pub(super) fn read(&self, name: &Name) -> Result<String, TreeError> {
        let path = name.segments().join("/");
        let of = |policy: &&PolicyView| file_of(policy) == path;
        match self.0.policies.iter().find(of) {
            Some(policy) => serde_json::to_string_pretty(policy).map_err(|_| TreeError::Missing),
            None if self.list(name).is_ok() => Err(TreeError::Kind("a folder; list it")),
            None => Err(TreeError::Missing),
        }
    }

    /// What there is: those of all namespaces, and a folder for the agent's own.
    pub(super) fn list(&self, name: &Name) -> Result<Vec<String>, TreeError> {
        let prefix: String = name.segments().iter().map(|segment| format!("{segment}/")).collect();
        let mut entries: Vec<String> = Vec::new();
        for policy in &self.0.policies {
            let file = file_of(policy);
            let Some(rest) = file.strip_prefix(&prefix) else { continue };
            entries.push(
                rest.split_once('/').map_or(rest.to_owned(), |(folder, _)| format!("{folder}/")),
            );
        }
        entries.sort();
        entries.dedup();
        if entries.is_empty() && !prefix.is_empty() { Err(TreeError::Missing) } else { Ok(entries) }
    }
}

fn file_of(policy: &PolicyView) -> String {
    format!("{}.json", policy.policy)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn view() -> View {
        let policy = |name: &str| PolicyView {
            policy: name.into(),
            digest: String::new(),
            mode: "enforce".into(),
            rules: Vec::new(),
        };
        View(Policies {
            version: 1,
            policies: vec![policy("all"), policy("shop/b"), policy("shop/a")],
        })
    }

    fn name(text: &str) -> Name {
        Name::new(text).unwrap()
    }

    #[test]
    fn each_policy_is_a_document_in_its_namespace() {
        assert_eq!(view().list(&name(".")).unwrap(), ["all.json", "shop/"]);
        assert_eq!(view().list(&name("shop")).unwrap(), ["a.json", "b.json"]);
        assert_eq!(view().list(&name("other")), Err(TreeError::Missing));
        assert!(view().read(&name("shop/a.json")).unwrap().contains("\"shop/a\""));
        assert_eq!(view().read(&name("shop")), Err(TreeError::Kind("a folder; list it")));
        assert_eq!(view().read(&name("shop/c.json")), Err(TreeError::Missing));
        assert_eq!(View::judged(&name("shop/a.json")), "/policy/shop/a.json");
        assert_eq!(View::judged(&name(".")), "/policy");
    }
}
