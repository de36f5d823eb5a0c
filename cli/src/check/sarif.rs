//! What came of the files as SARIF 2.1.0, which forges show beside the code.
//!
//! A refusal is a result of the rule that refused, or of the reason where no rule is known. What could not be judged is a
//! notification, and the invocation then did not succeed.

use std::{fmt::Write as _, os::unix::ffi::OsStrExt as _, path::Path};

use serde_json::{Value, json};

use super::{Judged, Said, UNJUDGED, report};

/// What relative addresses are relative to.
const ROOT: &str = "%SRCROOT%";

/// The log.
pub(super) fn log(root: &Path, judged: &[Judged], code: i32) -> Value {
    let mut rules: Vec<(String, String)> = Vec::new();
    let mut results = Vec::new();
    let mut notifications = Vec::new();
    for one in judged {
        match &one.said {
            Err(why) => notifications.push(notification(one, "error", why)),
            Ok(said) if !said.allowed => {
                let id = rule(said);
                let index = rules.iter().position(|(known, _)| *known == id).unwrap_or_else(|| {
                    rules.push((id.clone(), said.message.clone()));
                    rules.len() - 1
                });
                results.push(json!({
                    "ruleId": id, "ruleIndex": index,
                    "level": if said.verdict == "require_approval" { "warning" } else { "error" },
                    "message": { "text": report::sentence(said) },
                    // Policies speak of a file as a whole.
                    "locations": [{ "physicalLocation": {
                        "artifactLocation": location(one), "region": { "startLine": 1 },
                    } }],
                }));
            }
            Ok(_) => {}
        }
        if let Some(note) = one.note {
            notifications.push(notification(one, "note", note));
        }
    }
    let rules =
        rules.iter().map(|(id, text)| json!({ "id": id, "shortDescription": { "text": text } }));
    json!({
        "$schema": "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json",
        "version": "2.1.0",
        "runs": [{
            "tool": { "driver": {
                "name": "aegis", "semanticVersion": env!("CARGO_PKG_VERSION"),
                "rules": rules.collect::<Vec<_>>(),
            } },
            "originalUriBaseIds": { ROOT: { "uri": format!("file://{}/", encoded(root.as_os_str().as_bytes())) } },
            "invocations": [{
                "executionSuccessful": code != UNJUDGED, "exitCode": code,
                "toolExecutionNotifications": notifications,
            }],
            "results": results,
        }],
    })
}

fn rule(said: &Said) -> String {
    said.rules.first().unwrap_or(&said.reason).clone()
}

fn notification(one: &Judged, level: &str, text: &str) -> Value {
    json!({
        "level": level, "message": { "text": format!("{}: {text}", report::shown(one)) },
        "locations": [{ "physicalLocation": { "artifactLocation": location(one) } }],
    })
}

fn location(one: &Judged) -> Value {
    let name = &one.change.name;
    if name.starts_with(b"/") {
        return json!({ "uri": format!("file://{}", encoded(name)) });
    }
    json!({ "uri": encoded(name), "uriBaseId": ROOT })
}

/// Bytes as a path of a URI (RFC 3986): what is not unreserved is percent-encoded.
fn encoded(path: &[u8]) -> String {
    let mut out = String::with_capacity(path.len());
    for byte in path {
        if byte.is_ascii_alphanumeric() || b"-._~/".contains(byte) {
            out.push(char::from(*byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}
