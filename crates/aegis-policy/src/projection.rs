//! Which parts of the input document a policy reads, and writing just those.
//!
//! The policy engine's cost is mostly the module parsing its input, so what no rule reads is
//! not written. A policy whose references cannot be told apart gets the whole document.
//!
//! Raw Rego sees the document in its documented form. Rules that Aegis translates see the same leaves
//! in one flat object, `{"tool":…,"trust":…,"$.query":…}`, because nested objects cost a module more
//! than what is in them.

use aegis_core::input::Input;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The leaves that can be written alone, in the order of [`FIELDS`].
const FIELDS: [(&str, FieldType); 28] = [
    ("action.kind", FieldType::Text),
    ("action.protocol", FieldType::Text),
    ("action.method", FieldType::Text),
    ("action.server", FieldType::Text),
    ("action.tool", FieldType::Text),
    ("action.resource", FieldType::Text),
    ("action.digest", FieldType::Text),
    ("principal.id", FieldType::Text),
    ("principal.name", FieldType::Text),
    ("principal.namespace", FieldType::Text),
    ("principal.sponsor", FieldType::Text),
    ("principal.capabilities", FieldType::List),
    ("principal.delegation", FieldType::List),
    ("principal.trust", FieldType::Number),
    ("provenance.signer", FieldType::Text),
    ("provenance.trust", FieldType::Number),
    ("provenance.signed", FieldType::Text),
    ("context.scope", FieldType::Text),
    ("context.intent", FieldType::Text),
    ("context.session", FieldType::Text),
    ("context.approvals", FieldType::Number),
    ("context.mfa", FieldType::Boolean),
    ("context.rate", FieldType::Number),
    ("context.tier", FieldType::Text),
    ("context.risk", FieldType::Object),
    ("context.now", FieldType::Text),
    ("context.now_secs", FieldType::Number),
    // Came later, and bundles hold the numbers of the others.
    ("action.endpoint", FieldType::Text),
];

/// The fields as they are written: those of a section one after another.
const ORDER: [usize; FIELDS.len()] = [
    0, 1, 2, 3, 4, 5, 27, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23, 24,
    25, 26,
];

/// The members of `context.risk` that conditions may name.
const RISK_FIELDS: [(&str, FieldType); 4] = [
    ("context.risk.score", FieldType::Number),
    ("context.risk.scope", FieldType::Number),
    ("context.risk.sensitivity", FieldType::Number),
    ("context.risk.grade", FieldType::Text),
];

/// What a field of the input document holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum FieldType {
    /// A string.
    Text,
    /// A number.
    Number,
    /// A boolean.
    Boolean,
    /// A list of strings.
    List,
    /// An object; not to be compared.
    Object,
}

/// The type of a field of the input document by its dotted name; `None` if there is none.
#[must_use]
pub(crate) fn field_type(name: &str) -> Option<FieldType> {
    FIELDS.iter().chain(&RISK_FIELDS).find(|(known, _)| *known == name).map(|(_, kind)| *kind)
}

/// The names of all fields, for messages.
#[must_use]
pub(crate) fn field_names() -> String {
    let names = FIELDS.iter().chain(&RISK_FIELDS).filter(|(_, kind)| *kind != FieldType::Object);
    names.map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
}

/// The parts of the input document that an entry point reads.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Projection {
    /// Bit `i` stands for `FIELDS[i]`.
    fields: u64,
    arguments: Arguments,
    whole: bool,
    /// Whether the leaves are written in one flat object.
    #[serde(default)]
    flat: bool,
}

/// Which arguments.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Arguments {
    /// None.
    #[default]
    None,
    /// These members of the top level.
    Members(Vec<String>),
    /// All.
    All,
    /// All, and in a flat object also these members of the top level by themselves.
    AllAndMembers(Vec<String>),
}

impl Projection {
    /// The whole document.
    #[must_use]
    pub const fn whole() -> Self {
        Self { fields: 0, arguments: Arguments::All, whole: true, flat: false }
    }

    /// Nothing yet, to be written as one flat object.
    #[must_use]
    pub const fn flat() -> Self {
        Self { fields: 0, arguments: Arguments::None, whole: false, flat: true }
    }

    /// Adds what a reference `input.<path>` reads: a leaf, everything below a section, or, where
    /// the path is empty or unknown, the whole document.
    pub fn add(&mut self, path: &[&str]) {
        match path {
            ["action", "arguments"] => {
                self.arguments = match std::mem::take(&mut self.arguments) {
                    _ if !self.flat => Arguments::All,
                    Arguments::Members(members) | Arguments::AllAndMembers(members) => {
                        Arguments::AllAndMembers(members)
                    }
                    Arguments::None | Arguments::All => Arguments::AllAndMembers(Vec::new()),
                };
            }
            ["action", "arguments", member, ..] => match &mut self.arguments {
                Arguments::All => {}
                Arguments::None => self.arguments = Arguments::Members(vec![(*member).to_owned()]),
                Arguments::Members(members) | Arguments::AllAndMembers(members) => {
                    if !members.iter().any(|known| known == member) {
                        members.push((*member).to_owned());
                    }
                }
            },
            [section, field, ..] => {
                let name = format!("{section}.{field}");
                // A field that the document does not have is undefined either way.
                if let Some(i) = FIELDS.iter().position(|(known, _)| *known == name) {
                    self.fields |= 1 << i;
                }
            }
            ["provenance"] => self.fields |= 0b111 << 14,
            _ => *self = Self::whole(),
        }
    }

    /// Whether it is the whole document.
    #[must_use]
    pub const fn is_whole(&self) -> bool {
        self.whole
    }

    /// Writes the projected document. With `arguments` false, as if the action had none.
    ///
    /// # Errors
    /// When a part cannot be written as JSON.
    pub fn write(
        &self,
        input: &Input<'_>,
        arguments: bool,
        out: &mut Vec<u8>,
    ) -> Result<(), serde_json::Error> {
        out.clear();
        if self.whole {
            return write_whole(input, arguments, out);
        }
        let empty = Value::Object(serde_json::Map::new());
        let value = if arguments { input.action.arguments } else { &empty };
        out.push(b'{');
        if self.flat {
            self.arguments.write_flat(value, out)?;
            for (i, name) in self.present(input) {
                comma(out);
                name_member(flat_name(name), out);
                write_leaf(input, i, out)?;
            }
            out.push(b'}');
            return Ok(());
        }
        let mut section = "";
        if !matches!(self.arguments, Arguments::None) {
            open(out, &mut section, "action");
            name_member("arguments", out);
            self.arguments.write(value, out)?;
        }
        for (i, name) in self.present(input) {
            if let Some((of, member)) = name.split_once('.') {
                open(out, &mut section, of);
                name_member(member, out);
                write_leaf(input, i, out)?;
            }
        }
        if !section.is_empty() {
            out.push(b'}');
        }
        out.push(b'}');
        Ok(())
    }

    /// The wanted fields that the input has, in order.
    fn present<'a>(
        &self,
        input: &'a Input<'_>,
    ) -> impl Iterator<Item = (usize, &'static str)> + 'a {
        let fields = self.fields;
        let wanted = ORDER.iter().filter(move |i| (fields >> **i) & 1 == 1);
        let named = wanted.filter_map(|i| FIELDS.get(*i).map(|(name, _)| (*i, *name)));
        named.filter(move |(i, _)| !is_absent(input, *i))
    }
}

/// The name of a field in a flat object: the last part, which is its own but for one.
pub(crate) fn flat_name(field: &str) -> &str {
    match field {
        "provenance.trust" => "signer_trust",
        other => other.split_once('.').map_or(other, |(_, member)| member),
    }
}

fn comma(out: &mut Vec<u8>) {
    if out.last() != Some(&b'{') {
        out.push(b',');
    }
}

/// A name that needs no escape, and the colon.
fn name_member(name: &str, out: &mut Vec<u8>) {
    out.push(b'"');
    out.extend_from_slice(name.as_bytes());
    out.extend_from_slice(b"\":");
}

impl Arguments {
    fn write(&self, value: &Value, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        match (self, value) {
            (Self::Members(wanted), Value::Object(members)) => {
                out.push(b'{');
                let mut first = true;
                for name in wanted {
                    if let Some(member) = members.get(name) {
                        if !first {
                            out.push(b',');
                        }
                        first = false;
                        serde_json::to_writer(&mut *out, name)?;
                        out.push(b':');
                        write_value(member, out)?;
                    }
                }
                out.push(b'}');
                Ok(())
            }
            _ => write_value(value, out),
        }
    }

    /// `$` for all and `$.<name>` for a member.
    fn write_flat(&self, value: &Value, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
        let (all, wanted) = match self {
            Self::None => return Ok(()),
            Self::All => (true, &[][..]),
            Self::Members(members) => (false, members.as_slice()),
            Self::AllAndMembers(members) => (true, members.as_slice()),
        };
        if all {
            name_member("$", out);
            write_value(value, out)?;
        }
        let Value::Object(members) = value else { return Ok(()) };
        for name in wanted {
            if let Some(member) = members.get(name) {
                comma(out);
                out.extend_from_slice(b"\"$.");
                write_escaped(name, out)?;
                out.extend_from_slice(b"\":");
                write_value(member, out)?;
            }
        }
        Ok(())
    }
}

fn write_value(value: &Value, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    match value {
        Value::String(text) => write_text(text, out),
        other => serde_json::to_writer(out, other),
    }
}

fn write_text(text: &str, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    out.push(b'"');
    write_escaped(text, out)?;
    out.push(b'"');
    Ok(())
}

/// The inside of a string; most need no escape.
fn write_escaped(text: &str, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    // Without a branch a byte, so that many are looked at at once.
    let special = |b: u8| (b < 0x20) | (b == b'"') | (b == b'\\');
    if !text.as_bytes().iter().fold(false, |found, b| found | special(*b)) {
        out.extend_from_slice(text.as_bytes());
        return Ok(());
    }
    let start = out.len();
    serde_json::to_writer(&mut *out, text)?;
    // Without the quotes around it.
    out.remove(start);
    out.pop();
    Ok(())
}

/// Opens `section`, closing the one before, and writes the comma between members.
fn open(out: &mut Vec<u8>, current: &mut &'static str, section: &'static str) {
    if *current == section {
        out.push(b',');
        return;
    }
    if !current.is_empty() {
        out.extend_from_slice(b"},");
    }
    *current = section;
    out.push(b'"');
    out.extend_from_slice(section.as_bytes());
    out.extend_from_slice(b"\":{");
}

fn is_absent(input: &Input<'_>, field: usize) -> bool {
    match field {
        4 => input.action.tool.is_none(),
        5 => input.action.resource.is_none(),
        14..=16 => input.provenance.is_none(),
        18 => input.context.intent.is_none(),
        19 => input.context.session.is_none(),
        27 => input.action.endpoint.is_none(),
        _ => false,
    }
}

fn write_leaf(input: &Input<'_>, field: usize, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    let (action, principal, context) = (&input.action, &input.principal, &input.context);
    let text = match field {
        0 => action.kind.as_str(),
        1 => action.protocol.as_str(),
        2 => action.method,
        3 => action.server,
        4 => action.tool.unwrap_or_default(),
        5 => action.resource.unwrap_or_default(),
        7 => principal.id.as_str(),
        8 => principal.name,
        9 => principal.namespace,
        10 => principal.sponsor,
        18 => context.intent.unwrap_or_default(),
        19 => context.session.unwrap_or_default(),
        27 => action.endpoint.unwrap_or_default(),
        _ => return write_other(input, field, out),
    };
    write_text(text, out)
}

fn write_other(
    input: &Input<'_>,
    index: usize,
    out: &mut Vec<u8>,
) -> Result<(), serde_json::Error> {
    let (principal, context) = (&input.principal, &input.context);
    match (index, input.provenance.as_ref()) {
        (6, _) => serde_json::to_writer(out, &input.action.digest),
        (11, _) => serde_json::to_writer(out, principal.capabilities),
        (12, _) => serde_json::to_writer(out, principal.delegation),
        (13, _) => serde_json::to_writer(out, &principal.trust),
        (14, Some(provenance)) => write_text(provenance.signer.as_str(), out),
        (15, Some(provenance)) => serde_json::to_writer(out, &provenance.trust),
        (16, Some(provenance)) => write_text(provenance.signed, out),
        (17, _) => serde_json::to_writer(out, &context.scope),
        (20, _) => serde_json::to_writer(out, &context.approvals),
        (21, _) => serde_json::to_writer(out, &context.mfa),
        (22, _) => serde_json::to_writer(out, &context.rate),
        (23, _) => serde_json::to_writer(out, &context.tier),
        (24, _) => serde_json::to_writer(out, &context.risk),
        (25, _) => serde_json::to_writer(out, &context.now),
        (26, _) => serde_json::to_writer(out, &context.now_secs),
        _ => serde_json::to_writer(out, &Value::Null),
    }
}

fn write_whole(
    input: &Input<'_>,
    arguments: bool,
    out: &mut Vec<u8>,
) -> Result<(), serde_json::Error> {
    if arguments {
        return serde_json::to_writer(out, input);
    }
    let empty = Value::Object(serde_json::Map::new());
    let mut without = input.clone();
    without.action.arguments = &empty;
    serde_json::to_writer(out, &without)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_in_a_flat_object_are_distinct() {
        let names: BTreeSet<_> = FIELDS.iter().map(|(name, _)| flat_name(name)).collect();
        assert_eq!(names.len(), FIELDS.len());
        assert!(names.iter().all(|name| !name.starts_with('$')));
    }

    #[test]
    fn every_field_is_written_once_beside_those_of_its_section() {
        let order: BTreeSet<usize> = ORDER.into_iter().collect();
        assert_eq!(order, (0..FIELDS.len()).collect());
        let sections = ORDER.map(|i| FIELDS[i].0.split_once('.').unwrap().0);
        let mut runs = sections.to_vec();
        runs.dedup();
        assert_eq!(runs, ["action", "principal", "provenance", "context"]);
    }

    #[test]
    fn arguments_in_a_flat_object_are_leaves() {
        let arguments = serde_json::json!({ "a\"b": 1, "c": "x\\y" });
        let written = |paths: &[&[&str]], value: &Value| {
            let mut projection = Projection::flat();
            paths.iter().for_each(|path| projection.add(path));
            let mut out = b"{".to_vec();
            projection.arguments.write_flat(value, &mut out).unwrap();
            out.push(b'}');
            serde_json::from_slice::<Value>(&out).unwrap()
        };
        let (one, other) = (["action", "arguments", "a\"b"], ["action", "arguments", "c"]);
        let missing = ["action", "arguments", "d"];
        let all = ["action", "arguments"];
        let members = serde_json::json!({ "$.a\"b": 1, "$.c": "x\\y" });
        assert_eq!(written(&[&one, &missing, &other], &arguments), members);
        for order in [[&one[..], &all[..]], [&all[..], &one[..]]] {
            let expected = serde_json::json!({ "$.a\"b": 1, "$": arguments });
            assert_eq!(written(&order, &arguments), expected);
        }
        assert_eq!(written(&[&one], &serde_json::json!([1])), serde_json::json!({}));
    }
}
