//! A file of another system while it is read: who reads a field says so, and what nobody has read in
//! the end is refused by name. So no field is ignored, also none that this program has never heard of.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
};

use aegis_resources::place::{Step, locate_field};
use serde::Deserialize as _;
use serde_yaml_ng::{Deserializer, Value};

/// A field that cannot be enforced.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub(crate) struct Refusal {
    /// File, line and column.
    pub(crate) place: String,
    /// The field, such as `policies[2].limits[0].max_per_session`.
    pub(crate) field: String,
    /// Why.
    pub(crate) why: String,
}

impl std::fmt::Display for Refusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: `{}`: {}", self.place, self.field, self.why)
    }
}

type Path = Vec<Step>;

/// A file that is being read.
#[derive(Debug)]
pub(crate) struct Template {
    file: String,
    text: String,
    root: Value,
    /// What has been read, and what of that could not be enforced.
    read: RefCell<BTreeSet<Path>>,
    refused: RefCell<BTreeMap<Path, String>>,
    notes: RefCell<Vec<String>>,
}

/// A place in it, with what stands there.
#[derive(Clone, Debug)]
pub(crate) struct Field<'t> {
    template: &'t Template,
    path: Path,
    value: &'t Value,
}

impl Template {
    /// Reads a file's text: one document of YAML or JSON.
    ///
    /// # Errors
    /// One sentence with the place.
    pub(crate) fn parse(file: &str, text: &str) -> Result<Self, String> {
        let not_yaml = |error: serde_yaml_ng::Error| {
            let at = error
                .location()
                .map_or(String::new(), |at| format!(":{}:{}", at.line(), at.column()));
            format!("{file}{at}: is not YAML: {error}")
        };
        let mut documents = Deserializer::from_str(text);
        let Some(first) = documents.next() else { return Err(format!("{file}: holds no fields")) };
        let root = Value::deserialize(first).map_err(not_yaml)?;
        if documents.next().is_some() {
            return Err(format!("{file}: holds several documents; give a file for each"));
        }
        if !root.is_mapping() {
            return Err(format!("{file}: holds no fields"));
        }
        Ok(Self {
            file: file.to_owned(),
            text: text.to_owned(),
            root,
            read: RefCell::default(),
            refused: RefCell::default(),
            notes: RefCell::default(),
        })
    }

    pub(crate) fn root(&self) -> Field<'_> {
        Field { template: self, path: Path::new(), value: &self.root }
    }

    /// Says something about the translation as a whole, once.
    pub(crate) fn note(&self, text: impl Into<String>) {
        let (text, mut notes) = (text.into(), self.notes.borrow_mut());
        if !notes.contains(&text) {
            notes.push(text);
        }
    }

    pub(crate) fn notes(&self) -> Vec<String> {
        self.notes.borrow().clone()
    }

    /// Everything that is not enforced, in the order of the file: what was refused, and what nobody
    /// has read.
    pub(crate) fn refusals(&self) -> Vec<Refusal> {
        let mut refused = self.refused.borrow().clone();
        self.root().unread(&mut refused);
        let mut list: Vec<((usize, usize), Refusal)> = refused
            .into_iter()
            .map(|(path, why)| {
                let at = locate_field(&self.text, &path).unwrap_or((1, 1));
                let place = format!("{}:{}:{}", self.file, at.0, at.1);
                (at, Refusal { place, field: name(&path), why })
            })
            .collect();
        list.sort_by(|a, b| a.0.cmp(&b.0).then_with(|| a.1.field.cmp(&b.1.field)));
        list.into_iter().map(|(_, refusal)| refusal).collect()
    }
}

/// A path as people write it.
fn name(path: &[Step]) -> String {
    let mut name = String::new();
    for step in path {
        match step {
            Step::Key(key) if name.is_empty() => name.push_str(key),
            Step::Key(key) => {
                name.push('.');
                name.push_str(key);
            }
            Step::Item(number) => name.push_str(&format!("[{number}]")),
        }
    }
    name
}

/// A scalar as text; `None` for anything else.
fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) => Some(number.to_string()),
        Value::Bool(flag) => Some(flag.to_string()),
        _ => None,
    }
}

impl<'t> Field<'t> {
    fn at(&self, step: Step, value: &'t Value) -> Self {
        let mut path = self.path.clone();
        path.push(step);
        Self { template: self.template, path, value }
    }

    /// A member, if there is one.
    pub(crate) fn get(&self, key: &str) -> Option<Self> {
        let value = self.value.as_mapping()?.get(key)?;
        Some(self.at(Step::Key(key.to_owned()), value))
    }

    /// Whether there is such a member; it is not read by that.
    pub(crate) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    /// Every member with its name.
    pub(crate) fn members(&self) -> Vec<(String, Self)> {
        let members = self.value.as_mapping().into_iter().flatten();
        members
            .filter_map(|(key, value)| {
                let key = scalar(key)?;
                let field = self.at(Step::Key(key.clone()), value);
                Some((key, field))
            })
            .collect()
    }

    /// The items of a list; of anything else, that alone.
    pub(crate) fn items(&self) -> Vec<Self> {
        match self.value.as_sequence() {
            None => vec![self.clone()],
            Some(items) => {
                if items.is_empty() {
                    self.read();
                }
                let items = items.iter().enumerate();
                items.map(|(number, value)| self.at(Step::Item(number), value)).collect()
            }
        }
    }

    /// The items of a member that is a list; none where there is no such member.
    pub(crate) fn list(&self, key: &str) -> Vec<Self> {
        self.get(key).map(|field| field.items()).unwrap_or_default()
    }

    pub(crate) fn is_mapping(&self) -> bool {
        self.value.is_mapping()
    }

    pub(crate) fn is_text(&self) -> bool {
        self.value.is_string()
    }

    pub(crate) fn is_list(&self) -> bool {
        self.value.is_sequence()
    }

    pub(crate) fn value(&self) -> &'t Value {
        self.value
    }

    /// Notes that it has been read, and what is enforced says so.
    pub(crate) fn read(&self) {
        self.template.read.borrow_mut().insert(self.path.clone());
    }

    /// Refuses it, with everything in it.
    pub(crate) fn refuse(&self, why: impl Into<String>) {
        self.read();
        self.template.refused.borrow_mut().entry(self.path.clone()).or_insert_with(|| why.into());
    }

    /// Whether it, or anything in it, has been refused.
    pub(crate) fn is_refused(&self) -> bool {
        self.template.refused.borrow().keys().any(|path| path.starts_with(&self.path))
    }

    /// Says something about the translation as a whole.
    pub(crate) fn note(&self, text: impl Into<String>) {
        self.template.note(text);
    }

    /// Its text, read; refused where it is none.
    pub(crate) fn text(&self) -> Option<String> {
        let text = scalar(self.value);
        match text {
            Some(_) => self.read(),
            None => self.refuse("a text was expected here"),
        }
        text
    }

    /// The text of a member, read.
    pub(crate) fn text_of(&self, key: &str) -> Option<String> {
        self.get(key)?.text()
    }

    /// The texts of a member that is a list, read.
    pub(crate) fn texts_of(&self, key: &str) -> Vec<String> {
        self.list(key).iter().filter_map(Self::text).collect()
    }

    /// A number from 1 on, read; refused where it is none.
    pub(crate) fn number(&self) -> Option<u32> {
        let number = self.value.as_u64().and_then(|number| u32::try_from(number).ok());
        match number.filter(|number| *number > 0) {
            Some(number) => {
                self.read();
                Some(number)
            }
            None => {
                self.refuse("a whole number from 1 on was expected here");
                None
            }
        }
    }

    /// Demands one of these texts: what Aegis does in any case.
    pub(crate) fn must_be(&self, expected: &[&str], why: &str) {
        let found = scalar(self.value);
        if found.is_some_and(|found| expected.contains(&found.as_str())) {
            self.read();
        } else {
            self.refuse(why);
        }
    }

    /// Members that say nothing that could be enforced: names and descriptions.
    pub(crate) fn describe(&self, keys: &[&str]) {
        for field in keys.iter().filter_map(|key| self.get(key)) {
            if scalar(field.value).is_some() {
                field.read();
            }
        }
    }

    /// Refuses every leaf that nobody has read; a subtree that nobody has looked into, as a whole.
    fn unread(&self, refused: &mut BTreeMap<Path, String>) {
        if refused.contains_key(&self.path) || self.template.read.borrow().contains(&self.path) {
            return;
        }
        let touched = self.path.is_empty()
            || self.template.read.borrow().iter().any(|path| path.starts_with(&self.path));
        let children: Vec<Self> = match self.value {
            Value::Mapping(_) => self.members().into_iter().map(|(_, field)| field).collect(),
            Value::Sequence(items) => {
                let items = items.iter().enumerate();
                items.map(|(number, value)| self.at(Step::Item(number), value)).collect()
            }
            _ => Vec::new(),
        };
        if touched && !children.is_empty() {
            children.iter().for_each(|child| child.unread(refused));
            return;
        }
        let why = if children.is_empty() {
            "nothing in Aegis enforces it"
        } else {
            "nothing in Aegis enforces it, nor anything in it"
        };
        refused.insert(self.path.clone(), why.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "name: x\nrules:\n  - tool: a\n    colour: red\n    when: {hour: 3}\n  - tool: b\nother:\n  deep: [1, 2]\nempty: []\n";

    #[test]
    fn what_nobody_reads_is_refused_with_its_line() {
        let template = Template::parse("t.yaml", TEXT).unwrap();
        let root = template.root();
        assert_eq!(root.text_of("name").as_deref(), Some("x"));
        for rule in root.list("rules") {
            rule.text_of("tool").unwrap();
        }
        let told: Vec<String> = template.refusals().iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "t.yaml:4:5: `rules[0].colour`: nothing in Aegis enforces it",
                "t.yaml:5:5: `rules[0].when`: nothing in Aegis enforces it, nor anything in it",
                "t.yaml:7:1: `other`: nothing in Aegis enforces it, nor anything in it",
                "t.yaml:9:1: `empty`: nothing in Aegis enforces it",
            ]
        );
    }

    #[test]
    fn what_has_another_shape_is_refused() {
        let template = Template::parse("t.yaml", TEXT).unwrap();
        let root = template.root();
        assert_eq!(root.text_of("rules"), None);
        assert_eq!(root.get("name").unwrap().number(), None);
        assert!(root.get("rules").unwrap().is_refused() && root.is_refused());
        let told = template.refusals();
        assert!(told.iter().any(|r| r.field == "name" && r.why.contains("whole number")));
        for (text, expected) in [
            ("a: [", "t.yaml:"),
            ("", "holds no fields"),
            ("- a", "holds no fields"),
            ("a: 1\n---\nb: 2\n", "several documents"),
            ("a: 'x\\'s'y\n", "t.yaml:1:"),
        ] {
            let said = Template::parse("t.yaml", text).unwrap_err();
            assert!(said.contains(expected), "{said}");
        }
    }
}
