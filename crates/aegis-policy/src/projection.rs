//! Which parts of the input document a policy reads, and writing just those.
//!
//! The policy engine's cost is mostly the module parsing its input, so what no rule reads is
//! not written. A policy whose references cannot be told apart gets the whole document.

use aegis_core::input::Input;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The leaves that can be written alone, in the order of [`FIELDS`].
const FIELDS: [(&str, FieldType); 27] = [
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
}

impl Projection {
    /// The whole document.
    #[must_use]
    pub const fn whole() -> Self {
        Self { fields: 0, arguments: Arguments::All, whole: true }
    }

    /// Adds what a reference `input.<path>` reads: a leaf, everything below a section, or, where
    /// the path is empty or unknown, the whole document.
    pub fn add(&mut self, path: &[&str]) {
        match path {
            ["action", "arguments"] => self.arguments = Arguments::All,
            ["action", "arguments", member, ..] => match &mut self.arguments {
                Arguments::All => {}
                Arguments::None => self.arguments = Arguments::Members(vec![(*member).to_owned()]),
                Arguments::Members(members) => {
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

    /// Adds what another reads.
    pub fn join(&mut self, other: &Self) {
        if other.whole {
            *self = Self::whole();
            return;
        }
        self.fields |= other.fields;
        match &other.arguments {
            Arguments::None => {}
            Arguments::All => self.arguments = Arguments::All,
            Arguments::Members(members) => {
                for member in members {
                    self.add(&["action", "arguments", member]);
                }
            }
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
        let mut fields = self.fields;
        let mut section = "";
        out.push(b'{');
        if !matches!(self.arguments, Arguments::None) {
            open(out, &mut section, "action");
            out.extend_from_slice(b"\"arguments\":");
            let empty = Value::Object(serde_json::Map::new());
            let value = if arguments { input.action.arguments } else { &empty };
            self.arguments.write(value, out)?;
        }
        while fields != 0 {
            let i = fields.trailing_zeros();
            fields &= fields - 1;
            let Some((name, _)) = usize::try_from(i).ok().and_then(|i| FIELDS.get(i)) else {
                break;
            };
            if let Some((of, member)) = name.split_once('.') {
                write_field(input, i, of, member, &mut section, out)?;
            }
        }
        if !section.is_empty() {
            out.push(b'}');
        }
        out.push(b'}');
        Ok(())
    }
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
}

fn write_value(value: &Value, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    match value {
        Value::String(text) => write_text(text, out),
        other => serde_json::to_writer(out, other),
    }
}

/// A string; most need no escape.
fn write_text(text: &str, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
    if text.bytes().any(|b| b < 0x20 || b == b'"' || b == b'\\') {
        return serde_json::to_writer(out, text);
    }
    out.push(b'"');
    out.extend_from_slice(text.as_bytes());
    out.push(b'"');
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

fn write_field(
    input: &Input<'_>,
    index: u32,
    of: &'static str,
    member: &'static str,
    section: &mut &'static str,
    out: &mut Vec<u8>,
) -> Result<(), serde_json::Error> {
    let (action, principal, context) = (&input.action, &input.principal, &input.context);
    let provenance = input.provenance.as_ref();
    let absent = match index {
        4 => action.tool.is_none(),
        5 => action.resource.is_none(),
        14..=16 => provenance.is_none(),
        18 => context.intent.is_none(),
        19 => context.session.is_none(),
        _ => false,
    };
    if absent {
        return Ok(());
    }
    open(out, section, of);
    out.push(b'"');
    out.extend_from_slice(member.as_bytes());
    out.extend_from_slice(b"\":");
    let text = match index {
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
        _ => return write_other(input, index, out),
    };
    write_text(text, out)
}

fn write_other(input: &Input<'_>, index: u32, out: &mut Vec<u8>) -> Result<(), serde_json::Error> {
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
