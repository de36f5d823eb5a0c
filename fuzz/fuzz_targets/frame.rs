//! Frames between a wrapper and the daemon: what is read is what was written.
#![no_main]

use aegis_api::frame;
use futures::executor::block_on;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let mut stream = bytes;
    let mut written = Vec::new();
    while let Ok(Some(frame)) = block_on(frame::read(&mut stream)) {
        block_on(frame::write(&mut written, frame.channel, &frame.payload)).expect("it was a frame");
    }
    assert!(bytes.starts_with(&written));
});
