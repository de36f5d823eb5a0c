//! An entry of the log: what is accepted is what a verifier may show, and never a panic.
#![no_main]

use aegis_audit::{Entry, tile};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    if let Ok(entry) = Entry::parse(bytes) {
        let _ = (entry.action_text("tool"), format!("{entry:?}"));
    }
    if let Some(hashes) = tile::split(bytes) {
        assert_eq!(tile::join(&hashes), bytes);
    }
    let Ok(text) = str::from_utf8(bytes) else { return };
    if let Some(resource) = tile::Resource::parse(text) {
        assert_eq!(resource.to_string(), text);
    }
});
