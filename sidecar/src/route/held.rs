//! Calls that wait for a human, in MCP's own modern form.
//!
//! A modern client that shows forms gets `input_required` at once (basic/patterns/mrtr): a form
//! without fields that says what is awaited. Its answer repeats the call and nothing else. It is the
//! agent's own client that fills the form in, so it approves nothing, and a client that declines
//! gives its call up without refusing the approval. Everybody else is held, with signs of life
//! where the transport has them.

use aegis_core::{approval::ApprovalState, decision::Reason};
use aegis_protocol::mcp::{
    self, ClientMessage, OwnRetry, ProtocolError, Refusal, capabilities, deny,
};
use bytes::Bytes;
use serde_json::Value;

use super::{Asks, Caller, Route, Step};
use crate::respond;

/// What Aegis' own `requestState` begins with; the approval's id follows. It proves nothing and need
/// not: the approval is found by the digest of the action.
pub(crate) const OWN_STATE: &str = "aegis.approval.";

/// Takes Aegis' own state and answers out of a repeated call.
pub(super) fn take_retry(body: &Bytes) -> Option<OwnRetry> {
    // Only messages that can hold it are worth a closer look.
    memchr::memmem::find(body, OWN_STATE.as_bytes())?;
    mcp::take_own_retry(body, OWN_STATE)
}

/// How the sender of `message` can be told that it waits. `body` is the message with every
/// capability that the client declares: whether a server may use them does not matter here.
pub(super) fn asks(message: &ClientMessage, body: &[u8], retry: bool) -> Asks {
    let suits = message.era().is_modern()
        && message.method().is_some_and(mcp::ClientMethod::may_require_input);
    match retry {
        _ if !suits || !capabilities::declares_form(body) => Asks::Never,
        true => Asks::Later,
        false => Asks::Now,
    }
}

impl Route {
    /// What becomes of a repeated call before it is judged: nothing, unless the approval was
    /// refused, ran out, is not this agent's, or the client has given up.
    pub(super) async fn check_retry(
        &self,
        caller: &Caller,
        message: &ClientMessage,
        retry: &OwnRetry,
    ) -> Option<Step> {
        let id = retry.state.strip_prefix(OWN_STATE).unwrap_or_default();
        let answered = retry.responses.as_ref().and_then(|all| all.get(deny::APPROVAL_KEY));
        let action = answered.and_then(|answer| answer.get("action")).and_then(Value::as_str);
        let reason = match self.kernel().own_approval(id, &caller.principal.id) {
            None => {
                let refusal = Refusal {
                    error: ProtocolError::Param("requestState"),
                    id: message.request_id().cloned(),
                    era: Some(message.era()),
                    one_way: message.request_id().is_none(),
                };
                return Some(self.unreadable(caller, &refusal).await);
            }
            Some(ApprovalState::Denied) => Reason::ApprovalDenied,
            Some(ApprovalState::Expired) => Reason::ApprovalExpired,
            Some(ApprovalState::Pending) if matches!(action, Some("decline" | "cancel")) => {
                Reason::ApprovalPending
            }
            Some(_) => return None,
        };
        self.refuse(caller, message.action(), Some(id), reason).await;
        let one_way = message.request_id().is_none();
        Some(Step::Answer { answer: respond::explained(message, reason), one_way })
    }
}
