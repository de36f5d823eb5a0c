//! Risk: `R = w_s·S + w_c·C + w_t·(1 − T/1000)`, clamped to [0, 1], in integer per mille.
//!
//! S is the scope of an action (how much it touches), C its sensitivity (what it touches), T the
//! trust in whoever asks. Sensitivity is graded by whole words: `author.ts` does not hold `auth`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    action::{Action, ActionKind},
    thresholds::Thresholds,
    trust::TrustScore,
};

/// A fraction in per mille, 0..=1000.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, JsonSchema,
)]
#[serde(transparent)]
pub struct PerMille(u16);

/// Grades of sensitivity, named as FailSafe names them.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, JsonSchema,
)]
pub enum Grade {
    /// Routine.
    L1,
    /// Changes something of weight.
    L2,
    /// Touches credentials, money, identity or the system itself.
    L3,
}

/// What the risk computation takes from the action alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// How many files or resources it names.
    pub files: u32,
    /// How large its arguments are, in bytes of text.
    pub bytes: u64,
    /// S, the scope.
    pub scope: PerMille,
    /// C, the sensitivity.
    pub sensitivity: PerMille,
}

/// A risk with its inputs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Risk {
    /// R, in per mille.
    pub score: PerMille,
    /// S, in per mille.
    pub scope: PerMille,
    /// C, in per mille.
    pub sensitivity: PerMille,
    /// The grade that C falls into.
    pub grade: Grade,
}

impl PerMille {
    /// One, that is 1000 ‰.
    pub const ONE: Self = Self(1000);

    /// Clamps to 0..=1000.
    #[must_use]
    pub fn clamped(value: u64) -> Self {
        Self(u16::try_from(value.min(1000)).unwrap_or(1000))
    }

    /// The number, 0..=1000.
    #[must_use]
    pub const fn get(self) -> u16 {
        self.0
    }
}

impl<'de> Deserialize<'de> for PerMille {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = u16::deserialize(deserializer)?;
        if value > 1000 {
            return Err(serde::de::Error::custom("a per-mille value is at most 1000"));
        }
        Ok(Self(value))
    }
}

impl Grade {
    /// The grade of a sensitivity: L3 from 700 ‰, L2 from 350 ‰.
    #[must_use]
    pub const fn of(sensitivity: PerMille) -> Self {
        match sensitivity.0 {
            700.. => Self::L3,
            350..=699 => Self::L2,
            _ => Self::L1,
        }
    }
}

impl Risk {
    /// `R = w_s·S + w_c·C + w_t·(1 − T/1000)`, clamped.
    #[must_use]
    pub fn compute(facts: &Facts, trust: TrustScore, thresholds: &Thresholds) -> Self {
        let distrust = 1000 - u64::from(trust.get());
        let weights = &thresholds.weights;
        let sum = u64::from(weights.scope.0) * u64::from(facts.scope.0)
            + u64::from(weights.sensitivity.0) * u64::from(facts.sensitivity.0)
            + u64::from(weights.trust.0) * distrust;
        Self {
            score: PerMille::clamped(sum / 1000),
            scope: facts.scope,
            sensitivity: facts.sensitivity,
            grade: Grade::of(facts.sensitivity),
        }
    }
}

impl Facts {
    /// Reads the facts off an action.
    #[must_use]
    pub fn of(action: &Action) -> Self {
        if action.kind.is_preparatory() {
            let zero = PerMille(0);
            return Self { files: 0, bytes: 0, scope: zero, sensitivity: zero };
        }
        let mut survey = Survey { files: 0, bytes: 0, sensitivity: base(action) };
        survey.words(action.tool.as_deref().unwrap_or_default());
        if let Some(resource) = &action.resource {
            survey.files += 1;
            survey.words(resource);
        }
        survey.value(&action.arguments, false, MAX_SURVEY_DEPTH);
        Self {
            files: survey.files,
            bytes: survey.bytes,
            scope: scope(survey.files, survey.bytes),
            sensitivity: PerMille(survey.sensitivity),
        }
    }
}

/// `S = 50 ‰ per file + 10 ‰ per started KiB of arguments`, clamped.
fn scope(files: u32, bytes: u64) -> PerMille {
    let kib = bytes.div_ceil(1024);
    PerMille::clamped(u64::from(files) * 50 + kib.saturating_mul(10))
}

/// The sensitivity of an action before any word is looked at.
fn base(action: &Action) -> u16 {
    let reads = || {
        let mut first = action.tool.as_deref().unwrap_or_default();
        let mut reading = false;
        each_word(&mut first, |word| {
            reading = READING.contains(&word);
            false
        });
        reading
    };
    match action.kind {
        ActionKind::List | ActionKind::Session | ActionKind::Task => 0,
        ActionKind::ResourceRead
        | ActionKind::FileRead
        | ActionKind::PromptGet
        | ActionKind::Completion
        | ActionKind::Subscription => 100,
        ActionKind::ToolCall if reads() => 150,
        ActionKind::ToolCall | ActionKind::AgentMessage | ActionKind::HttpRequest => 300,
        ActionKind::FileWrite | ActionKind::ServerRequest | ActionKind::Connect => 400,
        ActionKind::ShellExec => 700,
    }
}

/// Arguments are parsed to a depth of 64; a survey need not go deeper.
const MAX_SURVEY_DEPTH: u8 = 64;

/// Longer texts are content, not names: policies look into them, grading does not.
const MAX_GRADED_BYTES: usize = 4096;

/// Tools whose name starts so do not change anything.
const READING: [&str; 10] =
    ["read", "get", "list", "search", "find", "describe", "show", "fetch", "view", "count"];

/// Arguments that name what is touched, or say what is done.
const NAMING: [&str; 20] = [
    "path",
    "paths",
    "file",
    "files",
    "filename",
    "uri",
    "url",
    "source",
    "destination",
    "target",
    "directory",
    "table",
    "key",
    "name",
    "query",
    "sql",
    "statement",
    "command",
    "cmd",
    "script",
];

/// Arguments that name files.
const FILES: [&str; 8] =
    ["path", "paths", "file", "files", "filename", "source", "destination", "uri"];

/// Words and their sensitivity. The 800s are FailSafe's L3 triggers, the 600s destroy or transfer.
const LEXICON: [(&str, u16); 62] = [
    ("access", 400),
    ("admin", 800),
    ("alter", 600),
    ("api", 400),
    ("auth", 800),
    ("authenticate", 800),
    ("authentication", 800),
    ("authorization", 800),
    ("billing", 800),
    ("chmod", 700),
    ("chown", 700),
    ("config", 400),
    ("create", 350),
    ("credential", 800),
    ("credentials", 800),
    ("crypto", 800),
    ("database", 400),
    ("delete", 600),
    ("deploy", 600),
    ("destroy", 600),
    ("drop", 700),
    ("encrypt", 800),
    ("env", 700),
    ("eval", 700),
    ("exec", 700),
    ("execute", 500),
    ("grant", 700),
    ("iam", 800),
    ("insert", 350),
    ("install", 500),
    ("kill", 600),
    ("login", 800),
    ("migration", 800),
    ("move", 400),
    ("passwd", 800),
    ("password", 800),
    ("passwords", 800),
    ("pay", 800),
    ("payment", 800),
    ("payments", 800),
    ("pem", 800),
    ("private", 700),
    ("publish", 500),
    ("remove", 600),
    ("revoke", 700),
    ("role", 600),
    ("root", 700),
    ("rsa", 800),
    ("secret", 800),
    ("secrets", 800),
    ("service", 350),
    ("shadow", 800),
    ("shell", 700),
    ("ssh", 800),
    ("sudo", 800),
    ("token", 800),
    ("tokens", 800),
    ("transfer", 700),
    ("truncate", 700),
    ("update", 350),
    ("user", 400),
    ("write", 350),
];

/// What a walk over an action has seen so far.
struct Survey {
    files: u32,
    bytes: u64,
    sensitivity: u16,
}

impl Survey {
    fn words(&mut self, text: &str) {
        let mut rest = text;
        let mut highest = self.sensitivity;
        each_word(&mut rest, |word| {
            if let Ok(at) = LEXICON.binary_search_by_key(&word, |entry| entry.0) {
                highest = highest.max(LEXICON.get(at).map_or(0, |entry| entry.1));
            }
            true
        });
        self.sensitivity = highest;
    }

    fn value(&mut self, value: &Value, graded: bool, depth: u8) {
        let Some(depth) = depth.checked_sub(1) else { return };
        match value {
            Value::String(text) => {
                self.bytes += text.len() as u64;
                if graded && text.len() <= MAX_GRADED_BYTES {
                    self.words(text);
                }
            }
            Value::Array(items) => items.iter().for_each(|item| self.value(item, graded, depth)),
            Value::Object(members) => {
                for (key, member) in members {
                    self.bytes += key.len() as u64;
                    let lower = key.to_ascii_lowercase();
                    if FILES.contains(&lower.as_str()) {
                        let named = member.as_array().map_or(1, Vec::len);
                        self.files += u32::try_from(named).unwrap_or(u32::MAX).min(1 << 20);
                    }
                    self.value(member, NAMING.contains(&lower.as_str()), depth);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) => self.bytes += 8,
        }
    }
}

/// Calls `visit` with each word of `text` in lower case, until it answers `false`. Words are split
/// at whatever is neither letter nor digit, at camelCase humps, and between letters and digits.
pub fn each_word(text: &mut &str, mut visit: impl FnMut(&str) -> bool) {
    let mut word = String::with_capacity(16);
    let mut previous = ' ';
    let mut characters = text.chars().peekable();
    while let Some(c) = characters.next() {
        let hump = c.is_uppercase()
            && (previous.is_lowercase()
                || (previous.is_uppercase()
                    && characters.peek().is_some_and(|n| n.is_lowercase())));
        let border = hump || previous.is_numeric() != c.is_numeric();
        if (border || !c.is_alphanumeric()) && !word.is_empty() {
            if !visit(&word) {
                return;
            }
            word.clear();
        }
        if c.is_alphanumeric() {
            word.extend(c.to_lowercase());
        }
        previous = c;
    }
    if !word.is_empty() {
        visit(&word);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::action::Protocol;

    fn tool(name: &str, arguments: Value) -> Action {
        Action {
            kind: ActionKind::ToolCall,
            protocol: Protocol::Mcp,
            method: "tools/call".into(),
            server: "files".into(),
            tool: Some(name.into()),
            tool_pin: None,
            resource: None,
            arguments,
        }
    }

    #[test]
    fn the_lexicon_is_sorted() {
        assert!(LEXICON.is_sorted_by_key(|entry| entry.0));
    }

    #[test]
    fn words_are_whole_segments() {
        let cases = [
            ("src/author.ts", Grade::L1),
            ("src/auth/session.ts", Grade::L3),
            ("src/auth.ts", Grade::L3),
            ("AuthToken.java", Grade::L3),
            ("tokenizer/lexer.rs", Grade::L1),
            ("docs/readme.md", Grade::L1),
            ("db/migration/0001.sql", Grade::L3),
            ("payment2.go", Grade::L3),
            (".env", Grade::L3),
            ("service/orders.py", Grade::L2),
        ];
        for (path, expected) in cases {
            let facts = Facts::of(&tool("read_file", json!({ "path": path })));
            assert_eq!(Grade::of(facts.sensitivity), expected, "{path}");
        }
    }

    #[test]
    fn content_is_not_a_name() {
        let facts = Facts::of(&tool("save_note", json!({ "text": "the password of the day" })));
        assert_eq!(Grade::of(facts.sensitivity), Grade::L1);
    }

    #[test]
    fn files_and_bytes_make_the_scope() {
        let paths: Vec<String> = (0..12).map(|i| format!("a{i}.txt")).collect();
        let facts = Facts::of(&tool("read_many", json!({ "paths": paths })));
        assert_eq!((facts.files, facts.scope.get()), (12, 610));
    }

    proptest! {
        /// More trust never means more risk.
        #[test]
        fn risk_falls_with_trust(s in 0_u64..=1000, c in 0_u64..=1000, t in 0_u16..1000) {
            let facts = Facts { files: 0, bytes: 0, scope: PerMille::clamped(s), sensitivity: PerMille::clamped(c) };
            let thresholds = Thresholds::default();
            let lower = Risk::compute(&facts, TrustScore::clamped(u64::from(t)), &thresholds);
            let higher = Risk::compute(&facts, TrustScore::clamped(u64::from(t) + 1), &thresholds);
            prop_assert!(higher.score <= lower.score);
            prop_assert!(lower.score <= PerMille::ONE);
        }

        #[test]
        fn grading_never_panics(text in "\\PC{0,200}") {
            let _ = Facts::of(&tool(&text, json!({ "path": text })));
        }
    }
}
