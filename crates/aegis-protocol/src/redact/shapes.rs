//! What secrets look like: keys and tokens that their makers gave a shape of their own, and values that
//! stand behind a name such as `password=`. For records, where hiding too much costs a reader something
//! and hiding too little cannot be taken back. What is encoded or has no shape is not found here: a
//! policy that knows better says so by `redactArgument`.

use std::{borrow::Cow, sync::LazyLock};

use regex::{Captures, Regex};

use super::REDACTED;

/// A secret alone, or, with the groups `before` and `after`, one between what may be read.
static SHAPES: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let shapes = [
        r"\b(?:AKIA|ASIA)[A-Z2-7]{16}\b",
        r"(?s)-----BEGIN ?[A-Z0-9 ]*PRIVATE ?KEY.*?(?:-----END ?[A-Z0-9 ]*PRIVATE ?KEY(?: BLOCK)?-----|\z)",
        r"(?s)\bPuTTY-User-Key-File-[23]:.*",
        r"\bAGE-SECRET-KEY-1[A-Z0-9]+",
        r"\b(?:gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{36,})",
        r"\bglpat-[A-Za-z0-9_-]{20,}",
        r"\bxox[abposr]-[A-Za-z0-9-]{10,}",
        r"\b[rs]k_live_[A-Za-z0-9]{16,}",
        r"\bsk-(?:ant-|proj-)?[A-Za-z0-9_-]{32,}",
        r"\bAIza[A-Za-z0-9_-]{35}",
        r"\beyJ[A-Za-z0-9_-]{10,}\.eyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}",
        r"(?P<before>\b[a-z][a-z0-9+.-]*://[^\s/:@]*:)[^\s/:@]{3,}(?P<after>@)",
    ];
    Regex::new(&shapes.join("|")).ok()
});

/// `name = value`, and the two common forms of an Authorization header.
static NAMED: LazyLock<Option<Regex>> = LazyLock::new(|| {
    Regex::new(
        r#"(?i)(?P<before>\b[a-z0-9_-]*(?:api[_-]?key|secret[_-]?key|secret[_-]?access[_-]?key|client[_-]?secret|access[_-]?token|auth[_-]?token|password|passwd)\\?["']?\s*[:=]\s*\\?["']?)[^\s"',;&\\]{8,}|(?P<scheme>\b(?:bearer|basic)\s+)[a-z0-9._~+/=-]{16,}"#,
    )
    .ok()
});

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

fn without(text: &str) -> Cow<'_, str> {
    let mut text = Cow::Borrowed(text);
    for shapes in [&*SHAPES, &*NAMED] {
        // Without the shapes nothing is known to be harmless.
        let Some(shapes) = shapes else { return Cow::Owned(REDACTED.to_owned()) };
        if let Cow::Owned(redacted) = shapes.replace_all(&text, hidden) {
            text = Cow::Owned(redacted);
        }
    }
    text
}

fn hidden(found: &Captures<'_>) -> String {
    let beside = |name| found.name(name).map_or("", |part| part.as_str());
    format!("{}{}{REDACTED}{}", beside("before"), beside("scheme"), beside("after"))
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
            ("api_key=8f14e45fceea167a&q=1", "api_key=[redacted]&q=1"),
            (r#"{"clientSecret": "8f14e45fceea167a"}"#, r#"{"clientSecret": "[redacted]"}"#),
            (r#"{\"password\": \"hunter2hunter2\"}"#, r#"{\"password\": \"[redacted]\"}"#),
            (
                "curl -H 'Authorization: Bearer abcdefgh12345678'",
                "curl -H 'Authorization: Bearer [redacted]'",
            ),
        ] {
            assert_eq!(text(from), to);
            assert!(holds(from));
        }
        for (start, rest) in [("sk-ant-", 40), ("sk_live_", 24), ("glpat-", 20), ("AIza", 35)] {
            assert_eq!(text(&format!("a {start}{}", "b".repeat(rest))), "a [redacted]");
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
        ] {
            assert_eq!(text(plain), plain);
            assert!(!holds(plain), "{plain}");
        }
    }
}
