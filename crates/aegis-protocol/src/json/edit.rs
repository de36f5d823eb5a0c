//! Edits on the text of a JSON document that [`parse`](super::parse) has accepted.
//!
//! Taking an item out of a list or a member out of an object by parsing and printing would rewrite
//! the whole document. These functions find the byte ranges instead and leave every other byte as
//! it was. On text that was not validated they answer `None`; they never panic.

use std::ops::Range;

/// Where a member of an object stands in the text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Member {
    /// The name, unescaped.
    pub name: String,
    /// From the name's opening quote to the end of the value.
    pub whole: Range<usize>,
    /// The value.
    pub value: Range<usize>,
}

/// The range of the document's value, without the white space around it.
#[must_use]
pub fn root(text: &[u8]) -> Option<Range<usize>> {
    let start = skip_whitespace(text, 0);
    Some(start..end_of_value(text, start)?)
}

/// The members of the object at `object`.
#[must_use]
pub fn members(text: &[u8], object: &Range<usize>) -> Option<Vec<Member>> {
    let mut found = Vec::new();
    walk(text, object, b'{', |start| {
        let name_end = end_of_value(text, start)?;
        let colon = skip_whitespace(text, name_end);
        let value = skip_whitespace(text, colon + 1);
        let end = end_of_value(text, value)?;
        let quoted = text.get(start..name_end)?;
        let name = match quoted {
            // Unescaped, as names nearly always are.
            [b'"', plain @ .., b'"'] if !plain.contains(&b'\\') => {
                std::str::from_utf8(plain).ok()?.to_owned()
            }
            _ => serde_json::from_slice(quoted).ok()?,
        };
        found.push(Member { name, whole: start..end, value: value..end });
        Some(end)
    })?;
    Some(found)
}

/// The ranges of the items of the array at `array`.
#[must_use]
pub fn items(text: &[u8], array: &Range<usize>) -> Option<Vec<Range<usize>>> {
    let mut found = Vec::new();
    walk(text, array, b'[', |start| {
        let end = end_of_value(text, start)?;
        found.push(start..end);
        Some(end)
    })?;
    Some(found)
}

/// The value that `path` leads to, name by name, from the document's root.
#[must_use]
pub fn find(text: &[u8], path: &[&str]) -> Option<Range<usize>> {
    let mut at = root(text)?;
    for name in path {
        at = members(text, &at)?.into_iter().find(|member| member.name == *name)?.value;
    }
    Some(at)
}

/// The bytes of `container` with only those of its `parts` for which `keep` holds, in their order
/// and with the separators that stood before them.
#[must_use]
pub fn retain(
    text: &[u8],
    container: &Range<usize>,
    parts: &[Range<usize>],
    mut keep: impl FnMut(usize) -> bool,
) -> Option<Vec<u8>> {
    let (Some(first), Some(last)) = (parts.first(), parts.last()) else {
        return Some(text.get(container.clone())?.to_vec());
    };
    let mut out = Vec::with_capacity(container.len());
    out.extend_from_slice(text.get(container.start..first.start)?);
    let mut previous_end = first.start;
    let mut any = false;
    for (index, part) in parts.iter().enumerate() {
        if keep(index) {
            if any {
                out.extend_from_slice(text.get(previous_end..part.start)?);
            }
            out.extend_from_slice(text.get(part.clone())?);
            any = true;
        }
        previous_end = part.end;
    }
    out.extend_from_slice(text.get(last.end..container.end)?);
    Some(out)
}

/// `text` with each range replaced. The ranges must not overlap and must be in order.
#[must_use]
pub fn splice(text: &[u8], edits: &[(Range<usize>, Vec<u8>)]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut at = 0;
    for (range, replacement) in edits {
        out.extend_from_slice(text.get(at..range.start)?);
        out.extend_from_slice(replacement);
        at = range.end;
    }
    out.extend_from_slice(text.get(at..)?);
    Some(out)
}

/// Calls `part` with the start of each part of a container; `part` answers where it ends.
fn walk(
    text: &[u8],
    container: &Range<usize>,
    open: u8,
    mut part: impl FnMut(usize) -> Option<usize>,
) -> Option<()> {
    if text.get(container.start) != Some(&open) {
        return None;
    }
    let close = open + 2; // `[` and `]`, `{` and `}` are two apart in ASCII.
    let mut at = skip_whitespace(text, container.start + 1);
    if text.get(at) == Some(&close) {
        return Some(());
    }
    loop {
        at = skip_whitespace(text, part(at)?);
        match text.get(at) {
            Some(b',') => at = skip_whitespace(text, at + 1),
            Some(byte) if *byte == close => return Some(()),
            _ => return None,
        }
    }
}

fn skip_whitespace(text: &[u8], mut at: usize) -> usize {
    while matches!(text.get(at), Some(b' ' | b'\t' | b'\n' | b'\r')) {
        at += 1;
    }
    at
}

fn end_of_string(text: &[u8], start: usize) -> Option<usize> {
    let mut at = start + 1;
    loop {
        let offset = memchr::memchr2(b'"', b'\\', text.get(at..)?)?;
        at += offset;
        match text.get(at) {
            Some(b'"') => return Some(at + 1),
            _ => at += 2,
        }
    }
}

/// Where the value that starts at `start` ends.
fn end_of_value(text: &[u8], start: usize) -> Option<usize> {
    let mut at = start;
    let mut depth = 0_usize;
    loop {
        match text.get(at)? {
            b'"' => at = end_of_string(text, at)?,
            b'{' | b'[' => {
                depth += 1;
                at += 1;
            }
            b'}' | b']' => {
                depth = depth.checked_sub(1)?;
                at += 1;
            }
            b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' if depth > 0 => at += 1,
            b',' | b':' | b' ' | b'\t' | b'\n' | b'\r' => return None,
            _ => {
                while text.get(at).is_some_and(|b| !b",:]} \t\n\r".contains(b)) {
                    at += 1;
                }
            }
        }
        if depth == 0 {
            return Some(at);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &[u8] = br#" { "a\"b" : [ 1 , "x,]\\" , {"y":[]} ] , "c":null} "#;

    #[test]
    fn ranges_are_found() {
        let list = find(TEXT, &["a\"b"]).unwrap();
        let texts: Vec<&[u8]> = items(TEXT, &list).unwrap().into_iter().map(|r| &TEXT[r]).collect();
        assert_eq!(texts, [&b"1"[..], br#""x,]\\""#, br#"{"y":[]}"#]);
        assert_eq!(&TEXT[find(TEXT, &["c"]).unwrap()], b"null");
        assert_eq!(find(TEXT, &["d"]), None);
    }

    #[test]
    fn retain_keeps_order_and_separators() {
        let list = find(TEXT, &["a\"b"]).unwrap();
        let parts = items(TEXT, &list).unwrap();
        let kept = |keep: &[usize]| {
            String::from_utf8(retain(TEXT, &list, &parts, |i| keep.contains(&i)).unwrap()).unwrap()
        };
        assert_eq!(kept(&[0, 1, 2]).as_bytes(), &TEXT[list.clone()]);
        assert_eq!(kept(&[0, 2]), r#"[ 1 , {"y":[]} ]"#);
        assert_eq!(kept(&[1]), r#"[ "x,]\\" ]"#);
        assert_eq!(kept(&[]), "[  ]");
    }

    #[test]
    fn text_that_was_not_validated_is_no_panic() {
        for text in [&b""[..], b"{", b"[", b"{\"a", b"{\"a\":", b"]", b"[1", b"\"\\", b"{\"a\" 1}"]
        {
            let _ = root(text);
            let _ = find(text, &["a"]);
            let _ = items(text, &(0..text.len()));
            let _ = members(text, &(0..text.len()));
        }
    }
}
