//! The client of the control socket, and of the ledger's own paths where they are served over TCP or
//! through somebody else.

use std::{
    future::Future,
    path::{Path, PathBuf},
    pin::Pin,
    sync::Arc,
};

use http::{HeaderValue, Method, Request, StatusCode, header};
use http_body_util::{BodyExt, Full};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, UnixStream},
};

use crate::control::{Problem, STARTED_BY, WrapHello};

/// Brings `GET`s of a path to whoever answers them: the status and the body.
pub type Through = Arc<
    dyn Fn(String) -> Pin<Box<dyn Future<Output = Result<(StatusCode, Bytes), String>> + Send>>
        + Send
        + Sync,
>;

/// Asks a daemon over its control socket; one connection per question.
#[derive(Clone)]
pub struct Client {
    socket: PathBuf,
    way: Way,
}

/// How it gets there.
#[derive(Clone)]
enum Way {
    Socket,
    Tcp(String),
    Through(Through),
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client").field("socket", &self.socket).finish_non_exhaustive()
    }
}

/// A wrapper's session.
#[derive(Debug)]
pub struct Wrapped {
    /// Carries the frames.
    pub stream: TokioIo<hyper::upgrade::Upgraded>,
    /// Whether the daemon has started the server: then only the client's frames pass here.
    pub by_daemon: bool,
}

/// Why there was no answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no Aegis daemon answers at {socket} ({source}); start one with `aegis up`, or name its socket with --socket"
    )]
    Away {
        /// Where.
        socket: String,
        /// Why.
        source: std::io::Error,
    },
    /// The ledger of a cluster is not reached.
    #[error("the ledger {place} is not reached: {why}")]
    Unreached {
        /// Where.
        place: String,
        /// Why.
        why: String,
    },
    /// Whoever listens closed the connection.
    #[error(
        "the Aegis daemon at {socket} closed the connection without an answer; it may be ending, or hold as many connections of yours as may be: try again"
    )]
    Closed {
        /// Where.
        socket: String,
    },
    /// The daemon refused; its own sentence.
    #[error("{message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// The sentence.
        message: String,
    },
    /// What answered is not a daemon of this version.
    #[error("the answer at {socket} is not one of an Aegis daemon of this version: {detail}")]
    Foreign {
        /// Where.
        socket: String,
        /// What is wrong with it.
        detail: String,
    },
}

impl Client {
    /// A client of the daemon behind `socket`.
    #[must_use]
    pub fn new(socket: impl Into<PathBuf>) -> Self {
        Self { socket: socket.into(), way: Way::Socket }
    }

    /// A client of the ledger at `address` (`host:port`), which answers its own paths alone.
    #[must_use]
    pub fn of_ledger(address: &str) -> Self {
        Self { socket: address.into(), way: Way::Tcp(address.to_owned()) }
    }

    /// A client of a ledger that `through` reaches. It can only read.
    #[must_use]
    pub fn through(place: &str, through: Through) -> Self {
        Self { socket: place.into(), way: Way::Through(through) }
    }

    /// The socket.
    #[must_use]
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// `GET path`.
    ///
    /// # Errors
    /// When nobody answers, or the daemon refuses.
    pub async fn get<T: DeserializeOwned>(&self, path: &str) -> Result<T, ClientError> {
        self.json(self.send(Method::GET, path, None).await?)
    }

    /// `GET path`, as text.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn get_text(&self, path: &str) -> Result<String, ClientError> {
        String::from_utf8(self.get_bytes(path).await?).map_err(|error| self.foreign(error))
    }

    /// `GET path`, as bytes.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn get_bytes(&self, path: &str) -> Result<Vec<u8>, ClientError> {
        Ok(self.send(Method::GET, path, None).await?.to_vec())
    }

    /// `POST path` with a JSON body.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn post<Q: Serialize + ?Sized, T: DeserializeOwned>(
        &self,
        path: &str,
        body: &Q,
    ) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| self.foreign(error))?;
        self.json(self.send(Method::POST, path, Some(body)).await?)
    }

    /// Opens a wrapper's stream of frames.
    ///
    /// # Errors
    /// As [`Client::get`].
    pub async fn wrap(&self, hello: &WrapHello) -> Result<Wrapped, ClientError> {
        let body = serde_json::to_vec(hello).map_err(|error| self.foreign(error))?;
        let request = Request::builder()
            .method(Method::POST)
            .uri("/v1/wrap")
            .header(header::HOST, "aegis")
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::CONNECTION, "upgrade")
            .header(header::UPGRADE, "aegis-wrap")
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| self.foreign(error))?;
        let response = self.exchange(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let status = response.status();
            let bytes = response.collect().await.map_err(|error| self.foreign(error))?.to_bytes();
            return Err(self.refused(status, &bytes));
        }
        let by_daemon = match response.headers().get(STARTED_BY).map(HeaderValue::as_bytes) {
            Some(b"daemon") => true,
            Some(b"wrapper") => false,
            _ => return Err(self.foreign("it does not say who starts the server")),
        };
        let upgraded = hyper::upgrade::on(response).await.map_err(|error| self.foreign(error))?;
        Ok(Wrapped { stream: TokioIo::new(upgraded), by_daemon })
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        body: Option<Vec<u8>>,
    ) -> Result<Bytes, ClientError> {
        if let Way::Through(through) = &self.way {
            let reached = match (method, body) {
                (Method::GET, None) => through(path.to_owned()).await,
                _ => Err("it is only read; see `aegis --help` for what a cluster answers".into()),
            };
            let (status, bytes) = reached.map_err(|why| self.unreached(why))?;
            return if status.is_success() { Ok(bytes) } else { Err(self.refused(status, &bytes)) };
        }
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header(header::HOST, "aegis")
            .header(header::CONTENT_TYPE, "application/json")
            .body(Full::new(Bytes::from(body.unwrap_or_default())))
            .map_err(|error| self.foreign(error))?;
        let response = self.exchange(request).await?;
        let status = response.status();
        let bytes = response.collect().await.map_err(|error| self.foreign(error))?.to_bytes();
        if status.is_success() { Ok(bytes) } else { Err(self.refused(status, &bytes)) }
    }

    async fn exchange(
        &self,
        request: Request<Full<Bytes>>,
    ) -> Result<hyper::Response<hyper::body::Incoming>, ClientError> {
        match &self.way {
            Way::Socket => {
                let stream = UnixStream::connect(&self.socket).await.map_err(|source| {
                    ClientError::Away { socket: self.socket.display().to_string(), source }
                })?;
                self.over(stream, request).await
            }
            Way::Tcp(address) => {
                let stream = TcpStream::connect(address).await;
                let stream = stream.map_err(|error| self.unreached(error.to_string()))?;
                self.over(stream, request).await
            }
            Way::Through(_) => Err(self.unreached("nothing is wrapped there".into())),
        }
    }

    async fn over(
        &self,
        stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
        request: Request<Full<Bytes>>,
    ) -> Result<hyper::Response<hyper::body::Incoming>, ClientError> {
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.broken(error))?;
        tokio::spawn(connection.with_upgrades());
        sender.send_request(request).await.map_err(|error| self.broken(error))
    }

    fn unreached(&self, why: String) -> ClientError {
        ClientError::Unreached { place: self.socket.display().to_string(), why }
    }

    /// A connection that ended before its answer, or an answer that is none.
    fn broken(&self, error: hyper::Error) -> ClientError {
        let cut = std::error::Error::source(&error)
            .and_then(|cause| cause.downcast_ref::<std::io::Error>())
            .is_some();
        if cut || error.is_incomplete_message() || error.is_canceled() || error.is_closed() {
            return ClientError::Closed { socket: self.socket.display().to_string() };
        }
        self.foreign(error)
    }

    fn json<T: DeserializeOwned>(&self, bytes: Bytes) -> Result<T, ClientError> {
        serde_json::from_slice(&bytes).map_err(|error| self.foreign(error))
    }

    fn refused(&self, status: StatusCode, bytes: &[u8]) -> ClientError {
        let message = serde_json::from_slice::<Problem>(bytes).map_or_else(
            |_| format!("the daemon at {} answered {status}", self.socket.display()),
            |problem| problem.message,
        );
        ClientError::Refused { status: status.as_u16(), message }
    }

    fn foreign(&self, error: impl std::fmt::Display) -> ClientError {
        ClientError::Foreign {
            socket: self.socket.display().to_string(),
            detail: error.to_string(),
        }
    }
}
