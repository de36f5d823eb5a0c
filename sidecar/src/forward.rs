//! Forwarding: what a permit owns goes to the upstream, byte for byte.

use std::{
    path::PathBuf,
    sync::Arc,
    time::{Duration, SystemTime},
};

use aegis_core::{decision::Reason, manifest::ManifestError};
use aegis_identity::tls::{Roots, https_client_config};
use aegis_kernel::Permit;
use aegis_protocol::{
    jsonrpc::{Id, Message, RawMessage},
    mcp::ClientMessage,
    sse::SseDecoder,
};
use aegis_resources::{AgentUpstreamSpec, upstream::Credential};
use bytes::Bytes;
use http::{
    HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri, header,
    uri::PathAndQuery,
};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnector;
use hyper_util::{
    client::legacy::{Client, connect::HttpConnector},
    rt::{TokioExecutor, TokioTimer},
};
use parking_lot::Mutex;

use crate::{
    direct::{self, Direct},
    exchange::Exchange,
    grant::Told,
    listing::{Ask, Unlisted},
    oauth,
    relay::{self, content_type},
    resolve::{Reachable, Resolver},
    route::{Caller, Route},
};

/// How long a connection to an upstream may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a connection to an application is kept without a call. Common servers close theirs after
/// five seconds, and a call that meets the close is lost.
const DIRECT_IDLE_TIMEOUT: Duration = Duration::from_secs(4);

/// Where an HTTP upstream is, and how it is reached.
pub struct Target {
    client: Reach,
    uri: Uri,
    host: HeaderValue,
    credential: Option<Secret>,
}

/// How an upstream is reached, with the connections that are kept.
enum Reach {
    /// By its URL.
    Web(Client<HttpsConnector<HttpConnector<Resolver>>, Full<Bytes>>),
    /// At an address that was caught.
    Direct(Direct, Client<Direct, Full<Bytes>>),
}

/// A credential with its last known value.
struct Secret {
    header: HeaderName,
    prefix: String,
    file: PathBuf,
    cached: Mutex<Option<(SystemTime, HeaderValue)>>,
}

impl std::fmt::Debug for Target {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").field("uri", &self.uri).finish_non_exhaustive()
    }
}

/// Headers that belong to one connection (RFC 9110 §7.6.1), and those that Aegis sets itself.
static NOT_FORWARDED: [HeaderName; 14] = [
    header::CONNECTION,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    header::HOST,
    header::CONTENT_LENGTH,
    header::ACCEPT_ENCODING,
    header::PROXY_AUTHORIZATION,
    header::PROXY_AUTHENTICATE,
    header::EXPECT,
    header::FORWARDED,
];

/// Leaves of `headers` what may travel on. Nobody outside speaks for Aegis, so `x-aegis-*` goes too.
pub fn end_to_end(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in NOT_FORWARDED.iter().chain(named.iter().filter(|name| !is_judged(name))) {
        headers.remove(name);
    }
    let own: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("x-aegis-")).cloned().collect();
    for name in own {
        headers.remove(name);
    }
}

/// Whether the message was judged by this header too: no client takes it away afterwards by naming
/// it in `Connection`.
fn is_judged(name: &HeaderName) -> bool {
    let judged = ["mcp-", "a2a-", "x-a2a-"];
    name == header::CONTENT_TYPE || judged.iter().any(|prefix| name.as_str().starts_with(prefix))
}

impl Target {
    /// A target for an upstream with a URL.
    ///
    /// # Errors
    /// One sentence on what cannot be used.
    pub fn new(spec: &AgentUpstreamSpec, reachable: Reachable) -> Result<Self, String> {
        let url = spec.url.as_deref().unwrap_or_default();
        let uri: Uri = url.parse().map_err(|error| format!("`spec.url` is not a URL: {error}"))?;
        let authority = uri.authority().ok_or("`spec.url` has no host")?;
        let host = HeaderValue::from_str(authority.as_str())
            .map_err(|error| format!("`spec.url`: {error}"))?;
        if !reachable.allows_host(authority.host()) {
            return Err(format!("`spec.url` leads to {authority}, which is this pod or its node"));
        }
        let mut tcp = HttpConnector::new_with_resolver(Resolver::new(reachable));
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(CONNECT_TIMEOUT));
        let connector = hyper_rustls::HttpsConnectorBuilder::new()
            .with_tls_config(tls(spec)?)
            .https_or_http()
            .enable_http1()
            .wrap_connector(tcp);
        let client = Reach::Web(pooled().build(connector));
        let credential = spec.credential.as_ref().map(Secret::new).transpose()?;
        Ok(Self { client, uri, host, credential })
    }

    /// A target at an address that was caught, under the name and the path that the client asked for.
    ///
    /// # Errors
    /// When the path is none.
    pub(crate) fn direct(direct: Direct, host: HeaderValue, path: &str) -> Result<Self, Reason> {
        let uri = Uri::builder().scheme("http").authority("direct").path_and_query(path).build();
        let uri = uri.map_err(|_| Reason::MalformedMessage)?;
        let idle = DIRECT_IDLE_TIMEOUT;
        let client = pooled().pool_idle_timeout(idle).build(direct.clone());
        Ok(Self { client: Reach::Direct(direct, client), uri, host, credential: None })
    }

    /// The path of the upstream, under which Aegis serves it too.
    #[must_use]
    pub fn path(&self) -> &str {
        self.uri.path()
    }

    /// The URL, for people.
    #[must_use]
    pub fn url(&self) -> String {
        self.uri.to_string()
    }

    /// Reads another document of the upstream's host, without the credential.
    ///
    /// # Errors
    /// As [`Target::send`].
    pub async fn get(&self, path: &str, timeout: Duration) -> Result<Response<Incoming>, Reason> {
        let mut parts = self.uri.clone().into_parts();
        parts.path_and_query = path.parse().ok();
        let uri = Uri::from_parts(parts).map_err(|_| Reason::MalformedMessage)?;
        let mut request = Request::new(Full::new(Bytes::new()));
        *request.uri_mut() = uri;
        let headers = request.headers_mut();
        headers.insert(header::HOST, self.host.clone());
        headers.insert(header::ACCEPT, HeaderValue::from_static("application/json"));
        self.exchange(request, Told::default(), timeout).await
    }

    /// Sends one request.
    ///
    /// # Errors
    /// Why there is no answer.
    pub async fn send(
        &self,
        method: Method,
        headers: HeaderMap,
        body: Bytes,
        timeout: Duration,
    ) -> Result<Response<Incoming>, Reason> {
        self.send_told(method, headers, body, Told::default(), timeout).await
    }

    /// Sends one request, telling another sidecar of the approval that was used for it.
    pub(crate) async fn send_told(
        &self,
        method: Method,
        mut headers: HeaderMap,
        body: Bytes,
        told: Told,
        timeout: Duration,
    ) -> Result<Response<Incoming>, Reason> {
        end_to_end(&mut headers);
        headers.insert(header::HOST, self.host.clone());
        if method == Method::POST {
            // As it was read, whatever the client called it.
            headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        }
        self.own_send(of_parts(method, self.uri.clone(), headers, body), told, timeout).await
    }

    /// Sends one request to another path of the upstream's host, as the client named it, telling another
    /// sidecar of the approval that was used for it.
    ///
    /// # Errors
    /// As [`Target::send`].
    pub(crate) async fn send_to(
        &self,
        method: Method,
        path: PathAndQuery,
        mut headers: HeaderMap,
        (body, told): (Bytes, Told),
        timeout: Duration,
    ) -> Result<Response<Incoming>, Reason> {
        end_to_end(&mut headers);
        headers.insert(header::HOST, self.host.clone());
        let mut parts = self.uri.clone().into_parts();
        parts.path_and_query = Some(path);
        let uri = Uri::from_parts(parts).map_err(|_| Reason::MalformedMessage)?;
        self.own_send(of_parts(method, uri, headers, body), told, timeout).await
    }

    async fn own_send(
        &self,
        mut request: Request<Full<Bytes>>,
        told: Told,
        timeout: Duration,
    ) -> Result<Response<Incoming>, Reason> {
        if let Some(credential) = &self.credential {
            request.headers_mut().insert(credential.header.clone(), credential.value()?);
        }
        self.exchange(request, told, timeout).await
    }

    async fn exchange(
        &self,
        mut request: Request<Full<Bytes>>,
        told: Told,
        timeout: Duration,
    ) -> Result<Response<Incoming>, Reason> {
        type Failed = Box<dyn std::error::Error + Send + Sync>;
        let answering = async {
            match &self.client {
                Reach::Direct(direct, _) if told.is_granted() => {
                    let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
                    *request.uri_mut() = Uri::try_from(path)?;
                    Ok(direct.send(request, &told).await?)
                }
                Reach::Web(client) => Ok::<_, Failed>(client.request(request).await?),
                Reach::Direct(direct, client) => {
                    direct.address(request.headers_mut());
                    direct.tell(request.headers_mut(), &told.carried)?;
                    Ok(direct::ask(client, request).await?)
                }
            }
        };
        match tokio::time::timeout(timeout, answering).await {
            Err(_) => Err(Reason::UpstreamTimeout),
            Ok(Ok(response)) => Ok(response),
            Ok(Err(error)) => {
                tracing::warn!(url = %self.uri, error = %chain(&*error), "the upstream did not answer");
                Err(if refuses_manifest(&*error) {
                    Reason::ManifestRefused
                } else if is_tls(&*error) {
                    Reason::UpstreamUnverified
                } else {
                    Reason::UpstreamUnavailable
                })
            }
        }
    }
}

fn of_parts(method: Method, uri: Uri, headers: HeaderMap, body: Bytes) -> Request<Full<Bytes>> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = uri;
    *request.headers_mut() = headers;
    request
}

fn pooled() -> hyper_util::client::legacy::Builder {
    let mut builder = Client::builder(TokioExecutor::new());
    builder
        .pool_timer(TokioTimer::new())
        .pool_idle_timeout(Duration::from_secs(30))
        .pool_max_idle_per_host(64);
    builder
}

/// Forwards the message that `permit` owns and opens its exchange.
///
/// # Errors
/// Why the upstream gave no answer, with the exchange to conclude.
pub async fn forward(
    route: &Arc<Route>,
    caller: &Caller,
    permit: Permit<ClientMessage>,
    mut headers: HeaderMap,
) -> Result<(Response<Incoming>, Exchange), (Reason, Exchange)> {
    let told = Told::of(permit.receipt(), &caller.carried);
    let (bytes, exchange) = Exchange::open(Arc::clone(route), caller.clone(), permit);
    let timeout = Duration::from_secs(route.spec.limits.answer_timeout_secs.into());
    let Some(target) = &route.target else { return Err((Reason::UpstreamUnavailable, exchange)) };
    caller.span.pass_on(&mut headers);
    match target.send_told(Method::POST, headers, bytes, told, timeout).await {
        Ok(response) => Ok((response, exchange)),
        Err(reason) => Err((reason, exchange)),
    }
}

/// The upstream as a client's request reaches it: with its session and its credentials.
pub(crate) struct Peer<'a> {
    pub(crate) route: &'a Route,
    pub(crate) headers: &'a HeaderMap,
}

impl Ask for Peer<'_> {
    async fn ask(&self, id: &Id, request: Bytes) -> Result<Bytes, Unlisted> {
        let target = self.route.target.as_ref().ok_or(Reason::UpstreamUnavailable)?;
        let timeout = Duration::from_secs(self.route.spec.limits.answer_timeout_secs.into());
        let headers = self.own_headers();
        let response = target.send(Method::POST, headers, request, timeout).await?;
        let (head, body) = response.into_parts();
        if !head.status.is_success() {
            let challenge = head.headers.get(header::WWW_AUTHENTICATE);
            let challenge = challenge.and_then(|value| value.to_str().ok());
            let challenge = challenge.and_then(|text| oauth::challenge(self.route, text));
            // A client that is asked for no token is not told that one is missing.
            if head.status == StatusCode::UNAUTHORIZED && challenge.is_none() {
                return Err(Reason::UpstreamUnavailable.into());
            }
            let answered = head.status.is_client_error().then_some((head.status, challenge));
            return Err(Unlisted { answered, ..Reason::ToolsUnlisted.into() });
        }
        if head.headers.contains_key(header::CONTENT_ENCODING) {
            return Err(Reason::UpstreamMalformed.into());
        }
        match content_type(&head.headers).as_str() {
            "application/json" => Ok(relay::collect(self.route, body).await?),
            "text/event-stream" => Ok(self.answer_in(body, id).await?),
            _ => Err(Reason::UpstreamMalformed.into()),
        }
    }
}

impl Peer<'_> {
    /// The client's headers, saying what Aegis' own request is.
    fn own_headers(&self) -> HeaderMap {
        let mut headers = self.headers.clone();
        let mirrors: Vec<HeaderName> = headers
            .keys()
            .filter(|name| name.as_str() == "mcp-name" || name.as_str().starts_with("mcp-param-"))
            .cloned()
            .collect();
        for name in mirrors {
            headers.remove(name);
        }
        if headers.contains_key("mcp-method") {
            headers.insert("mcp-method", HeaderValue::from_static("tools/list"));
        }
        let both = HeaderValue::from_static("application/json, text/event-stream");
        headers.insert(header::ACCEPT, both);
        headers
    }

    /// The answer within a stream. What else the server says there is addressed to nobody.
    async fn answer_in(&self, mut body: Incoming, id: &Id) -> Result<Bytes, Reason> {
        let limits = self.route.response_limits();
        let mut decoder = SseDecoder::new(limits.size);
        loop {
            while let Some(event) = decoder.next_event().map_err(|_| Reason::UpstreamTooLarge)? {
                let Some(data) = event.data().filter(|data| !data.is_empty()) else { continue };
                let raw = RawMessage::parse(data, limits).map_err(|_| Reason::UpstreamMalformed)?;
                if let Message::Response { id: Some(of), .. } = &raw.message
                    && of == id
                {
                    return Ok(raw.bytes);
                }
            }
            match body.frame().await {
                Some(Ok(frame)) => decoder.push(&frame.into_data().unwrap_or_default()),
                Some(Err(_)) | None => return Err(Reason::UpstreamUnavailable),
            }
        }
    }
}

impl Secret {
    fn new(spec: &Credential) -> Result<Self, String> {
        let header = spec.header.parse().map_err(|_| {
            format!("`spec.credential.header` is `{}`, which is not a header name", spec.header)
        })?;
        let secret = Self {
            header,
            prefix: spec.prefix.clone(),
            file: spec.file.clone(),
            cached: Mutex::new(None),
        };
        secret
            .read()
            .map_err(|error| format!("`spec.credential.file` {}: {error}", spec.file.display()))?;
        Ok(secret)
    }

    fn read(&self) -> Result<HeaderValue, String> {
        let text = std::fs::read_to_string(&self.file).map_err(|error| error.to_string())?;
        let mut value = HeaderValue::from_str(&format!("{}{}", self.prefix, text.trim()))
            .map_err(|_| "holds characters that a header cannot carry".to_owned())?;
        value.set_sensitive(true);
        Ok(value)
    }

    /// The header's value; read anew when the file has changed.
    fn value(&self) -> Result<HeaderValue, Reason> {
        let modified = std::fs::metadata(&self.file).and_then(|meta| meta.modified());
        let modified = modified.unwrap_or(SystemTime::UNIX_EPOCH);
        let mut cached = self.cached.lock();
        if let Some((at, value)) = cached.as_ref()
            && *at == modified
        {
            return Ok(value.clone());
        }
        let value = self.read().map_err(|error| {
            tracing::error!(file = %self.file.display(), error, "the credential cannot be read");
            Reason::UpstreamUnverified
        })?;
        *cached = Some((modified, value.clone()));
        Ok(value)
    }
}

/// Public roots, or the upstream's own.
fn tls(spec: &AgentUpstreamSpec) -> Result<rustls::ClientConfig, String> {
    let roots = spec.roots.clone().map_or(Roots::WebPki, Roots::Pem);
    https_client_config(&roots).map_err(|error| format!("`spec.roots`: {error}"))
}

/// Whether TLS failed.
pub(crate) fn is_tls(error: &(dyn std::error::Error + 'static)) -> bool {
    has_cause::<rustls::Error>(error)
}

/// Whether two sidecars do not take each other's manifests.
pub(crate) fn refuses_manifest(error: &(dyn std::error::Error + 'static)) -> bool {
    has_cause::<ManifestError>(error)
}

/// Whether an error of that kind is among the causes. An I/O error's `source` skips the error that it
/// wraps, which is looked at itself.
fn has_cause<E: std::error::Error + 'static>(error: &(dyn std::error::Error + 'static)) -> bool {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<E>() {
            return true;
        }
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = match wrapped {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    false
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    text
}
