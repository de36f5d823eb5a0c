//! Resource URIs: one spelling each.
//!
//! RFC 3986 §6 lets one resource have many spellings, and a policy on one of them is evaded by
//! another. So a URI must already be in canonical form, or the request is refused: rewriting it
//! would send other bytes than were judged. Canonical is: a lower-case scheme and host, no dot
//! segments and no empty segments in the path, no percent-encoded unreserved character, slash,
//! backslash or control character, upper-case hex digits, no backslash, space or control character.
//!
//! One equivalence is exact and accepted: characters outside ASCII stand for their percent-encoded
//! UTF-8 (RFC 3987 §3.1). The encoded form is judged, the text is forwarded as it came.

use std::borrow::Cow;

/// The longest URI.
const MAX_BYTES: usize = 8192;

/// Why a URI is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UriError {
    /// Longer than 8 KiB, as it came or percent-encoded.
    #[error("the URI is longer than 8192 bytes")]
    TooLong,
    /// No scheme, or not in lower case.
    #[error("the URI must start with a scheme in lower case, such as `file:`")]
    Scheme,
    /// The authority has upper-case letters.
    #[error("the URI's host must be in lower case")]
    Host,
    /// `.`, `..` or an empty segment.
    #[error("the URI's path must not hold `.`, `..` or empty segments")]
    Segment,
    /// A character that may not stand there.
    #[error("the URI holds a character that must be percent-encoded")]
    Character,
    /// A percent-encoding that is malformed, needless or ambiguous.
    #[error("the URI holds a percent-encoding that is malformed, needless or ambiguous")]
    Encoding,
}

/// The canonical form of `uri`, which is `uri` itself unless it holds characters outside ASCII.
///
/// # Errors
/// When `uri` is not canonical.
pub fn canonical(uri: &str) -> Result<Cow<'_, str>, UriError> {
    check(uri, false)
}

/// The same for a URI template (RFC 6570), in which `{` and `}` may stand.
///
/// # Errors
/// When the template is not canonical.
pub fn canonical_template(template: &str) -> Result<Cow<'_, str>, UriError> {
    check(template, true)
}

fn check(uri: &str, template: bool) -> Result<Cow<'_, str>, UriError> {
    if uri.len() > MAX_BYTES {
        return Err(UriError::TooLong);
    }
    let (scheme, rest) = uri.split_once(':').ok_or(UriError::Scheme)?;
    let tail = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"+-.".contains(&b);
    if !scheme.starts_with(|c: char| c.is_ascii_lowercase()) || !scheme.bytes().all(tail) {
        return Err(UriError::Scheme);
    }
    let path_end = rest.find(['?', '#']).unwrap_or(rest.len());
    let (hierarchy, _query) = rest.split_at_checked(path_end).unwrap_or((rest, ""));
    let path = match hierarchy.strip_prefix("//") {
        Some(hierarchy) => {
            let authority_end = hierarchy.find('/').unwrap_or(hierarchy.len());
            let (authority, path) =
                hierarchy.split_at_checked(authority_end).unwrap_or((hierarchy, ""));
            let host = authority.rsplit('@').next().unwrap_or_default();
            // A percent-encoded octet has upper-case digits and is no letter of the host.
            if !template && without_encodings(host).any(|b| b.is_ascii_uppercase()) {
                return Err(UriError::Host);
            }
            path
        }
        None => hierarchy,
    };
    check_segments(path)?;
    check_characters(uri, rest.len() - path_end, template)?;
    if uri.is_ascii() {
        return Ok(Cow::Borrowed(uri));
    }
    let mut encoded = String::with_capacity(uri.len() * 3);
    for byte in uri.bytes() {
        if byte.is_ascii() {
            encoded.push(char::from(byte));
        } else {
            encoded.push('%');
            for digit in [byte >> 4, byte & 0xf] {
                encoded
                    .extend(char::from_digit(u32::from(digit), 16).map(|c| c.to_ascii_uppercase()));
            }
        }
    }
    if encoded.len() > MAX_BYTES {
        return Err(UriError::TooLong);
    }
    Ok(Cow::Owned(encoded))
}

fn without_encodings(text: &str) -> impl Iterator<Item = u8> {
    let mut skip = 0;
    text.bytes().filter(move |&b| {
        if b == b'%' {
            skip = 3;
        }
        let keep = skip == 0;
        skip = if keep { 0 } else { skip - 1 };
        keep
    })
}

/// Neither `.` nor `..`, and no empty segment but the first (before a leading slash) and the last.
fn check_segments(path: &str) -> Result<(), UriError> {
    let mut segments = path.split('/').enumerate().peekable();
    while let Some((index, segment)) = segments.next() {
        let edge = index == 0 || segments.peek().is_none();
        if segment == "." || segment == ".." || (segment.is_empty() && !edge) {
            return Err(UriError::Segment);
        }
    }
    Ok(())
}

fn check_characters(uri: &str, query_length: usize, template: bool) -> Result<(), UriError> {
    let query_start = uri.len() - query_length;
    let bytes = uri.as_bytes();
    for (at, c) in uri.char_indices() {
        match c {
            '%' => {
                let hex = |offset: usize| match bytes.get(at + offset) {
                    Some(b @ b'0'..=b'9') => Some(b - b'0'),
                    Some(b @ b'A'..=b'F') => Some(b - b'A' + 10),
                    _ => None,
                };
                let (Some(high), Some(low)) = (hex(1), hex(2)) else {
                    return Err(UriError::Encoding);
                };
                let octet = high << 4 | low;
                let unreserved = octet.is_ascii_alphanumeric() || b"-._~".contains(&octet);
                let in_path = at < query_start;
                if unreserved
                    || octet == 0
                    || (in_path && (octet.is_ascii_control() || matches!(octet, b'/' | b'\\')))
                {
                    return Err(UriError::Encoding);
                }
            }
            '{' | '}' if template => {}
            ' ' | '"' | '<' | '>' | '\\' | '^' | '`' | '{' | '|' | '}' => {
                return Err(UriError::Character);
            }
            c if super::name::is_invisible(c) => return Err(UriError::Character),
            _ => {}
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn canonical_uris_are_accepted_as_they_are() {
        for uri in [
            "file:///tmp/a%20b.txt",
            "test://static-text",
            "test://template/123/data",
            "https://h/a/?q=%2Fx&r=..",
            "urn:isbn:0451450523",
            "memo:insights",
            "postgres://user@db/orders/schema",
            "file:///",
            "note://a/b#c/../d",
            "file:///100%25",
            "file:///.hidden/...",
            "https://example.com:8080/x",
            "file:///C:/x",
        ] {
            assert_eq!(canonical(uri), Ok(Cow::Borrowed(uri)), "{uri}");
        }
        assert!(canonical_template("test://template/{id}/data").is_ok());
    }

    #[test]
    fn other_spellings_of_a_uri_are_refused() {
        for uri in [
            "file:///a/../etc/passwd",
            "file:///a/./b",
            "file:///a//b",
            "file:////etc",
            "file:///a/%2e%2e/b",
            "file:///a/%2E%2E/b",
            "file:///a%2Fb",
            "file:///a%5Cb",
            "file:///a\\..\\b",
            "FILE:///a",
            "https://Host/a",
            "file:///a/..",
            "file:///%61",
            "file:///a%2f",
            "file:///a%0A",
            "file:///a%00",
            "file:///a b",
            "file:///a\n",
            "/etc/passwd",
            "",
            "a",
            "1a:b",
            "file:///%",
            "file:///%G0",
            "file:///a\u{200b}b",
            "file:..",
            "x:../y",
            "test://template/{id}",
            "x:?q=%00",
            "file:///é%61",
        ] {
            assert!(canonical(uri).is_err(), "{uri}");
        }
        assert!(canonical(&format!("file:///{}", "a".repeat(9000))).is_err());
        // Three times as long once it is encoded, and so it is recorded.
        assert_eq!(canonical(&format!("file:///{}", "é".repeat(2000))), Err(UriError::TooLong));
    }

    #[test]
    fn characters_outside_ascii_are_judged_encoded() {
        assert_eq!(canonical("file:///tmp/é").unwrap(), "file:///tmp/%C3%A9");
        assert_eq!(canonical("file:///tmp/%C3%A9").unwrap(), "file:///tmp/%C3%A9");
    }
}
