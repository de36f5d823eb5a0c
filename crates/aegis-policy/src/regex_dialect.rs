//! RE2 syntax on Rust's `regex`: policies mean the same here as in `opa eval`.
//!
//! Both engines are automata with the same leftmost-first semantics; they differ in spelling.
//! In RE2 `\d`, `\w`, `\s` and `\b` are ASCII, `\Q…\E` quotes, and `[`, `&&`, `--` and `~~` mean
//! nothing special inside a class. Refused: a pattern that does not compile, or whose automaton is
//! larger than a mebibyte.

use regex::{Regex, RegexBuilder};

/// The largest compiled pattern, in bytes.
const SIZE_LIMIT: usize = 1 << 20;

/// Compiles an RE2 pattern.
///
/// # Errors
/// When it is not one, or too large; the error is for people.
pub(crate) fn compile(pattern: &str) -> Result<Regex, String> {
    RegexBuilder::new(&to_rust(pattern))
        .size_limit(SIZE_LIMIT)
        .dfa_size_limit(2 * SIZE_LIMIT)
        .nest_limit(100)
        .build()
        .map_err(|error| match error {
            regex::Error::CompiledTooBig(_) => {
                "the regular expression is too large: use fewer or smaller repetitions".to_owned()
            }
            other => {
                let text = other.to_string();
                text.lines().last().unwrap_or("not a regular expression").trim().to_owned()
            }
        })
}

/// Rewrites an RE2 pattern so that Rust's `regex` reads it as RE2 would.
fn to_rust(pattern: &str) -> String {
    let mut out = String::with_capacity(pattern.len() + 16);
    let mut chars = pattern.chars().peekable();
    let mut in_class = false;
    while let Some(c) = chars.next() {
        match c {
            '\\' => escape(chars.next(), &mut chars, in_class, &mut out),
            '[' if !in_class => {
                in_class = true;
                out.push('[');
                if chars.peek() == Some(&'^') {
                    out.extend(chars.next());
                }
                // A bracket right after the opening one is a member of the class.
                if chars.peek() == Some(&']') {
                    chars.next();
                    out.push_str("\\]");
                }
            }
            '[' if chars.peek() == Some(&':') => {
                out.push('[');
                for inner in chars.by_ref() {
                    out.push(inner);
                    if inner == ']' {
                        break;
                    }
                }
            }
            ']' if in_class => {
                in_class = false;
                out.push(']');
            }
            '[' => out.push_str("\\["),
            '&' | '~' if in_class => {
                out.push('\\');
                out.push(c);
            }
            '-' if in_class && chars.peek() == Some(&'-') => out.push_str("\\-"),
            _ => out.push(c),
        }
    }
    out
}

fn escape(
    next: Option<char>,
    chars: &mut std::iter::Peekable<std::str::Chars<'_>>,
    in_class: bool,
    out: &mut String,
) {
    let ascii = |plain: &str, negated: bool| format!("[{}{plain}]", if negated { "^" } else { "" });
    match next {
        Some(c @ ('d' | 'D')) => out.push_str(&ascii("0-9", c == 'D')),
        Some(c @ ('w' | 'W')) => out.push_str(&ascii("0-9A-Za-z_", c == 'W')),
        Some(c @ ('s' | 'S')) => out.push_str(&ascii("\\t\\n\\f\\r ", c == 'S')),
        Some('b') if !in_class => out.push_str("(?-u:\\b)"),
        Some('B') if !in_class => out.push_str("(?-u:\\B)"),
        Some('Q') => {
            let mut quoted = String::new();
            while let Some(c) = chars.next() {
                if c == '\\' && chars.peek() == Some(&'E') {
                    chars.next();
                    break;
                }
                quoted.push(c);
            }
            out.push_str(&regex::escape(&quoted));
        }
        Some(c) => {
            out.push('\\');
            out.push(c);
        }
        None => out.push('\\'),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn matches(pattern: &str, text: &str) -> bool {
        compile(pattern).unwrap().is_match(text)
    }

    #[test]
    fn classes_are_ascii_as_in_re2() {
        assert!(matches(r"^\d+$", "42") && !matches(r"^\d+$", "٤٢"));
        assert!(!matches(r"^\w+$", "é") && matches(r"^\W+$", "é"));
        assert!(matches(r"^[\w.-]+$", "a.b-c"));
        assert!(matches(r"\bdrop\b", "x drop y"));
    }

    #[test]
    fn brackets_inside_a_class_are_plain() {
        assert!(matches(r"^[a[b]$", "["));
        assert!(matches(r"^[]a]+$", "]a"));
        assert!(matches(r"^[a&&b]+$", "a&b"));
        assert!(matches(r"^[[:alpha:]_]+$", "ab_"));
    }

    #[test]
    fn quoted_text_is_plain() {
        assert!(matches(r"^\Qa.b\E+$", "a.bb") && !matches(r"^\Qa.b\E$", "axb"));
    }

    #[test]
    fn what_does_not_compile_is_refused() {
        for pattern in ["(", r"(?=a)", r"\1", "(a{1000}){1000}{1000}"] {
            assert!(compile(pattern).is_err(), "{pattern}");
        }
    }
}
