//! Where in a file something stands: the line and column that a message names.
//!
//! A document is read into a value first, and a value has no lines. Only where something is wrong
//! with it, its text is read once more, straight into the resource's type, for the place and the
//! words of the error.

use serde::{
    Deserialize,
    de::{DeserializeOwned, DeserializeSeed, IgnoredAny, MapAccess, Visitor},
};
use serde_yaml_ng::Deserializer;

use crate::{nearest::did_you_mean, resource::Metadata};

/// Where a document stands.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The file.
    pub file: String,
    /// The line that it begins at, from 1.
    pub line: usize,
    /// The line above its Rego, where that is a literal block.
    rego: Option<usize>,
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.file, self.line)
    }
}

impl Place {
    /// The place of a document, counted from 0, in the text of `file`.
    pub(crate) fn of(file: &str, text: &str, document: usize) -> Self {
        let line = locate(text, document, &[]).map_or(1, |(line, _)| line);
        let rego = locate(text, document, &["spec", "rego"]).filter(|(line, column)| {
            let row = text.lines().nth(line.saturating_sub(1)).unwrap_or_default();
            row.chars().nth(column.saturating_sub(1)) == Some('|')
        });
        Self { file: file.into(), line, rego: rego.map(|(line, _)| line) }
    }

    /// The file and line of a line of its Rego, from 1; of the document where that is not told.
    #[must_use]
    pub fn in_rego(&self, line: Option<u32>) -> String {
        let within = line.and_then(|line| Some(self.rego? + usize::try_from(line).ok()?));
        format!("{}:{}", self.file, within.unwrap_or(self.line))
    }
}

/// Walks down a path of keys and fails at its end: the error tells the place.
struct Walk<'a>(&'a [&'a str]);

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the end of the path")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((wanted, rest)) = self.0.split_first() else {
            return Err(serde::de::Error::custom("here"));
        };
        while let Some(key) = map.next_key::<String>()? {
            if key == *wanted {
                return map.next_value_seed(Walk(rest));
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

/// A step down a document.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// Into the member of this name.
    Key(String),
    /// Into the item of this number, from 0.
    Item(usize),
}

/// Line and column of a field in a text of one document: of its name, or of the item.
#[must_use]
pub fn locate_field(text: &str, path: &[Step]) -> Option<(usize, usize)> {
    let document = Deserializer::from_str(text).next()?;
    let at = Descend(path).deserialize(document).err()?.location()?;
    Some((at.line(), at.column()))
}

/// Walks down steps and fails where the last one leads.
struct Descend<'a>(&'a [Step]);

/// A key, read; fails at the one that is wanted if nothing comes after it.
struct Key<'a> {
    wanted: &'a str,
    last: bool,
}

impl<'de> DeserializeSeed<'de> for Descend<'_> {
    type Value = ();

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Descend<'_> {
    type Value = ();

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("the end of the path")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((Step::Key(wanted), rest)) = self.0.split_first() else {
            return Err(serde::de::Error::custom("here"));
        };
        while let Some(found) = map.next_key_seed(Key { wanted, last: rest.is_empty() })? {
            if found {
                return map.next_value_seed(Descend(rest));
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }

    fn visit_seq<A: serde::de::SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let Some((Step::Item(wanted), rest)) = self.0.split_first() else {
            return Err(serde::de::Error::custom("here"));
        };
        for _ in 0..*wanted {
            items.next_element::<IgnoredAny>()?;
        }
        items.next_element_seed(Descend(rest)).map(|_| ())
    }
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = bool;

    fn deserialize<D: serde::Deserializer<'de>>(self, from: D) -> Result<bool, D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = bool;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("another key")
    }

    fn visit_str<E: serde::de::Error>(self, key: &str) -> Result<bool, E> {
        match key == self.wanted {
            true if self.last => Err(E::custom("here")),
            found => Ok(found),
        }
    }
}

/// Line and column of what stands at a path of keys in a document.
fn locate(text: &str, document: usize, path: &[&str]) -> Option<(usize, usize)> {
    let document = Deserializer::from_str(text).nth(document)?;
    let at = Walk(path).deserialize(document).err()?.location()?;
    Some((at.line(), at.column()))
}

/// Line and column of the deepest thing that a message names, such as `` `spec.selector` ``.
pub(crate) fn locate_named(text: &str, document: usize, message: &str) -> Option<(usize, usize)> {
    // "Kind `name`: `spec.field` …", or "metadata.name is …".
    let (subject, fault) = message.split_once("`: ").unwrap_or_default();
    let named = if subject.is_empty() {
        message.split(' ').next().unwrap_or_default()
    } else {
        fault.split('`').nth(1).unwrap_or_default()
    };
    let mut path: Vec<&str> = named.split('.').collect();
    if !subject.is_empty() && path.first() != Some(&"spec") {
        path.insert(0, "spec");
    }
    while !path.is_empty() {
        if let Some(found) = locate(text, document, &path) {
            return Some(found);
        }
        path.pop();
    }
    locate(text, document, &[])
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, bound = "S: DeserializeOwned")]
struct Typed<S> {
    #[serde(rename = "apiVersion")]
    _api_version: IgnoredAny,
    #[serde(rename = "kind")]
    _kind: IgnoredAny,
    #[serde(rename = "metadata")]
    _metadata: Metadata,
    #[serde(rename = "spec")]
    _spec: Option<S>,
    #[serde(rename = "status")]
    _status: Option<IgnoredAny>,
}

/// What is wrong with a document that is no resource with the specification `S`, and its line and
/// column; `None` if reading its text finds nothing wrong.
pub(crate) fn explain<S: DeserializeOwned>(
    text: &str,
    document: usize,
) -> Option<((usize, usize), String)> {
    let document = Deserializer::from_str(text).nth(document)?;
    let error = Typed::<S>::deserialize(document).err()?;
    let at = error.location()?;
    let (line, column) = (at.line(), at.column());
    let said = error.to_string();
    let said = said.strip_suffix(&format!(" at line {line} column {column}")).unwrap_or(&said);
    Some(((line, column), in_plain_words(said)))
}

/// Says of an unknown word what is known, and which word is near.
pub(crate) fn in_plain_words(message: &str) -> String {
    for (given, told) in
        [("unknown variant `", "unknown value"), ("unknown field `", "unknown field")]
    {
        let Some((path, rest)) = message.split_once(given) else { continue };
        let word = rest.split('`').next().unwrap_or_default();
        let known: Vec<&str> = rest.split('`').skip(2).step_by(2).collect();
        if known.is_empty() {
            return format!("{path}{told} `{word}`; nothing can stand here");
        }
        let list: Vec<String> = known.iter().map(|word| format!("`{word}`")).collect();
        let near = did_you_mean(word, known.iter().copied());
        return format!("{path}{told} `{word}`; expected {}{near}", list.join(", "));
    }
    message.to_owned()
}

#[cfg(test)]
mod tests {
    use aegis_core::policy::PolicySpec;

    use super::*;

    const TEXT: &str = "# a comment\na: 1\n---\napiVersion: v\nkind: k\nmetadata: {name: x}\nspec:\n  rules:\n    - name: a\n      effect: denny\n  rego: |\n    package x\n";

    #[test]
    fn places_are_counted_over_documents() {
        assert_eq!(locate(TEXT, 0, &[]), Some((2, 1)));
        assert_eq!(locate(TEXT, 1, &[]), Some((4, 1)));
        assert_eq!(locate(TEXT, 1, &["spec", "rego"]), Some((11, 9)));
        assert_eq!(locate(TEXT, 1, &["spec", "other"]), None);
        let place = Place::of("p.yaml", TEXT, 1);
        assert_eq!(place.to_string(), "p.yaml:4");
        assert_eq!(place.in_rego(Some(1)), "p.yaml:12");
        assert_eq!(place.in_rego(None), "p.yaml:4");
    }

    #[test]
    fn a_field_has_the_place_of_its_name() {
        let text = "a: 1\nb:\n  - c: {d: 2}\n  - [x, y]\n";
        let key = |name: &str| Step::Key(name.into());
        for (path, expected) in [
            (vec![key("a")], Some((1, 1))),
            (vec![key("b")], Some((2, 1))),
            (vec![key("b"), Step::Item(0)], Some((3, 5))),
            (vec![key("b"), Step::Item(0), key("c"), key("d")], Some((3, 9))),
            (vec![key("b"), Step::Item(1), Step::Item(1)], Some((4, 9))),
            (vec![key("z")], None),
        ] {
            assert_eq!(locate_field(text, &path), expected, "{path:?}");
        }
    }

    #[test]
    fn an_unknown_word_is_explained_at_its_place() {
        let (at, said) = explain::<PolicySpec>(TEXT, 1).unwrap();
        assert_eq!(at, (10, 15));
        assert_eq!(
            said,
            "spec.rules[0].effect: unknown value `denny`; expected `allow`, `require_approval`, `deny`; did you mean `deny`?"
        );
        let text = TEXT.replace("denny", "deny").replace("  rules:", "  rulez:");
        let (at, said) = explain::<PolicySpec>(&text, 1).unwrap();
        assert_eq!(at, (8, 3));
        assert!(said.contains("unknown field `rulez`; expected `selector`, "), "{said}");
        assert!(said.ends_with("did you mean `rules`?"), "{said}");
    }
}
