//! The messages: one `tools/call` of MCP 2026-07-28, 1.5 KB in and 1.2 KB out, over HTTP/1.1. Every
//! message of a kind has the same length, so a call costs its sender one copy of an id.

use std::io::{self, ErrorKind, Read};

use memchr::memmem;
use serde_json::json;

/// The tool that every policy here allows.
pub const ALLOWED: &str = "read_record";
/// The tool that every policy here forbids.
pub const FORBIDDEN: &str = "delete_record";
/// The path of the upstream, and of whoever stands before it.
pub const PATH: &str = "/mcp";

/// Ids have ten digits from the first.
const FIRST_ID: u64 = 1_000_000_000;
/// About what a question of an agent holds.
const ARGUMENT_BYTES: usize = 950;
/// About what a record of a database is.
const RESULT_BYTES: usize = 1_100;

/// A message with a place for an id.
#[derive(Clone, Debug)]
pub struct Template {
    bytes: Vec<u8>,
    id_at: usize,
}

impl Template {
    fn new(bytes: Vec<u8>) -> Self {
        let id = FIRST_ID.to_string();
        let id_at = memmem::rfind(&bytes, id.as_bytes()).unwrap_or_default();
        Self { bytes, id_at }
    }

    /// The message with this id.
    pub fn with_id(&mut self, id: u64) -> &[u8] {
        let text = digits(id);
        if let Some(place) = self.bytes.get_mut(self.id_at..self.id_at + text.len()) {
            place.copy_from_slice(&text);
        }
        &self.bytes
    }

    /// How long it is.
    pub fn len(&self) -> usize {
        self.bytes.len()
    }
}

/// The id of call number `n`, as it is written.
pub fn digits(n: u64) -> [u8; 10] {
    let mut left = FIRST_ID + n;
    let mut text = [b'0'; 10];
    for digit in text.iter_mut().rev() {
        *digit = b'0' + u8::try_from(left % 10).unwrap_or_default();
        left /= 10;
    }
    text
}

/// A call of `tool` at `port`, whose header names `named`.
pub fn call(port: u16, tool: &str, named: &str) -> Template {
    let body = json!({
        "jsonrpc": "2.0",
        "id": FIRST_ID,
        "method": "tools/call",
        "params": {
            "name": tool,
            "arguments": {
                "collection": "orders",
                "key": "2026-11/4711",
                "fields": ["item", "price", "customer", "history"],
                "question": "lorem ipsum dolor sit amet ".repeat(ARGUMENT_BYTES / 27),
            },
            "_meta": {
                "io.modelcontextprotocol/protocolVersion": "2026-07-28",
                "io.modelcontextprotocol/clientInfo": { "name": "bench-proxy", "version": "1" },
                "io.modelcontextprotocol/clientCapabilities": {},
            },
        },
    })
    .to_string();
    let head = format!(
        "POST {PATH} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\nMCP-Protocol-Version: 2026-07-28\r\n\
         Mcp-Method: tools/call\r\nMcp-Name: {named}\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    Template::new([head, body].concat().into_bytes())
}

/// The upstream's answer, with its head.
pub fn answer() -> Template {
    let body = answer_body();
    let head = format!(
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    Template::new([head.into_bytes(), body].concat())
}

/// What an allowed call must be answered with, to the byte.
pub fn expected() -> Template {
    Template::new(answer_body())
}

fn answer_body() -> Vec<u8> {
    let text = "a record, and nothing but a record ".repeat(RESULT_BYTES / 35);
    let result = json!({ "content": [{ "type": "text", "text": text }], "isError": false, "resultType": "complete" });
    json!({ "jsonrpc": "2.0", "id": FIRST_ID, "result": result }).to_string().into_bytes()
}

/// The first message that a buffer holds whole.
#[derive(Clone, Copy, Debug)]
pub struct Frame {
    /// Where its body begins.
    pub body: usize,
    /// Where it ends.
    pub end: usize,
    /// The status of a response; 0 for a request.
    pub status: u16,
    /// Whether the other end closes the connection after it.
    pub closes: bool,
}

/// Finds the first message in `bytes`; `None` while some of it is missing. Bodies without a length
/// are refused: neither peer here sends one.
pub fn frame(bytes: &[u8]) -> io::Result<Option<Frame>> {
    let Some(head) = memmem::find(bytes, b"\r\n\r\n") else { return Ok(None) };
    let body = head + 4;
    let lines = bytes.get(..head).unwrap_or_default().split(|&byte| byte == b'\n');
    let (mut length, mut status, mut closes) = (0, 0, false);
    for (at, line) in lines.enumerate() {
        if at == 0 {
            let code = line.strip_prefix(b"HTTP/1.1 ").and_then(|rest| rest.get(..3));
            status = code.map_or(0, |code| decimal(code).try_into().unwrap_or(0));
        } else if let Some(value) = header(line, b"content-length:") {
            length = decimal(value);
        } else if let Some(value) = header(line, b"connection:") {
            closes = memmem::find(value, b"close").is_some();
        } else if header(line, b"transfer-encoding:").is_some() {
            return Err(io::Error::new(ErrorKind::InvalidData, "a body without a length"));
        }
    }
    let end = body + length;
    Ok((bytes.len() >= end).then_some(Frame { body, end, status, closes }))
}

fn header<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let (start, value) = line.split_at_checked(name.len())?;
    start.eq_ignore_ascii_case(name).then_some(value)
}

fn decimal(text: &[u8]) -> usize {
    let digits = text.iter().filter(|byte| byte.is_ascii_digit());
    digits.fold(0, |number, digit| number * 10 + usize::from(digit - b'0'))
}

/// The ten digits of the id in a request's body.
pub fn id_of(body: &[u8]) -> Option<&[u8]> {
    let at = memmem::find(body, b"\"id\":")? + 5;
    body.get(at..at + 10)
}

/// Takes what has come into `buffer`. `false` once the other end has closed.
pub fn fill(mut stream: impl Read, buffer: &mut Vec<u8>) -> io::Result<bool> {
    let mut chunk = [0; 16 * 1024];
    match stream.read(&mut chunk) {
        Ok(0) => Ok(false),
        Ok(count) => {
            buffer.extend_from_slice(chunk.get(..count).unwrap_or_default());
            Ok(true)
        }
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
        Err(error) => Err(error),
    }
}
