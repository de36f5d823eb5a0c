//! What operators are told without asking: entries of the ledger as they are committed, about all agents.
//! Never arguments: who wants them reads the entry.

use std::{convert::Infallible, sync::Arc, time::Duration};

use aegis_api::control::EntryNotice;
use aegis_sidecar::kernel_api::Told;
use axum::{
    extract::State,
    response::sse::{Event, KeepAlive, Sse},
};
use futures::{Stream, StreamExt as _, stream};
use tokio::sync::broadcast::{Receiver, error::RecvError};

use super::Shared;

/// How often an idle stream gives a sign of life.
const SIGN_OF_LIFE: Duration = Duration::from_secs(15);

pub(super) async fn events(
    State(daemon): Shared,
) -> Sse<impl Stream<Item = Result<Event, Infallible>>> {
    // The first tells that it is open: nothing that is recorded from then on is missed.
    let open = Event::default().event("open").data("{}");
    let entries = stream::unfold(daemon.feed.listen(), next);
    let events = stream::once(async { open }).chain(entries).take_until(daemon.draining());
    Sse::new(events.map(Ok)).keep_alive(KeepAlive::new().interval(SIGN_OF_LIFE))
}

async fn next(mut entries: Receiver<Arc<Told>>) -> Option<(Event, Receiver<Arc<Told>>)> {
    let event = match entries.recv().await {
        Ok(told) => {
            let notice = EntryNotice { agent: told.agent.clone(), entry: told.event.clone() };
            let data = serde_json::to_string(&notice).unwrap_or_default();
            Event::default().event(told.kind).id(told.event.index.to_string()).data(data)
        }
        Err(RecvError::Lagged(lost)) => {
            Event::default().event("lost").data(format!("{{\"entries\":{lost}}}"))
        }
        Err(RecvError::Closed) => return None,
    };
    Some((event, entries))
}
