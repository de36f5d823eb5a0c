//! The tests on strings that the host answers for a policy: regular expressions, globs, paths and
//! words.
//!
//! A module compiled from Rego would compile a regular expression again at each evaluation; the
//! host compiles it once. Each predicate takes a constant pattern and a subject; a subject that is
//! not a string has no answer (undefined in Rego).

use std::collections::HashMap;

use globset::{GlobBuilder, GlobMatcher};
use regex::Regex;

/// The most patterns one evaluator keeps compiled; policies can make patterns at run time.
const MAX_PATTERNS: usize = 4096;

/// Which test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) enum Kind {
    /// `aegis.matches(pattern, text)`: an RE2 pattern is found in the text.
    Matches,
    /// `aegis.path_glob(pattern, text)`: a glob over `/`-separated segments.
    PathGlob,
    /// `aegis.name_glob(pattern, text)`: a glob over a name, where `*` matches any characters.
    NameGlob,
    /// `aegis.within(directories, path)`: the path, resolved, lies in one of the directories, one
    /// a line.
    Within,
    /// `aegis.has_word(words, text)`: a segment of the text is one of the words, one a line.
    HasWord,
}

impl Kind {
    /// All, with the names by which Rego calls them.
    pub(crate) const ALL: [(&'static str, Self); 5] = [
        ("aegis.matches", Self::Matches),
        ("aegis.path_glob", Self::PathGlob),
        ("aegis.name_glob", Self::NameGlob),
        ("aegis.within", Self::Within),
        ("aegis.has_word", Self::HasWord),
    ];

    /// The kind of a Rego function. OPA's `regex.match` is answered by the same engine.
    #[must_use]
    pub(crate) fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().find(|(known, _)| *known == name).map(|(_, kind)| *kind)
    }
}

/// A compiled test.
#[derive(Clone, Debug)]
pub(crate) enum Predicate {
    /// A regular expression.
    Regex(Regex),
    /// A glob.
    Glob(GlobMatcher),
    /// Directories, resolved.
    Within(Vec<Vec<String>>),
    /// Words in lower case.
    Words(Vec<String>),
}

impl Predicate {
    /// Compiles a pattern.
    ///
    /// # Errors
    /// When it is not one; the error is for people.
    pub(crate) fn compile(kind: Kind, pattern: &str) -> Result<Self, String> {
        match kind {
            Kind::Matches => crate::regex_dialect::compile(pattern).map(Self::Regex),
            Kind::PathGlob => glob(pattern, true).map(Self::Glob),
            Kind::NameGlob => glob(pattern, false).map(Self::Glob),
            Kind::Within => pattern
                .lines()
                .map(|directory| {
                    resolve(directory).ok_or_else(|| format!("`{directory}` leaves its own root"))
                })
                .collect::<Result<_, _>>()
                .map(Self::Within),
            Kind::HasWord => Ok(Self::Words(pattern.lines().map(str::to_lowercase).collect())),
        }
    }

    /// Whether the subject passes; `None` where that cannot be said, such as for a relative path
    /// and an absolute directory. Who asks fails closed then.
    #[must_use]
    pub(crate) fn test(&self, subject: &str) -> Option<bool> {
        match self {
            Self::Regex(regex) => Some(regex.is_match(subject)),
            Self::Glob(glob) => Some(glob.is_match(subject)),
            Self::Within(directories) => within(&resolve(subject)?, directories),
            Self::Words(words) => Some(has_word(subject, words)),
        }
    }
}

/// Compiles a glob; in a path `*` and `?` stay within a segment.
///
/// # Errors
/// When it is not a glob; the error is for people.
pub(crate) fn glob(pattern: &str, path: bool) -> Result<GlobMatcher, String> {
    GlobBuilder::new(pattern)
        .literal_separator(path)
        .backslash_escape(true)
        .empty_alternates(true)
        .build()
        .map(|glob| glob.compile_matcher())
        .map_err(|error| error.kind().to_string())
}

/// Resolves `.` and `..`; `None` where `..` leaves the directory that a relative path starts from,
/// or the text has no one meaning as a path. The first segment says what it is relative to, so that `/a` is not `a`.
///
/// `file://` URIs are read as their path, percent-decoded. A back-slash separates too: on the
/// systems where it does not, such a name is rare, and treating it as part of a name would let
/// `..\` through.
fn resolve(text: &str) -> Option<Vec<String>> {
    let decoded;
    let path = match text.get(..7).filter(|scheme| scheme.eq_ignore_ascii_case("file://")) {
        Some(_) => {
            let rest = text.get(7..)?;
            // A host other than this one is another machine's file.
            let rest = rest.strip_prefix("localhost").unwrap_or(rest);
            if !rest.starts_with('/') {
                return None;
            }
            decoded = percent_decode(rest)?;
            decoded.as_str()
        }
        None => text,
    };
    if path.is_empty() || path.contains('\0') {
        return None;
    }
    let absolute = path.starts_with(['/', '\\']);
    let mut out = vec![if absolute { "/".to_owned() } else { ".".to_owned() }];
    for segment in path.split(['/', '\\']) {
        match segment {
            "" | "." => {}
            ".." if out.len() > 1 => {
                out.pop();
            }
            ".." if absolute => {}
            ".." => return None,
            // A tilde is another directory to a shell.
            name if out.len() == 1 && !absolute && name.starts_with('~') => return None,
            name => out.push(name.to_owned()),
        }
    }
    Some(out)
}

fn within(path: &[String], directories: &[Vec<String>]) -> Option<bool> {
    if directories.iter().any(|directory| path.starts_with(directory)) {
        return Some(true);
    }
    let comparable = directories.iter().all(|directory| directory.first() == path.first());
    comparable.then_some(false)
}

fn percent_decode(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.bytes();
    while let Some(byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16));
            let (high, low) = (digit()?, digit()?);
            out.push(u8::try_from(high * 16 + low).ok()?);
        } else {
            out.push(byte);
        }
    }
    String::from_utf8(out).ok()
}

/// Splits at every character that is neither letter nor digit and at camelCase humps
/// (`parseHTTPBody` is `parse`, `HTTP`, `Body`), and compares without case.
fn has_word(text: &str, words: &[String]) -> bool {
    let chars: Vec<char> = text.chars().collect();
    let mut word = String::new();
    let found = |word: &mut String| {
        let hit = !word.is_empty() && words.iter().any(|wanted| *wanted == word.to_lowercase());
        word.clear();
        hit
    };
    for (i, &c) in chars.iter().enumerate() {
        if !c.is_alphanumeric() {
            if found(&mut word) {
                return true;
            }
            continue;
        }
        let before = i.checked_sub(1).and_then(|i| chars.get(i)).copied();
        let lower_before = before.is_some_and(|b| b.is_lowercase() || b.is_numeric());
        let upper_before = before.is_some_and(char::is_uppercase);
        let lower_after = chars.get(i + 1).is_some_and(|n| n.is_lowercase());
        let hump = c.is_uppercase() && (lower_before || (upper_before && lower_after));
        if hump && found(&mut word) {
            return true;
        }
        word.push(c);
    }
    found(&mut word)
}

/// Compiled patterns, by kind and text.
#[derive(Debug, Default)]
pub(crate) struct Patterns {
    compiled: [HashMap<Box<str>, Option<Predicate>>; 5],
}

impl Patterns {
    /// Tests `subject`; `None` where the pattern is none.
    pub(crate) fn test(&mut self, kind: Kind, pattern: &str, subject: &str) -> Option<bool> {
        let table = match kind {
            Kind::Matches => 0,
            Kind::PathGlob => 1,
            Kind::NameGlob => 2,
            Kind::Within => 3,
            Kind::HasWord => 4,
        };
        let table = self.compiled.get_mut(table)?;
        if let Some(known) = table.get(pattern) {
            return known.as_ref().and_then(|predicate| predicate.test(subject));
        }
        if table.len() >= MAX_PATTERNS {
            table.clear();
        }
        let compiled = Predicate::compile(kind, pattern).ok();
        let answer = compiled.as_ref().and_then(|predicate| predicate.test(subject));
        table.insert(pattern.into(), compiled);
        answer
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(kind: Kind, pattern: &str, subject: &str) -> Option<bool> {
        Predicate::compile(kind, pattern).unwrap().test(subject)
    }

    #[test]
    fn paths_are_resolved_before_they_are_compared() {
        let within = |path| test(Kind::Within, "/work\n/tmp/x", path);
        for path in [
            "/work",
            "/work/a",
            "/work/./a/../b",
            "/tmp/x/y",
            "//work//a",
            "file:///work/a",
            "/../work",
        ] {
            assert_eq!(within(path), Some(true), "{path}");
        }
        for path in [
            "/work/../etc/passwd",
            "/workshop/a",
            "/tmp",
            "/work/..\\..\\etc",
            "file:///work/%2e%2e/etc",
        ] {
            assert_eq!(within(path), Some(false), "{path}");
        }
        for path in ["work/a", "../work/a", "", "file://host/work", "~/work", "/work/\0"] {
            assert_eq!(within(path), None, "{path}");
        }
        assert_eq!(test(Kind::Within, "src", "src/a/../b"), Some(true));
        assert_eq!(test(Kind::Within, "src", "/src/a"), None);
    }

    #[test]
    fn words_are_whole_segments() {
        let has = |text| test(Kind::HasWord, "auth\nhttp", text);
        for text in
            ["auth.ts", "src/auth/x", "userAuth", "AuthToken", "parseHTTPBody", "AUTH", "a_auth_b"]
        {
            assert_eq!(has(text), Some(true), "{text}");
        }
        for text in ["author.ts", "oauth", "authority", "", "xauth"] {
            assert_eq!(has(text), Some(false), "{text}");
        }
    }

    #[test]
    fn stars_stay_in_their_segment_only_in_paths() {
        assert_eq!(test(Kind::PathGlob, "/a/*", "/a/b/c"), Some(false));
        assert_eq!(test(Kind::PathGlob, "/a/**", "/a/b/c"), Some(true));
        assert_eq!(test(Kind::NameGlob, "tools/*", "tools/a/b"), Some(true));
    }
}
