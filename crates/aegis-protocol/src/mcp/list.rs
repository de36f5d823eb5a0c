//! Filtering of lists: a caller sees what it may use.
//!
//! Items are cut out of the text; every other byte, the order and `nextCursor` stay (an empty page
//! with a cursor is legal). What one caller sees must not be served to another, so in the modern
//! era every page gets `cacheScope: "private"` and a `ttlMs` no longer than policy stays fresh
//! (server/utilities/caching). A page that needs none of this keeps its bytes.

use bytes::Bytes;
use serde_json::Value;

use super::{Era, ListKind};
use crate::json::edit;

/// A filtered page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filtered {
    /// The response to release.
    pub bytes: Bytes,
    /// How many items are left.
    pub kept: usize,
    /// How many items were taken out.
    pub removed: usize,
}

/// Why a list is not released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// The result does not hold the list, or an item is not an object with its name.
    #[error("the server's list is malformed: {0}")]
    Malformed(&'static str),
}

/// Filters the response `bytes`, which must have been parsed strictly and be a result. Responses
/// that are errors are not lists and need no filter.
///
/// `allowed` is asked once per item, in order. Where `ttl_cap_ms` is given, a longer `ttlMs` is
/// shortened to it.
///
/// # Errors
/// When the result is not such a list.
pub fn filter(
    kind: ListKind,
    era: Era,
    bytes: &Bytes,
    ttl_cap_ms: Option<u64>,
    mut allowed: impl FnMut(&Value) -> bool,
) -> Result<Filtered, ListError> {
    let malformed = ListError::Malformed;
    let result = edit::find(bytes, &["result"]).ok_or(malformed("there is no result"))?;
    let members = edit::members(bytes, &result).ok_or(malformed("the result is not an object"))?;
    let list = members.iter().find(|member| member.name == kind.member());
    let list = list.ok_or(malformed("the result has no list"))?;
    let items = edit::items(bytes, &list.value).ok_or(malformed("the list is not an array"))?;
    let mut keep = Vec::with_capacity(items.len());
    for range in &items {
        let item =
            bytes.get(range.clone()).and_then(|text| serde_json::from_slice::<Value>(text).ok());
        let item = item.ok_or(malformed("an item is not JSON"))?;
        if !item.get(kind.key()).is_some_and(Value::is_string) {
            return Err(malformed("an item has no name"));
        }
        keep.push(allowed(&item));
    }
    let kept = keep.iter().filter(|&&keep| keep).count();
    let removed = keep.len() - kept;
    let mut edits = Vec::new();
    if removed > 0 {
        let left = edit::retain(bytes, &list.value, &items, |index| keep.get(index) == Some(&true));
        edits.push((list.value.clone(), left.ok_or(malformed("the list is not an array"))?));
    }
    if era.is_modern() {
        edits.extend(cache_edits(bytes, &members, list.value.end, ttl_cap_ms));
    }
    if edits.is_empty() {
        return Ok(Filtered { bytes: bytes.clone(), kept, removed });
    }
    edits.sort_by_key(|(range, _)| range.start);
    let bytes = edit::splice(bytes, &edits).ok_or(malformed("its text could not be edited"))?;
    Ok(Filtered { bytes: bytes.into(), kept, removed })
}

fn cache_edits(
    text: &[u8],
    members: &[edit::Member],
    list_end: usize,
    ttl_cap_ms: Option<u64>,
) -> Vec<(std::ops::Range<usize>, Vec<u8>)> {
    let mut edits = Vec::new();
    let value = |name: &str| {
        members.iter().find(|member| member.name == name).map(|member| member.value.clone())
    };
    let parsed = |range: &std::ops::Range<usize>| {
        text.get(range.clone()).and_then(|text| serde_json::from_slice::<Value>(text).ok())
    };
    match value("cacheScope") {
        Some(range) if parsed(&range) == Some(Value::from("private")) => {}
        Some(range) => edits.push((range, b"\"private\"".to_vec())),
        // The scope is required; a page that lacks it gets it right behind the list.
        None => edits.push((list_end..list_end, b",\"cacheScope\":\"private\"".to_vec())),
    }
    if let (Some(cap), Some(range)) = (ttl_cap_ms, value("ttlMs")) {
        let fresh = parsed(&range).and_then(|ttl| ttl.as_u64()).is_some_and(|ttl| ttl <= cap);
        if !fresh {
            edits.push((range, cap.to_string().into_bytes()));
        }
    }
    edits
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use crate::mcp::LegacyVersion;

    const LEGACY: Era = Era::Legacy(LegacyVersion::V2025_11_25);

    fn run(kind: ListKind, era: Era, text: &str, cap: Option<u64>, deny: &[&str]) -> String {
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        let allowed = |item: &Value| !deny.contains(&item[kind.key()].as_str().unwrap());
        String::from_utf8(filter(kind, era, &bytes, cap, allowed).unwrap().bytes.to_vec()).unwrap()
    }

    const PAGE: &str = r#"{ "jsonrpc":"2.0", "id" : "a", "result": {"x":1.50, "tools" : [ {"name":"a","y":{}} , {"name":"b"},{"name":"c", "execution":{"z":[]}} ], "nextCursor":"n" } }"#;

    #[test]
    fn lists_are_filtered_and_everything_else_keeps_its_bytes() {
        let cut = r#"{ "jsonrpc":"2.0", "id" : "a", "result": {"x":1.50, "tools" : [ {"name":"a","y":{}},{"name":"c", "execution":{"z":[]}} ], "nextCursor":"n" } }"#;
        assert_eq!(run(ListKind::Tools, LEGACY, PAGE, None, &["b"]), cut);
        let empty = r#"{ "jsonrpc":"2.0", "id" : "a", "result": {"x":1.50, "tools" : [  ], "nextCursor":"n" } }"#;
        assert_eq!(run(ListKind::Tools, LEGACY, PAGE, None, &["a", "b", "c"]), empty);
    }

    #[test]
    fn an_unmodified_list_keeps_its_bytes() {
        let bytes = Bytes::from_static(PAGE.as_bytes());
        let filtered = filter(ListKind::Tools, LEGACY, &bytes, Some(5), |_| true).unwrap();
        assert_eq!((filtered.kept, filtered.removed), (3, 0));
        assert_eq!(filtered.bytes.as_ptr(), bytes.as_ptr());
        let private =
            r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[],"cacheScope":"private","ttlMs":5}}"#;
        assert_eq!(run(ListKind::Tools, Era::Modern, private, Some(5), &[]), private);
    }

    #[test]
    fn a_modern_page_is_private_and_fresh_no_longer_than_policy() {
        let page = |rest: &str| {
            format!(
                r#"{{"jsonrpc":"2.0","id":1,"result":{{"ttlMs":300000,"resources":[{{"uri":"a:b","name":"n"}}]{rest}}}}}"#
            )
        };
        let out = run(
            ListKind::Resources,
            Era::Modern,
            &page(r#","cacheScope":"public""#),
            Some(5000),
            &["a:b"],
        );
        assert_eq!(
            out,
            r#"{"jsonrpc":"2.0","id":1,"result":{"ttlMs":5000,"resources":[],"cacheScope":"private"}}"#
        );
        let out = run(ListKind::Resources, Era::Modern, &page(""), None, &[]);
        assert_eq!(
            serde_json::from_str::<Value>(&out).unwrap()["result"],
            json!({ "ttlMs": 300_000, "resources": [{ "uri": "a:b", "name": "n" }], "cacheScope": "private" })
        );
    }

    #[test]
    fn malformed_lists_are_not_released() {
        for text in [
            r#"{"jsonrpc":"2.0","id":1,"error":{"code":1,"message":""}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":[]}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"tools":{}}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[1]}}"#,
            r#"{"jsonrpc":"2.0","id":1,"result":{"tools":[{"name":1}]}}"#,
        ] {
            let bytes = Bytes::copy_from_slice(text.as_bytes());
            assert!(filter(ListKind::Tools, LEGACY, &bytes, None, |_| true).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn filtering_only_removes_items(
            names in proptest::collection::vec("[a-c]{1,2}", 0..8),
            extra in any::<String>(),
            pretty in any::<bool>(),
        ) {
            let tools: Vec<Value> = names.iter().map(|n| json!({ "name": n, "description": extra })).collect();
            let page = json!({ "jsonrpc": "2.0", "id": extra, "result": { "tools": tools, "nextCursor": extra } });
            let text = if pretty { serde_json::to_string_pretty(&page).unwrap() } else { page.to_string() };
            let out: Value = serde_json::from_str(&run(ListKind::Tools, LEGACY, &text, None, &["a", "bb"])).unwrap();
            let mut expected = page;
            expected["result"]["tools"].as_array_mut().unwrap().retain(|t| t["name"] != "a" && t["name"] != "bb");
            prop_assert_eq!(out, expected);
        }
    }
}
