//! MCP over a byte stream: one message per line (basic/transports/stdio).
//!
//! Refused: lines beyond the cap, lines that are not UTF-8 and lines with a NUL, which C programs
//! take for the end. A refused line is consumed whole, so that the stream goes on behind it.

use bytes::{Bytes, BytesMut};

/// Cuts a stream into lines.
#[derive(Debug)]
pub struct LineDecoder {
    buffer: BytesMut,
    scanned: usize,
    /// The rest of a line that was refused for its size is being dropped.
    skipping: bool,
    cap: usize,
}

/// Why a line is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LineError {
    /// Beyond the cap.
    #[error("a line is longer than {0} bytes; send less at once")]
    TooLong(usize),
    /// Not UTF-8.
    #[error("a line is not UTF-8")]
    NotUtf8,
    /// Holds a NUL.
    #[error("a line holds a NUL byte")]
    Nul,
}

impl LineDecoder {
    /// A decoder that refuses lines of more than `cap` bytes, line end not counted.
    #[must_use]
    pub fn new(cap: usize) -> Self {
        Self { buffer: BytesMut::new(), scanned: 0, skipping: false, cap }
    }

    /// Takes bytes from the stream. Take the lines out with [`next_line`](Self::next_line) before
    /// pushing more.
    pub fn push(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next line without its end (LF or CRLF); blank lines are passed over. `None`: more bytes
    /// are needed.
    ///
    /// # Errors
    /// When the line is refused. The next call goes on behind it.
    pub fn next_line(&mut self) -> Result<Option<Bytes>, LineError> {
        loop {
            let rest = self.buffer.get(self.scanned..).unwrap_or_default();
            let Some(offset) = memchr::memchr(b'\n', rest) else {
                self.scanned = self.buffer.len();
                if self.skipping {
                    self.buffer.clear();
                    self.scanned = 0;
                } else if self.scanned > self.cap.saturating_add(1) {
                    // One byte more than the cap may be the CR of a line end.
                    self.buffer.clear();
                    self.scanned = 0;
                    self.skipping = true;
                    return Err(LineError::TooLong(self.cap));
                }
                return Ok(None);
            };
            let mut line = self.buffer.split_to(self.scanned + offset + 1);
            self.scanned = 0;
            if std::mem::take(&mut self.skipping) {
                continue;
            }
            line.truncate(line.len() - 1);
            if line.last() == Some(&b'\r') {
                line.truncate(line.len() - 1);
            }
            if line.iter().all(u8::is_ascii_whitespace) && line.len() <= self.cap {
                continue;
            }
            return self.checked(line.freeze()).map(Some);
        }
    }

    /// The last line, when the stream has ended without a line end.
    ///
    /// # Errors
    /// When the line is refused.
    pub fn finish(self) -> Result<Option<Bytes>, LineError> {
        if self.skipping || self.buffer.iter().all(u8::is_ascii_whitespace) {
            return Ok(None);
        }
        let line = self.buffer.clone().freeze();
        self.checked(line).map(Some)
    }

    fn checked(&self, line: Bytes) -> Result<Bytes, LineError> {
        if line.len() > self.cap {
            Err(LineError::TooLong(self.cap))
        } else if memchr::memchr(0, &line).is_some() {
            Err(LineError::Nul)
        } else if std::str::from_utf8(&line).is_err() {
            Err(LineError::NotUtf8)
        } else {
            Ok(line)
        }
    }
}

/// A message as a line. JSON that was parsed strictly holds line breaks only as white space between
/// its tokens; they become spaces, so that the message stays one line.
#[must_use]
pub fn encode(message: &[u8]) -> Bytes {
    let mut line: Vec<u8> = message
        .iter()
        .map(|&byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { byte })
        .collect();
    line.push(b'\n');
    line.into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn decode(chunks: &[&[u8]], cap: usize) -> Vec<Result<Bytes, LineError>> {
        let mut decoder = LineDecoder::new(cap);
        let mut lines = Vec::new();
        for chunk in chunks {
            decoder.push(chunk);
            while let Some(line) = decoder.next_line().transpose() {
                lines.push(line);
            }
        }
        lines.extend(decoder.finish().transpose());
        lines
    }

    #[test]
    fn lines_are_cut_and_bad_ones_refused_without_losing_the_next() {
        let lines = decode(&[b"{}\r\n\n \nab\0c\n\xff\n123456\n12345\r\nlast"], 5);
        let expected: [Result<Bytes, LineError>; 6] = [
            Ok("{}".into()),
            Err(LineError::Nul),
            Err(LineError::NotUtf8),
            Err(LineError::TooLong(5)),
            Ok("12345".into()),
            Ok("last".into()),
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn an_endless_line_is_refused_once_and_does_not_grow() {
        let mut decoder = LineDecoder::new(10);
        let mut refused = 0;
        for _ in 0..1000 {
            decoder.push(b"xxxxxxxx");
            refused += u32::from(decoder.next_line().is_err());
            assert!(decoder.buffer.len() <= 20);
        }
        decoder.push(b"\n{}\n");
        assert_eq!((refused, decoder.next_line()), (1, Ok(Some("{}".into()))));
    }

    proptest! {
        #[test]
        fn chunking_does_not_matter(
            bytes in proptest::collection::vec(prop_oneof![Just(b'\n'), Just(b'\r'), Just(b'a'), Just(0), any::<u8>()], 0..60),
            cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..6),
        ) {
            let mut at: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            at.extend([0, bytes.len()]);
            at.sort_unstable();
            let chunks: Vec<&[u8]> = at.windows(2).map(|w| &bytes[w[0]..w[1]]).collect();
            prop_assert_eq!(decode(&chunks, 4), decode(&[&bytes], 4));
        }

        #[test]
        fn encoding_round_trips(text in "[a-z ]{1,20}") {
            prop_assume!(!text.trim().is_empty());
            let line = encode(text.as_bytes());
            prop_assert_eq!(decode(&[&line], 100), vec![Ok(Bytes::from(text))]);
        }
    }
}
