//! What secrets look like: keys and tokens that their makers gave a shape of their own, and what names its
//! user in a URL. For records, where hiding too much costs a reader something and hiding too
//! little cannot be taken back. What is encoded or has no shape is not found here, unless a name stands before
//! it ([`named`]): a policy that knows better says so by `redactArgument`.

use std::{borrow::Cow, sync::LazyLock};

use regex::{Captures, Regex};

use super::{REDACTED, named};

/// What may stand before a token: the beginning, what is neither letter nor digit, or a character that
/// was escaped, as `\n` is in JSON within a text and `%20` in a URL.
const BEFORE: &str =
    r"(?P<before>^|[^A-Za-z0-9]|\\[nrtbfv0]|\\u[0-9A-Fa-f]{4}|\\x[0-9A-Fa-f]{2}|%[0-9A-Fa-f]{2})";

/// Tokens, behind [`BEFORE`].
const TOKENS: [&str; 22] = [
    r"(?:AKIA|ASIA)[A-Z0-9]{16,}",
    r"AGE-SECRET-KEY-1[A-Z0-9]+",
    r"gh[pousr]_[A-Za-z0-9]{36,}",
    r"github_pat_[A-Za-z0-9_]{36,}",
    r"gl(?:pat|rt|dt|cbt|ptt|soat)-[A-Za-z0-9_.-]{20,}",
    r"xox[abeposr]-[A-Za-z0-9-]{10,}",
    r"xapp-[A-Za-z0-9-]{20,}",
    r"(?:[rs]k_live|[rs]k_test|whsec)_[A-Za-z0-9]{16,}",
    r"sk-(?:ant-|proj-|or-)?[A-Za-z0-9_-]{32,}",
    r"AIza[A-Za-z0-9_-]{35}",
    r"ya29\.[A-Za-z0-9_-]{20,}",
    r"npm_[A-Za-z0-9]{30,}",
    r"hf_[A-Za-z0-9]{30,}",
    r"gsk_[A-Za-z0-9]{40,}",
    r"xai-[A-Za-z0-9]{40,}",
    r"pypi-[A-Za-z0-9_-]{50,}",
    r"dckr_pat_[A-Za-z0-9_-]{20,}",
    r"dop_v1_[a-f0-9]{64}",
    r"shp(?:at|ca|pa|ss)_[a-fA-F0-9]{32}",
    r"hv[sb]\.[A-Za-z0-9_-]{20,}",
    r"SG\.[A-Za-z0-9_-]{16,}\.[A-Za-z0-9_-]{16,}",
    r"eyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
];

/// Whole keys, and in URLs the password of a user, or the user who is a token.
const OTHERS: [&str; 4] = [
    r"(?s:-----BEGIN ?[A-Z0-9 ]*PRIVATE ?KEY.*?(?:-----END ?[A-Z0-9 ]*PRIVATE ?KEY(?: BLOCK)?-----|\z))",
    r"(?s:(?-u:\b)PuTTY-User-Key-File-[23]:.*)",
    r#"(?P<user>(?i:(?-u:\b)[a-z][a-z0-9+.-]*)://[^\s/:@"'<>]*:)[^\s/"'<>]+(?P<after>@)"#,
    r#"(?P<web>(?i:(?-u:\b)(?:git\+)?https?)://)[^\s/:@"'<>?\x23]+(?P<at>@)"#,
];

static SHAPES: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(&format!("{}|{BEFORE}(?:{})", OTHERS.join("|"), TOKENS.join("|"))).ok()
});

/// How often a text is looked at before it is given up, and hidden whole.
const MAX_LOOKS: usize = 4;

/// A text without what has the shape of a secret.
#[must_use]
pub fn text(text: &str) -> String {
    without(text).into_owned()
}

/// As [`text`], in place.
pub(super) fn redact(text: &mut String) {
    if let Cow::Owned(redacted) = without(text) {
        *text = redacted;
    }
}

/// Whether there is something to redact.
pub(super) fn holds(text: &str) -> bool {
    matches!(without(text), Cow::Owned(_))
}

/// What has been hidden may leave a shape beside it, so this looks until it finds nothing more.
fn without(text: &str) -> Cow<'_, str> {
    let mut told = Cow::Borrowed(text);
    for _ in 0..MAX_LOOKS {
        match once(&told) {
            Some(None) => return told,
            Some(Some(redacted)) => told = Cow::Owned(redacted),
            // Without the shapes nothing is known to be harmless.
            None => break,
        }
    }
    Cow::Owned(REDACTED.to_owned())
}

/// The text with less in it, if there is something to hide; `None` where that cannot be told.
fn once(text: &str) -> Option<Option<String>> {
    let shaped = SHAPES.as_ref()?.replace_all(text, hidden);
    let found = named::find(&shaped)?;
    if found.is_empty() {
        return Some((shaped != text).then(|| shaped.into_owned()));
    }
    let mut rest = 0;
    let mut redacted = String::with_capacity(shaped.len());
    for range in found {
        redacted.push_str(shaped.get(rest..range.start)?);
        redacted.push_str(REDACTED);
        rest = range.end;
    }
    redacted.push_str(shaped.get(rest..)?);
    Some(Some(redacted))
}

fn hidden(found: &Captures<'_>) -> String {
    let beside = |name| found.name(name).map_or("", |part| part.as_str());
    let (before, after) = (["before", "user", "web"], ["after", "at"]);
    let before: String = before.into_iter().map(beside).collect();
    let after: String = after.into_iter().map(beside).collect();
    format!("{before}{REDACTED}{after}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes_of_secrets_are_hidden_and_what_is_beside_them_is_not() {
        for (from, to) in [
            ("use AKIAIOSFODNN7EXAMPLE please", "use [redacted] please"),
            (
                "x\n-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----\ny",
                "x\n[redacted]\ny",
            ),
            ("-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNz", "[redacted]"),
            ("t ghp_a1B2c3D4e5F6g7H8i9J0k1L2m3N4o5P6q7R8.", "t [redacted]."),
            (
                "postgres://app:hunter22@db.acme.example/x",
                "postgres://app:[redacted]@db.acme.example/x",
            ),
            ("postgres://app:a:b@c@db/x", "postgres://app:[redacted]@db/x"),
            ("https://8f14e45f@git.acme.example/x", "https://[redacted]@git.acme.example/x"),
            (r"a\nAKIAIOSFODNN7EXAMPLE\n", r"a\n[redacted]\n"),
            ("AWS_ACCESS_KEY_ID=AKIAIOSFODNN7EXAMPLE", "AWS_ACCESS_KEY_ID=[redacted]"),
            ("AWS_AKIAIOSFODNN7EXAMPLE_x", "AWS_[redacted]_x"),
            ("q%3DAKIAIOSFODNN7EXAMPLE", "q%3D[redacted]"),
            (r"\u000aAKIAIOSFODNN7EXAMPLE", r"\u000a[redacted]"),
            ("AKIAIOSFODNN7EXAMPLE,AKIAIOSFODNN7EXAMPLE", "[redacted],[redacted]"),
        ] {
            assert_eq!(text(from), to);
            assert!(holds(from));
        }
        for (start, rest) in [
            ("sk-ant-", 40),
            ("sk_live_", 24),
            ("glpat-", 20),
            ("AIza", 35),
            ("npm_", 36),
            ("hf_", 34),
            ("gsk_", 52),
        ] {
            assert_eq!(text(&format!("a {start}{}", "b".repeat(rest))), "a [redacted]");
            assert_eq!(text(&format!(r"a\n{start}{}", "b".repeat(rest))), r"a\n[redacted]");
        }
    }

    #[test]
    fn what_is_no_secret_stays_as_it_is() {
        for plain in [
            "",
            "ls -la /work",
            "AKIA",
            "the password is not told",
            "https://acme.example:8443/a?b=c",
            "git commit -m 'token bearer'",
            "a basic understanding of it",
            "sk-short",
            "[redacted]",
            "https://[redacted]@acme.example/",
            "ssh://git@acme.example/x and ada@acme.example",
            "https://acme.example/react@18/?mail=ada@acme.example",
            "risk-management-and-compliance-overview-of-2024",
            "task-some-very-long-name-of-a-branch-with-dashes",
            "EURASIA AND ASIAN MARKETS",
            "npm_config_registry hf_hub_download",
        ] {
            assert_eq!(text(plain), plain);
            assert!(!holds(plain), "{plain}");
        }
    }
}
