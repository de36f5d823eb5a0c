//! A wrapped command: `aegis wrap -- CMD` holds the two pipes, the daemon decides on every line.
//!
//! The wrapper writes to the server only what comes back for it, and to the client only what was
//! released. It holds no policy and no key.

use std::{
    collections::{HashMap, hash_map::Entry},
    sync::Arc,
};

use aegis_api::frame::{self, Channel, Frame};
use aegis_audit::entry::Outcome as Ended;
use aegis_core::decision::Reason;
use aegis_kernel::Permit;
use aegis_protocol::{
    jsonrpc::{Id, Message, RawMessage},
    mcp::{ClientMessage, Era, LegacyVersion, Transport, deny},
};
use bytes::Bytes;
use parking_lot::Mutex;
use serde_json::Map;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::{mpsc, oneshot},
};

use crate::{
    exchange::Exchange,
    inbound,
    listing::{self, Ask, Unlisted},
    respond,
    route::{Asks, Caller, Governed, Held, Pending, Route, Step},
};

/// How many frames may wait for the wrapper.
const QUEUE: usize = 256;
/// How many calls of one wrapper may be open.
const MAX_OPEN: usize = 1_024;

/// One wrapper's session.
struct Session {
    route: Arc<Route>,
    caller: Caller,
    /// The calls that await their answer.
    open: Mutex<HashMap<Id, Exchange>>,
    /// Aegis' own request to the server, whose answer stays here.
    own: Mutex<Option<(Id, oneshot::Sender<Bytes>)>>,
    /// Held while the server lists its tools: once for all calls that wait for it.
    listing: tokio::sync::Mutex<()>,
    /// How the client speaks: a server answers in kind.
    era: Mutex<Era>,
    out: mpsc::Sender<Frame>,
}

/// A call that waits while others go on.
enum Later {
    /// For a human.
    Held(Held),
    /// For the server to list its tools.
    Unlisted(Pending),
}

impl Ask for Session {
    async fn ask(&self, id: &Id, request: Bytes) -> Result<Bytes, Unlisted> {
        let (answer, answered) = oneshot::channel();
        *self.own.lock() = Some((id.clone(), answer));
        self.send(Channel::Server, request).await;
        answered.await.map_err(|_| Reason::UpstreamUnavailable.into())
    }
}

/// Serves one wrapper until either side ends.
pub async fn serve<S: AsyncRead + AsyncWrite + Send + 'static>(
    route: Arc<Route>,
    caller: Caller,
    stream: S,
) {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let (out, mut frames) = mpsc::channel::<Frame>(QUEUE);
    let drain = route.shared.drain.clone();
    let era = Mutex::new(Era::Legacy(LegacyVersion::ASSUMED));
    let session = Arc::new(Session {
        route,
        caller,
        open: Mutex::default(),
        own: Mutex::default(),
        listing: tokio::sync::Mutex::default(),
        era,
        out,
    });
    let writing = async move {
        while let Some(frame) = frames.recv().await {
            if frame::write(&mut writer, frame.channel, &frame.payload).await.is_err() {
                break;
            }
        }
    };
    let reading = async {
        let mut tasks = tokio::task::JoinSet::new();
        loop {
            let frame = tokio::select! {
                frame = frame::read(&mut reader) => frame,
                Some(_) = tasks.join_next() => continue,
            };
            match frame {
                Ok(Some(Frame { channel: Channel::Client, payload })) => {
                    let payload = Bytes::from(payload);
                    let caller = session.caller.with_span(session.route.span());
                    let waiting = tasks.len();
                    let later = session.take_from_client(caller, payload, waiting).await;
                    if let Some((caller, later)) = later {
                        // A call that waits must not hold what is behind it.
                        let session = Arc::clone(&session);
                        tasks.spawn(async move { session.finish(caller, later).await });
                    }
                }
                Ok(Some(Frame { channel: Channel::Server, payload })) => {
                    session.take_from_server(Bytes::from(payload)).await;
                }
                Ok(Some(_)) => {}
                Ok(None) => break,
                Err(error) => {
                    tracing::warn!(%error, "a wrapper sent something else than frames");
                    break;
                }
            }
        }
    };
    tokio::select! {
        () = reading => {}
        () = writing => {}
        () = drain.cancelled() => {}
    }
}

impl Session {
    /// One message of the client. A call that waits for something comes back.
    async fn take_from_client(
        &self,
        caller: Caller,
        bytes: Bytes,
        waiting: usize,
    ) -> Option<(Caller, Later)> {
        if self.open.lock().len() + waiting >= MAX_OPEN {
            self.refuse_unread(&bytes, Reason::Overloaded).await;
            return None;
        }
        match self.route.govern(&caller, Transport::Stdio, bytes).await {
            Governed::Settled(step) => {
                let (caller, held) = self.take(caller, step).await?;
                Some((caller, Later::Held(held)))
            }
            Governed::Unlisted(pending) => Some((caller, Later::Unlisted(*pending))),
        }
    }

    /// What becomes of a judged message. A call that waits for a human comes back.
    async fn take(&self, caller: Caller, step: Step) -> Option<(Caller, Held)> {
        match step {
            Step::Forward(permit) => self.forward(caller, *permit).await,
            Step::Answer { answer, one_way: false } => {
                self.send(Channel::Client, answer.body).await;
            }
            Step::Answer { one_way: true, .. } => {}
            Step::Hold(held) if held.asks == Asks::Now => {
                self.send(Channel::Client, respond::still_pending(&held).body).await;
            }
            Step::Hold(held) => return Some((caller, *held)),
        }
        None
    }

    async fn finish(&self, caller: Caller, later: Later) {
        let held = match later {
            Later::Held(held) => Some((caller, held)),
            Later::Unlisted(pending) => {
                let learned = self.learn(pending.era()).await;
                let transport = Transport::Stdio;
                let step = self.route.govern_listed(&caller, transport, pending, learned).await;
                self.take(caller, step).await
            }
        };
        let Some((caller, held)) = held else { return };
        match inbound::wait(&self.route, &caller, held).await {
            Step::Forward(permit) => self.forward(caller, *permit).await,
            Step::Answer { answer, .. } => self.send(Channel::Client, answer.body).await,
            Step::Hold(held) => {
                self.send(Channel::Client, respond::still_pending(&held).body).await;
            }
        }
    }

    async fn learn(&self, era: Era) -> Result<(), Unlisted> {
        let _turn = self.listing.lock().await;
        if self.route.is_listed(&self.caller) {
            return Ok(());
        }
        let learned = listing::learn(&self.route, &self.caller, era, self).await;
        *self.own.lock() = None;
        learned
    }

    /// The permit's own bytes go to the server; an open call waits for its answer.
    async fn forward(&self, caller: Caller, permit: Permit<ClientMessage>) {
        let (bytes, mut exchange) = Exchange::open(Arc::clone(&self.route), caller, permit);
        *self.era.lock() = exchange.era();
        let own = |id: &Id| self.own.lock().as_ref().is_some_and(|(own, _)| own == id);
        if exchange.id().is_some_and(own) {
            return self.fail(exchange, Reason::MalformedMessage).await;
        }
        let Some(id) = exchange.id().cloned() else {
            exchange.conclude(Ended::Success, None, None).await;
            return self.send(Channel::Server, bytes).await;
        };
        // An answer under an id that two calls share would be released as that of the wrong one.
        let taken = match self.open.lock().entry(id) {
            Entry::Vacant(entry) => {
                entry.insert(exchange);
                None
            }
            Entry::Occupied(_) => Some(exchange),
        };
        match taken {
            None => self.send(Channel::Server, bytes).await,
            Some(exchange) => self.fail(exchange, Reason::MalformedMessage).await,
        }
    }

    /// One message of the server.
    async fn take_from_server(&self, bytes: Bytes) {
        let message = match RawMessage::parse(bytes.clone(), self.route.response_limits()) {
            Ok(RawMessage { message, .. }) => message,
            Err(error) => {
                tracing::warn!(server = self.route.name, %error, "the server's message is withheld");
                return;
            }
        };
        let exchange = match message {
            Message::Response { id: Some(id), .. } => {
                let mut own = self.own.lock();
                if let Some((_, answer)) = own.take_if(|(own, _)| *own == id) {
                    let _ = answer.send(bytes);
                    return;
                }
                drop(own);
                let Some(exchange) = self.open.lock().remove(&id) else {
                    tracing::warn!(server = self.route.name, "an answer to nothing is withheld");
                    return;
                };
                exchange
            }
            _ => {
                let (era, open) = (*self.era.lock(), self.open.lock());
                let (route, caller) = (Arc::clone(&self.route), self.caller.clone());
                Exchange::shared(route, caller, era, open.values())
            }
        };
        self.release(exchange, bytes).await;
    }

    async fn release(&self, mut exchange: Exchange, bytes: Bytes) {
        match exchange.release(bytes).await {
            Ok(released) => {
                if let Some(bytes) = released.to_client {
                    self.send(Channel::Client, bytes).await;
                }
                if let Some(bytes) = released.to_server {
                    self.send(Channel::Server, bytes).await;
                }
            }
            Err(reason) if exchange.waits() => self.fail(exchange, reason).await,
            Err(reason) => {
                tracing::warn!(server = self.route.name, %reason, "the server's message is withheld");
            }
        }
    }

    /// Ends a call that gets no answer of the server.
    async fn fail(&self, mut exchange: Exchange, reason: Reason) {
        let answer = respond::upstream_failed(exchange.id(), reason);
        exchange.conclude(Ended::Failure, Some(reason), None).await;
        self.send(Channel::Client, answer.body).await;
    }

    async fn refuse_unread(&self, bytes: &Bytes, reason: Reason) {
        let (principal, server) = (&self.caller.principal, &self.route.name);
        self.route.kernel().refuse(principal, server, reason, Map::new()).await;
        if let Ok(RawMessage { message: Message::Request { id, .. }, .. }) =
            RawMessage::parse(bytes.clone(), self.route.request_limits())
        {
            self.send(Channel::Client, deny::denied(&id, reason, reason.sentence()).body).await;
        }
    }

    async fn send(&self, channel: Channel, bytes: Bytes) {
        // One line a message: what was judged never holds a raw newline outside of it.
        let payload = bytes.to_vec();
        let _ = self.out.send(Frame { channel, payload }).await;
    }
}
