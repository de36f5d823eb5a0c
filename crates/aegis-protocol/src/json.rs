//! Strict JSON: one pass over the bytes, one meaning, or an error.
//!
//! Two parsers that read one text differently are a hole: the policy judges one value, the server
//! acts on the other. So this refuses every text on which parsers are known to differ: duplicate
//! keys at any depth (RFC 8259 §4 leaves them open), numbers that a double cannot hold exactly (§6),
//! lone surrogates (§8.2), a byte order mark (§8.1), bytes that are not UTF-8, anything after the
//! value, and depth or size beyond [`Limits`].
//!
//! Negative zero is accepted as the double it is; its canonical form is `0`.

mod number;

pub mod edit;

use aegis_core::decision::Reason;
use serde_json::{Map, Value, map::Entry};

/// How large and how deep a message may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// The largest number of bytes.
    pub size: usize,
    /// How many arrays and objects may be nested.
    pub depth: usize,
}

impl Default for Limits {
    /// 4 MiB and 64 levels.
    fn default() -> Self {
        Self { size: 4 << 20, depth: 64 }
    }
}

/// Why bytes are refused. Positions are byte offsets; content is never quoted, as it may be secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// An object names a member twice.
    #[error("an object names a member twice at byte {at}; send each member once")]
    DuplicateKey {
        /// Where the second key starts.
        at: usize,
    },
    /// Too many arrays and objects in each other.
    #[error("more than {limit} nested arrays and objects at byte {at}; flatten the message")]
    NestingTooDeep {
        /// Where the first level too many starts.
        at: usize,
        /// The limit.
        limit: usize,
    },
    /// Not UTF-8, or a `\u` escape of half a surrogate pair, which has no UTF-8 form.
    #[error("not UTF-8 at byte {at}; encode the message as UTF-8 without lone surrogates")]
    NotUtf8 {
        /// Where.
        at: usize,
    },
    /// A number whose value changes when it is read as a double.
    #[error("the number at byte {at} cannot be held exactly by a double; send it as a string")]
    InexactNumber {
        /// Where it starts.
        at: usize,
    },
    /// More bytes than allowed.
    #[error("the message has {size} bytes and the limit is {limit}; send less at once")]
    TooLarge {
        /// Its size.
        size: usize,
        /// The limit.
        limit: usize,
    },
    /// Not JSON.
    #[error("not JSON at byte {at}: expected {expected}")]
    Malformed {
        /// Where.
        at: usize,
        /// What should have stood there.
        expected: &'static str,
    },
}

impl JsonError {
    /// The reason it is refused for.
    #[must_use]
    pub const fn reason(&self) -> Reason {
        match self {
            Self::DuplicateKey { .. } => Reason::DuplicateKey,
            Self::NestingTooDeep { .. } => Reason::NestingTooDeep,
            Self::NotUtf8 { .. } => Reason::NotUtf8,
            Self::InexactNumber { .. } => Reason::InexactNumber,
            Self::TooLarge { .. } => Reason::MessageTooLarge,
            Self::Malformed { .. } => Reason::MalformedMessage,
        }
    }
}

/// Reads one JSON value that fills `bytes`.
///
/// # Errors
/// When the bytes are refused; see the module's description.
pub fn parse(bytes: &[u8], limits: Limits) -> Result<Value, JsonError> {
    if bytes.len() > limits.size {
        return Err(JsonError::TooLarge { size: bytes.len(), limit: limits.size });
    }
    let text = std::str::from_utf8(bytes)
        .map_err(|error| JsonError::NotUtf8 { at: error.valid_up_to() })?;
    let mut scanner = Scanner { text, bytes: text.as_bytes(), at: 0, limit: limits.depth };
    scanner.whitespace();
    let value = scanner.value(limits.depth)?;
    scanner.whitespace();
    if scanner.at < bytes.len() {
        return Err(scanner.expected("nothing after the value"));
    }
    Ok(value)
}

struct Scanner<'a> {
    text: &'a str,
    bytes: &'a [u8],
    at: usize,
    limit: usize,
}

impl<'a> Scanner<'a> {
    fn peek(&self) -> Option<u8> {
        self.bytes.get(self.at).copied()
    }

    fn expected(&self, expected: &'static str) -> JsonError {
        JsonError::Malformed { at: self.at, expected }
    }

    fn whitespace(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn value(&mut self, depth_left: usize) -> Result<Value, JsonError> {
        match self.peek() {
            Some(b'"') => self.string().map(Value::String),
            Some(b'{') => self.object(depth_left),
            Some(b'[') => self.array(depth_left),
            Some(b'-' | b'0'..=b'9') => {
                let (number, end) = number::read(self.bytes, self.text, self.at)?;
                self.at = end;
                Ok(Value::Number(number))
            }
            Some(b't') => self.literal("true", Value::Bool(true)),
            Some(b'f') => self.literal("false", Value::Bool(false)),
            Some(b'n') => self.literal("null", Value::Null),
            _ => Err(self.expected("a value")),
        }
    }

    fn literal(&mut self, word: &'static str, value: Value) -> Result<Value, JsonError> {
        let end = self.at + word.len();
        if self.bytes.get(self.at..end) != Some(word.as_bytes()) {
            return Err(self.expected(word));
        }
        self.at = end;
        Ok(value)
    }

    fn descend(&self, depth_left: usize) -> Result<usize, JsonError> {
        depth_left
            .checked_sub(1)
            .ok_or(JsonError::NestingTooDeep { at: self.at, limit: self.limit })
    }

    fn array(&mut self, depth_left: usize) -> Result<Value, JsonError> {
        let depth_left = self.descend(depth_left)?;
        self.at += 1;
        let mut items = Vec::new();
        self.whitespace();
        if self.peek() == Some(b']') {
            self.at += 1;
            return Ok(Value::Array(items));
        }
        loop {
            self.whitespace();
            items.push(self.value(depth_left)?);
            self.whitespace();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b']') => {
                    self.at += 1;
                    return Ok(Value::Array(items));
                }
                _ => return Err(self.expected("`,` or `]`")),
            }
        }
    }

    fn object(&mut self, depth_left: usize) -> Result<Value, JsonError> {
        let depth_left = self.descend(depth_left)?;
        self.at += 1;
        let mut members = Map::new();
        self.whitespace();
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(Value::Object(members));
        }
        loop {
            self.whitespace();
            let key_at = self.at;
            if self.peek() != Some(b'"') {
                return Err(self.expected("a member's name"));
            }
            let key = self.string()?;
            self.whitespace();
            if self.peek() != Some(b':') {
                return Err(self.expected("`:`"));
            }
            self.at += 1;
            self.whitespace();
            match members.entry(key) {
                Entry::Occupied(_) => return Err(JsonError::DuplicateKey { at: key_at }),
                Entry::Vacant(entry) => entry.insert(self.value(depth_left)?),
            };
            self.whitespace();
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(Value::Object(members));
                }
                _ => return Err(self.expected("`,` or `}`")),
            }
        }
    }

    /// The end of the run of characters that stand for themselves.
    fn plain_run(&self) -> usize {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let length = memchr::memchr2(b'"', b'\\', rest).unwrap_or(rest.len());
        let run = rest.get(..length).unwrap_or_default();
        // Without an early exit this compiles to vector instructions; controls are rare.
        let controls = run.iter().fold(false, |any, &b| any | (b < 0x20));
        let plain =
            if controls { run.iter().position(|&b| b < 0x20).unwrap_or(length) } else { length };
        self.at + plain
    }

    fn string(&mut self) -> Result<String, JsonError> {
        self.at += 1;
        let end = self.plain_run();
        let first = self.slice(end)?;
        if self.bytes.get(end) == Some(&b'"') {
            self.at = end + 1;
            return Ok(first.to_owned());
        }
        // A guess: to the next quote, which may be an escaped one.
        let rest = self.bytes.get(end + 2..).unwrap_or_default();
        let more = memchr::memchr(b'"', rest).unwrap_or_default();
        let mut out = String::with_capacity(first.len() + more + 8);
        out.push_str(first);
        self.at = end;
        loop {
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(out);
                }
                Some(b'\\') => {
                    let character = self.escape()?;
                    out.push(character);
                }
                Some(0..0x20) => return Err(self.expected("control characters to be escaped")),
                None => return Err(self.expected("the end of the string")),
                Some(_) => {
                    let end = self.plain_run();
                    out.push_str(self.slice(end)?);
                    self.at = end;
                }
            }
        }
    }

    fn slice(&self, end: usize) -> Result<&'a str, JsonError> {
        // Runs end before an ASCII byte or at the end, so this is always on a boundary.
        self.text.get(self.at..end).ok_or(JsonError::NotUtf8 { at: self.at })
    }

    fn escape(&mut self) -> Result<char, JsonError> {
        let start = self.at;
        let kind = self.bytes.get(start + 1).copied();
        self.at += 2;
        Ok(match kind {
            Some(b'"') => '"',
            Some(b'\\') => '\\',
            Some(b'/') => '/',
            Some(b'b') => '\u{8}',
            Some(b'f') => '\u{c}',
            Some(b'n') => '\n',
            Some(b'r') => '\r',
            Some(b't') => '\t',
            Some(b'u') => {
                let unit = self.code_unit()?;
                let scalar = match unit {
                    0xd800..0xdc00 => {
                        if self.bytes.get(self.at..self.at + 2) != Some(b"\\u") {
                            return Err(JsonError::NotUtf8 { at: start });
                        }
                        self.at += 2;
                        let low = self.code_unit()?;
                        if !(0xdc00..0xe000).contains(&low) {
                            return Err(JsonError::NotUtf8 { at: start });
                        }
                        0x1_0000 + ((unit - 0xd800) << 10) + (low - 0xdc00)
                    }
                    unit => unit,
                };
                char::from_u32(scalar).ok_or(JsonError::NotUtf8 { at: start })?
            }
            _ => {
                return Err(JsonError::Malformed {
                    at: start,
                    expected: "an escape of RFC 8259 §7",
                });
            }
        })
    }

    fn code_unit(&mut self) -> Result<u32, JsonError> {
        let malformed = JsonError::Malformed { at: self.at, expected: "four hex digits" };
        let digits = self.bytes.get(self.at..self.at + 4).ok_or(malformed)?;
        let mut unit = 0;
        for &digit in digits {
            unit = unit * 16 + char::from(digit).to_digit(16).ok_or(malformed)?;
        }
        self.at += 4;
        Ok(unit)
    }
}

#[cfg(test)]
mod tests;
