//! The small language of AgentMesh's conditions: `action.type == 'export' and not_this or that`.
//!
//! `or` binds weakest, then `and`; a term compares a name with a value (`==`, `!=`, `<`, `<=`, `>`, `>=`,
//! `in [..]`), or is a name alone, which asks whether it is set. AgentMesh's own engine takes what it
//! does not know for false, so that a ban with it never applies; here it is refused.

use aegis_core::policy::Operator;
use serde_json::{Value, json};

use super::cases::{Atom, Case, field, member, stated};

/// A name that conditions look at, as Aegis has it.
pub(crate) enum Named {
    /// A field of the input document.
    Field(&'static str),
    /// An argument, as a path.
    Argument(String),
}

/// What a name of another system is here.
pub(crate) fn named(name: &str) -> Option<Named> {
    Some(match name {
        "tool" | "tool_name" | "action.type" | "action.tool" | "action.name" => {
            Named::Field("action.tool")
        }
        "action.resource" | "resource" => Named::Field("action.resource"),
        "agent" | "agent.name" => Named::Field("principal.name"),
        "agent.namespace" | "namespace" => Named::Field("principal.namespace"),
        "agent.sponsor" => Named::Field("principal.sponsor"),
        "trust_score" | "agent.trust_score" => Named::Field("principal.trust"),
        other => {
            let (head, rest) = other.split_once('.')?;
            if !["params", "args", "arguments", "data"].contains(&head) || rest.is_empty() {
                return None;
            }
            Named::Argument(rest.split('.').fold(String::from("$"), |path, name| {
                format!("{path}{}", member(name).trim_start_matches('$'))
            }))
        }
    })
}

impl Named {
    /// A condition on it, which holds only where there is such a thing.
    pub(crate) fn case(&self, operator: Operator, value: Value) -> Case {
        match self {
            Self::Field("action.tool") if operator == Operator::Equals && value.is_string() => {
                vec![Atom::Tools(vec![value.as_str().unwrap_or_default().to_owned()])]
            }
            Self::Field(name) => vec![field(name, operator, value)],
            Self::Argument(path) => stated(path, operator, value),
        }
    }
}

/// Reads a condition: any of these cases.
///
/// # Errors
/// What in it cannot be enforced.
pub(crate) fn parse(text: &str) -> Result<Vec<Case>, String> {
    let tokens = tokens(text)?;
    let mut cases = Vec::new();
    for alternative in split(&tokens, "or") {
        let mut case = Case::new();
        for term in split(alternative, "and") {
            case.extend(read_term(term)?);
        }
        cases.push(case);
    }
    Ok(cases)
}

#[derive(Clone, Debug, PartialEq)]
enum Token {
    /// A name or a word.
    Word(String),
    Text(String),
    Number(i64),
    Sign(&'static str),
}

const SIGNS: [&str; 9] = ["==", "!=", "<=", ">=", "<", ">", "[", "]", ","];

fn tokens(text: &str) -> Result<Vec<Token>, String> {
    let mut rest = text.trim_start();
    let mut tokens = Vec::new();
    while let Some(first) = rest.chars().next() {
        if let Some(sign) = SIGNS.iter().find(|sign| rest.starts_with(**sign)) {
            tokens.push(Token::Sign(sign));
            rest = rest.strip_prefix(*sign).unwrap_or_default();
        } else if first == '\'' || first == '"' {
            let inner = rest.get(1..).unwrap_or_default();
            let (value, after) =
                inner.split_once(first).ok_or("a quotation in the condition is not closed")?;
            tokens.push(Token::Text(value.to_owned()));
            rest = after;
        } else {
            let inner = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.' || c == '-';
            let length = rest.find(|c| !inner(c)).unwrap_or(rest.len());
            let word = rest.get(..length).unwrap_or_default();
            if word.is_empty() {
                return Err(format!("`{first}` in the condition is not of its language"));
            }
            let number = word.parse();
            tokens.push(number.map_or_else(|_| Token::Word(word.to_owned()), Token::Number));
            rest = rest.get(length..).unwrap_or_default();
        }
        rest = rest.trim_start();
    }
    Ok(tokens)
}

fn split<'t>(tokens: &'t [Token], word: &str) -> impl Iterator<Item = &'t [Token]> {
    tokens.split(move |token| matches!(token, Token::Word(found) if found == word))
}

fn read_term(term: &[Token]) -> Result<Case, String> {
    let Some((Token::Word(name), rest)) = term.split_first() else {
        return Err("a condition must begin with a name".to_owned());
    };
    let known = named(name)
        .ok_or_else(|| format!("Aegis knows nothing by the name of `{name}` in a condition"))?;
    let value = |token: &Token| match token {
        Token::Text(text) => Ok(json!(text)),
        Token::Number(number) => Ok(json!(number)),
        Token::Word(word) if word == "true" || word == "false" => Ok(json!(word == "true")),
        Token::Word(_) | Token::Sign(_) => Err("a condition compares with a value".to_owned()),
    };
    let strange = || format!("the condition on `{name}` is not of its language");
    match rest {
        // Whether it is set to something.
        [] => Ok(known.case(Operator::NotIn, json!([null, false, 0, "", [], {}]))),
        [Token::Sign(sign), right] => {
            let operator = match *sign {
                "==" => Operator::Equals,
                "!=" => Operator::NotEquals,
                "<" => Operator::LessThan,
                "<=" => Operator::AtMost,
                ">" => Operator::GreaterThan,
                ">=" => Operator::AtLeast,
                _ => return Err(strange()),
            };
            Ok(known.case(operator, value(right)?))
        }
        [Token::Word(word), Token::Sign("["), items @ .., Token::Sign("]")] if word == "in" => {
            let items = items.split(|token| *token == Token::Sign(","));
            let values = items.map(|item| match item {
                [one] => value(one),
                _ => Err(strange()),
            });
            Ok(known.case(Operator::In, Value::Array(values.collect::<Result<_, _>>()?)))
        }
        _ => Err(strange()),
    }
}

#[cfg(test)]
mod tests {
    use super::{super::cases::argument, *};

    #[test]
    fn conditions_are_read_as_they_were_meant() {
        let export = Atom::Tools(vec!["export".into()]);
        assert_eq!(parse("action.type == 'export'").unwrap(), [vec![export.clone()]]);
        let cases =
            parse("action.type == 'export' and params.rows > 100 or data.contains_pii").unwrap();
        assert_eq!(cases.len(), 2);
        assert_eq!(cases[0], [export, argument("$.rows", Operator::GreaterThan, 100)]);
        let set = json!([null, false, 0, "", [], {}]);
        assert_eq!(cases[1], stated("$.contains_pii", Operator::NotIn, set));
        let tools = json!(["a", "b"]);
        assert_eq!(
            parse("tool in ['a', \"b\"]").unwrap(),
            [vec![field("action.tool", Operator::In, tools)]]
        );
        assert_eq!(
            parse("agent.namespace != 'x and y'").unwrap(),
            [vec![field("principal.namespace", Operator::NotEquals, "x and y")]]
        );
    }

    #[test]
    fn what_is_not_of_the_language_is_refused() {
        for (text, expected) in [
            ("user.role == 'admin'", "`user.role`"),
            ("", "begin with a name"),
            ("tool ==", "not of its language"),
            ("tool == other", "compares with a value"),
            ("tool ~ 'x'", "`~`"),
            ("tool == 'x", "not closed"),
            ("tool in 'x'", "not of its language"),
            ("count(tool='x') > 3", "`(`"),
            ("not tool == 'x'", "`not`"),
        ] {
            let said = parse(text).unwrap_err();
            assert!(said.contains(expected), "{text}: {said}");
        }
    }
}
