//! Whatever is accepted, serde_json accepts too, and its canonical form is read as the same value.
#![no_main]

use aegis_protocol::json::{Limits, parse};
use libfuzzer_sys::fuzz_target;
use serde_json::Value;

fuzz_target!(|bytes: &[u8]| {
    let Ok(value) = parse(bytes, Limits::default()) else { return };
    assert!(serde_json::from_slice::<Value>(bytes).is_ok());
    let text = aegis_core::canonical::to_vec(&value).expect("strict JSON has a canonical form");
    let again =
        parse(&text, Limits { size: usize::MAX, depth: 64 }).expect("canonical JSON is strict");
    assert_eq!(aegis_core::canonical::to_vec(&again).expect("and has one"), text);
});
