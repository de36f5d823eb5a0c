//! A scriptable MCP server: what it answers is a function of what it was sent.

use std::{convert::Infallible, future::Future, net::SocketAddr, pin::Pin, sync::Arc};

use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::{BodyExt, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpListener,
    sync::mpsc,
};

/// One request as it arrived.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    pub(crate) method: Method,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
}

impl Seen {
    /// The message; null if the body is none.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }
}

type Answered = Pin<Box<dyn Future<Output = Response<UnsyncBoxBody<Bytes, Infallible>>> + Send>>;
type Script = Arc<dyn Fn(Seen) -> Answered + Send + Sync>;

/// The server.
#[derive(Clone)]
pub(crate) struct Upstream {
    pub(crate) address: SocketAddr,
    seen: Arc<Mutex<Vec<Seen>>>,
    script: Arc<Mutex<Script>>,
}

impl Upstream {
    /// Starts one that answers every request with an empty result, and everything else with 202.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let upstream = Self::on(listener.local_addr().unwrap());
        let serving = upstream.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serving.clone().serve(stream));
            }
        });
        upstream
    }

    /// One whose connections the caller accepts.
    pub(crate) fn on(address: SocketAddr) -> Self {
        let script: Script = Arc::new(|seen| Box::pin(async move { polite(&seen) }));
        Self { address, seen: Arc::default(), script: Arc::new(Mutex::new(script)) }
    }

    pub(crate) async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = service_fn(move |request: Request<Incoming>| {
            let this = self.clone();
            async move {
                let (head, body) = request.into_parts();
                let Ok(body) = body.collect().await else { return Ok(status(400)) };
                let seen =
                    Seen { method: head.method, headers: head.headers, body: body.to_bytes() };
                this.seen.lock().push(seen.clone());
                let answer = (this.script.lock())(seen);
                Ok::<_, Infallible>(answer.await)
            }
        });
        let io = TokioIo::new(stream);
        let _ = hyper::server::conn::http1::Builder::new().serve_connection(io, service).await;
    }

    /// Answers by `script` from now on.
    pub(crate) fn answers<F, R>(&self, script: F)
    where
        F: Fn(Seen) -> R + Send + Sync + 'static,
        R: Future<Output = Response<UnsyncBoxBody<Bytes, Infallible>>> + Send + 'static,
    {
        *self.script.lock() = Arc::new(move |seen| Box::pin(script(seen)));
    }

    /// Answers every request with this result, under the request's own id.
    pub(crate) fn results(&self, result: Value) {
        self.answers(move |seen| {
            let response = json(200, &result_for(&seen, &result));
            async move { response }
        });
    }

    /// Answers with these bytes.
    pub(crate) fn says(&self, status: u16, kind: &'static str, body: &'static str) {
        self.answers(move |_| async move { raw(status, kind, body) });
    }

    /// Answers with an event stream that the caller fills.
    pub(crate) fn streams(&self) -> mpsc::Sender<&'static str> {
        let (sender, receiver) = mpsc::channel(16);
        let receiver = Mutex::new(Some(receiver));
        self.answers(move |seen| {
            let taken = (seen.json().get("method").is_some() || seen.method == Method::GET)
                .then(|| receiver.lock().take())
                .flatten();
            async move { taken.map_or_else(|| status(202), stream) }
        });
        sender
    }

    /// What arrived.
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().clone()
    }

    /// How often a method arrived.
    pub(crate) fn count(&self, method: &str) -> usize {
        self.seen().iter().filter(|seen| seen.json()["method"] == method).count()
    }
}

/// The result for a request's id.
pub(crate) fn result_for(seen: &Seen, result: &Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": seen.json()["id"], "result": result })
}

fn polite(seen: &Seen) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    if seen.json().get("id").is_some() && seen.json().get("method").is_some() {
        json(200, &result_for(seen, &json!({})))
    } else {
        status(202)
    }
}

/// A JSON answer.
pub(crate) fn json(status: u16, value: &Value) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    raw(status, "application/json", value.to_string())
}

/// An answer without a body.
pub(crate) fn status(status: u16) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    let mut response = Response::new(Full::new(Bytes::new()).boxed_unsync());
    *response.status_mut() = StatusCode::from_u16(status).unwrap();
    response
}

/// An answer of any type.
pub(crate) fn raw(
    code: u16,
    kind: &str,
    body: impl Into<Bytes>,
) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    let mut response = status(code);
    response.headers_mut().insert("content-type", kind.parse().unwrap());
    *response.body_mut() = Full::new(body.into()).boxed_unsync();
    response
}

/// An event stream.
pub(crate) fn stream(
    receiver: mpsc::Receiver<&'static str>,
) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    let mut response = raw(200, "text/event-stream", "");
    let events = futures::stream::unfold(receiver, |mut receiver| async move {
        receiver.recv().await.map(|event| (event, receiver))
    });
    let frames = events.map(|event| Ok(Frame::data(Bytes::from_static(event.as_bytes()))));
    *response.body_mut() = StreamBody::new(frames).boxed_unsync();
    response
}
