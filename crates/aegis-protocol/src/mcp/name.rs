//! Names of tools and prompts: one spelling each.
//!
//! A policy compares names byte by byte, a person by eye and a server however it likes. A name that
//! looks like another, or that another program would normalise into another, is therefore treated
//! as the name of nothing. Refused: the empty name, more than 256 bytes, control and white-space
//! characters other than an inner space, invisible and direction-changing characters, names that
//! Unicode's NFKC would change (compatibility forms such as full-width letters), and names that mix
//! ASCII letters with letters of the scripts that imitate them. A name wholly in another script is
//! accepted: it may imitate, but it never equals, and lists are compared by digest.

use unicode_normalization::{IsNormalized, UnicodeNormalization as _, is_nfkc_quick};

/// The longest name. The specification asks for at most 128 characters.
const MAX_BYTES: usize = 256;

/// Why a name is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Empty.
    #[error("a name must not be empty")]
    Empty,
    /// Too long.
    #[error("a name must have at most 256 bytes")]
    TooLong,
    /// Holds a character that cannot be seen or changes how others are shown.
    #[error(
        "a name must not hold control, white-space, invisible or direction-changing characters"
    )]
    Invisible,
    /// NFKC would change it.
    #[error("a name must be in Unicode's NFKC form")]
    NotNormalised,
    /// Mixes scripts that look alike.
    #[error("a name must not mix ASCII letters with letters that look like them")]
    Confusable,
}

/// Checks a tool's or prompt's name.
///
/// # Errors
/// When the name could be taken for another.
pub fn check(name: &str) -> Result<(), NameError> {
    if name.is_empty() {
        return Err(NameError::Empty);
    }
    if name.len() > MAX_BYTES {
        return Err(NameError::TooLong);
    }
    if name.starts_with(' ') || name.ends_with(' ') {
        return Err(NameError::Invisible);
    }
    if name.is_ascii() {
        let printable = name.bytes().all(|b| (0x20..0x7f).contains(&b));
        return if printable { Ok(()) } else { Err(NameError::Invisible) };
    }
    if name.chars().any(|c| c != ' ' && is_invisible(c)) {
        return Err(NameError::Invisible);
    }
    if is_nfkc_quick(name.chars()) != IsNormalized::Yes && !name.nfkc().eq(name.chars()) {
        return Err(NameError::NotNormalised);
    }
    if name.bytes().any(|b| b.is_ascii_alphabetic()) && name.chars().any(imitates_ascii) {
        return Err(NameError::Confusable);
    }
    Ok(())
}

/// Whether a character cannot be seen, or changes how its neighbours are shown: controls, white
/// space, formatting (Cf), variation selectors, tags, fillers, private use and non-characters.
#[must_use]
pub fn is_invisible(c: char) -> bool {
    c.is_control()
        || c.is_whitespace()
        || matches!(u32::from(c),
            0xad | 0x34f | 0x600..=0x605 | 0x61c | 0x6dd | 0x70f | 0x890..=0x891 | 0x8e2
            | 0x115f..=0x1160 | 0x17b4..=0x17b5 | 0x180b..=0x180f | 0x200b..=0x200f
            | 0x2028..=0x202e | 0x2060..=0x206f | 0x2800 | 0x3164 | 0xe000..=0xf8ff
            | 0xfdd0..=0xfdef | 0xfe00..=0xfe0f | 0xfeff | 0xffa0 | 0xfff0..=0xffff
            | 0x110bd | 0x110cd | 0x13430..=0x1343f | 0x1bca0..=0x1bca3 | 0x1d173..=0x1d17a
            | 0xe0000..=0xe0fff | 0xf0000..=0x10_ffff)
}

/// Letters of the scripts whose letters pass for ASCII ones.
const fn imitates_ascii(c: char) -> bool {
    matches!(c as u32,
        0x180..=0x2af // Latin additions such as ɑ and ɡ
        | 0x370..=0x3ff | 0x1f00..=0x1fff // Greek
        | 0x400..=0x52f | 0x1c80..=0x1c8f | 0x2de0..=0x2dff | 0xa640..=0xa69f // Cyrillic
        | 0x530..=0x58f // Armenian
        | 0x13a0..=0x13ff | 0xab70..=0xabbf // Cherokee
        | 0x2c80..=0x2cff // Coptic
        | 0xa4d0..=0xa4ff // Lisu
        | 0x10280..=0x102df | 0x10400..=0x1044f | 0x118a0..=0x118ff // Lycian, Carian, Deseret, Warang Citi
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ordinary_names_are_accepted() {
        for name in [
            "get_user",
            "DATA_EXPORT_v2",
            "admin.tools.list",
            "a/b",
            "Say hello",
            "文件を読む",
            "größe",
            "читать",
        ] {
            assert_eq!(check(name), Ok(()), "{name}");
        }
    }

    #[test]
    fn names_that_could_be_taken_for_others_are_refused() {
        let cases = [
            ("", NameError::Empty),
            ("read\u{200b}file", NameError::Invisible),
            ("\u{202e}elif", NameError::Invisible),
            ("read\u{e0041}", NameError::Invisible),
            ("read\u{a0}file", NameError::Invisible),
            ("read\tfile", NameError::Invisible),
            (" read", NameError::Invisible),
            ("read\u{fe0f}", NameError::Invisible),
            ("ｒead", NameError::NotNormalised),
            ("gro\u{0308}sse", NameError::NotNormalised),
            ("ﬁle", NameError::NotNormalised),
            ("reаd_file", NameError::Confusable), // Cyrillic а
            ("Κill", NameError::Confusable),      // Greek Κ
        ];
        for (name, error) in cases {
            assert_eq!(check(name), Err(error), "{name:?}");
        }
        assert_eq!(check(&"x".repeat(257)), Err(NameError::TooLong));
    }
}
