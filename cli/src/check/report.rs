//! What came of the files, for people and as JSON.

use serde_json::{Value, json};

use super::{Judged, Said};
use crate::output::{Text, Tone, count};

/// How a file is called where it is shown.
pub(super) fn shown(judged: &Judged) -> String {
    let name = String::from_utf8_lossy(&judged.change.name);
    match &judged.change.commit {
        Some(commit) => format!("{name} (commit {})", commit.chars().take(12).collect::<String>()),
        None => name.into_owned(),
    }
}

/// Why a file is refused, and what can be done.
pub(super) fn sentence(said: &Said) -> String {
    let message = said.message.trim_end_matches('.');
    let entry = said.index.map(|index| format!(", entry {index}")).unwrap_or_default();
    let rules = match said.rules.is_empty() {
        true => String::new(),
        false => format!(", {}", said.rules.join(", ")),
    };
    let way = match &said.approval {
        Some(id) if said.verdict == "require_approval" => {
            format!("; once a person has run `aegis approvals approve {id}`, do it again")
        }
        _ => String::new(),
    };
    format!("{message} ({}{rules}{entry}){way}", said.reason)
}

/// A line for each file that does not pass or was not read, and a last one that counts.
pub(super) fn text(judged: &[Judged]) -> Text {
    let mut text = Text::new();
    let (mut refused, mut unjudged) = (0_u64, 0_u64);
    for one in judged {
        let name = shown(one);
        match &one.said {
            Err(why) => {
                unjudged += 1;
                text.toned(Tone::Warn, format!("not judged  {name}: {why}"));
            }
            Ok(said) if !said.allowed => {
                refused += 1;
                let (tone, word) = match said.verdict.as_str() {
                    "require_approval" => (Tone::Warn, "held back"),
                    _ => (Tone::Bad, "refused"),
                };
                text.toned(tone, format!("{word:<11} {name}: {}", sentence(said)));
            }
            Ok(_) => {}
        }
        if let Some(note) = one.note {
            text.line(format!("by path     {name}: {note}"));
        }
    }
    let all = count(u64::try_from(judged.len()).unwrap_or(u64::MAX), "file");
    text.line(match (refused, unjudged) {
        _ if judged.is_empty() => "there is nothing to judge".to_owned(),
        (0, 0) => format!("{all}, all allowed"),
        (refused, 0) => format!("{all}, {refused} refused"),
        (refused, unjudged) => format!("{all}, {refused} refused, {unjudged} not judged"),
    });
    text
}

/// Everything about every file.
pub(super) fn json(judged: &[Judged], code: i32) -> Value {
    let file = |one: &Judged| {
        let mut told = json!({
            "path": String::from_utf8_lossy(&one.change.name), "commit": one.change.commit,
            "unread": one.note,
        });
        let more = match &one.said {
            Err(why) => json!({ "verdict": "unjudged", "message": why }),
            Ok(said) => json!({
                "verdict": said.verdict, "reason": said.reason, "message": said.message,
                "rules": said.rules, "decision_id": said.decision_id, "index": said.index,
                "approval": said.approval,
            }),
        };
        if let (Some(told), Value::Object(more)) = (told.as_object_mut(), more) {
            told.extend(more);
            told.retain(|_, value| !value.is_null() && value != "");
        }
        told
    };
    json!({ "ok": code == 0, "files": judged.iter().map(file).collect::<Vec<_>>() })
}
