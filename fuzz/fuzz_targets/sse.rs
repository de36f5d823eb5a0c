//! Events and their payloads do not depend on where the stream was cut, and no byte is lost.
#![no_main]

use aegis_protocol::sse::{SseDecoder, SseEvent};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fn decode(bytes: &[u8], size: usize) -> (Vec<Bytes>, Vec<u8>) {
    let mut decoder = SseDecoder::new(1 << 20);
    let (mut payloads, mut raw) = (Vec::new(), Vec::new());
    for chunk in bytes.chunks(size) {
        decoder.push(chunk);
        while let Some(event) = decoder.next_event().expect("below the cap") {
            payloads.extend(SseEvent::data(&event));
            let _ = event.with_data(b"{}");
            raw.extend_from_slice(event.raw());
        }
    }
    raw.extend_from_slice(&decoder.finish());
    (payloads, raw)
}

fuzz_target!(|bytes: &[u8]| {
    let whole = decode(bytes, bytes.len().max(1));
    assert_eq!(whole.1, bytes);
    for size in [1, 2, 7] {
        assert_eq!(decode(bytes, size), whole);
    }
});
