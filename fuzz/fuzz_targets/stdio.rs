//! Lines do not depend on where the stream was cut.
#![no_main]

use aegis_protocol::stdio::{LineDecoder, LineError};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fn decode(bytes: &[u8], size: usize) -> Vec<Result<Bytes, LineError>> {
    let mut decoder = LineDecoder::new(16);
    let mut lines = Vec::new();
    for chunk in bytes.chunks(size) {
        decoder.push(chunk);
        while let Some(line) = decoder.next_line().transpose() {
            lines.push(line);
        }
    }
    lines.extend(decoder.finish().transpose());
    lines
}

fuzz_target!(|bytes: &[u8]| {
    let whole = decode(bytes, bytes.len().max(1));
    for size in [1, 2, 7] {
        assert_eq!(decode(bytes, size), whole);
    }
});
