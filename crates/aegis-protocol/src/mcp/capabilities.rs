//! Taking away capabilities that a client declares but policy does not let a server use.
//!
//! A conforming server asks only for what its client declared, so what is not declared is never
//! asked. This is a rewrite before judging: the bytes it returns are parsed, judged and forwarded.
//! Only the members named here are cut out of the text; every other byte stays. A server that asks
//! all the same is stopped on the way back ([`server`](super::server)).

use std::ops::Range;

use bytes::Bytes;
use serde_json::Value;

use super::META_CAPABILITIES;
use crate::json::edit::{self, Member};

/// What a server may ask of its client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Allowed {
    /// `sampling/createMessage`
    pub sampling: bool,
    /// `elicitation/create` in form mode.
    pub elicitation_form: bool,
    /// `elicitation/create` in URL mode.
    pub elicitation_url: bool,
    /// `roots/list`
    pub roots: bool,
}

impl Allowed {
    /// Nothing.
    pub const NONE: Self =
        Self { sampling: false, elicitation_form: false, elicitation_url: false, roots: false };
    /// Everything.
    pub const ALL: Self =
        Self { sampling: true, elicitation_form: true, elicitation_url: true, roots: true };
}

/// `body` without the declared capabilities that are not `allowed`: those of `initialize`
/// (`params.capabilities`) and of a modern request (`_meta`). `body` must have been parsed strictly;
/// it is returned as it is when there is nothing to take away.
#[must_use]
pub fn strip(body: &Bytes, allowed: Allowed) -> Bytes {
    if allowed == Allowed::ALL {
        return body.clone();
    }
    let mut edits: Vec<(Range<usize>, Vec<u8>)> = Vec::new();
    for range in declared(body).unwrap_or_default() {
        edits.extend(stripped(body, &range, allowed).map(|text| (range, text)));
    }
    edits.sort_by_key(|(range, _)| range.start);
    if edits.is_empty() {
        return body.clone();
    }
    edit::splice(body, &edits).map_or_else(|| body.clone(), Bytes::from)
}

/// Whether a modern request declares that its client shows forms (client/elicitation,
/// "Capabilities": an object that names no mode means form mode).
#[must_use]
pub fn declares_form(body: &[u8]) -> bool {
    let declared = edit::find(body, &["params", "_meta", META_CAPABILITIES, "elicitation"]);
    let modes = declared.and_then(|range| edit::members(body, &range));
    let named = |modes: &[Member], name: &str| modes.iter().any(|mode| mode.name == name);
    modes.is_some_and(|modes| named(&modes, "form") || !named(&modes, "url"))
}

/// Where `body` declares capabilities.
fn declared(body: &[u8]) -> Option<Vec<Range<usize>>> {
    let inside = |members: Vec<Member>, name: &str| {
        members.into_iter().find(|member| member.name == name).map(|member| member.value)
    };
    let message = edit::members(body, &edit::root(body)?)?;
    let method = message.iter().find(|member| member.name == "method")?.value.clone();
    let method: String = serde_json::from_slice(body.get(method)?).ok()?;
    let params = edit::members(body, &inside(message, "params")?)?;
    let mut found = Vec::new();
    if method == "initialize" {
        found.extend(
            params.iter().find(|member| member.name == "capabilities").map(|m| m.value.clone()),
        );
    }
    let meta = inside(params, "_meta").and_then(|meta| edit::members(body, &meta));
    found.extend(meta.and_then(|meta| inside(meta, META_CAPABILITIES)));
    Some(found)
}

/// The capabilities object at `range` without what is not allowed; `None` if nothing changes.
fn stripped(text: &[u8], range: &Range<usize>, allowed: Allowed) -> Option<Vec<u8>> {
    let members = edit::members(text, range)?;
    let mut inner = Vec::new();
    let mut keep = Vec::with_capacity(members.len());
    for member in &members {
        keep.push(match member.name.as_str() {
            "sampling" => allowed.sampling,
            "roots" => allowed.roots,
            "elicitation" => keep_elicitation(text, member, allowed, &mut inner),
            // 2025-11-25: which of the server's requests the client runs as tasks.
            "tasks" => {
                inner.extend(stripped_tasks(text, member, allowed));
                true
            }
            _ => true,
        });
    }
    if inner.is_empty() && keep.iter().all(|&keep| keep) {
        return None;
    }
    let mut out = Vec::with_capacity(range.len());
    out.push(b'{');
    for (member, _) in members.iter().zip(keep).filter(|(_, keep)| *keep) {
        if out.len() > 1 {
            out.push(b',');
        }
        let name = text.get(member.whole.start..member.value.start)?;
        let value = inner.iter().find(|(range, _)| *range == member.value);
        out.extend_from_slice(name);
        match value {
            Some((_, rewritten)) => out.extend_from_slice(rewritten),
            None => out.extend_from_slice(text.get(member.value.clone())?),
        }
    }
    out.push(b'}');
    Some(out)
}

/// Whether anything of `elicitation` is left. An object that names no mode means form mode
/// (client/elicitation, "Capabilities"), so taking the only mode away takes the whole away.
fn keep_elicitation(
    text: &[u8],
    member: &Member,
    allowed: Allowed,
    inner: &mut Vec<(Range<usize>, Vec<u8>)>,
) -> bool {
    let Some(modes) = edit::members(text, &member.value) else { return false };
    let allows = |name: &str| match name {
        "form" => allowed.elicitation_form,
        "url" => allowed.elicitation_url,
        _ => allowed.elicitation_form && allowed.elicitation_url,
    };
    let declares = |name: &str| modes.iter().any(|mode| mode.name == name);
    let form = allowed.elicitation_form && (declares("form") || !declares("url"));
    let url = allowed.elicitation_url && declares("url");
    if !form && !url {
        return false;
    }
    if modes.iter().any(|mode| !allows(&mode.name)) {
        let parts: Vec<Range<usize>> = modes.iter().map(|mode| mode.whole.clone()).collect();
        let left = edit::retain(text, &member.value, &parts, |index| {
            modes.get(index).is_some_and(|mode| allows(&mode.name))
        });
        let Some(left) = left else { return false };
        inner.push((member.value.clone(), left));
    }
    true
}

fn stripped_tasks(
    text: &[u8],
    tasks: &Member,
    allowed: Allowed,
) -> Option<(Range<usize>, Vec<u8>)> {
    let mut value: Value = serde_json::from_slice(text.get(tasks.value.clone())?).ok()?;
    let requests = value.get_mut("requests")?.as_object_mut()?;
    let before = requests.len();
    requests.retain(|name, _| match name.as_str() {
        "sampling" => allowed.sampling,
        "elicitation" => allowed.elicitation_form || allowed.elicitation_url,
        _ => true,
    });
    (requests.len() < before).then(|| (tasks.value.clone(), value.to_string().into_bytes()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn strip_text(text: &str, allowed: Allowed) -> String {
        String::from_utf8(strip(&Bytes::copy_from_slice(text.as_bytes()), allowed).to_vec())
            .unwrap()
    }

    fn modern(capabilities: &str) -> String {
        format!(
            r#"{{"jsonrpc":"2.0","id":1,"method":"tools/list","params":{{"x":1.0,"_meta":{{"io.modelcontextprotocol/clientCapabilities":{capabilities},"k":"v"}}}}}}"#
        )
    }

    #[test]
    fn capabilities_that_are_not_allowed_are_not_declared() {
        let all = r#"{ "sampling":{}, "roots":{"listChanged":true}, "elicitation":{"form":{},"url":{}}, "extensions":{"a/b":{}} }"#;
        assert_eq!(strip_text(&modern(all), Allowed::NONE), modern(r#"{"extensions":{"a/b":{}}}"#));
        assert_eq!(strip_text(&modern(all), Allowed::ALL), modern(all));
        let form = Allowed { elicitation_form: true, ..Allowed::NONE };
        assert_eq!(
            strip_text(&modern(all), form),
            modern(r#"{"elicitation":{"form":{}},"extensions":{"a/b":{}}}"#)
        );
        let initialize = |capabilities: &str| {
            format!(
                r#"{{"jsonrpc":"2.0","id":1,"method":"initialize","params":{{"capabilities":{capabilities},"protocolVersion":"2025-11-25"}}}}"#
            )
        };
        assert_eq!(
            strip_text(&initialize(r#"{"sampling":{},"roots":{}}"#), Allowed::NONE),
            initialize("{}")
        );
        let tasks =
            initialize(r#"{"tasks":{"requests":{"sampling":{"createMessage":{}}},"list":{}}}"#);
        assert_eq!(
            strip_text(&tasks, Allowed::NONE),
            initialize(r#"{"tasks":{"requests":{},"list":{}}}"#)
        );
    }

    #[test]
    fn a_client_that_shows_forms_is_told_from_one_that_does_not() {
        for (declared, expected) in [
            (r#"{"elicitation":{}}"#, true),
            (r#"{"elicitation":{"form":{}}}"#, true),
            (r#"{"elicitation":{"url":{},"form":{}}}"#, true),
            (r#"{"elicitation":{"url":{}}}"#, false),
            (r#"{"elicitation":true}"#, false),
            (r#"{"sampling":{}}"#, false),
            ("{}", false),
        ] {
            assert_eq!(declares_form(modern(declared).as_bytes()), expected, "{declared}");
        }
        assert!(!declares_form(b"nonsense"));
    }

    #[test]
    fn taking_the_only_elicitation_mode_away_takes_elicitation_away() {
        let form = Allowed { elicitation_form: true, ..Allowed::NONE };
        let url = Allowed { elicitation_url: true, ..Allowed::NONE };
        assert_eq!(strip_text(&modern(r#"{"elicitation":{"url":{}}}"#), form), modern("{}"));
        assert_eq!(
            strip_text(&modern(r#"{"elicitation":{}}"#), form),
            modern(r#"{"elicitation":{}}"#)
        );
        assert_eq!(strip_text(&modern(r#"{"elicitation":{}}"#), url), modern("{}"));
        assert_eq!(strip_text(&modern(r#"{"elicitation":{"form":{}}}"#), url), modern("{}"));
        assert_eq!(
            strip_text(&modern(r#"{"elicitation":{"form":{},"url":{}}}"#), url),
            modern(r#"{"elicitation":{"url":{}}}"#)
        );
        assert_eq!(strip_text(&modern(r#"{"elicitation":1}"#), form), modern("{}"));
    }

    #[test]
    fn nothing_to_take_away_keeps_the_bytes() {
        for text in [modern("{}"), modern(r#"{"experimental":{}}"#), r#"{"jsonrpc":"2.0","id":1,"method":"tools/call","params":{"capabilities":{"roots":{}}}}"#.into()] {
            assert_eq!(strip_text(&text, Allowed::NONE), text);
        }
    }
}
