//! Server-sent events: bytes in any chunks → events with the bytes they came in.
//!
//! After WHATWG HTML §9.2: lines end with LF, CR or CRLF; an empty line ends an event. An event is
//! released as the bytes that it was, so that `id`, `retry`, unknown fields, comments and priming
//! events pass a proxy unchanged; only a rewritten `data` is written anew. Refused: an event larger
//! than the cap, which would otherwise grow without end.

use bytes::{Bytes, BytesMut};

/// Cuts a stream into events.
#[derive(Debug)]
pub struct SseDecoder {
    buffer: BytesMut,
    /// How far `buffer` has been scanned.
    scanned: usize,
    /// Where the line being scanned starts.
    line_start: usize,
    /// The last byte of the preceding event was a CR, whose LF may still come.
    after_cr: bool,
    cap: usize,
}

/// One event, or a block of comments, with the empty line that ends it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SseEvent {
    raw: Bytes,
}

/// Why a stream is cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SseError {
    /// An event beyond the cap.
    #[error("an event of the stream is larger than {0} bytes")]
    TooLarge(usize),
}

impl SseDecoder {
    /// A decoder that refuses events of more than `cap` bytes.
    #[must_use]
    pub fn new(cap: usize) -> Self {
        Self { buffer: BytesMut::new(), scanned: 0, line_start: 0, after_cr: false, cap }
    }

    /// Takes bytes from the stream. Take the events out with [`next_event`](Self::next_event)
    /// before pushing more.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next complete event. `None`: more bytes are needed.
    ///
    /// # Errors
    /// When the event exceeds the cap; the stream cannot go on.
    pub fn next_event(&mut self) -> Result<Option<SseEvent>, SseError> {
        while let Some(&byte) = self.buffer.get(self.scanned) {
            if self.after_cr && self.scanned == 0 && byte == b'\n' {
                // The second half of the CRLF that ended the preceding event: it belongs to that
                // event, which is gone, so it is kept at the front of this one and skipped.
                self.after_cr = false;
                self.scanned = 1;
                self.line_start = 1;
                continue;
            }
            self.after_cr = false;
            if byte != b'\n' && byte != b'\r' {
                let rest = self.buffer.get(self.scanned..).unwrap_or_default();
                self.scanned += memchr::memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
                continue;
            }
            let empty = self.scanned == self.line_start;
            let mut end = self.scanned + 1;
            if byte == b'\r' && self.buffer.get(end) == Some(&b'\n') {
                end += 1;
            } else if byte == b'\r' && self.buffer.get(end).is_none() && !empty {
                // An LF may follow and would otherwise look like an empty line.
                break;
            }
            self.scanned = end;
            self.line_start = end;
            if empty {
                self.after_cr = byte == b'\r' && self.buffer.get(end - 1) == Some(&b'\r');
                self.check(end)?;
                let raw = self.buffer.split_to(end).freeze();
                self.scanned = 0;
                self.line_start = 0;
                return Ok(Some(SseEvent { raw }));
            }
        }
        self.check(self.buffer.len())?;
        Ok(None)
    }

    /// What came after the last event when the stream has ended. It is not an event and is never
    /// dispatched by a client; a proxy releases it or drops it without judging.
    #[must_use]
    pub fn finish(self) -> Bytes {
        self.buffer.freeze()
    }

    const fn check(&self, size: usize) -> Result<(), SseError> {
        if size > self.cap { Err(SseError::TooLarge(self.cap)) } else { Ok(()) }
    }
}

/// The lines of a block, without their ends.
fn lines(raw: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = raw;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let end = memchr::memchr2(b'\n', b'\r', rest).unwrap_or(rest.len());
        let (line, tail) = rest.split_at_checked(end)?;
        let skip = if tail.starts_with(b"\r\n") { 2 } else { usize::from(!tail.is_empty()) };
        rest = tail.get(skip..).unwrap_or_default();
        Some(line)
    })
}

/// The value of the field `name` on this line.
fn field<'a>(line: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let line = line.strip_prefix(b"\xef\xbb\xbf".as_slice()).unwrap_or(line);
    match line.strip_prefix(name)? {
        [] => Some(&[]),
        [b':', b' ', value @ ..] | [b':', value @ ..] => Some(value),
        _ => None,
    }
}

impl SseEvent {
    /// The bytes that the event came in.
    #[must_use]
    pub const fn raw(&self) -> &Bytes {
        &self.raw
    }

    /// The payload: its `data` lines, joined by LF. `None` if there is no `data` line at all, as in
    /// comments; empty for a priming event.
    #[must_use]
    pub fn data(&self) -> Option<Bytes> {
        let mut values = lines(&self.raw).filter_map(|line| field(line, b"data"));
        let first = values.next()?;
        let mut joined = BytesMut::new();
        for value in values {
            if joined.is_empty() {
                joined.extend_from_slice(first);
            }
            joined.extend_from_slice(b"\n");
            joined.extend_from_slice(value);
        }
        // The ordinary event has one line, which is not copied.
        Some(if joined.is_empty() { self.raw.slice_ref(first) } else { joined.freeze() })
    }

    /// The last value of a field such as `id`, `event` or `retry`.
    #[must_use]
    pub fn field(&self, name: &str) -> Option<&[u8]> {
        lines(&self.raw).filter_map(|line| field(line, name.as_bytes())).last()
    }

    /// The event with another payload; its other lines keep their bytes and order.
    #[must_use]
    pub fn with_data(&self, data: &[u8]) -> Bytes {
        let mut out = Vec::with_capacity(self.raw.len() + data.len());
        let mut written = false;
        for line in lines(&self.raw).filter(|line| !line.is_empty()) {
            if field(line, b"data").is_none() {
                out.extend_from_slice(line);
                out.push(b'\n');
            } else if !written {
                written = true;
                encode_data(&mut out, data);
            }
        }
        if !written {
            encode_data(&mut out, data);
        }
        out.push(b'\n');
        out.into()
    }
}

/// An event of Aegis' own with this payload, such as a list's change notification.
#[must_use]
pub fn encode(data: &[u8]) -> Bytes {
    let mut out = b"event: message\n".to_vec();
    encode_data(&mut out, data);
    out.push(b'\n');
    out.into()
}

fn encode_data(out: &mut Vec<u8>, data: &[u8]) {
    // A payload that ends with a line break has an empty last line, which `lines` does not give.
    let last = data.ends_with(b"\n") || data.ends_with(b"\r") || data.is_empty();
    for line in lines(data).chain(last.then_some(&b""[..])) {
        out.extend_from_slice(b"data: ");
        out.extend_from_slice(line);
        out.push(b'\n');
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(chunks: &[&[u8]], cap: usize) -> Result<(Vec<SseEvent>, Bytes), SseError> {
        let mut decoder = SseDecoder::new(cap);
        let mut events = Vec::new();
        for chunk in chunks {
            decoder.push(chunk);
            while let Some(event) = decoder.next_event()? {
                events.push(event);
            }
        }
        Ok((events, decoder.finish()))
    }

    #[test]
    fn events_keep_their_bytes_whatever_ends_their_lines() {
        let stream =
            b"id: 7\r\ndata: a\r\n\r\n: keep-alive\n\nretry: 5\rdata:b\rdata: c\r\rdata\n\npartial";
        let (events, rest) = decode(&[stream], 100).unwrap();
        let data: Vec<Option<Bytes>> = events.iter().map(SseEvent::data).collect();
        assert_eq!(data, [Some("a".into()), None, Some("b\nc".into()), Some("".into())]);
        assert_eq!(events[0].field("id"), Some(&b"7"[..]));
        assert_eq!(events[2].field("retry"), Some(&b"5"[..]));
        let mut joined: Vec<u8> = events.iter().flat_map(|event| event.raw().to_vec()).collect();
        joined.extend_from_slice(&rest);
        assert_eq!(joined, stream);
        assert_eq!(&rest[..], b"partial");
    }

    #[test]
    fn an_event_is_released_as_soon_as_it_is_complete() {
        for end in ["\n\n", "\r\n\r\n", "\r\r"] {
            let (events, _) = decode(&[format!("data: x{end}").as_bytes()], 100).unwrap();
            assert_eq!(events.len(), 1, "{end:?}");
        }
    }

    #[test]
    fn events_are_capped() {
        assert_eq!(decode(&[b"data: 12345"], 10), Err(SseError::TooLarge(10)));
        assert_eq!(decode(&[b"data: 12\n\n"], 9), Err(SseError::TooLarge(9)));
        assert!(decode(&[b"data: 12\n\ndata: 12\n\n"], 10).is_ok());
    }

    #[test]
    fn a_rewritten_payload_keeps_the_other_fields() {
        let (events, _) =
            decode(&[b"event: message\r\nid: 1\r\ndata: old\r\ndata: er\r\n: c\r\n\r\n"], 100)
                .unwrap();
        assert_eq!(&events[0].with_data(b"new")[..], b"event: message\nid: 1\ndata: new\n: c\n\n");
    }

    proptest! {
        #[test]
        fn chunking_does_not_matter(
            stream in "(data: ?[a-z]{0,3}|id: 1|:c|)((\r\n|\r|\n)(data: ?[a-z]{0,3}|retry: 5|)){0,12}",
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let bytes = stream.as_bytes();
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let chunks: Vec<&[u8]> = at.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            let payloads = |chunks: &[&[u8]]| {
                let (events, rest) = decode(chunks, 10_000).unwrap();
                let mut joined: Vec<u8> = events.iter().flat_map(|event| event.raw().to_vec()).collect();
                joined.extend_from_slice(&rest);
                (events.iter().filter_map(SseEvent::data).collect::<Vec<_>>(), joined)
            };
            let whole = payloads(&[bytes]);
            prop_assert_eq!(&payloads(&chunks), &whole);
            prop_assert_eq!(whole.1, bytes);
        }

        #[test]
        fn encoding_round_trips(data in "[a-z\n]{0,20}") {
            let encoded = encode(data.as_bytes());
            let (events, rest) = decode(&[&encoded], 10_000).unwrap();
            prop_assert!(rest.is_empty());
            prop_assert_eq!(events.len(), 1);
            prop_assert_eq!(events[0].data().unwrap(), data.as_bytes());
        }
    }
}
