//! The webhook server: TLS with a certificate that is exchanged while it runs, and three paths.
//!
//! Bodies are bounded and read whole before they are judged; what is not an AdmissionReview gets
//! 400, which the API server takes as a refusal.

use std::{convert::Infallible, fmt, sync::Arc, time::Duration};

use aegis_mesh::serve_tls;
use arc_swap::ArcSwapOption;
use axum::{
    Router,
    body::Bytes,
    extract::{DefaultBodyLimit, State},
    response::{IntoResponse, Response},
    routing::post,
};
use http::StatusCode;
use rustls::{
    ServerConfig,
    server::{ClientHello, ResolvesServerCert},
    sign::CertifiedKey,
};
use tokio::{
    net::TcpListener,
    sync::{mpsc, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use crate::{
    admission::{self, Answer, Cluster, Request, Review},
    clock,
    inject::InjectConfig,
    metrics::Metrics,
    refusals::RefusedPod,
};

/// The largest AdmissionReview: an object and its predecessor, each at the API server's own limit.
const MAX_REVIEW_BYTES: usize = 8 << 20;
/// How long a request may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long open requests may take once a stop is asked for.
const DRAIN: Duration = Duration::from_secs(5);

/// The certificate that is served now; none before the Secret was read.
#[derive(Clone, Default)]
pub struct Served(Arc<ArcSwapOption<CertifiedKey>>);

impl Served {
    /// Serves another from the next handshake on.
    pub fn set(&self, certified: CertifiedKey) {
        self.0.store(Some(Arc::new(certified)));
    }

    /// Whether there is one.
    #[must_use]
    pub fn is_set(&self) -> bool {
        self.0.load().is_some()
    }

    /// A TLS configuration that serves it.
    ///
    /// # Errors
    /// When rustls refuses.
    pub fn config(&self) -> Result<ServerConfig, rustls::Error> {
        let mut config = ServerConfig::builder_with_provider(aegis_identity::tls::provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(self.clone()));
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

impl fmt::Debug for Served {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Served").field(&self.is_set()).finish()
    }
}

impl ResolvesServerCert for Served {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.0.load_full()
    }
}

/// What the webhooks judge by.
#[derive(Debug)]
pub struct Webhooks<C> {
    /// How pods are injected at the moment; while there is nothing, they are refused.
    pub inject: watch::Receiver<Option<Arc<InjectConfig>>>,
    /// What the API server puts before users' e-mail addresses.
    pub user_prefix: String,
    /// Who answers questions.
    pub cluster: C,
    /// What is counted.
    pub metrics: Metrics,
    /// Who tells of pods that are refused.
    pub refused: Option<mpsc::Sender<RefusedPod>>,
}

impl<C: Cluster> Webhooks<C> {
    /// The three paths.
    pub fn router(self) -> Router {
        Router::new()
            .route("/inject", post(inject::<C>))
            .route("/validate", post(validate::<C>))
            .route("/answer", post(answer::<C>))
            .layer(DefaultBodyLimit::max(MAX_REVIEW_BYTES))
            .with_state(Arc::new(self))
    }

    /// Says that a pod was refused. What is only tried out leaves no Event.
    fn tell(&self, request: &Request, reason: &str, why: &str) {
        let (namespace, pod) = (&request.namespace, pod_name(request));
        tracing::warn!(namespace, pod, why, "a pod was refused");
        if let Some(refused) = self.refused.as_ref().filter(|_| !request.dry_run)
            && refused.try_send(RefusedPod::of(request, reason, why)).is_err()
        {
            tracing::warn!(namespace, pod, "there is no Event about it: too many wait to be told");
        }
    }

    fn count(&self, webhook: &str, code: StatusCode, started: Instant) {
        self.metrics.webhook_requests.with_label_values(&[webhook, code.as_str()]).inc();
        self.metrics
            .webhook_seconds
            .with_label_values(&[webhook])
            .observe(started.elapsed().as_secs_f64());
    }
}

fn read(body: &[u8]) -> Result<Request, String> {
    match serde_json::from_slice::<Review>(body) {
        Ok(review) => Ok(review.request),
        Err(error) => Err(format!("this is not an AdmissionReview with a request: {error}")),
    }
}

fn written(request: &Request, answer: &Answer) -> Response {
    axum::Json(answer.review(&request.uid)).into_response()
}

async fn inject<C: Cluster>(State(hooks): State<Arc<Webhooks<C>>>, body: Bytes) -> Response {
    let started = Instant::now();
    let response = match read(&body) {
        Err(message) => (StatusCode::BAD_REQUEST, message).into_response(),
        Ok(request) => {
            let config = hooks.inject.borrow().clone();
            let answer = admission::mutate(&request, config.as_deref());
            if let Some((result, reason)) = answer.injection {
                hooks.metrics.injections.with_label_values(&[result, reason]).inc();
                if let Some(message) = &answer.refused {
                    hooks.tell(&request, reason, message);
                }
            }
            written(&request, &answer)
        }
    };
    hooks.count("inject", response.status(), started);
    response
}

/// A pod that a controller makes has no name yet when it is admitted.
fn pod_name(request: &Request) -> &str {
    let field = |name: &str| {
        request.object.pointer(&format!("/metadata/{name}")).and_then(serde_json::Value::as_str)
    };
    field("name").or_else(|| field("generateName")).unwrap_or_default()
}

async fn validate<C: Cluster>(State(hooks): State<Arc<Webhooks<C>>>, body: Bytes) -> Response {
    let started = Instant::now();
    let response = match read(&body) {
        Err(message) => (StatusCode::BAD_REQUEST, message).into_response(),
        Ok(request) => {
            let answer = admission::validate(&request, &hooks.user_prefix, &hooks.cluster).await;
            written(&request, &answer)
        }
    };
    hooks.count("validate", response.status(), started);
    response
}

async fn answer<C: Cluster>(State(hooks): State<Arc<Webhooks<C>>>, body: Bytes) -> Response {
    let started = Instant::now();
    let response = match read(&body) {
        Err(message) => (StatusCode::BAD_REQUEST, message).into_response(),
        Ok(request) => written(&request, &admission::approval::stamp(&request, clock::now())),
    };
    hooks.count("answer", response.status(), started);
    response
}

/// Serves until `stop`; then lets open requests end.
///
/// # Errors
/// When TLS cannot be configured.
pub async fn serve(
    listener: TcpListener,
    served: &Served,
    router: Router,
    stop: CancellationToken,
) -> Result<(), rustls::Error> {
    let service = tower::service_fn(move |request: http::Request<hyper::body::Incoming>| {
        let answer = tower::ServiceExt::oneshot(router.clone(), request);
        async move {
            let late = |_| Ok::<_, Infallible>(StatusCode::REQUEST_TIMEOUT.into_response());
            tokio::time::timeout(PATIENCE, answer).await.unwrap_or_else(late)
        }
    });
    serve_tls(listener, served.config()?, None, service, DRAIN, stop).await;
    Ok(())
}

#[cfg(test)]
mod tests {
    use aegis_core::{Timestamp, thresholds::Thresholds};
    use serde_json::{Value, json};
    use tokio::net::TcpStream;

    use super::*;
    use crate::{
        admission::{Permission, User},
        certificate,
    };

    struct Yes;

    impl Cluster for Yes {
        async fn may(&self, _: &User, _: Permission, _: &str, _: &str) -> Result<bool, String> {
            Ok(true)
        }

        async fn thresholds(&self) -> Result<Thresholds, String> {
            Ok(Thresholds::default())
        }
    }

    fn hooks() -> Webhooks<Yes> {
        let config: InjectConfig = serde_json::from_value(json!({ "image": "aegis:1" })).unwrap();
        Webhooks {
            inject: watch::channel(Some(Arc::new(config))).1,
            user_prefix: String::new(),
            cluster: Yes,
            metrics: Metrics::register().unwrap(),
            refused: None,
        }
    }

    async fn ask(path: &str, body: impl Into<axum::body::Body>) -> (StatusCode, Value) {
        ask_of(hooks(), path, body).await
    }

    async fn ask_of(
        hooks: Webhooks<Yes>,
        path: &str,
        body: impl Into<axum::body::Body>,
    ) -> (StatusCode, Value) {
        let request = http::Request::post(path)
            .header("content-type", "application/json")
            .body(body.into())
            .unwrap();
        let response = tower::ServiceExt::oneshot(hooks.router(), request).await.unwrap();
        let status = response.status();
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        (status, serde_json::from_slice(&body).unwrap_or_default())
    }

    fn pod_review(spec: Value) -> String {
        json!({ "request": {
            "uid": "u", "kind": { "kind": "Pod" }, "operation": "CREATE", "userInfo": {},
            "object": { "metadata": {}, "spec": spec },
        }})
        .to_string()
    }

    #[tokio::test]
    async fn a_pod_gets_a_patch_or_a_reason() {
        let sound = json!({ "containers": [{ "name": "app", "image": "a" }] });
        let (status, answer) = ask("/inject", pod_review(sound)).await;
        assert_eq!((status, &answer["response"]["allowed"]), (StatusCode::OK, &json!(true)));
        assert_eq!(answer["response"]["patchType"], "JSONPatch");
        let (_, answer) =
            ask("/inject", pod_review(json!({ "hostNetwork": true, "containers": [] }))).await;
        assert_eq!(answer["response"]["allowed"], false);
        assert!(answer["response"]["status"]["message"].as_str().unwrap().contains("hostNetwork"));
    }

    /// The sidecar would not know whom to believe; a pod without one would be ungoverned.
    #[tokio::test]
    async fn without_the_cas_roots_there_is_no_pod() {
        let (tell, mut told) = crate::refusals::channel();
        let hooks =
            || Webhooks { inject: watch::channel(None).1, refused: Some(tell.clone()), ..hooks() };
        let counted = hooks();
        let metrics = counted.metrics.clone();
        let sound = json!({ "containers": [{ "name": "app", "image": "a" }] });
        let (status, answer) = ask_of(counted, "/inject", pod_review(sound.clone())).await;
        assert_eq!((status, &answer["response"]["allowed"]), (StatusCode::OK, &json!(false)));
        let message = "aegis: the CA's trust bundle is not there yet; try again";
        assert_eq!(answer["response"]["status"]["message"], message);
        assert!(answer["response"]["patch"].is_null());
        let counter = metrics.injections.with_label_values(&["refused", "NoTrustBundle"]);
        assert_eq!(counter.get(), 1);
        assert_eq!(told.try_recv().unwrap().reason, "NoTrustBundle");
        // Who only tries it out leaves nothing behind.
        let review = pod_review(sound).replace("\"operation\"", "\"dryRun\":true,\"operation\"");
        assert_eq!(ask_of(hooks(), "/inject", review).await.1["response"]["allowed"], false);
        assert!(told.try_recv().is_err());
    }

    #[tokio::test]
    async fn what_is_no_review_is_refused() {
        let deep = format!("{}{}", "[".repeat(100_000), "]".repeat(100_000));
        for body in ["", "{}", "null", "{\"request\":{}}", &deep] {
            assert_eq!(ask("/inject", body.to_owned()).await.0, StatusCode::BAD_REQUEST);
        }
        let large = " ".repeat(MAX_REVIEW_BYTES + 1);
        assert_eq!(ask("/validate", large).await.0, StatusCode::PAYLOAD_TOO_LARGE);
    }

    /// Another certificate is served from the next handshake on; a connection that is open stays.
    #[tokio::test]
    async fn a_certificate_is_exchanged_while_it_runs() {
        let names = vec!["localhost".to_owned()];
        let now = crate::clock::now();
        let made = |now: Timestamp| certificate::step(None, &names, now).unwrap().held;
        let (first, second) = (made(now), made(now));
        let served = Served::default();
        assert!(!served.is_set());
        served.set(first.leaf.certified().unwrap());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let stop = CancellationToken::new();
        let (server, stopping) = (served.clone(), stop.clone());
        let serving =
            tokio::spawn(async move { serve(listener, &server, hooks().router(), stopping).await });

        let connect = async |bundle: &str| {
            use rustls::pki_types::{CertificateDer, pem::PemObject as _};
            let mut roots = rustls::RootCertStore::empty();
            roots.add(CertificateDer::from_pem_slice(bundle.as_bytes()).unwrap()).unwrap();
            let config =
                rustls::ClientConfig::builder_with_provider(aegis_identity::tls::provider())
                    .with_safe_default_protocol_versions()
                    .unwrap()
                    .with_root_certificates(roots)
                    .with_no_client_auth();
            let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
            let stream = TcpStream::connect(address).await.unwrap();
            connector.connect("localhost".try_into().unwrap(), stream).await
        };
        connect(&first.bundle_pem()).await.unwrap();
        assert!(connect(&second.bundle_pem()).await.is_err());
        served.set(second.leaf.certified().unwrap());
        connect(&second.bundle_pem()).await.unwrap();
        assert!(connect(&first.bundle_pem()).await.is_err());
        stop.cancel();
        serving.await.unwrap().unwrap();
    }
}
