//! The headers that mirror a modern request's body (streamable-http, "Request Metadata"), and the
//! comparison with it. Names are compared without case, values with it.

use aegis_core::canonical::MAX_SAFE_INTEGER;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use http::HeaderMap;
use serde_json::{Map, Value};

use super::ClientMethod;

/// Names the protocol version of a request.
pub(super) const VERSION: &str = "mcp-protocol-version";
const METHOD: &str = "mcp-method";
const NAME: &str = "mcp-name";
const PARAM_PREFIX: &str = "mcp-param-";

/// Headers that speak for the request. If one came twice, two readers could each take another.
const SINGLE: [&str; 11] = [
    VERSION,
    METHOD,
    NAME,
    "mcp-session-id",
    "last-event-id",
    "host",
    "origin",
    "authorization",
    "content-length",
    "content-type",
    "content-encoding",
];

/// Why the headers are refused.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// A header that must stand alone came more than once.
    #[error("the header `{0}` was sent more than once; send it once")]
    Duplicate(String),
    /// A required header is absent.
    #[error("the header `{0}` is missing; send it with the value that the body holds")]
    Missing(String),
    /// The value differs from the body's.
    #[error("the header `{0}` does not match the body; send the value that the body holds")]
    Mismatch(String),
    /// The value holds characters or an encoding that are not allowed.
    #[error("the header `{0}` is not printable ASCII or valid Base64 in `=?base64?…?=`")]
    Malformed(String),
}

/// An argument that a tool's schema mirrors into a header: `x-mcp-header` (server/tools).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderParam {
    /// The header's name after `Mcp-Param-`, in lower case.
    pub name: String,
    /// The names of the properties that lead to the value.
    pub path: Vec<String>,
}

/// Refuses headers that came more than once where only one can be meant.
pub(super) fn check_single(headers: &HeaderMap) -> Result<(), HeaderError> {
    if headers.len() == headers.keys_len() {
        return Ok(());
    }
    for name in headers.keys() {
        let name = name.as_str();
        let single = SINGLE.contains(&name) || name.starts_with(PARAM_PREFIX);
        if single && headers.get_all(name).iter().nth(1).is_some() {
            return Err(HeaderError::Duplicate(name.to_owned()));
        }
    }
    Ok(())
}

/// The text of a header.
pub(super) fn text<'a>(headers: &'a HeaderMap, name: &str) -> Result<Option<&'a str>, HeaderError> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    value.to_str().map(Some).map_err(|_| HeaderError::Malformed(name.to_owned()))
}

/// A header's text, decoded if it stands in the Base64 sentinel.
fn decoded(headers: &HeaderMap, name: &str) -> Result<Option<String>, HeaderError> {
    let Some(value) = text(headers, name)? else { return Ok(None) };
    let Some(inner) = value.strip_prefix("=?base64?").and_then(|rest| rest.strip_suffix("?="))
    else {
        return Ok(Some(value.to_owned()));
    };
    let malformed = || HeaderError::Malformed(name.to_owned());
    let bytes = STANDARD.decode(inner).map_err(|_| malformed())?;
    String::from_utf8(bytes).map(Some).map_err(|_| malformed())
}

/// Compares `Mcp-Method` and `Mcp-Name` with the body. `required`: whether they must be there; a
/// legacy client need not send them, but a wrong one is refused all the same, since a server may
/// read it.
pub(super) fn check_mirrors(
    headers: &HeaderMap,
    method: ClientMethod,
    params: &Map<String, Value>,
    required: bool,
) -> Result<(), HeaderError> {
    match text(headers, METHOD)? {
        Some(value) if value == method.as_str() => {}
        Some(_) => return Err(HeaderError::Mismatch(METHOD.to_owned())),
        None if required => return Err(HeaderError::Missing(METHOD.to_owned())),
        None => {}
    }
    let named = method
        .named_by()
        .map(|member| params.get(member).and_then(Value::as_str).unwrap_or_default());
    match (named, decoded(headers, NAME)?) {
        (Some(name), Some(value)) if value == name => Ok(()),
        (Some(_), Some(_)) => Err(HeaderError::Mismatch(NAME.to_owned())),
        (Some(_), None) if required => Err(HeaderError::Missing(NAME.to_owned())),
        // On other methods the header is not defined; it is tolerated where it tells the truth.
        (None, Some(value)) => {
            let members =
                ["name", "uri", "taskId"].map(|member| params.get(member).and_then(Value::as_str));
            if members.contains(&Some(value.as_str())) {
                Ok(())
            } else {
                Err(HeaderError::Mismatch(NAME.to_owned()))
            }
        }
        (_, None) => Ok(()),
    }
}

/// Compares the `Mcp-Param-*` headers that `params` designates with the call's arguments. Others are
/// forwarded unread, as the transport demands of intermediaries.
pub(super) fn check_params(
    headers: &HeaderMap,
    params: &[HeaderParam],
    arguments: &Value,
) -> Result<(), HeaderError> {
    for param in params {
        let header = format!("{PARAM_PREFIX}{}", param.name);
        let value = param.path.iter().try_fold(arguments, |at, name| at.get(name));
        let value = value.filter(|value| !value.is_null());
        match (value, decoded(headers, &header)?) {
            (None, None) => {}
            (Some(value), Some(text)) if mirrors(value, &text) => {}
            (Some(_), None) => return Err(HeaderError::Missing(header)),
            _ => return Err(HeaderError::Mismatch(header)),
        }
    }
    Ok(())
}

/// Whether `text` is the header form of `value`; integers are compared as numbers.
fn mirrors(value: &Value, text: &str) -> bool {
    match value {
        Value::String(expected) => expected == text,
        Value::Bool(expected) => text == if *expected { "true" } else { "false" },
        Value::Number(expected) => {
            let (whole, fraction) = text.split_once('.').unwrap_or((text, "0"));
            let zeros = !fraction.is_empty() && fraction.bytes().all(|b| b == b'0');
            let plain =
                whole.bytes().enumerate().all(|(i, b)| b.is_ascii_digit() || (i == 0 && b == b'-'));
            let integer = whole.parse::<i64>().ok().filter(|_| zeros && plain);
            integer.is_some_and(|n| {
                n.unsigned_abs() <= MAX_SAFE_INTEGER && as_integer(expected) == Some(n)
            })
        }
        _ => false,
    }
}

fn as_integer(number: &serde_json::Number) -> Option<i64> {
    // A double such as 42.0 prints as 42 in canonical form.
    number.as_i64().or_else(|| {
        let mut text = Vec::new();
        aegis_core::canonical::write_value(&mut text, &Value::Number(number.clone())).ok()?;
        std::str::from_utf8(&text).ok()?.parse().ok()
    })
}

#[cfg(test)]
mod tests {
    use http::{HeaderName, HeaderValue};
    use serde_json::json;

    use super::*;

    fn headers(pairs: &[(&str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        }
        map
    }

    fn param(name: &str, path: &[&str]) -> HeaderParam {
        HeaderParam { name: name.into(), path: path.iter().map(|&p| p.to_owned()).collect() }
    }

    #[test]
    fn headers_that_came_twice_are_refused() {
        for name in [
            "Mcp-Method",
            "MCP-Name",
            "Host",
            "Authorization",
            "Content-Length",
            "Mcp-Param-Region",
        ] {
            let twice = headers(&[(name, "x"), (name, "x")]);
            assert_eq!(
                check_single(&twice),
                Err(HeaderError::Duplicate(name.to_ascii_lowercase()))
            );
        }
        assert_eq!(
            check_single(&headers(&[("Accept", "a"), ("Accept", "b"), ("Host", "h")])),
            Ok(())
        );
    }

    #[test]
    fn the_base64_sentinel_is_decoded_before_comparing() {
        let params = json!({ "name": "größe" });
        let params = params.as_object().unwrap();
        let check = |value: &str| {
            let map = headers(&[("mcp-method", "tools/call"), ("mcp-name", value)]);
            check_mirrors(&map, ClientMethod::ToolsCall, params, true)
        };
        assert_eq!(check("=?base64?Z3LDtsOfZQ==?="), Ok(()));
        for (value, malformed) in [
            ("=?base64?Z3LDtsOfZQ?=", true),
            ("=?base64?/w==?=", true),
            ("=?BASE64?Z3LDtsOfZQ==?=", false),
            ("=?base64?eA==?=", false),
        ] {
            let error = check(value).unwrap_err();
            assert_eq!(matches!(error, HeaderError::Malformed(_)), malformed, "{value} {error}");
        }
    }

    #[test]
    fn designated_params_must_match_and_others_are_ignored() {
        let designated = [param("region", &["region"]), param("limit", &["page", "limit"])];
        let check = |pairs: &[(&str, &str)], arguments: Value| {
            check_params(&headers(pairs), &designated, &arguments)
        };
        let both = json!({ "region": "eu", "page": { "limit": 42 } });
        assert_eq!(
            check(&[("mcp-param-region", "eu"), ("mcp-param-limit", "42.0")], both.clone()),
            Ok(())
        );
        assert_eq!(check(&[("mcp-param-other", "x")], json!({ "region": null })), Ok(()));
        assert!(matches!(
            check(&[("mcp-param-region", "eu")], both.clone()),
            Err(HeaderError::Missing(_))
        ));
        let wrong = [("mcp-param-region", "us"), ("mcp-param-limit", "42")];
        assert!(matches!(check(&wrong, both), Err(HeaderError::Mismatch(_))));
        assert!(matches!(
            check(&[("mcp-param-region", "eu")], json!({})),
            Err(HeaderError::Mismatch(_))
        ));
    }

    #[test]
    fn integers_are_compared_as_numbers() {
        for (value, text, same) in [
            (json!(42), "42", true),
            (json!(42), "42.0", true),
            (json!(42.0), "42", true),
            (json!(-7), "-7", true),
            (json!(42), "42.5", false),
            (json!(42), "+42", false),
            (json!(42), "42.", false),
            (json!(42), "4 2", false),
            (json!(true), "true", true),
            (json!(true), "True", false),
            (json!("42"), "42", true),
            (json!([]), "[]", false),
        ] {
            assert_eq!(mirrors(&value, text), same, "{value} {text}");
        }
    }
}
