//! Learning what a server offers: before the first call of a session Aegis lists the server's tools
//! itself, if the client has not. A tool that nobody knows cannot be called, because nobody has
//! agreed to what it does.
//!
//! The lists go through the same pins as those that clients ask for. The request's id is random and
//! its answer stays here. A server that does not list its tools in time, on at most 100 pages, has
//! none that can be called.

use std::time::Duration;

use aegis_audit::entry::Draft;
use aegis_core::decision::Reason;
use aegis_protocol::{
    jsonrpc::Id,
    mcp::{Era, ListKind, listing, tools::Tool},
};
use bytes::Bytes;
use http::StatusCode;
use serde_json::Value;

use crate::route::{Caller, Route};

/// The most pages that are asked for.
const MAX_PAGES: usize = 100;
/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// Why a server's tools are not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unlisted {
    /// The reason.
    pub reason: Reason,
    /// The HTTP status that the server answered with, and its challenge: a client opens a new
    /// session on 404 and asks for a token on 401.
    pub answered: Option<(StatusCode, Option<String>)>,
}

impl From<Reason> for Unlisted {
    fn from(reason: Reason) -> Self {
        Self { reason, answered: None }
    }
}

/// Asks a server in a client's session.
pub(crate) trait Ask {
    /// Sends a request of Aegis' own and gives the message that answers it.
    fn ask(&self, id: &Id, request: Bytes) -> impl Future<Output = Result<Bytes, Unlisted>> + Send;
}

/// Learns all tools of the caller's server.
pub(crate) async fn learn(
    route: &Route,
    caller: &Caller,
    era: Era,
    server: &impl Ask,
) -> Result<(), Unlisted> {
    let patience = Duration::from_secs(route.spec.limits.answer_timeout_secs.into()).min(PATIENCE);
    let pages = tokio::time::timeout(patience, read_pages(route, caller, era, server));
    let learned = pages.await.unwrap_or_else(|_| Err(Reason::UpstreamTimeout.into()));
    if let Err(unlisted) = &learned {
        let reason = unlisted.reason;
        tracing::warn!(server = route.name, %reason, "the server's tools could not be learned");
    }
    learned
}

async fn read_pages(
    route: &Route,
    caller: &Caller,
    era: Era,
    server: &impl Ask,
) -> Result<(), Unlisted> {
    let mut cursor: Option<String> = None;
    for _ in 0..MAX_PAGES {
        let id = Id::String(format!("aegis-{}", uuid::Uuid::new_v4()));
        let request = listing::request(era, &id, cursor.as_deref());
        let answer = server.ask(&id, request).await?;
        let page = listing::read(answer, &id, route.response_limits()).map_err(|error| {
            tracing::warn!(server = route.name, %error, "the server's tools could not be learned");
            Reason::ToolsUnlisted
        })?;
        let mut news = Vec::new();
        for tool in &page.tools {
            route.note_tool(tool, &mut news);
        }
        route.record_tools(caller, news).await?;
        match page.next {
            None => {
                route.note_listed(caller);
                return Ok(());
            }
            next => cursor = next,
        }
    }
    Err(Reason::UpstreamTooLarge.into())
}

impl Route {
    /// Notes one item of the server's list of tools, and what there is to record about it. Returns
    /// whether it may be named: a definition that cannot be pinned may not.
    pub(crate) fn note_tool(&self, item: &Value, news: &mut Vec<Draft>) -> bool {
        let Ok(tool) = Tool::read(item) else { return false };
        let (named, entry) = self.pins.note(&tool, self.kernel().now());
        news.extend(entry);
        named
    }

    /// Records what is new about tools. A pin that is not recorded does not hold after a restart.
    pub(crate) async fn record_tools(
        &self,
        caller: &Caller,
        news: Vec<Draft>,
    ) -> Result<(), Reason> {
        for mut entry in news {
            entry.agent_id = Some(caller.principal.id.to_string());
            self.kernel().record(entry).await.map_err(|_| Reason::RecordFailed)?;
        }
        Ok(())
    }

    /// Notes that the client has read the whole list itself: on one page, from its beginning.
    pub(crate) fn note_page(&self, caller: &Caller, asked: &Value, result: &Value) {
        let whole = asked.get("cursor").is_none() && result.get("nextCursor").is_none();
        if whole && result.get(ListKind::Tools.member()).is_some() {
            self.note_listed(caller);
        }
    }
}
