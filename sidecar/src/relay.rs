//! Relaying: what an upstream answers over HTTP goes to the client through its exchange, or not at
//! all.
//!
//! A status passes, and so do the headers that belong to it: clients open a new session on 404 and
//! ask for a token on 401. A body passes only if it is a message. Encodings, other types and
//! redirects, which would lead the client past Aegis, are refused.

use std::time::Duration;

use aegis_audit::entry::Outcome as Ended;
use aegis_core::decision::Reason;
use aegis_protocol::jsonrpc::RawMessage;
use aegis_resources::upstream::OauthMetadata;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Response, StatusCode, header, response::Parts};
use http_body_util::{BodyExt, Full, Limited};
use hyper::body::Incoming;

use crate::{
    exchange::Exchange,
    forward::end_to_end,
    inbound::{Body, boxed},
    oauth, respond,
    route::Route,
    stream,
};

/// Tells the client that its message was forwarded in vain.
pub(crate) async fn failed(mut exchange: Exchange, reason: Reason) -> Response<Body> {
    let answer = exchange.failure(reason);
    exchange.conclude(Ended::Failure, Some(reason), None).await;
    boxed(respond::http(answer))
}

/// Releases an upstream's response.
pub(crate) async fn relay(response: Response<Incoming>, mut exchange: Exchange) -> Response<Body> {
    let (mut head, body) = response.into_parts();
    // The client has the card already; it is led nowhere.
    let unchanged = head.status == StatusCode::NOT_MODIFIED && exchange.awaits_card();
    if head.headers.contains_key(header::CONTENT_ENCODING)
        || (head.status.is_redirection() && !unchanged)
        || head.status.is_informational()
    {
        return failed(exchange, Reason::UpstreamMalformed).await;
    }
    let kind = content_type(&head.headers);
    end_to_end(&mut head.headers);
    if let Err(reason) = present_challenges(&exchange, &mut head) {
        return failed(exchange, reason).await;
    }
    let streams = exchange.note_answer(head.status, kind == "text/event-stream");
    if kind == "text/event-stream" && !streams {
        return failed(exchange, Reason::UpstreamMalformed).await;
    }
    if kind == "text/event-stream" && head.status.is_success() {
        head.headers.insert("x-accel-buffering", HeaderValue::from_static("no"));
        return Response::from_parts(head, stream::events(body, exchange));
    }
    let bytes = match collect(exchange.route(), body).await {
        Ok(bytes) => bytes,
        Err(reason) => return failed(exchange, reason).await,
    };
    if bytes.is_empty() {
        return empty(head, exchange).await;
    }
    if exchange.takes(&kind) && (head.status.is_success() || is_message(&exchange, &bytes)) {
        return document(head, bytes, exchange).await;
    }
    if head.status.is_success() {
        // A result in a type that nobody can look into.
        return failed(exchange, Reason::UpstreamMalformed).await;
    }
    withheld(head, exchange).await
}

/// Lets challenges for a token say what clients may see of them. Where Aegis adds a credential of its
/// own, 401 is about that one, and no client can do anything about it.
fn present_challenges(exchange: &Exchange, head: &mut Parts) -> Result<(), Reason> {
    let route = exchange.route();
    let hidden = route.spec.presents_oauth() == OauthMetadata::Hidden;
    if hidden && head.status == StatusCode::UNAUTHORIZED {
        tracing::error!(server = route.name, "the upstream does not accept Aegis' credential");
        return Err(Reason::UpstreamUnavailable);
    }
    let header::Entry::Occupied(entry) = head.headers.entry(header::WWW_AUTHENTICATE) else {
        return Ok(());
    };
    let (_, challenges) = entry.remove_entry_mult();
    let seen: Vec<HeaderValue> = challenges
        .filter_map(|value| oauth::challenge(route, value.to_str().ok()?)?.parse().ok())
        .collect();
    for challenge in seen {
        head.headers.append(header::WWW_AUTHENTICATE, challenge);
    }
    Ok(())
}

/// The essence of `Content-Type`, in lower case.
pub(crate) fn content_type(headers: &HeaderMap) -> String {
    let value = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    value.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_ascii_lowercase()
}

/// Reads a whole body; never judges a part of one.
pub(crate) async fn collect(route: &Route, body: Incoming) -> Result<Bytes, Reason> {
    let limited = Limited::new(body, route.response_limits().size);
    let timeout = Duration::from_secs(route.spec.limits.answer_timeout_secs.into());
    match tokio::time::timeout(timeout, limited.collect()).await {
        Err(_) => Err(Reason::UpstreamTimeout),
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(Reason::UpstreamTooLarge)
        }
        Ok(Err(_)) => Err(Reason::UpstreamUnavailable),
    }
}

/// Whether it is one JSON-RPC message, or an error in the form of one with an `id` of null, which
/// servers send for a lost session.
fn is_message(exchange: &Exchange, bytes: &Bytes) -> bool {
    let limits = exchange.route().response_limits();
    exchange.is_of_agent() || RawMessage::parse(bytes.clone(), limits).is_ok()
}

/// One JSON message.
async fn document(head: Parts, bytes: Bytes, mut exchange: Exchange) -> Response<Body> {
    match exchange.release(bytes).await {
        Ok(released) => match released.to_client {
            Some(bytes) => {
                // An error without an id ends the exchange too.
                let result = if head.status.is_success() { Ended::Unknown } else { Ended::Failure };
                exchange.conclude(result, None, Some(head.status.as_u16().into())).await;
                boxed(Response::from_parts(head, Full::new(bytes)))
            }
            None => failed(exchange, Reason::ServerRequestDenied).await,
        },
        Err(reason) => failed(exchange, reason).await,
    }
}

/// A response without a message: the acknowledgement of a notification, or an HTTP error.
async fn empty(head: Parts, mut exchange: Exchange) -> Response<Body> {
    if head.status.is_success() && exchange.waits() && !exchange.may_be_empty() {
        return failed(exchange, Reason::UpstreamMalformed).await;
    }
    let fine = head.status.is_success() || head.status == StatusCode::NOT_MODIFIED;
    let result = if fine { Ended::Success } else { Ended::Failure };
    exchange.conclude(result, None, Some(head.status.as_u16().into())).await;
    boxed(Response::from_parts(head, Full::new(Bytes::new())))
}

/// An HTTP error whose body is no message: the status says enough, the body stays here.
async fn withheld(mut head: Parts, mut exchange: Exchange) -> Response<Body> {
    let status = Some(head.status.as_u16().into());
    let body = if exchange.id().is_some() || exchange.is_of_agent() {
        head.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        exchange.failure(Reason::UpstreamMalformed).body
    } else {
        head.headers.remove(header::CONTENT_TYPE);
        Bytes::new()
    };
    exchange.conclude(Ended::Failure, Some(Reason::UpstreamMalformed), status).await;
    boxed(Response::from_parts(head, Full::new(body)))
}
