//! The answer that an exchange waits for: judged as a list, searched for questions, redacted.

use aegis_audit::entry::Outcome as Ended;
use aegis_core::{
    action::{Action, ActionKind},
    decision::Reason,
};
use aegis_protocol::{
    jsonrpc::Outcome,
    mcp::{
        self, ClientMethod, ListKind, deny, list,
        server::{InputRequest, ResultKind},
    },
    redact,
};
use bytes::Bytes;
use serde_json::Value;

use super::{Exchange, Released};

/// How long a client may keep a filtered list, whatever the server says. Milliseconds.
const LIST_TTL_CAP_MS: u64 = 60_000;

impl Exchange {
    /// Releases the answer, once, and writes the outcome.
    pub(super) async fn answer(
        &mut self,
        bytes: Bytes,
        outcome: Outcome,
    ) -> Result<Released, Reason> {
        let kind = mcp::server::result_kind(&outcome);
        let method = self.method.ok_or(Reason::UpstreamMalformed)?;
        // A task that waits for input asks in a result of any kind.
        let asked = mcp::server::input_requests(&self.route.name, method, &outcome)
            .map_err(|error| error.reason())?;
        let withheld = !self.may_ask_all(asked).await;
        let mut out = bytes;
        if withheld {
            let id = self.id.clone().ok_or(Reason::UpstreamMalformed)?;
            out = deny::result_withheld(self.era, &id, method, Reason::ServerRequestDenied);
        } else if let (Some(listed), Outcome::Result(result)) = (method.list(), &outcome) {
            out = self.filter(listed, &out).await?;
            if listed == ListKind::Tools {
                self.route.note_page(&self.caller, &self.action.arguments, result);
            }
        }
        out = self.redacted(out)?;
        self.answered = true;
        self.note_released(&out);
        let (result, reason, status) = match (withheld, kind, outcome) {
            (true, ..) => (Ended::Failure, Some(Reason::ServerRequestDenied), None),
            (_, _, Outcome::Error { code, .. }) => (Ended::Failure, None, Some(code)),
            (_, ResultKind::Complete, _) => (Ended::Success, None, None),
            (_, ResultKind::ToolError | ResultKind::Error, _) => (Ended::Failure, None, None),
            (_, ResultKind::InputRequired | ResultKind::Task | ResultKind::Unknown, _) => {
                (Ended::Unknown, None, None)
            }
        };
        self.conclude(result, reason, status).await;
        Ok(Released { to_client: Some(out), ..Released::default() })
    }

    /// Whether every one of these questions may be asked.
    pub(super) async fn may_ask_all(&self, asked: Vec<InputRequest>) -> bool {
        for request in asked {
            if !self.may_ask(request.action).await {
                return false;
            }
        }
        true
    }

    /// Leaves of a list what the caller may use, and pins the tools it defines.
    async fn filter(&self, listed: ListKind, bytes: &Bytes) -> Result<Bytes, Reason> {
        let mut news = Vec::new();
        let filtered = list::filter(listed, self.era, bytes, Some(LIST_TTL_CAP_MS), |item| {
            let pinned = listed != ListKind::Tools || self.route.note_tool(item, &mut news);
            pinned && self.may_name(listed, item)
        })
        .map_err(|_| Reason::UpstreamMalformed)?;
        self.route.record_tools(&self.caller, news).await?;
        Ok(filtered.bytes)
    }

    fn may_name(&self, listed: ListKind, item: &Value) -> bool {
        let Some(name) = item.get(listed.key()).and_then(Value::as_str) else { return false };
        let (kind, method) = match listed {
            ListKind::Tools => (ActionKind::ToolCall, ClientMethod::ToolsCall),
            ListKind::Prompts => (ActionKind::PromptGet, ClientMethod::PromptsGet),
            ListKind::Resources | ListKind::ResourceTemplates => {
                (ActionKind::ResourceRead, ClientMethod::ResourcesRead)
            }
        };
        let named_by_uri = matches!(listed, ListKind::Resources | ListKind::ResourceTemplates);
        let action = Action {
            kind,
            protocol: self.action.protocol,
            method: method.as_str().into(),
            server: self.action.server.clone(),
            tool: (!named_by_uri).then(|| name.to_owned()),
            tool_pin: None,
            resource: named_by_uri.then(|| name.to_owned()),
            arguments: Value::Null,
        };
        self.route.kernel().may_list(&self.route.context(&self.caller).about(&action))
    }

    /// What policies keep from the client is kept from it in results, errors and notifications.
    pub(super) fn redacted(&mut self, bytes: Bytes) -> Result<Bytes, Reason> {
        if self.redactions.is_empty() {
            return Ok(bytes);
        }
        let mut whole: Value =
            serde_json::from_slice(&bytes).map_err(|_| Reason::UpstreamMalformed)?;
        let mut count = 0;
        for member in ["result", "error", "params"] {
            if let Some(member) = whole.get_mut(member) {
                count += redact::result(member, &self.redactions);
            }
        }
        if count == 0 {
            return Ok(bytes);
        }
        self.redacted += count as u64;
        serde_json::to_vec(&whole).map(Bytes::from).map_err(|_| Reason::UpstreamMalformed)
    }
}
