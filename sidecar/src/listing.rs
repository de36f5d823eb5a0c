//! Learning what a server offers: before the first call of a session Aegis lists the server's tools
//! itself, if the client has not. A tool that nobody knows cannot be called, because nobody has
//! agreed to what it does.
//!
//! The lists go through the same pins as those that clients ask for. The request's id is random and
//! its answer stays here. A server that does not list its tools in time, on at most 100 pages, has
//! none that can be called. That is warned of once a server and minute, however often it is tried.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use aegis_audit::entry::Draft;
use aegis_core::decision::Reason;
use aegis_protocol::{
    jsonrpc::Id,
    mcp::{Era, ListKind, listing, tools::Tool},
};
use bytes::Bytes;
use http::StatusCode;
use parking_lot::Mutex;
use serde_json::Value;

use crate::route::{Caller, Route};

/// The most pages that are asked for.
const MAX_PAGES: usize = 100;
/// How long all of it may take.
const PATIENCE: Duration = Duration::from_secs(60);

/// How often one server is warned of.
const WARN_EVERY: Duration = Duration::from_secs(60);
/// How many servers are told apart in warnings; callers of `aegis wrap` choose names.
const MAX_WARNED: usize = 1_024;

/// The last warning of each server, and what was not told since.
static WARNED: Warned = Warned(Mutex::new(BTreeMap::new()));

/// When each server was warned of last, and how many warnings were held back since.
struct Warned(Mutex<BTreeMap<String, (Instant, u64)>>);

impl Warned {
    /// How many warnings of this server this one stands for; `None` if it is to be held back.
    fn due(&self, server: &str, now: Instant) -> Option<u64> {
        let mut servers = self.0.lock();
        if let Some((last, held_back)) = servers.get_mut(server) {
            if now.saturating_duration_since(*last) < WARN_EVERY {
                *held_back += 1;
                return None;
            }
            let count = *held_back + 1;
            (*last, *held_back) = (now, 0);
            return Some(count);
        }
        if servers.len() >= MAX_WARNED {
            servers.retain(|_, (last, _)| now.saturating_duration_since(*last) < WARN_EVERY);
        }
        if servers.len() >= MAX_WARNED {
            return None;
        }
        servers.insert(server.to_owned(), (now, 0));
        Some(1)
    }
}

/// Why a server's tools are not known.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Unlisted {
    /// The reason.
    pub reason: Reason,
    /// The HTTP status that the server answered with, and its challenge: a client opens a new
    /// session on 404 and asks for a token on 401.
    pub answered: Option<(StatusCode, Option<String>)>,
    /// What is wrong with its answer, for the log.
    pub cause: Option<String>,
}

impl From<Reason> for Unlisted {
    fn from(reason: Reason) -> Self {
        Self { reason, answered: None, cause: None }
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
    if let Err(unlisted) = &learned
        && let Some(count) = WARNED.due(&route.name, Instant::now())
    {
        let (reason, cause) = (unlisted.reason, unlisted.cause.as_deref());
        tracing::warn!(
            server = route.name, %reason, cause, count, "the server's tools could not be learned"
        );
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
        let unreadable = |error: listing::PageError| Unlisted {
            cause: Some(error.to_string()),
            ..Reason::ToolsUnlisted.into()
        };
        let page = listing::read(answer, &id, route.response_limits()).map_err(unreadable)?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_warned_of_once_a_minute_with_a_count() {
        let warned = Warned(Mutex::default());
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(warned.due("a", at(0)), Some(1));
        assert_eq!((1..60).find_map(|second| warned.due("a", at(second))), None);
        assert_eq!(warned.due("b", at(30)), Some(1), "another server is told at once");
        assert_eq!(warned.due("a", at(60)), Some(60));
        assert_eq!(warned.due("a", at(120)), Some(1));
    }

    #[test]
    fn made_up_names_do_not_fill_the_memory() {
        let warned = Warned(Mutex::default());
        let now = Instant::now();
        for number in 0..2 * MAX_WARNED {
            warned.due(&number.to_string(), now);
        }
        assert_eq!(warned.0.lock().len(), MAX_WARNED);
        assert_eq!(warned.due("new", now + WARN_EVERY), Some(1));
    }
}
