//! `http_request`: one request, decided by its address, and sent to a public place.
//!
//! A name is resolved after the decision, because the question to a name server already tells somebody something. Every
//! address that it leads to has to be one of the public internet, and the connection goes to one of those very
//! addresses: nothing is resolved twice. Redirects are not followed; each is a request of its own, with its own
//! decision. No proxy, no cookies, no credentials but what the call brings. [`post`] sends notices on the same way.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use aegis_core::{address, decision::Reason};
use aegis_identity::tls::{Roots, https_client_config};
use aegis_protocol::mcp::uri;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Full, LengthLimitError, Limited};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use rustls::pki_types::ServerName;
use serde_json::{Map, json};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpStream, lookup_host},
};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::{
    answer::Answer,
    catalogue::{HttpRequest, Verb},
    daemon::Question,
    server::{Setup, Stop},
};

/// The most of an answer that is read. Bytes.
const MAX_ANSWER: usize = 1 << 20;
/// How long all of it may take.
const TIMEOUT: Duration = Duration::from_secs(30);
/// How many addresses of a name are tried.
const TRIES: usize = 4;
/// The most header fields of a request.
const MAX_HEADERS: usize = 32;
/// What the connection itself says.
const OF_THE_CONNECTION: [&str; 9] = [
    "connection",
    "content-length",
    "expect",
    "host",
    "keep-alive",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];
/// What is told of an answer's header.
const TOLD: [HeaderName; 6] = [
    header::CONTENT_TYPE,
    header::LOCATION,
    header::ETAG,
    header::LAST_MODIFIED,
    header::RETRY_AFTER,
    header::LINK,
];

/// A host and port that requests may go to wherever they are: named by who configured these tools.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Reach {
    host: String,
    port: u16,
}

impl FromStr for Reach {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = "not HOST:PORT, such as localhost:3000";
        let (host, port) = text.rsplit_once(':').ok_or(wrong)?;
        let port = port.parse().map_err(|_| wrong)?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
        if host.is_empty() { Err(wrong) } else { Ok(Self { host, port }) }
    }
}

/// Where a request goes.
#[derive(Debug)]
struct Target {
    /// In its one spelling, as it is judged.
    url: String,
    tls: bool,
    host: String,
    port: u16,
    request: Request<Full<Bytes>>,
}

/// Why a request is none.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RequestError {
    #[error(
        "the address must begin with http:// or https:// and a host, without a user, a password and a fragment, in its one spelling"
    )]
    Url,
    #[error(transparent)]
    Uri(#[from] uri::UriError),
    #[error("a header field is malformed, is the connection's own, or is one too many")]
    Header,
}

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FetchError {
    #[error("the host's name cannot be resolved")]
    Name,
    #[error(
        "the host leads to an address that is not of the public internet; whoever configured this can allow it by `--reach HOST:PORT`, for notices `--notify-reach`"
    )]
    Private,
    #[error("the host cannot be reached: {0}")]
    Connect(std::io::Error),
    #[error("the host's certificate cannot be checked")]
    Tls,
    #[error("the answer is not HTTP, or not whole")]
    Answer,
    #[error("the answer is larger than {} KiB", MAX_ANSWER >> 10)]
    TooLarge,
    #[error("there was no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
}

/// Why a notice was not taken.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PostError {
    /// Its address is none.
    #[error(transparent)]
    Request(#[from] RequestError),
    /// Everybody on the way could read it, and its address is a secret.
    #[error("it is not https://, and not of a host that was named as local")]
    Plain,
    /// There was no answer.
    #[error(transparent)]
    Fetch(#[from] FetchError),
}

/// Whether notices may be sent to an address, as far as its text tells; the host, to name it by.
pub(crate) fn webhook(url: &str, reach: &[Reach]) -> Result<String, PostError> {
    let target = Target::new(&notice(url, String::new()))?;
    if !target.tls && !target.is_within(reach) {
        return Err(PostError::Plain);
    }
    Ok(target.host)
}

/// Sends JSON to a public place, or to one of `reach`, and says how it was taken. The answer's body is not read.
pub(crate) async fn post(
    url: &str,
    json: String,
    reach: &[Reach],
) -> Result<StatusCode, PostError> {
    webhook(url, reach)?;
    let target = Target::new(&notice(url, json))?;
    let sent = tokio::time::timeout(TIMEOUT, target.send(reach)).await;
    Ok(sent.unwrap_or(Err(FetchError::Timeout))?.status())
}

fn notice(url: &str, json: String) -> HttpRequest {
    let headers = BTreeMap::from([("content-type".to_owned(), "application/json".to_owned())]);
    HttpRequest { url: url.to_owned(), method: Verb::Post, headers, body: Some(json) }
}

/// Asks, sends, and returns what came back.
pub(super) async fn run(
    setup: &Setup,
    call: HttpRequest,
    gone: &CancellationToken,
) -> Result<Answer, Stop> {
    let target = Target::new(&call)
        .map_err(|error| Stop::Own(Reason::MalformedMessage, error.to_string()))?;
    let mut arguments = Map::new();
    arguments.insert("method".into(), json!(call.method.as_str()));
    if !call.headers.is_empty() {
        let lower = |(name, value): (&String, _)| (name.to_ascii_lowercase(), value);
        let headers: BTreeMap<String, &String> = call.headers.iter().map(lower).collect();
        arguments.insert("headers".into(), json!(headers));
    }
    if let Some(body) = &call.body {
        arguments.insert("body".into(), json!(body));
    }
    let id = target.url.clone();
    let question = Question { method: "http.request", on: "url", id, arguments };
    let connection = setup.daemon.connect().await?;
    let act = async {
        let fetched = tokio::time::timeout(TIMEOUT, target.fetch(&setup.reach)).await;
        match fetched.unwrap_or(Err(FetchError::Timeout)) {
            Ok(text) => Answer::done(text),
            Err(error) => Answer::failed(error),
        }
    };
    setup.govern(connection, &question, gone, act).await
}

impl Target {
    fn new(call: &HttpRequest) -> Result<Self, RequestError> {
        let mut url = uri::canonical(&call.url)?.into_owned();
        let parsed: Uri = url.parse().map_err(|_| RequestError::Url)?;
        let tls = match parsed.scheme_str() {
            Some("http") => false,
            Some("https") => true,
            _ => return Err(RequestError::Url),
        };
        let authority = parsed.authority().ok_or(RequestError::Url)?;
        let host = authority.host().trim_start_matches('[').trim_end_matches(']').to_owned();
        if host.is_empty() || authority.as_str().contains('@') || url.contains('#') {
            return Err(RequestError::Url);
        }
        let usual = if tls { 443 } else { 80 };
        let port = authority.port_u16().unwrap_or(usual);
        if !is_plain(&host)
            || authority.as_str().ends_with(':')
            || (authority.port().is_some() && port == usual)
        {
            return Err(RequestError::Url);
        }
        // What is sent for no path is `/`; behind the host, `?` would hide it from who compares paths.
        let behind =
            url.split_once("://").and_then(|(_, rest)| rest.get(authority.as_str().len()..));
        match behind {
            Some("") => url.push('/'),
            Some(path) if path.starts_with('/') => {}
            _ => return Err(RequestError::Url),
        }
        let path = parsed.path_and_query().map_or("/", |path| path.as_str());
        let body = Bytes::from(call.body.clone().unwrap_or_default());
        let mut request = Request::new(Full::new(body));
        *request.method_mut() = call.method.as_str().parse().map_err(|_| RequestError::Header)?;
        *request.uri_mut() = path.parse().map_err(|_| RequestError::Url)?;
        *request.headers_mut() = headers(&call.headers)?;
        let named = HeaderValue::from_str(authority.as_str()).map_err(|_| RequestError::Url)?;
        request.headers_mut().insert(header::HOST, named);
        let own = HeaderValue::from_static(concat!("aegis/", env!("CARGO_PKG_VERSION")));
        request.headers_mut().entry(header::USER_AGENT).or_insert(own);
        Ok(Self { url, tls, host, port, request })
    }

    /// Whether who configured this has named the place.
    fn is_within(&self, reach: &[Reach]) -> bool {
        reach.iter().any(|one| one.host == self.host.to_ascii_lowercase() && one.port == self.port)
    }

    async fn fetch(self, reach: &[Reach]) -> Result<String, FetchError> {
        read(self.send(reach).await?).await
    }

    async fn send(self, reach: &[Reach]) -> Result<Response<Incoming>, FetchError> {
        let found = lookup_host((self.host.as_str(), self.port)).await;
        let addresses: Vec<SocketAddr> = found.map_err(|_| FetchError::Name)?.collect();
        if !self.is_within(reach) && !all_public(&addresses) {
            return Err(FetchError::Private);
        }
        let stream = connect(&addresses).await?;
        if !self.tls {
            return exchange(stream, self.request).await;
        }
        let config = https_client_config(&Roots::WebPki).map_err(|_| FetchError::Tls)?;
        let name = ServerName::try_from(self.host).map_err(|_| FetchError::Tls)?;
        let connector = TlsConnector::from(Arc::new(config));
        let stream = connector.connect(name, stream).await.map_err(|_| FetchError::Tls)?;
        exchange(stream, self.request).await
    }
}

/// Whether a host is in the one spelling that it has: without the dot of the root, and an address as four
/// numbers, not as one (`2130706433`) or in other digits (`0x7f.1`).
fn is_plain(host: &str) -> bool {
    if host.contains(':') {
        // An address of IPv6, in brackets.
        return true;
    }
    let last = host.rsplit('.').next().unwrap_or_default();
    let numeric = last.starts_with("0x") || last.bytes().all(|b| b.is_ascii_digit());
    !last.is_empty() && (!numeric || host.parse::<Ipv4Addr>().is_ok())
}

/// Whether a name leads to public addresses and to no other.
fn all_public(addresses: &[SocketAddr]) -> bool {
    !addresses.is_empty() && addresses.iter().all(|to| address::is_public(to.ip()))
}

fn headers(given: &BTreeMap<String, String>) -> Result<HeaderMap, RequestError> {
    if given.len() > MAX_HEADERS {
        return Err(RequestError::Header);
    }
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        let name: HeaderName = name.parse().map_err(|_| RequestError::Header)?;
        let value: HeaderValue = value.parse().map_err(|_| RequestError::Header)?;
        let taken = name.as_str().starts_with("proxy-")
            || OF_THE_CONNECTION.contains(&name.as_str())
            || headers.contains_key(&name);
        if taken {
            return Err(RequestError::Header);
        }
        headers.insert(name, value);
    }
    Ok(headers)
}

/// A connection to the first of these that takes one.
async fn connect(addresses: &[SocketAddr]) -> Result<TcpStream, FetchError> {
    let mut failed = FetchError::Name;
    for address in addresses.iter().take(TRIES) {
        match TcpStream::connect(address).await {
            Ok(stream) => return Ok(stream),
            Err(error) => failed = FetchError::Connect(error),
        }
    }
    Err(failed)
}

async fn exchange(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Response<Incoming>, FetchError> {
    let handshake = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await;
    let (mut sender, connection) = handshake.map_err(|_| FetchError::Answer)?;
    tokio::spawn(connection);
    sender.send_request(request).await.map_err(|_| FetchError::Answer)
}

/// The status, what a model can use of the header, and the body.
async fn read(response: Response<Incoming>) -> Result<String, FetchError> {
    let (head, body) = response.into_parts();
    let body = Limited::new(body, MAX_ANSWER).collect().await.map_err(|error| {
        if error.is::<LengthLimitError>() { FetchError::TooLarge } else { FetchError::Answer }
    })?;
    let mut text = format!("HTTP {}\n", head.status);
    for name in TOLD {
        for value in head.headers.get_all(&name) {
            if let Ok(value) = value.to_str() {
                text.push_str(&format!("{name}: {value}\n"));
            }
        }
    }
    let bytes = body.to_bytes();
    text.push('\n');
    match std::str::from_utf8(&bytes) {
        Ok(body) => text.push_str(body),
        Err(_) => text.push_str(&format!("[{} bytes that are no UTF-8 text]", bytes.len())),
    }
    Ok(text)
}

#[cfg(test)]
mod tests;
