//! A server's message: never a panic, in either era.
#![no_main]

use aegis_protocol::{
    json::Limits,
    mcp::{ClientMethod, Era, LegacyVersion, server},
};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    for era in [Era::Modern, Era::Legacy(LegacyVersion::V2025_11_25)] {
        let body = Bytes::copy_from_slice(bytes);
        let Ok(message) = server::parse_server("server", era, body, Limits::default()) else {
            continue;
        };
        assert_eq!(&message.bytes[..], bytes);
        if let server::ServerKind::Response { outcome, .. } = &message.kind {
            let _ = server::result_kind(outcome);
            let _ = server::input_requests("server", ClientMethod::ToolsCall, outcome);
        }
    }
});
