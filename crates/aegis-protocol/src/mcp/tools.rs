//! Tool definitions: what was pinned is what is called.
//!
//! A server can change what a tool says it does after somebody has approved it. So the pin is the
//! digest of the whole definition in canonical form: name, title, description, both schemas,
//! annotations, icons, vendor members and `_meta` too, since clients hand it to models. Nothing is
//! left out as volatile: a server that varies a definition from list to list cannot be pinned.
//!
//! The search for hidden text is a warning only; it proves nothing.

use std::collections::BTreeMap;

use aegis_core::{Digest, canonical, decision::Reason};
use serde_json::{Map, Value};

use super::{
    HeaderParam,
    name::{self, NameError},
};

/// One tool's definition, pinned.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tool {
    /// Its name.
    pub name: String,
    /// The digest of its definition.
    pub pin: Digest,
    /// The arguments that it mirrors into headers (`x-mcp-header`).
    pub header_params: Vec<HeaderParam>,
    /// What looks hidden in its texts. Warnings only.
    pub findings: Vec<Finding>,
}

/// The tools of one server, by name.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ToolSet {
    tools: BTreeMap<String, Tool>,
}

/// How a definition compares with the pins.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Change {
    /// There is no pin of this name.
    New,
    /// The definition is the pinned one.
    Unchanged,
    /// The definition is another.
    Changed,
}

/// Something in a definition that a person would not see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub kind: FindingKind,
    /// Where: a JSON pointer (RFC 6901) into the definition.
    pub pointer: String,
}

/// Kinds of hidden text.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FindingKind {
    /// Characters without width.
    ZeroWidth,
    /// Unicode tags, which spell ASCII invisibly.
    Tags,
    /// Characters that change the direction of text.
    Bidi,
    /// Control characters such as the terminal's escape.
    Control,
    /// A comment that renderers hide.
    HtmlComment,
}

/// Why a definition is refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ToolError {
    /// Not an object with a name and an object as input schema.
    #[error("a tool must be an object with `name` and the object `inputSchema`")]
    Malformed,
    /// Its name could be taken for another.
    #[error(transparent)]
    Name(#[from] NameError),
    /// It holds a number that a double cannot hold exactly.
    #[error("the definition holds a number that a double cannot hold exactly")]
    InexactNumber,
    /// An `x-mcp-header` that server/tools forbids.
    #[error("the definition's `x-mcp-header` is not allowed at {0}")]
    HeaderParam(String),
    /// Two tools of one name.
    #[error("the list holds two tools of one name")]
    DuplicateName,
}

impl ToolError {
    /// The reason the tool is refused for.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::Name(_) => Reason::ToolUnknown,
            _ => Reason::UpstreamMalformed,
        }
    }
}

impl Tool {
    /// Reads one item of `tools/list`.
    ///
    /// # Errors
    /// When it is not a definition that can be pinned.
    pub fn read(definition: &Value) -> Result<Self, ToolError> {
        let name = definition.get("name").and_then(Value::as_str).ok_or(ToolError::Malformed)?;
        name::check(name)?;
        let schema = definition.get("inputSchema").filter(|schema| schema.is_object());
        let schema = schema.ok_or(ToolError::Malformed)?;
        let mut text = b"aegis.tool.v1\n".to_vec();
        canonical::write_value(&mut text, definition).map_err(|_| ToolError::InexactNumber)?;
        let mut header_params = Vec::new();
        find_header_params(schema, &mut Vec::new(), true, &mut header_params)?;
        let mut findings = Vec::new();
        find_hidden(definition, &mut String::new(), &mut findings);
        Ok(Self { name: name.to_owned(), pin: Digest::of(&text), header_params, findings })
    }
}

impl ToolSet {
    /// Adds the tools of a page.
    ///
    /// # Errors
    /// [`ToolError::DuplicateName`] when a name comes again, on this page or an earlier one.
    pub fn add(&mut self, tool: Tool) -> Result<(), ToolError> {
        if self.tools.contains_key(&tool.name) {
            return Err(ToolError::DuplicateName);
        }
        self.tools.insert(tool.name.clone(), tool);
        Ok(())
    }

    /// The tool of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Tool> {
        self.tools.get(name)
    }

    /// All tools in the order of their names.
    pub fn iter(&self) -> impl Iterator<Item = &Tool> {
        self.tools.values()
    }

    /// How `tool` compares with the tool of its name in this set of pins.
    #[must_use]
    pub fn compare(&self, tool: &Tool) -> Change {
        match self.tools.get(&tool.name) {
            None => Change::New,
            Some(pinned) if pinned.pin == tool.pin => Change::Unchanged,
            Some(_) => Change::Changed,
        }
    }
}

/// Collects `x-mcp-header` along chains of `properties`; anywhere else it is an error.
fn find_header_params(
    schema: &Value,
    path: &mut Vec<String>,
    reachable: bool,
    found: &mut Vec<HeaderParam>,
) -> Result<(), ToolError> {
    match schema {
        Value::Array(items) => {
            items.iter().try_for_each(|item| find_header_params(item, path, false, found))
        }
        Value::Object(members) => {
            if let Some(header) = members.get("x-mcp-header") {
                let param = header_param(header, members, path, reachable, found);
                found.push(param.ok_or_else(|| ToolError::HeaderParam(path.join(".")))?);
            }
            for (name, member) in members {
                match (name.as_str(), member) {
                    // Data, not schemas.
                    ("enum" | "const" | "default" | "examples", _) => {}
                    ("properties", Value::Object(properties)) => {
                        for (property, schema) in properties {
                            path.push(property.clone());
                            find_header_params(schema, path, reachable, found)?;
                            path.pop();
                        }
                    }
                    _ => find_header_params(member, path, false, found)?,
                }
            }
            Ok(())
        }
        _ => Ok(()),
    }
}

fn header_param(
    header: &Value,
    schema: &Map<String, Value>,
    path: &[String],
    reachable: bool,
    found: &[HeaderParam],
) -> Option<HeaderParam> {
    let name = header.as_str()?.to_ascii_lowercase();
    let token = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    let primitive = matches!(schema.get("type")?.as_str()?, "string" | "integer" | "boolean");
    let well_formed = !name.is_empty() && name.bytes().all(token) && name.len() <= 128;
    let unique = found.iter().all(|param| param.name != name);
    (reachable && !path.is_empty() && primitive && well_formed && unique)
        .then(|| HeaderParam { name, path: path.to_vec() })
}

fn find_hidden(value: &Value, pointer: &mut String, findings: &mut Vec<Finding>) {
    let mut below = |key: &str, value: &Value| {
        let length = pointer.len();
        pointer.push('/');
        pointer.push_str(&key.replace('~', "~0").replace('/', "~1"));
        find_hidden_text(key, pointer, findings);
        find_hidden(value, pointer, findings);
        pointer.truncate(length);
    };
    match value {
        Value::String(text) => find_hidden_text(text, pointer, findings),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, item)| below(&index.to_string(), item));
        }
        Value::Object(members) => members.iter().for_each(|(key, member)| below(key, member)),
        _ => {}
    }
}

fn find_hidden_text(text: &str, pointer: &str, findings: &mut Vec<Finding>) {
    let holds = |test: fn(char) -> bool| text.chars().any(test);
    let tests: [(FindingKind, bool); 5] = [
        (FindingKind::Tags, holds(|c| ('\u{e0000}'..='\u{e007f}').contains(&c))),
        (
            FindingKind::Bidi,
            holds(
                |c| matches!(c, '\u{61c}' | '\u{200e}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'),
            ),
        ),
        (
            FindingKind::ZeroWidth,
            holds(
                |c| matches!(c, '\u{ad}' | '\u{34f}' | '\u{180e}' | '\u{200b}'..='\u{200d}' | '\u{2060}'..='\u{2064}' | '\u{feff}'),
            ),
        ),
        (FindingKind::Control, holds(|c| c.is_control() && !matches!(c, '\n' | '\r' | '\t'))),
        (FindingKind::HtmlComment, text.contains("<!--")),
    ];
    for (kind, found) in tests {
        if found {
            findings.push(Finding { kind, pointer: pointer.to_owned() });
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn definition() -> Value {
        json!({
            "name": "query", "title": "Query", "description": "Reads.", "icons": [], "_meta": { "v": 1 },
            "inputSchema": { "type": "object", "properties": {
                "region": { "type": "string", "x-mcp-header": "Region" },
                "page": { "type": "object", "properties": { "limit": { "type": "integer", "x-mcp-header": "Limit" } } },
            } },
            "outputSchema": { "type": "object" }, "annotations": { "readOnlyHint": true }, "vendor": 1,
        })
    }

    #[test]
    fn any_change_of_a_definition_changes_its_pin() {
        let base = Tool::read(&definition()).unwrap();
        let mut set = ToolSet::default();
        set.add(base.clone()).unwrap();
        assert_eq!(set.compare(&base), Change::Unchanged);
        for member in [
            "title",
            "description",
            "icons",
            "_meta",
            "inputSchema",
            "outputSchema",
            "annotations",
            "vendor",
        ] {
            let mut changed = definition();
            changed[member] = json!({ "changed": true });
            assert_eq!(set.compare(&Tool::read(&changed).unwrap()), Change::Changed, "{member}");
        }
        let mut renamed = definition();
        renamed["name"] = json!("query2");
        assert_eq!(set.compare(&Tool::read(&renamed).unwrap()), Change::New);
        let reordered: Map<String, Value> =
            definition().as_object().unwrap().clone().into_iter().rev().collect();
        assert_eq!(Tool::read(&Value::Object(reordered)).unwrap().pin, base.pin);
    }

    #[test]
    fn two_tools_of_one_name_are_refused() {
        let mut set = ToolSet::default();
        set.add(Tool::read(&definition()).unwrap()).unwrap();
        assert_eq!(set.add(Tool::read(&definition()).unwrap()), Err(ToolError::DuplicateName));
    }

    #[test]
    fn header_params_are_read_and_misplaced_ones_refused() {
        let tool = Tool::read(&definition()).unwrap();
        let params: Vec<(&str, String)> =
            tool.header_params.iter().map(|p| (p.name.as_str(), p.path.join("."))).collect();
        assert_eq!(params, [("region", "region".into()), ("limit", "page.limit".into())]);
        let header = json!({ "type": "string", "x-mcp-header": "Region" });
        for schema in [
            json!({ "properties": { "a": { "type": "array", "items": header } } }),
            json!({ "oneOf": [{ "properties": { "a": header } }] }),
            json!({ "properties": { "a": header, "b": { "type": "string", "x-mcp-header": "REGION" } } }),
            json!({ "properties": { "a": { "type": "number", "x-mcp-header": "R" } } }),
            json!({ "properties": { "a": { "type": "string", "x-mcp-header": "" } } }),
            json!({ "properties": { "a": { "type": "string", "x-mcp-header": "a b" } } }),
            json!({ "type": "string", "x-mcp-header": "Root" }),
        ] {
            let tool = Tool::read(&json!({ "name": "t", "inputSchema": schema }));
            assert!(matches!(tool, Err(ToolError::HeaderParam(_))), "{schema}");
        }
    }

    #[test]
    fn hidden_text_is_found_anywhere() {
        let tool = json!({
            "name": "t", "description": "a\u{200b}b", "title": "<!-- x -->", "annotations": { "title": "\u{1b}[8m" },
            "inputSchema": { "properties": { "p": { "enum": ["\u{e0041}"], "default": "\u{202e}x" } } },
        });
        let mut found: Vec<(String, FindingKind)> =
            Tool::read(&tool).unwrap().findings.into_iter().map(|f| (f.pointer, f.kind)).collect();
        found.sort_by(|a, b| a.0.cmp(&b.0));
        assert_eq!(
            found,
            [
                ("/annotations/title".into(), FindingKind::Control),
                ("/description".into(), FindingKind::ZeroWidth),
                ("/inputSchema/properties/p/default".into(), FindingKind::Bidi),
                ("/inputSchema/properties/p/enum/0".into(), FindingKind::Tags),
                ("/title".into(), FindingKind::HtmlComment),
            ]
        );
        assert!(Tool::read(&definition()).unwrap().findings.is_empty());
    }

    #[test]
    fn malformed_definitions_are_refused() {
        for tool in [
            json!(1),
            json!({}),
            json!({ "name": "t" }),
            json!({ "name": "t", "inputSchema": 1 }),
            json!({ "name": 1, "inputSchema": {} }),
        ] {
            assert_eq!(Tool::read(&tool), Err(ToolError::Malformed));
        }
        assert!(matches!(
            Tool::read(&json!({ "name": "a\u{200b}", "inputSchema": {} })),
            Err(ToolError::Name(_))
        ));
    }
}
