//! A framework as data: its controls, which entries of the ledger are evidence for each, and which
//! controls nothing here can show.
//!
//! Strict: an unknown field, kind, result, reason or member of an entry is an error, because a
//! misspelt selector would find nothing and look like absent evidence.

use std::{collections::BTreeMap, fs};

use aegis_audit::{Entry, Kind, Outcome};
use aegis_core::decision::Reason;
use anyhow::{Context as _, bail, ensure};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The frameworks that come with Aegis, by name.
const BUILT_IN: [(&str, &str); 4] = [
    ("eu-ai-act", include_str!("frameworks/eu-ai-act.yaml")),
    ("gdpr", include_str!("frameworks/gdpr.yaml")),
    ("hipaa", include_str!("frameworks/hipaa.yaml")),
    ("soc2", include_str!("frameworks/soc2.yaml")),
];

/// Members of an entry that a selector may look at; those of `detail` and `action` are open.
const MEMBERS: [&str; 10] = [
    "agent_id",
    "approval",
    "arguments",
    "arguments_digest",
    "policies",
    "resource",
    "sponsor",
    "tier",
    "trace",
    "trust",
];

/// A framework: a law, a regulation or a set of criteria.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Framework {
    /// How policies name it in `spec.compliance`.
    pub(crate) id: String,
    /// Its name.
    pub(crate) title: String,
    /// Which text the controls are taken from.
    pub(crate) edition: String,
    /// What the reader should know first.
    pub(crate) about: String,
    /// Its controls, in its own order.
    pub(crate) controls: Vec<Control>,
}

/// One control.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Control {
    /// As the framework numbers it.
    pub(crate) id: String,
    /// Its title.
    pub(crate) title: String,
    /// What it asks for, in our words.
    pub(crate) asks: String,
    /// What in the ledger is evidence.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) evidence: Vec<Evidence>,
    /// Whether decisions of policies that carry its tag are its only evidence.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) by_policies: bool,
    /// What that evidence leaves open.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) limits: Option<String>,
    /// Why nothing here can show it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) nothing: Option<String>,
}

/// Entries that say something about a control.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Evidence {
    /// What they show.
    pub(crate) shows: String,
    /// Whether they speak against it.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub(crate) against: bool,
    /// Which entries.
    pub(crate) entries: Selector,
}

/// Which entries. Every condition that is given must hold; an empty list is no condition.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Selector {
    /// Of one of these kinds.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) kinds: Vec<Kind>,
    /// With one of these results.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) results: Vec<Outcome>,
    /// With one of these reason codes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub(crate) reasons: Vec<String>,
    /// With these members; where texts are given, one of them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub(crate) members: BTreeMap<String, Vec<String>>,
}

impl Selector {
    /// Whether it selects an entry.
    pub(crate) fn selects(&self, entry: &Entry) -> bool {
        fn fits<T: PartialEq>(list: &[T], value: &T) -> bool {
            list.is_empty() || list.contains(value)
        }
        fits(&self.kinds, &entry.kind)
            && fits(&self.results, &entry.result)
            && (self.reasons.is_empty()
                || entry.reason.as_ref().is_some_and(|reason| self.reasons.contains(reason)))
            && self.members.iter().all(|(name, texts)| has_member(entry, name, texts))
    }

    fn check(&self) -> anyhow::Result<()> {
        ensure!(!self.kinds.is_empty(), "`entries.kinds` is empty; name at least one kind");
        for reason in &self.reasons {
            reason.parse::<Reason>()?;
        }
        for name in self.members.keys() {
            let open = ["detail.", "action."].iter().any(|open| name.starts_with(open));
            if !open && !MEMBERS.contains(&name.as_str()) {
                bail!(
                    "an entry has no member `{name}`; expected detail.…, action.… or one of {}",
                    MEMBERS.join(", ")
                );
            }
        }
        Ok(())
    }
}

/// Whether an entry has the member `name`, with one of `texts` where any are given.
fn has_member(entry: &Entry, name: &str, texts: &[String]) -> bool {
    let one_of = |value: &str| texts.is_empty() || texts.iter().any(|text| text == value);
    let mut steps = name.split('.');
    let value = match (steps.next(), steps.next()) {
        (Some("detail"), Some(member)) => entry.detail.get(member),
        (Some("action"), Some(member)) => entry.action.get(member),
        (Some("agent_id"), None) => return entry.agent_id.as_deref().is_some_and(one_of),
        (Some("approval"), None) => return entry.approval.as_deref().is_some_and(one_of),
        (Some("resource"), None) => return entry.resource.as_deref().is_some_and(one_of),
        (Some("sponsor"), None) => return entry.sponsor.as_deref().is_some_and(one_of),
        (Some("tier"), None) => return entry.tier.as_deref().is_some_and(one_of),
        (Some("trace"), None) => return entry.trace.as_deref().is_some_and(one_of),
        (Some("arguments"), None) => entry.arguments.as_ref(),
        (Some("arguments_digest"), None) => return entry.arguments_digest.is_some(),
        (Some("policies"), None) => return !entry.policies.is_empty(),
        (Some("trust"), None) => return entry.trust.is_some(),
        _ => None,
    };
    let value = steps.try_fold(value, |value, step| Some(value?.get(step))).flatten();
    value.is_some_and(|value| match value {
        Value::String(text) => one_of(text),
        other => texts.is_empty() || one_of(&other.to_string()),
    })
}

impl Framework {
    /// The names of those that come with Aegis.
    pub(crate) fn names() -> impl Iterator<Item = &'static str> {
        BUILT_IN.iter().map(|(name, _)| *name)
    }

    /// The framework of that name, or in that file.
    ///
    /// # Errors
    /// When there is none, or the file is not one.
    pub(crate) fn load(name: &str) -> anyhow::Result<Self> {
        if let Some((_, text)) = BUILT_IN.iter().find(|(known, _)| *known == name) {
            return Self::parse(text);
        }
        if !name.ends_with(".yaml") && !name.ends_with(".yml") {
            let names: Vec<&str> = Self::names().collect();
            let near = aegis_resources::did_you_mean(name, names.iter().copied());
            bail!(
                "there is no framework `{name}`; expected {}, or a .yaml file{near}",
                names.join(", ")
            );
        }
        let text = fs::read_to_string(name).with_context(|| format!("cannot read {name}"))?;
        Self::parse(&text).with_context(|| format!("{name} is no framework"))
    }

    fn parse(text: &str) -> anyhow::Result<Self> {
        let framework: Self = serde_yaml_ng::from_str(text)?;
        let mut seen = std::collections::BTreeSet::new();
        for control in &framework.controls {
            control.check().with_context(|| format!("control `{}`", control.id))?;
            ensure!(seen.insert(&control.id), "control `{}` stands there twice", control.id);
        }
        Ok(framework)
    }

    /// Whether a policy's tag names this framework: case and `_` for `-` do not matter.
    pub(crate) fn is_named(&self, tag: &str) -> bool {
        tag.to_lowercase().replace('_', "-") == self.id
    }
}

impl Control {
    fn check(&self) -> anyhow::Result<()> {
        let shown = !self.evidence.is_empty() || self.by_policies;
        if shown == self.nothing.is_some() {
            bail!(
                "give either what is evidence (`evidence`, `by_policies`) or why there is none (`nothing`)"
            );
        }
        self.evidence.iter().try_for_each(|evidence| evidence.entries.check())
    }
}

#[cfg(test)]
mod tests {
    use aegis_audit::Draft;
    use aegis_core::{Digest, Timestamp};
    use serde_json::json;

    use super::*;

    fn entry(change: impl Fn(&mut Draft)) -> Entry {
        let mut draft = Draft::new(Kind::Decision, Timestamp::from_secs(1), Outcome::Deny);
        change(&mut draft);
        let bytes = draft.render("s").unwrap().finish(1, Digest::of(b""));
        Entry::parse(&bytes).unwrap()
    }

    #[test]
    fn what_comes_with_aegis_is_sound() {
        for name in Framework::names() {
            let framework = Framework::load(name).unwrap();
            assert_eq!(framework.id, name);
            assert!(framework.controls.iter().any(|control| control.nothing.is_some()), "{name}");
            assert!(framework.controls.iter().any(|control| !control.evidence.is_empty()));
        }
    }

    #[test]
    fn a_selector_needs_all_that_it_names() {
        let select = |text: &str| -> Selector { serde_yaml_ng::from_str(text).unwrap() };
        let denied = entry(|draft| {
            draft.reason = Some("policy_denied".into());
            draft.sponsor = Some("ada@acme.example".into());
            draft.detail.insert("vote".into(), json!({ "factor": "totp", "approve": true }));
        });
        for (text, expected) in [
            ("kinds: [decision]", true),
            ("kinds: [outcome]", false),
            ("{kinds: [decision], results: [allow]}", false),
            ("{kinds: [decision], reasons: [policy_denied, rate_limited]}", true),
            ("{kinds: [decision], reasons: [rate_limited]}", false),
            ("{kinds: [decision], members: {sponsor: []}}", true),
            ("{kinds: [decision], members: {sponsor: [ben@acme.example]}}", false),
            ("{kinds: [decision], members: {trace: []}}", false),
            ("{kinds: [decision], members: {detail.vote.factor: [totp]}}", true),
            ("{kinds: [decision], members: {detail.vote.factor: [none]}}", false),
            ("{kinds: [decision], members: {detail.vote.approve: ['true']}}", true),
            ("{kinds: [decision], members: {detail.vote.absent: []}}", false),
        ] {
            assert_eq!(select(text).selects(&denied), expected, "{text}");
        }
    }

    #[test]
    fn what_is_misspelt_is_refused() {
        let head = "id: x\ntitle: X\nedition: '1'\nabout: a\ncontrols:\n  - id: A\n    title: a\n    asks: b\n";
        let with = |rest: &str| Framework::parse(&format!("{head}{rest}")).map(|_| ());
        let evidence =
            |entries: &str| with(&format!("    evidence: [{{shows: a, entries: {entries}}}]"));
        evidence("{kinds: [decision]}").unwrap();
        with("    nothing: no").unwrap();
        for (result, expected) in [
            (evidence("{kinds: [decisions]}"), "decisions"),
            (evidence("{kinds: [decision], reasons: [denied]}"), "`denied` is not a reason code"),
            (evidence("{kinds: [decision], members: {sponser: []}}"), "no member `sponser`"),
            (evidence("{results: [deny]}"), "`entries.kinds` is empty"),
            (evidence("{kinds: [decision], tool: x}"), "unknown field `tool`"),
            (with(""), "give either"),
            (with("    nothing: no\n    by_policies: true"), "give either"),
            (
                with("    nothing: no\n  - {id: A, title: a, asks: b, nothing: c}"),
                "stands there twice",
            ),
        ] {
            let said = format!("{:#}", result.unwrap_err());
            assert!(said.contains(expected), "{said}");
        }
        let said = Framework::load("soc-2").unwrap_err().to_string();
        assert!(said.contains("did you mean `soc2`?"), "{said}");
    }
}
