//! Texts of agents before they are recorded: never a panic, and redacting again finds nothing more.
#![no_main]

use aegis_protocol::{json, redact};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let once = redact::text(text);
    assert_eq!(redact::text(&once), once);
    if let Ok(value) = json::parse(bytes, json::Limits::default()) {
        let once = redact::arguments(&value, &[]);
        assert_eq!(redact::arguments(&once, &[]), once);
    }
});
