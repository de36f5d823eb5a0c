//! A filtered list is strict JSON that differs from the original by the removed items only.
#![no_main]

use aegis_protocol::{
    json::{Limits, parse},
    mcp::{Era, LegacyVersion, ListKind, list, tools::Tool},
};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let Ok(mut value) = parse(bytes, Limits::default()) else { return };
    let body = Bytes::copy_from_slice(bytes);
    let keep =
        |item: &serde_json::Value| item["name"].as_str().is_some_and(|name| name.len() % 2 == 0);
    let legacy = Era::Legacy(LegacyVersion::V2025_11_25);
    let _ = list::filter(ListKind::Tools, Era::Modern, &body, Some(1000), keep).map(|page| {
        parse(&page.bytes, Limits { size: usize::MAX, depth: 64 }).expect("still strict JSON")
    });
    let Ok(page) = list::filter(ListKind::Tools, legacy, &body, None, keep) else { return };
    let filtered = parse(&page.bytes, Limits::default()).expect("still strict JSON");
    let tools = value["result"]["tools"].as_array_mut().expect("it was filtered");
    tools.iter().for_each(|tool| drop(Tool::read(tool)));
    tools.retain(|tool| keep(tool));
    assert_eq!(filtered, value);
});
