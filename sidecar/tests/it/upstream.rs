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
    pub(crate) target: String,
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
    listed: Arc<Mutex<Vec<Seen>>>,
    lists: Arc<Mutex<Script>>,
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
        let lists: Script = Arc::new(|seen| Box::pin(async move { page(&seen, &[&TOOLS]) }));
        Self {
            address,
            seen: Arc::default(),
            script: Arc::new(Mutex::new(script)),
            listed: Arc::default(),
            lists: Arc::new(Mutex::new(lists)),
        }
    }

    /// Answers by `script` where Aegis itself asks for the tools.
    pub(crate) fn lists<F, R>(&self, script: F)
    where
        F: Fn(Seen) -> R + Send + Sync + 'static,
        R: Future<Output = Response<UnsyncBoxBody<Bytes, Infallible>>> + Send + 'static,
    {
        *self.lists.lock() = Arc::new(move |seen| Box::pin(script(seen)));
    }

    /// What Aegis itself has asked. It is not among what [`Upstream::seen`] gives.
    pub(crate) fn listed(&self) -> Vec<Seen> {
        self.listed.lock().clone()
    }

    pub(crate) async fn serve(self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let service = service_fn(move |request: Request<Incoming>| {
            let this = self.clone();
            async move {
                let (head, body) = request.into_parts();
                let Ok(body) = body.collect().await else { return Ok(status(400)) };
                let target = head.uri.to_string();
                let (method, headers) = (head.method, head.headers);
                let seen = Seen { method, target, headers, body: body.to_bytes() };
                let own = is_own(&seen.json());
                let (log, script) =
                    if own { (&this.listed, &this.lists) } else { (&this.seen, &this.script) };
                log.lock().push(seen.clone());
                let answer = (script.lock())(seen);
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

/// The tools that every scripted server has.
pub(crate) const TOOLS: [&str; 5] = ["echo", "risky", "leaky", "forbidden", "forbidden_too"];

/// Whether this is a request of Aegis' own.
pub(crate) fn is_own(message: &Value) -> bool {
    message["id"].as_str().is_some_and(|id| id.starts_with("aegis-"))
}

/// Definitions of tools.
pub(crate) fn definitions(names: &[&str]) -> Vec<Value> {
    names.iter().map(|name| json!({ "name": name, "inputSchema": { "type": "object" } })).collect()
}

/// The page that a request's cursor names.
pub(crate) fn page(seen: &Seen, pages: &[&[&str]]) -> Response<UnsyncBoxBody<Bytes, Infallible>> {
    let cursor = seen.json()["params"]["cursor"].as_str().map_or(0, |c| c.parse().unwrap());
    let mut result = json!({ "tools": definitions(pages[cursor]) });
    if cursor + 1 < pages.len() {
        result["nextCursor"] = (cursor + 1).to_string().into();
    }
    json(200, &result_for(seen, &result))
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
