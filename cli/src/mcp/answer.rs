//! What a client is told of a call: its result, or why there is none.

use aegis_api::kernel::Ended;
use rmcp::model::{CallToolResult, ContentBlock};
use serde_json::{Value, json};

use super::daemon::NoPermission;

/// How a permitted call ended.
#[derive(Debug)]
pub(super) struct Answer {
    /// What is returned.
    pub(super) text: String,
    /// What is recorded.
    pub(super) ended: Ended,
}

impl Answer {
    /// It went as it should.
    pub(super) fn done(text: impl Into<String>) -> Self {
        Self { text: text.into(), ended: Ended::Success }
    }

    /// It did not.
    pub(super) fn failed(why: impl ToString) -> Self {
        Self { text: why.to_string(), ended: Ended::Failure }
    }

    /// As a client is told.
    pub(super) fn into_result(self) -> CallToolResult {
        let content = vec![ContentBlock::text(self.text)];
        if self.ended == Ended::Success {
            CallToolResult::success(content)
        } else {
            CallToolResult::error(content)
        }
    }
}

/// A call that did not happen: a sentence for the model, and the same in parts for programs.
pub(super) fn refused(why: &NoPermission) -> CallToolResult {
    let mut result = CallToolResult::error(vec![ContentBlock::text(why.to_string())]);
    result.structured_content = Some(parts(why));
    result
}

fn parts(why: &NoPermission) -> Value {
    match why {
        NoPermission::Denied(context) => json!(context),
        NoPermission::Refused { reason, .. } => json!({ "verdict": "deny", "reason": reason }),
        NoPermission::Away { .. } | NoPermission::Slow { .. } | NoPermission::Foreign { .. } => {
            json!({ "verdict": "deny", "reason": "unavailable" })
        }
    }
}
