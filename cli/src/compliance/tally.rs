//! The fold from entries to lines of evidence. What it keeps does not grow with the log: counts, and
//! the places of a few entries per line.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use aegis_audit::{Entry, Kind};
use aegis_core::{Digest, Timestamp, policy::ComplianceTag};
use serde_json::Value;

use super::framework::{Control, Framework};

/// The period of a report: at or after, and before.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Period {
    pub(crate) since: Option<Timestamp>,
    pub(crate) until: Option<Timestamp>,
}

impl Period {
    pub(crate) fn holds(&self, at: Timestamp) -> bool {
        self.since.is_none_or(|since| at >= since) && self.until.is_none_or(|until| at < until)
    }
}

/// What makes an entry count for a control.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Source {
    /// The control's own evidence of this number selects it.
    Evidence(usize),
    /// A policy with the control's tag spoke, and its word counted.
    Enforced,
    /// A policy with the control's tag spoke in audit mode, which only records.
    Audited,
}

/// What is kept of the entries of a line.
#[derive(Clone, Debug, Default)]
pub(crate) struct Seen {
    /// How many.
    pub(crate) count: u64,
    /// The first one.
    pub(crate) first: Option<(u64, Timestamp)>,
    /// The newest ones, the oldest of them first.
    pub(crate) newest: VecDeque<u64>,
    /// When the last one happened.
    last: Option<Timestamp>,
}

impl Seen {
    fn add(&mut self, index: u64, at: Timestamp, most: usize) {
        self.count += 1;
        self.last = Some(at);
        if self.first.is_none() {
            self.first = Some((index, at));
            return;
        }
        self.newest.push_back(index);
        if self.newest.len() + 1 > most {
            self.newest.pop_front();
        }
    }

    /// The entries that are cited, in order.
    pub(crate) fn cited(&self) -> impl Iterator<Item = u64> {
        self.first.iter().map(|(index, _)| *index).chain(self.newest.iter().copied())
    }

    /// When the first and the last of them happened.
    pub(crate) fn span(&self) -> Option<(Timestamp, Timestamp)> {
        Some((self.first?.1, self.last?))
    }
}

/// A line of a report while entries are counted.
#[derive(Clone, Debug)]
pub(crate) struct Line {
    pub(crate) framework: usize,
    pub(crate) control: usize,
    pub(crate) source: Source,
    pub(crate) seen: Seen,
    /// The policies that spoke, where the line is about policies.
    pub(crate) policies: BTreeSet<String>,
}

/// The fold.
#[derive(Debug)]
pub(crate) struct Tally<'f> {
    frameworks: &'f [Framework],
    period: Period,
    most: usize,
    pub(crate) lines: Vec<Line>,
    /// The lines whose evidence asks for entries of a kind.
    by_kind: HashMap<Kind, Vec<usize>>,
    /// The lines of enforced and of audited policies, by framework and control.
    by_tag: HashMap<(usize, usize), (usize, usize)>,
    /// What is known of policies, by the digest of their version.
    tagged: HashMap<Digest, BTreeSet<(usize, usize)>>,
    /// Every entry of the period.
    pub(crate) all: Seen,
    /// What tags name and no framework shows.
    pub(crate) doubts: BTreeMap<usize, BTreeSet<String>>,
}

impl<'f> Tally<'f> {
    /// Nothing counted yet; at most `most` entries are cited per line.
    pub(crate) fn new(frameworks: &'f [Framework], period: Period, most: usize) -> Self {
        let mut tally = Self {
            frameworks,
            period,
            most,
            lines: Vec::new(),
            by_kind: HashMap::new(),
            by_tag: HashMap::new(),
            tagged: HashMap::new(),
            all: Seen::default(),
            doubts: BTreeMap::new(),
        };
        for (framework, told) in frameworks.iter().enumerate() {
            for (control, told) in told.controls.iter().enumerate() {
                tally.begin(framework, control, told);
            }
        }
        tally
    }

    fn begin(&mut self, framework: usize, control: usize, told: &Control) {
        let mut line = |source| {
            let (seen, policies) = (Seen::default(), BTreeSet::new());
            self.lines.push(Line { framework, control, source, seen, policies });
            self.lines.len() - 1
        };
        for (number, evidence) in told.evidence.iter().enumerate() {
            let at = line(Source::Evidence(number));
            for kind in &evidence.entries.kinds {
                self.by_kind.entry(*kind).or_default().push(at);
            }
        }
        if told.nothing.is_none() {
            let lines = (line(Source::Enforced), line(Source::Audited));
            self.by_tag.insert((framework, control), lines);
        }
    }

    /// Notes which controls a version of a policy is tagged with.
    pub(crate) fn tag(&mut self, digest: Digest, policy: &str, tags: &[ComplianceTag]) {
        for tag in tags {
            for (at, framework) in self.frameworks.iter().enumerate() {
                if !framework.is_named(&tag.framework) {
                    continue;
                }
                let id = tag.control.as_str();
                let found = framework.controls.iter().position(|control| control.id == id);
                let doubt = match found {
                    Some(control) if self.by_tag.contains_key(&(at, control)) => {
                        self.tagged.entry(digest).or_default().insert((at, control));
                        continue;
                    }
                    Some(_) => format!(
                        "policy {policy} is tagged with `{id}`, which nothing here can show; its decisions are not counted"
                    ),
                    None => {
                        let ids = framework.controls.iter().map(|control| control.id.as_str());
                        let near = aegis_resources::did_you_mean(id, ids);
                        format!(
                            "policy {policy} is tagged with `{id}`, which is no control of this list{near}"
                        )
                    }
                };
                self.doubts.entry(at).or_default().insert(doubt);
            }
        }
    }

    /// Counts an entry. Entries come in order, also those before the period: which controls a policy
    /// is tagged with is recorded when it takes effect.
    pub(crate) fn add(&mut self, index: u64, entry: &Entry) {
        if entry.kind == Kind::PolicyLoaded {
            self.learn(entry);
        }
        if !self.period.holds(entry.timestamp) {
            return;
        }
        let (at, most) = (entry.timestamp, self.most);
        self.all.add(index, at, 2);
        for number in self.by_kind.get(&entry.kind).into_iter().flatten() {
            let Some(line) = self.lines.get_mut(*number) else { continue };
            let Source::Evidence(evidence) = line.source else { continue };
            let told = self.frameworks.get(line.framework);
            let told = told.and_then(|framework| framework.controls.get(line.control));
            let told = told.and_then(|control| control.evidence.get(evidence));
            if told.is_some_and(|evidence| evidence.entries.selects(entry)) {
                line.seen.add(index, at, most);
            }
        }
        self.add_tagged(index, entry);
    }

    /// Once per line, whatever number of rules spoke.
    fn add_tagged(&mut self, index: u64, entry: &Entry) {
        let mut counted: Vec<usize> = Vec::new();
        for policy in &entry.policies {
            let audited = policy.mode == "audit";
            let name = policy.name.split_once('#').map_or(policy.name.as_str(), |(name, _)| name);
            for place in self.tagged.get(&policy.digest).into_iter().flatten() {
                let Some((enforced, audits)) = self.by_tag.get(place) else { continue };
                let number = if audited { *audits } else { *enforced };
                let Some(line) = self.lines.get_mut(number) else { continue };
                if !line.policies.contains(name) {
                    line.policies.insert(name.to_owned());
                }
                if !counted.contains(&number) {
                    counted.push(number);
                    line.seen.add(index, entry.timestamp, self.most);
                }
            }
        }
    }

    fn learn(&mut self, entry: &Entry) {
        let text = |name: &str| entry.detail.get(name).and_then(Value::as_str);
        let digest = text("digest").and_then(|digest| digest.parse().ok());
        let tags = entry.detail.get("compliance").cloned();
        let tags = tags.and_then(|tags| serde_json::from_value::<Vec<ComplianceTag>>(tags).ok());
        if let (Some(digest), Some(policy), Some(tags)) = (digest, text("policy"), tags) {
            self.tag(digest, policy, &tags);
        }
    }
}

#[cfg(test)]
mod tests {
    use aegis_audit::{Draft, Outcome, PolicyRef};
    use serde_json::json;

    use super::*;

    fn frameworks() -> Vec<Framework> {
        let text = "id: own\ntitle: Own\nedition: '1'\nabout: a\ncontrols:\n\
            - {id: A, title: a, asks: b, evidence: [{shows: c, entries: {kinds: [decision], results: [deny]}}]}\n\
            - {id: B, title: a, asks: b, by_policies: true}\n\
            - {id: C, title: a, asks: b, nothing: no}\n";
        vec![serde_yaml_ng::from_str(text).unwrap()]
    }

    fn entry(second: u64, change: impl Fn(&mut Draft)) -> Entry {
        let mut draft = Draft::new(Kind::Decision, Timestamp::from_secs(second), Outcome::Deny);
        change(&mut draft);
        Entry::parse(&draft.render("s").unwrap().finish(1, Digest::of(b""))).unwrap()
    }

    fn spoke(digest: Digest, mode: &str) -> impl Fn(&mut Draft) {
        let mode = mode.to_owned();
        move |draft| {
            let rule = |rule: &str| PolicyRef {
                name: format!("shop/own#{rule}"),
                digest,
                effect: "deny".into(),
                mode: mode.clone(),
            };
            draft.policies = vec![rule("a"), rule("b")];
        }
    }

    fn loaded(digest: Digest, control: &str) -> Entry {
        entry(1, |draft| {
            draft.kind = Kind::PolicyLoaded;
            draft.detail.insert("policy".into(), json!("shop/own"));
            draft.detail.insert("digest".into(), json!(digest));
            let tags = json!([{ "framework": "Own", "control": control }]);
            draft.detail.insert("compliance".into(), tags);
        })
    }

    fn count(tally: &Tally<'_>, control: usize, source: Source) -> u64 {
        let line = |line: &&Line| (line.control, line.source) == (control, source);
        tally.lines.iter().find(line).unwrap().seen.count
    }

    #[test]
    fn the_first_and_the_newest_are_cited() {
        let frameworks = frameworks();
        let mut tally = Tally::new(&frameworks, Period::default(), 3);
        for index in 0..10 {
            tally.add(index, &entry(index, |_| {}));
        }
        let seen = &tally.lines[0].seen;
        assert_eq!(seen.count, 10);
        assert_eq!(seen.cited().collect::<Vec<_>>(), [0, 8, 9]);
        let ends = (Timestamp::from_secs(0), Timestamp::from_secs(9));
        assert_eq!(seen.span(), Some(ends));
        let mut one = Tally::new(&frameworks, Period::default(), 1);
        for index in 0..10 {
            one.add(index, &entry(index, |_| {}));
        }
        assert_eq!(one.lines[0].seen.cited().collect::<Vec<_>>(), [0]);
        assert_eq!(one.lines[0].seen.span(), Some(ends), "also where only one is cited");
    }

    #[test]
    fn the_period_is_half_open() {
        let frameworks = frameworks();
        let period =
            Period { since: Some(Timestamp::from_secs(3)), until: Some(Timestamp::from_secs(5)) };
        let mut tally = Tally::new(&frameworks, period, 9);
        for index in 0..10 {
            tally.add(index, &entry(index, |_| {}));
        }
        assert_eq!(tally.lines[0].seen.cited().collect::<Vec<_>>(), [3, 4]);
        assert_eq!(tally.all.count, 2);
    }

    #[test]
    fn a_tag_counts_for_the_version_that_carries_it_and_once_per_entry() {
        let frameworks = frameworks();
        let since = Some(Timestamp::from_secs(5));
        let mut tally = Tally::new(&frameworks, Period { since, until: None }, 3);
        let (tagged, other) = (Digest::of(b"tagged"), Digest::of(b"other"));
        // It took effect before the period.
        tally.add(0, &loaded(tagged, "B"));
        tally.add(1, &entry(6, spoke(tagged, "enforce")));
        tally.add(2, &entry(6, spoke(other, "enforce")));
        tally.add(3, &entry(6, spoke(tagged, "audit")));
        assert_eq!(count(&tally, 1, Source::Enforced), 1);
        assert_eq!(count(&tally, 1, Source::Audited), 1, "what only records is told apart");
        let line =
            tally.lines.iter().find(|line| line.source == Source::Enforced && line.control == 1);
        assert_eq!(line.unwrap().policies.iter().collect::<Vec<_>>(), ["shop/own"]);
        assert!(tally.doubts.is_empty());
    }

    #[test]
    fn a_tag_that_shows_nothing_is_doubted() {
        let frameworks = frameworks();
        let mut tally = Tally::new(&frameworks, Period::default(), 3);
        tally.add(0, &loaded(Digest::of(b"1"), "C"));
        tally.add(1, &loaded(Digest::of(b"2"), "D"));
        tally.add(2, &entry(6, spoke(Digest::of(b"1"), "enforce")));
        let doubts: Vec<&str> = tally.doubts[&0].iter().map(String::as_str).collect();
        assert!(doubts[0].contains("`C`, which nothing here can show"), "{doubts:?}");
        assert!(doubts[1].contains("`D`, which is no control of this list"), "{doubts:?}");
        assert!(tally.lines.iter().all(|line| line.policies.is_empty()));
    }
}
