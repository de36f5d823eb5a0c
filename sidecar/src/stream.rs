//! Streams to a client: every event is released by its exchange and flushed by itself; a client
//! that goes away takes the upstream's stream with it.

use std::{collections::VecDeque, convert::Infallible, sync::Arc, time::Duration};

use aegis_audit::entry::Outcome as Ended;
use aegis_core::decision::Reason;
use aegis_protocol::{
    mcp::deny::Answer,
    sse::{self, SseDecoder},
};
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use http::{HeaderMap, Method, Response, header};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Incoming;

use crate::{
    exchange::Exchange,
    forward, inbound,
    inbound::Body,
    relay::{content_type, relay},
    respond,
    route::{Caller, Held, Route, Step},
};

/// How often a held call gives a sign of life.
const KEEP_ALIVE: Duration = Duration::from_secs(10);

/// The events of an upstream, released one by one.
pub(crate) fn events(body: Incoming, exchange: Exchange) -> Body {
    into_body(pump(body, exchange))
}

fn into_body(stream: BoxStream<'static, Bytes>) -> Body {
    StreamBody::new(stream.map(|bytes| Ok::<_, Infallible>(Frame::data(bytes)))).boxed_unsync()
}

/// What a pump works with.
struct Pump {
    upstream: Incoming,
    decoder: SseDecoder,
    exchange: Option<Exchange>,
    ready: VecDeque<Bytes>,
}

pub(crate) fn pump(upstream: Incoming, exchange: Exchange) -> BoxStream<'static, Bytes> {
    let cap = exchange.route().response_limits().size;
    let pump = Pump {
        upstream,
        decoder: SseDecoder::new(cap),
        exchange: Some(exchange),
        ready: VecDeque::new(),
    };
    stream::unfold(pump, |mut pump| async move { pump.next().await.map(|bytes| (bytes, pump)) })
        .boxed()
}

/// What a pump saw.
enum Seen {
    Data(Bytes),
    End,
    Changed,
    Drain,
}

impl Pump {
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some(bytes);
            }
            let mut exchange = self.exchange.take()?;
            match self.decoder.next_event() {
                Ok(Some(event)) => match self.release(&mut exchange, &event).await {
                    Ok(()) => self.exchange = Some(exchange),
                    Err(reason) => self.cut(exchange, reason).await,
                },
                Ok(None) => match self.wait(&mut exchange).await {
                    Seen::Data(data) => {
                        self.decoder.push(&data);
                        self.exchange = Some(exchange);
                    }
                    Seen::Changed => match exchange.recheck() {
                        None => self.exchange = Some(exchange),
                        Some(reason) => self.cut(exchange, reason).await,
                    },
                    // A stream that resumes it, or its drop, writes the outcome.
                    Seen::End if exchange.key().is_some() => park(exchange),
                    Seen::End if exchange.waits() => {
                        self.cut(exchange, Reason::UpstreamUnavailable).await;
                    }
                    Seen::End => exchange.finish().await,
                    Seen::Drain => self.cut(exchange, Reason::Draining).await,
                },
                Err(_) => self.cut(exchange, Reason::UpstreamTooLarge).await,
            }
        }
    }

    async fn wait(&mut self, exchange: &mut Exchange) -> Seen {
        let (drain, endless) = (exchange.route().shared.drain.clone(), exchange.is_endless());
        tokio::select! {
            () = drain.cancelled(), if endless => Seen::Drain,
            frame = self.upstream.frame() => match frame {
                Some(Ok(frame)) => Seen::Data(frame.into_data().unwrap_or_default()),
                Some(Err(_)) | None => Seen::End,
            },
            () = exchange.changed() => Seen::Changed,
        }
    }

    async fn release(
        &mut self,
        exchange: &mut Exchange,
        event: &sse::SseEvent,
    ) -> Result<(), Reason> {
        if let Some(id) = event.field("id").filter(|id| !id.is_empty()) {
            exchange.note_event(id);
        }
        // Comments keep alive and priming events carry an id: both pass as they are.
        let Some(data) = event.data().filter(|data| !data.is_empty()) else {
            self.ready.push_back(event.raw().clone());
            return Ok(());
        };
        let released = exchange.release(data.clone()).await?;
        if let Some(bytes) = released.to_client {
            let unchanged = bytes == data;
            self.ready.push_back(if unchanged {
                event.raw().clone()
            } else {
                event.with_data(&bytes)
            });
        }
        if let Some(bytes) = released.to_server {
            exchange.tell_server(bytes);
        }
        Ok(())
    }

    /// Ends a stream: the client is told why, the upstream is let go.
    async fn cut(&mut self, mut exchange: Exchange, reason: Reason) {
        self.ready.extend(exchange.farewell(reason));
        exchange.conclude(Ended::Failure, Some(reason), None).await;
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        if let Some(exchange) = self.exchange.take() {
            park(exchange);
        }
    }
}

/// Keeps an unfinished legacy exchange for a stream that resumes it; any other ends here.
fn park(exchange: Exchange) {
    if let Some(key) = exchange.key() {
        let route = Arc::clone(exchange.route());
        route.park(key, exchange);
    }
}

/// A stream that holds a call until a human has decided, and then carries its answer.
pub(crate) fn held(route: Arc<Route>, caller: Caller, held: Held, headers: HeaderMap) -> Body {
    let approval = held.approval.clone();
    kept_alive(&approval, Box::pin(settled(route, caller, held, headers)))
}

/// A stream that gives signs of life until it is known what it carries.
pub(crate) fn kept_alive(approval: &str, waiting: Waiting) -> Body {
    let first = Bytes::from(format!(": held for approval {approval}\n\n"));
    let beats = stream::unfold(Some(waiting), |waiting| async move {
        let mut waiting = waiting?;
        tokio::select! {
            done = waiting.as_mut() => Some((done, None)),
            () = tokio::time::sleep(KEEP_ALIVE) => {
                let beat = Bytes::from_static(b": waiting for a human\n\n");
                Some((stream::once(async move { beat }).boxed(), Some(waiting)))
            }
        }
    });
    into_body(stream::once(async move { first }).chain(beats.flatten()).boxed())
}

pub(crate) type Waiting = std::pin::Pin<Box<dyn Future<Output = BoxStream<'static, Bytes>> + Send>>;

async fn settled(
    route: Arc<Route>,
    caller: Caller,
    held: Held,
    headers: HeaderMap,
) -> BoxStream<'static, Bytes> {
    let one = |answer: Answer| {
        let event = sse::encode(&answer.body);
        stream::once(async move { event }).boxed()
    };
    let permit = match inbound::wait(&route, &caller, held).await {
        Step::Forward(permit) => *permit,
        Step::Answer { answer, .. } => return one(answer),
        Step::Hold(held) => {
            return one(respond::still_pending(&held));
        }
    };
    carried(forward::forward(&route, &caller, permit, headers).await).await
}

/// What was forwarded, as the rest of a stream that has begun.
pub(crate) async fn carried(
    forwarded: Result<(Response<Incoming>, Exchange), (Reason, Exchange)>,
) -> BoxStream<'static, Bytes> {
    let event = match forwarded {
        Ok((response, mut exchange)) => {
            let encoded = response.headers().contains_key(header::CONTENT_ENCODING);
            let streams = content_type(response.headers()) == "text/event-stream" && !encoded;
            let streams = exchange.note_answer(response.status(), streams) && streams;
            if streams && response.status().is_success() {
                return pump(response.into_body(), exchange);
            }
            // A response that is no message still needs an answer that is one.
            let otherwise = exchange.failure(Reason::UpstreamMalformed).body;
            let body = relay(response, exchange).await.into_body();
            let bytes = body.collect().await.map(|all| all.to_bytes()).unwrap_or_default();
            sse::encode(if bytes.is_empty() { &otherwise } else { &bytes })
        }
        Err((reason, mut exchange)) => {
            let answer = exchange.failure(reason);
            exchange.conclude(Ended::Failure, Some(reason), None).await;
            sse::encode(&answer.body)
        }
    };
    stream::once(async move { event }).boxed()
}

impl Exchange {
    /// Tells the server, beside the stream, that what it asked is refused.
    fn tell_server(&self, bytes: Bytes) {
        let route = Arc::clone(self.route());
        let headers = self.server_headers();
        tokio::spawn(async move {
            if let Some(target) = &route.target {
                let timeout = Duration::from_secs(30);
                let told = target.send(Method::POST, headers, bytes, timeout).await;
                if let Err(reason) = told {
                    tracing::warn!(server = route.name, %reason, "the server could not be told of a refusal");
                }
            }
        });
    }
}
