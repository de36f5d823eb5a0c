//! A client's message: headers (up to the first empty line) and body, never a panic; accepted bytes
//! are kept; a refusal has an answer; rewriting keeps a message parseable.
#![no_main]

use aegis_protocol::{
    json::Limits,
    mcp::{Transport, capabilities, deny, parse_client, take_own_retry},
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let split = bytes.windows(2).position(|pair| pair == b"\n\n");
    let (head, body) = split.map_or((&b""[..], bytes), |at| (&bytes[..at], &bytes[at + 2..]));
    let mut headers = HeaderMap::new();
    for line in head.split(|&byte| byte == b'\n') {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let body = Bytes::copy_from_slice(body);
    let transport = if split.is_some() { Transport::Http(&headers) } else { Transport::Stdio };
    match parse_client("server", transport, body.clone(), Limits::default()) {
        Ok(message) => {
            assert_eq!(message.bytes(), &body);
            let _ = message.resource_actions();
            let rewritten = capabilities::strip(&body, capabilities::Allowed::NONE);
            assert!(parse_client("server", transport, rewritten, Limits::default()).is_ok());
            let _ = take_own_retry(&body, "");
        }
        Err(refusal) => drop(deny::refuse(&refusal)),
    }
    let _ = capabilities::strip(&body, capabilities::Allowed::NONE);
});
