//! Filtering of `ListTasks`: a caller sees its own tasks (specification §3.1.4, §13.1).
//!
//! Tasks are cut out of the text; every other byte, the order and `nextPageToken` stay. How many
//! tasks there are in all would tell of others' too, so `totalSize` is no more than the caller's.

use bytes::Bytes;
use serde_json::Value;

use super::{Asked, Binding};
use crate::json::edit;

/// Why a list is not released.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// It is no list of tasks.
    #[error("the agent's list of tasks is malformed: {0}")]
    Malformed(&'static str),
}

/// Filters an answer that was parsed strictly and is a result. `own` is asked once per task, in
/// order; `count` is how many tasks the caller has.
///
/// # Errors
/// When it is no list of tasks.
pub fn filter(
    asked: &Asked,
    bytes: &Bytes,
    count: usize,
    mut own: impl FnMut(&str) -> bool,
) -> Result<Bytes, ListError> {
    let malformed = ListError::Malformed;
    let root = match asked.form.binding {
        Binding::JsonRpc => edit::find(bytes, &["result"]),
        Binding::HttpJson => edit::root(bytes),
    };
    let root = root.ok_or(malformed("there is no result"))?;
    let members = edit::members(bytes, &root).ok_or(malformed("it is not an object"))?;
    let named = |name: &str| {
        let mut found =
            members.iter().filter(|m| m.name.replace('_', "").eq_ignore_ascii_case(name));
        match (found.next(), found.next()) {
            (Some(_), Some(_)) => Err(malformed("a member is there twice")),
            (found, _) => Ok(found.map(|member| member.value.clone())),
        }
    };
    let mut edits = Vec::new();
    if let Some(list) = named("tasks")? {
        let items = edit::items(bytes, &list).ok_or(malformed("`tasks` is not an array"))?;
        let mut keep = Vec::with_capacity(items.len());
        for range in &items {
            let item = bytes.get(range.clone()).unwrap_or_default();
            let item: Value =
                serde_json::from_slice(item).map_err(|_| malformed("an item is not JSON"))?;
            let id = item.get("id").and_then(Value::as_str);
            keep.push(own(id.ok_or(malformed("a task has no id"))?));
        }
        if keep.contains(&false) {
            let left = edit::retain(bytes, &list, &items, |index| keep.get(index) == Some(&true));
            edits.push((list, left.ok_or(malformed("`tasks` is not an array"))?));
        }
    }
    if let Some(total) = named("totalsize")? {
        let told: Option<u64> =
            bytes.get(total.clone()).and_then(|text| serde_json::from_slice(text).ok());
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        if told.is_none_or(|told| told > count) {
            edits.push((total, count.to_string().into_bytes()));
        }
    }
    if edits.is_empty() {
        return Ok(bytes.clone());
    }
    edits.sort_by_key(|(range, _)| range.start);
    let edited = edit::splice(bytes, &edits).ok_or(malformed("its text could not be edited"))?;
    Ok(edited.into())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::a2a::{Form, Operation, Version};

    fn run(binding: Binding, text: &str, own: &[&str]) -> Result<String, ListError> {
        let form = Form { binding, version: Version::V1_0, id: None };
        let asked = Asked { form, operation: Operation::ListTasks, task: None };
        let bytes = Bytes::copy_from_slice(text.as_bytes());
        filter(&asked, &bytes, own.len(), |task| own.contains(&task))
            .map(|bytes| String::from_utf8(bytes.to_vec()).unwrap())
    }

    #[test]
    fn list_tasks_shows_the_callers_own_and_keeps_every_other_byte() {
        let page = r#"{ "tasks": [ {"id":"a","x":1.50} , {"id":"b"},{"id":"c"} ], "totalSize": 3, "nextPageToken":"n" }"#;
        let cut = r#"{ "tasks": [ {"id":"a","x":1.50},{"id":"c"} ], "totalSize": 2, "nextPageToken":"n" }"#;
        assert_eq!(run(Binding::HttpJson, page, &["a", "c"]).unwrap(), cut);
        assert_eq!(run(Binding::HttpJson, page, &["a", "b", "c"]).unwrap(), page);
        let wrap = |page: &str| format!(r#"{{"jsonrpc":"2.0","id":1,"result":{page}}}"#);
        assert_eq!(run(Binding::JsonRpc, &wrap(page), &["a", "c"]).unwrap(), wrap(cut));
        assert_eq!(run(Binding::HttpJson, "{}", &[]).unwrap(), "{}");
    }

    #[test]
    fn what_is_no_list_is_not_released() {
        for text in [
            "[]",
            r#"{"tasks":{}}"#,
            r#"{"tasks":[{}]}"#,
            r#"{"tasks":[1]}"#,
            r#"{"tasks":[],"Tasks":[{"id":"x"}]}"#,
        ] {
            assert!(run(Binding::HttpJson, text, &[]).is_err(), "{text}");
        }
    }
}
