//! An A2A request (request line, headers up to the first empty line, body) and the agent's answer to it (the same
//! body): never a panic; what is forwarded is read again as the same action; a refusal has an answer.
#![no_main]

use aegis_protocol::{
    a2a::{Received, answer, deny, parse},
    json::Limits,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Uri};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let split = bytes.windows(2).position(|pair| pair == b"\n\n").unwrap_or(bytes.len());
    let (head, body) = bytes.split_at(split);
    let body = Bytes::copy_from_slice(body.get(2..).unwrap_or_default());
    let mut lines = head.split(|&byte| byte == b'\n');
    let line = String::from_utf8_lossy(lines.next().unwrap_or_default()).into_owned();
    let Some((method, uri)) = line.split_once(' ') else { return };
    let (Ok(method), Ok(uri)) = (method.parse::<Method>(), uri.parse::<Uri>()) else { return };
    let mut headers = HeaderMap::new();
    for line in lines {
        let Some(colon) = line.iter().position(|&byte| byte == b':') else { continue };
        let name = HeaderName::from_bytes(&line[..colon]);
        let value = HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    let (path, query) = (uri.path(), uri.query());
    let received = Received { method: &method, path, query, headers: &headers, base: "/a2a" };
    match parse("agent", &received, &[], body.clone(), Limits::default()) {
        Ok(request) => {
            let forwarded = request.bytes().clone();
            let again = parse("agent", &received, &[], forwarded, Limits::default());
            assert_eq!(again.as_ref().map(|again| again.action()), Ok(request.action()));
            let _ = answer::read(request.asked(), &body, Limits::default(), false);
            let _ = answer::read(request.asked(), &body, Limits::default(), true);
        }
        Err(refusal) => drop(deny::refuse(&refusal)),
    }
});
