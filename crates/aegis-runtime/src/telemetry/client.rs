//! Sends OTLP by the HTTP and TLS that Aegis has anyway: no redirects, no proxy, no cookies.

use std::{env, future::Future, pin::Pin, time::Duration};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::{
    client::legacy::{Client as Pooled, connect::HttpConnector},
    rt::TokioExecutor,
};
use opentelemetry_http::{HttpClient, HttpError};
use rustls::{
    ClientConfig, RootCertStore,
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, pem::PemObject as _},
};
use tokio::runtime::{Builder, Runtime};

use super::TelemetryError;

/// A PEM file with the roots that the collector's certificate is verified by.
const ROOTS: &str = "OTEL_EXPORTER_OTLP_CERTIFICATE";
/// How long a collector may take to answer, whatever the environment says.
const PATIENCE: Duration = Duration::from_secs(10);
/// What a collector may answer. Bytes.
const ANSWER: usize = 64 * 1024;

/// One connection pool, driven by whoever sends: the batch's own thread.
#[derive(Debug)]
pub(super) struct Client {
    runtime: Runtime,
    pool: Pooled<HttpsConnector<HttpConnector>, Full<Bytes>>,
}

impl Client {
    pub(super) fn new() -> Result<Self, TelemetryError> {
        let failed = |error: &dyn std::error::Error| TelemetryError::Exporter(error.to_string());
        let runtime =
            Builder::new_current_thread().enable_all().build().map_err(|error| failed(&error))?;
        let tls = ClientConfig::builder_with_provider(aws_lc_rs::default_provider().into())
            .with_safe_default_protocol_versions()
            .map_err(|error| failed(&error))?
            .with_root_certificates(roots()?)
            .with_no_client_auth();
        let connector =
            HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_http1();
        let pool = Pooled::builder(TokioExecutor::new()).build(connector.build());
        Ok(Self { runtime, pool })
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answering = async {
            let (head, body) = self.pool.request(request.map(Full::new)).await?.into_parts();
            let body = Limited::new(body, ANSWER).collect().await?.to_bytes();
            Ok(Response::from_parts(head, body))
        };
        tokio::time::timeout(PATIENCE, answering).await?
    }
}

impl HttpClient for Client {
    // As `async_trait` writes it.
    fn send_bytes<'life0, 'async_trait>(
        &'life0 self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'async_trait>>
    where
        'life0: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async move { self.runtime.block_on(self.send(request)) })
    }
}

/// The roots that are named, or the public ones.
fn roots() -> Result<RootCertStore, TelemetryError> {
    let mut store = RootCertStore::empty();
    let Some(path) = env::var(ROOTS).ok().filter(|path| !path.is_empty()) else {
        store.extend(webpki_roots::TLS_SERVER_ROOTS.iter().cloned());
        return Ok(store);
    };
    let refused = |why: String| TelemetryError::Roots { path: path.clone(), why };
    let read = CertificateDer::pem_file_iter(&path).map_err(|error| refused(error.to_string()))?;
    for root in read {
        let root = root.map_err(|error| refused(error.to_string()))?;
        store.add(root).map_err(|error| refused(error.to_string()))?;
    }
    if store.is_empty() { Err(refused("there is none in it".into())) } else { Ok(store) }
}
