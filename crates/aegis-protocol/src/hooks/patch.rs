//! Patches in the form that Codex and VS Code give their tool `apply_patch`: sections that add, update or
//! delete a file (openai/codex, `codex-rs/apply-patch`).
//!
//! Whoever applies a patch may be lenient with white space, so every line that reads as a header after
//! trimming counts as one: at worst a file more is judged than is touched.

use serde_json::{Map, Value};

use super::{Hook, HookError, MAX_ACTIONS, payload::Payload};
use crate::hooks::Event;

/// The headers that name a file.
const FILES: [&str; 4] = ["Add File:", "Update File:", "Delete File:", "Move to:"];
/// The headers that name none.
const OTHERS: [&str; 3] = ["Begin Patch", "End Patch", "End of File"];

/// One write for each file that the patch names, with its section as the argument `patch`.
pub(super) fn read(payload: &Payload, patch: &str) -> Result<Hook, HookError> {
    let mut files: Vec<(&str, String)> = Vec::new();
    for line in patch.lines() {
        if let Some(header) = line.trim().strip_prefix("*** ") {
            let named = FILES.iter().find_map(|name| header.trim_start().strip_prefix(name));
            if let Some(path) = named {
                files.push((path.trim(), String::new()));
            } else if !OTHERS.contains(&header.trim()) {
                return Err(HookError::Patch);
            }
        }
        if let Some((_, section)) = files.last_mut() {
            section.push_str(line);
            section.push('\n');
        }
        if files.len() > MAX_ACTIONS {
            return Err(HookError::Patch);
        }
    }
    let write = |(path, section): (&str, String)| {
        let mut arguments = Map::new();
        arguments.insert("patch".into(), Value::String(section));
        Ok(payload.file_at(true, payload.path(path)?, arguments))
    };
    let actions = files.into_iter().map(write).collect::<Result<Vec<_>, HookError>>()?;
    Ok(Hook { event: Event::Tool, actions })
}
