//! Values that stand behind a name: `DB_PASS=…`, `"apiKey": "…"`, `--password …`, `curl -u user:…`.
//!
//! The expressions find a name and what separates it from its value; the value itself is read by hand,
//! so that no text is read more than a few times over, however it is made. How much a name says
//! decides what counts as its value: behind `password` anything does that is not plainly code or a
//! reference, behind `token` only what stands in quotes or looks random, because programs and prose are
//! full of tokens. Where it is written as for a shell, `GITHUB_TOKEN=…` or `--token …`, anything does.

use std::{ops::Range, sync::LazyLock};

use regex::Regex;

use super::{REDACTED, words};

/// A name that may speak of a secret, and what separates it from its value.
static NAMES: LazyLock<Option<Regex>> = LazyLock::new(|| {
    let name = r"(?P<name>[A-Za-z0-9_.-]*(?i:pass(?:word|wd|phrase|code)?|pwd|token|secret|credentials?|key|authorization))";
    let separator = r#"(?P<between>\\{0,7}["'`]?\]?[ \t]*(?::=|=>|={1,3}|:)[ \t]*|[ \t]+)"#;
    let login =
        r"(?P<login>(?i:(?-u:\b)login[ \t]+[^\s:]+\s+password|(?-u:\b)sshpass[ \t]+-p)[ \t]*)";
    let user = r#"(?:^|[\s"'])(?:-u|-U|--user|--proxy-user)[ \t=]*\\{0,7}(?P<quote>["']?)(?P<user>[^\s:"'=/\\-][^\s:"'=/\\]*):"#;
    let scheme = r"(?P<scheme>(?i:(?-u:\b)(?:bearer|basic)[ \t]+))";
    Regex::new(&format!("{user}|{login}|{scheme}|{name}{separator}")).ok()
});

/// Single words that name a secret by themselves, also as the end of a word such as `pgpassword`.
const STRONG: [&str; 9] = [
    "password",
    "passwd",
    "passphrase",
    "passcode",
    "apikey",
    "secretkey",
    "accesskey",
    "authtoken",
    "accesstoken",
];
/// What makes a secret of the word behind it.
const OF_TOKENS: [&str; 8] =
    ["access", "auth", "refresh", "session", "bearer", "id", "private", "bot"];
const OF_KEYS: [&str; 9] =
    ["api", "access", "secret", "private", "account", "encryption", "signing", "shared", "master"];
const WEAK: [&str; 7] =
    ["token", "secret", "pass", "pwd", "credential", "credentials", "authorization"];

/// What stands for a value in code and schemas.
const CODE: [&str; 33] = [
    "string",
    "str",
    "&str",
    "text",
    "varchar",
    "number",
    "int",
    "integer",
    "bool",
    "boolean",
    "any",
    "bytes",
    "object",
    "none",
    "null",
    "nil",
    "undefined",
    "true",
    "false",
    "required",
    "optional",
    "void",
    "never",
    "unknown",
    "default",
    "env",
    "self",
    "this",
    "is",
    "not",
    "in",
    "and",
    "or",
];
/// What the names of fields begin with in code.
const OWNERS: [&str; 20] = [
    "self.",
    "this.",
    "process.",
    "os.",
    "env.",
    "req.",
    "request.",
    "config.",
    "cfg.",
    "conf.",
    "args.",
    "opts.",
    "options.",
    "settings.",
    "ctx.",
    "params.",
    "props.",
    "state.",
    "user.",
    "data.",
];

/// How much a name says about what stands behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Says {
    /// It is a secret, written as for a shell or in a header: code does not look like this.
    Plainly,
    /// It is a secret, or code that handles one.
    Strongly,
    /// It may be one.
    Weakly,
    /// Many things are behind such a name.
    Hardly,
    Nothing,
}

/// Where secrets stand, from the first to the last; `None` where it cannot be told.
pub(super) fn find(text: &str) -> Option<Vec<Range<usize>>> {
    let names = NAMES.as_ref()?;
    let mut found: Vec<Range<usize>> = Vec::new();
    let mut at = 0;
    while let Some(captures) = names.captures_at(text, at) {
        let whole = captures.get(0)?;
        at = whole.end();
        let rest = text.get(at..)?;
        let part = |name| captures.name(name).map_or("", |part| part.as_str());
        let secret = if captures.name("name").is_some() {
            // The letter of `\n` is not the name's.
            let escaped = text.get(..whole.start()).is_some_and(|before| before.ends_with('\\'));
            let name = part("name");
            let name = if escaped { name.trim_start_matches(['n', 'r', 't']) } else { name };
            behind(name, part("between"), rest)
        } else if captures.name("user").is_some() {
            of_user(part("user"), part("quote"), rest)
        } else if captures.name("login").is_some() {
            Value::of(rest).map(|value| value.start..value.end(rest, SHELL))
        } else {
            let end = until_not(rest, |c| c.is_ascii_alphanumeric() || "._~+/=-".contains(c));
            let random = |b: u8| b.is_ascii_digit() || b.is_ascii_uppercase();
            (end >= 16 && cut(rest, end).bytes().any(random)).then_some(0..end)
        };
        let Some(secret) = secret.filter(|range| !range.is_empty()) else { continue };
        if rest.get(secret.clone()) != Some(REDACTED) {
            found.push(at + secret.start..at + secret.end);
        }
        at += secret.end;
    }
    Some(found)
}

/// At most so many bytes of a text.
fn cut(text: &str, most: usize) -> &str {
    text.get(..text.floor_char_boundary(most)).unwrap_or_default()
}

/// Where a value without quotes ends in code, and where in a shell.
const PLAIN: &[char] = &['"', '\'', '`', ',', ';', '&', '|', '\\'];
const SHELL: &[char] = &['"', '\'', '`', ';', '&', '|', '\\'];
/// What is looked at of a value to tell what it is.
const LOOKED_AT: usize = 96;
/// The most back-slashes before a quote that opens: three texts within each other.
const MAX_ESCAPES: usize = 7;

fn until(text: &str, stops: &[char]) -> usize {
    text.find(|c: char| c.is_whitespace() || stops.contains(&c)).unwrap_or(text.len())
}

fn until_not(text: &str, belongs: impl Fn(char) -> bool) -> usize {
    text.find(|c: char| !belongs(c)).unwrap_or(text.len())
}

/// The password behind `-u name:`. `docker run -u 1000:1000` gives a number for a number.
fn of_user(name: &str, quote: &str, rest: &str) -> Option<Range<usize>> {
    let end = match quote.chars().next() {
        Some(quote) => rest.find([quote, '\\', '\n']).unwrap_or(rest.len()),
        None => until(rest, SHELL),
    };
    let number = |text: &str| text.bytes().all(|b| b.is_ascii_digit());
    (!number(name) || !number(cut(rest, end))).then_some(0..end)
}

/// Where a value begins, and the quote that it stands in, which may be escaped as in JSON within JSON.
struct Value {
    start: usize,
    quote: Option<(char, usize)>,
}

impl Value {
    /// The value at the beginning of a text.
    fn of(text: &str) -> Option<Self> {
        let escapes = until_not(text, |c| c == '\\');
        let quote = text.get(escapes..)?.chars().next().filter(|c| "\"'`".contains(*c));
        Some(match quote.filter(|_| escapes <= MAX_ESCAPES) {
            Some(quote) => {
                Self { start: escapes + quote.len_utf8(), quote: Some((quote, escapes)) }
            }
            None => Self { start: 0, quote: None },
        })
    }

    /// Where it ends: at its quote or the line's end, or without quotes at what ends it.
    fn end(&self, text: &str, stops: &[char]) -> usize {
        let Some((quote, escapes)) = self.quote else { return until(text, stops) };
        let mut before = 0;
        for (at, c) in text.get(self.start..).unwrap_or_default().char_indices() {
            // With as many back-slashes before it as the first has, or fewer, a quote ends the value.
            if c == '\n' || (c == quote && before <= escapes) {
                return self.start + at - if c == quote { before } else { 0 };
            }
            before = if c == '\\' { before + 1 } else { 0 };
        }
        text.len()
    }
}

/// Where the secret stands in `rest`, if the name before it says that there is one.
fn behind(name: &str, between: &str, rest: &str) -> Option<Range<usize>> {
    let words = words(name);
    let scheme =
        if words.last().is_some_and(|last| last == "authorization") { scheme(rest) } else { 0 };
    let says = if scheme > 0 { Says::Plainly } else { says(name, &words, between) };
    if says == Says::Nothing || (between.ends_with(':') && rest.starts_with(':')) {
        return None;
    }
    let stops = if says == Says::Plainly { SHELL } else { PLAIN };
    let rest = rest.get(scheme..)?;
    let at = Value::of(rest)?;
    let looked_at = cut(rest, LOOKED_AT);
    let value = looked_at.get(at.start..at.end(looked_at, stops))?;
    let quoted = at.quote.is_some();
    let random = |least: usize| {
        value.len() >= least
            && value.bytes().any(|b| b.is_ascii_digit())
            && value.bytes().any(|b| b.is_ascii_alphabetic())
            && !value.contains(['(', ' ', '[', '<', '{'])
    };
    let hidden = !value.is_empty()
        && !is_reference(value)
        && match says {
            Says::Plainly => true,
            Says::Strongly => quoted || !is_code(value, name, between),
            Says::Weakly => random(8) || (quoted && value.len() >= 6 && !value.contains(' ')),
            Says::Hardly => random(16),
            Says::Nothing => false,
        };
    hidden.then(|| scheme + at.start..scheme + at.end(rest, stops))
}

/// How long the scheme is before the credentials of an Authorization header.
fn scheme(rest: &str) -> usize {
    let word = until_not(cut(rest, 16), |c| c.is_ascii_alphanumeric());
    let known = ["bearer", "basic", "token", "digest", "apikey", "bot", "negotiate"];
    let name = cut(rest, word).to_ascii_lowercase();
    let spaces = until_not(rest.get(word..).unwrap_or_default(), |c| c == ' ');
    if known.contains(&name.as_str()) && spaces > 0 { word + spaces } else { 0 }
}

fn says(name: &str, words: &[String], between: &str) -> Says {
    let flag = name.starts_with("--");
    if between.trim().is_empty() && !flag {
        // Nothing but space is between: that is how one writes prose.
        return Says::Nothing;
    }
    let mut backwards = words.iter().rev().map(String::as_str);
    let (last, before) = (backwards.next().unwrap_or(""), backwards.next().unwrap_or(""));
    let shell = between == "=" && !name.contains(char::is_lowercase);
    let by_word = if STRONG.iter().any(|strong| last.ends_with(strong))
        || (last == "token" && OF_TOKENS.contains(&before))
        || (last == "key" && OF_KEYS.contains(&before))
        || (last == "secret" && before == "client")
    {
        Says::Strongly
    } else if name == "PWD" || name == "OLDPWD" {
        Says::Nothing
    } else if WEAK.contains(&last) {
        Says::Weakly
    } else if last == "key" && shell {
        Says::Hardly
    } else {
        Says::Nothing
    };
    match by_word {
        Says::Strongly | Says::Weakly if shell || flag => Says::Plainly,
        other => other,
    }
}

/// Whether something else is named where a secret would stand: a variable, or a gap to be filled in.
fn is_reference(value: &str) -> bool {
    let variable = value.strip_prefix('$').and_then(|rest| rest.chars().next());
    let gap = (value.starts_with('<') && value.ends_with('>'))
        || (value.starts_with('%') && value.ends_with('%') && value.len() > 2)
        || (value.starts_with("{{") && value.ends_with("}}"));
    variable.is_some_and(|c| c.is_ascii_alphabetic() || "_{(".contains(c)) || gap
}

/// Whether what stands behind a name without quotes is code that handles a secret: a type, a call, a field,
/// or the name again.
fn is_code(value: &str, name: &str, between: &str) -> bool {
    let lower = value.trim_end_matches([')', ']', '}', '>', '?', '.', ':']).to_ascii_lowercase();
    let word = until_not(value, |c| c.is_alphanumeric() || "_.:&*".contains(c));
    let applied = value.get(word..).is_some_and(|rest| rest.starts_with(['(', '[', '<', '{']));
    let repeats = name.eq_ignore_ascii_case(&lower)
        || STRONG.iter().chain(&WEAK).any(|known| lower == *known);
    between.contains("==")
        || lower.is_empty()
        || CODE.contains(&lower.as_str())
        || OWNERS.iter().any(|owner| lower.starts_with(owner))
        || applied
        || repeats
}

#[cfg(test)]
mod tests {
    use super::super::text;

    #[test]
    fn what_stands_behind_the_name_of_a_secret_is_hidden() {
        for (from, to) in [
            ("api_key=8f14e45fceea167a&q=1", "api_key=[redacted]&q=1"),
            (r#"{"clientSecret": "8f14e45fceea167a"}"#, r#"{"clientSecret": "[redacted]"}"#),
            (r#"{\"password\": \"hunter2 two\"}"#, r#"{\"password\": \"[redacted]\"}"#),
            (r#"{\\\"password\\\": \\\"x y\\\"}"#, r#"{\\\"password\\\": \\\"[redacted]\\\"}"#),
            (r#""password": "a\"b c", "d": 1"#, r#""password": "[redacted]", "d": 1"#),
            ("password: 'correct horse'\nx: 1", "password: '[redacted]'\nx: 1"),
            ("password=abc", "password=[redacted]"),
            ("the password: hunter2", "the password: [redacted]"),
            ("export GITHUB_TOKEN=abc; ls", "export GITHUB_TOKEN=[redacted]; ls"),
            ("DB_PASS=x,y npm start", "DB_PASS=[redacted] npm start"),
            ("DB_PASS=\"a b\" npm start", "DB_PASS=\"[redacted]\" npm start"),
            ("PGPASSWORD=s3 psql", "PGPASSWORD=[redacted] psql"),
            (r"A=1\nDB_PASS=x\nB=2", r"A=1\nDB_PASS=[redacted]\nB=2"),
            ("AWS_SECRET_ACCESS_KEY=a/b+c", "AWS_SECRET_ACCESS_KEY=[redacted]"),
            ("STRIPE_KEY=a1b2c3d4e5f6a7b8", "STRIPE_KEY=[redacted]"),
            ("tool --password x --y", "tool --password [redacted] --y"),
            ("tool --password=x(1", "tool --password=[redacted]"),
            ("tool --db-pass 'x y' z", "tool --db-pass '[redacted]' z"),
            ("curl -u ada:pw https://x.example", "curl -u ada:[redacted] https://x.example"),
            ("curl -uada:pw x", "curl -uada:[redacted] x"),
            ("curl --user 'ada:p w' x", "curl --user 'ada:[redacted]' x"),
            ("machine x login ada password pw\n", "machine x login ada password [redacted]\n"),
            ("sshpass -p pw ssh x", "sshpass -p [redacted] ssh x"),
            (
                "DefaultEndpointsProtocol=https;AccountKey=YWJj+/A==;EndpointSuffix=x",
                "DefaultEndpointsProtocol=https;AccountKey=[redacted];EndpointSuffix=x",
            ),
            (
                "curl -H 'Authorization: Bearer abcdefgh12345678'",
                "curl -H 'Authorization: Bearer [redacted]'",
            ),
            ("-H \"authorization: token abc\"", "-H \"authorization: token [redacted]\""),
            ("PRIVATE-TOKEN: abcd1234", "PRIVATE-TOKEN: [redacted]"),
            ("//r.example/:_authToken=abc", "//r.example/:_authToken=[redacted]"),
            ("?token=abcd1234&x=1", "?token=[redacted]&x=1"),
            ("x=f(password=hunter2)", "x=f(password=[redacted]"),
            ("token = parse(\"password=hunter2\")", "token = parse(\"password=[redacted]\")"),
        ] {
            assert_eq!(text(from), to);
            assert_eq!(text(to), to, "once is enough");
        }
    }

    #[test]
    fn code_and_prose_stay_as_they_are() {
        for plain in [
            "the password is not told",
            "git commit -m 'token bearer'",
            "a basic understanding of it",
            "Unexpected token: end of input, expected `}`",
            "let token = lexer.next_token();",
            "const token: Token = tokens[0];",
            "fn login(user: &str, password: &str) -> Result<Token, Error>",
            "def connect(host: str, password: Optional[str] = None, token=token):",
            "connect(password=password, secret=self.secret, api_key=os.environ['KEY'])",
            "password: string;",
            "password = getpass.getpass()",
            "if password == other { return Err(Error::Password); }",
            "Secret::new(password)",
            "max_tokens=4096, tokens: 12",
            "monkey=banana keyboard: qwerty compass=north",
            "PRIMARY KEY (id), key: value, \"key\": \"user-name\"",
            "for key, value in items: print(key, value)",
            "GITHUB_TOKEN=$TOKEN DB_PASS=${DB_PASS} X_SECRET=$(cat x)",
            "token: ${{ secrets.GITHUB_TOKEN }}",
            "--password-stdin --token-file=/x",
            "curl --password <password> x",
            "PWD=/work ls",
            "docker run -u 1000:1000 x",
            "valueFrom:\n  secretKeyRef:\n    name: db\n    key: url\n",
            "password:\n  from: vault",
            "the secret of good code: name things well",
            "pass 12, fail 0; pass: 12",
            "password=[redacted]",
        ] {
            assert_eq!(text(plain), plain);
        }
    }

    #[test]
    fn no_text_is_read_over_and_over() {
        let nested = |piece: &str| piece.repeat((1 << 20) / piece.len());
        for piece in [
            "token=f(",
            "password=",
            "password:\\\"",
            "passwordtoken",
            "-u a:",
            "a:b@://",
            "://a:",
            "bearer ",
            "password   ",
            "\\",
            "AKIA",
            "-----BEGIN PRIVATE KEY",
            "%41",
            "authorization: a ",
        ] {
            // A quadratic reading would take minutes, which the runner ends.
            let whole = nested(piece);
            assert!(text(&whole).len() <= whole.len() * 3, "{piece}");
        }
    }
}
