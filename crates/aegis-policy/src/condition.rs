//! One condition in Rego.
//!
//! Two readings of each operator, because a value of another type than the operator expects must
//! fail closed: the *open* one, for `allow`, holds only for a well-typed value that passes; the
//! *closed* one, for `deny` and `require_approval`, holds also for an ill-typed value. A value that
//! is not there meets no condition, except `absent`, and, in the closed reading, the negated
//! operators: what is not there is not equal to, not within and not like anything.

use aegis_core::policy::{Condition, Effect, Operator};
use serde_json::Value;

use crate::{
    json_path::{JsonPath, Step},
    predicate::{Kind, Predicate},
    projection::{self, FieldType, Projection},
};

/// A condition in Rego: the bodies any of which holds, in lines, and the helper rules they call.
#[derive(Debug, Default)]
pub(crate) struct Translated {
    pub(crate) bodies: Vec<Vec<String>>,
    pub(crate) helpers: Vec<String>,
}

/// The most items of a list that are compared one by one.
pub(crate) const FEW: usize = 8;

/// Whether a condition looks at the arguments.
pub(crate) fn reads_arguments(condition: &Condition) -> bool {
    condition.argument.is_some()
}

/// Translates a condition; `id` makes the helpers' names unique.
///
/// # Errors
/// What is wrong with it, for people.
pub(crate) fn translate(
    condition: &Condition,
    effect: Effect,
    id: &str,
    projection: &mut Projection,
) -> Result<Translated, String> {
    let test = Test::of(condition, id)?;
    let place = Place::of(condition, &test, projection)?;
    let open = effect == Effect::Allow;
    Ok(match (&place, &test) {
        (Place::One(reference), Test::Presence { wanted }) => presence(reference, *wanted, id),
        (Place::Many(select), Test::Presence { wanted }) => {
            let comparison = if *wanted { ">" } else { "==" };
            Translated {
                bodies: vec![vec![format!("count(s{id}) {comparison} 0")]],
                helpers: vec![format!("s{id} := [v | {select}]")],
            }
        }
        (Place::One(reference), Test::Value { alternatives, negated }) => {
            one(reference, alternatives, *negated, open, id)
        }
        (Place::Many(select), Test::Value { alternatives, negated }) => {
            many(select, alternatives, *negated, open, id)
        }
    })
}

fn presence(reference: &str, wanted: bool, id: &str) -> Translated {
    let not = if wanted { "" } else { "not " };
    Translated {
        bodies: vec![vec![format!("{not}h{id}")]],
        helpers: vec![format!("h{id} if {{ v := {reference}; v == v }}")],
    }
}

fn one(
    reference: &str,
    alternatives: &Alternatives,
    negated: bool,
    open: bool,
    id: &str,
) -> Translated {
    let bodies = alternatives.bodies(open);
    if open || !negated {
        // Bound first, so that `not` cannot speak about a value that is not there.
        let bound = format!("v{id} := {reference}");
        let bodies = bodies
            .iter()
            .map(|body| vec![bound.clone(), body.replace(HERE, &format!("v{id}"))])
            .collect();
        return Translated { bodies, helpers: alternatives.helpers(open) };
    }
    let mut helpers: Vec<String> = bodies
        .iter()
        .map(|body| format!("m{id} if {{ v := {reference}; {} }}", body.replace(HERE, "v")))
        .chain(alternatives.helpers(open))
        .collect();
    helpers.push(format!("h{id} if {{ v := {reference}; v == v }}"));
    helpers.push(format!("m{id} if not h{id}"));
    Translated { bodies: vec![vec![format!("m{id}")]], helpers }
}

fn many(
    select: &str,
    alternatives: &Alternatives,
    negated: bool,
    open: bool,
    id: &str,
) -> Translated {
    let mut helpers = vec![format!("s{id} := [v | {select}]")];
    for body in alternatives.bodies(open) {
        helpers.push(format!("m{id}(v) if {{ {} }}", body.replace(HERE, "v")));
    }
    helpers.extend(alternatives.helpers(open));
    if open {
        let body = vec![format!("count(s{id}) > 0"), format!("every v in s{id} {{ m{id}(v) }}")];
        return Translated { bodies: vec![body], helpers };
    }
    helpers.push(format!("a{id} if {{ some v in s{id}; m{id}(v) }}"));
    if negated {
        helpers.push(format!("a{id} if count(s{id}) == 0"));
    }
    Translated { bodies: vec![vec![format!("a{id}")]], helpers }
}

// === where ===

/// Where the values come from.
enum Place {
    /// A reference to at most one value.
    One(String),
    /// A comprehension's body that binds `v` to each.
    Many(String),
}

impl Place {
    fn of(condition: &Condition, test: &Test, projection: &mut Projection) -> Result<Self, String> {
        match (&condition.argument, &condition.field) {
            (Some(path), None) => {
                let path = JsonPath::parse(path)?;
                match path.steps.first() {
                    Some(Step::Name(name)) => projection.add(&["action", "arguments", name]),
                    _ => projection.add(&["action", "arguments"]),
                }
                Ok(Self::of_path(&path))
            }
            (None, Some(field)) => {
                let kind = projection::field_type(field).ok_or_else(|| {
                    let hint = if field.starts_with("action.arguments") {
                        "use `argument` with a JSON path for arguments".to_owned()
                    } else {
                        format!("the fields are {}", projection::field_names())
                    };
                    format!("the input document has no field `{field}`; {hint}")
                })?;
                test.suits(kind, field, condition.operator)?;
                projection.add(&field.split('.').collect::<Vec<_>>());
                // The members of `context.risk` stand under it.
                let mut parts = field.splitn(3, '.');
                let leaf = parts.by_ref().take(2).collect::<Vec<_>>().join(".");
                let member = parts.next().map(|name| format!(".{name}")).unwrap_or_default();
                let leaf = text(projection::flat_name(&leaf));
                Ok(Self::One(format!("input[{leaf}]{member}")))
            }
            (Some(_), Some(_)) => Err("it names both `argument` and `field`; keep one".to_owned()),
            (None, None) => Err("it names neither `argument` nor `field`; add one".to_owned()),
        }
    }

    fn of_path(path: &JsonPath) -> Self {
        let mut steps = path.steps.iter().enumerate().peekable();
        // A member of the top level is a leaf of its own.
        let mut reference = match steps.next_if(|(_, step)| matches!(step, Step::Name(_))) {
            Some((_, Step::Name(name))) => format!("input[{}]", text(&format!("$.{name}"))),
            _ => "input[\"$\"]".to_owned(),
        };
        let mut body = Vec::new();
        for (i, step) in steps {
            match step {
                Step::Name(name) => reference.push_str(&format!("[{}]", text(name))),
                Step::Index(index) => reference.push_str(&format!("[{index}]")),
                Step::Wild => reference.push_str("[_]"),
                Step::Deep(name) => {
                    body.push(format!("walk({reference}, [_, x{i}])"));
                    reference = format!("x{i}[{}]", text(name));
                }
            }
        }
        if path.is_single() {
            return Self::One(reference);
        }
        body.push(format!("v := {reference}"));
        Self::Many(body.join("; "))
    }
}

/// A Rego string literal.
pub(crate) fn text(text: &str) -> String {
    Value::from(text).to_string()
}

// === what ===

/// Stands for the value in a body. No literal can hold it: JSON escapes control characters.
const HERE: &str = "\u{1}";

/// What is asked of the values.
enum Test {
    /// Whether there is one.
    Presence { wanted: bool },
    /// Something of each value.
    Value { alternatives: Alternatives, negated: bool },
}

/// The bodies any of which holds, with [`HERE`] for the value.
struct Alternatives {
    open: Vec<String>,
    closed: Vec<String>,
    /// A function that the closed bodies call.
    helper: Option<String>,
}

impl Alternatives {
    fn bodies(&self, open: bool) -> &Vec<String> {
        if open { &self.open } else { &self.closed }
    }

    fn helpers(&self, open: bool) -> Vec<String> {
        self.helper.iter().filter(|_| !open).cloned().collect()
    }

    fn total(body: String) -> Self {
        Self { open: vec![body.clone()], closed: vec![body], helper: None }
    }

    /// A boolean function that is undefined for ill-typed values.
    ///
    /// `not f(x) == false` does not say that: `opa` takes the call out of the negation, and an
    /// undefined call then ends the body. The comparison gets a function of its own.
    fn partial(call: &str, negated: bool, id: &str) -> Self {
        let fails = format!("{call} == false");
        if negated {
            return Self { open: vec![fails], closed: vec![format!("not {call}")], helper: None };
        }
        let helper = format!("f{id}(v) if {}", fails.replace(HERE, "v"));
        Self {
            open: vec![call.to_owned()],
            closed: vec![format!("not f{id}({HERE})")],
            helper: Some(helper),
        }
    }
}

impl Test {
    fn of(condition: &Condition, id: &str) -> Result<Self, String> {
        use Operator as O;
        let operator = condition.operator;
        let name = name(operator);
        let value = match (operator, &condition.value) {
            (O::Exists | O::Absent, None) => {
                return Ok(Self::Presence { wanted: operator == O::Exists });
            }
            (O::Exists | O::Absent, Some(_)) => {
                return Err(format!("`{name}` takes no `value`; remove it"));
            }
            (_, None) => return Err(format!("`{name}` needs a `value`")),
            (_, Some(value)) => value,
        };
        let negated = matches!(
            operator,
            O::NotEquals | O::NotIn | O::NotMatches | O::NotContains | O::NotWithin
        );
        let alternatives = match operator {
            O::Equals => Alternatives::total(format!("{HERE} == {value}")),
            O::NotEquals => Alternatives::total(format!("{HERE} != {value}")),
            O::In | O::NotIn => membership(value, name, negated)?,
            O::Matches | O::NotMatches => {
                predicate("aegis.matches", Kind::Matches, string(value, name)?, negated, id)?
            }
            O::Glob => {
                predicate("aegis.path_glob", Kind::PathGlob, string(value, name)?, false, id)?
            }
            O::Within | O::NotWithin => {
                let directories = lines(value, name)?;
                predicate("aegis.within", Kind::Within, &directories, negated, id)?
            }
            O::HasWord => predicate("aegis.has_word", Kind::HasWord, &words(value)?, false, id)?,
            O::Contains | O::NotContains => contains(value, negated),
            O::StartsWith => Alternatives::partial(
                &format!("startswith({HERE}, {})", text(string(value, name)?)),
                false,
                id,
            ),
            O::EndsWith => Alternatives::partial(
                &format!("endswith({HERE}, {})", text(string(value, name)?)),
                false,
                id,
            ),
            O::LessThan => number(value, name, "<")?,
            O::AtMost => number(value, name, "<=")?,
            O::GreaterThan => number(value, name, ">")?,
            O::AtLeast => number(value, name, ">=")?,
            O::LongerThan => longer(value, name)?,
            O::Exists | O::Absent => return Err(format!("`{name}` takes no `value`; remove it")),
        };
        Ok(Self::Value { alternatives, negated })
    }

    /// Whether a field of this type can ever pass: a mistake is told instead of never matching.
    fn suits(&self, kind: FieldType, field: &str, operator: Operator) -> Result<(), String> {
        use Operator as O;
        let suits = match operator {
            O::Exists | O::Absent => true,
            O::Equals | O::NotEquals | O::In | O::NotIn => kind != FieldType::Object,
            O::LessThan | O::AtMost | O::GreaterThan | O::AtLeast => kind == FieldType::Number,
            O::Contains | O::NotContains | O::LongerThan => {
                matches!(kind, FieldType::Text | FieldType::List)
            }
            _ => kind == FieldType::Text,
        };
        if suits {
            return Ok(());
        }
        let kind = format!("{kind:?}").to_lowercase();
        Err(format!("`{}` does not apply to `{field}`, which is a {kind}", name(operator)))
    }
}

fn name(operator: Operator) -> &'static str {
    use Operator as O;
    match operator {
        O::Equals => "equals",
        O::NotEquals => "notEquals",
        O::In => "in",
        O::NotIn => "notIn",
        O::Matches => "matches",
        O::NotMatches => "notMatches",
        O::Contains => "contains",
        O::NotContains => "notContains",
        O::StartsWith => "startsWith",
        O::EndsWith => "endsWith",
        O::Glob => "glob",
        O::Within => "within",
        O::NotWithin => "notWithin",
        O::HasWord => "hasWord",
        O::LessThan => "lessThan",
        O::AtMost => "atMost",
        O::GreaterThan => "greaterThan",
        O::AtLeast => "atLeast",
        O::LongerThan => "longerThan",
        O::Exists => "exists",
        O::Absent => "absent",
    }
}

fn string<'a>(value: &'a Value, name: &str) -> Result<&'a str, String> {
    value.as_str().ok_or_else(|| format!("`{name}` needs a string as its `value`, not {value}"))
}

/// A string, or a list of strings, as lines.
fn lines(value: &Value, name: &str) -> Result<String, String> {
    let wrong =
        || format!("`{name}` needs a string or a list of strings as its `value`, not {value}");
    let items: Vec<&str> = match value {
        Value::String(text) => vec![text.as_str()],
        Value::Array(items) => {
            items.iter().map(Value::as_str).collect::<Option<_>>().ok_or_else(wrong)?
        }
        _ => return Err(wrong()),
    };
    if items.is_empty() || items.iter().any(|item| item.is_empty() || item.contains(['\n', '\r'])) {
        return Err(format!("`{name}` needs at least one text of one line as its `value`"));
    }
    Ok(items.join("\n"))
}

fn words(value: &Value) -> Result<String, String> {
    let words = lines(value, "hasWord")?;
    match words.lines().find(|word| !word.chars().all(char::is_alphanumeric)) {
        Some(word) => Err(format!(
            "`hasWord` compares single words; `{word}` holds other characters than letters and digits"
        )),
        None => Ok(words),
    }
}

fn predicate(
    function: &str,
    kind: Kind,
    pattern: &str,
    negated: bool,
    id: &str,
) -> Result<Alternatives, String> {
    Predicate::compile(kind, pattern)
        .map_err(|error| format!("`{pattern}` cannot be used: {error}"))?;
    Ok(Alternatives::partial(&format!("{function}({}, {HERE})", text(pattern)), negated, id))
}

fn membership(value: &Value, name: &str, negated: bool) -> Result<Alternatives, String> {
    let items = value
        .as_array()
        .filter(|items| !items.is_empty())
        .ok_or_else(|| format!("`{name}` needs a list with at least one item as its `value`"))?;
    let items: Vec<String> = items.iter().map(Value::to_string).collect();
    // A module makes a set anew for each evaluation; a few comparisons cost less.
    let compared = |operator: &str| -> Vec<String> {
        items.iter().map(|item| format!("{HERE} {operator} {item}")).collect()
    };
    match (items.len() <= FEW, negated) {
        (true, false) => {
            let bodies = compared("==");
            Ok(Alternatives { open: bodies.clone(), closed: bodies, helper: None })
        }
        (true, true) => Ok(Alternatives::total(compared("!=").join("; "))),
        (false, _) => {
            let not = if negated { "not " } else { "" };
            Ok(Alternatives::total(format!("{not}{HERE} in {{{}}}", items.join(", "))))
        }
    }
}

fn contains(value: &Value, negated: bool) -> Alternatives {
    let not = if negated { "not " } else { "" };
    let mut open = vec![format!("is_array({HERE}); {not}{value} in {HERE}")];
    let ill_typed = if value.is_string() {
        open.push(format!("is_string({HERE}); {not}contains({HERE}, {value})"));
        format!("not is_array({HERE}); not is_string({HERE})")
    } else {
        format!("not is_array({HERE})")
    };
    let mut closed = open.clone();
    closed.push(ill_typed);
    Alternatives { open, closed, helper: None }
}

fn number(value: &Value, name: &str, comparison: &str) -> Result<Alternatives, String> {
    if !value.is_number() {
        return Err(format!("`{name}` needs a number as its `value`, not {value}"));
    }
    Ok(Alternatives {
        open: vec![format!("is_number({HERE}); {HERE} {comparison} {value}")],
        closed: vec![format!("{HERE} {comparison} {value}"), format!("not is_number({HERE})")],
        helper: None,
    })
}

fn longer(value: &Value, name: &str) -> Result<Alternatives, String> {
    let limit = value
        .as_u64()
        .ok_or_else(|| format!("`{name}` needs a whole number as its `value`, not {value}"))?;
    let open = vec![
        format!("is_string({HERE}); count({HERE}) > {limit}"),
        format!("is_array({HERE}); count({HERE}) > {limit}"),
    ];
    let mut closed = open.clone();
    closed.push(format!("not is_array({HERE}); not is_string({HERE})"));
    Ok(Alternatives { open, closed, helper: None })
}
